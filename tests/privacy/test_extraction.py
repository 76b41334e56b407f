"""Extraction: copies are found whatever crop, mirror or gray map they went through, and strangers are left alone."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import rankdata

from busgen_core.corpus import read_table
from busgen_core.errors import InputError
from busgen_core.images import decode_gray
from busgen_core.styles import Style, restyle
from busgen_privacy.attacks import extraction, registration
from busgen_privacy.attacks.extraction import compare, extract, registered_threshold
from busgen_privacy.attacks.registration import Prepared, detail, equalised, register, resampling
from busgen_privacy.cohort import Cohort
from tests.privacy.small import cohort
from tests.shared import shared_data

Frames = NDArray[np.uint8]
Change = Callable[[Frames, np.random.Generator], Frames]


@lru_cache(maxsize=1)
def sides() -> tuple[Cohort, Cohort]:
    """Twelve members and ten holdout patients at 64 px, some with two images."""
    return cohort([1, 2] * 6, size=64, prefix="m"), cohort([1, 1, 2, 1, 1] * 2, size=64, seed=400, prefix="h")


@lru_cache(maxsize=1)
def strangers() -> Frames:
    """Frames of nobody."""
    return cohort([1] * 15, size=64, seed=8000).images


def cropped(image: Frames, box: tuple[float, float, float, float]) -> Frames:
    """A part x0, y0, x1, y1 of an image, stretched to its full size."""
    px = len(image)
    cut = tuple(px * side for side in box)
    return np.asarray(Image.fromarray(image).resize((px, px), Image.Resampling.BICUBIC, box=cut))


def random_box(rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Sides of .8 to 1, as the views that adaptation shows."""
    width, height = rng.uniform(0.8, 1, 2)
    x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    return x, y, x + width, y + height


def everything(image: Frames, rng: np.random.Generator) -> Frames:
    """Cropped, mirrored, and in another gray map."""
    return restyle(cropped(image, random_box(rng))[:, ::-1], Style(gamma=rng.uniform(0.65, 1.5), gain=rng.uniform(0.8, 1.3)))


