"""From shards to a foundation: train, fit the box density, write the folder and its card."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from busgen_core.boxes import BoxDensity, fit_boxes
from busgen_core.corpus import SOURCE_FILE
from busgen_core.errors import TableError
from busgen_core.foundation import save_foundation
from busgen_core.generator import build_scheduler
from busgen_core.images import Box
from busgen_core.labels import Pathology
from busgen_core.shards import class_folders, read_labels
from busgen_core.tensors import to_unit
from busgen_core.training import Log, Mixture, Trained, TrainingPlan, train

LEAST_BOXES = 8  # of a class, for a density
MEAN_OF = 2000  # images whose mean pixel is taken


def pretrain(
    plan: TrainingPlan, sources: Sequence[Path], out: Path, *, name: str, save_every: int = 500, log: Log | None = None, stop_after: int | None = None
) -> str:
    """Train and write a foundation to ``out``; a run that was stopped goes on from its checkpoint in ``<out>.run``.

    Args:
        sources: See :func:`busgen_core.training.train`; the boxes of the first fit the density.
        name: Of the foundation, for its card.

    Returns:
        Digest of the foundation.

    Raises:
        CheckpointError: the checkpoint beside ``out`` belongs to another plan.
        TableError: no shards, or a class with fewer than 8 boxes in the first source.
        InputError: the loss is not finite.
    """
    boxes = density(sources[0])
    trained = train(plan, sources, run_folder=out.with_name(out.name + ".run"), save_every=save_every, log=log, stop_after=stop_after)
    trained.network.labels.register_to_config(image_mean=mean_pixel(sources, plan))
    card = model_card(plan, sources, trained, name=name)
    return save_foundation(out, network=trained.network, scheduler=build_scheduler(), boxes=boxes, card=card)


def mean_pixel(sources: Sequence[Path], plan: TrainingPlan) -> float:
    """Mean of 2,000 images as training draws them, in [-1, 1], to four digits."""
    examples = Mixture(sources, plan).draw(np.random.default_rng(plan.seed), MEAN_OF, keep=np.ones(MEAN_OF, bool))
    return round(float(to_unit(np.stack([e.image for e in examples])).mean()), 4)


def density(source: Path) -> BoxDensity:
    """The density of a source's lesion boxes, one fit for each class that has them."""
    found: dict[Pathology, list[Box]] = {Pathology.BENIGN: [], Pathology.MALIGNANT: []}
    for folder in class_folders(source):
        for label, box in read_labels(folder):
            if box is not None and label in found:
                x0, y0, x1, y1 = box
                found[Pathology(label)].append((x0, y0, x1, y1))
    if few := [p.value for p, boxes in found.items() if len(boxes) < LEAST_BOXES]:
        raise TableError(f"{source.name}: fewer than {LEAST_BOXES} lesion boxes of {', '.join(few)}; a box density needs them")
    return fit_boxes(found)


def model_card(plan: TrainingPlan, sources: Sequence[Path], trained: Trained, *, name: str) -> str:
    """Model card: data, plan, seed, time, and what it is not."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    parameters = sum(p.numel() for p in trained.network.parameters())
    data = "\n".join(f"- {share:.0%} of the images: {_described(source)}" for source, share in zip(sources, plan.shares, strict=True))
    names = ("pathology", "BI-RADS", "device", "box", "mask")
    dropout = ", ".join(f"{what} {rate:g}" for what, rate in zip(names, plan.dropout, strict=True))
    known = ", ".join(plan.devices) or "none known"
    return f"""---
license: apache-2.0
library_name: diffusers
tags: [ultrasound, breast, diffusion, foundation]
---
# BUSGen Consortium foundation {name}

Conditional diffusion model of {plan.shape.image_px} x {plan.shape.image_px} px breast ultrasound frames: {parameters / 1e6:.2f} M parameters on
{plan.shape.fold} x {plan.shape.fold} pixel patches, EDM preconditioning and loss (arXiv:2206.00364). Conditions, each of which may be left out:
pathology (normal, benign, malignant), BI-RADS (1, 2, 3, 4, 4a, 4b, 4c, 5), device ({known}), lesion box, lesion mask.

## Training

{data}
- Seed {plan.seed}; {trained.steps} of {plan.steps} planned steps of {plan.batch} images; AdamW {plan.learning_rate:g},
  gradient clipped at {plan.clip_norm:g}, averaged weights (decay {plan.ema_decay:g}).
- Conditions replaced by "not given": {dropout}, all at once {plan.drop_all:g}.
- {trained.processor_seconds / 60:.0f} minutes of processor time on {device}.
- Mean loss (EDM, all noise levels) over the last 200 steps: {np.mean(trained.losses[-200:]):.4f}

Boxes for sampling are drawn from `boxes.json`, fitted to the first of these sources.

Not for diagnosis. Its images are not of patients; it has no differential privacy, since all its data are public or simulated.
"""


def _described(source: Path) -> str:
    file = source / SOURCE_FILE
    return str(json.loads(file.read_text())["text"]) if file.is_file() else "shards without a description"
