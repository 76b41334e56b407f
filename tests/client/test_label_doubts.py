"""What does not say clearly of which class a lesion is, or in which breast it lies, labels nothing and waits."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.sr.codedict import codes

from busgen_client.intake.findings import Code, QuarantineError
from busgen_client.intake.labels import Label, read_labels
from busgen_client.intake.mapping import Side, read_mapping
from busgen_core.errors import TableError
from busgen_core.labels import Birads, Pathology
from tests.client.sr_items import (
    ASSESSMENT,
    BENIGN_FINDING,
    CARCINOMA,
    FIBROADENOMA,
    FINDINGS,
    IMAGE,
    LEFT,
    PATHOLOGY,
    SIDE,
    STUDY,
    code,
    coded,
    finding,
    image_of,
    item,
    report,
    text,
)

WORDS = read_mapping(None)
UNDECIDED, CONTRADICTORY, MISSING = Code.LABEL_UNDECIDED, Code.LABEL_CONTRADICTORY, Code.LABEL_MISSING

Answer = Pathology | Code


def answer(folder: Path, *, reports: tuple[bytes, ...] = (), rows: str = "", side: Side = "", uid: str = IMAGE) -> Answer:
    """Class of an object of study ``STUDY`` and accession number A1, or why it waits."""
    for number, content in enumerate(reports):
        (folder / f"{number}.dcm").write_bytes(content)
    if rows:
        (folder / "ris.csv").write_text(rows)
    try:
        return read_labels(folder).of(uid, study=STUDY, accession="A1", side=side).pathology
    except QuarantineError as refused:
        return refused.finding


BENIGN_ROW, MALIGNANT_ROW = "accession,pathology\nA1,benign\n", "accession,pathology\nA1,malignant\n"
PROSE: dict[str, tuple[str, str, Answer]] = {
    "denied": ("No BI-RADS 6 lesion.", "", UNDECIDED),
    "denied, German": ("Kein Anhalt für BI-RADS 6.", "", UNDECIDED),
    "denied behind": ("BI-RADS 6: ausgeschlossen.", "", UNDECIDED),
    "asked": ("BI-RADS 2?", "", UNDECIDED),
    "two": ("BI-RADS 2 or 3", "", CONTRADICTORY),
    "two with a stroke": ("BI-RADS 1/2", "", CONTRADICTORY),
    "prior": ("Prior exam: BI-RADS 2. New suspicious mass, biopsy recommended.", "", UNDECIDED),
    "previously": ("Previously BI-RADS 1. Now spiculated mass.", "", UNDECIDED),
    "another sentence": ("Round mass. BI-RADS 2.", "", UNDECIDED),
    "two sides": ("BI-RADS 2 right breast, left mass biopsied", "", UNDECIDED),
    "clear": ("Assessment: BI-RADS 2.", "", Pathology.BENIGN),
    "clear, with its meaning": ("BI-RADS 1: negative.", "", Pathology.NORMAL),
    "clear, with a size": ("BI-RADS 2, 12 mm cyst", "", Pathology.BENIGN),
    "clear, contradicted": ("BI-RADS 2, carcinoma", "", UNDECIDED),
    "contradicts": ("Small mass, BI-RADS 6.", BENIGN_ROW, CONTRADICTORY),
    "doubt contradicts": ("Probably BI-RADS 6.", BENIGN_ROW, CONTRADICTORY),
    "does not contradict": ("Prior exam: BI-RADS 4.", BENIGN_ROW, Pathology.BENIGN),
}


@pytest.mark.parametrize(("prose", "rows", "expected"), PROSE.values(), ids=PROSE)
def test_unclear_prose_implies_no_class(tmp_path: Path, prose: str, rows: str, expected: Answer) -> None:
    """BI-RADS in prose stands in for a histology only where nothing but harmless words is beside it; it may always contradict one."""
    assert answer(tmp_path, reports=(report(text(FINDINGS, prose)),), rows=rows) is expected


def test_only_a_category_that_nobody_doubts_is_noted(tmp_path: Path) -> None:
    """BI-RADS of a sentence without doubt is noted beside the histology, that of a doubtful one is not."""
    (tmp_path / "ris.csv").write_text(MALIGNANT_ROW)
    for prose, expected in (("Irregular mass, BI-RADS 5.", Birads.FIVE), ("Irregular mass, prior BI-RADS 5.", None)):
        (tmp_path / "0.dcm").write_bytes(report(text(FINDINGS, prose)))
        assert read_labels(tmp_path).of(IMAGE, study=STUDY, accession="A1") == Label(Pathology.MALIGNANT, None, expected)


HISTORY = code("121060", "DCM", "History")
SECTIONS: dict[str, tuple[Dataset, Answer]] = {
    "pathology": (coded(PATHOLOGY, CARCINOMA), UNDECIDED),
    "assessment": (coded(ASSESSMENT, BENIGN_FINDING), UNDECIDED),
    "prose": (text(FINDINGS, "BI-RADS 2"), UNDECIDED),
}


@pytest.mark.parametrize(("child", "expected"), SECTIONS.values(), ids=SECTIONS)
def test_a_section_on_history_labels_nothing(tmp_path: Path, child: Dataset, expected: Answer) -> None:
    """What stands below a heading such as History is not about this examination."""
    assert answer(tmp_path, reports=(report(item("CONTAINER", HISTORY, item("CONTAINER", FINDINGS, child))),)) is expected


def test_history_may_contradict(tmp_path: Path) -> None:
    """An earlier histology of the same class as this one changes nothing, one of another class makes the object wait."""
    past = report(item("CONTAINER", HISTORY, coded(PATHOLOGY, CARCINOMA)))
    assert answer(tmp_path, reports=(past,), rows=MALIGNANT_ROW) is Pathology.MALIGNANT
    assert answer(tmp_path, reports=(past,), rows=BENIGN_ROW) is CONTRADICTORY


def test_words_that_look_like_sides_are_none() -> None:
    """German for "according to" and a second biopsy are neither left nor right: they wait."""
    assert WORDS.pathology("lt. Histologie Karzinom") is WORDS.pathology("Re-biopsy: carcinoma") is UNDECIDED
    assert WORDS.pathology("Karzinom re.") is WORDS.pathology("carcinoma, LT breast") is Pathology.MALIGNANT


def test_code_and_meaning_may_not_differ(tmp_path: Path) -> None:
    """A code of one class whose meaning is of another waits; a meaning that nobody knows does not."""
    odd = code(FIBROADENOMA.CodeValue, "SCT", "Invasive ductal carcinoma")
    strange = code(FIBROADENOMA.CodeValue, "SCT", "FA")
    assert answer(tmp_path, reports=(report(coded(PATHOLOGY, odd)),)) is CONTRADICTORY
    assert answer(tmp_path, reports=(report(coded(PATHOLOGY, strange)),)) is Pathology.BENIGN


def test_an_assessment_of_an_earlier_examination_is_none() -> None:
    """A field that holds the category of another examination, or denies it, is undecided; the standard's own words for a category are no doubt."""
    assert WORDS.assessment("2 (previous exam)") is WORDS.assessment("6: excluded") is UNDECIDED
    standard = ("1 - Negative", "3 - Probably benign", "0 - Need additional imaging or prior mammograms", "6 - Known biopsy-proven malignancy")
    assert [WORDS.assessment(each) for each in standard] == ["1", "3", "0", "6"]


