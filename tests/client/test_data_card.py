"""The data card of a cohort."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import Engine

from busgen_client.cohort import CohortStore, NewImage
from busgen_client.data_card import Stratum, card_of, words, write_card
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
    assert both[0] <= 18
    assert both[1] <= 12
    assert (card.views["1"], card.views["2"], card.copies) == (18, 12, 30)
    assert card.devices == {"LOGIQ E9": 27, "others": None}
    assert (card.birads["4a"], card.birads["5"]) == (12, None)
    assert (card.patients, card.images, card.sealed) == (30, 70, False)


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
    assert card.patients == 0
    assert "nothing" in words(card)


def test_an_uneven_stratum_is_said() -> None:
    """Outside of what 95 of 100 draws give, the card says so; inside, it does not."""
    assert Stratum(members=29, holdout=1, low=13, high=23).odd
    assert not Stratum(members=13, holdout=17, low=13, high=23).odd
