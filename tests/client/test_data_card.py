"""The data card of a cohort."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import Engine

from busgen_client.admission import NewImage
from busgen_client.cohort import CohortStore
from busgen_client.cohort_rows import Role
from busgen_client.data_card import Stratum, card_of, words, write_card
from busgen_client.database import open_store
from busgen_core.labels import Birads, Pathology

PATIENTS = 30


@pytest.fixture
def store(engine: Engine, data: Path) -> CohortStore:
    """30 patients with a benign image, its copy and, for 12, a malignant one; three have a scanner of their own."""
    store = CohortStore(engine, data)
    for patient in range(PATIENTS):
        rng = np.random.default_rng(patient)
        view = rng.integers(0, 200, (64, 64)).astype(np.uint8)
        frames = [view, view + 3, rng.integers(0, 200, (64, 64)).astype(np.uint8)]
        for number, gray in enumerate(frames[: 3 if patient < 12 else 2]):
            image = NewImage(
                gray=gray,
                patient_key=store.pseudonyms.patient_key(str(patient)),
                pathology=Pathology.MALIGNANT if number == 2 else Pathology.BENIGN,
                box=(0.1, 0.1, 0.5, 0.5) if number == 0 else None,
                device="RARE 1" if patient < 3 else "LOGIQ E9",
                source_key=f"{patient}/{number}",
                birads=Birads.FOUR_A if patient < 12 else None,
            )
            store.add(image)
    return store


def test_counts_are_of_patients(store: CohortStore) -> None:
    """A patient is in the stratum of the worst class; copies count as one view; rare scanners are not named."""
    card = card_of(store, site="north")
    both = [sum(card.worst[role][kind] or 0 for role in ("member", "holdout")) for kind in ("benign", "malignant")]
    assert both[0] <= 20
    assert both[1] <= 15
    assert (card.views["1"], card.views["2"], card.copies) == (20, 10, 30)  # 18 and 12, rounded
    assert card.devices == {"LOGIQ E9": 25, "others": None}
    assert (card.birads["4a"], card.birads["5"]) == (10, None)
    assert (card.patients, card.images, card.boxed, card.sealed) == (30, 70, 43, False)


def classes(engine: Engine, data: Path, *, rare: int) -> CohortStore:
    """35 patients in roles that were given, one image each, and ``rare`` more in a cell of their own."""
    store, rng = CohortStore(engine, data), np.random.default_rng(0)
    cells: dict[tuple[Role, Pathology], int] = {
        ("member", Pathology.NORMAL): 9,
        ("member", Pathology.BENIGN): 8,
        ("member", Pathology.MALIGNANT): 7,
        ("holdout", Pathology.NORMAL): 6,
        ("holdout", Pathology.BENIGN): 5,
        ("holdout", Pathology.MALIGNANT): rare,
    }
    for (role, pathology), count in cells.items():
        for number in range(count):
            name = f"{role} {pathology} {number}"
            gray = rng.integers(0, 255, (48, 48), dtype=np.uint8)
            key, source = store.pseudonyms.patient_key(name), store.pseudonyms.key("test", name)
            store.add(NewImage(gray=gray, patient_key=key, pathology=pathology, box=None, device="LOGIQ E9", source_key=source, role=role))
    return store


def test_a_hidden_cell_cannot_be_had_from_the_others(tmp_path: Path) -> None:
    """Claim: two cohorts that differ in a hidden cell alone have the same card and summary; no number on either is exact, totals too."""
    stores = [classes(open_store(tmp_path / str(rare)), tmp_path / str(rare), rare=rare) for rare in (1, 2)]
    one, two = (card_of(store, site="north") for store in stores)
    assert words(one) == words(two)
    assert stores[0].summary() == stores[1].summary()
    cells = [*one.worst["member"].values(), *one.worst["holdout"].values(), *one.views.values(), *one.devices.values(), one.patients, one.images]
    assert {cell % 5 for cell in cells if cell is not None} == {0}
    assert one.worst["holdout"] == {"normal": 5, "benign": 5, "malignant": None}
    for store in stores:
        store.engine.dispose()


def test_few_that_wait_are_not_counted_on_the_card(store: CohortStore) -> None:
    """One object that waits may be one patient's: what waits goes through the same rule as patients."""
    store.quarantine("withdrawn", code="consent-withdrawn", reason="")
    for number in range(8):
        store.quarantine(f"colour {number}", code="colour", reason="")
    card = card_of(store, site="north")
    assert card.quarantined == {"colour": 10, "consent-withdrawn": None}
    assert "| consent-withdrawn | < 5 |" in words(card)


def test_the_card_says_what_it_must(store: CohortStore, tmp_path: Path) -> None:
    """It says that it stays, that not all is encrypted, hides the rare scanner, and comes with a picture."""
    text = write_card(store, tmp_path / "out", site="north").read_text()
    assert "Stays in the hospital" in text
    assert "NOT every image is encrypted" in text
    assert "RARE" not in text
    with Image.open(tmp_path / "out" / "card.png") as picture:
        assert picture.width > 800


def test_an_empty_cohort_has_a_card(engine: Engine, tmp_path: Path) -> None:
    """A node without an image gets a card with nothing in it, not an error."""
    card = card_of(CohortStore(engine, tmp_path), site="north")
    assert (card.patients, card.images) == (None, None)
    assert "nothing" in words(card)


def test_an_uneven_stratum_is_said() -> None:
    """Outside of what 95 of 100 draws give, the card says so; inside, it does not."""
    assert Stratum(members=29, holdout=1, low=13, high=23).odd
    assert not Stratum(members=13, holdout=17, low=13, high=23).odd
    assert not Stratum(members=25, holdout=5, low=13, high=23).odd  # 23, rounded
    assert not Stratum(members=30, holdout=None, low=0, high=0).odd
