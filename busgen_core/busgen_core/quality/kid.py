"""Kernel inception distance: squared maximum mean discrepancy of features under a cubic polynomial kernel.

Unbiased at every sample size, unlike FID, so a few hundred images can be compared. M. Binkowski et al. 2018,
arXiv:1801.01401, section 4.1, with the kernel k(x, y) = (x.y / d + 1)^3; estimator: A. Gretton et al. 2012, "A Kernel
Two-Sample Test", equation 3.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from busgen_core.errors import ConfigError
from busgen_core.quality.intervals import REPEATS, group_draws, percentile
from busgen_core.quality.samples import Features, Floats, Indices, checked_pair, group_index
from busgen_core.scores import Estimate

ROWS = 1024  # rows of the kernel matrix that are in memory at a time


class SubsetKid(NamedTuple):
    """Mean and standard deviation of KID over random subsets: what other papers print. Not an interval of anything."""

    mean: float
    deviation: float


def kernel(a: Floats, b: Floats) -> Floats:
    """k(x, y) = (x.y / d + 1)^3 of every pair; float64 [n, d] and [m, d] to [n, m].

    >>> kernel(np.ones((1, 4)), np.ones((1, 4))).tolist()
    [[8.0]]
    """
    values: Floats = (a @ b.T / a.shape[1] + 1) ** 3
    return values


def kid(
    a: Features,
    b: Features,
    *,
    seed: int,
    groups_a: Sequence[str] | None = None,
    groups_b: Sequence[str] | None = None,
    repeats: int = REPEATS,
) -> Estimate:
    """KID between two sets of features, with a 95 % interval over patients.

    MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y), where x, x' are images of two different patients. Pairs of one
    patient's images are left out: they are alike because they are one patient, and would make every hospital seem far from
    every other. Without groups this is the usual unbiased estimator. It is around 0, and half the time below 0, for two samples
    of the same distribution.

    Args:
        a: float [n, d].
        b: float [m, d].
        groups_a: Patient of every row of ``a``; None: every row its own.
        repeats: Bootstrap replicates. Patients are drawn with replacement and a pair weighs as often as both its patients were
            drawn, pairs of one patient still left out, so copies add no bias. Near MMD^2 = 0 the interval is too wide, not
            too narrow (the statistic is degenerate there).

    Raises:
        InputError: wrong shapes, values that are not finite, or fewer than 5 patients in a set.
    """
    first, second = checked_pair(a, b, names=("features a", "features b"))
    index_a, index_b = group_index(groups_a, len(first), name="groups a"), group_index(groups_b, len(second), name="groups b")
    rng = np.random.default_rng(seed)
    draws_a, draws_b = (group_draws(index, repeats=repeats, rng=rng) for index in (index_a, index_b))
    values = _weighted(first, second, index_a, index_b, _with_all(draws_a), _with_all(draws_b))
    return percentile(float(values[0]), values[1:])


def kid_value(a: Floats, b: Floats, index_a: Indices, index_b: Indices) -> float:
    """``kid`` without its interval, for checked features and group numbers from 0."""
    ones_a, ones_b = (np.ones((1, int(index.max()) + 1)) for index in (index_a, index_b))
    return float(_weighted(a, b, index_a, index_b, ones_a, ones_b)[0])


def kid_subsets(a: Features, b: Features, *, seed: int, size: int = 100, count: int = 100) -> SubsetKid:
    """KID the way it is usually printed: mean and deviation over ``count`` pairs of random subsets of ``size`` images each.

    Raises:
        ConfigError: ``size`` below 2 or larger than a set, or ``count`` below 2.
        InputError: as ``kid``.
    """
    first, second = checked_pair(a, b, names=("features a", "features b"))
    if not 2 <= size <= min(len(first), len(second)) or count < 2:
        raise ConfigError(f"{size=} must be from 2 to the smaller set ({min(len(first), len(second))} images), {count=} at least 2")
    rng, alone = np.random.default_rng(seed), np.arange(size)
    pairs = ((rng.choice(len(first), size, replace=False), rng.choice(len(second), size, replace=False)) for _ in range(count))
    values = np.array([kid_value(first[i], second[j], alone, alone) for i, j in pairs])
    return SubsetKid(float(values.mean()), float(values.std(ddof=1)))


def _with_all(draws: Floats) -> Floats:
    """A first row in which every patient counts once."""
    return np.concatenate([np.ones((1, draws.shape[1])), draws])


def _weighted(a: Floats, b: Floats, index_a: Indices, index_b: Indices, draws_a: Floats, draws_b: Floats) -> Floats:
    """MMD^2 for each row of weights on patients: draws [r, patients] to [r]; not finite where a row draws a single patient."""
    weights_a, weights_b = draws_a[:, index_a], draws_b[:, index_b]
    between = np.zeros(len(draws_a))
    for rows in _blocks(len(a)):
        between += ((weights_b @ kernel(b, a[rows])) * weights_a[:, rows]).sum(axis=1)
    between /= weights_a.sum(axis=1) * weights_b.sum(axis=1)
    values: Floats = _within(a, index_a, draws_a) + _within(b, index_b, draws_b) - 2 * between
    return values


def _within(a: Floats, index: Indices, draws: Floats) -> Floats:
    """Weighted mean of the kernel over pairs of images of two different patients, for each row of ``draws``."""
    weights = draws[:, index]
    total = np.zeros(len(draws))
    for rows in _blocks(len(a)):
        pairs = kernel(a, a[rows])
        pairs[index[:, None] == index[None, rows]] = 0
        total += ((weights @ pairs) * weights[:, rows]).sum(axis=1)
    of_one_patient = ((draws * np.bincount(index)) ** 2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Floats = total / (weights.sum(axis=1) ** 2 - of_one_patient)
    return mean


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, start + ROWS) for start in range(0, count, ROWS))
