"""The phantom's physics: point spread, speckle, attenuation, noise, compression; and fast formulas against slow twins."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.interpolate import BSpline
from scipy.ndimage import gaussian_filter1d

from busgen_core.errors import ConfigError
from busgen_core.labels import Pathology
from busgen_core.phantom import SCANNERS, acoustics, render
from busgen_core.phantom.fields import Field, gather, ridge, smooth, spline_basis, step
from busgen_core.phantom.scanners import Scanner
from busgen_core.phantom.scene import Scene, draw_scene
from busgen_core.phantom.tissue import GLAND_LOSS, MEAN_LOSS, Tissue

QUIET = replace(SCANNERS["phantom-a 5-12 MHz"], looks=1, reverberation_db=-200.0)


def column(*values: float) -> Field:
    return np.array(values, np.float32)[:, None, None]


def homogeneous(scanner: Scanner, *, size: int = 128, seeds: int = 4, noise: float = 0.0) -> tuple[Field, render.Grid]:
    """Envelope of tissue without structure, gain 1 everywhere, [seeds, rows, columns], and its grid."""
    scenes: list[Scene] = [replace(draw_scene(Pathology.NORMAL, s, None, None), scanner=scanner, focus_cm=scanner.focus_cm) for s in range(seeds)]
    scenes = [replace(s, depth_cm=scanner.depth_cm, width_cm=scanner.width_cm) for s in scenes]
    get = gather(scenes)
    grid = render._grid(get, size)
    flat = np.zeros((seeds, grid.z_cm.shape[1], grid.x_cm.shape[2]), np.float32)
    tissue = Tissue(echo_db=flat, mirror=flat, loss=flat, blob=flat)
    return render._looks(scenes, get, tissue, grid, gain=flat + 1, noise=flat + np.float32(noise)), grid


def lateral_width_px(envelope: Field) -> float:
    """Columns at which the lateral autocorrelation of the intensity falls to one half."""
    intensity = envelope.astype(float) ** 2
    intensity -= intensity.mean()
    spectrum = np.abs(np.fft.fft(intensity, axis=-1)) ** 2
    correlation = np.fft.ifft(spectrum, axis=-1).real.reshape(-1, intensity.shape[-1]).mean(0)
    correlation /= correlation[0]
    first = int(np.argmax(correlation < 0.5))
    return first - (0.5 - correlation[first]) / (correlation[first - 1] - correlation[first])


def test_speckle_is_rayleigh_for_one_look() -> None:
    """Mean over standard deviation of a homogeneous region's envelope is 1.91 (Burckhardt 1978), at every depth."""
    envelope, _ = homogeneous(QUIET, size=192)
    for part in np.array_split(envelope, 3, axis=1):
        assert part.mean() / part.std() == pytest.approx(1.91, rel=0.04)


@pytest.mark.parametrize("looks", [2, 4])
def test_looks_smooth_the_speckle(looks: int) -> None:
    """k independent looks raise mean over standard deviation by the root of k."""
    envelope, _ = homogeneous(replace(QUIET, looks=looks))
    assert envelope.mean() / envelope.std() == pytest.approx(1.91 * np.sqrt(looks), rel=0.05)


def test_blur_keeps_the_brightness_of_speckle() -> None:
    """Whatever the beam's width at a depth, the mean envelope of unit scatterers is that of a Rayleigh variable, root of pi over 4."""
    envelope, _ = homogeneous(QUIET)
    rows = envelope[:, 20:-20].mean(axis=(0, 2))
    assert np.allclose([part.mean() for part in np.array_split(rows, 6)], np.sqrt(np.pi / 4), rtol=0.06)


def test_speckle_is_narrowest_at_the_focus_and_widens_away_from_it() -> None:
    """Lateral autocorrelation: narrowest in the band of the focus, wider above it and wider still far below."""
    scanner = replace(QUIET, focus_cm=1.6, depth_cm=4.8, f_number=2.0)
    envelope, grid = homogeneous(scanner, size=128, seeds=6)
    bands = {centre: np.abs(grid.z_cm[0, :, 0] - centre) < 0.15 for centre in (0.3, 1.6, 3.0, 4.5)}
    width = {centre: lateral_width_px(envelope[:, band]) for centre, band in bands.items()}
    assert width[1.6] < width[0.3]
    assert 1.5 * width[1.6] < width[3.0] < width[4.5]


