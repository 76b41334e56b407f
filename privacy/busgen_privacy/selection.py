"""Choosing what is released from a larger pool of drawn images, so that class means are the hospital's. Post-processing: costs nothing.

Among all weights on the pool, those nearest to the pool's own (in relative entropy) that meet the means are exponential,
w(x) ~ exp(theta phi(x)) (E. Jaynes 1957, doi:10.1103/PhysRev.106.620), where theta maximises

    theta m - log mean exp(theta phi) - RIDGE |theta|^2 / 2.

Noised means are shrunk first (``expected_means``): what all lesions have in common differs from hospital to hospital far more than the
difference between benign and malignant does, and following noise in that difference teaches a classifier nonsense.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

from busgen_core.errors import ConfigError
from busgen_core.labels import Pathology
from busgen_privacy.dp.means import ClassMeans

# Rehearsed on the train folders of three public hospitals, patients split anew (bench/rehearsals.py, docs/adr/0018).
RIDGE, SHARPNESS = 0.5, 2.0
SHIFT_VARIANCE, CONTRAST_VARIANCE = 0.2, 0.05  # by how much a number differs between hospitals: of all lesions, of malignant minus benign
PATIENT_VARIANCE = 1.0  # by how much a number differs between patients of a class; 1 on the foundation's images by construction

LESIONS = (Pathology.BENIGN.class_index, Pathology.MALIGNANT.class_index)

Vectors = NDArray[np.float64]


def tilt(phi: Vectors, mean: Vectors, base: Vectors, *, ridge: float) -> Vectors:
    """Weights of a pool whose mean comes near ``mean``; float64 [n], sum to 1.

    Args:
        phi: float64 [n, numbers].
        mean: Wanted mean, float64 [numbers].
        base: Weights without any tilt, float64 [n], at least 0, any sum above 0.
        ridge: Penalty on theta; above 0.
    """
    with np.errstate(divide="ignore"):
        start = np.log(base / base.sum())

    def objective(theta: Vectors) -> tuple[float, Vectors]:
        score = phi @ theta + start
        total = logsumexp(score)
        return float(total - theta @ mean + ridge / 2 * theta @ theta), np.exp(score - total) @ phi - mean + ridge * theta

    found = minimize(objective, np.zeros(phi.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 300})
    score = phi @ found.x + start
    return np.asarray(np.exp(score - logsumexp(score)))


def choose(weights: Vectors, count: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``count`` different images of a pool and a style for each, by weight.

    Args:
        weights: float64 [styles, n], sum above 0.
        count: At most n.
        rng: Public randomness.

    Returns:
        Rows and styles, int [count] each. A row's chance is count x its weight, cut at 1 and the rest shared out.

    Raises:
        ConfigError: more images than the pool has.
    """
    images = weights.shape[1]
    if not 0 <= count <= images:
        raise ConfigError(f"{count} images of a pool of {images} cannot be chosen; draw a larger pool")
    weights = weights + 1e-12 * weights.sum() / weights.size  # so that every image can be chosen
    chances = inclusion(weights.sum(0), count)
    order = rng.permutation(images)
    ends = np.cumsum(chances[order])
    picked = np.searchsorted(ends, np.arange(count) + (1 - 1e-6) * rng.random(), side="right")  # systematic sampling: nobody twice
    rows = np.sort(order[np.minimum(picked, images - 1)])
    return rows, np.array([rng.choice(len(weights), p=weights[:, r] / weights[:, r].sum()) for r in rows], dtype=np.int64)


def inclusion(weights: Vectors, count: int) -> Vectors:
    """Chances of being chosen, proportional to weights, at most 1, that sum to ``count``.

    >>> inclusion(np.array([8.0, 1.0, 1.0]), 2).round(6).tolist()
    [1.0, 0.5, 0.5]
    """
    chances, sure = np.zeros(len(weights)), np.zeros(len(weights), bool)
    while True:
        left = count - sure.sum()
        chances = np.where(sure, 1.0, weights * left / max(weights[~sure].sum(), 1e-300))
        if not (chances > 1 + 1e-12).any():
            return np.asarray(np.minimum(chances, 1 - 1e-12))
        sure |= chances > 1


def pool_weights(phi: Vectors, classes: NDArray[np.int64], styles: Vectors, means: ClassMeans | None, counts: Mapping[int, int]) -> Vectors:
    """Weights of a whole pool, float64 [styles, n]; those of each class sum to 1.

    The vote's mixture, tilted towards each class's expected mean; then images on the wrong side of what the tilted classes themselves
    say are passed over (``agreement``); last, weights are evened out until no class leans on fewer images than it is to give.

    Args:
        phi: float64 [styles, n, numbers] of the pool's images in every style.
        classes: Class index of each image, int [n].
        styles: Shares of the styles, float64 [styles].
        means: Noised class means, or None: then only the styles count.
        counts: Images to be chosen of each class index.
    """
    own = {int(index): classes == index for index in np.unique(classes)}
    weights = np.zeros(phi.shape[:2])
    for mine in own.values():
        weights[:, mine] = np.repeat(styles[:, None], mine.sum(), axis=1) / mine.sum()
    if means is None:
        return weights
    wanted = expected_means({index: _mean(weights[:, mine], phi[:, mine]) for index, mine in own.items()}, means)
    for index, mean in wanted.items():
        mine = own[index]
        flat = tilt(phi[:, mine].reshape(-1, phi.shape[2]), mean, weights[:, mine].reshape(-1), ridge=RIDGE)
        weights[:, mine] = flat.reshape(len(phi), -1)
    if set(LESIONS) <= set(wanted):
        weights = weights * agreement(phi, classes, weights)
    for index, mine in own.items():
        weights[:, mine] = tempered(weights[:, mine], counts.get(index, 0))
    return weights


