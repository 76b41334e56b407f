"""Charts as shapes: places against known answers."""

from itertools import pairwise

import numpy as np
import pytest

from busgen_privacy.charts import LOWEST, NAMES, PLOT, SIDE, TALL, Estimate, allowed, bars, forest, histograms, log_rocs, roc
from busgen_privacy.statistics import auc


def test_a_forest_places_values_on_its_axis() -> None:
    """Guessing and 1 lie where the ticks say; an interval is marked only if it lies wholly above the ceiling."""
    drawn = forest([Estimate(name="a", auc=0.5, low=0.45, high=1.0, ceiling=0.6), Estimate(name="b", auc=0.8, low=0.7, high=0.9, ceiling=0.6)])
    assert drawn.ticks[0] == (NAMES, "0.4")
    assert drawn.ticks[-1] == (NAMES + PLOT, "1.0")
    assert drawn.marks[0].auc == drawn.guessing
    assert drawn.marks[0].high == NAMES + PLOT
    assert [mark.above for mark in drawn.marks] == [False, True]
    assert forest([Estimate(name="a", auc=0.2, low=0.11, high=0.3)]).ticks[0][1] == "0.1"


def test_bars_share_one_scale_with_what_they_are_held_against() -> None:
    """The claim's stroke stands where a bar of its value would end; without a claim nothing is above."""
    drawn = bars({"a": 4.0, "b": 2.0}, held=2.0)
    assert drawn.held == NAMES + drawn.bars[1].width
    assert [bar.above for bar in drawn.bars] == [True, False]
    assert not any(bar.above for bar in bars({"a": 4.0}, held=None).bars)


def test_the_area_under_the_curve_is_the_auc() -> None:
    """The curve's points are the ROC: the trapezoids under them sum to the AUC, ties and all."""
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 9, 40).astype(float) + 1, rng.integers(0, 9, 30).astype(float)
    across, up = np.array(roc(inside, outside)).T
    assert np.trapezoid(up, across) == pytest.approx(auc(inside, outside))


def test_a_log_curve_is_a_stair_with_its_blind_parts() -> None:
    """No slanted line, from corner to corner; below one holdout patient's share the chart is blind."""
    inside, outside = np.array([3.0, 2.0, 1.0]), np.linspace(0, 2.5, 10)
    drawn = log_rocs({"a": (inside, outside)}, mu=1.0)
    points = [tuple(map(float, point.split(","))) for point in drawn.curves[0].points.split()]
    assert points[0] == (0, SIDE)
    assert points[-1] == (SIDE, 0)
    assert all((x0 == x1) != (y0 == y1) for (x0, y0), (x1, y1) in pairwise(points))
    assert drawn.curves[0].blind_across == pytest.approx(SIDE * 2 / 3)  # a tenth: two of three decades
    assert drawn.allowed
    assert log_rocs({"a": (inside, outside)}, mu=None).allowed == ""


def test_the_promise_allows_no_less_than_guessing() -> None:
    """The allowed curve lies above the diagonal and meets it where nothing is promised away."""
    assert all(true > false for false, true in allowed(1.0)[:-1])
    assert allowed(0.0)[0] == pytest.approx((LOWEST, LOWEST))


def test_histograms_share_bins_and_height() -> None:
    """The fullest bin of all groups is as tall as the chart; equal values do not divide by 0; the median is where it is said."""
    drawn = histograms({"a": np.array([0.0, 0.0, 0.0]), "b": np.array([0.0, 1.0, 2.0])})
    assert max(bar[3] for group in drawn.groups for bar in group.bars) == TALL
    assert drawn.groups[0].median == NAMES
    assert drawn.groups[1].median == NAMES + PLOT / 2
    assert len(histograms({"a": np.array([1.0, 1.0])}).groups[0].bars) == 1