def test_speckle_width_follows_the_formula() -> None:
    """The measured half width of the intensity's autocorrelation is 2 sqrt(ln 2) times the beam's standard deviation, within 15 percent."""
    scanner = replace(QUIET, focus_cm=1.6, depth_cm=4.8, f_number=2.0)
    envelope, grid = homogeneous(scanner, size=256, seeds=4)
    for centre in (2.6, 4.5):
        band = np.abs(grid.z_cm[0, :, 0] - centre) < 0.1
        sigma = acoustics.lateral_sigma_cm(column(centre), mhz=column(9.0), f_number=column(2.0), focus_cm=column(1.6)) / grid.column_cm[:1]
        # Amplitude blur sigma: field correlation exp(-d^2 / 4 sigma^2), intensity's its square, one half at d = sigma sqrt(2 ln 2).
        assert lateral_width_px(envelope[:, band]) == pytest.approx(float(sigma[0, 0, 0]) * np.sqrt(2 * np.log(2)), rel=0.15)


def test_beam_is_lambda_f_at_the_focus_and_twice_that_root_three_fields_away() -> None:
    """Width at half maximum: wavelength times f-number at the focus, and doubled sqrt(3) depths of field from it."""
    wavelength, f_number = 0.154 / 10, 2.0
    field = 4 * wavelength * f_number**2
    for away, factor in ((0.0, 1.0), (np.sqrt(3) * field, 2.0)):
        sigma = acoustics.lateral_sigma_cm(column(2.0 + away), mhz=column(10.0), f_number=column(f_number), focus_cm=column(2.0))
        assert float(sigma[0, 0, 0]) * 2.3548 == pytest.approx(factor * wavelength * f_number, rel=1e-4)


def test_higher_frequency_means_finer_pulse_and_beam() -> None:
    """Twice the frequency, half the pulse's length and half the beam's width at the focus."""
    low, high = (acoustics.axial_sigma_cm(mhz=column(f), cycles=column(2.0)) for f in (5.0, 10.0))
    assert float((low / high).item()) == pytest.approx(2)


def test_blur_equals_its_slow_twin() -> None:
    """One FFT a row and taps a column give what scipy's Gaussian filter gives row by row with its own width, then column by column."""
    rng = np.random.default_rng(0)
    echo = (rng.standard_normal((2, 24, 64)) + 1j * rng.standard_normal((2, 24, 64))).astype(np.complex64)
    sigma = rng.uniform(1.0, 4.0, (2, 24, 1)).astype(np.float32)
    transfer, kept = acoustics.lateral_transfer(sigma, 64)
    fast = acoustics.blur(echo.copy(), transfer, acoustics.axial_taps(np.array([[0.9], [1.3]], np.float32), radius=6))
    for image, axial in ((0, 0.9), (1, 1.3)):
        rows = [gaussian_filter1d(echo[image, r].astype(complex), sigma[image, r, 0], mode="wrap", truncate=8) for r in range(24)]
        slow = gaussian_filter1d(np.stack(rows), axial, axis=0, mode="mirror", radius=6)
        assert np.allclose(fast[image], slow, atol=2e-3)
        power = [np.sqrt(np.square(gaussian_filter1d(np.eye(64)[0], sigma[image, r, 0], mode="wrap", truncate=8)).sum()) for r in range(24)]
        assert np.allclose(kept[image, :, 0], power, rtol=2e-3)


def test_two_way_loss_equals_a_loop() -> None:
    """The running integral agrees with adding row by row, twice the frequency, both ways."""
    rng = np.random.default_rng(1)
    loss = rng.uniform(0.2, 2, (2, 30, 5)).astype(np.float32)
    fast = acoustics.two_way_loss_db(loss, step_cm=column(0.1, 0.2), mhz=column(6.0, 9.0))
    for image, (row_cm, mhz) in enumerate(((0.1, 6.0), (0.2, 9.0))):
        total = np.zeros(5)
        for row in range(30):
            total = total + 2 * mhz * row_cm * loss[image, row]
            assert np.allclose(fast[image, row], total, rtol=1e-5)


def test_smooth_field_equals_scipys_spline() -> None:
    """The basis is scipy's uniform cubic B-spline, rows scaled to unit length; the field it spreads has unit variance."""
    knots = np.arange(-3, 13) + 1.0
    position = np.linspace(1, 8, 50)
    slow = np.stack([BSpline.basis_element(knots[c : c + 5], extrapolate=False)(position + 1) for c in range(12)], axis=1)
    slow = np.nan_to_num(slow)[:, 1:11]
    slow /= np.linalg.norm(slow, axis=1, keepdims=True)
    assert np.allclose(spline_basis(10, 50), slow, atol=1e-6)
    field = smooth(np.random.default_rng(0).standard_normal((400, 9, 6), dtype=np.float32), 40, 30)
    assert np.allclose(field.var(axis=0), 1, atol=0.4)
    assert field.var() == pytest.approx(1, rel=0.03)


def test_step_and_ridge_are_what_their_names_say() -> None:
    """A ramp from 0 to 1 around 0, and a Gaussian bump at 0."""
    value = np.linspace(-3, 3, 121, dtype=np.float32)
    assert np.allclose(step(value, 2.0), np.clip(value / 2 + 0.5, 0, 1), atol=1e-6)
    assert np.allclose(ridge(value, 0.7), np.exp(-((value / 0.7) ** 2)), atol=1e-6)


