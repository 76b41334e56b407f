"""Who is who: joins over a changed identifier or name, and what waits."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from busgen_client.admission import Admission, NewImage
from busgen_client.cohort import CohortStore
from busgen_client.cohort_rows import MarkRow
from busgen_client.consent import withdraw
from busgen_client.database import open_store
from busgen_client.intake.spool import Spool
from busgen_client.patients import plain_name
from busgen_core.errors import InputError
from busgen_core.labels import Pathology
from tests.client import headers
from tests.client.node import lay_out

DAY = "19610412"


@dataclass(frozen=True)
class Study:
    """Who a study says its patient is."""

    number: str
    name: str = "Doe^Jane"
    born: str = DAY
    issuer: str = ""


def add(store: CohortStore, study: Study) -> str | None:
    """Take an image of a study in; the patient's key, or None if it must wait."""
    person = store.pseudonyms.person(study.number, issuer=study.issuer, name=study.name, birth_date=study.born)
    if (key := store.patient_of(person)) is None:
        return None
    gray = np.random.default_rng(len(store.rows())).integers(0, 255, (40, 40), np.uint8)
    source = store.pseudonyms.key("test", str(len(store.rows())))
    image = NewImage(gray=gray, patient_key=key, pathology=Pathology.BENIGN, box=None, device="", source_key=source, person=person)
    assert store.add(image) in (Admission.ADDED, Admission.WITHDRAWN)
    return key


SAME = {
    "same number": [Study("1"), Study("1")],
    "changed name": [Study("1"), Study("1", name="Miller^Jane")],
    "changed name, then the old one": [Study("1"), Study("1", name="Miller^Jane"), Study("1")],
    "changed number": [Study("1"), Study("2")],
    "changed number, spelled otherwise": [Study("1", name="Müller^Ana"), Study("2", name="MULLER ANA")],
    "another issuer": [Study("1", issuer="a"), Study("1", issuer="b")],
    "changed number and, before, a changed name": [Study("1"), Study("1", name="Miller^Jane"), Study("2", name="Miller^Jane")],
    "changed number twice": [Study("1"), Study("2"), Study("3"), Study("2")],
    "no name the second time": [Study("1"), Study("1", name="", born="")],
    "no name the first time": [Study("1", name="", born=""), Study("1")],
    "birth date corrected": [Study("1"), Study("1", born="19610413")],
}


@pytest.mark.parametrize("studies", SAME.values(), ids=SAME)
def test_one_patient_stays_one(store: CohortStore, studies: list[Study]) -> None:
    """Every study gets the key of the first, so all of them are on one side."""
    keys = [add(store, study) for study in studies]
    assert len(set(keys)) == 1
    assert None not in keys
    assert len({row.role for row in store.rows()}) == 1


OTHERS = {
    "other number and name": [Study("1"), Study("2", name="Roe^Mary")],
    "same name, other birth date": [Study("1"), Study("2", born="19700101")],
    "same birth date, other name": [Study("1"), Study("2", name="Roe^Mary")],
    "name without a birth date": [Study("1", born=""), Study("2", born="")],
    "anonymous": [Study("1", name="ANONYMOUS^PATIENT"), Study("2", name="ANONYMOUS^PATIENT")],
    "one word": [Study("1", name="Doe"), Study("2", name="Doe")],
    "placeholder for a birth date": [Study("1", born="19000101"), Study("2", born="19000101")],
    "birth date that is none": [Study("1", born="00000000"), Study("2", born="00000000")],
    "birth date to come": [Study("1", born="29990101"), Study("2", born="29990101")],
}


@pytest.mark.parametrize("studies", OTHERS.values(), ids=OTHERS)
def test_two_patients_stay_two(store: CohortStore, studies: list[Study]) -> None:
    """Nobody is joined on less than a full name and a full birth date."""
    keys = [add(store, study) for study in studies]
    assert len(set(keys)) == len(studies)
    assert None not in keys


