"""Outlines of masses: the distance of the edge from the centre by angle, by shape, orientation and margin.

An outline lives in a frame in which the mass is 2 wide and 2 deep; its true proportions come later and hold exactly.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from busgen_core.phantom.descriptors import Margin, Orientation, Shape
from busgen_core.phantom.fields import Field

ANGLES = 512  # of an outline, from -pi on
TURN = 2 * np.pi
ANGLE = np.linspace(-np.pi, np.pi, ANGLES, endpoint=False)
HARMONICS: Mapping[Shape, tuple[int, int, float]] = {  # first and last harmonic of the outline, standard deviation of their sum
    Shape.ROUND: (2, 3, 0.01),
    Shape.OVAL: (2, 4, 0.035),
    Shape.IRREGULAR: (2, 6, 0.14),
}


def draw_outline(shape: Shape, orientation: Orientation, margin: Margin, rng: np.random.Generator) -> Field:
    """Distance of the edge, float32 [ANGLES], scaled so that it just fills [-1, 1] x [-1, 1].

    >>> outline = draw_outline(Shape.OVAL, Orientation.PARALLEL, Margin.CIRCUMSCRIBED, np.random.default_rng(0))
    >>> round(float(np.abs(outline * np.cos(ANGLE)).max()), 2)
    1.0
    """
    radius = _ellipse(shape, orientation, rng)
    first, last, size = HARMONICS[shape]
    radius *= 1 + _waves(rng, first, last, size)
    if margin is Margin.MICROLOBULATED:
        radius *= _lobules(rng)
    if margin in (Margin.ANGULAR, Margin.SPICULATED):
        radius *= 1 + _corners(rng)
    return _boxed(radius)


def draw_spicules(margin: Margin, rng: np.random.Generator) -> Field:
    """Echo of spicules by angle, dB, float32 [ANGLES]: thin lines, bright and dark in turn; 0 unless the margin is spiculated."""
    total = np.zeros(ANGLES)
    if margin is Margin.SPICULATED:
        for number, at in enumerate(rng.uniform(-np.pi, np.pi, rng.integers(12, 22))):
            total += (10 if number % 2 else -14) * np.exp(-((_away(at) / rng.uniform(0.05, 0.12)) ** 2))
    return np.asarray(np.clip(total, -16, 12), dtype=np.float32)


def _away(at: float) -> NDArray[np.float64]:
    """Angle from ``at``, in [-pi, pi)."""
    return np.asarray((ANGLE - at + np.pi) % TURN - np.pi)


def _ellipse(shape: Shape, orientation: Orientation, rng: np.random.Generator) -> NDArray[np.float64]:
    """A circle, or an ellipse up to 20 degrees off the skin's direction, or off the beam's."""
    if shape is Shape.ROUND:
        return np.ones(ANGLES)
    stretch, tilt = rng.uniform(1.2, 1.9), rng.uniform(-0.35, 0.35)
    radius = 1 / np.sqrt(np.cos(ANGLE - tilt) ** 2 + (stretch * np.sin(ANGLE - tilt)) ** 2)
    return np.asarray(np.roll(radius, ANGLES // 4) if orientation is Orientation.NOT_PARALLEL else radius)


def _waves(rng: np.random.Generator, first: int, last: int, size: float) -> NDArray[np.float64]:
    """A sum of harmonics with standard deviation ``size``, clipped at three."""
    orders = np.arange(first, last + 1)[:, None]
    normal = rng.standard_normal((2, len(orders), 1)) / np.sqrt(len(orders))
    waves = (normal[0] * np.cos(orders * ANGLE) + normal[1] * np.sin(orders * ANGLE)).sum(0)
    return np.asarray(np.clip(size * waves, -3 * size, 3 * size))


def _lobules(rng: np.random.Generator) -> NDArray[np.float64]:
    """Factor of the radius: ten to fourteen small round bulges, not quite regular."""
    bulges = np.abs(np.sin(ANGLE * rng.integers(5, 8) + rng.uniform(0, TURN)))
    return np.asarray(1 + 0.09 * bulges + _waves(rng, 5, 9, 0.03))


def _corners(rng: np.random.Generator) -> NDArray[np.float64]:
    """Pointed bumps at four to seven random angles."""
    total = np.zeros(ANGLES)
    for at in rng.uniform(-np.pi, np.pi, rng.integers(4, 8)):
        height, reach = rng.uniform(0.12, 0.4), rng.uniform(0.15, 0.4)
        total += height * np.clip(1 - np.abs(_away(at)) / reach, 0, 1)
    return np.minimum(total, 0.6)


def _boxed(radius: NDArray[np.float64]) -> Field:
    """The outline shifted and scaled along both axes so that its box is [-1, 1] x [-1, 1], again as distance by angle."""
    x, z = radius * np.cos(ANGLE), radius * np.sin(ANGLE)
    x, z = (x - (x.max() + x.min()) / 2) * 2 / np.ptp(x), (z - (z.max() + z.min()) / 2) * 2 / np.ptp(z)
    turned = np.unwrap(np.arctan2(z, x))
    order = np.argsort(turned)
    return np.asarray(np.interp(ANGLE, turned[order], np.hypot(x, z)[order], period=TURN), dtype=np.float32)
