"""A first, simple breast ultrasound phantom: tissue layers, speckle, one lesion with its box.

The echo field is scatterer noise weighted by tissue echogenicity, filtered by a separable point spread
function, envelope-detected and log-compressed (J. A. Jensen, "Linear description of ultrasound imaging
systems", 1999, sections 4-5). Lesions follow the BI-RADS descriptors in the plainest form: benign = oval,
parallel, circumscribed, posterior enhancement; malignant = irregular, non-parallel, spiculated, shadow.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from busgen_core.errors import ConfigError
from busgen_core.labels import Pathology

Image = NDArray[np.uint8]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 as fractions of width and height


@dataclass(frozen=True, kw_only=True, slots=True)
class Phantom:
    """One simulated frame.

    Attributes:
        image: uint8 [size, size], 0 black to 255 white.
        pathology: The class it was drawn from.
        box: Lesion box as fractions of the frame, or None for normal tissue.
    """

    image: Image
    pathology: Pathology
    box: Box | None


def simulate(pathology: Pathology, *, size: int = 64, seed: int, gain_db: float = 0.0) -> Phantom:
    """Return one phantom frame; the same arguments give the same bytes.

    Args:
        pathology: Class to draw.
        size: Rows and columns in pixels, at least 32.
        seed: Seed of the scatterers and of the anatomy.
        gain_db: Receiver gain added before log compression; moves the look of a scanner.

    Raises:
        ConfigError: ``size`` below 32.

    >>> simulate(Pathology.BENIGN, seed=1).image.shape
    (64, 64)
    """
    if size < 32:
        raise ConfigError(f"size={size} is below 32 px")
    rng = np.random.default_rng(seed)
    fine = 2 * size  # drawn twice as fine, then averaged as a scan converter does
    depth = np.linspace(0, 1, fine)[:, None]
    lateral = np.linspace(0, 1, fine)[None, :]
    echo_db = _layers_db(rng, depth, lateral)
    attenuation_db = -rng.uniform(4, 22) * depth * np.ones_like(lateral)
    box = None
    if pathology is not Pathology.NORMAL:
        inside, posterior, box = _lesion(rng, pathology, depth, lateral)
        contrast_db = rng.uniform(-22, -12) if pathology is Pathology.MALIGNANT else rng.uniform(-16, -7)
        echo_db = echo_db * (1 - inside) + (echo_db.mean() + contrast_db) * inside
        attenuation_db = attenuation_db + posterior
    amplitude = 10 ** ((echo_db + attenuation_db + gain_db) / 20)
    field = (rng.standard_normal((fine, fine)) + 1j * rng.standard_normal((fine, fine))) * amplitude
    axial, side = rng.uniform(0.7, 1.1) * fine / 128, rng.uniform(1.4, 2.6) * fine / 128
    blurred = gaussian_filter(field.real, (axial, side)) + 1j * gaussian_filter(field.imag, (axial, side))
    envelope_db = 20 * np.log10(np.abs(blurred) + 1e-6)
    dynamic_range = rng.uniform(45, 60)
    top = np.percentile(envelope_db, 99.5)
    gray = np.clip((envelope_db - top) / dynamic_range + 1, 0, 1).reshape(size, 2, size, 2).mean((1, 3)) ** rng.uniform(1.5, 3.0)
    return Phantom(image=(gray * 255).round().astype(np.uint8), pathology=pathology, box=box)


def _layers_db(rng: np.random.Generator, depth: NDArray[np.float64], lateral: NDArray[np.float64]) -> NDArray[np.float64]:
    """Echogenicity in dB: skin, fat, gland with texture, fascia, muscle."""
    size = depth.shape[0]
    wave = gaussian_filter1d(rng.standard_normal(size), size / 8)
    wave = 0.03 * wave / (np.abs(wave).max() + 1e-9)
    skin, fat, gland = 0.04 + rng.uniform(0, 0.03), rng.uniform(0.15, 0.3), rng.uniform(0.65, 0.9)
    level = depth + wave[None, :] + 0 * lateral
    texture = gaussian_filter(rng.standard_normal((size, size)), (size / 40, size / 12))
    texture = texture / (texture.std() + 1e-9)
    out = np.where(level < skin, 4.0, np.where(level < fat, -10.0, np.where(level < gland, -2.0, -12.0)))
    out = out + np.where((level >= fat) & (level < gland), 4.5, 3.0) * texture
    fascia = np.exp(-(((level - gland) / 0.012) ** 2)) + np.exp(-(((level - fat) / 0.01) ** 2))
    smooth: NDArray[np.float64] = gaussian_filter(out + 9 * fascia, 0.6)
    return smooth


def _lesion(
    rng: np.random.Generator, pathology: Pathology, depth: NDArray[np.float64], lateral: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], Box]:
    """Soft lesion mask in [0, 1], posterior change in dB, and the box of the mask."""
    malignant = pathology is Pathology.MALIGNANT
    cx, cy = rng.uniform(0.3, 0.7), rng.uniform(0.32, 0.58)
    half_width = rng.uniform(0.09, 0.22)
    ratio = rng.uniform(0.85, 1.4) if malignant else rng.uniform(0.45, 0.75)  # taller than wide is suspicious
    half_height = min(half_width * ratio, 0.26)
    angle = np.arctan2((depth - cy) / half_height, (lateral - cx) / half_width)
    radius = np.hypot((depth - cy) / half_height, (lateral - cx) / half_width)
    harmonics = range(3, 11) if malignant else range(2, 4)
    roughness = 0.13 if malignant else 0.03
    edge = 1 + sum(roughness * rng.standard_normal() / np.sqrt(k - 1) * np.cos(k * angle + rng.uniform(0, 6.28)) for k in harmonics)
    softness = rng.uniform(0.08, 0.2) if malignant else rng.uniform(0.03, 0.08)
    inside = 1 / (1 + np.exp((radius - edge) / softness))
    hard = inside > 0.5
    rows, columns = np.flatnonzero(hard.any(1)), np.flatnonzero(hard.any(0))
    size = depth.shape[0]
    box = (columns[0] / size, rows[0] / size, (columns[-1] + 1) / size, (rows[-1] + 1) / size)
    behind = np.cumsum(inside, axis=0) / size * (1 - inside)
    change_db = rng.uniform(-60, -25) if malignant else rng.uniform(5, 35)
    return inside, change_db * behind, (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
