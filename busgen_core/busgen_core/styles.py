"""Gray-map styles: what a scanner's gain and post-processing curve do to a frame, applied to frames that are there already.

A style maps gray g in [0, 1] to gain * g^gamma, cut at 1. Public presets, the same for every hospital; which of them a hospital's
images look like is what its patients vote on (``busgen_privacy.dp.votes``).
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Style:
    """A gray map: ``gain * g^gamma``, cut at 1."""

    gamma: float
    gain: float


STYLES = tuple(Style(gamma, gain) for gamma, gain in product((0.65, 0.8, 1.0, 1.3), (0.8, 1.0, 1.2, 1.45)))
PLAIN = STYLES.index(Style(1.0, 1.0))


def restyle(images: Frames, style: Style) -> Frames:
    """Frames in a style, uint8 of the same shape.

    >>> restyle(np.array([[[0, 64, 255]]], np.uint8), Style(gamma=0.5, gain=1.0)).tolist()
    [[[0, 128, 255]]]
    """
    table = np.clip(style.gain * (np.arange(256) / 255) ** style.gamma, 0, 1)
    return np.rint(table * 255).astype(np.uint8)[images]
