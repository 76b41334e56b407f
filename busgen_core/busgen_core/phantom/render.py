"""From scenes to gray images: the fine grid, the echoes' envelope, and what the scanner makes of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from busgen_core.phantom import acoustics
from busgen_core.phantom.fields import Field, Getter, gather, ridge
from busgen_core.phantom.painting import paint
from busgen_core.phantom.scene import BAND, Scene
from busgen_core.phantom.tissue import MEAN_LOSS, Tissue, build_tissue

DOWN, ACROSS = 3, 2  # fine rows and columns a pixel
MIDDLE = 0.44  # gray of the mean echo before the gray map, 0 to 1
APERTURE_CM = 0.07  # standard deviation of a shadow's soft side
SPECK = 6.0  # amplitude of a calcification against gland
NEPER = np.float32(np.log(10) / 20)  # a decibel in nepers


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """The fine grid of a batch: rows of depth, columns with a margin on both sides that the circular blur may spoil."""

    size: int
    margin: int
    z_cm: Field  # [batch, rows, 1]
    x_cm: Field  # [batch, 1, columns]
    row_cm: Field  # [batch, 1, 1]
    column_cm: Field  # [batch, 1, 1]

    def cropped(self, fine: Field) -> Field:
        """The columns without the margins."""
        return fine[:, :, self.margin : self.margin + ACROSS * self.size]


def render(scenes: Sequence[Scene], size: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Images uint8 [batch, size, size], and the masks of their masses, bool of the same shape."""
    get = gather(scenes)
    grid = _grid(get, size)
    tissue = build_tissue([s.anatomy for s in scenes], z_cm=grid.z_cm, x_cm=grid.x_cm)
    inside = paint([s.lesion for s in scenes], tissue, z_cm=grid.z_cm, x_cm=grid.x_cm)
    gray = _gray(_envelope_db(scenes, get, tissue, grid), get)
    return gray, _pooled((grid.cropped(inside) > 0).astype(np.float32)) >= 0.5


def _grid(get: Getter[Scene], size: int) -> Grid:
    margin = size // 8
    row, column = get(lambda s: s.depth_cm / (DOWN * size)), get(lambda s: s.width_cm / (ACROSS * size))
    z = (np.arange(DOWN * size, dtype=np.float32) + np.float32(0.5))[None, :, None] * row
    x = (np.arange(ACROSS * size + 2 * margin, dtype=np.float32) + np.float32(0.5 - margin))[None, None, :] * column
    return Grid(size=size, margin=margin, z_cm=z, x_cm=x, row_cm=row, column_cm=column)


def _envelope_db(scenes: Sequence[Scene], get: Getter[Scene], tissue: Tissue, grid: Grid) -> Field:
    """Log envelope after time gain compensation, dB around the frame's mean echo, [batch, rows, columns without margin]."""
    mhz = BAND * get(lambda s: s.scanner.centre_mhz)
    rise = grid.z_cm * (2 * MEAN_LOSS * mhz + get(lambda s: s.tgc_db_per_cm))  # time gain compensation, dB
    sight = rise - _soft_sided(acoustics.two_way_loss_db(tissue.loss, step_cm=grid.row_cm, mhz=mhz), grid)
    level = _level_db(tissue.echo_db + sight)
    noise_db = get(lambda s: s.scanner.noise_db - 10 * np.log10(s.scanner.persistence)) + rise - level
    envelope = _looks(scenes, get, tissue, grid, gain=np.exp((sight - level) * NEPER), noise=np.exp(noise_db * NEPER))
    return np.asarray(np.log(grid.cropped(envelope) + np.float32(1e-6)) * np.float32(20 / np.log(10)))


def _soft_sided(down_db: Field, grid: Grid) -> Field:
    """Shadows have soft sides, since an open aperture looks past the edge of what casts them: blurred across by ``APERTURE_CM``."""
    transfer, _ = acoustics.lateral_transfer(APERTURE_CM / grid.column_cm, down_db.shape[2])
    spectrum = scipy.fft.rfft(down_db, axis=2)
    spectrum *= transfer[:, :, : spectrum.shape[2]]
    return np.asarray(scipy.fft.irfft(spectrum, n=down_db.shape[2], axis=2))


def _level_db(echo_db: Field) -> Field:
    """Automatic gain: each frame's mean echo over the upper two thirds, dB [batch, 1, 1]; outliers count no more than the clip."""
    upper = 2 * echo_db.shape[1] // 3
    return np.array([np.clip(frame[:upper], -25, 10).mean() for frame in echo_db], np.float32)[:, None, None]


