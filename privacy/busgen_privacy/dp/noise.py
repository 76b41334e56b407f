"""Randomness that privacy rests on: Gaussian noise and Poisson sampling from the operating system's generator.

Floating point: a Gaussian of doubles is not the real Gaussian; its low bits can betray the sum that it hides (Mironov 2012;
Holohan & Braghin 2021, arXiv:2107.10138). As a heuristic against that, four draws are added and halved (their section 5.1, as
in Opacus's secure mode), and the sum is formed in float64 before it is rounded to float32. The epsilon stated is that of the
real Gaussian. Magnitudes end at 8.2 standard deviations for one draw; the mass beyond is 2e-16.
"""

import os
from collections.abc import Sequence
from math import prod
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

FOLDS = 4  # Gaussians added for one that is returned


class NoiseSource(Protocol):
    """A source of standard Gaussian tensors and of uniform numbers."""

    secure: bool  # only a secure source may make a release

    def __call__(self, shape: Sequence[int]) -> Tensor:
        """Independent standard normal numbers, float64."""
        ...

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Independent uniform numbers in [0, 1)."""
        ...

    def at_step(self, step: int) -> "NoiseSource":
        """The source of one step: a secure source is itself, a seeded one draws the step's own stream."""
        ...


class SecureGaussian:
    """Noise from ``os.urandom``.

    Guarantees: draws are independent of every earlier draw and of every seed; they cannot be repeated.
    """

    secure = True

    def __call__(self, shape: Sequence[int]) -> Tensor:
        """Independent standard normal numbers, float64."""
        count = prod(shape)
        bits = np.frombuffer(os.urandom(8 * FOLDS * count), dtype=np.uint64)
        return torch.from_numpy(_gaussian(bits).reshape(FOLDS, count).sum(0) / np.sqrt(FOLDS)).reshape(tuple(shape))

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Independent uniform numbers in [0, 1), multiples of 2^-53."""
        return (np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def at_step(self, step: int) -> "SecureGaussian":  # noqa: ARG002
        """Itself: nothing that is drawn depends on the step."""
        return self


class SeededGaussian:
    """Repeatable noise, for tests alone: what is adapted with it is marked and does not load for a release."""

    secure = False

    def __init__(self, seed: int, step: int = 0) -> None:
        self._seed = seed
        self._rng = np.random.default_rng((seed, step))

    def __call__(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers, float64, the next of this seed and step."""
        return torch.from_numpy(self._rng.standard_normal(tuple(shape)))

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Uniform numbers in [0, 1), the next of this seed and step."""
        return self._rng.random(count)

    def at_step(self, step: int) -> "SeededGaussian":
        """A fresh stream for ``step``, so that a resumed step draws what the first try drew."""
        return SeededGaussian(self._seed, step + 1)


def _gaussian(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Standard normals by inversion: one bit is the sign, 52 bits a uniform number strictly inside (0, 1/2)."""
    lower = ((bits >> np.uint64(12)) + 0.5) * 2.0**-53
    sign = np.where(bits & np.uint64(1), 1.0, -1.0)
    return np.asarray(ndtri(lower) * sign)


def poisson_sample(count: int, rate: float, source: NoiseSource) -> NDArray[np.int64]:
    """Indices of a Poisson sample: each of ``count`` enters on its own with chance ``rate`` (to 2^-53)."""
    return np.flatnonzero(source.uniform(count) < rate)
