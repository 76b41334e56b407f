"""What the generator's benchmarks share: the encoder, and the features and groups of the public images."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench.rows import SHARED
from busgen_core.corpus import public_examples, read_table
from busgen_core.labels import Pathology
from busgen_core.quality.compare import Encoder
from busgen_core.quality.encoder import load_encoder
from busgen_core.shards import Example


def shipped_encoder() -> Encoder:
    """The encoder that the project ships."""
    return load_encoder()


def public_images(labels: Sequence[Pathology]) -> tuple[NDArray[np.uint8], list[Pathology], list[str]]:
    """Public images of some classes, uint8 [n, 64, 64], with their classes and patients."""
    folder = SHARED / "public"
    examples, groups = public_examples(folder, size=64), [row["group"] for row in read_table(folder)]
    kept: list[tuple[Example, str]] = [(e, g) for e, g in zip(examples, groups, strict=True) if e.condition.pathology in labels]
    classes = [e.condition.pathology or Pathology.NORMAL for e, _ in kept]
    return np.stack([e.image for e, _ in kept]), classes, [g for _, g in kept]


def public_features(labels: Sequence[Pathology]) -> NDArray[np.float32]:
    """Features of public images, float32 [n, d]."""
    return shipped_encoder()(public_images(labels)[0])
