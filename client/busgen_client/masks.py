"""Boxes that a person drew on a picture: what lies in them is black, and what is black to the edge is cut off. Pure: arrays in and out.

A box counts pixels of the full frame, half open: columns x0 to x1 - 1, rows y0 to y1 - 1.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from busgen_client.intake.frames import Rectangle
from busgen_core.errors import InputError

Pixels = NDArray[np.uint8]  # [rows, columns] or [rows, columns, 3]
MOST = 64  # boxes of one picture; a picture that needs more is deleted


def box(corners: Sequence[int], *, rows: int, columns: int) -> Rectangle:
    """A box from its corners x0, y0, x1, y1; corners outside the frame are moved to its edge, and may come in any order.

    Raises:
        InputError: not four corners, or nothing of the frame is inside.

    >>> box([30, 4, 10, 99], rows=20, columns=40)
    Rectangle(x0=10, y0=4, x1=30, y1=20)
    """
    if len(corners) != 4:
        raise InputError("a box is four whole numbers: left, top, right, bottom, in pixels")
    left, right = sorted(min(max(x, 0), columns) for x in (corners[0], corners[2]))
    top, bottom = sorted(min(max(y, 0), rows) for y in (corners[1], corners[3]))
    if left == right or top == bottom:
        raise InputError(f"the box holds no pixel of the picture, which has {columns} columns and {rows} rows")
    return Rectangle(left, top, right, bottom)


def around(inner: Rectangle, *, rows: int, columns: int) -> list[Rectangle]:
    """Boxes that together cover all but ``inner``; at most four.

    >>> around(Rectangle(0, 0, 4, 2), rows=4, columns=4)
    [Rectangle(x0=0, y0=2, x1=4, y1=4)]
    """
    sides = [
        Rectangle(0, 0, columns, inner.y0),
        Rectangle(0, inner.y1, columns, rows),
        Rectangle(0, inner.y0, inner.x0, inner.y1),
        Rectangle(inner.x1, inner.y0, columns, inner.y1),
    ]
    return [side for side in sides if side.x0 < side.x1 and side.y0 < side.y1]


def blacked(frame: Pixels, boxes: Sequence[Rectangle]) -> Pixels:
    """A copy that is black inside every box."""
    copy = frame.copy()
    for each in boxes:
        copy[each.y0 : each.y1, each.x0 : each.x1] = 0
    return copy


def left_over(boxes: Sequence[Rectangle], *, rows: int, columns: int) -> Rectangle:
    """The smallest part of a frame that holds every pixel outside the boxes.

    Raises:
        InputError: the boxes cover the whole frame.

    >>> left_over([Rectangle(0, 0, 4, 1)], rows=3, columns=4)
    Rectangle(x0=0, y0=1, x1=4, y1=3)
    """
    seen = blacked(np.ones((rows, columns), np.uint8), boxes)
    across, down = np.flatnonzero(seen.any(axis=0)), np.flatnonzero(seen.any(axis=1))
    if not across.size:
        raise InputError("the boxes cover the whole picture; delete it instead")
    return Rectangle(int(across[0]), int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1)
