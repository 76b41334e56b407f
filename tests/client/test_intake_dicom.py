"""Intake of DICOM files: de-identification, scan region, quarantine."""

import io
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.dataelem import DataElement
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    UltrasoundMultiFrameImageStorage,
)
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from busgen_client.cohort import CohortStore
from busgen_client.cohort_rows import ImageRow, JournalRow
from busgen_client.database import open_store
from busgen_client.intake.decode import check_described
from busgen_client.intake.dicom import clean_images, intake_dicom
from busgen_client.intake.findings import REASONS, Code, QuarantineError
from busgen_client.intake.header import read_clean
from busgen_client.intake.labels import Labels, read_labels
from busgen_client.intake.phantom_dicom import COLUMNS, REGION_SIZE, REGION_X0, REGION_Y0, ROWS, write_phantom_study
from busgen_client.storage import MAGIC
from busgen_core.errors import InputError, TableError
from busgen_core.labels import Pathology
from tests.client.headers import PROFILE
from tests.client.waiting import vouch
from tests.shared import shared_data


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_store(tmp_path / "node")
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine: Engine, tmp_path: Path) -> CohortStore:
    return CohortStore(engine, tmp_path / "node")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_phantom_study(folder, site="Testville", patients=6, seed=3)
    return folder


def first(study: Path) -> tuple[Dataset, Labels]:
    """An object with a lesion box, and the labels."""
    labels = read_labels(study / "labels.csv")
    objects = (dcmread(path) for path in sorted(study.glob("IM*")))
    return next(o for o in objects if labels.of(o.SOPInstanceUID).box), labels


def as_bytes(header: Dataset) -> bytes:
    out = io.BytesIO()
    header.save_as(out)
    return out.getvalue()


def test_study_is_taken_in(store: CohortStore, study: Path) -> None:
    """Every object of a clean study is admitted; a second run adds nothing."""
    count = len(list(study.glob("IM*")))
    result = intake_dicom(store, study, study / "labels.csv", progress=False)
    again = intake_dicom(store, study, study / "labels.csv", progress=False)
    assert (result.added, result.codes) == (count, {})
    assert (again.added, again.duplicates, again.codes) == (0, count, {})


def test_frame_is_the_scan_region_and_nothing_else(store: CohortStore, study: Path) -> None:
    """The stored frame equals the region pixel by pixel; the text burned in beside it is in no stored pixel."""
    header, labels = first(study)
    whole = header.pixel_array
    scan = (slice(REGION_Y0, REGION_Y0 + REGION_SIZE), slice(REGION_X0, REGION_X0 + REGION_SIZE))
    outside = whole.copy()
    outside[scan] = 0
    assert (outside > 128).sum() > 300  # the text is there, so its absence means something
    (image,) = clean_images(store, as_bytes(header), labels)
    assert np.array_equal(image.gray, whole[scan])


def test_box_is_right_after_the_crop(store: CohortStore, study: Path) -> None:
    """A box in pixels of the whole frame becomes fractions of the crop."""
    header, labels = first(study)
    box = labels.of(header.SOPInstanceUID).box
    assert box is not None
    (image,) = clean_images(store, as_bytes(header), labels)
    assert image.box is not None
    back = [REGION_X0 + REGION_SIZE * image.box[0], REGION_Y0 + REGION_SIZE * image.box[1]]
    back += [REGION_X0 + REGION_SIZE * image.box[2], REGION_Y0 + REGION_SIZE * image.box[3]]
    assert back == pytest.approx(box)


def test_region_of_something_else_is_black(store: CohortStore, study: Path) -> None:
    """Outside the scan region nothing is kept, and inside a region that is no B-mode scan every pixel is black."""
    header, labels = first(study)
    scan, bar = Dataset(), Dataset()
    for item, kind, corners in ((scan, 1, (0, 0, 199, 191)), (bar, 0x0D, (0, 0, 49, 49))):
        item.RegionSpatialFormat, item.RegionDataType = 1, kind
        item.RegionLocationMinX0, item.RegionLocationMinY0, item.RegionLocationMaxX1, item.RegionLocationMaxY1 = corners
    header.SequenceOfUltrasoundRegions = [scan, bar]
    header.PixelData = (np.random.default_rng(0).integers(1, 255, (ROWS, COLUMNS)).astype(np.uint8)).tobytes()
    (image,) = clean_images(store, as_bytes(header), labels)
    assert image.gray.shape == (ROWS, 200)
    assert not image.gray[:50, :50].any()
    assert image.gray[50:].all()


