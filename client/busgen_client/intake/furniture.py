"""What a scanner draws over a scan: letters, calipers, ticks, markers, logos, gray bars. Found by what an echo cannot be; filled from around it.

An ultrasound beam is wide: across it, echoes are blurred over several pixels, while a drawn stroke goes from dark to light to dark within a
few. So a step between pixels two apart in a row, far beyond what the rest of the same frame has, marks a stroke. Colour marks one too, and so
does a block whose rows are flat. Where speckle itself is that sharp, in small or shrunken frames, strokes hide in it: then only text
recognition finds text. The one door of OpenCV. Pure.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from busgen_client.intake.frames import CHROMA, Gray

Mask = NDArray[np.bool_]

STEP = 55  # gray levels over two pixels in a row; tissue of the files at hand stays below 50 for all but 0.1 % of its pixels
TAIL = 2.5  # times the frame's own 98 % quantile of such steps, where that is more
STROKE_PX = 9  # widest stroke, one pixel less
REACH_PX = 8  # how far a stroke's faint parts lie from its sharp ones
FAINT = 0.6  # of the threshold
SEEDS = 3  # sharp pixels of a stroke, at least
FLAT_PX = (24, 6)  # rows and columns of the smallest gray bar
BAR = 12  # gray level; darker than that is background
BETWEEN_PX = 9  # gaps between strokes that are closed, so that no letter's outline stays
HALO_PX = 3  # soft edges and JPEG ringing around a stroke


def overlays(gray: Gray, chroma: Gray | None = None) -> Mask:
    """Pixels that no echo can make, with what lies between them and a halo.

    Args:
        gray: uint8 [rows, columns], the scan at the resolution that the scanner gave it.
        chroma: Largest colour channel minus the smallest, of the same shape, if the frame has colours.

    Returns:
        bool [rows, columns].
    """
    sharp = steps(gray)
    least = max(STEP, TAIL * float(np.percentile(sharp, 98)))
    drawn = _strokes(gray, sharp, least) | _bars(gray, sharp)
    if chroma is not None:
        drawn |= chroma > CHROMA
    closed = cv2.morphologyEx(drawn.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((BETWEEN_PX, BETWEEN_PX), np.uint8))
    return np.asarray(cv2.dilate(closed, np.ones((2 * HALO_PX + 1,) * 2, np.uint8)), bool)


def filled(frame: NDArray[np.uint8], mask: Mask) -> NDArray[np.uint8]:
    """``frame``, gray or coloured, with the pixels of ``mask`` made from those around it: nothing of a masked pixel enters.

    Source: Telea 2004, doi:10.1080/10867651.2004.10487596, as in OpenCV.
    """
    blank = np.where(mask[..., None] if frame.ndim == 3 else mask, np.uint8(0), frame)
    if not mask.any() or mask.all():
        return blank
    return np.asarray(cv2.inpaint(blank, mask.astype(np.uint8), 3, cv2.INPAINT_TELEA), np.uint8)


def steps(gray: Gray) -> Gray:
    """Difference between each pixel and the one two to its left, uint8 [rows, columns]; 0 in the first two columns."""
    across = np.zeros_like(gray)
    across[:, 2:] = cv2.absdiff(gray[:, 2:], gray[:, :-2])
    return across


def _strokes(gray: Gray, sharp: Gray, least: float) -> Mask:
    """Light and dark strokes: narrow in a row and sharp on both sides, with the fainter parts that hang on them."""
    near_step = cv2.dilate(sharp, np.ones((1, 5), np.uint8)) >= least
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (STROKE_PX, STROKE_PX))
    found = np.zeros(gray.shape, bool)
    for polarity, beyond in ((cv2.MORPH_TOPHAT, 0), (cv2.MORPH_BLACKHAT, 255)):
        seeds = (_narrow(gray, polarity, beyond) >= least) & near_step
        near = cv2.dilate(seeds.astype(np.uint8), np.ones((2 * REACH_PX + 1,) * 2, np.uint8)) > 0
        faint = (cv2.morphologyEx(gray, polarity, disc) >= FAINT * least) & near
        found |= _grown(seeds, seeds | faint)
    return found


def _narrow(gray: Gray, polarity: int, beyond: int) -> Gray:
    """How far each pixel stands out from its row; a stroke at the frame's edge counts as ended there."""
    wider = cv2.copyMakeBorder(gray, 0, 0, STROKE_PX, STROKE_PX, cv2.BORDER_CONSTANT, value=(beyond,))
    return np.asarray(cv2.morphologyEx(wider, polarity, np.ones((1, STROKE_PX), np.uint8))[:, STROKE_PX:-STROKE_PX], np.uint8)


def _grown(seeds: Mask, parts: Mask, *, least: int = SEEDS) -> Mask:
    """The connected parts that hold enough seeds."""
    count, labels = cv2.connectedComponents(parts.astype(np.uint8), connectivity=8)
    enough = np.bincount(labels[seeds], minlength=count) >= least
    enough[0] = False
    return np.asarray(enough[labels], bool)


def _bars(gray: Gray, sharp: Gray) -> Mask:
    """Blocks of lit pixels that equal their left neighbour, with a sharp edge: gray bars, and the paper that dark letters stand on."""
    same = np.zeros(gray.shape, np.uint8)
    same[:, 1:] = (cv2.absdiff(gray[:, 1:], gray[:, :-1]) <= 1) & (gray[:, 1:] >= BAR)
    same[:, 0] = same[:, 1]
    blocks = cv2.morphologyEx(same, cv2.MORPH_OPEN, np.ones(FLAT_PX, np.uint8))
    near = cv2.dilate(blocks, np.ones((1, 5), np.uint8))
    edges = (near > 0) & (sharp >= STEP)
    return _grown(edges, near > 0, least=FLAT_PX[0] // 2) & (blocks > 0)
