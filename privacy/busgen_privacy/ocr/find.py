"""Looks at a frame in several sizes and both polarities, and brings every box back to the frame's own pixels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from PIL import Image as PillowImage

from busgen_core.errors import InputError
from busgen_privacy.ocr.pieces import Box, Frame, Piece, merged

Progress = Callable[[int, int], None]
SMALLEST_PX = 8  # a side; frames below it hold no letter


@dataclass(frozen=True, slots=True)
class View:
    """One way to look at a frame.

    Attributes:
        scale: Enlargement (bicubic).
        inverted: Dark and light exchanged.
    """

    scale: float
    inverted: bool = False


# Views by the frame's shorter side: below 100 px, below 300 px, and above. Two sizes find letters 5 to 24 px high; the inverted view is the
# smaller one, a fifth of the time for the last hundredth of recall (docs/adr/0022).
SMALL = (View(3), View(3, inverted=True), View(5))
MIDDLE = (View(2), View(2, inverted=True), View(3))
LARGE = (View(1), View(1, inverted=True), View(2))


class Engine(Protocol):
    """What an engine's door offers."""

    @property
    def name(self) -> str:
        """Name and version, for reports."""
        ...

    def read(self, view: Frame) -> list[Piece]:
        """Text in one gray view, uint8 [h, w], at the size that it has."""
        ...


def find_text(
    images: Sequence[Frame],
    *,
    views: Sequence[View] | None = None,
    engine: Engine | None = None,
    progress: Progress = lambda _done, _of: None,
) -> list[list[Piece]]:
    """Text in each image. Deterministic; nothing is read from the network.

    Args:
        images: uint8 [h, w] each, of any size, at least 8 px a side.
        views: How to look at each; None for the standard ones of its size.
        engine: None for the standard one.
        progress: Called with (images done, of).

    Returns:
        For each image its pieces of text, from top to bottom, however unsure; boxes in pixels of that image.

    Raises:
        InputError: another type or shape.
        UnavailableError: no engine is installed.
    """
    if odd := [image for image in images if image.dtype != np.uint8 or image.ndim != 2 or min(image.shape) < SMALLEST_PX]:
        raise InputError(f"text is looked for in uint8 [h, w] of at least {SMALLEST_PX} px a side, not {odd[0].dtype} {list(odd[0].shape)}")
    reader, found = engine or standard_engine(), []
    for done, image in enumerate(images, 1):
        found.append(merged([piece for view in views or standard_views(image) for piece in _through(view, image, reader)]))
        progress(done, len(images))
    return found


@lru_cache(maxsize=1)
def standard_engine() -> Engine:
    """The engine that docs/adr/0022 chose, loaded once.

    Raises:
        UnavailableError: it is not installed.
    """
    from busgen_privacy.ocr.rapid import Rapid

    return Rapid()


def standard_views(image: Frame) -> tuple[View, ...]:
    """How to look at an image of this size."""
    side = min(image.shape)
    return SMALL if side < 100 else MIDDLE if side < 300 else LARGE


def _through(view: View, image: Frame, engine: Engine) -> list[Piece]:
    """What an engine reads in one view, in the image's pixels."""
    rows, columns = image.shape
    size = round(columns * view.scale), round(rows * view.scale)
    seen = image if size == (columns, rows) else np.asarray(PillowImage.fromarray(image).resize(size, PillowImage.Resampling.BICUBIC))
    pieces = engine.read(255 - seen if view.inverted else seen)
    return [Piece(_back(piece.box, columns / size[0], rows / size[1]), piece.text, piece.confidence) for piece in pieces]


def _back(box: Box, across: float, down: float) -> Box:
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down
