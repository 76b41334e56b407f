"""What every measure checks first: features, frames and the groups (patients) that must not be split."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from busgen_core.errors import CorruptImageError, InputError

Features = NDArray[np.float32] | NDArray[np.float64]
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

LEAST_GROUPS = 5  # fewer patients give no interval


def checked(features: Features, *, name: str = "features") -> Floats:
    """The features as float64 [n, d], or an error that says what is wrong.

    Raises:
        InputError: not a numeric array of two dimensions, without rows or columns, or with a value that is not finite.

    >>> checked(np.ones((2, 3), np.float32)).shape
    (2, 3)
    """
    if features.ndim != 2 or 0 in features.shape or features.dtype.kind not in "fiu":
        raise InputError(f"{name} must be numbers [n, d], not {features.dtype} {list(features.shape)}")
    values = features.astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"{name}: {int((~np.isfinite(values)).any(axis=1).sum())} rows hold a value that is not finite; look at the encoder")
    return values


def checked_pair(a: Features, b: Features, *, names: tuple[str, str]) -> tuple[Floats, Floats]:
    """Two sets of features of the same width.

    Raises:
        InputError: as ``checked``, or the widths differ.
    """
    first, second = checked(a, name=names[0]), checked(b, name=names[1])
    if first.shape[1] != second.shape[1]:
        raise InputError(f"{names[0]} have {first.shape[1]} columns, {names[1]} {second.shape[1]}; use one encoder for both")
    return first, second


def checked_frames(images: NDArray[np.uint8], *, name: str = "images") -> NDArray[np.uint8]:
    """The frames, uint8 [n, px, px], none of them constant.

    Raises:
        InputError: another type or shape.
        CorruptImageError: frames in which every pixel is the same.
    """
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1] != images.shape[2] or 0 in images.shape:
        raise InputError(f"{name} must be uint8 [n, px, px], not {images.dtype} {list(images.shape)}")
    flat = images.reshape(len(images), -1)
    if constant := int((flat.min(axis=1) == flat.max(axis=1)).sum()):
        raise CorruptImageError(f"{name}: {constant} of {len(images)} frames are constant; leave them out or look at what made them")
    return images


def group_index(groups: Sequence[str] | None, count: int, *, name: str = "groups") -> Indices:
    """Number of the group of every image, int64 [count] from 0; every image its own group where ``groups`` is None.

    Raises:
        InputError: another length than ``count``, or fewer than LEAST_GROUPS groups.

    >>> group_index(["p", "q", "p", "r", "s", "t"], 6).tolist()
    [0, 1, 0, 2, 3, 4]
    """
    if groups is not None and len(groups) != count:
        raise InputError(f"{name}: {len(groups)} given for {count} images")
    index = np.arange(count) if groups is None else np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)[1]
    found = int(index.max()) + 1 if count else 0
    if found < LEAST_GROUPS:
        raise InputError(f"{name}: {count} images of {found} patients are too few to measure; at least {LEAST_GROUPS} patients are needed")
    return index.astype(np.int64)
