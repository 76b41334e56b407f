"""Speckle statistics against simulated speckle of known statistics, and slow twins."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from busgen_core.errors import ConfigError, CorruptImageError, InputError
from busgen_core.quality.samples import Floats
from busgen_core.quality.speckle import (
    PATCHES,
    envelope,
    frame_statistics,
    grain_px,
    homogeneous_patches,
    ratio,
    speckle,
    without_layers,
    without_plane,
)

RANGE_DB = 60.0


def speckled(count: int, *, size: int = 64, axial: float = 0.7, lateral: float = 1.0, seed: int = 1, looks: int = 1) -> NDArray[np.uint8]:
    """Fully developed speckle of a uniform medium, log-compressed over 60 dB; ``looks`` envelopes are averaged before."""
    rng = np.random.default_rng(seed)
    fields = rng.normal(size=(2, looks, count, size, size))
    blurred = gaussian_filter(fields, (0, 0, 0, axial, lateral))
    amplitude = np.hypot(*blurred).mean(axis=0)
    decibels = 20 * np.log10(amplitude / amplitude.max(axis=(1, 2), keepdims=True))
    return (255 * (1 + decibels / RANGE_DB)).clip(0, 255).round().astype(np.uint8)


def slow_width(patch: Floats, *, down: bool) -> float:
    """Autocorrelation width of one patch, pixel by pixel."""
    rows = patch.T if down else patch
    px, values = rows.shape[1], []
    for lag in range(px // 2 + 1):
        values.append(float(np.mean([row[i] * row[i + lag] for row in rows for i in range(px - lag)])))
    for lag in range(1, len(values)):
        before, here = values[lag - 1] / values[0], values[lag] / values[0]
        if here < 0.5:
            return 2 * (lag - 1 + (before - 0.5) / (before - here))
    return float(px // 2 * 2)


def test_envelope_undoes_log_compression() -> None:
    """Gray values made with a dynamic range give back the envelope under that range."""
    amplitude = np.array([1.0, 0.5, 0.02])
    gray = 255 * (1 + 20 * np.log10(amplitude) / RANGE_DB)
    assert envelope(gray, dynamic_range_db=RANGE_DB) == pytest.approx(amplitude)


def test_rayleigh_speckle_has_its_known_ratio() -> None:
    """One look, the right dynamic range: mean / deviation is 1.91 (sqrt(pi / (4 - pi))), 3 % allowed for patches chosen and detrended."""
    found = speckle(speckled(60), dynamic_range_db=RANGE_DB).envelope_snr
    assert found.value == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.03)
    assert found.low < found.value < found.high


def test_compounding_raises_the_ratio() -> None:
    """Averaging 4 independent looks doubles it, 6 % allowed."""
    assert speckle(speckled(60, looks=4), dynamic_range_db=RANGE_DB).envelope_snr.value == pytest.approx(2 * 1.913, rel=0.06)


def test_white_noise_has_grains_of_one_pixel() -> None:
    """The autocorrelation of white noise falls to nothing within a pixel: width 1, down and across."""
    patches = without_plane(np.random.default_rng(1).normal(size=(400, 16, 16)))
    for axis in (-2, -1):
        assert grain_px(patches, axis=axis).mean() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(("axial", "lateral"), [(1.0, 1.5), (1.5, 0.8)])
def test_grain_width_is_the_known_one(axial: float, lateral: float) -> None:
    """Noise blurred by a Gaussian of deviation s has a Gaussian autocorrelation of width 2.355 sqrt(2) s, down and across apart."""
    noise = gaussian_filter(np.random.default_rng(1).normal(size=(40, 256, 256)), (0, axial, lateral))
    assert grain_px(noise, axis=-2).mean() == pytest.approx(2.355 * np.sqrt(2) * axial, rel=0.05)
    assert grain_px(noise, axis=-1).mean() == pytest.approx(2.355 * np.sqrt(2) * lateral, rel=0.05)


@pytest.mark.parametrize(("sigma", "read"), [(1e-3, 0.94), (1.0, 2.81), (1.5, 3.77)])
def test_grain_in_a_patch_reads_as_documented(sigma: float, read: float) -> None:
    """A patch holds few grains, so a width reads low by a known amount; layers across the patch do not move it."""
    noise = gaussian_filter(np.random.default_rng(1).normal(size=(500, 64, 64)), (0, 0.7, sigma))[:, 24:40, 24:40]
    layers = 3 * noise.std() * np.random.default_rng(2).normal(size=(500, 16, 1))
    plain, layered = (grain_px(without_layers(patches), axis=-1).mean() for patches in (noise, noise + layers))
    assert plain == pytest.approx(read, abs=0.05)
    assert layered == pytest.approx(plain)
    assert grain_px(without_plane(noise + layers), axis=-1).mean() > plain + 3  # the test has teeth


def test_width_and_plane_equal_slow_twins() -> None:
    """Vectorised width and plane equal loops and least squares, also where the half is never crossed."""
    rng = np.random.default_rng(1)
    patches = rng.normal(size=(3, 16, 16)) + np.linspace(0, 5, 16)[:, None]
    down, across = np.mgrid[:16, :16]
    design = np.stack([np.ones(256), down.ravel(), across.ravel()], axis=1)
    for patch, rest in zip(patches, without_plane(patches), strict=True):
        fit = np.linalg.lstsq(design, patch.ravel(), rcond=None)[0]
        assert rest == pytest.approx(patch - (design @ fit).reshape(16, 16))
        assert ratio(patch) == pytest.approx(patch.mean() / rest.std())
        slow = [[patch[i, j] - patch[i].mean() - patch[:, j].mean() + patch.mean() for j in range(16)] for i in range(16)]
        assert without_layers(patch) == pytest.approx(np.array(slow))
    smooth = gaussian_filter(patches, (0, 2, 1))
    for stack in (patches, smooth, np.ones((1, 16, 16))):
        for axis, down_ in ((-2, True), (-1, False)):
            assert grain_px(stack, axis=axis) == pytest.approx([slow_width(p, down=down_) for p in stack])


def test_homogeneous_patches_avoid_edges_and_shadow() -> None:
    """A lesion edge, a black shadow and a saturated band are left out; what is chosen is plain speckle."""
    frame = speckled(1, seed=3)[0]
    frame[:, 40:] = 0  # shadow
    frame[:16, :40] = 255  # saturated
    found = homogeneous_patches(frame[None])[0]
    assert np.isfinite(found).all()
    assert all(p.min() > 0 or (p == 0).mean() < 0.05 for p in found)
    assert found.shape == (PATCHES, 16, 16)
    assert found.mean(axis=(1, 2)).std() < 12


def test_smoothing_shows_in_ratio_and_grain() -> None:
    """Blurred frames have a higher ratio and coarser grain, with intervals apart."""
    plain = speckled(40)
    smooth = gaussian_filter(plain.astype(float), (0, 1, 1)).round().astype(np.uint8)
    before, after = speckle(plain), speckle(smooth)
    for name in ("gray_snr", "axial_px", "lateral_px"):
        assert getattr(before, name).high < getattr(after, name).low, name


def test_frames_without_speckle_count_as_none() -> None:
    """A black frame with a bright dot gives NaN and is left out; only such frames are refused."""
    dark = np.zeros((1, 64, 64), np.uint8)
    dark[0, 5, 5] = 255
    mixed = np.concatenate([speckled(12), dark])
    assert np.isnan(frame_statistics(mixed)[-1]).all()
    assert speckle(mixed).gray_snr.value == pytest.approx(speckle(mixed[:-1]).gray_snr.value)
    with pytest.raises(InputError, match="homogeneous"):
        speckle(np.repeat(dark, 12, axis=0))


def test_a_frame_alone_gives_what_it_gives_among_others() -> None:
    """Statistics of a frame depend on that frame alone, over the borders of the batches too."""
    frames = speckled(300, size=32)
    assert frame_statistics(frames)[[0, 255, 256, 299]] == pytest.approx(frame_statistics(frames[[0, 255, 256, 299]]))


def test_bad_frames_are_refused() -> None:
    """Wrong type, shape, size, constant frames and an impossible dynamic range each end in a named error."""
    good = speckled(12)
    for wrong in (good.astype(np.float32), good[0], good[:, :, :60], good[:0], good[:, :16, :16]):
        with pytest.raises(InputError):
            speckle(wrong)
    with pytest.raises(CorruptImageError, match="1 of 12"):
        speckle(np.concatenate([good[1:], np.full((1, 64, 64), 7, np.uint8)]))
    with pytest.raises(ConfigError, match="dynamic_range_db"):
        speckle(good, dynamic_range_db=0)
    with pytest.raises(InputError, match="groups"):
        speckle(good, groups=["p"] * 11)
