"""95 % intervals by resampling patients: a bootstrap for means over images or pairs, a jackknife for neighbours and spectra.

The bootstrap draws patients with replacement. That is right for a mean, but it puts copies of an image into the sample:
the nearest neighbour of a copy is the copy, and the diversity of a sample with copies is too low. So measures of neighbours
and of diversity delete blocks of patients instead.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import t as student

from busgen_core.quality.samples import Floats, Indices
from busgen_core.scores import Estimate

BLOCKS = 40  # blocks of patients that the jackknife deletes in turn
REPEATS = 1000  # bootstrap replicates

Measure = Callable[[Sequence[Indices]], Floats]  # rows to keep of every sample -> values [m]


def group_draws(groups: Indices, *, repeats: int, rng: np.random.Generator) -> Floats:
    """How often each group is drawn in each bootstrap replicate.

    Returns:
        float64 [repeats, groups]; every row sums to the number of groups.
    """
    count = int(groups.max()) + 1
    return rng.multinomial(count, np.full(count, 1 / count), size=repeats).astype(np.float64)


def percentile(value: float, replicates: Floats) -> Estimate:
    """The value with the 2.5 % and 97.5 % quantiles of its finite replicates, widened where they do not hold the value.

    Source: B. Efron, R. Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    low, high = np.quantile(replicates[np.isfinite(replicates)], [0.025, 0.975])
    return Estimate(value, float(min(low, value)), float(max(high, value)))


def bootstrap_mean(values: Floats, groups: Indices, *, seed: int, repeats: int = REPEATS) -> Estimate:
    """Mean over images, with an interval over patients.

    Args:
        values: float64 [n]; NaN where an image gives none.
        groups: int64 [n], as ``group_index``.

    >>> bootstrap_mean(np.ones(8), np.arange(8), seed=1)
    Estimate(value=1.0, low=1.0, high=1.0)
    """
    return percentile(float(np.nanmean(values)), replicated_means(values, groups, seed=seed, repeats=repeats))


def replicated_means(values: Floats, groups: Indices, *, seed: int, repeats: int = REPEATS) -> Floats:
    """Bootstrap replicates [repeats] of the mean over images, patients drawn with replacement; NaN where none was left."""
    draws = group_draws(groups, repeats=repeats, rng=np.random.default_rng(seed))
    there = np.isfinite(values)
    total = np.bincount(groups, np.where(there, values, 0.0), minlength=draws.shape[1])
    count = np.bincount(groups, there, minlength=draws.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Floats = (draws @ total) / (draws @ count)
    return means


def jackknife(
    measure: Measure, groups: Sequence[Indices], *, seed: int, low: float = -np.inf, high: float = np.inf, blocks: int = BLOCKS
) -> list[Estimate]:
    """Values of several independent samples, with intervals from deleting blocks of patients.

    For each sample in turn, patients are dealt into ``blocks`` blocks of (nearly) one size and each block is left out once:
    variance = (B - 1) / B * sum (value without block - mean of those)^2, added over the samples; the interval is Student's t
    with the fewest blocks less one degrees of freedom, cut to [low, high].

    Args:
        measure: Takes the rows to keep of every sample, returns float64 [m].
        groups: For every sample, int64 [n] as ``group_index``.

    Returns:
        m estimates.

    Source: P. S. Kott 2001, "The delete-a-group jackknife", Journal of Official Statistics 17(4); J. Shao, C. F. J. Wu 1989,
    doi:10.1214/aos/1176347263 (why blocks, where one image at a time fails).
    """
    rng = np.random.default_rng(seed)
    every = [np.arange(len(g)) for g in groups]
    value, variance, freedom = measure(every), 0.0, blocks
    for sample, index in enumerate(groups):
        dealt = _dealt(index, blocks, rng)
        without = np.stack([measure([*every[:sample], np.flatnonzero(dealt != b), *every[sample + 1 :]]) for b in range(dealt.max() + 1)])
        variance = variance + (len(without) - 1) * without.var(axis=0)
        freedom = min(freedom, len(without))
    reach = student.ppf(0.975, freedom - 1) * np.sqrt(variance)
    return [
        Estimate(float(v), float(max(low, v - r)), float(min(high, v + r))) for v, r in zip(value, np.broadcast_to(reach, value.shape), strict=True)
    ]


def _dealt(groups: Indices, blocks: int, rng: np.random.Generator) -> Indices:
    """Block of every image, int64 [n]: patients shuffled, then dealt in turn."""
    count = int(groups.max()) + 1
    block_of_group = np.empty(count, np.int64)
    block_of_group[rng.permutation(count)] = np.arange(count) % min(blocks, count)
    return block_of_group[groups]
