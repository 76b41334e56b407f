"""De-identified objects, and what of the original headers is left in any byte that is written."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from bench.planted import planted_objects
from busgen_client.cli import app
from busgen_client.cohort import CohortStore
from busgen_client.cohort_rows import WithdrawnRow
from busgen_client.database import Base
from busgen_client.intake.dicom import clean_scans, intake_dicom
from busgen_client.intake.export import as_objects, write_deidentified
from busgen_client.intake.findings import REASONS
from busgen_client.intake.header import quietly, read_clean
from busgen_client.intake.phantom_dicom import REGION_SIZE, write_phantom_study
from busgen_client.intake.profile import METHOD, Profile, deidentify, own_values
from busgen_client.settings import load_settings
from busgen_core.errors import ConfigError, InputError
from busgen_privacy.deidentify import Choices, Option
from busgen_privacy.vocabulary import breast_words, device_words
from tests.client.headers import ALL, OPEN, PROFILE, key
from tests.client.node import lay_out
from tests.client.waiting import study_of_unknown_device, vouch
from tests.shared import shared_data

TEXT_VRS = {"AE", "AS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UN", "UR", "UT"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "node"


@pytest.fixture
def store(engine: Engine, data: Path) -> CohortStore:
    return CohortStore(engine, data, ALL)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_phantom_study(folder, site="Testville", patients=2, seed=3)
    return folder


def written(data: bytes, profile: Profile, *, text_removed: bool = False) -> bytes:
    """The way of intake, to the bytes of the first object."""
    clean = read_clean(data, profile)
    crop, scans, _ = clean_scans(clean.header)
    out = io.BytesIO()
    as_objects(clean, scans, crop=crop, profile=profile, text_removed=text_removed)[0].save_as(out, enforce_file_format=True)
    return out.getvalue()


def test_object_is_whole_and_shows_the_scan_alone(study: Path) -> None:
    """The object opens without a warning, its pixels are the scan region, its region is the whole frame, and its preamble is empty."""
    data = (study / "IM00001").read_bytes()
    before, after = dcmread(io.BytesIO(data)), dcmread(io.BytesIO(made := written(data, PROFILE)))
    (region,) = after.SequenceOfUltrasoundRegions
    assert after.pixel_array.shape == (REGION_SIZE, REGION_SIZE)
    assert (region.RegionLocationMinX0, region.RegionLocationMinY0) == (0, 0)
    assert (region.RegionLocationMaxX1, region.RegionLocationMaxY1) == (REGION_SIZE - 1, REGION_SIZE - 1)
    assert np.array_equal(after.pixel_array, clean_scans(read_clean(data, PROFILE).header)[1][0])
    assert made[:128] == bytes(128)
    assert after.file_meta.MediaStorageSOPInstanceUID == after.SOPInstanceUID != before.SOPInstanceUID
    assert after.PatientIdentityRemoved == "YES"


def test_clean_pixels_are_claimed_only_where_text_was_looked_for(study: Path) -> None:
    """Blacking out the surroundings is not enough to say that no text is burned in."""
    data = (study / "IM00001").read_bytes()
    shy, sure = (dcmread(io.BytesIO(written(data, PROFILE, text_removed=done))) for done in (False, True))
    assert "BurnedInAnnotation" not in shy
    assert [item.CodeValue for item in shy.DeidentificationMethodCodeSequence] == ["113100"]
    assert sure.BurnedInAnnotation == "NO"
    assert [item.CodeValue for item in sure.DeidentificationMethodCodeSequence] == ["113100", "113101"]


def test_folder_is_written_and_counted(store: CohortStore, study: Path, tmp_path: Path) -> None:
    """Every object gives a file named by its new UID; what intake would hold back is counted by code; nothing enters the cohort."""
    result = write_deidentified(store, study, tmp_path / "out", progress=False)
    files = sorted((tmp_path / "out").iterdir())
    assert (result.added, result.codes) == (len(list(study.glob("IM*"))), {"not-dicom": 1})
    assert len(files) == result.added
    assert all(dcmread(file).SOPInstanceUID == file.stem for file in files)
    assert store.ids("member") + store.ids("holdout") == []


def without_patient(path: Path) -> None:
    header = dcmread(path)
    header.PatientID = ""
    header.save_as(path)


def test_what_intake_would_hold_back_is_not_written(store: CohortStore, tmp_path: Path) -> None:
    """Claim: no object of an unknown scanner, without a patient, or of one who withdrew consent is written as clean; each is counted by its code."""
    folder = tmp_path / "study"
    study_of_unknown_device(folder, devices=("LOGIQ Fortis",))
    unknown = list(folder.glob("IM*"))
    write_phantom_study(tmp_path / "known", site="Testville", patients=3, seed=5)
    known = sorted((tmp_path / "known").glob("IM*"))
    without_patient(known[0])
    gone = dcmread(known[-1])
    tombstone = store.pseudonyms.tombstone(store.pseudonyms.patient_key(gone.PatientID, issuer=gone.IssuerOfPatientID))
    with Session(store.engine) as session:
        session.add(WithdrawnRow(tombstone=tombstone, account="", images=0, held=[], releases=[], stopped=[]))
        session.commit()
    theirs = [path for path in known[1:] if dcmread(path).PatientID == gone.PatientID]
    for path in known:
        shutil.copyfile(path, folder / f"KNOWN-{path.name}")
    result = write_deidentified(store, folder, tmp_path / "out", progress=False)
    assert result.codes == {"device-unknown": len(unknown), "patient-missing": 1, "consent-withdrawn": len(theirs), "not-dicom": 1}
    assert result.added == len(list((tmp_path / "out").iterdir())) == len(known) - 1 - len(theirs) > 0


@pytest.mark.usefixtures("unread")
def test_objects_of_one_patient_stay_together(store: CohortStore, tmp_path: Path) -> None:
    """Pseudonym, study and date are the same in every object of a patient, and no two patients share one."""
    write_phantom_study(tmp_path / "study", site="Testville", patients=6, seed=4)
    write_deidentified(store, tmp_path / "study", tmp_path / "out", progress=False)
    before = [dcmread(path) for path in sorted((tmp_path / "study").glob("IM*"))]
    after = [dcmread(path) for path in (tmp_path / "out").iterdir()]
    people = {(o.PatientID, o.StudyInstanceUID, o.StudyDate) for o in after}
    assert len(after) == len(before) > len(people) == len({o.PatientID for o in before})


def renamed(folder: Path, number: int, patient: str, name: str, born: str) -> None:
    """Another patient's identity for an object of a folder; its study date stays."""
    path = sorted(folder.glob("IM*"))[number]
    header = dcmread(path)
    header.PatientID, header.PatientName, header.PatientBirthDate, header.StudyDate = patient, name, born, "20240229"
    header.save_as(path)