CHANGES: dict[str, Change] = {
    "verbatim": lambda image, rng: image,
    "mirror": lambda image, rng: image[:, ::-1],
    "gray map": lambda image, rng: restyle(image, Style(gamma=rng.uniform(0.65, 1.5), gain=0.9)),
    "crop": lambda image, rng: cropped(image, random_box(rng)),
    "crop, mirror and gray map": everything,
    "speckled": lambda image, rng: np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_planted_copies_are_found(change: Change) -> None:
    """Of copies of members under each change at least 90 % are found, with their patient; none counts as a holdout patient's."""
    rng = np.random.default_rng(0)
    members, holdout = sides()
    found = extract(np.stack([change(image, rng) for image in members.images]), members, holdout)
    assert found.count >= 0.9 * len(members)
    assert found.holdout_count == 0
    right = [members.patients[row] == key for row, key in zip(found.members.row, members.patients, strict=True)]
    assert np.mean(right) >= 0.9


def test_copies_of_holdout_patients_count_there() -> None:
    """A changed holdout image is found as a holdout patient's and as no member's."""
    rng = np.random.default_rng(1)
    members, holdout = sides()
    found = extract(np.stack([everything(image, rng) for image in holdout.images]), members, holdout)
    assert found.holdout_count >= 0.9 * len(holdout)
    assert found.count == 0


def test_strangers_are_no_copies() -> None:
    """Frames of nobody count neither as members' nor as holdout patients'."""
    found = extract(strangers(), *sides())
    assert (found.count, found.holdout_count) == (0, 0)


def test_copies_of_real_images_are_found() -> None:
    """On twenty patients of a hospital: all verbatim and nine in ten changed copies of ten of them are found, and nobody else."""
    folder = shared_data() / "warsaw"
    frames = np.stack([decode_gray((folder / row["file"]).read_bytes()) for row in read_table(folder)[:20]])
    plain, _ = sides()
    ten = {"classes": plain.classes[:10], "boxes": plain.boxes[:10]}
    members, holdout = (Cohort(frames[i : i + 10], patients=tuple(f"p{i + j}" for j in range(10)), **ten) for i in (0, 10))
    rng = np.random.default_rng(2)
    assert extract(members.images, members, holdout).count == 10
    changed = extract(np.stack([everything(image, rng) for image in members.images for _ in range(3)]), members, holdout)
    assert changed.count >= 27
    assert changed.holdout_count == 0


def test_images_that_were_not_released_count_as_copies_and_score_nobody() -> None:
    """Copies among further images are found, in rows that follow the released ones; scores are of the release, whatever else was drawn."""
    members, holdout = sides()
    whole, steps = extract(strangers(), members, holdout), []
    found = extract(strangers(), members, holdout, more=members.images[:4], progress=lambda done, total: steps.append((done, total)))
    assert (found.count, whole.count) == (4, 0)
    assert found.members.row[len(strangers()) :].tolist() == [0, 1, 2, 3]
    assert np.array_equal(found.members.distance[: len(strangers())], whole.members.distance)
    assert np.array_equal(found.scores.members, whole.scores.members)
    assert np.array_equal(found.scores.holdout, whole.scores.holdout)
    assert steps == [(15, 19), (19, 19)]
    with pytest.raises(InputError):
        extract(strangers(), members, holdout, more=members.images[:, :32, :32])


def test_the_transform_is_told() -> None:
    """What was cropped and mirrored is named: the row, the mirror, and the part within 4 % of a side."""
    rng = np.random.default_rng(3)
    members, holdout = sides()
    boxes = [random_box(rng) for _ in members.images]
    copies = [cropped(image, box) for image, box in zip(members.images, boxes, strict=True)]
    mirrored = np.arange(len(copies)) % 2 == 0
    nearest = extract(np.stack([c[:, ::-1] if m else c for c, m in zip(copies, mirrored, strict=True)]), members, holdout).members
    assert np.array_equal(nearest.row, np.arange(len(copies)))
    assert np.array_equal(nearest.mirrored, mirrored)
    assert np.abs(nearest.view - boxes).max(1) == pytest.approx(0, abs=0.04)


def test_another_gray_map_is_told() -> None:
    """Copies at half the gray differ from their source by half its mean gray, plain ones by nothing; both are at distance 0."""
    members, holdout = sides()
    halved, plain = (extract(copies, members, holdout).members for copies in (members.images // 2, members.images))
    assert halved.gray == pytest.approx(members.images.mean(axis=(1, 2)) / 2, abs=1)
    assert not plain.gray.any()
    assert max(halved.distance.max(), plain.distance.max()) < 0.01


def test_a_patients_score_depends_on_that_patient_alone() -> None:
    """Without half of the members and half of the holdout the scores of the others stay; a copied patient's is the highest."""
    members, holdout = sides()
    released = np.concatenate([strangers(), everything(members.images[4], np.random.default_rng(4))[None]])

    def half(people: Cohort) -> Cohort:
        rows = [i for i, key in enumerate(people.patients) if int(key[1:]) % 2 == 0]
        columns = ([column[i] for i in rows] for column in (people.classes, people.boxes, people.patients))
        return Cohort(people.images[rows], *(tuple(column) for column in columns))

    whole, fewer = extract(released, members, holdout).scores, extract(released, half(members), half(holdout)).scores
    assert np.array_equal(whole.members[::2], fewer.members)
    assert np.array_equal(whole.holdout[::2], fewer.holdout)
    assert list(members.patient_rows())[int(whole.members.argmax())] == members.patients[4]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of four released images the same is found as in one, and progress counts to the end."""
    whole, steps = extract(strangers(), *sides()), []
    monkeypatch.setattr(extraction, "BLOCK", 4)
    parts = extract(strangers(), *sides(), progress=lambda done, total: steps.append((done, total)))
    assert np.array_equal(whole.members.distance, parts.members.distance)
    assert np.array_equal(whole.holdout.row, parts.holdout.row)
    assert steps == [(4, 15), (8, 15), (12, 15), (15, 15)]


def test_the_threshold_pays_for_registration() -> None:
    """It is half the closest distance of different patients after the same search, slowly: every pair, both ways, mirrored or not."""
    members, holdout = sides()
    images, patients = np.concatenate([members.images, holdout.images]), members.patients + holdout.patients
    real = Prepared.of(images)
    slow = []
    for shown in (real, real.mirrored()):
        _, where = registration.coarse(shown.details, real.details)
        pairs = [(i, j) for i in range(len(images)) for j in range(len(images)) if patients[i] != patients[j]]
        one, other = np.array(pairs).T
        slow += register(shown, real, (one, other), where[one, other].astype(np.int64)).distance.tolist()
    unregistered = [1 - float((real.details[i] * real.details[j]).sum()) for i, j in pairs]
    threshold = registered_threshold(members, holdout)
    assert 0.5 * min(slow) - 1e-6 <= threshold <= 0.5 * min(unregistered)
    assert threshold == pytest.approx(0.5 * min(slow), rel=0.1)  # a pair that is no candidate may be a little closer


def test_identical_real_images_do_not_switch_the_check_off() -> None:
    """Where all patients share one image, the threshold keeps a floor: an exact copy still counts."""
    members, holdout = sides()
    same = replace(members, images=np.stack([members.images[0]] * len(members)))
    also = replace(holdout, images=np.stack([members.images[0]] * len(holdout)))
    found = extract(members.images[:1], same, also)
    assert found.threshold == extraction.SMALLEST
    assert found.count == 1


def test_ranks_are_mid_ranks() -> None:
    """Slow twin: scipy's average ranks, scaled to [-1/2, 1/2]."""
    image = sides()[0].images[:1]
    slow = (rankdata(image.ravel()) - 0.5) / image.size - 0.5
    assert equalised(image).ravel() == pytest.approx(slow, abs=1e-6)


def test_no_increasing_gray_map_changes_the_detail() -> None:
    """A gray map that keeps all grays apart leaves distance 0."""
    image = sides()[0].images[:1] // 2
    table = np.cumsum(np.random.default_rng(5).choice([1, 2], 128)).astype(np.uint8)
    assert np.array_equal(detail(equalised(image)), detail(equalised(table[image])))


def test_detail_is_that_of_the_slow_twin() -> None:
    """Every pixel minus the Gaussian mean around it, weights cut at the edges, then length 1."""
    values = equalised(sides()[0].images[:1, 8:24, 8:24])
    side, width = 16, 16 * registration.BLUR
    slow = np.zeros((side, side))
    for r, c in np.ndindex(side, side):
        weight = np.array([[np.exp(-((r - i) ** 2 + (c - j) ** 2) / (2 * width**2)) for j in range(side)] for i in range(side)])
        slow[r, c] = values[0, r, c] - (weight * values[0]).sum() / weight.sum()
    assert detail(values)[0] == pytest.approx(slow / np.sqrt((slow**2).sum()), abs=1e-5)


def test_a_view_is_a_triangle_filter() -> None:
    """Slow twin: each new pixel is the mean of the old ones, weighted by how near they lie to its centre; a doubled line is a known answer."""
    for start, share, out, side in ((0.1, 0.8, 16, 64), (0.25, 0.75, 64, 64), (0, 1, 64, 160)):
        matrix = resampling(start, share, out=out, side=side)
        width = max(1, share * side / out)
        for i in range(out):
            centre = (start + share * (i + 0.5) / out) * side
            weights = [max(0.0, 1 - abs(centre - (j + 0.5)) / width) for j in range(side)]
            assert matrix[i] == pytest.approx(np.array(weights) / sum(weights), abs=1e-5)
    assert (resampling(0, 0.5, out=4, side=4) @ [0, 4, 8, 8]).tolist() == [0, 1, 3, 5]


def test_the_coarse_search_is_its_slow_twin() -> None:
    """Every view of every real image made and compared one by one: the best cosine and its view."""
    released, real = Prepared.of(strangers()[:2]).details, Prepared.of(sides()[0].images[:2]).details
    best, where = registration.coarse(released, real)
    spans, whole = registration._spans_coarse(), resampling(0, 1, out=registration.THUMB, side=64)
    for i, j in np.ndindex(2, 2):
        small, cosines = whole @ released[i] @ whole.T, []
        for down in spans:
            for across in spans:
                rows, columns = (resampling(*span, out=registration.THUMB, side=64) for span in (down, across))
                view = rows @ real[j] @ columns.T
                cosines.append((small * view).sum() / np.sqrt((small**2).sum() * (view**2).sum()))
        assert best[i, j] == pytest.approx(max(cosines), abs=1e-4)
        assert cosines[where[i, j]] == pytest.approx(max(cosines), abs=1e-4)


def test_the_best_place_along_an_axis_is_the_best_of_all() -> None:
    """Slow twin: every place and length tried by making the view; the two matrix products name one of the same cosine."""
    wanted, image = Prepared.of(strangers()[:3]).details, Prepared.of(sides()[0].images[:3]).details
    axis = registration._fine(64)
    chosen = registration._best(wanted, image, axis)
    for pair in range(3):
        views = [matrix @ image[pair] for matrix in axis.matrices]
        cosines = [(wanted[pair] * view).sum() / np.sqrt((view**2).sum()) for view in views]
        assert cosines[chosen[pair]] == pytest.approx(max(cosines), abs=1e-4)


def test_the_distance_is_that_of_the_view_that_is_told() -> None:
    """Slow twin: the view cut out again by hand has the distance that was returned."""
    released, real = Prepared.of(strangers()[:4]), Prepared.of(sides()[0].images)
    nearest, _ = compare(released, real)
    for i in range(4):
        x0, y0, x1, y1 = nearest.view[i].tolist()
        rows, columns = resampling(y0, y1 - y0, out=64, side=64), resampling(x0, x1 - x0, out=64, side=64)
        view = np.rint(rows @ real.frames[nearest.row[i]].astype(np.float32) @ columns.T).astype(np.uint8)
        shown = released.mirrored() if nearest.mirrored[i] else released
        cosine = float((shown.details[i] * detail(equalised(view[None]))[0]).sum())
        assert nearest.distance[i] == pytest.approx(1 - cosine, abs=0.01)


@pytest.mark.parametrize("px", [32, 96])
def test_other_sizes_are_compared_too(px: int) -> None:
    """Frames of 32 px stay as they are, larger ones are reduced to 64: copies are found either way."""
    members, holdout = cohort([1] * 6, size=px), cohort([1] * 6, size=px, seed=400, prefix="h")
    rng = np.random.default_rng(6)
    found = extract(np.stack([everything(image, rng) for image in members.images]), members, holdout)
    assert (found.count, found.holdout_count) == (6, 0)


def test_a_constant_image_is_far_from_everything() -> None:
    """A black frame has no detail: it neither divides by zero nor counts as a copy."""
    found = extract(np.zeros((1, 64, 64), np.uint8), *sides())
    assert found.members.distance.tolist() == [1.0]
    assert found.count == 0


def test_what_cannot_be_compared_is_refused() -> None:
    """Nothing released, another size, or one patient alone: refused."""
    members, holdout = sides()
    for released in (np.zeros((0, 64, 64), np.uint8), np.zeros((1, 32, 32), np.uint8)):
        with pytest.raises(InputError):
            extract(released, members, holdout)
    alone = replace(members, patients=("m",) * len(members)), replace(holdout, patients=("m",) * len(holdout))
    with pytest.raises(InputError):
        extract(strangers(), *alone)
