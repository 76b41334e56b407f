"""Labels, patients and sealed files through intake itself: from DICOM objects to the cohort."""

import io
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from busgen_client.cohort import CohortStore
from busgen_client.cohort_rows import JournalRow, ObjectRow
from busgen_client.intake.dicom import intake_dicom
from busgen_client.intake.findings import Unread
from busgen_client.intake.labels import read_labels
from busgen_client.intake.phantom_dicom import write_phantom_study
from busgen_client.intake.run import take_in
from busgen_client.intake.spool import Spool, forget
from busgen_client.storage import MAGIC, StorageSettings, Vault
from busgen_core.labels import Birads, Pathology
from tests.client.sr_items import CARCINOMA, PATHOLOGY, coded, report


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "node"


@pytest.fixture
def store(engine: Engine, data: Path) -> CohortStore:
    return CohortStore(engine, data, vault=Vault(data, StorageSettings()))


@pytest.fixture
def objects(tmp_path: Path) -> list[Dataset]:
    """One object of each of three patients."""
    write_phantom_study(tmp_path / "phantoms", site="Testville", patients=3, seed=3)
    every = [dcmread(path) for path in sorted((tmp_path / "phantoms").glob("IM*"))]
    return list({each.PatientID: each for each in every}.values())


def lay(folder: Path, *objects: Dataset) -> Path:
    folder.mkdir()
    for number, each in enumerate(objects):
        each.save_as(folder / f"{number}.dcm")
    return folder


def test_an_object_is_labelled_by_its_accession_number(store: CohortStore, objects: list[Dataset], tmp_path: Path) -> None:
    """Class and BI-RADS of the RIS export reach the cohort; an object whose number it lacks waits."""
    objects[0].AccessionNumber, objects[1].AccessionNumber = "A1", "A2"
    (tmp_path / "ris.csv").write_text("Accession Number;Histologie;BI-RADS\nA1;Karzinom;5\n")
    result = intake_dicom(store, lay(tmp_path / "in", *objects[:2]), tmp_path / "ris.csv", progress=False)
    assert (result.added, result.codes) == (1, {"label-missing": 1})
    assert [(row.pathology, row.birads) for row in store.rows()] == [(Pathology.MALIGNANT, Birads.FIVE)]


def test_an_unreadable_report_is_told_and_its_examination_waits(store: CohortStore, engine: Engine, objects: list[Dataset], tmp_path: Path) -> None:
    """A report that is cut short, beside a table that says benign: its object waits, the other is taken in, result and journal count it."""
    objects[0].AccessionNumber, objects[1].AccessionNumber = "A1", "A2"
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "ris.csv").write_text("accession,pathology\nA1,benign\nA2,benign\n")
    whole = report(coded(PATHOLOGY, CARCINOMA))
    (labels / "1.dcm").write_bytes(whole[:-20])
    (labels / "2.dcm").write_bytes(whole[:300])
    result = intake_dicom(store, lay(tmp_path / "in", *objects[:2]), labels, progress=False)
    assert (result.added, result.codes, result.unread) == (1, {"report-unreadable": 1}, Unread(reports=2, unplaced=1))
    with Session(engine) as session:
        assert '"reports_unplaced": 1' in session.query(JournalRow).all()[-1].detail


def test_a_changed_number_is_the_same_patient_and_a_contradiction_waits(store: CohortStore, objects: list[Dataset], tmp_path: Path) -> None:
    """Three objects: a patient, the same under another number, and one whose number is the first's and whose name and birth date are not."""
    for each, number, name, born in zip(objects, "121", ("Doe^Jane", "Doe^Jane", "Roe^Mary"), ("19610412", "19610412", "19800202"), strict=True):
        each.PatientID, each.PatientName, each.PatientBirthDate, each.IssuerOfPatientID = number, name, born, ""
    result = intake_dicom(store, lay(tmp_path / "in", *objects), tmp_path / "phantoms" / "labels.csv", progress=False)
    assert (result.added, result.codes) == (2, {"patient-unsure": 1})
    assert len({row.patient_key for row in store.rows()}) == 1


def test_what_waits_in_the_spool_is_sealed_and_taken_in(store: CohortStore, engine: Engine, objects: list[Dataset], tmp_path: Path) -> None:
    """No byte of a header is readable in the spool, waiting or held; what waits is taken in, and a patient's are found and deleted."""
    spool, labels = Spool(store, tmp_path / "node"), tmp_path / "phantoms" / "labels.csv"
    with spool.receiving():
        for each in objects:
            out = io.BytesIO()
            each.save_as(out)
            spool.put(out.getvalue(), each.SOPInstanceUID)
    waiting = spool.waiting()
    assert len(waiting) == 3
    assert all(path.read_bytes().startswith(MAGIC) and b"DICM" not in path.read_bytes()[:200] for path in waiting)
    take_in(store, spool.sources(read_labels(None)), total=None, event="test", progress=False)
    assert len(spool.waiting(held=True)) == 3
    identity = objects[0]
    forget(store, tmp_path / "node", store.pseudonyms.patient_key(identity.PatientID, issuer=identity.get("IssuerOfPatientID", "")))
    assert len(spool.waiting(held=True)) == 2
    assert take_in(store, spool.sources(read_labels(labels), held=True), total=None, event="test", progress=False).added == 2
    with Session(engine) as session:
        assert session.query(ObjectRow).count() == 2