SIDES: dict[str, Side | Code] = {
    **dict.fromkeys(["L", "Left breast", "LT", "li", "li.", "sinistra", "linke Brust", "Mamma links", "L 10 Uhr", "sein gauche"], "L"),
    **dict.fromkeys(["left breast, 3 o'clock", "mama izquierda", "mama esquerda", "pierś lewa", "al thady al aysar", "SCT:7771000"], "L"),
    **dict.fromkeys(["R", "RT", "re", "rechte Mamma", "sein droit", "mama derecha", "mama direita", "pierś prawa", "sct:24028007"], "R"),
    **dict.fromkeys(["", "both", "bilateral", "B", "beidseits", "left and right", "SCT:51440002"], ""),
    **dict.fromkeys(["-", "?", "U", "unknown", "contralateral", "not left", "left or right", "left?", "left, DD right", "3", "breast"], UNDECIDED),
}


@pytest.mark.parametrize(("words", "expected"), SIDES.items(), ids=range(len(SIDES)))
def test_a_side_is_understood_or_undecided(words: str, expected: Side | Code) -> None:
    """The usual words of a side are known in the languages of the file; whatever else is written is neither side, and not both."""
    assert WORDS.side(words) == expected


ONE_SIDED: dict[str, tuple[str, Side, Answer]] = {
    "own side": ("accession,pathology,side\nA1,malignant,Left breast\n", "L", Pathology.MALIGNANT),
    "other side": ("accession,pathology,side\nA1,malignant,Left breast\n", "R", MISSING),
    "strange side": ("accession,pathology,side\nA1,malignant,site 4\n", "R", UNDECIDED),
    "object of unknown side": ("accession,pathology,side\nA1,malignant,L\n", "", UNDECIDED),
    "assessment, object of unknown side": ("accession,birads,side\nA1,2,L\n", "", UNDECIDED),
    "side in the histology": ("accession,pathology\nA1,Karzinom links\n", "R", MISSING),
    "side in the histology, own": ("accession,pathology\nA1,Karzinom links\n", "L", Pathology.MALIGNANT),
    "side in the histology, unknown": ("accession,pathology\nA1,Karzinom links\n", "", UNDECIDED),
    "two sides": ("accession,pathology,side\nA1,Karzinom links,R\n", "R", CONTRADICTORY),
    "said of the whole too": ("accession,pathology,side\nA1,benign,both\nA1,fibroadenoma,L\n", "", Pathology.BENIGN),
    "one side contradicts the whole": ("accession,pathology,side\nA1,benign,both\nA1,malignant,L\n", "", CONTRADICTORY),
    "the object itself": (f"SOPInstanceUID,pathology,side\n{IMAGE},benign,L\n", "", Pathology.BENIGN),
    "the object itself, other side": (f"SOPInstanceUID,pathology,side\n{IMAGE},benign,L\n", "R", CONTRADICTORY),
}