def test_pixels_are_means_of_their_fine_pixels() -> None:
    """Scan conversion agrees with a plain reshape and mean."""
    fine = np.random.default_rng(0).random((2, 30, 20), dtype=np.float32)
    assert np.allclose(render._pooled(fine), fine.reshape(2, 10, 3, 10, 2).mean((2, 4)), atol=1e-6)


def _scene(**settings: float) -> tuple[Scene, ...]:
    """A dozen frames of normal tissue under one scanner with these settings."""
    scanner = replace(SCANNERS["phantom-a 5-12 MHz"], **settings)
    scenes = [draw_scene(Pathology.NORMAL, seed, "phantom-a 5-12 MHz", None) for seed in range(12)]
    return tuple(replace(s, scanner=scanner, gain_db=scanner.gain_db, tgc_db_per_cm=scanner.tgc_db_per_cm) for s in scenes)


def gray(**settings: float) -> Field:
    return render.render(_scene(**settings), 64)[0].astype(np.float32)


def test_a_wider_dynamic_range_means_less_contrast() -> None:
    """Standard deviation of gray falls as the dynamic range grows."""
    narrow, middle, wide = (gray(dynamic_range_db=d).std(axis=(1, 2)).mean() for d in (45.0, 60.0, 80.0))
    assert narrow > 1.15 * middle > 1.3 * wide


def test_gain_brightens_and_gamma_darkens() -> None:
    """10 dB more gain is brighter, a gamma of 1.6 darker, in every frame."""
    plain = gray().mean(axis=(1, 2))
    assert (gray(gain_db=10.0).mean(axis=(1, 2)) > plain + 10).all()
    assert (gray(gamma=1.6).mean(axis=(1, 2)) < plain - 5).all()


def test_time_gain_compensation_tilts_the_frame() -> None:
    """Two decibels a centimetre more brighten the lower half against the upper."""
    low, high = (gray(tgc_db_per_cm=t) for t in (-3.0, 1.0))
    tilt = [g[:, 32:].mean(axis=(1, 2)) - g[:, :32].mean(axis=(1, 2)) for g in (low, high)]
    assert (tilt[1] > tilt[0] + 5).all()


def test_noise_rises_with_depth_and_persistence_quietens_it() -> None:
    """A noisy probe lifts the dark bottom and hardly the top; averaging 16 frames takes most of that back."""
    quiet, noisy, averaged = gray(noise_db=-140.0), gray(noise_db=-35.0), gray(noise_db=-35.0, persistence=16)
    lift = noisy - quiet
    assert lift[:, -12:].mean() > 3 * max(lift[:, :20].mean(), 1)
    assert (averaged - quiet)[:, -12:].mean() < 0.7 * lift[:, -12:].mean()


def test_more_loss_darkens_what_lies_behind() -> None:
    """A slab of twice the mean loss: nothing changes above it, and the full two-way difference in dB below it."""
    loss = np.full((1, 192, 8), MEAN_LOSS, np.float32)
    slab = loss.copy()
    slab[:, 60:90, 4:] *= 2
    plain, behind = (acoustics.two_way_loss_db(x, step_cm=column(0.02), mhz=column(6.3)) for x in (loss, slab))
    assert np.array_equal(plain[:, :60], behind[:, :60])
    assert np.allclose((behind - plain)[:, 90:, 4:], 2 * 6.3 * 0.02 * 30 * MEAN_LOSS, rtol=1e-4)
    assert np.array_equal((behind - plain)[:, :, :4], np.zeros((1, 192, 4)))


def test_shadows_have_soft_sides() -> None:
    """The aperture blurs a shadow's edge across, keeps its depth in the middle, and mixes no rows."""
    scenes = _scene()[:1]
    grid = render._grid(gather(scenes), 64)
    down = np.zeros((1, 192, grid.x_cm.shape[2]), np.float32)
    down[:, 100:, 40:100] = 20
    soft = render._soft_sided(down, grid)
    assert np.allclose(soft[:, :100], 0, atol=1e-4)
    assert soft[0, 150, 70] == pytest.approx(20, abs=0.05)
    assert 5 < soft[0, 150, 40] < 15


def test_gland_loses_more_than_the_mean_and_scanners_are_checked() -> None:
    """Time gain compensation assumes a mean between fat and gland; a preset with a depth of zero or too much sharpening is refused."""
    assert GLAND_LOSS > MEAN_LOSS
    with pytest.raises(ConfigError):
        replace(QUIET, depth_cm=0.0)
    with pytest.raises(ConfigError):
        replace(QUIET, sharpen=1.5)