def test_one_patient_has_one_pseudonym_under_two_numbers(store: CohortStore, tmp_path: Path) -> None:
    """Two numbers with one name and birth date are one patient in the preview too: one pseudonym, one shift of dates. What contradicts that is
    held back, and so is a patient who withdrew consent; the cohort learns nothing from it."""
    write_phantom_study(tmp_path / "study", site="Testville", patients=6, seed=4)
    for number, identity in enumerate([("1", "DOE^JANE"), ("22", "DOE^JANE"), ("22", "ROE^MARY"), ("333", "WHO^ANN")]):
        renamed(tmp_path / "study", number, *identity, "19610412" if number < 2 else f"1980020{number}")
    for path in sorted((tmp_path / "study").glob("IM*"))[4:]:
        path.unlink()
    with Session(store.engine) as session:
        issuer = dcmread(tmp_path / "study" / "IM00001").IssuerOfPatientID
        store.forget(session, store.pseudonyms.patient_key("333", issuer=issuer))
        tombstone = store.pseudonyms.tombstone(store.pseudonyms.patient_key("333", issuer=issuer))
        session.add(WithdrawnRow(tombstone=tombstone))
        session.commit()
    result = write_deidentified(store, tmp_path / "study", tmp_path / "out", progress=False)
    assert {code: n for code, n in result.codes.items() if code != "not-dicom"} == {"consent-withdrawn": 1, "patient-unsure": 1}
    after = [dcmread(path) for path in (tmp_path / "out").iterdir()]
    assert len(after) == 2
    assert len({(each.PatientID, each.StudyDate) for each in after}) == 1
    assert after[0].PatientID
    assert store.split()[0] == {}


