"""Baselines that a real hub cannot have: they read real images of all hospitals, which are public in the demo alone.

Each baseline trains the same classifier for the same number of epochs and is scored by the same binned estimator as
the pool, without noise, on all holdout patients together.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from busgen_core.downstream import train_classifier
from busgen_core.foundation import Foundation, load_foundation
from busgen_core.labels import Pathology
from busgen_core.sampling import SamplePlan, plan_images
from busgen_core.scores import auc_from_counts, patient_counts, quantile_edges
from busgen_core.wire import BinnedCounts
from busgen_privacy.cohort import Cohort
from busgen_server.trainer import EPOCHS

BINS = 64
LESIONS = (Pathology.BENIGN, Pathology.MALIGNANT)


@dataclass(frozen=True, kw_only=True)
class Score:
    """An AUC with its 95 % interval."""

    auc: float
    low: float
    high: float


def baselines(foundation: Path, cohorts: Mapping[str, tuple[Cohort, Cohort]], *, images: int) -> dict[str, Score]:
    """The three baselines of the demo.

    Args:
        cohorts: Members and holdout of each site.
        images: Synthetic images for each label that the foundation draws without adaptation.
    """
    torch.set_num_threads(max(1, os.cpu_count() or 1))
    holdouts = {name: lesions_only(holdout) for name, (_, holdout) in cohorts.items()}
    members = {name: lesions_only(member) for name, (member, _) in cohorts.items()}
    bar = tqdm(total=len(cohorts) + 2, desc="baselines", unit="model")
    drawn, labels = draw(load_foundation(foundation), images)
    found = {"foundation without adaptation": _scored(_predictions(drawn, labels, holdouts), holdouts)}
    bar.update()
    own: dict[str, NDArray[np.float64]] = {}
    for name, cohort in members.items():
        own |= _predictions(cohort.images, list(cohort.classes), {name: holdouts[name]})
        bar.update()
    found["real images of the same hospital"] = _scored(own, holdouts)
    everything = np.concatenate([c.images for c in members.values()])
    found["real images of all hospitals"] = _scored(_predictions(everything, [p for c in members.values() for p in c.classes], holdouts), holdouts)
    bar.update()
    bar.close()
    return found


def lesions_only(cohort: Cohort) -> Cohort:
    """The benign and malignant images of a cohort."""
    rows = [i for i, p in enumerate(cohort.classes) if p in LESIONS]
    return Cohort(
        images=cohort.images[rows],
        classes=tuple(cohort.classes[i] for i in rows),
        boxes=tuple(cohort.boxes[i] for i in rows),
        patients=tuple(cohort.patients[i] for i in rows),
    )


def draw(foundation: Foundation, count: int, *, seed: int = 0) -> tuple[NDArray[np.uint8], list[Pathology]]:
    """``count`` images of each lesion label from a generator as it is: uint8 [2 count, 64, 64]."""
    plan = SamplePlan(seed=seed, counts=dict.fromkeys(LESIONS, count))
    return plan_images(foundation, plan), plan.pathologies


def _predictions(images: NDArray[np.uint8], labels: list[Pathology], holdouts: Mapping[str, Cohort]) -> dict[str, NDArray[np.float64]]:
    classifier = train_classifier(images, labels, seed=0, epochs=EPOCHS)
    return {name: np.asarray(classifier.predict(cohort.images), dtype=np.float64) for name, cohort in holdouts.items()}


def _scored(predictions: Mapping[str, NDArray[np.float64]], holdouts: Mapping[str, Cohort]) -> Score:
    scores = np.concatenate([predictions[name] for name in holdouts])
    labels = [p for c in holdouts.values() for p in c.classes]
    patients = [f"{name}/{key}" for name, c in holdouts.items() for key in c.patients]
    counts = patient_counts(scores, labels, patients, tuple(quantile_edges(scores, bins=BINS)))
    benign, malignant = (tuple(float(cell) for cell in row) for row in counts)
    exact = BinnedCounts(
        benign=benign, malignant=malignant, benign_total=sum(benign), malignant_total=sum(malignant), noise=0.0, suppressed_below=0.0
    )
    auc, low, high = auc_from_counts([exact])
    return Score(auc=auc, low=low, high=high)
