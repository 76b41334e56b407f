"""Phantom frames from a pathology and a seed, one by one or many at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from busgen_core.errors import ConfigError
from busgen_core.images import Box, mask_box
from busgen_core.labels import Birads, Pathology
from busgen_core.phantom.descriptors import Descriptors, category
from busgen_core.phantom.render import ACROSS, DOWN, render
from busgen_core.phantom.scene import Scene, draw_scene

LEAST_SIZE = 32  # px
CHUNK_PIXELS = 1 << 17  # fine pixels handled at once; fits the cache


@dataclass(frozen=True, kw_only=True, slots=True)
class Phantom:
    """One simulated frame.

    Attributes:
        image: uint8 [size, size], 0 black to 255 white.
        pathology: The class it was drawn from.
        birads: Category that follows from the descriptors; 1 for normal tissue.
        descriptors: What the mass was built from, or None for normal tissue.
        mask: bool [size, size], the mass, or None for normal tissue.
        box: Bounding box of the mask as fractions of the frame, or None for normal tissue.
        scanner: Name of the preset.
    """

    image: NDArray[np.uint8]
    pathology: Pathology
    birads: Birads | None
    descriptors: Descriptors | None
    mask: NDArray[np.bool_] | None
    box: Box | None
    scanner: str


def simulate(pathology: Pathology, *, size: int = 64, seed: int, scanner: str | None = None, descriptors: Descriptors | None = None) -> Phantom:
    """Return one phantom frame; the same arguments give the same bytes on the same kind of processor.

    Between vector instruction sets, floating-point rounding moves about one pixel in 200,000 by one gray level.

    Args:
        pathology: Class to draw.
        size: Rows and columns in pixels, at least 32.
        seed: Seed of anatomy, mass, settings and scatterers.
        scanner: Name of a preset in ``SCANNERS``; None draws one by the seed.
        descriptors: What the mass shall look like; None draws it from the tables for the pathology.

    Raises:
        ConfigError: ``size`` below 32, or a seed below 0.
        LabelError: a scanner that is not there, or descriptors of normal tissue.

    >>> simulate(Pathology.BENIGN, seed=1).image.shape
    (64, 64)
    """
    _check_size(size)
    return _phantoms([draw_scene(pathology, seed, scanner, descriptors)], size)[0]


def simulate_batch(
    pathologies: Sequence[Pathology], *, size: int = 64, seeds: Sequence[int], scanners: Sequence[str | None] | None = None
) -> list[Phantom]:
    """Many frames at once; each has the bytes that ``simulate`` gives for its own seed, whatever else is in the batch.

    Args:
        pathologies: Class of each frame.
        size: Rows and columns in pixels, at least 32.
        seeds: Seed of each frame.
        scanners: Preset of each frame, None to draw it by the seed; None draws all of them.

    Raises:
        ConfigError: ``size`` below 32, a seed below 0, or lengths that differ.
        LabelError: a scanner that is not there.

    >>> [p.birads.value for p in simulate_batch([Pathology.NORMAL] * 2, seeds=[1, 2])]
    ['1', '1']
    """
    _check_size(size)
    names = [None] * len(pathologies) if scanners is None else scanners
    if not len(pathologies) == len(seeds) == len(names):
        raise ConfigError(f"lengths differ: {len(pathologies)} pathologies, {len(seeds)} seeds, {len(names)} scanners")
    at_once = max(1, CHUNK_PIXELS // (DOWN * ACROSS * size * size))
    frames: list[Phantom] = []
    for start in range(0, len(seeds), at_once):
        some = slice(start, start + at_once)
        scenes = [draw_scene(p, s, n, None) for p, s, n in zip(pathologies[some], seeds[some], names[some], strict=True)]
        frames += _phantoms(scenes, size)
    return frames


def _check_size(size: int) -> None:
    if size < LEAST_SIZE:
        raise ConfigError(f"size={size} is below {LEAST_SIZE} px")


def _phantoms(scenes: Sequence[Scene], size: int) -> list[Phantom]:
    return [_phantom(*parts) for parts in zip(scenes, *render(scenes, size), strict=True)]


def _phantom(scene: Scene, image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> Phantom:
    known = scene.descriptors is not None
    return Phantom(
        image=image,
        pathology=scene.pathology,
        birads=Birads.ONE if scene.descriptors is None else category(scene.descriptors),
        descriptors=scene.descriptors,
        mask=mask if known else None,
        box=mask_box(mask) if known else None,
        scanner=scene.name,
    )