def region(header: Dataset, **values: int) -> None:
    for keyword, value in values.items():
        setattr(header.SequenceOfUltrasoundRegions[0], keyword, value)


def coloured(header: Dataset) -> None:
    pixels = np.repeat(header.pixel_array[..., None], 3, axis=2)
    pixels[REGION_Y0 : REGION_Y0 + 20, REGION_X0 : REGION_X0 + 20] = (200, 30, 30)
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PlanarConfiguration = 3, "RGB", 0
    header.PixelData = pixels.tobytes()


def without_regions(header: Dataset) -> None:
    del header.SequenceOfUltrasoundRegions
    header.BurnedInAnnotation = "NO"


def huge(header: Dataset) -> None:
    header.Rows = header.Columns = 65_535


def wrong_vr(header: Dataset) -> None:
    header["Rows"] = DataElement(0x0028_0010, "LO", "192")


DEFECTS: dict[str, tuple[Callable[[Dataset], object], Code]] = {
    "no region, said to be clean": (without_regions, Code.NO_SCAN_REGION),
    "no region, text burned in": (lambda h: h.pop("SequenceOfUltrasoundRegions"), Code.BURNED_IN_TEXT),
    "no region of tissue": (lambda h: region(h, RegionDataType=5), Code.BURNED_IN_TEXT),
    "region of spectral Doppler": (lambda h: region(h, RegionDataType=3), Code.OTHER_MODE),
    "region beyond the frame": (lambda h: region(h, RegionLocationMaxX1=COLUMNS + 1), Code.SCAN_REGION_INVALID),
    "region inside out": (lambda h: region(h, RegionLocationMaxY1=REGION_Y0), Code.SCAN_REGION_INVALID),
    "region too small": (lambda h: region(h, RegionLocationMaxY1=REGION_Y0 + 9), Code.IMAGE_SMALL),
    "region of colour flow": (lambda h: region(h, RegionDataType=2), Code.COLOUR),
    "colour in the region": (coloured, Code.COLOUR),
    "constant pixels": (lambda h: setattr(h, "PixelData", bytes(ROWS * COLUMNS)), Code.IMAGE_EMPTY),
    "more rows than pixels": (lambda h: setattr(h, "Rows", 2 * ROWS), Code.PIXELS_LIE),
    "fewer rows than pixels": (lambda h: setattr(h, "Rows", ROWS - 2), Code.PIXELS_LIE),
    "frames that are not there": (lambda h: setattr(h, "NumberOfFrames", 30), Code.PIXELS_LIE),
    "a frame beyond memory": (huge, Code.FILE_TOO_LARGE),
    "no rows": (lambda h: h.pop("Rows"), Code.DICOM_INVALID),
    "rows as text": (wrong_vr, Code.DICOM_INVALID),
    "no pixels": (lambda h: h.pop("PixelData"), Code.DICOM_INVALID),
    "signed pixels": (lambda h: setattr(h, "PixelRepresentation", 1), Code.PIXELS_UNDECODABLE),
    "unknown photometric interpretation": (lambda h: setattr(h, "PhotometricInterpretation", "HSV"), Code.PIXELS_UNDECODABLE),
    "palette without a table": (lambda h: setattr(h, "PhotometricInterpretation", "PALETTE COLOR"), Code.PIXELS_UNDECODABLE),
    "another modality": (lambda h: setattr(h, "Modality", "MG"), Code.NOT_ULTRASOUND),
    "another class": (lambda h: setattr(h, "SOPClassUID", CTImageStorage), Code.NOT_ULTRASOUND),
    "no patient": (lambda h: setattr(h, "PatientID", ""), Code.PATIENT_MISSING),
    "no label": (lambda h: setattr(h, "SOPInstanceUID", "1.2.3"), Code.LABEL_MISSING),
    "deflated": (lambda h: setattr(h.file_meta, "TransferSyntaxUID", DeflatedExplicitVRLittleEndian), Code.TRANSFER_SYNTAX),
}


