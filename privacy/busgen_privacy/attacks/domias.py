"""DOMIAS: are released images denser around a member than images of the world are?

score(x) = log p_released(x) - log p_reference(x), both by a Gaussian kernel density estimate: with n images g_i in k whitened
principal components and a bandwidth h = n^(-1 / (k + 4)) (D. W. Scott 1992, "Multivariate Density Estimation", section 6.3),

log p(x) = log sum_i exp(-|x - g_i|^2 / (2 h^2)) - log n - k log h + constant.

The components are those of released and reference images together; attacked images have no part in the fit.
Source: van Breugel et al. 2023, arXiv:2302.12580, equation 2; the density estimate is the KDE of their section 5.
"""

import numpy as np
from scipy.special import logsumexp
from sklearn.decomposition import PCA

from busgen_privacy.attacks.base import BlackBoxAttack, Features, Scores, every_pair
from busgen_privacy.attacks.neighbours import Floats, checked, distances, projected

COMPONENTS = 32  # with 8 the densities are too coarse to see a leak; more than 32 see no more (simulated, 60 members, 2,000 released)


def score(released: Features, reference: Features, attacked: Features) -> Scores:
    """Log ratio of densities at each attacked image, float64 [n].

    Args:
        released: float32 [m, d].
        reference: float32 [r, d]: public images, or images of the foundation before adaptation.
        attacked: float32 [n, d].

    Raises:
        InputError: features that cannot be compared.
    """
    checked(released, reference, attacked)
    pooled = np.concatenate([released, reference]).astype(np.float64)
    fit = PCA(min(COMPONENTS, *pooled.shape), svd_solver="full").fit(pooled)
    kept = fit.explained_variance_ > 1e-9 * max(float(fit.explained_variance_[0]), 1e-30)
    matrix = fit.components_[kept].T / np.sqrt(fit.explained_variance_[kept])
    generated, world, wanted = (projected(each - fit.mean_, matrix) for each in (released, reference, attacked))
    return log_density(generated, wanted) - log_density(world, wanted)


def log_density(known: Floats, wanted: Floats) -> Scores:
    """Log density at each wanted point up to a constant of k, float64 [n]; bandwidth by Scott's rule.

    Args:
        known: float64 [m, k], about unit variance in each column.
        wanted: float64 [n, k].
    """
    count, k = known.shape
    width = count ** (-1 / (k + 4))
    sums = [logsumexp(-np.square(block) / (2 * width**2), axis=1) for block in distances(wanted, known)]
    return np.asarray(np.concatenate(sums) - np.log(count) - k * np.log(width))


ATTACK = BlackBoxAttack(
    name="domias",
    what="Do released images crowd around members more than around patients never seen, compared with public images?",
    source="van Breugel et al. 2023, arXiv:2302.12580, equation 2",
    score=score,
    pairs=every_pair,
)