def test_folder_is_not_written_into_itself(store: CohortStore, study: Path) -> None:
    """A second run would read what the first wrote."""
    with pytest.raises(InputError):
        write_deidentified(store, study, study / "out", progress=False)


def test_missing_language_model_stops_the_run(engine: Engine, study: Path, tmp_path: Path) -> None:
    """A model that the site chose and did not install is an error of the configuration, not of the objects."""
    store = CohortStore(engine, tmp_path / "node", Choices(nlp_models=("xx_nobody_has_this",)))
    with pytest.raises(ConfigError):
        intake_dicom(store, study, study / "labels.csv", progress=False)
    assert store.summary().quarantined == {}


@pytest.mark.parametrize("profile", [PROFILE, OPEN], ids=["Basic Profile", "every option"])
def test_identifiers_planted_everywhere_are_gone(study: Path, profile: Profile) -> None:
    """Claim: of identifiers in every VR, at the top, nested, three deep, private, in kept sequences, file meta, thumbnail and overlays, none is
    left. A thirtieth of PS3.6; bench/header_recall.py plants all of it."""
    data = (study / "IM00001").read_bytes()

    def base() -> Dataset:
        header = dcmread(io.BytesIO(data))
        header.SpecificCharacterSet = "ISO_IR 192"
        return header

    looked, kinds = 0, set()
    for whole, planted in planted_objects(base, every=30):
        out = io.BytesIO()
        with quietly():
            whole.save_as(out)
        made = written(out.getvalue(), profile).lower()
        assert all(p.needle.lower() in out.getvalue().lower() for p in planted)
        assert [p for p in planted if p.needle.lower() in made] == []
        looked, kinds = looked + len(planted), kinds | {p.vr for p in planted}
    assert looked > 400
    assert len(kinds) > 25


def identifying(header: Dataset) -> set[str]:
    """Strings of a header, four characters or longer, that say who, when or where: every text, number and date, nested and private ones too."""
    values = {value.strip(" \0") for value in own_values(header, TEXT_VRS, frozenset())}
    parts = {part for value in values for part in (value, *re.split(r"[\s^]+", value)) if len(part) >= 4}
    return {part for part in parts if not harmless(part)}


def harmless(part: str) -> bool:
    """Words of scanners and of anatomy, small numbers, and what PS3.6 registers."""
    tokens = re.findall(r"[^\W_]+", part)
    spoken = all(token in device_words() or token in breast_words() for token in tokens)
    return spoken or part.startswith("1.2.840.10008.") or re.fullmatch(r"-?\d{0,3}(\.\d+)?", part) is not None


NAMES = [
    *("GH364.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm", "RGB_IMAGE.dcm", "US1_UNCR.dcm", "color-pl.dcm", "examples_ybr_color.dcm"),
    "gdcm-US-ALOKA-16.dcm",
]


@pytest.mark.parametrize("profile", [PROFILE, OPEN], ids=["Basic Profile", "every option"])
@pytest.mark.parametrize("name", NAMES)
def test_no_string_of_a_real_header_is_in_its_de_identified_form(name: str, profile: Profile) -> None:
    """Claim: of each real file, no identifying string of four characters or more is in the header that is written, but the machine's own where
    the site retains it."""
    with quietly():
        full = dcmread(shared_data() / "dicom" / name)
        clean, out = deidentify(full, profile, patient=key("patient", name)), io.BytesIO()
        clean.save_as(out, implicit_vr=False, little_endian=True)
        machine = {str(full.get(word, "")) for word in ("StationName", "DeviceSerialNumber")} if profile is OPEN else set()
        strings = identifying(full) - {part for name in machine for part in (name, *name.split())}
        age = {str(full.get("PatientAge", ""))} if profile is OPEN else set()
    assert len(strings) >= 8
    ours = re.compile("|".join(re.escape(words) for words in (METHOD, *(meaning for _, meaning in profile.choices.methods()))).encode())
    left = ours.sub(b"", out.getvalue()).lower()
    assert {part for part in strings - age if part.casefold().encode() in left} == set()


