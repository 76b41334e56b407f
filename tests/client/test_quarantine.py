"""The quarantine: what is unsure waits with a picture, and a person releases it, blacks parts of it out or deletes it."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread
from sqlalchemy import select, update
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from busgen_client import quarantine as module
from busgen_client.admission import NewImage
from busgen_client.cli import app
from busgen_client.cohort import CohortStore
from busgen_client.cohort_rows import ImageRow, JournalRow
from busgen_client.consent import withdraw
from busgen_client.held import Held, HeldStore
from busgen_client.intake.dicom import intake_dicom
from busgen_client.intake.findings import BY_EYE, BY_LABEL, Code, QuarantineError
from busgen_client.intake.frames import Rectangle
from busgen_client.intake.phantom_dicom import write_phantom_study
from busgen_client.intake.run import Source, take_in
from busgen_client.intake.spool import BEYOND_REPAIR, Spool
from busgen_client.intake.table import intake_table
from busgen_client.masks import around, box, left_over
from busgen_client.quarantine import Quarantine
from busgen_client.quarantine_rows import HeldRow
from busgen_client.settings import NodeSettings
from busgen_core.errors import BusgenError, ConsentWithdrawnError, CorruptImageError, InputError, StateError
from busgen_core.images import encode_png
from busgen_core.labels import Pathology
from tests.client.waiting import COLUMNS, DEVICE, ROWS, TEXT, study_of_unknown_device, table_to_look_at

pytestmark = pytest.mark.usefixtures("unread")
WHO = "a steward"


@pytest.fixture
def store(opened: CohortStore) -> CohortStore:
    return opened


@pytest.fixture
def table(store: CohortStore, tmp_path: Path) -> Path:
    """A folder of two rows that wait: the first for colour, the second for its label."""
    table_to_look_at(tmp_path / "table")
    assert intake_table(store, tmp_path / "table", progress=False).codes == {"colour": 1, "label-unknown": 1}
    return tmp_path / "table"


@pytest.fixture
def quarantine(store: CohortStore, table: Path) -> Quarantine:
    return Quarantine(store)


def named(quarantine: Quarantine, code: Code) -> str:
    (item,) = quarantine.items(code=code)
    return item.name


def stored(store: CohortStore) -> list[tuple[ImageRow, np.ndarray]]:
    with Session(store.engine) as session:
        rows = session.scalars(select(ImageRow)).all()
    return [(row, np.asarray(Image.open(io.BytesIO(store.png(row.image_id))))) for row in rows]


def journal(store: CohortStore, prefix: str = "quarantine.") -> list[tuple[str, dict[str, object]]]:
    with Session(store.engine) as session:
        rows = session.scalars(select(JournalRow).where(JournalRow.event.startswith(prefix)).order_by(JournalRow.id)).all()
    return [(row.event, json.loads(row.detail)) for row in rows]


def pixels(quarantine: Quarantine, name: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(quarantine.picture(name))))


def one_waiting(store: CohortStore, code: Code, patient: str = "someone") -> str:
    """An object that intake holds back for ``code``, with a picture; its name."""
    frame = np.random.default_rng(1).integers(1, 255, (64, 80), dtype=np.uint8)
    key = store.pseudonyms.patient_key(patient)
    image = NewImage(gray=frame, patient_key=key, pathology=Pathology.BENIGN, box=None, device="", source_key=store.pseudonyms.key("test", patient))

    def refuse() -> list[NewImage]:
        raise QuarantineError(code)

    source = Source(key=store.pseudonyms.key("object", patient, code), read=refuse, show=lambda: Held(images=(image,)))
    take_in(store, [source], total=1, event="test", progress=False)
    return source.key[:12]


def test_what_is_unsure_waits_with_a_picture(quarantine: Quarantine, store: CohortStore) -> None:
    """Two objects wait, in plain words, each with its pixels in colours; none is in the cohort."""
    items = quarantine.items()
    assert [(item.code, item.frames, item.columns, item.rows) for item in items] == [
        ("colour", 1, COLUMNS, ROWS),
        ("label-unknown", 1, COLUMNS, ROWS),
    ]
    assert quarantine.counts() == {"colour": 1, "label-unknown": 1}
    assert pixels(quarantine, items[0].name)[TEXT[1], TEXT[0]].tolist() == [240, 40, 40]
    assert stored(store) == []


def test_what_is_blacked_out_is_black_in_the_cohort_at_full_resolution(quarantine: Quarantine, store: CohortStore) -> None:
    """A colour box keeps an object from its release; blacked out, the object enters, black there and unchanged elsewhere."""
    name = named(quarantine, Code.COLOUR)
    before = pixels(quarantine, name)
    with pytest.raises(InputError, match="colour"):
        quarantine.release(name, who=WHO)
    item = quarantine.mask(name, TEXT, who=WHO)
    assert not pixels(quarantine, name)[TEXT[1] : TEXT[3], TEXT[0] : TEXT[2]].any()
    assert quarantine.release(name, who=WHO, seen=item.stamp) == 1
    ((row, kept),) = stored(store)
    hidden = np.zeros((ROWS, COLUMNS), bool)
    hidden[TEXT[1] : TEXT[3], TEXT[0] : TEXT[2]] = True
    assert kept.shape == (ROWS, COLUMNS)
    assert not kept[hidden].any()
    assert np.array_equal(kept[~hidden], before[..., 0][~hidden])
    assert (row.pathology, row.role) == ("benign", store.pseudonyms.own_role(row.patient_key))


def test_all_but_a_box_can_be_blacked_out_and_is_cut_off(quarantine: Quarantine, store: CohortStore) -> None:
    """With ``keep``, the cohort gets the box and nothing else."""
    name = named(quarantine, Code.COLOUR)
    whole = pixels(quarantine, name)[..., 0]
    quarantine.mask(name, (40, 50, 240, 190), who=WHO, keep=True)
    quarantine.release(name, who=WHO)
    ((_, kept),) = stored(store)
    assert np.array_equal(kept, whole[50:190, 40:240])


def test_every_action_is_in_the_journal_and_names_no_patient(quarantine: Quarantine, store: CohortStore, table: Path) -> None:
    """Who, what and on which object; identifiers, file names and folders are in no line."""
    first, second = named(quarantine, Code.COLOUR), named(quarantine, Code.LABEL_UNKNOWN)
    quarantine.mask(first, TEXT, who=WHO)
    quarantine.unmask(first, who=WHO)
    quarantine.mask(first, TEXT, who=WHO)
    quarantine.release(first, who=WHO)
    quarantine.delete(second, who="another steward")
    lines = journal(store)
    assert [event.removeprefix("quarantine.") for event, _ in lines] == ["masked", "unmasked", "masked", "released", "deleted"]
    assert [(detail["item"], detail["who"]) for _, detail in lines] == [(first, WHO)] * 4 + [(second, "another steward")]
    assert lines[0][1]["boxes"] == [list(TEXT)]
    assert not any(text in json.dumps(lines) for text in ("patient of", "one.png", str(table)))


def test_a_label_that_is_missing_is_given_by_the_person(quarantine: Quarantine, store: CohortStore) -> None:
    """Without a label an object is not released; with one it is, and the journal says that a person gave it."""
    name = named(quarantine, Code.LABEL_UNKNOWN)
    with pytest.raises(StateError, match="no label"):
        quarantine.release(name, who=WHO)
    quarantine.release(name, who=WHO, pathology=Pathology.MALIGNANT)
    assert [row.pathology for row, _ in stored(store)] == ["malignant"]
    assert journal(store)[-1][1]["label"] == "malignant"


def test_a_label_that_is_known_is_not_the_persons_to_change(quarantine: Quarantine, store: CohortStore) -> None:
    """An object that waits for something else keeps its own label."""
    name = named(quarantine, Code.COLOUR)
    quarantine.mask(name, TEXT, who=WHO)
    quarantine.release(name, who=WHO, pathology=Pathology.NORMAL)
    assert [row.pathology for row, _ in stored(store)] == ["benign"]


def test_decided_objects_do_not_wait_again(quarantine: Quarantine, store: CohortStore, table: Path) -> None:
    """Taken in again, a released object is a duplicate and a deleted one is passed over; nothing of their pictures is left."""
    first, second = named(quarantine, Code.COLOUR), named(quarantine, Code.LABEL_UNKNOWN)
    quarantine.mask(first, TEXT, who=WHO)
    quarantine.release(first, who=WHO)
    quarantine.delete(second, who=WHO)
    assert list((store.data / "quarantine").iterdir()) == []
    again = intake_table(store, table, progress=False)
    assert (again.added, again.duplicates, again.skipped, again.codes) == (0, 1, 1, {})


def test_a_deletion_can_be_taken_back(quarantine: Quarantine, store: CohortStore, table: Path) -> None:
    """After ``allow`` the same object waits as if for the first time."""
    name = named(quarantine, Code.LABEL_UNKNOWN)
    quarantine.delete(name, who=WHO)
    quarantine.allow(name, who=WHO)
    assert intake_table(store, table, progress=False).codes == {"colour": 1, "label-unknown": 1}
    with pytest.raises(StateError):
        quarantine.allow(name, who=WHO)


def test_a_second_look_keeps_what_was_drawn(quarantine: Quarantine, store: CohortStore, table: Path) -> None:
    """An object that is taken in again while it waits keeps its boxes, and no second picture is kept."""
    name = named(quarantine, Code.COLOUR)
    quarantine.mask(name, TEXT, who=WHO)
    intake_table(store, table, progress=False)
    assert quarantine.item(name).masks == (Rectangle(*TEXT),)
    assert len(list((store.data / "quarantine").iterdir())) == 2


@pytest.mark.parametrize("action", ["mask", "unmask", "release", "delete"])
def test_what_changed_since_it_was_seen_is_not_acted_on(quarantine: Quarantine, action: str) -> None:
    """With the stamp of an earlier look, every action is refused and nothing changes."""
    name = named(quarantine, Code.COLOUR)
    old = quarantine.item(name).stamp
    quarantine.mask(name, TEXT, who=WHO)
    now = quarantine.item(name)
    more = ((0, 0, 5, 5),) if action == "mask" else ()
    with pytest.raises(StateError, match="look at it again"):
        getattr(quarantine, action)(name, *more, who=WHO, seen=old)
    assert quarantine.item(name) == now


def test_burned_in_text_is_blacked_out_before_a_release(store: CohortStore) -> None:
    """Where the header says that text is burned in, a release without a box is refused."""
    name, quarantine = one_waiting(store, Code.BURNED_IN_TEXT), Quarantine(store)
    with pytest.raises(StateError, match="black it out"):
        quarantine.release(name, who=WHO)
    quarantine.mask(name, (0, 0, 80, 10), who=WHO)
    assert quarantine.release(name, who=WHO) == 1


def test_what_only_its_source_can_mend_has_no_picture_and_no_release(store: CohortStore) -> None:
    """An object that waits for a code no person can judge by looking is not kept, and can only be deleted."""
    name, quarantine = one_waiting(store, Code.PATIENT_MISSING), Quarantine(store)
    assert not (store.data / "quarantine").exists()
    with pytest.raises(StateError):
        quarantine.release(name, who=WHO)
    with pytest.raises(StateError):
        quarantine.mask(name, (0, 0, 5, 5), who=WHO)
    quarantine.delete(name, who=WHO)
    assert quarantine.items() == []


def test_codes_are_sorted_by_who_can_mend_them() -> None:
    """No code is mended in two ways; what may be an identified patient's dispute or a withdrawal is never a person's to release."""
    assert not BY_EYE & BY_LABEL
    assert not (BY_EYE | BY_LABEL) & BEYOND_REPAIR
    assert not (BY_EYE | BY_LABEL) & {Code.CONSENT_WITHDRAWN, Code.ROLE_CONFLICT, Code.PATIENT_MISSING, Code.PATIENT_UNSURE, Code.UID_REUSED}


def test_a_released_object_passes_the_same_admission(store: CohortStore) -> None:
    """A patient who has the other role by now keeps the object out; it waits on."""
    name, quarantine = one_waiting(store, Code.NO_SCAN_REGION), Quarantine(store)
    held = HeldStore(store).get(store.pseudonyms.key("object", "someone", Code.NO_SCAN_REGION))
    assert held is not None
    with Session(store.engine) as session:
        session.merge(held).images = [{**held.images[0], "role": "holdout"}]
        session.commit()
    frame = np.random.default_rng(2).integers(1, 255, (64, 64), dtype=np.uint8)
    member = NewImage(
        gray=frame,
        patient_key=store.pseudonyms.patient_key("someone"),
        pathology=Pathology.BENIGN,
        box=None,
        device="",
        source_key="s",
        role="member",
    )
    store.add(member)
    with pytest.raises(StateError, match="other role"):
        quarantine.release(name, who=WHO)
    assert quarantine.item(name).releasable


def test_withdrawn_consent_empties_the_quarantine_of_that_patient(node: NodeSettings, store: CohortStore) -> None:
    """Withdrawal deletes what waits of the patient, rows and pictures, and nobody else's."""
    one_waiting(store, Code.NO_SCAN_REGION, "who stays")
    gone = one_waiting(store, Code.NO_SCAN_REGION, "who goes")
    withdraw(node, store.pseudonyms.patient_key("who goes"), known=False)
    assert [item.name == gone for item in Quarantine(store).items()] == [False]
    assert len(list((store.data / "quarantine").iterdir())) == 1


