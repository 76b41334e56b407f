"""Vendi score: the effective number of different images in a set.

D. Friedman, A. B. Dieng 2023, "The Vendi Score: A Diversity Evaluation Metric for Machine Learning", TMLR, arXiv:2210.02410.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import entr

from busgen_core.errors import InputError
from busgen_core.quality.intervals import jackknife
from busgen_core.quality.samples import Features, Floats, checked, group_index
from busgen_core.scores import Estimate


def unit_rows(features: Features, *, name: str = "features") -> Floats:
    """Rows of length 1, so that their products are cosines.

    Raises:
        InputError: wrong shape, values that are not finite, or a row of zeros.
    """
    rows = checked(features, name=name)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    if not length.all():
        raise InputError(f"{name}: {int((length == 0).sum())} rows are all zero and have no direction")
    unit: Floats = rows / length
    return unit


def vendi_value(rows: Floats) -> float:
    """exp of the Shannon entropy of the eigenvalues of K / n, K the cosines of ``rows`` (unit length, [n, d]); equation 2.

    K / n and X^T X / n have the same eigenvalues above 0, so the smaller of the two is decomposed.

    >>> round(vendi_value(np.eye(4)), 6), round(vendi_value(np.ones((3, 1))), 6)
    (4.0, 1.0)
    """
    gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    eigenvalues = np.linalg.eigvalsh(gram / len(rows)).clip(0)
    return float(np.exp(entr(eigenvalues).sum()))


def vendi(features: Features, *, groups: Sequence[str] | None = None, seed: int = 0) -> Estimate:
    """Vendi score with the cosine kernel, from 1 (all the same) to min(n, d), with a 95 % interval over patients.

    It grows with the number of images until the space is filled: compare only values taken at the same size.

    Args:
        features: float [n, d].
        groups: Patient of every row; None: every row its own.

    Raises:
        InputError: wrong shape, values that are not finite, rows of zeros, or fewer than 5 patients.
    """
    rows = unit_rows(features)
    index = group_index(groups, len(rows))
    return jackknife(lambda kept: np.array([vendi_value(rows[kept[0]])]), [index], seed=seed, low=1.0, high=float(min(rows.shape)))[0]
