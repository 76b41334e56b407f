"""Frames that are no single gray B-mode scan although the header does not say so: colour maps over tissue, and two scans side by side. Pure."""

import numpy as np
from numpy.typing import NDArray

from busgen_client.intake.findings import Code, QuarantineError
from busgen_client.intake.frames import Gray

# A tint (sepia, blue) has one hue; a map of colours, however pale, has many. Chroma is the largest channel minus the smallest, of 255.
PALE = 12  # chroma from which a pixel has a hue
PALE_SHARE = 0.05  # of the frame
ONE_HUE = 0.9  # mean resultant length of the hues, 0 to 1

# Between two scans there is a gutter that no echo ever reaches, not even the probe's own.
FLAT = 6  # gray levels between the darkest and the brightest pixel of a gutter's column
GUTTER_PX = 2  # columns
SCAN_STD = 8.0  # gray levels: a side that varies less is no scan


def check_modes(frame: NDArray[np.uint8], gray: Gray) -> None:
    """Refuse what must be set aside.

    Args:
        frame: The scan, uint8 [rows, columns] or [rows, columns, 3].
        gray: The same in gray.

    Raises:
        QuarantineError: colour for a map of colours (Doppler, elastography); split-screen for two scans side by side.
    """
    if frame.ndim == 3 and many_hues(frame):
        raise QuarantineError(Code.COLOUR)
    if split(gray):
        raise QuarantineError(Code.SPLIT_SCREEN)


def many_hues(frame: NDArray[np.uint8]) -> bool:
    """Whether a share of the frame is coloured, and in more than one hue.

    >>> ramp = np.linspace(0, 40, 64).astype(np.uint8) * np.ones((64, 1), np.uint8)
    >>> many_hues(np.dstack([100 + ramp, 120 + 0 * ramp, 140 - ramp])), many_hues(np.dstack([ramp + 20, ramp + 20, ramp]))
    (True, False)
    """
    red, green, blue = (frame[..., n].astype(np.float32) for n in range(3))
    coloured = frame.max(axis=2) - frame.min(axis=2) >= PALE
    if coloured.mean() < PALE_SHARE:
        return False
    hue = np.exp(1j * np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)[coloured])
    return bool(np.abs(hue.mean()) < ONE_HUE)


def split(gray: Gray) -> bool:
    """Whether a gutter in the middle third parts two scans.

    >>> noise = np.random.default_rng(0).integers(0, 200, (64, 96)).astype(np.uint8)
    >>> halves = noise.copy(); halves[:, 46:50] = 3
    >>> split(noise), split(halves)
    (False, True)
    """
    columns = gray.shape[1]
    flat = (gray.max(axis=0).astype(int) - gray.min(axis=0) <= FLAT)[columns // 3 : -(columns // 3)]
    runs = np.convolve(flat, np.ones(GUTTER_PX), "valid") == GUTTER_PX
    if not runs.any():
        return False
    at = columns // 3 + int(np.argmax(runs))
    return bool(gray[:, :at].std() > SCAN_STD and gray[:, at + GUTTER_PX :].std() > SCAN_STD)