BORN = "19610412"


def waiting_for_its_scanner(store: CohortStore, number: str, name: str = "") -> None:
    """An object of a patient of this number, and name, waits with a picture."""
    person = store.pseudonyms.person(number, name=name, birth_date=BORN if name else "")
    frame = np.random.default_rng(len(number)).integers(1, 255, (64, 80), dtype=np.uint8)
    key = store.pseudonyms.key("test", number, name)
    image = NewImage(gray=frame, patient_key=person.key, pathology=Pathology.BENIGN, box=None, device=DEVICE, source_key=key, person=person)
    store.quarantine(key, code=Code.DEVICE_UNKNOWN, reason="")
    HeldStore(store).put(key, Held(images=(image,)))


def admitted(store: CohortStore, number: str, name: str) -> None:
    person = store.pseudonyms.person(number, name=name, birth_date=BORN)
    frame = np.random.default_rng(3).integers(1, 255, (64, 80), dtype=np.uint8)
    store.add(NewImage(gray=frame, patient_key=person.key, pathology=Pathology.BENIGN, box=None, device="", source_key=number, person=person))


@pytest.mark.parametrize("by", ["1", "22"])
def test_what_waits_under_another_number_goes_with_its_patient(node: NodeSettings, store: CohortStore, by: str) -> None:
    """One patient, taken in under one number, waits under a second number by name, and once by the second number alone. A withdrawal by either
    number deletes image, pictures and rows, and both numbers are refused; somebody else's object waits on."""
    admitted(store, "1", "Doe^Jane")
    waiting_for_its_scanner(store, "22", "Doe^Jane")
    waiting_for_its_scanner(store, "22")
    waiting_for_its_scanner(store, "333", "Roe^Mary")
    assert withdraw(node, store.pseudonyms.patient_key(by)).images == 1
    assert [person.key for person in HeldStore(store).people()] == [store.pseudonyms.patient_key("333")]
    assert (len(Quarantine(store).items()), len(list((store.data / "quarantine").iterdir())), stored(store)) == (1, 1, [])
    assert all(store.withdrawn(store.pseudonyms.person(number)) for number in ("1", "22"))


