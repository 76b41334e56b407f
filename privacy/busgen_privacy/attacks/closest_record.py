"""Distance to the closest record, members against holdout. Diagnostic: a good figure does not show privacy.

DCR(g)  = min_x d(g, x)                          over the real patients of one side
NNDR(g) = min_x d(g, x) / second smallest d(g, x)  the second of another patient

of each released image g; reported is the 5th percentile over g. Sides have equally many patients, drawn anew DRAWS times, since
more patients are nearer by chance. As an attack: score(x) = -min_i d(x, g_i), GAN-Leaks without calibration.

Sets that pass such tests can still be attacked: "the DCR delusion", Yao et al. 2025, arXiv:2505.01524. Source of DCR:
Platzer & Reutterer 2021, doi:10.3389/fdata.2021.679939; of the ratio: Lowe 2004, doi:10.1023/B:VISI.0000029664.99615.94, section 7.1.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from busgen_core.errors import InputError
from busgen_privacy.attacks.base import BlackBoxAttack, Features, Scores
from busgen_privacy.attacks.neighbours import checked, fitting, nearest, to_patients
from busgen_privacy.cohort import Cohort

PERCENTILE = 5
DRAWS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ClosestRecord:
    """5th percentiles over the released images; diagnostic.

    Attributes:
        member_distance: Of the distance to the nearest member, in units of the features.
        holdout_distance: The same to holdout patients.
        member_ratio: Of the nearest-neighbour distance ratio among members, 0 to 1; 0: a copy, 1: no member stands out.
        holdout_ratio: The same among holdout patients.
        patients: Patients on each side.
    """

    member_distance: float
    holdout_distance: float
    member_ratio: float
    holdout_ratio: float
    patients: int


def closest_record(released: Features, members: tuple[Cohort, Features], holdout: tuple[Cohort, Features], *, seed: int) -> ClosestRecord:
    """Measure both sides; features are float32 [images, d], row for row those of the cohort.

    Raises:
        InputError: features that cannot be compared or do not fit, or fewer than two patients on a side.
    """
    checked(released, members[1], holdout[1])
    fitting(*members)
    fitting(*holdout)
    near = [to_patients(released, *side) for side in (members, holdout)]
    patients = min(each.shape[1] for each in near)
    if patients < 2:
        raise InputError("the distance ratio needs two patients on each side")
    rng = np.random.default_rng(seed)
    member, outside = (_percentiles(each, patients, rng) for each in near)
    return ClosestRecord(member_distance=member[0], holdout_distance=outside[0], member_ratio=member[1], holdout_ratio=outside[1], patients=patients)


def _percentiles(near: NDArray[np.float32], patients: int, rng: np.random.Generator) -> tuple[float, float]:
    """Mean over draws of the percentiles of distance and ratio; one draw is enough where all patients enter."""
    found = []
    for _ in range(DRAWS if patients < near.shape[1] else 1):
        first, second = np.partition(near[:, rng.permutation(near.shape[1])[:patients]], 1, axis=1)[:, :2].T
        ratio = np.divide(first, second, out=np.ones_like(first), where=second > 0)
        found.append((np.percentile(first, PERCENTILE), np.percentile(ratio, PERCENTILE)))
    distance, ratio = np.mean(found, axis=0)
    return float(distance), float(ratio)


def score(released: Features, reference: Features, attacked: Features) -> Scores:
    """Minus the distance to the nearest released image, float64 [n]; the reference is not used.

    Raises:
        InputError: features that cannot be compared.
    """
    checked(released, reference, attacked)
    return -nearest(attacked, released)


ATTACK = BlackBoxAttack(
    name="closest-record",
    what="Are released images closer to members than to patients never seen? Diagnostic: sets that pass can still be attacked.",
    source="Platzer & Reutterer 2021, doi:10.3389/fdata.2021.679939; Yao et al. 2025, arXiv:2505.01524",
    score=score,
    pairs=lambda released, _reference, attacked: attacked * released,
    diagnostic=True,
)
