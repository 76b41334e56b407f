"""A foundation and cohorts small enough for a test: real code, few numbers. Frames are simulated; no patient is in them."""

from collections.abc import Sequence

import numpy as np
import torch

from busgen_core.boxes import BoxDensity
from busgen_core.foundation import Foundation
from busgen_core.generator import Shape, build_network, build_scheduler
from busgen_core.labels import Pathology
from busgen_core.phantom import simulate
from busgen_privacy.cohort import Cohort
from busgen_privacy.dp.accounting import GaussianEvent, epsilon_of
from busgen_privacy.dp.plan import DpSgdPlan

SMALL = Shape(image_px=32, channels=(8, 16), groups=4, heads=8)
CLASSES = list(Pathology)


def small_foundation(shape: Shape = SMALL, *, seed: int = 0) -> Foundation:
    """An untrained foundation; the last layer is not zero, so every gradient flows."""
    torch.manual_seed(seed)
    return Foundation(network=build_network(shape).eval(), scheduler=build_scheduler(), boxes=BoxDensity(mean={}, covariance={}), digest="f" * 64)


def cohort(images_each: Sequence[int], *, size: int = 32, seed: int = 0, prefix: str = "m") -> Cohort:
    """Patient i has ``images_each[i]`` simulated frames."""
    patients = [f"{prefix}{i:03d}" for i, many in enumerate(images_each) for _ in range(many)]
    frames = [simulate(CLASSES[row % 3], size=size, seed=seed + row) for row in range(len(patients))]
    return Cohort(
        images=np.stack([f.image for f in frames]),
        classes=tuple(f.pathology for f in frames),
        boxes=tuple(f.box for f in frames),
        patients=tuple(patients),
    )


def small_plan(**changes: object) -> DpSgdPlan:
    """A plan that keeps its own promise: epsilon follows from the noise."""
    values: dict[str, object] = {
        "public_cohort": 20,
        "subset": "bias-norm",
        "steps": 12,
        "patient_rate": 0.4,
        "draws": 2,
        "clip_norm": 1.0,
        "noise_multiplier": 2.0,
        "learning_rate": 1e-3,
        "delta": 1e-5,
    } | changes
    event = GaussianEvent(float(str(values["noise_multiplier"])), float(str(values["patient_rate"])), int(str(values["steps"])))
    values.setdefault("epsilon", epsilon_of([event], delta=1e-5).epsilon)
    return DpSgdPlan(**values)  # type: ignore[arg-type]
