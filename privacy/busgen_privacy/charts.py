"""Charts of the reports as shapes in SVG units, origin at the top left; templates only draw them. Pure, and no word in it.

Shapes and dashes tell what colours tell; colours are the page's own, so that a chart is readable in light, dark and print.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from busgen_privacy.statistics import Scores

NAMES, PLOT, ROW = 128.0, 250.0, 26.0  # of a chart with a row for each name: names, plot, height of a row
SIDE = 150.0  # of a square chart
LOWEST = 1e-3  # smallest rate on a logarithmic axis
DECADES = (0.001, 0.01, 0.1, 1.0)
BINS, TALL = 30, 44.0  # of a histogram: bars, height

Points = Sequence[tuple[float, float]]
Ticks = tuple[tuple[float, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """An AUC with its interval, as numbers.

    Attributes:
        name: For the row.
        auc: The value.
        low: Lower end.
        high: Upper end.
        ceiling: The most that the promise allows; None without one.
        caught: Smallest AUC that would have been caught; None: none, or not said.
        diagnostic: Shown, never deciding.
    """

    name: str
    auc: float
    low: float
    high: float
    ceiling: float | None = None
    caught: float | None = None
    diagnostic: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """An estimate drawn: places along its row, the middle of which lies at ``y``."""

    of: Estimate
    y: float
    auc: float
    low: float
    high: float
    ceiling: float | None
    caught: float | None

    @property
    def above(self) -> bool:
        """Whether the interval lies wholly above the ceiling."""
        return self.of.ceiling is not None and self.of.low > self.of.ceiling


@dataclass(frozen=True, slots=True)
class Forest:
    """Estimates below each other on one axis."""

    marks: tuple[Mark, ...]
    ticks: Ticks
    guessing: float
    left: float
    width: float
    height: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One number as a bar.

    Attributes:
        name: For the row.
        value: The number.
        y: Middle of the row.
        width: Length of the bar.
        above: Whether it is to be marked as above what it is held against.
    """

    name: str
    value: float
    y: float
    width: float
    above: bool


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars below each other from one left edge; ``held`` is where the value stands that they are held against, None without one."""

    bars: tuple[Bar, ...]
    held: float | None
    left: float
    height: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Roc:
    """One attack's curve on logarithmic axes.

    Attributes:
        name: Of the attack.
        points: As SVG's ``points`` has it.
        blind_across: Width of the part with fewer false alarms than one holdout patient: nothing can be measured there.
        blind_up: Height of the part with fewer hits than one member.
    """

    name: str
    points: str
    blind_across: float
    blind_up: float


@dataclass(frozen=True, slots=True)
class Rocs:
    """Curves, each for a chart of its own, and what they share: the promise's curve (empty without one) and ticks of both axes."""

    curves: tuple[Roc, ...]
    allowed: str
    ticks: Ticks
    side: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """One group's values as bars (x, y, width, height) on a base line at ``base``, with the median's place."""

    name: str
    base: float
    bars: tuple[tuple[float, float, float, float], ...]
    median: float
    median_value: float


@dataclass(frozen=True, slots=True)
class Histograms:
    """Histograms below each other on one axis and one scale."""

    groups: tuple[Histogram, ...]
    ticks: Ticks
    left: float
    width: float
    height: float


def forest(estimates: Sequence[Estimate]) -> Forest:
    """Estimates in their order, on an axis that ends at 1 and begins at .4 or below.

    >>> forest([Estimate(name="a", auc=0.7, low=0.6, high=0.8)]).ticks[0][1]
    '0.4'
    """
    start = min([4, *(floor(estimate.low * 10) for estimate in estimates)]) / 10

    def place(value: float) -> float:
        return round(NAMES + PLOT * (value - start) / (1 - start), 1)

    marks = tuple(
        Mark(
            of=one,
            y=ROW * number + ROW / 2,
            auc=place(one.auc),
            low=place(one.low),
            high=place(one.high),
            ceiling=None if one.ceiling is None else place(one.ceiling),
            caught=None if one.caught is None else place(one.caught),
        )
        for number, one in enumerate(estimates)
    )
    ticks = tuple((place(tenth / 10), f"{tenth / 10:.1f}") for tenth in range(round(start * 10), 11))
    return Forest(marks, ticks, place(0.5), NAMES, PLOT, ROW * len(marks))


def bars(values: Mapping[str, float], *, held: float | None) -> Bars:
    """Bars of numbers from 0, and the value that they are held against.

    >>> [(bar.width, bar.above) for bar in bars({"a": 1.0, "b": 4.0}, held=2.0).bars]
    [(50.0, False), (200.0, True)]
    """
    longest, room = max([*values.values(), held or 0.0, 1.0]), PLOT - 50
    drawn = tuple(
        Bar(
            name=name,
            value=value,
            y=ROW * number + ROW / 2,
            width=round(room * value / longest, 1),
            above=held is not None and value > held,
        )
        for number, (name, value) in enumerate(values.items())
    )
    return Bars(drawn, None if held is None else round(NAMES + room * held / longest, 1), NAMES, ROW * len(drawn))