def test_a_patient_of_whom_everything_waits_can_withdraw(node: NodeSettings, store: CohortStore) -> None:
    """Nothing was taken in of the patient, so only what waits says that two numbers are one patient's; all of it goes."""
    waiting_for_its_scanner(store, "1", "Doe^Jane")
    waiting_for_its_scanner(store, "22", "Doe^Jane")
    waiting_for_its_scanner(store, "1")
    withdraw(node, store.pseudonyms.patient_key("22"))
    assert (HeldStore(store).people(), list((store.data / "quarantine").iterdir())) == ([], [])
    assert store.withdrawn(store.pseudonyms.person("1"))


def test_no_picture_is_kept_of_a_patient_who_withdrew(node: NodeSettings, store: CohortStore, tmp_path: Path) -> None:
    """An object of an unknown scanner whose patient withdrew consent is refused; it does not wait with its picture."""
    study_of_unknown_device(tmp_path / "study")
    header = dcmread(tmp_path / "study" / "IM00001")
    withdraw(node, store.pseudonyms.patient_key(header.PatientID, issuer=header.IssuerOfPatientID), known=False)
    result = intake_dicom(store, tmp_path / "study", tmp_path / "study" / "labels.csv", progress=False)
    assert set(result.codes) == {"consent-withdrawn"}
    assert not (store.data / "quarantine").exists()


