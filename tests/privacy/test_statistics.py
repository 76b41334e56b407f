"""Intervals that hold what they say, chances that are chances, and the ceilings of a promise."""

from itertools import combinations, product
from math import exp, log

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, norm

from busgen_core.errors import InputError
from busgen_privacy.dp.accounting import gdp_mu
from busgen_privacy.statistics import (
    any_ceiling_auc,
    any_ceiling_tpr,
    auc,
    auc_exact_interval,
    auc_interval,
    ceiling_auc,
    ceiling_tpr,
    hit_rate,
    holm,
    permutation_chance,
    share_bounds,
)

Numbers = NDArray[np.float64]


def normals(rng: np.random.Generator, members: int, holdout: int, *, mu: float) -> tuple[Numbers, Numbers]:
    return rng.normal(mu, 1, members), rng.normal(0, 1, holdout)


def slow_hits(members: Numbers, holdout: Numbers, fpr: float) -> float:
    """Lowest threshold among holdout scores that at most fpr x holdout others pass, and the members above it."""
    allowed = [t for t in holdout if sum(h > t for h in holdout) <= fpr * len(holdout) + 1e-9]
    return sum(m > min(allowed) for m in members) / len(members)


def test_the_exact_interval_is_that_of_the_slow_twin() -> None:
    """Its ends are the farthest AUCs, on a fine grid, whose distance k KL stays within ln(2 / 0.05)."""
    members, holdout = normals(np.random.default_rng(0), 30, 20, mu=0.8)
    value, inside = auc(members, holdout), []
    for other in np.linspace(1e-4, 1 - 1e-4, 9999):
        if 20 * (value * log(value / other) + (1 - value) * log((1 - value) / (1 - other))) <= log(40):
            inside.append(other)
    assert auc_exact_interval(members, holdout) == pytest.approx((min(inside), max(inside)), abs=2e-4)


@pytest.mark.parametrize("mu", [0.0, 1.0, 3.0])
def test_the_exact_interval_covers_at_every_auc(mu: float) -> None:
    """With 12 and 8 patients it holds the true AUC in at least 95 % of 400 samples, and encloses the estimate; it never leaves [0, 1]."""
    rng, truth, covered = np.random.default_rng(1), float(norm.cdf(mu / np.sqrt(2))), 0
    for _ in range(400):
        sides = normals(rng, 12, 8, mu=mu)
        low, high = auc_exact_interval(*sides)
        assert 0 <= low <= auc(*sides) <= high <= 1
        covered += low <= truth <= high
    assert covered >= 0.95 * 400


def test_the_exact_interval_holds_where_the_bootstrap_fails() -> None:
    """Members all above eight others: the bootstrap is sure of AUC 1, the exact interval admits much less."""
    members, holdout = np.arange(12.0) + 8, np.arange(8.0)
    assert auc_interval(members, holdout, seed=0) == pytest.approx((1.0, 1.0))
    assert auc_exact_interval(members, holdout)[0] < 0.7


def test_the_permutation_chance_counts_every_permutation() -> None:
    """Without ties it is the share of all 70 choices of four of eight that reach the AUC; with ties random ones come within .01."""
    for scores in (np.array([3.0, 9.0, 5.0, 8.0, 1.0, 2.0, 4.0, 7.0]), np.array([2.0, 2.0, 1.0, 3.0, 0.0, 1.0, 2.0, 0.0])):
        observed = auc(scores[:4], scores[4:])
        reached = [auc(scores[list(one)], np.delete(scores, list(one))) >= observed - 1e-9 for one in combinations(range(8), 4)]
        tolerance = 1e-12 if len(set(scores)) == 8 else 0.015
        assert permutation_chance(scores[:4], scores[4:], seed=0) == pytest.approx(np.mean(reached), abs=tolerance)


def test_the_permutation_chance_accuses_the_innocent_no_more_than_it_says() -> None:
    """Exchangeable patients fall below .05 in at most 5 % of 1,000 samples, up to three standard errors; a real difference far more often."""
    rng = np.random.default_rng(2)
    innocent = np.mean([permutation_chance(*normals(rng, 20, 15, mu=0), seed=0) <= 0.05 for _ in range(1000)])
    guilty = np.mean([permutation_chance(*normals(rng, 20, 15, mu=1.5), seed=0) <= 0.05 for _ in range(100)])
    assert innocent <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)
    assert guilty > 0.9


def test_many_pairs_are_permuted_at_random_and_never_give_zero() -> None:
    """Beyond 20,000 pairs the chance is one in 10,000 at least, and near the normal approximation's elsewhere."""
    rng = np.random.default_rng(3)
    assert permutation_chance(np.arange(200.0) + 200, np.arange(150.0), seed=0) == 1e-4
    members, holdout = normals(rng, 200, 150, mu=0.15)
    z = (auc(members, holdout) - 0.5) / np.sqrt(351 / (12 * 200 * 150))
    assert permutation_chance(members, holdout, seed=0) == pytest.approx(norm.sf(z), abs=0.015)


