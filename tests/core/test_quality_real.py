"""What the shipped encoder sees in real images: damage, devices, hospitals, mixtures of labels; and what it takes for the same."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from busgen_core.corpus import public_examples, read_table
from busgen_core.quality import degrade
from busgen_core.quality.compare import compare, encoded
from busgen_core.quality.encoder import load_encoder
from busgen_core.quality.floor import Split, draw_splits
from busgen_core.quality.kid import kid, kid_value
from busgen_core.quality.samples import Floats, Indices, group_index
from busgen_core.tensors import to_bytes, to_unit
from tests.shared import shared_data

FLOOR_HIGH = 0.06  # above every floor of halves of a hospital that was measured, in units of KID
SLOWLY = [pytest.param(name, marks=pytest.mark.slow) for name in ("rio", "cairo", "warsaw")]

Texts = NDArray[np.str_]


@cache
def hospital(name: str) -> tuple[NDArray[np.uint8], dict[str, Texts]]:
    """Frames at 64 px and the columns group, pathology, device, without the contradictory images."""
    folder = shared_data() / name
    rows = read_table(folder)
    use = [i for i, row in enumerate(rows) if row["role"] != "contradictory"]
    images = np.stack([example.image for example in public_examples(folder, size=64)])
    return images[use], {key: np.array([rows[i][key] for i in use]) for key in ("group", "pathology", "device", "role")}


@cache
def features(name: str) -> Floats:
    return encoded(hospital(name)[0], load_encoder())


@cache
def halves(name: str) -> tuple[Indices, list[Split]]:
    groups = group_index(hospital(name)[1]["group"].tolist(), len(features(name)))
    return groups, draw_splits(groups, len(groups), repeats=10, seed=1)


def between(name: str, here: Indices, there: Indices, other: Floats | None = None) -> float:
    """KID of some rows against others of one hospital, or against changed features of those."""
    rows, groups = features(name), halves(name)[0]
    numbered = [np.unique(groups[part], return_inverse=True)[1] for part in (here, there)]
    return kid_value(rows[here], rows[there] if other is None else other, *numbered)


@pytest.mark.parametrize("name", ["public", *SLOWLY])
def test_halves_of_a_hospital_are_the_same_to_it(name: str) -> None:
    """Between random halves of a hospital, patients apart, KID is about 0: on average, and in every split below FLOOR_HIGH."""
    values = [between(name, split.here, split.there) for split in halves(name)[1]]
    assert abs(np.mean(values)) < FLOOR_HIGH / 2
    assert max(values) < FLOOR_HIGH


@pytest.mark.slow
@pytest.mark.parametrize(("a", "b"), [("public", "cairo"), ("public", "rio"), ("public", "warsaw"), ("rio", "cairo"), ("cairo", "warsaw")])
def test_hospitals_are_told_apart(a: str, b: str) -> None:
    """Two hospitals are further apart than halves of one; the whole interval is."""
    names = [hospital(n)[1]["group"].tolist() for n in (a, b)]
    assert kid(features(a), features(b), seed=1, groups_a=names[0], groups_b=names[1], repeats=200).low > FLOOR_HIGH


def test_devices_of_one_hospital_are_told_apart() -> None:
    """GE Logiq 7 against Toshiba Aplio 300 within the public images: far above the floor."""
    columns = hospital("public")[1]
    ge, toshiba = (np.flatnonzero(np.char.startswith(columns["device"], maker)) for maker in ("GE", "Toshiba"))
    assert between("public", ge, toshiba) > 5 * FLOOR_HIGH


def one(strength: float, images: Tensor) -> Tensor:
    return torch.full((len(images),), strength)


DAMAGE: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "blur, px": (lambda x, s: degrade.blurred(x, one(s, x)), (0.6, 0.9, 1.3, 2.0)),
    "noise": (lambda x, s: degrade.noisy(x, one(s, x), draws=torch.Generator().manual_seed(1)), (0.09, 0.15, 0.25, 0.4)),
    "less contrast": (lambda x, s: degrade.stretched(x, one(-s, x)), (0.2, 0.4, 0.7)),
    "more contrast": (lambda x, s: degrade.stretched(x, one(s, x)), (0.2, 0.4, 0.7)),
    "lighter": (lambda x, s: degrade.brightened(x, one(s, x)), (0.1, 0.2, 0.4)),
    "darker": (lambda x, s: degrade.brightened(x, one(-s, x)), (0.1, 0.2, 0.4)),
    "speckle lost": (lambda x, s: degrade.despeckled(x, one(s, x)), (0.5, 0.75, 1.0)),
}


@pytest.mark.parametrize("name", ["public", SLOWLY[0]])
@pytest.mark.parametrize(("damage", "strengths"), DAMAGE.values(), ids=DAMAGE)
def test_kid_rises_with_every_damage(name: str, damage: Callable[[Tensor, float], Tensor], strengths: tuple[float, ...]) -> None:
    """A quarter of one half of the patients damaged, against the other half: KID rises with every step of the strength, and ends above the floor."""
    split = halves(name)[1][0]
    there = split.there[::4]
    images = to_unit(hospital(name)[0][there])
    values = [between(name, split.here, there)]
    values += [between(name, split.here, there, encoded(to_bytes(damage(images, s)), load_encoder())) for s in strengths]
    assert values == sorted(values)
    assert values[-1] > FLOOR_HIGH


@pytest.mark.parametrize("name", ["public", SLOWLY[0]])
def test_kid_rises_with_a_wrong_mixture_of_labels(name: str) -> None:
    """The same patients' images with more and more malignant ones than the hospital has: KID rises, and is seen when all are malignant."""
    split, labels, rng = halves(name)[1][0], hospital(name)[1]["pathology"], np.random.default_rng(1)
    malignant, benign = (split.there[labels[split.there] == label] for label in ("malignant", "benign"))
    natural = float((labels[split.here] == "malignant").mean())
    many = min(90, len(malignant))
    values = []
    for share in (natural, 0.65, 1.0):
        count = round(share * many)
        mixed = [np.r_[rng.choice(malignant, count, replace=False), rng.choice(benign, many - count, replace=False)] for _ in range(10)]
        values.append(float(np.mean([between(name, split.here, rows) for rows in mixed])))
    assert values == sorted(values)
    assert values[-1] > FLOOR_HIGH


@pytest.mark.slow
def test_a_report_on_real_images_finds_what_was_done_to_them() -> None:
    """Real against other real images of the hospital: at the floor. The same blurred by 1 px: KID, coverage and speckle all say so."""
    images, columns = hospital("rio")
    train = columns["role"] == "train"
    real, groups, others, others_groups = images[train], columns["group"][train].tolist(), images[~train], columns["group"][~train].tolist()
    arguments = {"encoder": load_encoder(), "groups": groups, "fake_groups": others_groups, "seed": 1, "splits": 6, "quiet": True}
    plain = compare(real, others, **arguments)
    blurred = compare(real, to_bytes(degrade.blurred(to_unit(others), one(1.0, to_unit(others)))), **arguments)
    assert plain.measure("kid").low < FLOOR_HIGH
    assert plain.measure("coverage").matched.mean > plain.measure("coverage").floor.mean - 0.05
    for name in ("kid", "coverage", "axial_px", "lateral_px"):
        assert blurred.measure(name).worse_share == 1.0, name
    assert blurred.measure("kid").low > FLOOR_HIGH
