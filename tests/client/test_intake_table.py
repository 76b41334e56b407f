"""Intake of an image folder with a table."""

import csv
import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from busgen_client.cohort import CohortStore
from busgen_client.cohort_rows import ImageRow, QuarantineRow
from busgen_client.held import HeldStore
from busgen_client.intake import table
from busgen_client.intake.masking import clean
from busgen_client.intake.table import intake_table
from busgen_client.quarantine_rows import HeldRow
from busgen_core.errors import TableError
from busgen_core.labels import Pathology
from busgen_core.phantom import simulate
from busgen_privacy.ocr import find_text
from tests.privacy.lettering import burned_in, phantoms
from tests.shared import shared_data

COLUMNS = ("image_id", "file", "mask_file", "group", "pathology", "role", "device")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "node"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One good image with its mask."""
    folder = tmp_path / "hospital"
    folder.mkdir()
    Image.fromarray(simulate(Pathology.BENIGN, seed=1).image).save(folder / "1.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[16:32, 8:40] = 255
    Image.fromarray(mask).save(folder / "1-mask.png")
    return folder


def row(**changes: str) -> dict[str, str]:
    good = {
        "image_id": "i1",
        "file": "1.png",
        "mask_file": "1-mask.png",
        "group": "PATIENT-0815",
        "pathology": "benign",
        "role": "train",
        "device": "iU22",
    }
    return good | changes


def write(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "images.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_good_row_becomes_an_image(store: CohortStore, folder: Path, engine: Engine) -> None:
    """Box from the mask, role, label and device are stored; the file's name and the patient's are not."""
    write(folder, [row()])
    assert intake_table(store, folder, progress=False).added == 1
    with Session(engine) as session:
        (stored,) = session.scalars(select(ImageRow)).all()
    assert (stored.box, stored.role, stored.pathology, stored.device) == ([0.125, 0.25, 0.625, 0.5], "member", "benign", "iU22")
    assert stored.patient_key == store.pseudonyms.patient_key("PATIENT-0815")


def test_second_run_adds_nothing(store: CohortStore, folder: Path, tmp_path: Path) -> None:
    """The same table twice, also from a copy elsewhere, adds no image."""
    write(folder, [row(), row(image_id="i2")])
    assert intake_table(store, folder, progress=False).added == 2
    again = intake_table(store, folder, progress=False)
    moved = intake_table(store, Path(shutil.copytree(folder, tmp_path / "moved")), progress=False)
    assert (again.added, again.duplicates, moved.added, moved.duplicates) == (0, 2, 0, 2)
    assert len(list((tmp_path / "node" / "images").iterdir())) == 2


def test_roles_that_are_not_the_hospitals_are_left_out(store: CohortStore, folder: Path) -> None:
    """Public and contradictory rows are counted as skipped, neither stored nor quarantined."""
    write(folder, [row(role="pretrain"), row(role="contradictory")])
    result = intake_table(store, folder, progress=False)
    assert (result.added, result.skipped, result.quarantined) == (0, 2, 0)


def test_table_without_roles_is_split_by_the_node(store: CohortStore, folder: Path, engine: Engine) -> None:
    """Without a role column, each patient gets the role of the node's own split; patient_id stands in for a missing group."""
    write(folder, [{"image_id": f"i{n}", "file": "1.png", "patient_id": f"p{n}", "pathology": "benign"} for n in range(12)])
    assert intake_table(store, folder, progress=False).added == 12
    with Session(engine) as session:
        assert all(image.role == store.pseudonyms.own_role(image.patient_key) for image in session.scalars(select(ImageRow)))


DEFECTS = {
    "corrupt image": ({"file": "bad.png"}, "image-corrupt"),
    "cut image": ({"file": "cut.png"}, "image-corrupt"),
    "constant image": ({"file": "black.png", "mask_file": ""}, "image-empty"),
    "small image": ({"file": "small.png", "mask_file": ""}, "image-small"),
    "coloured image": ({"file": "colour.png", "mask_file": ""}, "colour"),
    "missing image": ({"file": "none.png"}, "file-missing"),
    "folder for a file": ({"file": "."}, "file-missing"),
    "no file": ({"file": ""}, "path-outside"),
    "path upwards": ({"file": "../outside.png"}, "path-outside"),
    "path upwards for Windows": ({"file": "..\\outside.png"}, "path-outside"),
    "absolute path": ({"file": "/outside.png"}, "path-outside"),
    "absolute path for Windows": ({"file": "C:\\outside.png"}, "path-outside"),
    "link that leads out": ({"file": "link.png"}, "path-outside"),
    "mask that leads out": ({"mask_file": "../outside.png"}, "path-outside"),
    "name beyond all limits": ({"file": "x" * 5000}, "file-unreadable"),
    "unknown label": ({"pathology": "BI-RADS 5 of Mrs PATIENT-0815"}, "label-unknown"),
    "no patient": ({"group": " "}, "patient-missing"),
    "unknown role": ({"role": "test"}, "role-unknown"),
    "corrupt mask": ({"mask_file": "bad.png"}, "mask-unreadable"),
    "missing mask": ({"mask_file": "none.png"}, "mask-unreadable"),
    "mask of another size": ({"mask_file": "small.png"}, "mask-unreadable"),
    "normal with a lesion": ({"pathology": "normal"}, "label-contradictory"),
}


