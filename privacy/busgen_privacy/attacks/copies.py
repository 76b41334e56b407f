"""Near copies: released images that are nearer to a real one than images of different patients ever are. By pixels, 1 - correlation."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from busgen_core.errors import InputError
from busgen_privacy.attacks.base import MemberScores, by_patient, same_size
from busgen_privacy.cohort import Cohort, normalised

MOST_REAL = 3000  # real images from which the copy threshold is calibrated
CLOSEST_SHARE, MARGIN, SMALLEST = 1e-3, 0.5, 0.02  # see copy_threshold
BLOCK = 512  # released images compared at once


@dataclass(frozen=True, slots=True)
class NearCopies:
    """Distances (1 - correlation) of released images to real ones.

    Attributes:
        threshold: Below it an image counts as a copy.
        member_distance: Distance of each released image to the nearest member image, float32 [released].
        member_row: That image's row in the members' cohort, int [released].
        holdout_distance: Distance to the nearest holdout image, float32 [released].
        scores: For each patient, minus the distance of its nearest released image (GAN-Leaks: Chen et al. 2020,
            arXiv:1909.03935, full black-box).
    """

    threshold: float
    member_distance: NDArray[np.float32]
    member_row: NDArray[np.int64]
    holdout_distance: NDArray[np.float32]
    scores: MemberScores

    @property
    def count(self) -> int:
        """Released images that are near copies of a member's image."""
        return int((self.member_distance < self.threshold).sum())

    @property
    def holdout_count(self) -> int:
        """The same against holdout patients: what chance gives, since none of them was learned from."""
        return int((self.holdout_distance < self.threshold).sum())


def near_copies(released: NDArray[np.uint8], members: Cohort, holdout: Cohort) -> NearCopies:
    """Compare every released image with every real one.

    Args:
        released: uint8 [m, px, px].
        members: Cohort of the adaptation, same px.
        holdout: Patients it never saw.

    Raises:
        InputError: nothing released, another size than the cohorts', or fewer than two patients.

    Diagnostic: few near copies do not prove privacy ("the DCR delusion", Yao et al. 2025, arXiv:2505.01524); one proves a leak.
    """
    same_size(released, members.images, holdout.images)
    generated, known, unseen = normalised(released), normalised(members.images), normalised(holdout.images)
    member_distance, member_row, to_members = _nearest(generated, known)
    holdout_distance, _, to_holdout = _nearest(generated, unseen)
    return NearCopies(
        threshold=copy_threshold(members, holdout),
        member_distance=member_distance,
        member_row=member_row,
        holdout_distance=holdout_distance,
        scores=MemberScores(members=by_patient(members, -to_members, combine="max"), holdout=by_patient(holdout, -to_holdout, combine="max")),
    )


def copy_threshold(members: Cohort, holdout: Cohort) -> float:
    """Half the distance that the closest 0.1 % of image pairs of different real patients have, at least 0.02.

    On three hospitals (BUSI, BUS-BRA, BrEaST) that is .07 to .15: a real image blurred or noised again lies below it (median .02
    to .07), while the closest images of different patients lie at .19 and above wherever patients are known.
    """
    images = np.concatenate([members.images, holdout.images])
    patients = np.unique(np.array(members.patients + holdout.patients), return_inverse=True)[1]
    rows = np.linspace(0, len(images) - 1, min(len(images), MOST_REAL)).astype(int)
    flat, patients = normalised(images[rows]), patients[rows]
    different = np.triu(patients[:, None] != patients[None, :])
    if not different.any():
        raise InputError("near copies need the images of at least two patients")
    closest = float(np.quantile((1 - flat @ flat.T)[different], CLOSEST_SHARE))
    return max(MARGIN * closest, SMALLEST)


def _nearest(generated: NDArray[np.float32], real: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """Distance and row of the nearest real image for each generated one, and distance of the nearest generated one for each real."""
    distances, rows = [], []
    back = np.full(len(real), 2, np.float32)
    for start in range(0, len(generated), BLOCK):
        block = 1 - generated[start : start + BLOCK] @ real.T
        distances.append(block.min(1))
        rows.append(block.argmin(1))
        back = np.minimum(back, block.min(0))
    return np.concatenate(distances), np.concatenate(rows), back
