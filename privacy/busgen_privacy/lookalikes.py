"""Pictures that are in two places: byte for byte, or saved again. What they would do to an audit: ``suite.check_people``."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from busgen_privacy.cohort import Cohort, normalised

Frames = NDArray[np.uint8]
AT_ONCE = 512  # images compared at once
# 1 - correlation below which two images are one. A phantom of 64 px saved again as JPEG of quality 75 lies at .027 at most; images of
# different patients of three hospitals lie at .037 and above (BUSI, where patients are not known), .18 where they are, and public ones at .11.
SAME = 0.03


def in_both(one: Frames, other: Frames) -> int:
    """Images of one set, uint8 [n, px, px], that are in the other too; either may be empty."""
    if not len(one) or not len(other):
        return 0
    known, flat = {image.tobytes() for image in other}, normalised(other)
    starts = range(0, len(one), AT_ONCE)
    near = np.concatenate([(1 - normalised(one[start : start + AT_ONCE]) @ flat.T).min(1) < SAME for start in starts])
    return sum(bool(is_near) or image.tobytes() in known for is_near, image in zip(near, one, strict=True))


def doubles(cohort: Cohort, progress: Callable[[int, int], None]) -> list[tuple[int, int]]:
    """Pairs of rows that are one picture under two patients, lower row first, in order.

    Args:
        cohort: All patients, of every role.
        progress: Called with (images compared with all, images).
    """
    flat, patients = normalised(cohort.images), np.unique(np.array(cohort.patients), return_inverse=True)[1]
    found = []
    for start in range(0, len(cohort), AT_ONCE):
        rows = np.arange(start, min(start + AT_ONCE, len(cohort)))
        near = (1 - flat[rows] @ flat.T < SAME) & (patients[rows][:, None] != patients) & (rows[:, None] < np.arange(len(cohort)))
        found += [(int(start + row), int(column)) for row, column in zip(*np.nonzero(near), strict=True)]
        progress(int(rows[-1]) + 1, len(cohort))
    return found
