"""Text and scanner furniture inside the scan: found, judged, and filled from the pixels around.

Two finders look, each where the other is weak: text recognition (``busgen_privacy.ocr``) reads through speckle but may miss a letter;
``furniture.overlays`` finds whatever is sharper than an echo and reads nothing. What either finds is masked, whatever it reads: a name so
that it is gone, a caliper so that no generator learns it. The judgement (``pixel_text.reads``: Presidio, the header's own words, what
scanners write) decides what waits: text that still reads like something after masking keeps the object out.

Guarantees:
    - No pixel of what was found enters what is stored; each find is masked with its surroundings, in every frame of a clip.
    - What was read is judged and forgotten: no result, error or log holds any of it.
    - An auditor, no proof: text that neither finder sees stays (bench/burned_in_text.py says how much that is).
"""

from collections.abc import Collection, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from busgen_client.intake.findings import Code, QuarantineError
from busgen_client.intake.frames import SMALLEST_SIDE, Gray, Rectangle, coloured, luma
from busgen_client.intake.frames import chroma as chroma_of
from busgen_client.intake.furniture import Mask, filled, overlays, steps
from busgen_core.digests import sha256_bytes
from busgen_privacy.ocr import Piece, View, find_text, lines
from busgen_privacy.ocr.pieces import merged
from busgen_privacy.pixel_text import SHORTEST, SURE, Reads, reads

TALLEST_PX = 64  # a box of 24 px letters is up to 50 px high; speckle that is taken for one giant letter is higher
LONG_ENOUGH = 3  # letters and digits of a piece that counts although it is taller than that
LARGE_PX = 300  # shorter side, from which a frame is read at its own size and twice as large only where it is sharp
SHARP = 45  # gray levels over two pixels in a row: letters that contrast by 60 have such steps
CELL_PX = 32
SHARP_PIXELS = 8  # in a cell
MARGIN = 0.15  # of a text's height, and two pixels: what a box may be short of
AROUND_PX = 32  # looked at again around masked text
MOST = 0.25  # of the scan region; where more is covered, a person looks


@dataclass(frozen=True, slots=True)
class Found:
    """What was found in one frame.

    Attributes:
        mask: bool [rows, columns], what must go.
        text: Where text stands, in pixels.
        judged: What each line of text reads like; never what it says.
    """

    mask: Mask
    text: tuple[Rectangle, ...]
    judged: tuple[Reads, ...]


Known = MutableMapping[str, Found]  # of one object: what was found by digest of the frame, so that no frame is read twice


def clean(frames: Sequence[Gray], *, chroma: Sequence[Gray | None], deny: Collection[str] = (), known: Known | None = None) -> list[Gray]:
    """The frames of one object without text and furniture. A place that is masked in one frame of a clip is masked in all.

    Args:
        frames: uint8 [rows, columns] each, all of one shape, cropped to the scan and black outside it.
        chroma: For each, as ``furniture.overlays`` takes it.
        deny: This header's own words, as ``deidentify.deny_words`` gives them.
        known: What was found in this object's frames before; what is found now is added.

    Raises:
        QuarantineError: text-over-scan or text-left.
        UnavailableError: no text recognition is installed.
    """
    found = [_found(gray, colour, deny, known) for gray, colour in zip(frames, chroma, strict=True)]
    mask = np.logical_or.reduce([each.mask for each in found])
    if mask.mean() > MOST:
        raise QuarantineError(Code.TEXT_OVER_SCAN)
    done = [filled(gray, mask) for gray in frames]
    places = sorted({place for each in found for place in each.text}, key=lambda place: (place.y0, place.x0))
    if any(_still_reads(gray, places, deny) for gray in done):
        raise QuarantineError(Code.TEXT_LEFT)
    return done


def covered(frames: Sequence[NDArray[np.uint8]], *, deny: Collection[str] = (), known: Known | None = None) -> list[NDArray[np.uint8]]:
    """The frames with all that was found filled, and nothing promised of the rest: for a person to look at and decide.

    Args:
        frames: uint8 [rows, columns] or [rows, columns, 3] each, all of one shape; one too small to be looked at comes back black.
        deny, known: As in ``clean``.

    Raises:
        UnavailableError: no text recognition is installed.
    """
    if min(frames[0].shape[:2]) < SMALLEST_SIDE:
        return [np.zeros_like(frame) for frame in frames]
    mask = np.logical_or.reduce([_found(luma(frame), _tint(frame), deny, known).mask for frame in frames])
    return [filled(frame, mask) for frame in frames]


def _tint(frame: NDArray[np.uint8]) -> Gray | None:
    """Chroma by which overlays are known; None where colour means something, and a person is to see it."""
    chroma = chroma_of(frame)
    return None if chroma is None or coloured(chroma) else chroma


def _found(gray: Gray, chroma: Gray | None, deny: Collection[str], known: Known | None) -> Found:
    if known is None:
        return find(gray, chroma=chroma, deny=deny)
    digest = sha256_bytes(repr(gray.shape).encode() + gray.tobytes() + (b"" if chroma is None else chroma.tobytes()))
    if digest not in known:
        known[digest] = find(gray, chroma=chroma, deny=deny)
    return known[digest]