def test_a_patient_who_withdrew_is_not_released(node: NodeSettings, store: CohortStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waited of a patient who withdrew meanwhile is deleted when somebody releases it, should it still be there."""
    name, quarantine = one_waiting(store, Code.NO_SCAN_REGION), Quarantine(store)
    monkeypatch.setattr(HeldStore, "forget", lambda _self, _key: None)  # as if the withdrawal had been stopped half-way
    withdraw(node, store.pseudonyms.patient_key("someone"), known=False)
    with pytest.raises(ConsentWithdrawnError):
        quarantine.release(name, who=WHO)
    assert (quarantine.items(), stored(store), list((store.data / "quarantine").iterdir())) == ([], [], [])


def test_an_unknown_scanner_waits_until_somebody_vouches_for_it(store: CohortStore, tmp_path: Path) -> None:
    """Objects of a model nobody vouched for wait whatever else is right with them; vouching releases them, and later ones pass."""
    count = study_of_unknown_device(tmp_path / "study")
    labels, quarantine = tmp_path / "study" / "labels.csv", Quarantine(store)
    assert intake_dicom(store, tmp_path / "study", labels, progress=False).codes == {"device-unknown": count}
    assert [(item.device, item.trustable) for item in quarantine.items()] == [(DEVICE, True)] * count
    assert quarantine.trust("logiq  e9", who=WHO) == count
    assert (quarantine.items(), quarantine.trusted(), len(stored(store))) == ([], [DEVICE], count)
    ((_, line),) = journal(store, "device.")
    assert (line["device"], line["who"]) == (DEVICE, WHO)
    assert intake_dicom(store, tmp_path / "study", labels, progress=False).duplicates == count
    with pytest.raises(InputError):
        quarantine.trust("  ", who=WHO)


TWINS = ("LOGIQ Fortis", "LOGIQ Totus")  # both are "LOGIQ" when scrubbed


def test_vouching_for_one_scanner_passes_no_other_of_the_same_scrubbed_name(store: CohortStore, tmp_path: Path) -> None:
    """Claim I-7: a model is what its header says in full; only the scrubbed name is shown and stored."""
    count = study_of_unknown_device(tmp_path / "seen", patients=2, devices=TWINS[:1])
    later = study_of_unknown_device(tmp_path / "later", patients=2, devices=TWINS[1:], seed=4)
    intake_dicom(store, tmp_path / "seen", tmp_path / "seen" / "labels.csv", progress=False)
    quarantine = Quarantine(store)
    assert quarantine.trust("LOGIQ", who=WHO) == count
    assert intake_dicom(store, tmp_path / "later", tmp_path / "later" / "labels.csv", progress=False).codes == {"device-unknown": later}
    assert {item.device for item in quarantine.items()} == {"LOGIQ"}
    assert not any(b"totus" in file.read_bytes().lower() for file in store.data.rglob("*") if file.is_file())


def test_a_name_that_two_waiting_models_share_is_not_vouched_for(store: CohortStore, tmp_path: Path) -> None:
    """By their name it is refused; by an object, that object's model alone is released."""
    count = study_of_unknown_device(tmp_path / "study", patients=3, devices=TWINS)
    intake_dicom(store, tmp_path / "study", tmp_path / "study" / "labels.csv", progress=False)
    quarantine = Quarantine(store)
    with pytest.raises(InputError, match="2 models"):
        quarantine.trust("LOGIQ", who=WHO)
    item = quarantine.items()[0]
    assert quarantine.trust_scanner_of(item.name, who=WHO, seen=item.stamp) == (count + 1) // 2
    assert len({left.device_key for left in quarantine.items()} | {item.device_key}) == 2
    assert not any(left.device_key == item.device_key for left in quarantine.items())


def test_another_manufacturer_s_model_of_the_same_name_waits(store: CohortStore, tmp_path: Path) -> None:
    """The manufacturer is part of what is vouched for, and nobody else's scanner is a phantom."""
    write_phantom_study(tmp_path / "study", site="Testville", patients=1, seed=3)
    for path in (tmp_path / "study").glob("IM*"):
        header = dcmread(path)
        header.Manufacturer = "Somebody else"
        header.save_as(path)
    assert set(intake_dicom(store, tmp_path / "study", tmp_path / "study" / "labels.csv", progress=False).codes) == {"device-unknown"}


def test_names_that_an_earlier_version_trusted_wait_again(store: CohortStore, tmp_path: Path) -> None:
    """A scrubbed name does not say which model was looked at, so rows by name pass nothing."""
    with store.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE trusted_devices (device VARCHAR PRIMARY KEY)")
        connection.exec_driver_sql("INSERT INTO trusted_devices VALUES (?)", (DEVICE,))
    count = study_of_unknown_device(tmp_path / "study")
    assert intake_dicom(store, tmp_path / "study", tmp_path / "study" / "labels.csv", progress=False).codes == {"device-unknown": count}
    assert Quarantine(store).trusted() == []
    with Session(store.engine) as session:
        session.execute(update(HeldRow).values(device_key=None))  # as an earlier version held it
        session.commit()
    assert [item.trustable for item in Quarantine(store).items()] == [False] * count
    with pytest.raises(InputError, match="no object"):
        Quarantine(store).trust(DEVICE, who=WHO)


def two_objects(folder: Path, *whose: tuple[str, str, str]) -> Path:
    """Objects of an unknown scanner, of these patients: number, name, birth date."""
    study_of_unknown_device(folder, patients=3)
    files = sorted(folder.glob("IM*"))
    for path, (number, name, born) in zip(files, whose, strict=False):
        header = dcmread(path)
        header.PatientID, header.PatientName, header.PatientBirthDate = number, name, born
        header.save_as(path)
    for path in files[len(whose) :]:
        path.unlink()
    return folder


def take(store: CohortStore, folder: Path) -> dict[str, int]:
    return dict(intake_dicom(store, folder, folder / "labels.csv", progress=False).codes)


def people(store: CohortStore) -> int:
    return store.count_patients("member") + store.count_patients("holdout")


@pytest.mark.parametrize("alone", [True, False])
def test_one_patient_under_two_numbers_is_one_after_a_release_too(store: CohortStore, tmp_path: Path, alone: bool) -> None:
    """Two objects that waited at once, of one name and birth date and two numbers, are one patient's on one side, however they are released."""
    study, quarantine = two_objects(tmp_path / "study", ("1", "DOE^JANE", BORN), ("22", "DOE^JANE", BORN)), Quarantine(store)
    assert take(store, study) == {"device-unknown": 2}
    if alone:
        assert [quarantine.release(item.name, who=WHO) for item in quarantine.items()] == [1, 1]
    else:
        assert quarantine.trust(DEVICE, who=WHO) == 2
    assert (people(store), len(stored(store))) == (1, 2)
    assert len({row.role for row, _ in stored(store)}) == 1
    assert take(store, study) == {}


def test_what_contradicts_itself_waits_on_when_its_scanner_is_trusted(store: CohortStore, tmp_path: Path) -> None:
    """One number with two names and birth dates: the first is released, the second waits, says why, and makes no patient."""
    study, quarantine = two_objects(tmp_path / "study", ("1", "DOE^JANE", BORN), ("1", "ROE^MARY", "19800202")), Quarantine(store)
    take(store, study)
    assert quarantine.trust(DEVICE, who=WHO) == 1
    (item,) = quarantine.items()
    with pytest.raises(StateError, match="different patients"):
        quarantine.release(item.name, who=WHO)
    assert (people(store), len(stored(store))) == (1, 1)


def test_equal_frames_of_one_patient_count_once_after_a_release_too(store: CohortStore, tmp_path: Path) -> None:
    """The same frame sent under a new object number and a new patient number, both waiting, is one image; the second release adds none."""
    study, quarantine = two_objects(tmp_path / "study", ("1", "DOE^JANE", BORN)), Quarantine(store)
    header, labels = dcmread(study / "IM00001"), (study / "labels.csv").read_text()
    uid = header.SOPInstanceUID
    header.PatientID, header.SOPInstanceUID = "22", f"{uid}.1"
    header.save_as(study / "IM00002")
    (study / "labels.csv").write_text(labels + "".join(f"{line.replace(uid, f'{uid}.1')}\n" for line in labels.splitlines() if uid in line))
    take(store, study)
    assert [quarantine.release(item.name, who=WHO) for item in quarantine.items()] == [1, 0]
    assert (people(store), len(stored(store))) == (1, 1)


def test_an_object_that_waits_as_two_patients_is_released_as_one(store: CohortStore, tmp_path: Path) -> None:
    """An object that came again for somebody else while it waited is released once; the other is refused, for a person to say whose it is."""
    study, quarantine = two_objects(tmp_path / "study", ("1", "DOE^JANE", BORN)), Quarantine(store)
    header = dcmread(study / "IM00001")
    header.PatientID, header.PatientName, header.PatientBirthDate = "22", "ROE^MARY", "19800202"
    header.save_as(study / "IM00002")
    take(store, study)
    first, second = quarantine.items()
    quarantine.release(first.name, who=WHO)
    with pytest.raises(StateError, match="different patients"):
        quarantine.release(second.name, who=WHO)
    assert (people(store), len(stored(store))) == (1, 1)


def test_a_row_that_waited_is_its_patients_by_what_was_learnt_since(store: CohortStore, table: Path) -> None:
    """A table's row waits under a number that is then found to be a known patient's: released, it is that patient's."""
    admitted(store, "1", "Doe^Jane")
    store.learn(store.pseudonyms.person("patient of one", name="Doe^Jane", birth_date=BORN))
    quarantine = Quarantine(store)
    quarantine.mask(named(quarantine, Code.COLOUR), TEXT, who=WHO)
    quarantine.release(named(quarantine, Code.COLOUR), who=WHO)
    assert {row.patient_key for row, _ in stored(store)} == {store.pseudonyms.patient_key("1")}


def test_a_released_row_is_not_given_to_another_patient(quarantine: Quarantine, store: CohortStore, table: Path) -> None:
    """A row that a person released and that then names another patient waits; corrected back, nothing waits."""
    name, rows = named(quarantine, Code.COLOUR), (table / "images.csv").read_text()
    quarantine.mask(name, TEXT, who=WHO)
    quarantine.release(name, who=WHO)
    (table / "images.csv").write_text(rows.replace("patient of one", "patient of none"))
    assert intake_table(store, table, progress=False).codes == {"label-unknown": 1, "patient-unsure": 1}
    (table / "images.csv").write_text(rows)
    assert intake_table(store, table, progress=False).codes == {"label-unknown": 1}
    assert quarantine.counts() == {"label-unknown": 1}


def test_of_what_a_person_looks_at_no_header_stays_on_the_disk(store: CohortStore, tmp_path: Path) -> None:
    """An object that came over the network leaves the spool when its pixels wait; nothing of its header is in any byte of the node's folder."""
    study_of_unknown_device(tmp_path / "study")
    spool = Spool(store, store.data)
    with spool.receiving():
        spool.put((tmp_path / "study" / "IM00001").read_bytes(), "2.25.1")
    from busgen_client.intake.labels import read_labels

    take_in(store, spool.sources(read_labels(tmp_path / "study" / "labels.csv")), total=1, event="test", progress=False)
    assert Quarantine(store).counts() == {"device-unknown": 1}
    assert (spool.waiting(), spool.waiting(held=True)) == ([], [])
    everything = b"".join(path.read_bytes() for path in store.data.rglob("*") if path.is_file())
    assert DEVICE.encode() in everything  # so the search can find something
    assert not [text for text in (b"FICTITIOUS", b"REFERRER", b"Nowhere", b"OPERATOR") if text in everything]


def test_pictures_are_sealed_like_the_cohorts_images(quarantine: Quarantine, store: CohortStore) -> None:
    """On the disk a picture is neither PNG nor readable under another's name; its folder is the node's alone."""
    folder = store.data / "quarantine"
    one, two = sorted(folder.iterdir())
    assert not any(file.read_bytes().startswith(b"\x89PNG") for file in (one, two))
    assert folder.stat().st_mode & 0o077 == 0
    two.write_bytes(one.read_bytes())
    refused = 0
    for item in quarantine.items():
        try:
            quarantine.picture(item.name)
        except BusgenError:
            refused += 1
    assert refused == 1


def test_a_damaged_picture_is_refused_and_can_be_deleted(quarantine: Quarantine, store: CohortStore) -> None:
    """Without its file an object is neither shown nor released; it can still be deleted."""
    for file in (store.data / "quarantine").iterdir():
        file.unlink()
    name = named(quarantine, Code.LABEL_UNKNOWN)
    for act in (lambda: quarantine.picture(name), lambda: quarantine.release(name, who=WHO, pathology=Pathology.BENIGN)):
        with pytest.raises(CorruptImageError):
            act()
    quarantine.delete(name, who=WHO)


def test_files_of_a_crash_are_swept(quarantine: Quarantine, store: CohortStore, table: Path) -> None:
    """A picture without a row goes with the first intake of the next process."""
    (store.data / "quarantine" / "0123-0").write_bytes(b"left by a crash")
    intake_table(CohortStore(store.engine, store.data), table, progress=False)
    assert len(list((store.data / "quarantine").iterdir())) == 2


def test_a_release_waits_for_an_intake_and_then_says_so(quarantine: Quarantine, store: CohortStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an intake holds the cohort nothing is released, and the decision is not in the journal."""
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.3)
    name = named(quarantine, Code.LABEL_UNKNOWN)
    with store.intake(), pytest.raises(StateError, match="another intake"):
        quarantine.release(name, who=WHO, pathology=Pathology.BENIGN)
    assert journal(store) == []


def test_a_lesion_box_follows_the_cut(store: CohortStore) -> None:
    """Borders that are cut off move the lesion box; one that is blacked out itself keeps the object in."""
    frame = np.random.default_rng(1).integers(1, 255, (100, 100), dtype=np.uint8)
    image = NewImage(
        gray=frame, patient_key="k", pathology=Pathology.BENIGN, box=(0.5, 0.5, 0.7, 0.7), device="", source_key="s", person=None, birads=None
    )

    def refuse() -> list[NewImage]:
        raise QuarantineError(Code.NO_SCAN_REGION)

    for number, part in enumerate([(0, 50, 100, 100), (0, 0, 100, 40)]):
        held = Held(images=(replace(image, source_key=f"s{number}"),))
        source = Source(key=store.pseudonyms.key("object", str(number)), read=refuse, show=lambda held=held: held)
        take_in(store, [source], total=1, event="test", progress=False)
        Quarantine(store).mask(source.key[:12], part, who=WHO, keep=True)
    first, second = Quarantine(store).items()
    Quarantine(store).release(first.name, who=WHO)
    ((row, _),) = stored(store)
    assert row.box == pytest.approx([0.5, 0.0, 0.7, 0.4])
    with pytest.raises(InputError, match="lesion box"):
        Quarantine(store).release(second.name, who=WHO)


sizes = st.integers(1, 40)


@given(rows=sizes, columns=sizes, corners=st.tuples(*[st.integers(-50, 50)] * 4))
def test_all_around_a_box_leaves_just_the_box(rows: int, columns: int, corners: tuple[int, int, int, int]) -> None:
    """Whatever is drawn, it is refused or lies in the frame; and blacking out all around it leaves it to the pixel."""
    try:
        drawn = box(corners, rows=rows, columns=columns)
    except InputError:
        return
    assert 0 <= drawn.x0 < drawn.x1 <= columns
    assert 0 <= drawn.y0 < drawn.y1 <= rows
    assert left_over(around(drawn, rows=rows, columns=columns), rows=rows, columns=columns) == drawn


def test_nothing_can_be_left(quarantine: Quarantine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that is black all over is not released, one that keeps too little neither; nor does it take boxes without end."""
    name = named(quarantine, Code.COLOUR)
    quarantine.mask(name, (0, 0, COLUMNS, ROWS), who=WHO)
    with pytest.raises(InputError, match="whole picture"):
        quarantine.release(name, who=WHO)
    quarantine.unmask(name, who=WHO)
    quarantine.mask(name, (200, 100, 210, 110), who=WHO, keep=True)
    with pytest.raises(InputError, match="smaller than"):
        quarantine.release(name, who=WHO)
    monkeypatch.setattr(module, "MOST", 4)
    with pytest.raises(InputError, match="at most"):
        quarantine.mask(name, (0, 0, 5, 5), who=WHO)


@pytest.mark.parametrize("name", ["", "%", "_" * 12, "0" * 12, "' OR 1=1 --padding"])
def test_a_name_is_a_whole_name(quarantine: Quarantine, name: str) -> None:
    """Nothing is found by an empty name, a wildcard or a stranger."""
    with pytest.raises(StateError):
        quarantine.item(name)


def say(node_toml: Path, *words: str) -> dict[str, object]:
    done = CliRunner().invoke(app, ["quarantine", *words, "--json", "--config", str(node_toml)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_commands_do_the_same(quarantine: Quarantine, store: CohortStore, tmp_path: Path) -> None:
    """list, show, mask, release and delete, as JSON, with the system's user in the journal."""
    toml = tmp_path / "node.toml"
    first, second = (row["object"] for row in say(toml, "list"))
    shown = say(toml, "show", first, "--out", str(tmp_path / "pictures"))
    assert (shown["code"], shown["ways"]) == ("colour", ["release", "mask", "delete"])
    assert [file.read_bytes() for file in (tmp_path / "pictures").iterdir()] == [encode_png(pixels(quarantine, first))]
    text = ",".join(map(str, TEXT))
    assert say(toml, "mask", first, "--box", text, "--box", "0,0,5,5")["boxes"] == [list(TEXT), [0, 0, 5, 5]]
    assert say(toml, "mask", first, "--clear", "--box", text)["boxes"] == [list(TEXT)]
    assert say(toml, "release", first)["added"] == 1
    assert say(toml, "delete", second, "--yes") == {"object": second, "deleted": True}
    assert say(toml, "list") == []
    assert {detail["who"].endswith("(command line)") for _, detail in journal(store)} == {True}


def test_a_command_asks_before_it_deletes(quarantine: Quarantine, tmp_path: Path) -> None:
    """Without --yes and without an answer nothing is deleted; a box that is none is refused by name."""
    toml, name = str(tmp_path / "node.toml"), named(quarantine, Code.COLOUR)
    asked = CliRunner().invoke(app, ["quarantine", "delete", name, "--config", toml], input="n\n")
    assert isinstance(asked.exception, StateError)
    wrong = CliRunner().invoke(app, ["quarantine", "mask", name, "--box", "a,b", "--config", toml])
    assert isinstance(wrong.exception, InputError)
    assert quarantine.item(name).masks == ()