@pytest.mark.parametrize(("defect", "code"), DEFECTS.values(), ids=DEFECTS)
def test_defect_waits_in_quarantine(store: CohortStore, study: Path, defect: Callable[[Dataset], object], code: Code) -> None:
    """Each defect of an otherwise good object has its own code."""
    header, labels = first(study)
    assert clean_images(store, as_bytes(header), labels)
    defect(header)
    with pytest.raises(QuarantineError) as held:
        clean_images(store, as_bytes(header), labels)
    assert held.value.finding is code


LABELS = {
    "unknown label": ("malign,,,,", Code.LABEL_UNKNOWN),
    "normal with a box": ("normal,80,80,90,90", Code.LABEL_CONTRADICTORY),
    "box inside out": ("benign,90,80,80,90", Code.BOX_INVALID),
    "box without a corner": ("benign,90,80,,90", Code.BOX_INVALID),
    "box of no number": ("benign,90,80,nan,90", Code.BOX_INVALID),
    "box outside the region": ("benign,0,0,20,20", Code.BOX_OUTSIDE_REGION),
    "two labels": ("benign,,,,\n{uid},malignant,,,,", Code.LABEL_CONTRADICTORY),
}


@pytest.mark.parametrize(("line", "code"), LABELS.values(), ids=LABELS)
def test_bad_label_holds_its_own_object_only(store: CohortStore, study: Path, tmp_path: Path, line: str, code: Code) -> None:
    """A bad row of the label file is told at its object; the label file stays usable."""
    header, _ = first(study)
    uid = header.SOPInstanceUID
    (tmp_path / "labels.csv").write_text(f"SOPInstanceUID,pathology,x0,y0,x1,y1\n{uid},{line.format(uid=uid)}\n1.2,benign,,,,\n", "utf-8")
    labels = read_labels(tmp_path / "labels.csv")
    with pytest.raises(QuarantineError) as held:
        clean_images(store, as_bytes(header), labels)
    assert held.value.finding is code
    assert labels.of("1.2").pathology is Pathology.BENIGN


def test_unusable_label_file_or_folder_stops_the_run(store: CohortStore, study: Path, tmp_path: Path) -> None:
    """Neither a label file without its columns nor a folder that is none adds anything."""
    (tmp_path / "bad.csv").write_text("uid,label\n", "utf-8")
    with pytest.raises(TableError):
        intake_dicom(store, study, tmp_path / "bad.csv", progress=False)
    with pytest.raises(InputError):
        intake_dicom(store, tmp_path / "nowhere", None, progress=False)
    assert store.summary().quarantined == {}


@pytest.mark.usefixtures("unread")
def test_labels_that_come_later_lift_the_quarantine(store: CohortStore, study: Path) -> None:
    """Without labels every object waits; with them the same files are admitted and nothing waits any more."""
    count = len(list(study.glob("IM*")))
    waiting = intake_dicom(store, study, None, progress=False)
    assert waiting.codes == {"label-missing": count, "not-dicom": 1}  # labels.csv itself, not named as such
    assert intake_dicom(store, study, study / "labels.csv", progress=False).added == count
    assert store.summary().quarantined == {"not-dicom": 1}


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "JPEG"])
def test_clip_gives_at_most_eight_frames_without_boxes(store: CohortStore, study: Path, compressed: bool) -> None:
    """Twenty frames give seven, evenly spread, each with its own source key; a box of one frame is not given to others."""
    header, labels = first(study)
    frames = [np.roll(header.pixel_array, n, axis=1) for n in range(20)]
    header.NumberOfFrames = len(frames)
    header.SOPClassUID = UltrasoundMultiFrameImageStorage
    header.PixelData = b"".join(frame.tobytes() for frame in frames)
    if compressed:
        header.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        header.PixelData = encapsulate([jpeg(frame) for frame in frames])
        header["PixelData"].VR = "OB"
    images = clean_images(store, as_bytes(header), labels)
    assert len(images) == 7
    assert len({image.source_key for image in images}) == 7
    assert {image.box for image in images} == {None}
    wanted = frames[18][REGION_Y0 : REGION_Y0 + REGION_SIZE, REGION_X0 : REGION_X0 + REGION_SIZE]
    assert np.abs(images[6].gray.astype(int) - wanted).mean() < (4 if compressed else 1e-9)