def roc(members: Scores, holdout: Scores) -> list[tuple[float, float]]:
    """Points (false positive rate, true positive rate) of every threshold, from (0, 0) to (1, 1).

    >>> roc(np.array([2.0, 0.0]), np.array([1.0, 0.0]))
    [(0.0, 0.0), (0.0, 0.5), (0.5, 0.5), (1.0, 1.0)]
    """
    cuts = np.unique(np.concatenate([members, holdout]))[::-1]
    inside, outside = np.sort(members), np.sort(holdout)
    true = 1 - np.searchsorted(inside, cuts, side="left") / len(inside)
    false = 1 - np.searchsorted(outside, cuts, side="left") / len(outside)
    return [(0.0, 0.0), *zip(false.tolist(), true.tolist(), strict=True)]


def allowed(mu: float) -> list[tuple[float, float]]:
    """The curve that a mu-Gaussian promise allows: true positives Phi(Phi^-1(false) + mu).

    Source: Dong, Roth, Su 2022, arXiv:1905.02383, equation 6.
    """
    rates = np.logspace(log10(LOWEST), 0, 60)
    return [(float(rate), float(ndtr(ndtri(rate) + mu))) for rate in rates]


def log_rocs(scores: Mapping[str, tuple[Scores, Scores]], *, mu: float | None) -> Rocs:
    """ROC curves with both axes logarithmic from .001, so that what happens at few false alarms is seen (Carlini et al. 2022, arXiv:2112.03570).

    Args:
        scores: Of members and of holdout patients, for each attack.
        mu: Of the promise, for its own curve; None where nothing is promised.
    """
    curves = tuple(
        Roc(name=name, points=_stairs(roc(inside, outside)), blind_across=_log(1 / len(outside)), blind_up=_log(1 / len(inside)))
        for name, (inside, outside) in scores.items()
    )
    return Rocs(curves, "" if mu is None else _line(allowed(mu)), tuple((_log(rate), f"{100 * rate:g}") for rate in DECADES), SIDE)


def histograms(groups: Mapping[str, NDArray[np.floating]]) -> Histograms:
    """Shares of each group's values in common bins.

    Args:
        groups: Finite values of each group, none empty.

    >>> histograms({"a": np.array([0.0, 1.0]), "b": np.array([2.0, 3.0])}).groups[1].median_value
    2.5
    """
    everything = np.concatenate([np.asarray(values, np.float64) for values in groups.values()])
    low, high = float(everything.min()), float(everything.max())
    high = high if high > low else low + 1
    shares = {name: np.histogram(values, BINS, (low, high))[0] / len(values) for name, values in groups.items()}
    top = max(float(share.max()) for share in shares.values())

    def place(value: float) -> float:
        return round(NAMES + PLOT * (value - low) / (high - low), 1)

    drawn = []
    for number, (name, share) in enumerate(shares.items()):
        base, middle = (TALL + 12) * (number + 1), float(np.median(groups[name]))
        drawn.append(Histogram(name=name, base=base, bars=_upright(share / top, base), median=place(middle), median_value=middle))
    ticks = tuple((place(value), f"{value:.3g}") for value in np.linspace(low, high, 5).tolist())
    return Histograms(tuple(drawn), ticks, NAMES, PLOT, (TALL + 12) * len(drawn))


def _upright(heights: NDArray[np.float64], base: float) -> tuple[tuple[float, float, float, float], ...]:
    wide = PLOT / len(heights)
    return tuple(
        (round(NAMES + wide * place, 1), round(base - TALL * height, 1), round(wide - 0.8, 1), round(TALL * height, 1))
        for place, height in enumerate(heights.tolist())
        if height > 0
    )


def _log(rate: float) -> float:
    """Place of a rate on a logarithmic axis, 0 at .001."""
    return round(SIDE * (1 - log10(max(rate, LOWEST)) / log10(LOWEST)), 1)


def _line(points: Points) -> str:
    return " ".join(f"{_log(x):g},{SIDE - _log(y):g}" for x, y in points)


def _stairs(points: Points) -> str:
    """Across, then up: between two thresholds there is nothing; only corners are kept."""
    places = [(_log(x), SIDE - _log(y)) for x, y in points]
    corners = places[:1]
    for x, y in places[1:]:
        for corner in ((x, corners[-1][1]), (x, y)):
            if len(corners) > 1 and any(one[axis] == two[axis] == corner[axis] for axis in (0, 1) for one, two in [corners[-2:]]):
                corners.pop()
            corners.append(corner)
    return " ".join(f"{x:g},{y:g}" for x, y in corners)
