"""``vote``: one noisy nearest-neighbour histogram over gray-map styles. One Gaussian event of sensitivity 1.

Private evolution (Z. Lin et al. 2024, "Differentially private synthetic data via foundation model APIs", arXiv:2305.15560, algorithm
2) with one round and simulator presets for candidates (Z. Lin et al. 2025, arXiv:2502.05505): each image votes for the style of the
nearest image of its class; a patient's images share one vote.
"""

import numpy as np
from numpy.typing import NDArray

from busgen_core.errors import InputError
from busgen_core.styles import STYLES
from busgen_privacy.cohort import Cohort
from busgen_privacy.dp.noise import NoiseSource, noised
from busgen_privacy.dp.reference import Reference

EVERYBODY = 0.2  # share of the mixture that all styles divide equally, whatever the votes
THRESHOLD = 1.0  # standard deviations of the noise below which a vote count is taken for noise

Vectors = NDArray[np.float64]


def ballot(reference: Reference, cohort: Cohort, rows: list[int]) -> Vectors:
    """One patient's vote, float64 [styles]: non-negative, sums to 1, so its L2 norm is at most 1.

    Depends on this patient's rows alone.
    """
    phi = reference.measure(cohort.images[rows])
    votes = np.zeros(len(STYLES))
    for one, row in zip(phi, rows, strict=True):
        same = reference.phi[:, reference.classes == cohort.classes[row].class_index]
        votes[int(np.square(same - one).sum(2).min(1).argmin())] += 1 / len(rows)
    return votes


def vote(reference: Reference, cohort: Cohort, *, noise_multiplier: float, source: NoiseSource) -> Vectors:
    """The noised histogram, float64 [styles]; adding or removing one patient moves the true one by at most 1 in L2.

    Guarantees: GaussianEvent(noise_multiplier, 1, 1) of the members.

    Raises:
        InputError: an empty cohort.
    """
    if not len(cohort):
        raise InputError("nobody can vote: the cohort is empty")
    total = np.sum([ballot(reference, cohort, rows) for rows in cohort.patient_rows().values()], axis=0)
    return noised(total, bound=1.0, noise_multiplier=noise_multiplier, source=source)


def mixture(histogram: Vectors, *, noise_multiplier: float) -> Vectors:
    """Shares of the styles in what is sampled, float64 [styles], sums to 1. Post-processing of the noised histogram.

    Counts below one standard deviation of the noise are taken for 0 (the same paper's threshold); a fifth goes to all styles alike.

    >>> mixture(np.zeros(len(STYLES)), noise_multiplier=1.0).round(4).tolist() == [0.0625] * 16
    True
    """
    kept = np.maximum(histogram - THRESHOLD * noise_multiplier, 0.0)
    if kept.sum() <= 0:
        return np.full(len(histogram), 1 / len(histogram))
    return np.asarray((1 - EVERYBODY) * kept / kept.sum() + EVERYBODY / len(histogram))
