"""Pieces of text with their boxes: merging what several views found, and putting pieces that stand beside each other into lines."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels, x1 and y1 beyond the last one
SAME = 0.5  # share of the smaller box that two finds of one text have in common, at least
GAP = 1.5  # widest gap between two pieces of a line, in heights of the line


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of text.

    Attributes:
        box: Where it stands.
        text: What an engine read; never to be logged or kept, it may be a name.
        confidence: The engine's own, 0 to 1.
    """

    box: Box
    text: str
    confidence: float


def merged(pieces: Sequence[Piece]) -> list[Piece]:
    """One piece for each place, in the order of their boxes: the reading with the most characters, gaps between words too, times confidence.

    Boxes of one place are united, so that whoever masks them covers all that any view saw.

    >>> merged([Piece((0, 0, 10, 5), "AB", .6), Piece((1, 0, 12, 5), "ABC", .9), Piece((40, 0, 50, 5), "X", .5)])
    [Piece(box=(0, 0, 12, 5), text='ABC', confidence=0.9), Piece(box=(40, 0, 50, 5), text='X', confidence=0.5)]
    """
    kept: list[Piece] = []
    for piece in sorted(pieces, key=_weight, reverse=True):
        same = next((i for i, other in enumerate(kept) if _common(piece.box, other.box) >= SAME), None)
        if same is None:
            kept.append(piece)
        else:
            kept[same] = Piece(_union([kept[same].box, piece.box]), kept[same].text, kept[same].confidence)
    return sorted(kept, key=lambda piece: (piece.box[1], piece.box[0]))


def lines(pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces joined into lines, left to right: a date in three boxes reads like a date again. Confidence is the least of a line's pieces.

    >>> [line.text for line in lines([Piece((0, 0, 10, 8), "02.11.", .9), Piece((13, 1, 30, 9), "1961", .8), Piece((0, 30, 9, 38), "MI", .9)])]
    ['02.11. 1961', 'MI']
    """
    rows: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda piece: piece.box[0]):
        row = next((row for row in rows if _beside(row[-1].box, piece.box)), None)
        if row is None:
            rows.append([piece])
        else:
            row.append(piece)
    joined = [Piece(_union([p.box for p in row]), " ".join(p.text for p in row), min(p.confidence for p in row)) for row in rows]
    return sorted(joined, key=lambda piece: (piece.box[1], piece.box[0]))


def _weight(piece: Piece) -> float:
    return piece.confidence * (sum(c.isalnum() for c in piece.text) + len(piece.text.split()) - 1)


def _common(a: Box, b: Box) -> float:
    """Area in common over the smaller of the two areas."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return wide * high / smaller if min(wide, high, smaller) > 0 else 0.0


def _union(boxes: Sequence[Box]) -> Box:
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def _beside(left: Box, right: Box) -> bool:
    """Whether ``right`` goes on in the line of ``left``."""
    high = min(left[3], right[3]) - max(left[1], right[1])
    least = min(left[3] - left[1], right[3] - right[1])
    return high > least / 2 and right[0] - left[2] < GAP * least
