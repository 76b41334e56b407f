"""Extraction: released images that are a real one after all, cropped, mirrored or in another gray map.

1. Candidates: for each released image, plain and mirrored, the KEPT real ones with the most similar small views (``registration.coarse``).
2. Check: the best view of each candidate is found on full images, and the distance taken there: 1 - correlation of detail.
3. Threshold: half the distance that the closest 0.1 % of pairs of different real patients have *after the very same search*, so
   that the freedom of registration is paid for; beside the count stands the count against holdout patients, what chance gives.

The candidates do not come from the shipped encoder: it is made to see gain, contrast and sharpness, which a copy may have changed.
Of 124 planted copies (crop, mirror, gray map) of 31 images it named the right one first in 76 % (in 82 % where all images were equalised
before), the small views in 93 %, and among the first three always.

Source of the question: Carlini et al. 2023, arXiv:2301.13188, section 4 (near copies among many samples, distances compared with those
between training images); of the freedom allowed: Dar et al. 2024, arXiv:2402.01054 (medical copies up to flip, rotation and contrast).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from busgen_core.errors import InputError
from busgen_privacy.attacks.base import MemberScores, by_patient, same_size
from busgen_privacy.attacks.registration import Floats, Frames, Prepared, Rows, coarse, register
from busgen_privacy.cohort import Cohort

KEPT = 2  # candidates of each released image on each side
BLOCK = 1000  # released images at once
QUERIES = 300  # real images whose nearest other patients calibrate the threshold
CLOSEST_SHARE, MARGIN, SMALLEST = 1e-3, 0.5, 0.05  # see registered_threshold
FAR = 2.0  # distance of what was not compared; none is larger


@dataclass(frozen=True, slots=True)
class Nearest:
    """For each released image the nearest real one of a side, after registration.

    Attributes:
        distance: 1 - correlation of detail, float32 [m], to 4 digits.
        row: Its row in the cohort, int [m].
        mirrored: Whether the released image shows that part of it mirrored, bool [m].
        view: The part of the real image that is shown, float32 [m, 4]: x0, y0, x1, y1 in sides.
        gray: Mean difference in gray levels, 0 to 255, from that part, float32 [m]: large where a copy is in another gray map.
    """

    distance: Floats
    row: Rows
    mirrored: NDArray[np.bool_]
    view: Floats
    gray: Floats


@dataclass(frozen=True, slots=True)
class Extraction:
    """What was found among the released images.

    Attributes:
        threshold: Below it a released image counts as a copy.
        members: Nearest member image of each released image.
        holdout: Nearest holdout image of each.
        scores: For each patient, minus the distance of its nearest released image after registration; depends on that patient alone.
    """

    threshold: float
    members: Nearest
    holdout: Nearest
    scores: MemberScores

    @property
    def count(self) -> int:
        """Released images that are copies of a member's image."""
        return int((self.members.distance < self.threshold).sum())

    @property
    def holdout_count(self) -> int:
        """The same against holdout patients, whom nobody learnt from."""
        return int((self.holdout.distance < self.threshold).sum())


def extract(
    released: Frames, members: Cohort, holdout: Cohort, *, more: Frames | None = None, progress: Callable[[int, int], None] | None = None
) -> Extraction:
    """Look for copies among any number of generated images; ten times the release is usual.

    Args:
        released: uint8 [m, px, px]; above 64 px they are reduced to 64.
        members: Cohort of the adaptation, same px.
        holdout: Patients it never saw, same px.
        more: Further images of the generator, same px: their rows follow the released ones. They count as copies and in no score: who holds
            the release does not have them, and images that were not chosen would cover what the choice says of members.
        progress: Called with (images done, images).

    Raises:
        InputError: nothing released, another size than the cohorts', or fewer than two patients.

    Diagnostic where it finds nothing: copies outside the search (turned, or less than 72 % of a side) are missed. One copy proves a leak.
    """
    more = released[:0] if more is None else more
    same_size(released, members.images, holdout.images, *([more] if len(more) else []))
    sides = [Prepared.of(members.images), Prepared.of(holdout.images)]
    threshold = registered_threshold(members, holdout)
    found: tuple[list[Nearest], list[Nearest]] = ([], [])
    back = [np.full(len(side), FAR, np.float32) for side in sides]
    blocks = [(images[start : start + BLOCK], images is released) for images in (released, more) for start in range(0, len(images), BLOCK)]
    done = 0
    for images, scored in blocks:
        plain = Prepared.of(images)
        for number, side in enumerate(sides):
            nearest, to_real = compare(plain, side)
            found[number].append(nearest)
            if scored:
                back[number] = np.minimum(back[number], to_real)
        done += len(plain)
        if progress is not None:
            progress(done, len(released) + len(more))
    scores = [by_patient(cohort, -each, combine="max") for cohort, each in zip((members, holdout), back, strict=True)]
    return Extraction(threshold, _joined(found[0]), _joined(found[1]), MemberScores(members=scores[0], holdout=scores[1]))


