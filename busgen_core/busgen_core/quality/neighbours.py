"""Measures by nearest neighbours: density and coverage, precision and recall.

Around every image of one set lies a ball that reaches to its k-th nearest neighbour in the same set; the measures count which
images of the other set lie in which balls. Balls are closed and an image is not its own neighbour.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from busgen_core.errors import ConfigError, InputError
from busgen_core.quality.intervals import jackknife
from busgen_core.quality.samples import Features, Floats, Indices, checked_pair, group_index
from busgen_core.scores import Estimate

K_COVERAGE = 5  # Naeem et al. 2020, section 4.1
K_RECALL = 3  # Kynkaanniemi et al. 2019, section 3.1


class DensityCoverage(NamedTuple):
    """Density (at least 0, about 1 when the sets are alike) and coverage (0 to 1)."""

    density: Estimate
    coverage: Estimate


class Distances(NamedTuple):
    """Euclidean distances within and between two sets."""

    real: Floats  # [n, n]
    fake: Floats  # [m, m]
    across: Floats  # [n, m]

    @classmethod
    def of(cls, real: Floats, fake: Floats) -> "Distances":
        """Distances of checked features [n, d] and [m, d]."""
        return cls(cdist(real, real), cdist(fake, fake), cdist(real, fake))

    def kept(self, rows: Indices, columns: Indices) -> "Distances":
        """The same for some rows of the real set and some of the fake one."""
        return Distances(self.real[np.ix_(rows, rows)], self.fake[np.ix_(columns, columns)], self.across[np.ix_(rows, columns)])


def reach(distances: Floats, k: int) -> Floats:
    """Distance of every point to its k-th nearest other point, [n] of [n, n].

    >>> reach(cdist([[0.0], [1.0], [3.0]], [[0.0], [1.0], [3.0]]), 1).tolist()
    [1.0, 1.0, 2.0]
    """
    nearest: Floats = np.partition(distances, k, axis=1)[:, k]  # place 0 is the point itself, at distance 0
    return nearest


def density_value(distances: Distances, k: int = K_COVERAGE) -> float:
    """1 / (k m) times the number of (real, fake) pairs in which the fake image lies in the real image's ball; equation 4."""
    inside = distances.across <= reach(distances.real, k)[:, None]
    return float(inside.sum(axis=0).mean() / k)


def coverage_value(distances: Distances, k: int = K_COVERAGE) -> float:
    """Share of the real images whose ball holds at least one fake image; equation 5."""
    return float((distances.across.min(axis=1) <= reach(distances.real, k)).mean())


def recall_value(distances: Distances, k: int = K_RECALL) -> float:
    """Share of the real images that lie in the ball of at least one fake image."""
    return float((distances.across <= reach(distances.fake, k)[None, :]).any(axis=1).mean())


def precision_value(distances: Distances, k: int = K_RECALL) -> float:
    """Share of the fake images that lie in the ball of at least one real image."""
    return float((distances.across <= reach(distances.real, k)[:, None]).any(axis=0).mean())


def density_coverage(
    real: Features,
    fake: Features,
    k: int = K_COVERAGE,
    *,
    groups_real: Sequence[str] | None = None,
    groups_fake: Sequence[str] | None = None,
    seed: int = 0,
) -> DensityCoverage:
    """Density (fidelity) and coverage (diversity) of the fake features among the real ones, each with a 95 % interval over patients.

    Both depend on the numbers of images: compare only values taken at the same sizes.

    Args:
        real: float [n, d].
        fake: float [m, d].

    Raises:
        InputError: wrong shapes, values that are not finite, fewer than 5 patients, or too few images for k neighbours.
        ConfigError: ``k < 1``.

    Source: M. F. Naeem et al. 2020, arXiv:2002.09797, equations 4 and 5, k = 5. Interval: ``intervals.jackknife``.
    """
    distances, index = _prepared(real, fake, k, groups_real, groups_fake)
    density, coverage = jackknife(
        lambda kept: np.array([density_value(distances.kept(*kept), k), coverage_value(distances.kept(*kept), k)]), index, seed=seed, low=0.0
    )
    return DensityCoverage(density, coverage._replace(high=min(1.0, coverage.high)))


def recall(
    real: Features,
    fake: Features,
    k: int = K_RECALL,
    *,
    groups_real: Sequence[str] | None = None,
    groups_fake: Sequence[str] | None = None,
    seed: int = 0,
) -> Estimate:
    """Improved recall: how much of the real set the fake set reaches, 0 to 1, with a 95 % interval over patients.

    Raises:
        InputError, ConfigError: as ``density_coverage``.

    Source: T. Kynkäänniemi et al. 2019, arXiv:1904.06991, equations 1 and 2, k = 3.
    """
    distances, index = _prepared(real, fake, k, groups_real, groups_fake)
    return jackknife(lambda kept: np.array([recall_value(distances.kept(*kept), k)]), index, seed=seed, low=0.0, high=1.0)[0]


def precision(
    real: Features,
    fake: Features,
    k: int = K_RECALL,
    *,
    groups_real: Sequence[str] | None = None,
    groups_fake: Sequence[str] | None = None,
    seed: int = 0,
) -> Estimate:
    """Improved precision: how much of the fake set lies among the real one; arguments, errors and source as ``recall``."""
    return recall(fake, real, k, groups_real=groups_fake, groups_fake=groups_real, seed=seed)


def _prepared(
    real: Features, fake: Features, k: int, groups_real: Sequence[str] | None, groups_fake: Sequence[str] | None
) -> tuple[Distances, list[Indices]]:
    first, second = checked_pair(real, fake, names=("real features", "fake features"))
    index = [group_index(groups_real, len(first), name="real groups"), group_index(groups_fake, len(second), name="fake groups")]
    if k < 1:
        raise ConfigError(f"{k=} must be at least 1")
    if (left := min(_fewest_left(i) for i in index)) <= k:
        raise InputError(f"{k} neighbours cannot be found among {left} images; give more images or a smaller k")
    return Distances.of(first, second), index


def _fewest_left(index: Indices) -> int:
    """Images that surely stay when the jackknife deletes a block."""
    sizes = np.sort(np.bincount(index))
    deleted = -(-len(sizes) // min(40, len(sizes)))
    return int(sizes[: len(sizes) - deleted].sum())