def _looks(scenes: Sequence[Scene], get: Getter[Scene], tissue: Tissue, grid: Grid, *, gain: Field, noise: Field) -> Field:
    """Mean envelope over each scene's looks; every look sees other scatterers' phases and the same mirrors."""
    across, down = _spread_px(get, grid)
    transfer, kept = acoustics.lateral_transfer(across, tissue.loss.shape[2])
    taps = acoustics.axial_taps(down[:, :, 0], radius=1 + grid.size // 32)
    kept = kept * np.sqrt(np.square(taps).sum(axis=1))[:, None, None]
    scatter = np.exp(tissue.echo_db * NEPER) / kept * np.float32(np.sqrt(0.5))  # as bright after the blur as before
    mirror = tissue.mirror + _near_field(get, grid)
    _add_specks(mirror, scenes, grid, across, down)
    noise = noise * np.float32(np.sqrt(0.5))
    total = np.zeros(scatter.shape, np.float32)
    for n, scene in enumerate(scenes):  # one frame at a time: its planes fit the cache
        own = np.s_[n : n + 1]
        for _ in range(scene.scanner.looks):
            echo = _scatterers(scene.rng, scatter[own].shape)
            hiss = np.roll(echo, echo.shape[1] // 2, axis=1)  # from scatterers half a frame away: independent of what lies here
            hiss *= noise[own]
            echo *= scatter[own]
            echo += mirror[own]
            echo *= gain[own]
            hiss += acoustics.blur(echo, transfer[own], taps[own])
            total[own] += np.abs(hiss) / np.float32(scene.scanner.looks)
    return total


def _scatterers(rng: np.random.Generator, shape: tuple[int, ...]) -> acoustics.Echo:
    """Complex normals of variance 2."""
    return rng.standard_normal((*shape, 2), dtype=np.float32).view(np.complex64)[..., 0]


def _spread_px(get: Getter[Scene], grid: Grid) -> tuple[Field, Field]:
    """Standard deviations of the beam in columns [batch, rows, 1] and of the pulse in rows [batch, 1, 1]."""
    mhz, f_number, focus = get(lambda s: s.scanner.centre_mhz), get(lambda s: s.scanner.f_number), get(lambda s: s.focus_cm)
    across = acoustics.lateral_sigma_cm(grid.z_cm, mhz=mhz, f_number=f_number, focus_cm=focus) / grid.column_cm
    return across, acoustics.axial_sigma_cm(mhz=mhz, cycles=get(lambda s: s.scanner.cycles)) / grid.row_cm


def _near_field(get: Getter[Scene], grid: Grid) -> Field:
    """Reverberation between probe and skin: lines at multiples of one interval, each 5 dB below the last, [batch, rows, 1]."""
    interval = get(lambda s: s.echo_interval_cm)
    first = 10 ** (get(lambda s: s.scanner.reverberation_db) / 20)
    lines = [first * np.float32(10 ** (-0.25 * n)) * ridge(grid.z_cm - n * interval, 0.02) for n in range(1, 6)]
    return np.asarray(sum(lines), dtype=np.float32)


def _add_specks(mirror: Field, scenes: Sequence[Scene], grid: Grid, across: Field, down: Field) -> None:
    """Add calcifications to the mirrors, in place: points, as bright as they are to be once blurred."""
    for number, scene in enumerate(scenes):
        if scene.lesion is not None and len(scene.lesion.specks):
            columns = (scene.lesion.specks[:, 0] / grid.column_cm[number, 0, 0] + grid.margin).astype(int)
            rows = (scene.lesion.specks[:, 1] / grid.row_cm[number, 0, 0]).astype(int)
            seen = (rows >= 0) & (rows < mirror.shape[1]) & (columns >= 0) & (columns < mirror.shape[2])
            # Peak of a blurred point: 1 / (sqrt(2 pi) sigma) a direction.
            spread = np.maximum(1, 2.5066 * across[number, rows[seen], 0]) * np.maximum(1, 2.5066 * down[number, 0, 0])
            mirror[number, rows[seen], columns[seen]] += SPECK * spread


def _pooled(fine: Field) -> Field:
    """Mean over the fine rows and columns of each pixel: [batch, size, size]."""
    down = fine[:, 0::DOWN] + fine[:, 1::DOWN] + fine[:, 2::DOWN]
    return np.asarray(down[:, :, 0::ACROSS] + down[:, :, 1::ACROSS], dtype=np.float32) / np.float32(DOWN * ACROSS)


def _gray(envelope_db: Field, get: Getter[Scene]) -> NDArray[np.uint8]:
    """Log compression to the dynamic range, scan conversion to pixels, gray map and sharpening: uint8 [batch, size, size]."""
    span = get(lambda s: s.scanner.dynamic_range_db)
    gray = _pooled(np.clip((envelope_db + get(lambda s: s.gain_db)) / span + np.float32(MIDDLE), 0, 1))
    gray += get(lambda s: s.scanner.s_curve) * (gray * gray * (3 - 2 * gray) - gray)
    gray = np.power(gray, get(lambda s: s.scanner.gamma))
    around = np.pad(gray, ((0, 0), (1, 1), (1, 1)), mode="edge")
    cross = (around[:, :-2, 1:-1] + around[:, 2:, 1:-1] + around[:, 1:-1, :-2] + around[:, 1:-1, 2:]) / 4
    gray += get(lambda s: s.scanner.sharpen) * (gray - cross)
    return np.asarray((np.clip(gray, 0, 1) * 255).round(), dtype=np.uint8)