def registered_threshold(members: Cohort, holdout: Cohort) -> float:
    """Half the distance that the closest 0.1 % of pairs of different real patients have after registration, at least 0.05.

    At most 300 real images are registered with their 2 most similar ones of other patients; all others count as farther. On 31 images of 20
    patients (BUS-BRA, BUSI, BrEaST) the closest pair of different patients lies at .60; planted copies at 0 (verbatim), up to .11 (crop, mirror,
    gray map), up to .15 (blurred by a pixel) and up to .44 (noise of 10 grays): a noisy copy can be missed.

    Raises:
        InputError: fewer than two patients.
    """
    images = np.concatenate([members.images, holdout.images])
    patients = np.unique(np.array(members.patients + holdout.patients), return_inverse=True)[1]
    queries = np.linspace(0, len(images) - 1, min(len(images), QUERIES)).astype(int)
    different = patients[queries][:, None] != patients[None, :]
    if not different.any():
        raise InputError("near copies need the images of at least two patients")
    found = np.sort(_candidates_apart(Prepared.of(images[queries]), Prepared.of(images), different))
    closest = found[min(int(CLOSEST_SHARE * different.sum()), len(found) - 1)]
    return float(max(MARGIN * closest, SMALLEST))


def compare(released: Prepared, real: Prepared) -> tuple[Nearest, Floats]:
    """Nearest real image for each released one, and for each real one the distance of the released image that looks most like it.

    The second, float32 [real], uses no candidate that depends on other real images.
    """
    both, best, where = _searched(released, real)
    forward = _top(np.maximum(best[: len(released)], best[len(released) :]), KEPT)
    shown, known = np.repeat(np.arange(len(released)), forward.shape[1]), forward.ravel()
    shown = np.where(best[shown + len(released), known] > best[shown, known], shown + len(released), shown)
    column = np.arange(len(real))
    pairs = np.concatenate([shown, best.argmax(0)]), np.concatenate([known, column])
    result = register(both, real, pairs, where[pairs].astype(np.int64))
    distance = np.round(result.distance, 4)
    ahead = len(shown)
    pick = distance[:ahead].reshape(forward.shape).argmin(1) + np.arange(len(released)) * forward.shape[1]
    mirrored = shown[pick] >= len(released)
    return Nearest(distance[pick], known[pick], mirrored, result.view[pick], result.gray[pick]), distance[ahead:]


def _searched(released: Prepared, real: Prepared) -> tuple[Prepared, Floats, NDArray[np.uint8]]:
    """Released images followed by their mirror images, and the coarse search of both."""
    mirror = released.mirrored()
    both = Prepared(np.concatenate([released.frames, mirror.frames]), np.concatenate([released.details, mirror.details]))
    return both, *coarse(both.details, real.details)


def _candidates_apart(queries: Prepared, real: Prepared, different: NDArray[np.bool_]) -> Floats:
    """Registered distances of each query to its KEPT most similar images of other patients, float32 [pairs]."""
    both, best, where = _searched(queries, real)
    best = np.where(np.concatenate([different, different]), best, -FAR)
    forward = _top(np.maximum(best[: len(queries)], best[len(queries) :]), KEPT)
    shown, known = np.repeat(np.arange(len(queries)), forward.shape[1]), forward.ravel()
    shown, known = shown[keep := different[shown, known]], known[keep]
    shown = np.where(best[shown + len(queries), known] > best[shown, known], shown + len(queries), shown)
    return register(both, real, (shown, known), where[shown, known].astype(np.int64)).distance


def _top(values: Floats, count: int) -> Rows:
    """Columns of the largest values of each row, int [rows, at most count]."""
    count = min(count, values.shape[1])
    return np.asarray(np.argpartition(-values, count - 1, axis=1)[:, :count])


def _joined(parts: list[Nearest]) -> Nearest:
    return Nearest(
        distance=np.concatenate([part.distance for part in parts]),
        row=np.concatenate([part.row for part in parts]),
        mirrored=np.concatenate([part.mirrored for part in parts]),
        view=np.concatenate([part.view for part in parts]),
        gray=np.concatenate([part.gray for part in parts]),
    )
