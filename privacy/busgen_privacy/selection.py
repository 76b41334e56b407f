"""Choosing what is released from a larger pool of drawn images, so that class means are the hospital's. Post-processing: costs nothing.

Among all weights on the pool, those nearest to the pool's own (in relative entropy) that meet the means are exponential,
w(x) ~ exp(theta phi(x)) (E. Jaynes 1957, doi:10.1103/PhysRev.106.620); with noised means, theta maximises

    theta m - log mean exp(theta phi) - (RIDGE + NOISE_RIDGE deviation^2) |theta|^2 / 2,

so that noise is not followed where it is louder than what a hospital usually differs by.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

from busgen_core.errors import ConfigError
from busgen_core.labels import Pathology
from busgen_privacy.dp.means import ClassMeans

# Rehearsed on the train folders of three public hospitals, patients split anew (bench/adaptation.py, docs/adr/0018): .3 to 1 differ little.
RIDGE, NOISE_RIDGE, SHARPNESS = 0.5, 4.0, 2.0

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

    The vote's mixture, tilted towards each class's mean; then images on the wrong side of what the tilted classes themselves say are
    passed over (``agreement``); last, weights are evened out until no class leans on fewer images than it is to give.

    Args:
        phi: float64 [styles, n, numbers] of the pool's images in every style.
        classes: Class index of each image, int [n].
        styles: Shares of the styles, float64 [styles].
        means: Noised class means, or None: then only the styles count.
        counts: Images to be chosen of each class index.
    """
    weights = np.zeros(phi.shape[:2])
    for index in np.unique(classes):
        weights[:, classes == index] = class_weights(phi[:, classes == index], styles, means, int(index))
    if means is None:
        return weights
    weights = weights * agreement(phi, classes, weights, means)
    for index in np.unique(classes):
        own = classes == index
        weights[:, own] = tempered(weights[:, own], counts.get(int(index), 0))
    return weights


def class_weights(phi: Vectors, styles: Vectors, means: ClassMeans | None, class_index: int) -> Vectors:
    """Weights of one class's pool, float64 [styles, n], sum to 1: the mixture, tilted towards the class's mean where there is one."""
    base: Vectors = np.repeat(styles[:, None], phi.shape[1], axis=1) / phi.shape[1]
    if means is None or not np.isfinite(means.means[class_index]).all():
        return base
    ridge = RIDGE + NOISE_RIDGE * float(means.deviation[class_index]) ** 2
    flat = tilt(phi.reshape(-1, phi.shape[2]), means.means[class_index], base.reshape(-1), ridge=ridge)
    return np.asarray(flat.reshape(base.shape))


def agreement(phi: Vectors, classes: NDArray[np.int64], weights: Vectors, means: ClassMeans) -> Vectors:
    """How far a lesion image lies on its own side of the line between the two tilted lesion classes: in (0, 1), 1 for all others.

    The line is Fisher's discriminant (R. Fisher 1936) of the weighted pool; an image at z standard deviations on its own side gets
    1 / (1 + exp(-SHARPNESS z))^2. What a generator draws for "malignant" is now and then what this hospital would call benign.
    """
    found = np.ones(phi.shape[:2])
    sides = {p.class_index: sign for p, sign in ((Pathology.BENIGN, -1.0), (Pathology.MALIGNANT, 1.0))}
    if not all(np.isfinite(means.means[i]).all() and (classes == i).any() for i in sides):
        return found
    flat = {i: phi[:, classes == i].reshape(-1, phi.shape[2]) for i in sides}
    share = {i: weights[:, classes == i].reshape(-1) for i in sides}
    centre = {i: share[i] @ flat[i] for i in sides}
    within = np.eye(phi.shape[2])
    for i in sides:
        within += (share[i][:, None] * (flat[i] - centre[i])).T @ (flat[i] - centre[i])
    benign, malignant = sides
    line = np.linalg.solve(within, centre[malignant] - centre[benign])
    score = (phi - (centre[benign] + centre[malignant]) / 2) @ line
    score = score / max(float(score[:, np.isin(classes, list(sides))].std()), 1e-12)
    for i, sign in sides.items():
        found[:, classes == i] = expit(SHARPNESS * sign * score[:, classes == i]) ** 2
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
