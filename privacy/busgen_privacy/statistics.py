"""AUC and hit rates of an attack with their intervals, chances corrected for many attacks, and what a privacy promise allows.

AUC: chance that a member scores above a holdout patient, ties half. TPR at FPR: share of members found at the threshold which that
share of holdout patients passes. One score a patient, so patients are what is counted, resampled and permuted everywhere.

What (epsilon, delta) allows, for whoever attacks: TPR <= Phi(Phi^-1(FPR) + mu) if noise is Gaussian, as ours is, and
TPR <= min(delta + e^eps FPR, 1 - e^-eps (1 - delta - FPR)) whatever the mechanism; the AUC is the area under that curve. Source: Dong,
Roth, Su 2022, arXiv:1905.02383, section 2; Kairouz, Oh, Viswanath 2015, arXiv:1311.0776, theorem 2.1. The promise bounds the average
over runs of the mechanism; a single run speaks of it as far as patients' scores are independent once the network is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, floor, log, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betaincinv, ndtr, ndtri, rel_entr

from busgen_core.errors import InputError
from busgen_privacy.dp.accounting import gdp_mu

Scores = NDArray[np.float64]  # one number for each patient
RESAMPLES = 2000
PERMUTATIONS = 9_999
EXACT_PAIRS = 20_000  # pairs of patients up to which all permutations are counted


def wins(positive: Scores, negative: Scores) -> NDArray[np.float64]:
    """1 where a positive scores above a negative, 1/2 where they tie, else 0; float [positives, negatives].

    Raises:
        InputError: a side is empty, or a score is not finite.
    """
    if not (len(positive) and len(negative) and np.isfinite(positive).all() and np.isfinite(negative).all()):
        raise InputError("an AUC needs finite scores on both sides")
    difference = np.asarray(positive)[:, None] - np.asarray(negative)[None, :]
    return (np.sign(difference) + 1) / 2


def auc(positive: Scores, negative: Scores) -> float:
    """Chance that a positive scores above a negative, ties half (Mann & Whitney 1947).

    >>> auc(np.array([2.0, 1.0]), np.array([1.0, 0.0]))
    0.875
    """
    return float(wins(positive, negative).mean())


def auc_interval(positive: Scores, negative: Scores, *, seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the AUC; both sides are resampled by patient."""
    table = wins(positive, negative)
    rng = np.random.default_rng(seed)
    rows, columns = table.shape
    row_weights = rng.multinomial(rows, np.full(rows, 1 / rows), size=resamples) / rows
    column_weights = rng.multinomial(columns, np.full(columns, 1 / columns), size=resamples) / columns
    values = ((row_weights @ table) * column_weights).sum(1)
    low, high = np.quantile(values, [0.025, 0.975])
    return float(min(max(low, 0.0), 1.0)), float(min(max(high, 0.0), 1.0))


def auc_deviation(value: float, *, positives: int, negatives: int) -> float:
    """Standard deviation of an AUC by its value and sample sizes (Hanley & McNeil 1982, equation 2)."""
    both_above, both_below = value / (2 - value), 2 * value**2 / (1 + value)
    variance = value * (1 - value) + (positives - 1) * (both_above - value**2) + (negatives - 1) * (both_below - value**2)
    return sqrt(max(variance, 0.0) / (positives * negatives))


