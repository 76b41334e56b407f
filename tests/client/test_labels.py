"""Labels from tables, RIS exports and structured reports, and what contradicts itself."""

import csv
import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image
from pydicom import Dataset

from busgen_client.intake.findings import Code, QuarantineError, Unread
from busgen_client.intake.labels import Label, read_labels
from busgen_client.intake.mapping import SHIPPED, read_mapping
from busgen_client.intake.sr import read_report
from busgen_core.errors import ConfigError, TableError
from busgen_core.labels import Birads, Pathology
from tests.client.sr_items import (
    ASSESSMENT,
    BENIGN_FINDING,
    CARCINOMA,
    FIBROADENOMA,
    FINDINGS,
    IMAGE,
    LEFT,
    OVERALL,
    PATHOLOGY,
    RIGHT,
    SIDE,
    STUDY,
    SUSPICIOUS,
    code,
    coded,
    finding,
    image_of,
    item,
    report,
    text,
)

WORDS = read_mapping(None)

DOUBTFUL = [
    *("V.a. Karzinom", "Z.n. Mammakarzinom", "r/o carcinoma", "prior carcinoma", "family history of breast cancer", "mother with breast carcinoma"),
    *("carcinoma ausgeschlossen", "free of carcinoma", "cancer-free", "carcinoma absent", "carcinoma: none", "history of breast cancer"),
    *("s/p lumpectomy for invasive ductal carcinoma", "contralateral breast carcinoma", "carcinoma never found", "DD Karzinom", "Ø Karzinom"),
    *("antécédent de carcinome", "carcinoma descartado", "sem carcinoma", "stan po raku, rak piersi", "Mammakarzinom 2015", "Mammakarzinom 03/15"),
    *("carcinoma: 0", "carcinoma (-)", "carcinoma -", "[ ] carcinoma", "☐ carcinoma", "∅ carcinoma", "carcinoma ±", "carcinoma w/o invasion"),
]
TEXTS = {
    "Fibroadenoma": Pathology.BENIGN,
    "FIBROADENOMA, 2.3 cm": Pathology.BENIGN,
    "Fibroadénome": Pathology.BENIGN,
    "Zyste rechts": Pathology.BENIGN,
    "normal lymph node": Pathology.BENIGN,
    "DCM:111251": Pathology.BENIGN,
    "Fibroadenoma of the left breast, upper outer quadrant, 3 o'clock, 12 x 8 mm": Pathology.BENIGN,
    "Fibroadénome du sein gauche, 2 cm": Pathology.BENIGN,
    "Quiste simple, mama izquierda": Pathology.BENIGN,
    "Cisto simples da mama direita": Pathology.BENIGN,
    "Torbiel prosta piersi lewej": Pathology.BENIGN,
    "Invasives duktales Karzinom, G2, pT1c N0 M0, links 10 Uhr": Pathology.MALIGNANT,
    "Invasive ductal carcinoma NOS, triple negative": Pathology.MALIGNANT,
    "B5b: invasive carcinoma": Pathology.MALIGNANT,
    "SCT:254845004 Fibroadenoma": Pathology.BENIGN,
    "Invasive lobular carcinoma": Pathology.MALIGNANT,
    "Invasive ductal carcinoma, grade 2": Pathology.MALIGNANT,
    "invasive carcinoma of no special type": Pathology.MALIGNANT,
    "Rak piersi": Pathology.MALIGNANT,
    "DCIS": Pathology.MALIGNANT,
    "8500/3": Pathology.MALIGNANT,
    "9010/0": Pathology.BENIGN,
    "B5b": Pathology.MALIGNANT,
    "b2": Pathology.BENIGN,
    "SCT:254845004": Pathology.BENIGN,
    "sct:82711006": Pathology.MALIGNANT,
    "benign": Pathology.BENIGN,
    "Normal breast tissue": Pathology.NORMAL,
    "": None,
    "  ": None,
    "Atypical ductal hyperplasia": Code.LABEL_UNDECIDED,
    "lobular carcinoma in situ": Code.LABEL_UNDECIDED,
    "8520/2": Code.LABEL_UNDECIDED,
    "B3": Code.LABEL_UNDECIDED,
    "no evidence of carcinoma": Code.LABEL_UNDECIDED,
    "suspicious for carcinoma": Code.LABEL_UNDECIDED,
    "carcinoma?": Code.LABEL_UNDECIDED,
    "kein Karzinom": Code.LABEL_UNDECIDED,
    "fibroadenoma with DCIS": Code.LABEL_UNDECIDED,
    "Phyllodes tumour": Code.LABEL_UNDECIDED,
    "SCT:71232009": Code.LABEL_UNDECIDED,
    "papilloma, B3": Code.LABEL_UNDECIDED,
    "carcinoma lobular in situ": Code.LABEL_UNDECIDED,
    **dict.fromkeys(DOUBTFUL, Code.LABEL_UNDECIDED),
    "see report": Code.LABEL_UNKNOWN,
    "SCT:1": Code.LABEL_UNKNOWN,
    "krakow": Code.LABEL_UNKNOWN,
}