def test_share_bounds_are_those_of_the_slow_twin() -> None:
    """Each end is where the binomial tail is as large as the error allowed; the ends of the scale are 0 and 1."""
    for count in range(13):
        low, high = (float(end[0]) for end in share_bounds(np.array([count]), 12, alarm=0.025))
        assert low == 0 if count == 0 else binom.sf(count - 1, 12, low) == pytest.approx(0.025)
        assert high == 1 if count == 12 else binom.cdf(count, 12, high) == pytest.approx(0.025)


@pytest.mark.parametrize(("holdout", "fpr", "seen"), [(99, 0.01, False), (100, 0.01, True), (999, 0.001, False), (1000, 0.001, True)])
def test_a_rate_is_stated_only_with_patients_enough(holdout: int, fpr: float, seen: bool) -> None:
    """One in a hundred cannot be seen with 99 holdout patients, nor one in a thousand with 999."""
    sides = normals(np.random.default_rng(4), 30, holdout, mu=1)
    assert (hit_rate(*sides, fpr=fpr, seed=0, resamples=50) is not None) is seen


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.29])
def test_the_hit_rate_is_that_of_the_slow_twin(fpr: float) -> None:
    """The threshold is looked for among all holdout scores, ties among them too; a member on the threshold is not found."""
    rng = np.random.default_rng(5)
    for sides in (normals(rng, 40, 100, mu=1), (rng.integers(0, 6, 40).astype(float), rng.integers(0, 5, 100).astype(float))):
        found = hit_rate(*sides, fpr=fpr, seed=0, resamples=50)
        assert found is not None
        assert found.tpr == pytest.approx(slow_hits(*sides, fpr))


@pytest.mark.parametrize("digits", [None, 0])
def test_the_hit_rates_interval_covers_the_threshold_too(digits: int | None) -> None:
    """With 60 members and 150 others the true rate at 5 % lies within it in at least 95 % of 300 samples, also where scores are whole numbers.

    An interval that took the threshold for known covers fewer: that is what the test can see.
    """
    rng, covered, naive = np.random.default_rng(6), 0, 0
    for _ in range(300):
        members, holdout = normals(rng, 60, 150, mu=1.666)
        if digits is not None:  # then the true rate is that of tossing a coin between two thresholds
            members, holdout = members.round(digits), holdout.round(digits)
        found = hit_rate(members, holdout, fpr=0.05, seed=0, resamples=20)
        assert found is not None
        truth = _true_rate(1.666, fpr=0.05, whole=digits is not None)
        covered += found.low <= truth <= found.high
        low, high = share_bounds(np.array([round(found.tpr * 60)]), 60, alarm=0.025)
        naive += low[0] <= truth <= high[0]
    assert covered >= 0.95 * 300
    assert naive < 0.9 * 300


def _true_rate(mu: float, *, fpr: float, whole: bool) -> float:
    if not whole:
        return float(norm.cdf(norm.ppf(fpr) + mu))
    steps = np.arange(-6, 9) - 0.5  # scores round to whole numbers: thresholds lie between them
    return float(np.interp(fpr, norm.sf(steps)[::-1], norm.sf(steps - mu)[::-1]))


def test_few_holdout_patients_leave_the_lower_end_at_nothing() -> None:
    """At 1 % no order statistic of 436 scores is surely high enough; of 437 the highest is."""
    for holdout, known in ((436, False), (437, True)):
        found = hit_rate(np.arange(50.0) + 1e6, np.arange(float(holdout)), fpr=0.01, seed=0, resamples=20)
        assert found is not None
        assert (found.low > 0) is known
        assert found.high == 1


def test_the_hit_rates_bootstrap_is_roughly_right() -> None:
    """With 40 holdout patients allowed above the threshold it covers the true rate in 88 % to 99 % of 150 samples."""
    rng, covered = np.random.default_rng(7), 0
    for seed in range(150):
        found = hit_rate(*normals(rng, 80, 200, mu=1.666), fpr=0.2, seed=seed, resamples=300)
        assert found is not None
        covered += found.bootstrap_low <= _true_rate(1.666, fpr=0.2, whole=False) <= found.bootstrap_high
    assert 0.88 * 150 <= covered <= 0.99 * 150


@pytest.mark.parametrize("bad", [np.array([]), np.array([np.nan]), np.array([np.inf])])
def test_scores_that_are_no_numbers_are_refused(bad: Numbers) -> None:
    """No interval and no chance is stated on an empty side or on what is not finite."""
    with pytest.raises(InputError):
        auc_exact_interval(bad, np.array([1.0]))
    with pytest.raises(InputError):
        permutation_chance(bad, np.array([1.0]), seed=0)
    with pytest.raises(InputError):
        hit_rate(bad, np.arange(100.0), fpr=0.01, seed=0)


