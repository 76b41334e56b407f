"""``mean``: class means of a few numbers an image, clipped by patient, noised once. One Gaussian event.

An image is ``phi`` (``reference.py``): the foundation's own images lie around 0 with deviation 1, so what is spent buys the difference
to the foundation, not what everybody knows. A patient gives the mean over its images of

    one_hot(class) (x) [COUNT_SHARE * B, clip(phi, B)],        B = CLIP sqrt(numbers),

of L2 norm at most B sqrt(1 + COUNT_SHARE^2), the sensitivity of the sum. Sums are divided by the noised counts. In DP-FETA
(arXiv:2407.16405, the published code) the exact class sizes divide, which tells them and gives small classes too little noise.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from busgen_core.errors import InputError
from busgen_core.labels import Pathology
from busgen_privacy.cohort import Cohort
from busgen_privacy.dp.noise import NoiseSource, noised
from busgen_privacy.dp.reference import NUMBERS, Reference

CLIP = 1.2  # times sqrt(numbers), the root mean square of |phi| on the foundation's own images
COUNT_SHARE = 0.5
CLIP_NORM = CLIP * sqrt(NUMBERS)
BOUND = CLIP_NORM * sqrt(1 + COUNT_SHARE**2)
FEWEST = 10.0  # patients of a class, noised, below which its mean is not used

Vectors = NDArray[np.float64]


@dataclass(frozen=True)
class ClassMeans:
    """Noised means of a hospital's classes; all of it differentially private.

    Attributes:
        counts: Patients of each class, noised; a patient whose images differ in class counts as parts. float64 [classes].
        means: float64 [classes, numbers]; NaN where the class has too few.
        deviation: Standard deviation of the noise on each number of a class's mean, float64 [classes].
    """

    counts: Vectors
    means: Vectors
    deviation: Vectors


def contribution(reference: Reference, cohort: Cohort, rows: list[int]) -> Vectors:
    """One patient's share of the sum, float64 [classes, 1 + numbers], of L2 norm at most ``BOUND``; depends on this patient alone."""
    phi = reference.measure(cohort.images[rows])
    norms = np.linalg.norm(phi, axis=1, keepdims=True)
    clipped = phi * np.minimum(1.0, CLIP_NORM * (1 - 1e-12) / np.maximum(norms, 1e-12))
    share = np.zeros((len(Pathology), 1 + NUMBERS))
    for one, row in zip(clipped, rows, strict=True):
        share[cohort.classes[row].class_index] += np.concatenate([[COUNT_SHARE * CLIP_NORM], one]) / len(rows)
    return share


def class_sums(reference: Reference, cohort: Cohort, *, noise_multiplier: float, source: NoiseSource) -> Vectors:
    """Noised sums over the patients of a cohort, float64 [classes, 1 + numbers].

    Guarantees: GaussianEvent(noise_multiplier, 1, 1) of the members: one patient moves the true sums by at most ``BOUND`` in L2.

    Raises:
        InputError: an empty cohort.
    """
    if not len(cohort):
        raise InputError("means need patients: the cohort is empty")
    total = np.sum([contribution(reference, cohort, rows) for rows in cohort.patient_rows().values()], axis=0)
    return noised(total, bound=BOUND, noise_multiplier=noise_multiplier, source=source)


def from_sums(sums: Vectors, *, noise_multiplier: float) -> ClassMeans:
    """Means and their noise from noised sums, float64 [classes, 1 + numbers]. Post-processing."""
    counts = sums[:, 0] / (COUNT_SHARE * CLIP_NORM)
    enough = counts >= FEWEST
    divisor = np.where(enough, counts, 1.0)
    means = np.where(enough[:, None], sums[:, 1:] / divisor[:, None], np.nan)
    return ClassMeans(counts=counts, means=means, deviation=np.where(enough, noise_multiplier * BOUND / divisor, np.inf))


def expected_deviation(*, noise_multiplier: float, public_cohort: int) -> float:
    """Noise that a class mean will have, in deviations of the foundation's images, for a class of half the public cohort."""
    return noise_multiplier * BOUND / (public_cohort / 2)
