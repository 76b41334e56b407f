"""Near-duplicates within a patient: groups, and how they count."""

import numpy as np
import pytest
from numpy.typing import NDArray

from busgen_core.labels import Pathology
from busgen_privacy.cohort import Cohort
from busgen_privacy.dp.dpsgd import drawn


def frame(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 200, (64, 64)).astype(np.uint8)


def cohort(*frames: NDArray[np.uint8]) -> Cohort:
    count = len(frames)
    return Cohort(images=np.stack(frames), classes=(Pathology.BENIGN,) * count, boxes=(None,) * count, patients=("p",) * count)


def noised(image: NDArray[np.uint8], loud: float) -> NDArray[np.uint8]:
    return np.clip(image + np.random.default_rng(0).normal(0, loud, image.shape), 0, 255).astype(np.uint8)


ALIKE = {"the same": lambda image: image, "brighter": lambda image: image + 30, "noised": lambda image: noised(image, 10.0)}


@pytest.mark.parametrize("change", ALIKE.values(), ids=ALIKE)
def test_an_image_taken_twice_is_one_view(change) -> None:  # type: ignore[no-untyped-def]
    """The same image again, brighter or with some noise, joins the first; another image does not."""
    assert cohort(frame(1), frame(2), change(frame(1))).views([0, 1, 2]) == [[0, 2], [1]]


def test_frames_of_a_sweep_are_one_view() -> None:
    """Neighbours that are alike join a whole sweep, though its ends are not alike."""
    start, end = frame(1).astype(float), frame(2).astype(float)
    steps = [((1 - t) * start + t * end).astype(np.uint8) for t in np.linspace(0, 1, 12)]
    people = cohort(*steps, frame(3))
    assert people.views([0, 11]) == [[0], [11]]
    assert people.views(range(13)) == [list(range(12)), [12]]


def test_copies_take_no_more_than_one_place() -> None:
    """Of twenty copies and three other views at most four rows are drawn, one of them a copy, and over steps each copy has its turn."""
    people = cohort(*[frame(1)] * 20, frame(2), frame(3), frame(4))
    draws = [drawn(people, list(range(23)), np.random.default_rng(step), most=4) for step in range(200)]
    assert all(len(rows) == 4 and set(rows) >= {20, 21, 22} for rows in draws)
    assert {rows[0] for rows in draws} == set(range(20))


def test_without_copies_rows_are_drawn_as_before() -> None:
    """Up to the limit all rows are taken, in order; beyond it, that many different ones."""
    people = cohort(*map(frame, range(6)))
    assert drawn(people, [0, 2, 5], np.random.default_rng(0), most=4) == [0, 2, 5]
    rows = drawn(people, list(range(6)), np.random.default_rng(0), most=4)
    assert rows == sorted(np.random.default_rng(0).choice(6, size=4, replace=False).tolist())
