"""Tiny shards and foundations for tests; every image is simulated."""

from pathlib import Path

from busgen_core.corpus import pack_phantoms
from busgen_core.generator import Shape
from busgen_core.training import TrainingPlan

TINY = Shape(image_px=32, channels=(8, 16), groups=4, heads=8)


def tiny_plan(**changes: object) -> TrainingPlan:
    """A few steps of a tiny network."""
    values: dict[str, object] = {"seed": 3, "steps": 6, "shares": (1.0,), "batch": 4, "warmup": 2, "shape": TINY}
    return TrainingPlan(**(values | changes))  # type: ignore[arg-type]


def tiny_shards(folder: Path, *, count: int = 60, seed: int = 1) -> Path:
    """``count`` phantoms of 32 px in three folders of shards."""
    pack_phantoms(folder, count=count, size=32, seed=seed)
    return folder