@pytest.mark.usefixtures("unread")  # what is written in pixels is drawn, and no string of any byte
def test_no_string_of_any_real_header_is_in_the_node(store: CohortStore, engine: Engine, tmp_path: Path) -> None:
    """Claim: of all real files, taken in or in quarantine, no identifying string of four characters or more is in any byte that the node stores."""
    folder, strings, lines = tmp_path / "real", set[str](), ["SOPInstanceUID,pathology"]
    folder.mkdir()
    for name in NAMES:
        shutil.copyfile(shared_data() / "dicom" / name, folder / name)
        with quietly():
            header = dcmread(folder / name, stop_before_pixels=True)
            strings |= identifying(header) | {name, name.removesuffix(".dcm")}
        lines.append(f"{header.SOPInstanceUID},benign")
    (folder / "labels.csv").write_text("\n".join(lines), "utf-8")
    vouch(store, folder / "RGB_IMAGE.dcm")
    result = intake_dicom(store, folder, folder / "labels.csv", progress=False)
    assert (result.added, result.quarantined) == (1, 6)
    digests, constants = made_up(engine)
    strings = {part for part in strings if part.casefold() not in constants}
    assert len(strings) > 200
    stored = [digests.sub(b"", file.read_bytes()).lower() for file in (tmp_path / "node").rglob("*") if file.is_file()]
    assert any(b"s2000" in data for data in stored)

    def flat(part: str, data: bytes) -> bool:
        """A run of one letter in a picture is a flat part of it."""
        return len(set(part)) == 1 and data.startswith(b"\x89png")

    assert {part for part in strings for data in stored if part.casefold().encode() in data and not flat(part, data)} == set()


def made_up(engine: Engine) -> tuple[re.Pattern[bytes], str]:
    """Random digits in the store, in which four characters of a header may occur by chance; and the words of its schema and of our reasons."""
    with Session(engine) as session:
        values = {str(value) for table in Base.metadata.sorted_tables for row in session.execute(select(table)) for value in row}
        schema = [sql for sql in session.scalars(text("SELECT sql FROM sqlite_master")) if sql]
    digests = {digest for value in values for digest in re.findall("[0-9a-f]{32,64}", value)}
    return re.compile("|".join(digests).encode()), " ".join([*schema, *REASONS.values(), str(Base.metadata.tables.keys())]).casefold()


def test_command_follows_the_settings(study: Path, tmp_path: Path) -> None:
    """'intake preview' writes what the options in node.toml keep, and an option that is not offered is refused by name."""
    lay_out(tmp_path)
    config, plain = tmp_path / "node.toml", (tmp_path / "node.toml").read_text()
    config.write_text(plain + '[deidentify]\noptions = ["clean-descriptors"]\n')
    done = CliRunner().invoke(
        app, ["intake", "preview", str(study), str(tmp_path / "out"), "--json", "--config", str(config)], catch_exceptions=False
    )
    assert json.loads(done.stdout) == {"written": len(list(study.glob("IM*"))), "held back": 1, "not-dicom": 1}
    assert {dcmread(file).StudyDescription for file in (tmp_path / "out").iterdir()} == {"US BREAST"}
    config.write_text(plain + '[deidentify]\noptions = ["retain-uids"]\n')
    with pytest.raises(ConfigError, match="deidentify"):
        load_settings(config)


def test_every_choice_of_a_site_can_be_written_in_its_settings() -> None:
    """The names in node.toml are those of the options, and a list gives a set."""
    assert Choices.model_validate({"options": [option.value for option in Option]}) == ALL