KNOWN = [(1, 0.575, 0.020, 0.0024), (3, 0.694, 0.054, 0.0089), (8, 0.881, 0.255, 0.077)]


@pytest.mark.parametrize(("epsilon", "area", "percent", "permille"), KNOWN)
def test_ceilings_are_the_known_ones(epsilon: float, area: float, percent: float, permille: float) -> None:
    """AUC, TPR at 1 % and at 0.1 % that epsilon 1, 3 and 8 at delta 1e-5 allow, as computed before this code was written."""
    assert ceiling_auc(epsilon, 1e-5) == pytest.approx(area, abs=5e-4)
    assert ceiling_tpr(epsilon, 1e-5, fpr=0.01) == pytest.approx(percent, abs=5e-4)
    assert ceiling_tpr(epsilon, 1e-5, fpr=0.001) == pytest.approx(permille, abs=5e-4 if epsilon == 8 else 5e-5)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.0), (0.5, 0.1), (3.0, 1e-5), (8.0, 1e-5)])
def test_the_ceiling_of_any_mechanism_is_the_area_under_its_curve(epsilon: float, delta: float) -> None:
    """Slow twin: the trade-off's two lines written out (Dong et al. 2022), integrated on a grid that is fine where the curve is steep."""
    grid = np.concatenate([[0.0], np.geomspace(1e-9, 1, 20_001)])
    curve = np.array([1 - max(0.0, 1 - delta - exp(epsilon) * a, exp(-epsilon) * (1 - delta - a)) for a in grid])
    assert any_ceiling_auc(epsilon, delta) == pytest.approx(float(np.trapezoid(curve, grid)), abs=1e-5)
    for place in (0, 500, 15_000, 20_001):
        assert any_ceiling_tpr(epsilon, delta, fpr=float(grid[place])) == pytest.approx(curve[place])


def test_a_gaussian_promise_allows_less_than_any_promise() -> None:
    """At the same epsilon and delta the Gaussian ceiling lies below the general one, at every rate of false alarms."""
    for epsilon, fpr in product((0.5, 1.0, 3.0, 8.0), (1e-4, 1e-3, 1e-2, 0.1, 0.5)):
        assert ceiling_tpr(epsilon, 1e-5, fpr=fpr) <= any_ceiling_tpr(epsilon, 1e-5, fpr=fpr)
        assert ceiling_auc(epsilon, 1e-5) < any_ceiling_auc(epsilon, 1e-5)
    assert any_ceiling_auc(1e9, 0.0) == 1
    assert gdp_mu(8.0, 1e-5) == pytest.approx(1.666, abs=1e-3)


def slow_holm(chances: list[float], level: float) -> tuple[bool, ...]:
    """Step down, one at a time: the smallest that is left against level / how many are left, until one fails."""
    left, kept = dict(enumerate(chances)), [False] * len(chances)
    while left:
        place = min(left, key=lambda one: (left[one], one))
        if left.pop(place) > level / (len(left) + 1):
            break
        kept[place] = True
    return tuple(kept)


def test_holm_is_that_of_the_slow_twin() -> None:
    """On 300 sets of chances, some equal; nothing in, nothing out."""
    rng = np.random.default_rng(8)
    for _ in range(300):
        chances = (rng.random(rng.integers(1, 9)) ** 3).round(2).tolist()
        assert holm(chances, level=0.05) == slow_holm(chances, 0.05)
    assert holm([], level=0.05) == ()


def test_holm_accuses_no_family_of_innocents_too_often() -> None:
    """Twelve attacks without effect, half of them copies of one: at most 5 % of 4,000 families have one that is called significant.

    Without correction a third would.
    """
    chances = np.random.default_rng(9).random((4000, 7))
    families = np.concatenate([chances[:, :1].repeat(6, axis=1), chances[:, 1:]], axis=1)
    assert np.mean([any(holm(one.tolist(), level=0.05)) for one in families]) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)
    assert (families <= 0.05).any(1).mean() > 0.25


@pytest.mark.parametrize("size", [7, 49, 60, 100, 113])
def test_a_hit_rates_interval_stays_within_zero_and_one(size: int) -> None:
    """Where every member is found the bootstrap's shares are sums of weights, which rounding can take above 1: never in the interval."""
    found = hit_rate(np.arange(size) + 1000.0, np.arange(40.0), fpr=0.05, seed=0)
    assert found is not None
    assert (found.bootstrap_low, found.bootstrap_high, found.high) == (pytest.approx(1), pytest.approx(1), 1)
    assert max(found.bootstrap_low, found.bootstrap_high) <= 1