def auc_exact_interval(positive: Scores, negative: Scores, *, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the AUC that holds at every size and for every law of the scores; wider than the bootstrap's.

    All c with k KL(AUC || c) <= ln(2 / (1 - confidence)), k the smaller side, KL between two coins. Source: Hoeffding 1963,
    doi:10.1080/01621459.1963.10500830, theorem 1 and section 5 (the mean over pairs is no looser than that of k separate pairs).

    >>> [round(end, 3) for end in auc_exact_interval(np.arange(20.0) + 20, np.arange(20.0))]
    [0.832, 1.0]
    """
    value, room = auc(positive, negative), log(2 / (1 - confidence)) / min(len(positive), len(negative))

    def excess(other: float) -> float:
        return float(rel_entr(value, other) + rel_entr(1 - value, 1 - other)) - room

    low = 0.0 if value <= 0 or excess(1e-12) <= 0 else brentq(excess, 1e-12, value, xtol=1e-10)
    high = 1.0 if value >= 1 or excess(1 - 1e-12) <= 0 else brentq(excess, value, 1 - 1e-12, xtol=1e-10)
    return float(low), float(high)


def best_auc(positive: Scores, negative: Scores) -> float:
    """Largest AUC that any split of these scores into sides of these sizes gives: 1 without ties, 1/2 if all are equal.

    >>> best_auc(np.array([0.0, 0.0]), np.array([1.0, 0.0]))
    0.75
    """
    pooled = np.sort(np.concatenate([positive, negative]))
    return auc(pooled[len(negative) :], pooled[: len(negative)])


def permutation_chance(positive: Scores, negative: Scores, *, seed: int) -> float:
    """Chance of this AUC or a larger one if members and others are exchangeable: nothing was learnt of anybody.

    Exact by counting (Mann & Whitney 1947) up to 20,000 pairs without ties; beyond, (1 + b) / (1 + 9,999) with b random permutations
    that reach it, a chance that is never understated (Phipson & Smyth 2010, doi:10.2202/1544-6115.1585).

    >>> permutation_chance(np.array([3.0, 4.0]), np.array([1.0, 2.0]), seed=0) == 1 / 6
    True
    """
    from scipy.stats import mannwhitneyu, rankdata

    observed, pooled = auc(positive, negative), np.concatenate([positive, negative])
    size, pairs = len(positive), len(positive) * len(negative)
    if pairs <= EXACT_PAIRS and len(np.unique(pooled)) == len(pooled):
        return float(mannwhitneyu(positive, negative, alternative="greater", method="exact").pvalue)
    ranks, rng = rankdata(pooled), np.random.default_rng(seed)
    sums = np.array([rng.permutation(ranks)[:size].sum() for _ in range(PERMUTATIONS)])
    reached = int((sums - size * (size + 1) / 2 >= observed * pairs - 1e-6).sum())
    return (1 + reached) / (1 + PERMUTATIONS)


def holm(chances: Sequence[float], *, level: float) -> tuple[bool, ...]:
    """Which of many chances stay significant when all are looked at together (Holm 1979, doi:10.2307/4615733).

    Guarantees: if no attack finds anything, the chance that any is called significant is at most ``level``, however they depend on each
    other. A smaller chance never takes significance from another one.

    >>> holm([0.01, 0.2, 0.02], level=0.05)
    (True, False, True)
    """
    order = np.argsort(chances, kind="stable")
    passed = np.array(chances)[order] <= level / np.arange(len(order), 0, -1)
    kept = np.zeros(len(order), dtype=bool)
    kept[order] = np.logical_and.accumulate(passed)
    return tuple(bool(one) for one in kept)


def share_bounds(counts: NDArray[np.int64] | int, total: int, *, alarm: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper bound of a share, each wrong with chance at most ``alarm`` (Clopper & Pearson 1934, doi:10.1093/biomet/26.4.404).

    >>> [round(float(bound), 3) for bound in share_bounds(0, 10, alarm=0.025)]
    [0.0, 0.308]
    """
    counts = np.asarray(counts)
    low = np.where(counts == 0, 0.0, betaincinv(np.maximum(counts, 1), total - counts + 1, alarm))
    high = np.where(counts == total, 1.0, betaincinv(counts + 1, np.maximum(total - counts, 1), 1 - alarm))
    return low, high


@dataclass(frozen=True, kw_only=True, slots=True)
class HitRate:
    """Members found at a rate of false alarms.

    Attributes:
        fpr: Share of holdout patients that pass the threshold.
        tpr: Share of members above it.
        low: Lower end of the exact 95 % interval, which covers that the threshold itself comes from few holdout patients.
        high: Upper end.
        bootstrap_low: Lower end of the bootstrap's 95 % interval: narrower, and only roughly right where fpr x holdout is small.
        bootstrap_high: Upper end.
    """

    fpr: float
    tpr: float
    low: float
    high: float
    bootstrap_low: float
    bootstrap_high: float


def hit_rate(members: Scores, holdout: Scores, *, fpr: float, seed: int, resamples: int = RESAMPLES) -> HitRate | None:
    """TPR at ``fpr`` with an exact and a bootstrap interval, by patient.

    The threshold is the highest holdout score that at most fpr x holdout others pass; a member must lie above it, a tie does not count.

    Exact interval: half of its 5 % error goes to the threshold. The true threshold, which a share fpr of all non-members passes, lies
    between two order statistics of the holdout, whose true rates are Beta(j, holdout - j + 1). Above the upper one members are counted
    for the lower end, at or above the lower one for the upper end, by Clopper & Pearson. With few holdout patients no order statistic
    is surely high enough, and the lower end is 0: at 1 %, below 436 of them.

    Returns:
        None if there are fewer than 1 / fpr holdout patients: the rate cannot be seen at all.
    """
    if len(holdout) * fpr < 1 - 1e-9:
        return None
    wins(members, holdout)  # refuses what is no score
    threshold = _threshold(np.asarray(holdout)[None], fpr)[0]
    low, high = _exact_hits(members, holdout, fpr, alarm=0.05 / 4)
    again = _resampled_hits(members, holdout, fpr, np.random.default_rng(seed), resamples)
    near, far = np.quantile(again, [0.025, 0.975])
    value = float((members > threshold).mean())
    return HitRate(fpr=fpr, tpr=value, low=low, high=high, bootstrap_low=float(near), bootstrap_high=float(far))


def surely_found(members: Scores, holdout: Scores, *, fpr: float, alarm: float) -> float:
    """Lower end of the exact interval of ``hit_rate``, too high with chance at most ``alarm``; half of it goes to the threshold."""
    return _exact_hits(members, holdout, fpr, alarm=alarm / 2)[0]


def found_outright(members: Scores, holdout: Scores) -> float:
    """Share of members above every holdout patient: found before the first false alarm, which few patients in full sight move most.

    >>> found_outright(np.array([3.0, 1.0]), np.array([1.0, 0.0]))
    0.5
    """
    return float((np.asarray(members) > np.max(holdout)).mean())


def passing(size: int, fpr: float) -> int:
    """How many of ``size`` holdout patients may pass a threshold at ``fpr``; rounding of the product is forgiven."""
    return floor(fpr * size + 1e-9)


def _threshold(holdout: NDArray[np.float64], fpr: float) -> NDArray[np.float64]:
    """Of each row [n, holdout], the score that at most a share fpr lies above."""
    place = holdout.shape[1] - 1 - passing(holdout.shape[1], fpr)
    return np.asarray(np.partition(holdout, place, axis=1)[:, place])


def _exact_hits(members: Scores, holdout: Scores, fpr: float, *, alarm: float) -> tuple[float, float]:
    """Ends of the exact interval; threshold and count err with chance ``alarm`` at each end."""
    falling = np.concatenate([[np.inf], np.sort(holdout)[::-1], [-np.inf]])
    places = np.arange(1, len(holdout) + 1)
    rates_high = betaincinv(places, len(holdout) - places + 1, 1 - alarm)  # the true rate above the j-th largest is surely below this
    rates_low = betaincinv(places, len(holdout) - places + 1, alarm)
    upper, lower = falling[int((rates_high <= fpr).sum())], falling[1 + int((rates_low < fpr).sum())]
    counts = np.array([(members > upper).sum(), (members >= lower).sum()])
    low, high = share_bounds(counts, len(members), alarm=alarm)
    return float(low[0]), float(high[1])


def _resampled_hits(members: Scores, holdout: Scores, fpr: float, rng: np.random.Generator, resamples: int) -> NDArray[np.float64]:
    """TPR of resampled patients, float64 [resamples]."""
    size = len(members)
    weights = rng.multinomial(size, np.full(size, 1 / size), size=resamples) / size
    thresholds = _threshold(rng.choice(holdout, (resamples, len(holdout))), fpr)
    return np.asarray(np.minimum((weights * (members[None] > thresholds[:, None])).sum(1), 1.0))  # weights add to 1 but for rounding


def ceiling_auc(epsilon: float, delta: float) -> float:
    """Largest AUC of any membership attack on one patient that the promise allows: Phi(mu / sqrt 2).

    mu is that of the Gaussian mechanism that is exactly (epsilon, delta)-DP; our mechanisms are compositions of Gaussians, whose
    trade-off curve that one describes (Dong, Roth, Su 2022, arXiv:1905.02383, theorem 3.5). It is not the ceiling of an arbitrary
    (epsilon, delta)-DP mechanism, which may allow more at other deltas.

    >>> [round(ceiling_auc(epsilon, 1e-5), 3) for epsilon in (1, 3, 8)]
    [0.575, 0.694, 0.881]
    """
    return float(ndtr(gdp_mu(epsilon, delta) / sqrt(2)))


def ceiling_tpr(epsilon: float, delta: float, *, fpr: float) -> float:
    """Largest TPR at ``fpr`` that the promise allows: Phi(Phi^-1(fpr) + mu), mu as in ``ceiling_auc``.

    >>> [round(ceiling_tpr(epsilon, 1e-5, fpr=0.01), 3) for epsilon in (1, 3, 8)]
    [0.02, 0.054, 0.255]
    """
    return float(ndtr(ndtri(fpr) + gdp_mu(epsilon, delta)))


def any_ceiling_auc(epsilon: float, delta: float) -> float:
    """Largest AUC of any (epsilon, delta)-DP mechanism, Gaussian or not: 1 - (1 - delta)^2 / (1 + e^eps), the area under its curve.

    >>> [round(any_ceiling_auc(epsilon, 1e-5), 4) for epsilon in (1, 3, 8)]
    [0.7311, 0.9526, 0.9997]
    """
    return 1 - (1 - delta) ** 2 / (1 + exp(min(epsilon, 700)))


def any_ceiling_tpr(epsilon: float, delta: float, *, fpr: float) -> float:
    """Largest TPR at ``fpr`` of any (epsilon, delta)-DP mechanism.

    >>> round(any_ceiling_tpr(1.0, 1e-5, fpr=0.01), 4)
    0.0272
    """
    steep, flat = delta + exp(min(epsilon, 700)) * fpr, 1 - exp(-epsilon) * (1 - delta - fpr)
    return float(min(max(min(steep, flat), 0.0), 1.0))