@pytest.mark.parametrize(("text", "expected"), TEXTS.items(), ids=range(len(TEXTS)))
def test_histology_is_mapped_and_never_guessed(text: str, expected: Pathology | Code | None) -> None:
    """Words and codes have the class that the shipped file gives them; doubt, denial, two classes and strange words have none."""
    assert WORDS.pathology(text) == expected


ASSESSMENTS = {
    "4A": "4a",
    "BI-RADS 4a": "4a",
    "BIRADS:5": "5",
    "BI-RADS Category 2": "2",
    "2 - Benign finding": "2",
    "6": "6",
    "0": "0",
    "5c": Code.LABEL_UNKNOWN,
    "SCT:397143007": "3",
    "": "",
    "7": Code.LABEL_UNKNOWN,
    "4/5": Code.LABEL_UNKNOWN,
    "2 - 3": Code.LABEL_UNKNOWN,
    "12": Code.LABEL_UNKNOWN,
    "R4": Code.LABEL_UNKNOWN,
}


@pytest.mark.parametrize(("text", "expected"), ASSESSMENTS.items(), ids=range(len(ASSESSMENTS)))
def test_assessments_are_read_as_written(text: str, expected: str | Code) -> None:
    """The usual spellings and the codes of context group 6026 are known; two categories, or none that exists, are not one."""
    assert WORDS.assessment(text) == expected


