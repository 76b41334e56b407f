"""What a hospital's images are measured against: images of the un-adapted foundation, in every style. Nothing private is in it.

An image becomes ``phi``: principal components of a public encoder's features and of the image at 8 x 8, each centred and scaled on the
foundation's own images, so that 0 is the foundation's mean and 1 its standard deviation.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from busgen_core.digests import canonical_json, sha256_bytes
from busgen_core.errors import CheckpointError
from busgen_core.files import write_whole
from busgen_core.foundation import Foundation
from busgen_core.labels import Pathology
from busgen_core.quality.encoder import ShippedEncoder, load_encoder
from busgen_core.sampling import SamplePlan, plan_images
from busgen_core.styles import STYLES, restyle

PER_CLASS, SEED = 120, 20_261  # images that the reference consists of; any seed does, it must only be the same everywhere
DEEP, COARSE, SIDE = 32, 16, 8  # components of features, components of low-resolution images, their side
NUMBERS = DEEP + COARSE

Frames = NDArray[np.uint8]
Vectors = NDArray[np.float64]


@dataclass(frozen=True)
class Basis:
    """An affine map from raw numbers [n, d] to components [n, k] of mean 0 and deviation 1 on the foundation's images."""

    centre: Vectors
    axes: Vectors

    def __call__(self, raw: Vectors) -> Vectors:
        """[n, d] to [n, k]."""
        return np.asarray((raw - self.centre) @ self.axes)


@dataclass(frozen=True)
class Reference:
    """Reference images as numbers.

    Attributes:
        deep: Basis of the encoder's features.
        coarse: Basis of the 8 x 8 images.
        phi: float64 [styles, n, numbers], the foundation's images in every style.
        images: The foundation's images themselves, uint8 [n, px, px]; audits calibrate on them.
        classes: Class index of each image, int [n].
    """

    deep: Basis
    coarse: Basis
    phi: Vectors
    images: Frames
    classes: NDArray[np.int64]

    def measure(self, images: Frames) -> Vectors:
        """``phi`` of frames, uint8 [n, px, px] to float64 [n, numbers].

        The encoder sees the whole call as one batch, whose rounding may depend on its rows: for a private figure call it with one
        patient's images at a time.
        """
        return np.concatenate([self.deep(_encoder()(images).astype(np.float64)), self.coarse(coarse(images))], axis=1)


@cache
def _encoder() -> ShippedEncoder:
    """The shipped encoder, read and checked once a process: ``measure`` is called for each patient."""
    return load_encoder()


def coarse(images: Frames) -> Vectors:
    """Means of 8 x 8 equal parts, in [-1, 1]; float64 [n, 64]."""
    count, side, _ = images.shape
    step = side // SIDE
    parts = images[:, : step * SIDE, : step * SIDE].reshape(count, SIDE, step, SIDE, step)
    return np.asarray(parts.mean((2, 4)).reshape(count, -1) / 127.5 - 1)


def reference_of(foundation: Foundation, folder: Path, *, progress: Callable[[int, int], None]) -> Reference:
    """The foundation's reference, drawn once and kept in ``folder``; the same for the same foundation on the same machine.

    Args:
        foundation: As it came, not adapted.
        folder: Where the file is kept, one for each foundation.
        progress: Called with (images drawn, images).

    Raises:
        CheckpointError: the file there is damaged.
    """
    file = folder / f"reference-{_recipe(foundation)[:16]}.safetensors"
    if not file.exists():
        write_whole(file, save(_tensors(_drawn(foundation, progress))))
    try:
        return _from_tensors(load(file.read_bytes()))
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{file.name} is damaged ({type(error).__name__}); remove it, it is made again") from error


def _recipe(foundation: Foundation) -> str:
    styles = json.loads(canonical_json([[s.gamma, s.gain] for s in STYLES]))
    return sha256_bytes(canonical_json(["with images", foundation.digest, PER_CLASS, SEED, DEEP, COARSE, SIDE, styles]))


def _drawn(foundation: Foundation, progress: Callable[[int, int], None]) -> Reference:
    plan = SamplePlan(seed=SEED, counts=dict.fromkeys(Pathology, PER_CLASS))
    return build(plan_images(foundation, plan, progress=progress), np.array([p.class_index for p in plan.pathologies]))


def build(images: Frames, classes: NDArray[np.int64]) -> Reference:
    """A reference of these images; all styles are measured, the bases come from the plain one."""
    encoder = _encoder()
    deep = _basis(encoder(images).astype(np.float64), DEEP)
    low = _basis(coarse(images), COARSE)
    phi = []
    for style in STYLES:
        styled = restyle(images, style)
        phi.append(np.concatenate([deep(encoder(styled).astype(np.float64)), low(coarse(styled))], axis=1))
    return Reference(deep=deep, coarse=low, phi=np.stack(phi), images=images, classes=classes.astype(np.int64))


def _basis(raw: Vectors, count: int) -> Basis:
    """Principal components by singular values, each scaled to deviation 1."""
    centre = raw.mean(0)
    _, sizes, axes = np.linalg.svd(raw - centre, full_matrices=False)
    deviations = np.maximum(sizes[:count] / np.sqrt(len(raw)), 1e-6)
    return Basis(centre=centre, axes=axes[:count].T / deviations)


def _tensors(reference: Reference) -> dict[str, NDArray[np.generic]]:
    bases = {"deep": reference.deep, "coarse": reference.coarse}
    flat: dict[str, NDArray[np.generic]] = {"phi": reference.phi, "images": reference.images, "classes": reference.classes}
    for name, basis in bases.items():
        flat |= {f"{name}.centre": basis.centre, f"{name}.axes": np.ascontiguousarray(basis.axes)}
    return flat


def _from_tensors(tensors: dict[str, NDArray[np.generic]]) -> Reference:
    def basis(name: str) -> Basis:
        return Basis(centre=np.asarray(tensors[f"{name}.centre"], np.float64), axes=np.asarray(tensors[f"{name}.axes"], np.float64))

    phi, classes = np.asarray(tensors["phi"], np.float64), np.asarray(tensors["classes"], np.int64)
    images = np.asarray(tensors["images"], np.uint8)
    if phi.shape != (len(STYLES), len(classes), NUMBERS) or images.ndim != 3 or len(images) != len(classes):
        raise ValueError("shape")
    return Reference(deep=basis("deep"), coarse=basis("coarse"), phi=phi, images=images, classes=classes)
