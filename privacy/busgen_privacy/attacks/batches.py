"""White-box attacks on many images, in batches and on all cores; yet a patient's score depends on nobody else, bit for bit.

An image's answer in a batch differs in its last digits from its answer alone, since kernels are chosen by the size of what they get. So all
batches of an attack have one size, the last one filled up, and before the attack it is tried on images of nobody whether this machine scores
an image alike at every place of such a batch and beside any others. Where it does not, images are attacked one by one.

Each core has a thread with networks of its own: batches are too small for torch's threads, which wait for each other at every layer.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue

import numpy as np
import torch

from busgen_core.labels import Pathology
from busgen_privacy.attacks.base import MOST_IMAGES, Access, Draws, MemberScores, Scores, WhiteBoxAttack, randomness
from busgen_privacy.cohort import Cohort


@dataclass(frozen=True, slots=True)
class Image:
    """One attacked image.

    Attributes:
        row: In the cohort.
        patient: Key of its patient.
        place: Its place among the patient's attacked images.
        images: How many these are.
    """

    row: int
    patient: str
    place: int
    images: int


def attack_all(
    attack: WhiteBoxAttack, access: Access, members: Cohort, holdout: Cohort, *, draws: int, seed: int, progress: Callable[[int, int], None]
) -> MemberScores:
    """Attack every patient of both sides.

    Guarantees: given the networks, a patient's score depends on that patient's rows and key alone.

    Args:
        attack: Which one.
        access: What the attacker holds.
        members: Patients of the adaptation.
        holdout: Patients it never saw.
        draws: Noise draws, or levels, for each image.
        seed: Of the draws; each patient's follow from it and the patient's key.
        progress: Called with (images done, images).
    """
    sides = [(cohort, attacked(cohort)) for cohort in (members, holdout)]
    total, scores = sum(len(images) for _, images in sides), []
    with _networks(access) as free, ThreadPoolExecutor(free.qsize()) as pool:

        def score(batch: tuple[Cohort, Sequence[Image]]) -> Scores:
            own = free.get()
            try:
                return score_batch(attack, own, *batch, size=size, draws=draws, seed=seed)
            finally:
                free.put(own)

        size = attack.at_once if batches_keep_apart(attack, access, draws=draws) else 1
        batches = [(cohort, images[start : start + size]) for cohort, images in sides for start in range(0, len(images), size)]
        for found in pool.map(score, batches):
            scores += found.tolist()
            progress(len(scores), total)
    inside, outside = (images for _, images in sides)
    return MemberScores(members=_by_patient(inside, scores[: len(inside)]), holdout=_by_patient(outside, scores[len(inside) :]))


def attacked(cohort: Cohort) -> list[Image]:
    """At most 8 images of each patient, patients in the order of their keys."""
    people = {patient: rows[:MOST_IMAGES] for patient, rows in cohort.patient_rows().items()}
    return [Image(row, patient, place, len(rows)) for patient, rows in people.items() for place, row in enumerate(rows)]


def score_batch(attack: WhiteBoxAttack, access: Access, cohort: Cohort, batch: Sequence[Image], *, size: int, draws: int, seed: int) -> Scores:
    """Scores of at most ``size`` images, asked as a batch of just that size; float64 [images]."""
    filled = [batch[i % len(batch)] for i in range(size)]
    drawn = [Draws.of(access.adapted, image.images, draws, randomness(seed, image.patient)) for image in filled]
    places = np.stack([each.places[image.place] for each, image in zip(drawn, filled, strict=True)])
    noise = np.stack([each.noise[image.place] for each, image in zip(drawn, filled, strict=True)])
    return attack.score(access, cohort, [image.row for image in filled], Draws(places, noise))[: len(batch)]


def batches_keep_apart(attack: WhiteBoxAttack, access: Access, *, draws: int) -> bool:
    """Whether this machine gives an image one score, bit for bit, at every place of a batch and whoever else is in it.

    Tried on random images, never on patients: what it finds is a property of machine and network.
    """
    size, px = attack.at_once, access.adapted.image_px
    frames = np.random.default_rng(0).integers(0, 256, (size, px, px), dtype=np.uint8)
    nobody = Cohort(frames, (Pathology.BENIGN,) * size, (None,) * size, tuple(map(str, range(size))))
    score = partial(score_batch, attack, access, nobody, size=size, draws=draws, seed=0)
    images = attacked(nobody)
    beside_others, everywhere = score(images), score(images[:1] * size)
    return bool((everywhere == beside_others[0]).all())


@contextmanager
def _networks(access: Access) -> Iterator["SimpleQueue[Access]"]:
    """What each core works with, as many as torch has threads; meanwhile torch has one. On a GPU: the access itself."""
    free: SimpleQueue[Access] = SimpleQueue()
    free.put(access)
    threads = torch.get_num_threads()
    if next(access.adapted.parameters()).device.type != "cpu":
        yield free
        return
    for _ in range(threads - 1):
        free.put(deepcopy(access))
    torch.set_num_threads(1)
    try:
        yield free
    finally:
        torch.set_num_threads(threads)


def _by_patient(images: Sequence[Image], scores: Sequence[float]) -> Scores:
    """Mean score of each patient's images, float64 [patients]."""
    starts = [number for number, image in enumerate(images) if image.place == 0]
    return np.array([float(part.mean()) for part in np.split(np.array(scores), starts[1:])])