def table(path: Path, rows: list[dict[str, object]], delimiter: str = ",") -> Path:
    out = io.StringIO()
    writer = csv.DictWriter(out, sorted({name for row in rows for name in row}), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(out.getvalue())
    return path


def why(ask: Callable[[], Label]) -> Code:
    """Why there is no label."""
    with pytest.raises(QuarantineError) as refused:
        ask()
    return refused.value.finding


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_an_export_of_the_ris_is_read_by_accession_number(tmp_path: Path, delimiter: str) -> None:
    """Histology, BI-RADS and device are joined to an object by its accession number, whatever the spreadsheet puts between cells."""
    rows = [{"Accession No": "A1", "Diagnosis": "IDC", "BI-RADS": "5", "Device": "LOGIQ E9", "Name": "x"}]
    labels = read_labels(table(tmp_path / "ris.csv", rows, delimiter))
    found = labels.of(IMAGE, accession="A1")
    assert (found.pathology, found.birads, found.device, found.box) == (Pathology.MALIGNANT, Birads.FIVE, "LOGIQ E9", None)
    assert why(lambda: labels.of(IMAGE, accession="A2")) is Code.LABEL_MISSING
    assert why(lambda: labels.of(IMAGE)) is Code.LABEL_MISSING


def test_a_json_export_says_the_same_as_a_csv(tmp_path: Path) -> None:
    """Numbers, missing values and nested values in JSON are no obstacle."""
    rows = [{"accession": 17, "histology": "fibroadenoma", "birads": 2, "note": None, "more": {"a": 1}}]
    (tmp_path / "ris.json").write_text(json.dumps(rows))
    assert read_labels(tmp_path / "ris.json").of(IMAGE, accession="17").birads is Birads.TWO


def test_sides_keep_lesions_apart(tmp_path: Path) -> None:
    """Each side has its own label; where the image's side is not known, two sides that differ make it wait."""
    rows = [
        {"accession": "1", "pathology": "benign", "laterality": "left"},
        {"accession": "1", "pathology": "malignant", "laterality": "R"},
        {"accession": "2", "pathology": "benign", "laterality": "both"},
    ]
    labels = read_labels(table(tmp_path / "ris.csv", rows))
    assert labels.of(IMAGE, accession="1", side="L").pathology is Pathology.BENIGN
    assert labels.of(IMAGE, accession="1", side="R").pathology is Pathology.MALIGNANT
    assert why(lambda: labels.of(IMAGE, accession="1")) is Code.LABEL_CONTRADICTORY
    assert labels.of(IMAGE, accession="2", side="L").pathology is Pathology.BENIGN


CONTRADICTIONS: dict[str, tuple[list[dict[str, object]], Code]] = {
    "two classes": ([{"pathology": "benign"}, {"pathology": "malignant"}], Code.LABEL_CONTRADICTORY),
    "class and histology": ([{"pathology": "benign", "histology": "DCIS"}], Code.LABEL_CONTRADICTORY),
    "two assessments": ([{"pathology": "benign", "birads": "2"}, {"pathology": "benign", "birads": "4"}], Code.LABEL_CONTRADICTORY),
    "normal with a finding": ([{"pathology": "normal", "birads": "4b"}], Code.LABEL_CONTRADICTORY),
    "malignant and harmless": ([{"pathology": "malignant", "birads": "2"}], Code.LABEL_CONTRADICTORY),
    "uncertain histology": ([{"pathology": "benign"}, {"pathology": "B3"}], Code.LABEL_UNDECIDED),
    "strange word": ([{"pathology": "see report"}], Code.LABEL_UNKNOWN),
    "assessment that is none": ([{"pathology": "benign", "birads": "9"}], Code.LABEL_UNKNOWN),
    "assessment alone decides nothing": ([{"birads": "4"}], Code.LABEL_MISSING),
    "incomplete": ([{"birads": "0"}], Code.LABEL_MISSING),
    "box for a whole examination": ([{"pathology": "benign", "x0": 1, "y0": 1, "x1": 2, "y1": 2}], Code.BOX_INVALID),
}


@pytest.mark.parametrize(("rows", "expected"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_what_contradicts_itself_waits(tmp_path: Path, rows: list[dict[str, object]], expected: Code) -> None:
    """Each contradiction has its reason."""
    labels = read_labels(table(tmp_path / "ris.csv", [{"accession": "1", **row} for row in rows]))
    assert why(lambda: labels.of(IMAGE, accession="1")) is expected


AGREEMENTS: dict[str, tuple[list[dict[str, object]], Label]] = {
    "the same twice": ([{"pathology": "benign"}, {"pathology": "fibroadenoma"}], Label(Pathology.BENIGN, None)),
    "coarse and fine": ([{"pathology": "benign", "birads": "4"}, {"birads": "4a"}], Label(Pathology.BENIGN, None, Birads.FOUR_A)),
    "negative without histology": ([{"birads": "1"}], Label(Pathology.NORMAL, None, Birads.ONE)),
    "benign without histology": ([{"birads": "2"}], Label(Pathology.BENIGN, None, Birads.TWO)),
    "proven malignancy": ([{"birads": "6"}], Label(Pathology.MALIGNANT, None)),
    "suspicious and benign": ([{"birads": "4c", "pathology": "benign"}], Label(Pathology.BENIGN, None, Birads.FOUR_C)),
}


@pytest.mark.parametrize(("rows", "expected"), AGREEMENTS.values(), ids=AGREEMENTS)
def test_what_agrees_is_put_together(tmp_path: Path, rows: list[dict[str, object]], expected: Label) -> None:
    """Sources that agree or complete each other give one label."""
    labels = read_labels(table(tmp_path / "ris.csv", [{"accession": "1", **row} for row in rows]))
    assert labels.of(IMAGE, accession="1") == expected


def test_a_mask_gives_the_box(tmp_path: Path) -> None:
    """The lit pixels of a mask become a box in pixels of the frame, and the frame must have the mask's size; a mask outside the folder is refused."""
    mask = Image.new("L", (100, 50))
    mask.paste(255, (20, 10, 40, 30))
    mask.save(tmp_path / "m.png")
    rows: list[dict[str, object]] = [
        {"SOPInstanceUID": uid, "pathology": "benign", "mask_file": name} for uid, name in (("1", "m.png"), ("2", "../m.png"), ("3", "n.png"))
    ]
    labels = read_labels(table(tmp_path / "labels.csv", rows))
    assert labels.of("1") == Label(Pathology.BENIGN, (20.0, 10.0, 40.0, 30.0), frame=(50, 100))
    assert why(lambda: labels.of("2")) is Code.PATH_OUTSIDE
    assert why(lambda: labels.of("3")) is Code.MASK_UNREADABLE


BAD_TABLES = {
    "no key": ("a.csv", "pathology\nbenign\n"),
    "no label": ("a.csv", "accession,age\n1,40\n"),
    "not JSON": ("a.json", "{"),
    "not a list": ("a.json", '{"accession": "1"}'),
    "not objects": ("a.json", "[1]"),
    "too deep": ("a.json", "[" * 100_000),
    "not text": ("a.csv", "\udcff"),
}


@pytest.mark.parametrize(("name", "content"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_a_table_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: str) -> None:
    """It ends in TableError before anything is taken in."""
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(TableError):
        read_labels(tmp_path / name)


def test_the_site_may_have_its_own_words(tmp_path: Path) -> None:
    """A mapping of the site decides; one that is not right is refused with the place, before anything is read."""
    own = SHIPPED.read_text().replace('"fibroadenoma" = "benign"', '"knoten alt" = "benign"').replace('"accession",', '"unters nr",')
    (tmp_path / "own.toml").write_text(own)
    rows: list[dict[str, object]] = [{"Unters-Nr": "1", "Diagnose": "Knoten, alt"}, {"Unters-Nr": "2", "Diagnose": "fibroadenoma"}]
    labels = read_labels(table(tmp_path / "ris.csv", rows), tmp_path / "own.toml")
    assert labels.of(IMAGE, accession="1").pathology is Pathology.BENIGN
    assert why(lambda: labels.of(IMAGE, accession="2")) is Code.LABEL_UNKNOWN
    for wrong in (
        own.replace('"knoten alt" = "benign"', '"knoten alt" = "good"'),
        own.replace("[doubt]", "[doubts]"),
        "x",
        own.replace("'b2'", "'('"),
    ):
        (tmp_path / "own.toml").write_text(wrong)
        with pytest.raises(ConfigError, match=r"labels\.mapping"):
            read_labels(None, tmp_path / "own.toml")


# Structured reports.


def labels_of(folder: Path, *reports: bytes):  # type: ignore[no-untyped-def]
    for number, content in enumerate(reports):
        (folder / f"{number}.dcm").write_bytes(content)
    return read_labels(folder)


def test_a_coded_report_labels_its_examination(tmp_path: Path) -> None:
    """Assessment and pathology are found by study and by accession number, in a folder that holds other files too."""
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "image.dcm").write_bytes(bytes(128) + b"DICM" + b"x" * 50)
    labels = labels_of(tmp_path, report(coded(ASSESSMENT, SUSPICIOUS), coded(PATHOLOGY, FIBROADENOMA)))
    wanted = Label(Pathology.BENIGN, None, Birads.FOUR)
    assert labels.of(IMAGE, study=STUDY) == wanted
    assert labels.of(IMAGE, accession="A1") == wanted
    assert why(lambda: labels.of(IMAGE, study="1.2.4")) is Code.LABEL_MISSING


def test_sides_of_a_report_are_kept_apart(tmp_path: Path) -> None:
    """Findings of each side, as a container's modifier or the item's own, label images of that side; the overall assessment gives way."""
    own = coded(PATHOLOGY, CARCINOMA)
    own.ContentSequence = [coded(SIDE, RIGHT)]
    left = finding(LEFT, coded(ASSESSMENT, BENIGN_FINDING), coded(PATHOLOGY, FIBROADENOMA))
    labels = labels_of(tmp_path, report(coded(OVERALL, code("x", "99X", "5")), left, finding(RIGHT, coded(ASSESSMENT, SUSPICIOUS)), own))
    assert labels.of(IMAGE, study=STUDY, side="L") == Label(Pathology.BENIGN, None, Birads.TWO)
    assert labels.of(IMAGE, study=STUDY, side="R") == Label(Pathology.MALIGNANT, None, Birads.FOUR)
    assert why(lambda: labels.of(IMAGE, study=STUDY)) is Code.LABEL_CONTRADICTORY


def test_a_finding_that_names_its_images_labels_them_alone(tmp_path: Path) -> None:
    """Two lesions on one side are told apart by the images that their findings refer to."""
    one = finding(LEFT, coded(PATHOLOGY, FIBROADENOMA), image_of("1.1"))
    other = finding(LEFT, coded(PATHOLOGY, CARCINOMA), image_of("1.2"))
    labels = labels_of(tmp_path, report(one, other))
    assert labels.of("1.1", study=STUDY).pathology is Pathology.BENIGN
    assert labels.of("1.2", study=STUDY).pathology is Pathology.MALIGNANT
    assert why(lambda: labels.of("1.3", study=STUDY)) is Code.LABEL_MISSING


def test_plain_text_items_are_read(tmp_path: Path) -> None:
    """Text under a known concept, and BI-RADS named in prose; histology in prose is not read."""
    histology = text(code("h", "99HOSP", "Histology"), "invasive lobular carcinoma")
    prose = text(FINDINGS, "Irregular mass, 12 mm. BI-RADS category: 5. Fibroadenoma elsewhere.")
    assert labels_of(tmp_path, report(histology, prose)).of(IMAGE, study=STUDY) == Label(Pathology.MALIGNANT, None, Birads.FIVE)
    assert why(lambda: labels_of(tmp_path, report(prose)).of(IMAGE, study=STUDY)) is Code.LABEL_MISSING
    two = text(FINDINGS, "Right BI-RADS 2, left BI-RADS 4a")
    assert why(lambda: labels_of(tmp_path, report(two)).of(IMAGE, study=STUDY)) is Code.LABEL_CONTRADICTORY


def test_an_outline_gives_the_box(tmp_path: Path) -> None:
    """The box around a drawn shape is that of the image it was drawn on; two shapes on one image make it wait."""
    first = item("SCOORD", None, image_of("1.1"), GraphicType="POLYLINE", GraphicData=[10.0, 20.0, 30.0, 25.0, 15.0, 60.0])
    second = item("SCOORD", None, image_of("1.2"), GraphicType="CIRCLE", GraphicData=[50.0, 50.0, 50.0, 60.0])
    labels = labels_of(tmp_path, report(coded(PATHOLOGY, FIBROADENOMA), first, second))
    assert labels.of("1.1", study=STUDY).box == (10.0, 20.0, 30.0, 60.0)
    assert labels.of("1.2", study=STUDY).box == (40.0, 40.0, 60.0, 60.0)
    third = item("SCOORD", None, image_of("1.1"), GraphicType="CIRCLE", GraphicData=[50.0, 50.0, 50.0, 60.0])
    assert why(lambda: labels_of(tmp_path, report(coded(PATHOLOGY, FIBROADENOMA), first, third)).of("1.1", study=STUDY)) is Code.LABEL_CONTRADICTORY


def test_report_and_table_are_put_together_or_contradict_each_other(tmp_path: Path) -> None:
    """BI-RADS from the report, pathology from the RIS; a report with another pathology makes the object wait."""
    table(tmp_path / "ris.csv", [{"accession": "A1", "pathology": "malignant"}])
    assert labels_of(tmp_path, report(coded(ASSESSMENT, SUSPICIOUS))).of(IMAGE, accession="A1") == Label(Pathology.MALIGNANT, None, Birads.FOUR)
    assert why(lambda: labels_of(tmp_path, report(coded(PATHOLOGY, FIBROADENOMA))).of(IMAGE, accession="A1")) is Code.LABEL_CONTRADICTORY


def deep() -> Dataset:
    node = coded(PATHOLOGY, FIBROADENOMA)
    for _ in range(60):
        node = item("CONTAINER", FINDINGS, node)
    return node


CUT = len(report(coded(PATHOLOGY, CARCINOMA))) - len(report(item("TEXT")))  # about one finding
SILENT = {"not complete": report(coded(PATHOLOGY, FIBROADENOMA), CompletionFlag="PARTIAL"), "nothing in it": report()}
UNREADABLE = {
    "cut short": report(coded(PATHOLOGY, FIBROADENOMA))[:-40],
    "cut between two findings": report(coded(PATHOLOGY, FIBROADENOMA), coded(PATHOLOGY, CARCINOMA))[:-CUT],
    "nested too deep": report(deep()),
    "outline with an odd number of numbers": report(item("SCOORD", None, image_of(IMAGE), GraphicType="POLYLINE", GraphicData=[1.0, 2.0, 3.0])),
    "ellipse of three points": report(item("SCOORD", None, image_of(IMAGE), GraphicType="ELLIPSE", GraphicData=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
}


@pytest.mark.parametrize("content", SILENT.values(), ids=SILENT)
def test_a_report_that_cannot_be_relied_on_labels_nothing(tmp_path: Path, content: bytes) -> None:
    """It stops nobody, and its images wait for a label."""
    labels = labels_of(tmp_path, content)
    assert why(lambda: labels.of(IMAGE, study=STUDY)) is Code.LABEL_MISSING
    assert labels.unread == Unread()


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_what_an_unreadable_report_is_about_waits(tmp_path: Path, content: bytes) -> None:
    """It is counted, and objects of its study or accession number wait, whatever a table says of them; others do not."""
    table(tmp_path / "ris.csv", [{"accession": number, "pathology": "benign"} for number in ("A1", "A2")])
    labels = labels_of(tmp_path, content)
    assert why(lambda: labels.of(IMAGE, accession="A1")) is Code.REPORT_UNREADABLE
    assert why(lambda: labels.of(IMAGE, study=STUDY, accession="A2")) is Code.REPORT_UNREADABLE
    assert labels.of(IMAGE, accession="A2").pathology is Pathology.BENIGN
    assert labels.unread == Unread(reports=1)


def test_an_unreadable_report_of_nobody_is_counted(tmp_path: Path) -> None:
    """A file that ends in its header, or that is DICOM of no known kind, stops nobody, and is counted as one that nobody can place."""
    table(tmp_path / "ris.csv", [{"accession": "A1", "pathology": "benign"}])
    labels = labels_of(tmp_path, report(coded(PATHOLOGY, CARCINOMA))[:300], bytes(128) + b"DICM" + b"x" * 50)
    assert labels.of(IMAGE, accession="A1").pathology is Pathology.BENIGN
    assert labels.unread == Unread(reports=2, unplaced=2)


def test_no_mutated_report_breaks_the_reader() -> None:
    """A thousand reports with bytes changed end in statements or in our own error."""
    import numpy as np

    whole = report(finding(LEFT, coded(ASSESSMENT, SUSPICIOUS), coded(PATHOLOGY, FIBROADENOMA), image_of("1.1")))
    rng = np.random.default_rng(0)
    for _ in range(1000):
        changed = bytearray(whole)
        for place in rng.integers(132, len(whole), 4):
            changed[place] = int(rng.integers(256))
        with suppress(QuarantineError):
            read_report(bytes(changed), WORDS)
