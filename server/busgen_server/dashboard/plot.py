"""Where the marks of a plot lie, in percent of its width. Pure.

The template draws marks as SVG and words as HTML, so that words keep their size on a phone.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from busgen_server.dashboard.words import percent


class Span(NamedTuple):
    """From where to where a mark reaches, percent of the plot's width."""

    low: float
    high: float


class Row(NamedTuple):
    """One line of a plot, percent of its width; whatever is None is not drawn.

    Attributes:
        label: What it is about.
        text: The same in figures; all that the marks show.
        bar: Where a bar that begins at zero ends.
        point: Where a point lies.
        interval: A line through the point.
        chance: A bracket: what guessing gives.
        goal: A mark across: what was asked for.
        hollow: Something to compare with, not a finding.
    """

    label: str
    text: str
    bar: Span | None = None
    point: float | None = None
    interval: Span | None = None
    chance: Span | None = None
    goal: float | None = None
    hollow: bool = False


class Tick(NamedTuple):
    """A label of the axis."""

    x: float
    text: str


class Plot(NamedTuple):
    """A whole plot; ``line`` is where a dashed line stands."""

    rows: tuple[Row, ...]
    ticks: tuple[Tick, ...]
    line: float | None = None


class Mark(NamedTuple):
    """One AUC with its interval."""

    name: str
    site: str
    value: float
    low: float
    high: float
    baseline: bool


class Told(NamedTuple):
    """How well something is named, balanced accuracy 0 to 1, and what guessing gives (95 %)."""

    label: str
    accuracy: float
    chance_low: float
    chance_high: float
    baseline: bool


class Axis(NamedTuple):
    """What the left and the right edge of a plot stand for."""

    start: float
    end: float

    def x(self, value: float) -> float:
        """Percent of the width; what lies outside is drawn at the edge.

        >>> Axis(0.5, 1.0).x(0.75)
        50.0
        """
        return round(100 * (min(max(value, self.start), self.end) - self.start) / (self.end - self.start), 1)

    def span(self, low: float, high: float) -> Span:
        """Both ends."""
        return Span(self.x(low), self.x(high))


CLOSE = 10.0  # percent of the width; labels nearer than this would touch
SHARES = Axis(0, 1)
SHARE_TICKS = tuple(Tick(SHARES.x(quarter / 4), f"{25 * quarter} %") for quarter in range(5))


def interval_plot(marks: Sequence[Mark]) -> Plot:
    """AUCs with intervals; the axis ends at 1 and begins at .4, or lower where an interval needs it.

    >>> plot = interval_plot([Mark("pool", "cairo", 0.7, 0.6, 0.8, False)])
    >>> plot.rows[0].label, plot.rows[0].point, [tick.text for tick in plot.ticks][:2]
    ('pool, scored at cairo', 50.0, ['.4', '.5'])
    """
    first = min(4, *(int(max(mark.low, 0) * 10) for mark in marks)) if marks else 4
    axis = Axis(first / 10, 1)
    rows = tuple(
        Row(
            label=f"{mark.name}, scored at {'all together' if mark.site == 'pool' else mark.site}",
            text=f"AUC {mark.value:.3f} ({mark.low:.3f} to {mark.high:.3f})",
            point=axis.x(mark.value),
            interval=axis.span(mark.low, mark.high),
            hollow=mark.baseline,
        )
        for mark in marks
    )
    ticks = tuple(Tick(axis.x(tenth / 10), f".{tenth}" if tenth < 10 else "1") for tenth in range(first, 11))
    return Plot(rows, ticks, line=axis.x(0.5))


def told_plot(told: Sequence[Told]) -> Plot:
    """Bars of shares named right, each with the bracket of what guessing gives.

    >>> told_plot([Told("site", 0.62, 0.46, 0.54, False)]).rows[0].text
    '62 %, above guessing (46 to 54 %)'
    """
    rows = (
        Row(
            label=each.label,
            text=f"{100 * each.accuracy:.0f} %, {_beside(each)} guessing ({100 * each.chance_low:.0f} to {100 * each.chance_high:.0f} %)",
            bar=SHARES.span(0, each.accuracy),
            chance=SHARES.span(each.chance_low, each.chance_high),
            hollow=each.baseline,
        )
        for each in told
    )
    return Plot(tuple(rows), SHARE_TICKS)


def share_plot(shares: Mapping[str, float]) -> Plot:
    """Bars of shares, in the order given.

    >>> share_plot({"a": 0.25}).rows[0].text
    '25 %'
    """
    return Plot(tuple(Row(name, percent(share), bar=SHARES.span(0, share)) for name, share in shares.items()), SHARE_TICKS)


def count_plot(counts: Mapping[str, int]) -> Plot:
    """Bars of counts that make a whole, in the order given.

    >>> count_plot({"text": 1, "none": 3}).rows[0].text
    '1 of 4'
    """
    whole = sum(counts.values())
    axis = Axis(0, max(1, whole))
    rows = (Row(name, f"{count} of {whole}", bar=axis.span(0, count)) for name, count in counts.items())
    return Plot(tuple(rows), (Tick(0, "0"), Tick(100, f"{whole}")))


def balance_plot(asked: Mapping[str, int], got: Mapping[str, int]) -> Plot:
    """Images of each class as bars, with a mark at what was asked for; classes that are nowhere are left out.

    >>> [row.text for row in balance_plot({"benign": 30, "normal": 0}, {"benign": 29, "normal": 0}).rows]
    ['29 of 30 asked for']
    """
    most = max([1, *asked.values(), *got.values()])
    axis = Axis(0, most)
    rows = (
        Row(name, f"{got.get(name, 0)} of {count} asked for", bar=axis.span(0, got.get(name, 0)), goal=axis.x(count))
        for name, count in asked.items()
        if count or got.get(name, 0)
    )
    return Plot(tuple(rows), (Tick(0, "0"), Tick(100, f"{most}")))


def distance_plot(marks: Sequence[tuple[str, float, float, float, bool]]) -> Plot:
    """Distances with intervals, as (label, value, low, high, hollow), around a dashed line at zero.

    >>> plot = distance_plot([("this release", 0.1, -0.1, 0.3, False)])
    >>> plot.rows[0].text, plot.line, [tick.text for tick in plot.ticks]
    ('0.100 (-0.100 to 0.300)', 25.0, ['-0.1', '0', '0.3'])
    """
    low, high = min([0, *(mark[2] for mark in marks)]), max([0, *(mark[3] for mark in marks)])
    axis = Axis(low, high if high > low else low + 1)
    rows = (
        Row(label, f"{value:.3f} ({start:.3f} to {end:.3f})", point=axis.x(value), interval=axis.span(start, end), hollow=hollow)
        for label, value, start, end, hollow in marks
    )
    ends = [end for end in axis if abs(axis.x(end) - axis.x(0)) > CLOSE]
    return Plot(tuple(rows), tuple(Tick(axis.x(tick), f"{tick:.2g}") for tick in sorted([0, *ends])), line=axis.x(0))


def _beside(told: Told) -> str:
    if told.accuracy > told.chance_high:
        return "above"
    return "below" if told.accuracy < told.chance_low else "no better than"
