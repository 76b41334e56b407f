"""Statistics of speckle in homogeneous patches: signal-to-noise ratio of the envelope, and the width of a grain.

Fully developed speckle has a Rayleigh envelope, whose mean is 1.91 times its standard deviation whatever the tissue, and a
grain as wide as the point spread function (R. F. Wagner et al. 1983, "Statistics of speckle in ultrasound B-scans", IEEE
Trans. Sonics Ultrasonics 30(3), doi:10.1109/T-SU.1983.31404). Images that are too smooth or too fine show in both.

A frame holds gray values, not the envelope: the scanner's gray map and dynamic range are unknown. Two ratios are therefore
given: on the gray values as they are, and on an envelope under the assumption of plain log compression over
``dynamic_range_db``. Both serve to compare sets of images, not to prove a Rayleigh distribution.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from busgen_core.errors import ConfigError, InputError
from busgen_core.quality.intervals import bootstrap_mean
from busgen_core.quality.samples import LEAST_GROUPS, Floats, checked_frames, group_index
from busgen_core.scores import Estimate

PATCH_PX = 16
STRIDE_PX = 8
PATCHES = 4  # the most homogeneous ones of a frame
GRAY_RANGE = (24.0, 231.0)  # mean gray of a patch that is neither shadow nor saturated
CLIPPED_SHARE = 0.05  # of a patch's pixels at 0 or 255, at most
DYNAMIC_RANGE_DB = 60.0
STATISTICS = ("envelope_snr", "gray_snr", "axial_px", "lateral_px")


class Speckle(NamedTuple):
    """Means over images, each with a 95 % interval over patients."""

    envelope_snr: Estimate  # mean / standard deviation of the assumed envelope
    gray_snr: Estimate  # the same of the gray values
    axial_px: Estimate  # full width at half maximum of the autocorrelation, down
    lateral_px: Estimate  # and across


def envelope(gray: Floats, *, dynamic_range_db: float = DYNAMIC_RANGE_DB) -> Floats:
    """Envelope, at most 1, of gray values that are 255 (1 + 20 log10(envelope) / dynamic_range_db).

    >>> envelope(np.array([255.0, 0.0]), dynamic_range_db=40).tolist()
    [1.0, 0.01]
    """
    amplitude: Floats = 10 ** ((gray / 255 - 1) * dynamic_range_db / 20)
    return amplitude


def speckle(images: NDArray[np.uint8], *, groups: Sequence[str] | None = None, seed: int = 0, dynamic_range_db: float = DYNAMIC_RANGE_DB) -> Speckle:
    """Speckle statistics of a set of frames.

    Args:
        images: uint8 [n, px, px], rows down in depth; px at least 32.
        groups: Patient of every frame; None: every frame its own.
        dynamic_range_db: Assumed range of the log compression, dB.

    Raises:
        InputError: wrong shape, or fewer than 5 patients with a usable patch.
        CorruptImageError: constant frames.
        ConfigError: ``dynamic_range_db`` not above 0.
    """
    values = frame_statistics(images, dynamic_range_db=dynamic_range_db)
    index = group_index(groups, len(values))
    usable = np.isfinite(values[:, 0])
    if len(np.unique(index[usable])) < LEAST_GROUPS:
        raise InputError(f"{int(usable.sum())} of {len(values)} frames have a homogeneous patch that is not black; too few to describe speckle")
    return Speckle(*(bootstrap_mean(column, index, seed=seed) for column in values.T))


def frame_statistics(images: NDArray[np.uint8], *, dynamic_range_db: float = DYNAMIC_RANGE_DB) -> Floats:
    """The four STATISTICS of every frame, the mean over its homogeneous patches: float64 [n, 4], NaN where it has none."""
    if not dynamic_range_db > 0:
        raise ConfigError(f"{dynamic_range_db=} must be above 0")
    if checked_frames(images).shape[1] < 2 * PATCH_PX:
        raise InputError(f"frames of {images.shape[1]} px are too small; speckle is measured from {2 * PATCH_PX} px up")
    parts = [_statistics(images[start : start + 256], dynamic_range_db) for start in range(0, len(images), 256)]
    return np.concatenate(parts)


def homogeneous_patches(images: NDArray[np.uint8]) -> Floats:
    """The PATCHES most homogeneous patches of every frame, float64 [n, PATCHES, PATCH_PX, PATCH_PX]; NaN where there are fewer.

    Homogeneous: the means of the four quarters spread little, beside the spread of the pixels. Patches that are nearly black,
    saturated, clipped, or without any spread are no speckle.
    """
    windows = sliding_window_view(images, (PATCH_PX, PATCH_PX), axis=(1, 2))[:, ::STRIDE_PX, ::STRIDE_PX]
    patches = windows.reshape(len(images), -1, PATCH_PX, PATCH_PX).astype(np.float64)
    half = PATCH_PX // 2
    quarters = patches.reshape(*patches.shape[:2], 2, half, 2, half).mean(axis=(3, 5))
    mean, spread = patches.mean(axis=(2, 3)), patches.std(axis=(2, 3))
    clipped = ((patches == 0) | (patches == 255)).mean(axis=(2, 3))
    usable = (mean >= GRAY_RANGE[0]) & (mean <= GRAY_RANGE[1]) & (clipped <= CLIPPED_SHARE) & (spread > 0)
    unevenness = np.where(usable, quarters.std(axis=(2, 3)) / np.maximum(spread, 1e-9), np.inf)
    best = np.argsort(unevenness, axis=1, kind="stable")[:, :PATCHES, None, None]
    found = np.isfinite(np.take_along_axis(unevenness, best[..., 0, 0], axis=1))
    return np.where(found[..., None, None], np.take_along_axis(patches, best, axis=1), np.nan)


def ratio(patches: Floats) -> Floats:
    """Mean / standard deviation around a fitted plane of patches [..., px, px]."""
    signal: Floats = patches.mean(axis=(-2, -1)) / np.maximum(without_plane(patches).std(axis=(-2, -1)), 1e-12)
    return signal


def without_plane(patches: Floats) -> Floats:
    """Patches [..., px, px] less the plane that fits each of them best (least squares), which carries attenuation and gain."""
    rows, columns = patches.shape[-2:]
    down, across = np.linspace(-1, 1, rows)[:, None], np.linspace(-1, 1, columns)[None, :]
    level = patches.mean(axis=(-2, -1), keepdims=True)
    fall = (patches * down).sum(axis=(-2, -1), keepdims=True) / ((down**2).sum() * columns)
    slant = (patches * across).sum(axis=(-2, -1), keepdims=True) / ((across**2).sum() * rows)
    rest: Floats = patches - level - fall * down - slant * across
    return rest


def without_layers(patches: Floats) -> Floats:
    """Patches [..., px, px] less the mean of each of their rows and columns: tissue layers and shadow edges, which are no grain.

    Grains that are wide beside the patch lose some of their width with it: of 16 px, 1 px reads as 0.94, 3.3 px as 2.8, 5 px as 3.8.
    """
    rows, columns = patches.mean(axis=-1, keepdims=True), patches.mean(axis=-2, keepdims=True)
    rest: Floats = patches - rows - columns + patches.mean(axis=(-2, -1), keepdims=True)
    return rest


def grain_px(rest: Floats, *, axis: int) -> Floats:
    """Full width at half maximum, px, of the autocorrelation of patches of mean 0, [..., px, px], along ``axis`` (-2 down, -1 across).

    The half is crossed on a straight line between two lags; where it is never crossed the width is twice the longest lag, half a
    patch. White noise gives 1 px.
    """
    along = np.moveaxis(rest, axis, -1)
    length = along.shape[-1]
    lags = range(length // 2 + 1)
    power = np.stack([(along[..., : length - lag] * along[..., lag:]).mean(axis=(-2, -1)) for lag in lags], axis=-1)
    correlation = power / np.maximum(power[..., :1], 1e-12)
    below = correlation < 0.5
    first = np.where(below.any(axis=-1), below.argmax(axis=-1), length // 2)
    high, low = (np.take_along_axis(correlation, lag[..., None], axis=-1)[..., 0] for lag in (np.maximum(first - 1, 0), first))
    crossing = np.where(below.any(axis=-1), first - 1 + (high - 0.5) / np.maximum(high - low, 1e-12), length // 2)
    width: Floats = np.where(np.isfinite(power[..., 0]), 2 * crossing, np.nan)
    return width


def _statistics(images: NDArray[np.uint8], dynamic_range_db: float) -> Floats:
    patches = homogeneous_patches(images)
    there = np.isfinite(patches[..., 0, 0])
    rest = without_layers(patches)
    columns = [ratio(envelope(patches, dynamic_range_db=dynamic_range_db)), ratio(patches), grain_px(rest, axis=-2), grain_px(rest, axis=-1)]
    total = np.stack([np.where(there, column, 0.0).sum(axis=1) for column in columns], axis=1)
    with np.errstate(invalid="ignore"):
        means: Floats = total / there.sum(axis=1)[:, None]
    return means
