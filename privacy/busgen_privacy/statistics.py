"""AUC, its intervals, and the AUC that a privacy promise allows."""

from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from busgen_core.errors import InputError
from busgen_privacy.dp.accounting import gdp_mu

Scores = NDArray[np.float64]  # one number for each patient
RESAMPLES = 2000


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


def ceiling_auc(epsilon: float, delta: float) -> float:
    """Largest AUC of any membership attack on one patient that the promise allows: Phi(mu / sqrt 2).

    mu is that of the Gaussian mechanism that is exactly (epsilon, delta)-DP; our mechanisms are compositions of Gaussians, whose
    trade-off curve that one describes (Dong, Roth, Su 2022, arXiv:1905.02383, theorem 3.5). It is not the ceiling of an arbitrary
    (epsilon, delta)-DP mechanism, which may allow more at other deltas.

    >>> [round(ceiling_auc(epsilon, 1e-5), 3) for epsilon in (1, 3, 8)]
    [0.575, 0.694, 0.881]
    """
    return float(ndtr(gdp_mu(epsilon, delta) / sqrt(2)))