@pytest.mark.parametrize(("rows", "side", "expected"), ONE_SIDED.values(), ids=ONE_SIDED)
def test_a_label_of_one_breast_stays_there(tmp_path: Path, rows: str, side: Side, expected: Answer) -> None:
    """What is said of one breast labels objects of that side alone; what may be said of either, none."""
    assert answer(tmp_path, rows=rows, side=side) is expected


REPORTED: dict[str, tuple[Dataset, Side, Answer]] = {
    "meaning of a strange code": (finding(code("l", "99HOSP", "linke Brust"), coded(PATHOLOGY, CARCINOMA)), "R", MISSING),
    "strange side": (finding(code("x", "99HOSP", "site 4"), coded(PATHOLOGY, CARCINOMA)), "R", UNDECIDED),
    "code and meaning differ": (finding(code("7771000", "SCT", "Right"), coded(PATHOLOGY, CARCINOMA)), "R", UNDECIDED),
    "object of unknown side": (finding(LEFT, coded(PATHOLOGY, CARCINOMA)), "", UNDECIDED),
    "image that is named": (finding(LEFT, coded(PATHOLOGY, CARCINOMA), image_of(IMAGE)), "", Pathology.MALIGNANT),
    "prose of one side": (text(FINDINGS, "BI-RADS 2, right"), "L", MISSING),
    "prose of that side": (text(FINDINGS, "BI-RADS 2, right"), "R", Pathology.BENIGN),
    "prose of the other side": (finding(LEFT, text(FINDINGS, "BI-RADS 2, right")), "L", UNDECIDED),
    "histology in text": (text(PATHOLOGY, "Karzinom links"), "R", MISSING),
    "own modifier": (item("CODE", PATHOLOGY, coded(SIDE, LEFT), ConceptCodeSequence=[CARCINOMA]), "R", MISSING),
}


@pytest.mark.parametrize(("child", "side", "expected"), REPORTED.values(), ids=REPORTED)
def test_a_finding_of_one_breast_stays_there(tmp_path: Path, child: Dataset, side: Side, expected: Answer) -> None:
    """The same holds for reports."""
    assert answer(tmp_path, reports=(report(child),), side=side) is expected


def test_a_torn_row_stops_the_table(tmp_path: Path) -> None:
    """An unquoted comma is told by its line, with nothing of its content: nobody could tell which of two labels was meant."""
    (tmp_path / "ris.csv").write_text("accession,pathology\nA1,benign\n\nA1,invasive ductal carcinoma, grade 2\n")
    with pytest.raises(TableError, match="line 4") as stopped:
        read_labels(tmp_path / "ris.csv")
    assert "carcinoma" not in str(stopped.value)


def test_a_nested_value_of_a_json_table_counts(tmp_path: Path) -> None:
    """A list of histologies is read, not left out: of two classes, or beside another class, it waits."""
    (tmp_path / "ris.json").write_text('[{"accession": "A1", "pathology": "benign", "histology": ["DCIS"]}]')
    assert answer(tmp_path) is CONTRADICTORY


PROVEN: dict[str, Callable[[str], str]] = {
    "benign": "accession,pathology,birads\nA1,{},6\n".format,
    "two rows": "accession,pathology,birads\nA1,{},\nA1,,6\n".format,
}


@pytest.mark.parametrize("rows", PROVEN.values(), ids=PROVEN)
def test_proven_malignancy_is_not_benign(tmp_path: Path, rows: Callable[[str], str]) -> None:
    """BI-RADS 6 says that malignancy is proven: a benign or normal histology beside it contradicts it."""
    assert answer(tmp_path, rows=rows("benign")) is CONTRADICTORY
    assert answer(tmp_path, rows=rows("normal")) is CONTRADICTORY
    assert answer(tmp_path, rows=rows("malignant")) is Pathology.MALIGNANT


def test_shipped_words_do_not_quarrel() -> None:
    """No harmless word denies or doubts, and no word is of two sides."""
    words = WORDS.words
    assert words.harmless.words.isdisjoint(words.doubt.words | words.doubt.past)
    left, right, both = map(set, (words.sides.left, words.sides.right, words.sides.both))
    assert left & right == left & both == right & both == set()


def test_names_of_codes_agree_with_the_codes() -> None:
    """The standard's name of a code is of the same class as the code, where it is of any."""
    named = {f"{each.scheme_designator}:{each.value}": each.meaning for each in codes.cid6030.concepts.values()}
    pairs = {name: (WORDS.pathology(value), WORDS.pathology(name)) for value, name in named.items()}
    assert len(pairs) > 100
    assert {name: pair for name, pair in pairs.items() if isinstance(pair[1], Pathology) and pair[0] != pair[1]} == {}
