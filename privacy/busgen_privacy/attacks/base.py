"""What attacks share: scores by patient, what an attacker holds, and how an attack is described. Higher scores mean "was a member".

Given the network and the released images, a patient's score depends on that patient's rows and key alone, never on who else
is attacked: the sensitivity of the figures that travel rests on that.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from busgen_core.errors import InputError
from busgen_privacy.cohort import Cohort

if TYPE_CHECKING:  # attacks on images alone need neither torch nor diffusers
    from diffusers import EDMDPMSolverMultistepScheduler

    from busgen_core.generator import Generator

Scores = NDArray[np.float64]
Features = NDArray[np.float32]
Frames = NDArray[np.uint8]
MOST_IMAGES = 8  # images of a patient that are attacked
AT_ONCE = 8  # images of a batch; twice as many are a tenth faster


@dataclass(frozen=True, slots=True)
class MemberScores:
    """Scores of an attack, float [patients], patients in the order of their keys."""

    members: Scores
    holdout: Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """What a white-box attacker holds.

    Attributes:
        adapted: The network that was adapted to the members.
        reference: The foundation's network: how hard an image is without adaptation (Watson et al. 2022, arXiv:2111.08440).
        scheduler: Their schedule.
    """

    adapted: "Generator"
    reference: "Generator"
    scheduler: "EDMDPMSolverMultistepScheduler"


@dataclass(frozen=True, slots=True)
class Draws:
    """What is drawn at random for some images.

    Attributes:
        places: Where in [0, 1] the noise levels lie, one in each of ``count`` equal parts; float64 [images, count].
        noise: Standard normal, float32 [images, count, fold^2, side, side].
    """

    places: NDArray[np.float64]
    noise: NDArray[np.float32]

    @classmethod
    def of(cls, network: "Generator", images: int, count: int, rng: np.random.Generator) -> "Draws":
        """``count`` draws of each image of one patient; the network's shape is used."""
        places = (np.tile(np.arange(count), images) + rng.random(images * count)) / count
        noise = rng.standard_normal((images, count, network.fold**2, network.side, network.side), dtype=np.float32)
        return cls(places.reshape(images, count), noise)

    @property
    def count(self) -> int:
        """Draws of an image."""
        return int(self.places.shape[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class WhiteBoxAttack:
    """An attack on the adapted network.

    Attributes:
        name: Short stable name.
        what: One sentence for people, a question that a high score answers with yes.
        source: Paper and equation.
        score: (access, cohort, rows, their draws) to float64 [rows]; a row's score depends on that row and its draws alone.
        passes: Draws to network passes an image; a forward is 1, a backward 2.
        at_once: Images of a batch; 1 where a larger one is no faster.
    """

    name: str
    what: str
    source: str
    score: Callable[[Access, Cohort, list[int], Draws], Scores]
    passes: Callable[[int], float]
    at_once: int = AT_ONCE

    def run(self, access: Access, members: Cohort, holdout: Cohort, *, draws: int, seed: int, progress: Callable[[int, int], None]) -> MemberScores:
        """Attack every patient, at most 8 images each; a patient's score is the mean of its images'. See ``batches.attack_all``."""
        from busgen_privacy.attacks.batches import attack_all

        return attack_all(self, access, members, holdout, draws=draws, seed=seed, progress=progress)


@dataclass(frozen=True, kw_only=True, slots=True)
class BlackBoxAttack:
    """An attack on the released images, in one embedding of all images.

    Attributes:
        name: Short stable name.
        what: One sentence for people, a question that a high score answers with yes.
        source: Paper and equation.
        score: (released [m, d], reference [r, d], attacked [n, d]) to float64 [n]; the reference is public images.
        pairs: (released, reference, attacked) images to distances that one run on both sides computes.
        combine: A patient's score from its images': the largest, or their mean.
        diagnostic: True where a low figure says nothing; such an attack is shown and never decides.
    """

    name: str
    what: str
    source: str
    score: Callable[[Features, Features, Features], Scores]
    pairs: Callable[[int, int, int], int]
    combine: Literal["max", "mean"] = "max"
    diagnostic: bool = False

    def run(self, released: Features, reference: Features, members: tuple[Cohort, Features], holdout: tuple[Cohort, Features]) -> MemberScores:
        """Attack every patient of both sides; features are float32 [images, d], row for row those of the cohort."""
        sides = [by_patient(cohort, self.score(released, reference, features), combine=self.combine) for cohort, features in (members, holdout)]
        return MemberScores(members=sides[0], holdout=sides[1])


def same_size(*sets: Frames) -> None:
    """Refuse sets of images that cannot be compared.

    Raises:
        InputError: a set is empty, or its images are not of the first one's size.
    """
    if any(not len(each) or each.shape[1:] != sets[0].shape[1:] for each in sets):
        raise InputError("images that are compared must be there and of one size")


def every_pair(released: int, reference: int, attacked: int) -> int:
    """Distances from each attacked image to every released and every reference one: ``pairs`` of most attacks."""
    return attacked * (released + reference)


def by_patient(cohort: Cohort, scores: NDArray[np.floating], *, combine: Literal["max", "mean"]) -> Scores:
    """Scores of images [n] to scores of patients, in the order of their keys."""
    one = np.max if combine == "max" else np.mean
    return np.array([float(one(scores[rows])) for rows in cohort.patient_rows().values()])


def randomness(seed: int, patient: str) -> np.random.Generator:
    """Random numbers of one patient's attack: they follow from seed and key, so nobody else changes them. Not secret."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}/{patient}".encode()).digest()[:16], "big"))