def jpeg(frame: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "JPEG", quality=95)
    return out.getvalue()


def jpeg2000(frame: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "JPEG2000", no_jp2=True)
    return out.getvalue()


@pytest.mark.parametrize(("syntax", "encode"), [(JPEG2000Lossless, jpeg2000), (JPEGBaseline8Bit, jpeg)], ids=["JPEG 2000", "JPEG"])
def test_compressed_frame_of_another_shape_waits(store: CohortStore, study: Path, syntax: UID, encode: Callable[[np.ndarray], bytes]) -> None:
    """Rows and columns that give the same total would shear the frame, and move burned-in text into the region: refused."""
    header, labels = first(study)
    header.PixelData = encapsulate([encode(header.pixel_array)])
    header.file_meta.TransferSyntaxUID = syntax
    header["PixelData"].VR = "OB"
    assert clean_images(store, as_bytes(header), labels)
    header.Rows, header.Columns = 2 * ROWS, COLUMNS // 2
    region(header, RegionLocationMinX0=0, RegionLocationMaxX1=COLUMNS // 2 - 1)
    with pytest.raises(QuarantineError) as held:
        clean_images(store, as_bytes(header), labels)
    assert held.value.finding is Code.PIXELS_LIE


def test_inverted_gray_is_turned_over(store: CohortStore, study: Path) -> None:
    """MONOCHROME1 stores white as 0; the cohort does not."""
    header, labels = first(study)
    (upright,) = clean_images(store, as_bytes(header), labels)
    header.PhotometricInterpretation = "MONOCHROME1"
    (turned,) = clean_images(store, as_bytes(header), labels)
    assert np.array_equal(255 - upright.gray, turned.gray)


def test_name_in_the_device_model_does_not_survive(study: Path) -> None:
    """The header's own name, nested or not, is struck out of the one text that is stored."""
    header, _ = first(study)
    header.PatientName = "Musterfrau^Erika"
    inner = Dataset()
    inner.RequestingPhysician = "Quacksalber^Otto"
    header.RequestAttributesSequence = [inner]
    header.ManufacturerModelName = "iU22 Erika Otto 19850306"
    assert read_clean(as_bytes(header), PROFILE).device == "iU22"


def test_header_keeps_only_what_the_rules_list(study: Path) -> None:
    """After the parser, nothing identifying is in the header, and no identifier shows in a repr."""
    header, _ = first(study)
    clean = read_clean(as_bytes(header), PROFILE)
    shown = str(clean.header) + repr(clean.identity)
    for value in (header.PatientName, header.PatientID, header.PatientBirthDate, header.InstitutionName, header.SOPInstanceUID, "FICTITIOUS"):
        assert str(value) not in shown
    assert not [element.tag for element in clean.header.iterall() if element.tag.is_private]


def test_cut_file_never_escapes_quarantine(store: CohortStore, study: Path) -> None:
    """Cut at any of sixty places, an object waits; nothing but our own error comes out."""
    header, labels = first(study)
    data = as_bytes(header)
    for length in np.linspace(0, len(data) - 1, 60).astype(int):
        with pytest.raises(QuarantineError):
            clean_images(store, data[:length], labels)


@pytest.mark.usefixtures("unread")
def test_damaged_header_raises_only_our_own_error(store: CohortStore, study: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of 150 objects with random bytes in the header, each is admitted or waits, and no log line says anything of it."""
    header, labels = first(study)
    data = as_bytes(header)
    rng = np.random.default_rng(0)
    waiting = 0
    with caplog.at_level(logging.DEBUG):
        for _ in range(150):
            broken = bytearray(data)
            for place in rng.integers(132, len(data) - ROWS * COLUMNS, 4):
                broken[place] = rng.integers(256)
            try:
                clean_images(store, bytes(broken), labels)
            except QuarantineError:
                waiting += 1
    assert 0 < waiting < 150
    assert not [record for record in caplog.records if record.name.startswith("pydicom")]


def test_file_that_pretends_to_be_sealed_does_not_end_the_run(store: CohortStore, study: Path, tmp_path: Path) -> None:
    """A file from outside that begins as our sealed files do waits as no DICOM file, and one after it is taken in."""
    folder = tmp_path / "study"
    folder.mkdir()
    shutil.copy(study / "labels.csv", folder)
    shutil.copy(min(study.glob("IM*")), folder / "B")
    (folder / "A").write_bytes(MAGIC + bytes(200))
    result = intake_dicom(store, folder, folder / "labels.csv", progress=False)
    assert (result.added, result.codes) == (1, {"not-dicom": 1})


@pytest.mark.parametrize(("stored", "compressed"), [(7, True), (0, False), (9, False), ("x", False)])
def test_depth_that_cannot_be_is_refused_before_a_decoder_sees_it(study: Path, stored: object, compressed: bool) -> None:
    """A compressed frame of fewer bits than its samples have, for which a decoder ends the whole process, waits; so does an impossible depth."""
    header = read_clean(min(study.glob("IM*")).read_bytes(), PROFILE).header
    assert check_described(header) == 1
    header["BitsStored"] = DataElement("BitsStored", "US", stored, already_converted=True)
    if compressed:
        header.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    with pytest.raises(QuarantineError) as held:
        check_described(header)
    assert held.value.finding is Code.PIXELS_UNDECODABLE


SEQUENCE, ITEM, END = b"\xfa\xff\xfa\xffSQ\0\0\xff\xff\xff\xff", b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\0\0\0\0"
UNTOLD, CLOSE = b"\xff\xff\xff\xff", b"\xfe\xff\x0d\xe0\0\0\0\0"
VALUES = b"ab\\" * 1_000_000
BOMBS = {
    "wide": (SEQUENCE + (ITEM + bytes(4)) * 1_000_000 + END, "dicom-invalid"),
    "deep": ((SEQUENCE + ITEM + UNTOLD) * 5000 + (CLOSE + END) * 5000, "dicom-invalid"),
    "many attributes": (b"".join(b"\x29\x10" + n.to_bytes(2, "little") + b"LO\x04\0abcd" for n in range(0x1000, 0xFFFF)), "dicom-invalid"),
    "many values": (b"\x29\x10\x01\x10UC\0\0" + len(VALUES).to_bytes(4, "little") + VALUES, ""),
}


@pytest.mark.parametrize(("bomb", "code"), BOMBS.values(), ids=BOMBS)
def test_bomb_in_a_header_ends_soon(store: CohortStore, study: Path, tmp_path: Path, bomb: bytes, code: str) -> None:
    """Very many or very deep items and very many attributes wait; a large private attribute is passed over. None takes 5 s of processor time."""
    folder = tmp_path / "study"
    folder.mkdir()
    shutil.copy(study / "labels.csv", folder)
    (folder / "bomb").write_bytes(min(study.glob("IM*")).read_bytes() + bomb)
    began = time.process_time()
    result = intake_dicom(store, folder, folder / "labels.csv", progress=False)
    assert time.process_time() - began < 5
    assert (result.added, result.codes) == ((0, {code: 1}) if code else (1, {}))


def test_every_code_has_a_reason() -> None:
    """No object can wait without a sentence that says why."""
    assert set(REASONS) == set(Code)


REAL = {
    "GH364.dcm": "burned-in-text",
    "JPGLosslessP14SV1_1s_1f_8b.dcm": "patient-missing",
    "US1_UNCR.dcm": "no-scan-region",
    "color-pl.dcm": "patient-missing",
    "examples_ybr_color.dcm": "scan-region-invalid",
    "gdcm-US-ALOKA-16.dcm": "split-screen",
}


def take(store: CohortStore, tmp_path: Path, names: list[str]) -> dict[str, int]:
    folder = tmp_path / "real"
    folder.mkdir()
    lines = ["SOPInstanceUID,pathology"]
    for name in names:
        shutil.copyfile(shared_data() / "dicom" / name, folder / name)
        lines.append(f"{dcmread(folder / name, stop_before_pixels=True, specific_tags=['SOPInstanceUID']).SOPInstanceUID},benign")
        vouch(store, folder / name)
    (folder / "labels.csv").write_text("\n".join(lines), "utf-8")
    result = intake_dicom(store, folder, folder / "labels.csv", progress=False)
    return {**result.codes, "added": result.added}


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(("name", "code"), REAL.items(), ids=REAL)
def test_real_file_waits_for_its_reason(store: CohortStore, tmp_path: Path, name: str, code: str) -> None:
    """Real files that cannot be taken in safely wait, each for a reason of its own."""
    assert take(store, tmp_path, [name]) == {code: 1, "added": 0}


def test_lossless_jpeg_decodes(store: CohortStore, tmp_path: Path) -> None:
    """JPEG Lossless and JPEG-LS, which scanners write, decode with what is installed."""
    from busgen_client.intake.decode import frames

    for name in ("JPGLosslessP14SV1_1s_1f_8b.dcm", "GH364.dcm"):
        header = read_clean((shared_data() / "dicom" / name).read_bytes(), PROFILE).header
        ((_, frame),) = frames(header)
        assert frame.shape == (768, 1024)
        assert frame.std() > 1


@pytest.mark.usefixtures("unread")
def test_no_identifying_string_reaches_the_node(store: CohortStore, tmp_path: Path, engine: Engine) -> None:
    """Claim: of RGB_IMAGE.dcm, whose header, private tags and pixels name a fictitious patient, no text is in any byte that the node stores."""
    name = "RGB_IMAGE.dcm"
    assert take(store, tmp_path, [name]) == {"added": 1}
    header = dcmread(shared_data() / "dicom" / name)
    texts = {str(e.value) for e in header.iterall() if e.VR in {"AE", "AS", "CS", "DA", "LO", "LT", "PN", "SH", "ST", "TM", "UI", "UT"}}
    parts = {part.strip() for text in texts for part in (text, *text.split("^"))} | {"ZZZDOWNTIME", "MARY", "00047431395", name}
    identifying = {part.encode() for part in parts if len(part) >= 4} - {b"S2000"}  # the device model is the one text that is kept
    with Session(engine) as session:
        (row,) = session.scalars(select(ImageRow)).all()
        notes = " ".join(session.scalars(select(JournalRow.detail)))
    digests = {row.image_id, row.patient_key, row.sha256, row.source_key, *re.findall("[0-9a-f]{64}", notes)}
    harmless = re.compile("|".join([*digests, "PRIMARY KEY"]).encode())  # random hexadecimal, and SQL that ends in "MARY"
    assert len(identifying) > 60
    stored = [harmless.sub(b"", file.read_bytes()) for file in (tmp_path / "node").rglob("*") if file.is_file()]
    assert any(b"S2000" in data for data in stored)
    assert {part for part in identifying for data in stored if part in data or part.lower() in data} == set()
    (png,) = (tmp_path / "node" / "images").iterdir()
    kept = np.asarray(Image.open(png))
    whole = np.asarray(Image.fromarray(header.pixel_array).convert("L"))
    assert (whole[:60] > 128).sum() > 500  # name, number and date are burned in there
    assert kept.shape == (705, 1009)
    assert np.array_equal(kept[24:640, 300:850], whole[84:700, 300:850])  # the scan between what the scanner wrote into the region