def expected_means(pool: Mapping[int, Vectors], means: ClassMeans) -> dict[int, Vectors]:
    """Posterior means of a hospital's classes, float64 [numbers] each; only of classes that the pool has and that have a noised mean.

    Normal priors around the pool's means: a shift that all lesions share, of variance SHIFT_VARIANCE a number, and a change of the
    contrast malignant minus benign, of variance CONTRAST_VARIANCE; around them the noise, which is known, and what a mean of so few
    patients varies by anyway (A. Gelman et al. 2013, section 2.5).

    Args:
        pool: Mean of each class's pool, by class index.
        means: Noised means and their noise.
    """
    there = [index for index in pool if np.isfinite(means.means[index]).all()]
    shift = {index: means.means[index] - pool[index] for index in there}
    noise = {index: float(means.deviation[index]) ** 2 + PATIENT_VARIANCE / float(means.counts[index]) for index in there}
    found = {index: pool[index] + shift[index] * _trust(SHIFT_VARIANCE, noise[index]) for index in there}
    benign, malignant = LESIONS
    if not {benign, malignant} <= set(there):  # one of them moved and the other not would be a contrast that nobody has seen
        return {index: mean for index, mean in found.items() if index not in LESIONS}
    whole = 1 / noise[benign] + 1 / noise[malignant]
    common = (shift[benign] / noise[benign] + shift[malignant] / noise[malignant]) / whole * _trust(SHIFT_VARIANCE, 1 / whole)
    contrast = (shift[malignant] - shift[benign]) * _trust(CONTRAST_VARIANCE, noise[benign] + noise[malignant])
    return found | {benign: pool[benign] + common - contrast / 2, malignant: pool[malignant] + common + contrast / 2}


def _trust(variance: float, noise: float) -> float:
    """Share of a noised difference that is kept: prior variance / (prior variance + noise variance)."""
    return variance / (variance + noise)


def _mean(weights: Vectors, phi: Vectors) -> Vectors:
    return np.asarray(np.einsum("sn,snk->k", weights, phi) / weights.sum())


def agreement(phi: Vectors, classes: NDArray[np.int64], weights: Vectors) -> Vectors:
    """How far a lesion image lies on its own side of the line between the two weighted lesion classes: in (0, 1), 1 for all others.

    The line is Fisher's discriminant (R. Fisher 1936) of the weighted pool; an image at z standard deviations on its own side gets
    1 / (1 + exp(-SHARPNESS z))^2. What a generator draws for "malignant" is now and then what this hospital would call benign.
    """
    centre, within = {}, np.eye(phi.shape[2])
    for index in LESIONS:
        flat, share = phi[:, classes == index].reshape(-1, phi.shape[2]), weights[:, classes == index].reshape(-1)
        centre[index] = share @ flat / share.sum()
        within += (share[:, None] / share.sum() * (flat - centre[index])).T @ (flat - centre[index])
    benign, malignant = LESIONS
    line = np.linalg.solve(within, centre[malignant] - centre[benign])
    score = (phi - (centre[benign] + centre[malignant]) / 2) @ line
    score = score / max(float(score[:, np.isin(classes, LESIONS)].std()), 1e-12)
    found = np.ones(phi.shape[:2])
    for index, sign in ((benign, -1.0), (malignant, 1.0)):
        found[:, classes == index] = expit(SHARPNESS * sign * score[:, classes == index]) ** 2
    return found


def tempered(weights: Vectors, count: int) -> Vectors:
    """Weights to a power of at most 1, the largest at which they rest on ``count`` images or more; float64 [styles, n], sum to 1.

    How many images weights rest on is 1 / sum of squares of their shares (L. Kish 1965, section 8.2).
    """
    low, high = 0.0, 1.0
    power = 1.0
    for _ in range(20):
        if _rests_on(weights, power) >= min(count, weights.shape[1] * 0.999):
            low = power
            if power == 1.0:
                break
        else:
            high = power
        power = (low + high) / 2
    found = weights**low
    return np.asarray(found / found.sum())


def _rests_on(weights: Vectors, power: float) -> float:
    images = (weights**power).sum(0)
    return float(images.sum() ** 2 / np.square(images).sum())
