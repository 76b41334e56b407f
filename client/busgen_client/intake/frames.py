"""Pixels of one frame: decode, gray, colour check, and blacking out all but the scan region. Pure: bytes and arrays in and out."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from busgen_client.intake.findings import Code, QuarantineError
from busgen_core import images

Gray = NDArray[np.uint8]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1

MAX_PIXELS = 16_000_000  # of one frame; larger than any ultrasound frame
SMALLEST_SIDE = 32  # px
FEWEST_LEVELS = 64  # of 256, that all but a thousandth of the lit pixels at either end span; the darkest of 1,066 public breast scans spans 90
FORMATS = ("PNG", "JPEG", "BMP")  # no decoder beyond these sees an untrusted file
MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})

# A tinted overlay (caliper, marker, gray bar, logo) stays below 0.9 % of the scan in the files at hand, a small colour
# Doppler box is above 7 %. Chroma is the largest channel minus the smallest, of 255; JPEG noise on gray stays below 40.
CHROMA = 40
COLOUR_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A part of a frame in pixels, half open: columns x0 to x1 - 1, rows y0 to y1 - 1."""

    x0: int
    y0: int
    x1: int
    y1: int


def decode_picture(data: bytes) -> NDArray[np.uint8]:
    """Decode PNG, JPEG or BMP bytes.

    Returns:
        uint8 [rows, columns] or [rows, columns, 3].

    Raises:
        QuarantineError: image-corrupt or file-too-large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PillowImage.open(io.BytesIO(data), formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise QuarantineError(Code.FILE_TOO_LARGE)
                if picture.mode not in MODES:
                    raise QuarantineError(Code.IMAGE_CORRUPT)
                return np.asarray(picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, PillowImage.DecompressionBombError):
        raise QuarantineError(Code.IMAGE_CORRUPT) from None


def to_gray(frame: NDArray[np.uint8]) -> Gray:
    """Gray of a frame; ITU-R 601-2 luma for RGB. A frame whose colour means something is refused.

    Raises:
        QuarantineError: colour.
    """
    if frame.ndim == 2:
        return frame
    if coloured(_chroma(frame)):
        raise QuarantineError(Code.COLOUR)
    return luma(frame)


def coloured(chroma: Gray) -> bool:
    """Whether colour means something in a frame of this chroma, rather than tinting its overlays."""
    return bool((chroma > CHROMA).mean() >= COLOUR_SHARE)


def luma(frame: NDArray[np.uint8]) -> Gray:
    """Gray of a frame, whatever its colours mean."""
    return frame if frame.ndim == 2 else np.asarray(PillowImage.fromarray(frame).convert("L"))


def chroma(frame: NDArray[np.uint8]) -> Gray | None:
    """Largest colour channel minus the smallest, uint8 [rows, columns]; None for a gray frame."""
    return None if frame.ndim == 2 else _chroma(frame)


def _chroma(frame: NDArray[np.uint8]) -> Gray:
    return np.asarray(frame.max(axis=2) - frame.min(axis=2))


def check_scan(gray: Gray) -> Gray:
    """Return ``gray`` unless it is too small or constant, or has so little contrast that neither a finder nor a person would see text in it.

    Raises:
        QuarantineError: image-small, image-empty or few-levels.
    """
    if min(gray.shape) < SMALLEST_SIDE:
        raise QuarantineError(Code.IMAGE_SMALL)
    if gray.min() == gray.max():
        raise QuarantineError(Code.IMAGE_EMPTY)
    if _span(gray) < FEWEST_LEVELS:
        raise QuarantineError(Code.FEW_LEVELS)
    return gray


def _span(gray: Gray) -> int:
    """Gray levels between the ends of what is not black, a thousandth of it left out at either end."""
    counts = np.bincount(gray.ravel(), minlength=256)[1:].cumsum()
    low, high = np.searchsorted(counts, (counts[-1] / 1000, counts[-1] * 999 / 1000))
    return int(high - low)


def hull(parts: Sequence[Rectangle]) -> Rectangle:
    """Smallest rectangle around all parts.

    >>> hull([Rectangle(0, 0, 2, 2), Rectangle(5, 1, 6, 9)])
    Rectangle(x0=0, y0=0, x1=6, y1=9)
    """
    return Rectangle(min(p.x0 for p in parts), min(p.y0 for p in parts), max(p.x1 for p in parts), max(p.y1 for p in parts))


def only_scan(frame: NDArray[np.uint8], *, keep: Sequence[Rectangle], hide: Sequence[Rectangle]) -> NDArray[np.uint8]:
    """A copy that is black outside ``keep`` and inside ``hide``, cropped to the hull of ``keep``.

    Args:
        frame: uint8 [rows, columns] or [rows, columns, 3].
        keep: Scan regions, inside the frame, at least one.
        hide: Regions that are no B-mode scan; they win where they overlap.
    """
    inside = np.zeros(frame.shape[:2], bool)
    for part in keep:
        inside[part.y0 : part.y1, part.x0 : part.x1] = True
    for part in hide:
        inside[part.y0 : part.y1, part.x0 : part.x1] = False
    crop = hull(keep)
    black = np.where(inside[..., None] if frame.ndim == 3 else inside, frame, np.uint8(0))
    return np.ascontiguousarray(black[crop.y0 : crop.y1, crop.x0 : crop.x1])


def box_in(crop: Rectangle, box: Box) -> Box:
    """A box in pixels of the whole frame, as fractions of ``crop``.

    Raises:
        QuarantineError: box-outside-region, when less than half of its area is left.

    >>> box_in(Rectangle(10, 0, 20, 10), (10.0, 0.0, 15.0, 5.0))
    (0.0, 0.0, 0.5, 0.5)
    """
    x0, x1 = (float(np.clip(x, crop.x0, crop.x1)) for x in (box[0], box[2]))
    y0, y1 = (float(np.clip(y, crop.y0, crop.y1)) for y in (box[1], box[3]))
    if (x1 - x0) * (y1 - y0) < 0.5 * (box[2] - box[0]) * (box[3] - box[1]):
        raise QuarantineError(Code.BOX_OUTSIDE_REGION)
    width, height = crop.x1 - crop.x0, crop.y1 - crop.y0
    return ((x0 - crop.x0) / width, (y0 - crop.y0) / height, (x1 - crop.x0) / width, (y1 - crop.y0) / height)


def mask_box(mask: Gray) -> Box | None:
    """Box of the lit pixels of a mask, as fractions; None for a mask without any.

    >>> mask_box(np.array([[0, 255], [0, 0]], np.uint8))
    (0.5, 0.0, 1.0, 0.5)
    """
    return images.mask_box(mask > mask.max() / 2)  # masks come as 0/1 and as 0/255
