"""Where the marks of the interval plot lie; the template draws them as SVG."""

from collections.abc import Sequence
from typing import NamedTuple

LEFT, RIGHT, ROW, TOP = 250.0, 740.0, 22.0, 12.0  # SVG units


class Mark(NamedTuple):
    """One AUC with its interval."""

    name: str
    site: str
    value: float
    low: float
    high: float
    baseline: bool


class Row(NamedTuple):
    """A mark's label and place."""

    label: str
    y: float
    value: float
    low: float
    high: float
    baseline: bool
    text: str


class Tick(NamedTuple):
    """A label of the axis."""

    x: float
    text: str


class Plot(NamedTuple):
    """A whole plot, in SVG units."""

    width: float
    height: float
    rows: tuple[Row, ...]
    ticks: tuple[Tick, ...]
    chance: float


def interval_plot(marks: Sequence[Mark]) -> Plot:
    """Lay out one row a mark; the axis ends at 1 and begins at .4, or lower where an interval needs it.

    >>> plot = interval_plot([Mark("pool", "cairo", 0.7, 0.6, 0.8, False)])
    >>> plot.rows[0].label, round(plot.rows[0].value), [tick.text for tick in plot.ticks][:2]
    ('pool, scored at cairo', 495, ['.4', '.5'])
    """
    first = min(4, *(int(max(mark.low, 0) * 10) for mark in marks)) if marks else 4
    start = first / 10

    def x(value: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (min(max(value, start), 1) - start) / (1 - start), 1)

    rows = tuple(
        Row(
            label=f"{mark.name}, scored at {'all together' if mark.site == 'pool' else mark.site}",
            y=TOP + ROW * (number + 0.5),
            value=x(mark.value),
            low=x(mark.low),
            high=x(mark.high),
            baseline=mark.baseline,
            text=f"AUC {mark.value:.3f} ({mark.low:.3f} to {mark.high:.3f})",
        )
        for number, mark in enumerate(marks)
    )
    ticks = tuple(Tick(x(tenth / 10), f".{tenth}" if tenth < 10 else "1") for tenth in range(first, 11))
    return Plot(width=RIGHT + 20, height=TOP + ROW * len(marks) + 26, rows=rows, ticks=ticks, chance=x(0.5))