@pytest.mark.parametrize(("change", "code"), DEFECTS.values(), ids=DEFECTS)
def test_defect_waits_in_quarantine_and_the_rest_goes_on(store: CohortStore, folder: Path, tmp_path: Path, change: dict[str, str], code: str) -> None:
    """Each defect has its code, the good row after it is admitted, and a corrected row leaves the quarantine."""
    good = (folder / "1.png").read_bytes()
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "cut.png").write_bytes(good[: len(good) // 2])
    Image.new("L", (64, 64)).save(folder / "black.png")
    Image.fromarray(simulate(Pathology.BENIGN, seed=1).image[:20]).save(folder / "small.png")
    Image.new("RGB", (64, 64), (255, 0, 0)).save(folder / "colour.png")
    (tmp_path / "outside.png").write_bytes(good)
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    write(folder, [row(**change), row(image_id="i2")])
    result = intake_table(store, folder, progress=False)
    assert (result.added, result.codes) == (1, {code: 1})
    assert store.summary().quarantined == {code: 1}
    write(folder, [row(), row(image_id="i2")])
    assert intake_table(store, folder, progress=False).added == 1
    assert store.summary().quarantined == {}


def test_row_with_a_field_too_many_waits(store: CohortStore, folder: Path) -> None:
    """A shifted row is not guessed at."""
    (folder / "images.csv").write_text("file,pathology,group\n1.png,benign,p1,extra\n1.png,benign,p2\n", "utf-8")
    result = intake_table(store, folder, progress=False)
    assert (result.added, result.codes) == (1, {"row-malformed": 1})


def test_an_image_is_not_given_to_another_patient_by_coming_again(store: CohortStore, folder: Path) -> None:
    """The same row with another patient is no duplicate: a person is told, and the image stays whose it was."""
    write(folder, [row()])
    assert intake_table(store, folder, progress=False).added == 1
    write(folder, [row(group="PATIENT-4711")])
    assert intake_table(store, folder, progress=False).codes == {"patient-unsure": 1}
    assert [each.patient_key for each in store.rows()] == [store.pseudonyms.patient_key("PATIENT-0815")]


def test_a_patient_known_by_another_number_is_the_same_in_a_table(store: CohortStore, folder: Path) -> None:
    """A number that was joined to a patient by DICOM objects is that patient's in a table too: one patient, one role."""
    first, second = (store.pseudonyms.person(number, name="Doe^Jane", birth_date="19610412") for number in ("1", "2"))
    write(folder, [row(group="1", role="")])
    intake_table(store, folder, progress=False)
    store.learn(replace(second, key=first.key))
    store.learn(second)
    write(folder, [row(group="1", role=""), row(image_id="b", group="2", role="")])
    intake_table(store, folder, progress=False)
    assert [each.patient_key for each in store.rows()] == [first.key] * 2


def test_role_that_contradicts_the_patients_waits(store: CohortStore, folder: Path) -> None:
    """A patient in two roles keeps the first; the other row waits."""
    write(folder, [row(role="holdout"), row(image_id="i2", role="train")])
    result = intake_table(store, folder, progress=False)
    assert (result.added, result.codes) == (1, {"role-conflict": 1})
    assert store.count_patients("member") == 0


def test_nothing_of_the_patient_is_stored(store: CohortStore, folder: Path, tmp_path: Path, engine: Engine) -> None:
    """Neither the identifier nor the path is anywhere in the node's folder, also not through reasons, device or a damaged row."""
    write(
        folder, [row(device="PATIENT-0815 iU22"), row(image_id="i2", pathology="PATIENT-0815"), row(image_id="PATIENT-0815", file="PATIENT-0815.png")]
    )
    result = intake_table(store, folder, progress=False)
    assert (result.added, result.quarantined) == (1, 2)
    stored = [file.read_bytes() for file in (tmp_path / "node").rglob("*") if file.is_file()]
    assert not any(b"PATIENT-0815" in data or b"hospital" in data for data in stored)


TABLES = {
    "missing": None,
    "not UTF-8": "file,pathology,group\n1.png,benign,M\u00fcller\n".encode("latin-1"),
    "without labels": b"file,group\n1.png,p\n",
    "without patients": b"file,pathology\n1.png,benign\n",
    "column twice": b"file,pathology,group,group\n1.png,benign,p,q\n",
    "open quote": b'file,pathology,group\n"1.png,benign,p\n',
    "empty": b"",
    "an image": b"\x89PNG\r\n\x1a\n\x00\x00",
}


@pytest.mark.parametrize("content", TABLES.values(), ids=TABLES)
def test_unreadable_table_adds_nothing(store: CohortStore, folder: Path, content: bytes | None, engine: Engine) -> None:
    """A table that cannot be used as a whole is one error and no row."""
    if content is not None:
        (folder / "images.csv").write_bytes(content)
    with pytest.raises(TableError):
        intake_table(store, folder, progress=False)
    with Session(engine) as session:
        assert not session.scalars(select(ImageRow)).all()
        assert not session.scalars(select(QuarantineRow)).all()


def test_name_in_the_pixels_is_masked(store: CohortStore, folder: Path) -> None:
    """A name that is burned into an image is read before intake, and not in what is stored; its letters' pixels are others."""
    named, (x0, y0, x1, y1) = burned_in(phantoms(1, seed=41, size=320)[0], "DOE JANE", height=10, at=(30, 20))
    assert any("DOE" in piece.text for piece in find_text([named])[0])
    Image.fromarray(named).save(folder / "named.png")
    write(folder, [row(file="named.png", mask_file="")])
    assert intake_table(store, folder, progress=False).added == 1
    with Image.open(io.BytesIO(store.png(store.rows()[0].image_id))) as picture:
        stored = np.asarray(picture)
    assert not any("DOE" in piece.text for piece in find_text([stored])[0])
    letters = named[y0:y1, x0:x1] == 255
    assert (stored[y0:y1, x0:x1][letters] < 200).all()


def test_what_is_no_single_scan_waits_with_a_masked_picture(store: CohortStore, folder: Path) -> None:
    """A split screen waits, and a name in it is masked in what a person is shown."""
    named, _ = burned_in(phantoms(1, seed=41, size=320)[0], "DOE JANE", height=10, at=(30, 20))
    named[:, 158:162] = 0
    Image.fromarray(named).save(folder / "split.png")
    write(folder, [row(file="split.png", mask_file="")])
    assert intake_table(store, folder, progress=False).codes == {"split-screen": 1}
    with Session(store.engine) as session:
        (held,) = session.scalars(select(HeldRow)).all()
    assert not any("DOE" in piece.text for piece in find_text([HeldStore(store).frame(held, 0)])[0])


def test_what_is_in_the_cohort_is_not_looked_at_again(store: CohortStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run over a table goes by what is stored, and searches no pixels; for another patient, or in another role, it looks."""
    write(folder, [row()])
    assert intake_table(store, folder, progress=False).added == 1
    looked = []
    monkeypatch.setattr(table, "clean", lambda frames, **rest: looked.append(rest) or clean(frames, **rest))
    assert intake_table(store, folder, progress=False).duplicates == 1
    assert not looked
    write(folder, [row(group="PATIENT-4711"), row(role="holdout")])
    intake_table(store, folder, progress=False)
    assert len(looked) == 2


@pytest.mark.parametrize("hospital", ["warsaw", pytest.param("cairo", marks=pytest.mark.slow)])
def test_real_hospital(store: CohortStore, tmp_path: Path, engine: Engine, hospital: str) -> None:
    """Of real rows, all are admitted with the roles that the data set fixed, or left out as contradictory."""
    source = shared_data() / hospital
    with (source / "images.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows = rows[:16] + rows[-8:] + [r for r in rows if r["role"] == "contradictory"][:3]
    copy = tmp_path / "copy"
    for line in rows:
        for name in filter(None, (line["file"], line["mask_file"])):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, copy / name)
    write(copy, rows)
    result = intake_table(store, copy, progress=False)
    left_out = sum(line["role"] == "contradictory" for line in rows)
    assert (result.added, result.skipped, result.codes) == (len(rows) - left_out, left_out, {})
    with Session(engine) as session:
        stored = {(i.patient_key, i.role) for i in session.scalars(select(ImageRow))}
    roles = {"train": "member", "holdout": "holdout"}
    assert stored == {(store.pseudonyms.patient_key(r["group"]), roles[r["role"]]) for r in rows if r["role"] in roles}
    assert len(store.load("member")) == sum(r["role"] == "train" for r in rows)