def find(gray: Gray, *, chroma: Gray | None = None, deny: Collection[str] = ()) -> Found:
    """Text and furniture in one frame. Deterministic.

    Args:
        gray: uint8 [rows, columns], at least 32 px a side.
        chroma: As ``furniture.overlays`` takes it.
        deny: This header's own words.

    Raises:
        UnavailableError: no text recognition is installed.
    """
    mask = overlays(gray, chroma)
    pieces = _believed(find_text([gray], views=None if min(gray.shape) < LARGE_PX else (View(1),))[0], len(gray))
    _cover(mask, pieces)
    if min(gray.shape) >= LARGE_PX:
        pieces += _believed(_closer(gray, sharp_windows(gray, mask)), len(gray))
    surely = lines(merged([piece for piece in pieces if _sure(piece)]))
    text = _cover(mask, [*pieces, *_believed(surely, len(gray))])
    return Found(mask, text, tuple(reads(line.text, deny=deny) for line in surely))


def _closer(gray: Gray, windows: Iterable[Rectangle]) -> Iterator[Piece]:
    """What a closer look at parts of a frame shows, in pixels of the frame."""
    for window in windows:
        cut = np.ascontiguousarray(gray[window.y0 : window.y1, window.x0 : window.x1])
        for piece in find_text([cut], views=(View(2), View(1, inverted=True)))[0]:
            x0, y0, x1, y1 = piece.box
            box = (x0 + window.x0, y0 + window.y0, x1 + window.x0, y1 + window.y0)
            yield Piece(box, piece.text, piece.confidence)


def sharp_windows(gray: Gray, known: Mask) -> Iterator[Rectangle]:
    """Parts of a frame that small text could hide in: where several pixels, outside what is known, differ from those beside them as letters do."""
    rows, columns = gray.shape
    high, wide = -(-rows // CELL_PX), -(-columns // CELL_PX)
    sharp = np.zeros((high * CELL_PX, wide * CELL_PX), bool)
    sharp[:rows, :columns] = (steps(gray) >= SHARP) & ~known
    cells = sharp.reshape(high, CELL_PX, wide, CELL_PX).sum(axis=(1, 3)) >= SHARP_PIXELS
    labels, _ = ndimage.label(ndimage.binary_dilation(cells, np.ones((3, 3))), np.ones((3, 3)))
    for down, across in ndimage.find_objects(labels):
        bottom, right = min(down.stop * CELL_PX, rows), min(across.stop * CELL_PX, columns)
        yield Rectangle(across.start * CELL_PX, down.start * CELL_PX, right, bottom)


def _believed(pieces: Iterable[Piece], rows: int) -> list[Piece]:
    return [piece for piece in pieces if _is_text(piece, rows)]


def _cover(mask: Mask, pieces: Iterable[Piece]) -> tuple[Rectangle, ...]:
    """Mask the pieces' boxes, a little widened, and return them."""
    places = tuple(_padded(piece, mask.shape) for piece in pieces)
    for place in places:
        mask[place.y0 : place.y1, place.x0 : place.x1] = True
    return places


def _is_text(piece: Piece, rows: int) -> bool:
    """Whether to believe that there is text in a frame of so many rows: sized like it, or surely read."""
    return piece.box[3] - piece.box[1] <= min(TALLEST_PX, 3 * rows // 4) or (_sure(piece) and sum(c.isalnum() for c in piece.text) >= LONG_ENOUGH)


def _sure(piece: Piece) -> bool:
    return piece.confidence >= SURE and sum(c.isalnum() for c in piece.text) >= SHORTEST


def _padded(piece: Piece, shape: tuple[int, ...]) -> Rectangle:
    x0, y0, x1, y1 = piece.box
    more = 2 + MARGIN * (y1 - y0)
    return Rectangle(max(0, int(x0 - more)), max(0, int(y0 - more)), min(shape[1], int(x1 + more) + 1), min(shape[0], int(y1 + more) + 1))


def _still_reads(gray: Gray, places: Sequence[Rectangle], deny: Collection[str]) -> bool:
    """Whether around masked text anything still reads like more than furniture."""
    near = np.zeros(gray.shape, bool)
    for place in places:
        near[max(0, place.y0 - AROUND_PX) : place.y1 + AROUND_PX, max(0, place.x0 - AROUND_PX) : place.x1 + AROUND_PX] = True
    for window in ndimage.find_objects(ndimage.label(near)[0]):
        left = [piece for piece in _looked_again(np.ascontiguousarray(gray[window])) if _sure(piece) and _is_text(piece, len(gray))]
        if any(reads(line.text, deny=deny) is not Reads.FURNITURE for line in lines(left)):
            return True
    return False


def _looked_again(window: NDArray[np.uint8]) -> list[Piece]:
    return find_text([window], views=(View(1), View(2)))[0]