UNSURE = {
    "number given to somebody else": [Study("1"), Study("1", name="Roe^Mary", born="19800202")],
    "number of one, name and birth date of another": [Study("1"), Study("2", name="Roe^Mary"), Study("1", name="Roe^Mary")],
    "two patients have this name and birth date": [Study("1", born=""), Study("2"), Study("1", name="Roe^Mary"), Study("2", born=""), Study("1")],
    "birth date is a 1 January": [Study("1", born="19610101"), Study("2", born="19610101")],
}


@pytest.mark.parametrize("studies", UNSURE.values(), ids=UNSURE)
def test_what_contradicts_itself_waits(store: CohortStore, studies: list[Study]) -> None:
    """The last study is joined to nobody and makes no new patient."""
    before = [add(store, study) for study in studies[:-1]]
    images = len(store.rows())
    assert None not in before
    assert add(store, studies[-1]) is None
    assert len(store.rows()) == images


def test_no_name_or_date_is_stored(store: CohortStore, engine: Engine, tmp_path: Path) -> None:
    """Marks are digests: no part of a name, number or date is in any byte of the store."""
    add(store, Study("7431852", name="Quintessa^Zbigniewa"))
    engine.dispose()
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()).lower()
    assert all(word not in stored for word in (b"quintessa", b"zbigniewa", b"7431852", DAY.encode()))


def test_a_withdrawn_patient_is_known_under_every_number(tmp_path: Path) -> None:
    """Withdrawal by a later number deletes all images; no number and no new number with the same name and birth date comes in again."""
    settings = lay_out(tmp_path)
    engine = open_store(settings.data)
    store = CohortStore(engine, settings.data)
    add(store, Study("1"))
    add(store, Study("2"))
    add(store, Study("9", name="Roe^Mary"))
    withdrawal = withdraw(settings, store.pseudonyms.patient_key("2"))
    assert withdrawal.images == 2
    with Session(engine) as session:
        assert {row.patient_key for row in session.scalars(select(MarkRow))} == {store.pseudonyms.patient_key("9")}
    for number in ("1", "2", "3"):
        person = store.pseudonyms.person(number, name="Doe^Jane", birth_date=DAY)
        assert store.withdrawn(person)
        add(store, Study(number))
    assert len(store.rows()) == 1
    assert not store.withdrawn(store.pseudonyms.person("4", name="Roe^Mary", birth_date=DAY))
    engine.dispose()


def test_a_number_that_only_the_spool_knows_reaches_the_patient(tmp_path: Path) -> None:
    """An object that waits in the spool says that a new number is a known patient's: a withdrawal by it deletes image and object, and of a number
    that nothing here says, nothing."""
    settings, header = lay_out(tmp_path), headers.person()
    store = CohortStore(open_store(settings.data), settings.data)
    add(store, Study("1", name=str(header.PatientName), born=header.PatientBirthDate))
    spool = Spool(store, settings.data)
    with spool.receiving():
        spool.put(headers.whole(header), header.SOPInstanceUID)
    with pytest.raises(InputError, match="unknown-too"):
        withdraw(settings, store.pseudonyms.patient_key("2"))
    assert len(spool.waiting()) == 1
    assert withdraw(settings, store.pseudonyms.patient_key(header.PatientID)).images == 1
    assert spool.waiting() == []
    assert store.withdrawn(store.pseudonyms.person("1"))
    store.engine.dispose()


NAMES = {
    "Doe^Jane": "doe jane",
    "DOE^JANE^^DR": "doe jane",
    "García-López^María José": "garcia lopez maria jose",
    "Yamada^Tarou=山田^太郎": "yamada tarou",
    "Doe^": "",
    "": "",
    "12345^67": "",
    "unknown^x": "",
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items(), ids=range(len(NAMES)))
def test_names_are_compared_without_their_dress(name: str, expected: str) -> None:
    """Case, accents, hyphens, titles and other alphabets' groups do not matter; what names nobody is empty."""
    assert plain_name(name) == expected
