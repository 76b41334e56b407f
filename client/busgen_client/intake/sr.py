"""Labels from DICOM structured reports: BI-RADS, pathology, side and lesion outlines of breast imaging reports (PS3.16 TID 4200) and of reports
that hold the same as coded or plain text items. By which concept names, the site's mapping says.

Only complete reports count (Completion Flag, PS3.3 C.17.2). An assessment of the whole examination gives way to those of single sides. What stands
in a section on history, family or earlier examinations labels nothing. Of prose, only BI-RADS categories are read.
"""

import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import dist, sqrt
from pathlib import Path
from typing import Literal, cast

from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_partial

from busgen_client.intake.findings import Code, QuarantineError
from busgen_client.intake.frames import Box
from busgen_client.intake.header import quietly
from busgen_client.intake.mapping import Side, Vocabulary, only
from busgen_client.intake.statements import Said, Statement
from busgen_client.intake.wording import plain
from busgen_core.labels import Pathology

# PS3.4 table B.5-1: Basic Text, Enhanced, Comprehensive, Comprehensive 3D, Extensible SR.
SOP_CLASSES = frozenset(f"1.2.840.10008.5.1.4.1.1.88.{number}" for number in (11, 22, 33, 34, 35))
LARGEST = 16 * 2**20  # bytes of one report
DEEPEST = 20  # levels of nesting
EVIDENCE, STUDY = 0x0040A375, 0x0020000D  # the elements that tell whose a report is, up to either
UNDEFINED = 0xFFFFFFFF  # length of a sequence that ends with a delimiter, PS3.5 section 7.5


@dataclass(frozen=True, slots=True)
class _Found:
    """Something said, the images that it was said of, and whether it is about single breasts or lesions."""

    said: Said | Code
    images: frozenset[str]
    prose: bool = False


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the tree an item stands: side and images that the containers around it name, and whether one of them is about the past."""

    side: Side | Code = ""
    images: frozenset[str] = frozenset()
    past: bool = False


def is_report(path: Path) -> bool:
    """Whether a file is a DICOM structured report, or DICOM of which nobody can tell; reads little of it.

    Raises:
        OSError: it cannot be opened.
    """
    with path.open("rb") as stream:
        if stream.read(132)[128:] != b"DICM":
            return False
        stream.seek(0)
        try:
            with quietly():
                file = dcmread(stream, specific_tags=["SOPClassUID"], stop_before_pixels=True)
                return (file.get("SOPClassUID") or file.file_meta.get("MediaStorageSOPClassUID") or "") in {*SOP_CLASSES, ""}
        except Exception:  # a parser of untrusted bytes raises whatever it likes
            return True


def owners(data: bytes) -> list[tuple[Literal["study", "accession"], str]]:
    """Study and accession number of a report that cannot be read, as far as its beginning still names them."""
    for last in (EVIDENCE, STUDY):
        with suppress(Exception), quietly():  # as above
            return _owners(read_partial(io.BytesIO(data), stop_when=partial(_is_behind, last)))
    return []


def _is_behind(last: int, tag: int, _kind: str | None, _length: int) -> bool:
    return tag > last


def read_report(data: bytes, vocabulary: Vocabulary) -> list[Statement]:
    """What a report says of its examination, and of single images of it.

    Raises:
        QuarantineError: dicom-invalid or file-too-large.
    """
    if len(data) > LARGEST:
        raise QuarantineError(Code.FILE_TOO_LARGE)
    try:
        with quietly():
            return _statements(_whole(dcmread(io.BytesIO(data), force=False)), vocabulary)
    except QuarantineError:
        raise
    except Exception:  # its text may quote the report
        raise QuarantineError(Code.DICOM_INVALID) from None


def _statements(report: Dataset, vocabulary: Vocabulary) -> list[Statement]:
    if (flag := report.get("CompletionFlag")) != "COMPLETE":
        if flag != "PARTIAL":  # every report has one of the two, unless it is cut short
            raise QuarantineError(Code.DICOM_INVALID)
        return []
    found = list(_Walk(vocabulary).items(report, _Place(), depth=0))
    if any(isinstance(each.said, Said) and each.said.birads and each.said.side and not each.prose for each in found):
        found = [each for each in found if not (isinstance(each.said, Said) and each.said.birads and not each.said.side)]
    whole = _owners(report)
    statements = []
    for each in found:
        images = [("object", uid) for uid in sorted(each.images)]
        statements += [Statement(kind=kind, key=key, said=each.said) for kind, key in images or whole]  # type: ignore[arg-type]
    return statements


def _owners(report: Dataset) -> list[tuple[Literal["study", "accession"], str]]:
    """Studies and accession number that a report is about."""
    found: list[tuple[Literal["study", "accession"], str]] = [("study", uid) for uid in sorted(_studies(report))]
    number = str(report.get("AccessionNumber") or "").strip()
    return [*found, ("accession", number)] if number else found


def _whole(report: Dataset) -> Dataset:
    """The report, unless it is cut short: pydicom reads what is left of it without a word, and a finding may be missing."""
    raw = map(report.get_item, report.keys())
    if any(isinstance(element, RawDataElement) and element.value is not None and len(element.value) < element.length < UNDEFINED for element in raw):
        raise QuarantineError(Code.DICOM_INVALID)
    return report


def _studies(report: Dataset) -> set[str]:
    evidence = cast(list[Dataset], report.get("CurrentRequestedProcedureEvidenceSequence") or [])
    return {str(item.StudyInstanceUID) for item in [report, *evidence] if item.get("StudyInstanceUID")}


class _Walk:
    """The tree of content items, each with the side and the images that the containers around it name."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._words = vocabulary
        names = vocabulary.words.reports
        self._birads, self._pathology, self._side_names = (
            {*(n.upper() for n in s), *map(plain, s)} for s in (names.birads, names.pathology, names.side)
        )

    def items(self, node: Dataset, outer: _Place, *, depth: int) -> Iterator[_Found]:
        """What the items below a node say."""
        if depth > DEEPEST:
            raise QuarantineError(Code.DICOM_INVALID)
        children = _children(node)
        images = frozenset(uid for child in children for uid in _images(child)) if depth else frozenset()
        here = replace(outer, side=self._side_of(children, outer.side), images=images or outer.images)
        for child in children:
            past = here.past or self._words.is_past(_meaning(child))
            place = replace(here, side=self._side_of(_children(child), here.side), past=past)
            yield from self._said(child, place)
            yield from self.items(child, place, depth=depth + 1)

    def _side_of(self, items: list[Dataset], outer: Side | Code) -> Side | Code:
        """The side that the items name by code or meaning; without any, that of the container around."""
        answers = [self._words.side(text) for item in items if self._named(item, self._side_names) for text in _texts(item)]
        known = {answer for answer in answers if not isinstance(answer, Code)}
        return outer if not answers else known.pop() if len(known) == 1 else Code.LABEL_UNDECIDED

    def _said(self, item: Dataset, place: _Place) -> Iterator[_Found]:
        kind = item.get("ValueType")
        if kind == "SCOORD":
            yield from ((_Found(Said(box=box), frozenset({uid}))) for uid, box in _outline(item))
        elif self._named(item, self._birads):
            yield _Found(self._assessed(_texts(item), place), place.images)
        elif self._named(item, self._pathology) and kind in ("CODE", "TEXT"):
            yield _Found(self._proven(_texts(item), place), place.images)
        elif kind == "TEXT":
            yield from (_Found(said, place.images, prose=True) for said in self._mentioned(str(item.get("TextValue") or ""), place))

    def _assessed(self, texts: list[str], place: _Place) -> Said | Code:
        """The first of code and meaning that is understood."""
        answers = [answer for text in texts if (answer := self._words.assessment(text))]
        known = next((answer for answer in answers if not isinstance(answer, Code)), None)
        if known is None:
            return answers[0] if answers else Said()  # type: ignore[return-value]
        if isinstance(place.side, Code):
            return place.side
        return Said(birads=known, side=place.side, weight="doubted" if place.past else "stated")

    def _proven(self, texts: list[str], place: _Place) -> Said | Code:
        """The class of code and meaning, which may not be of two; the meaning may be one that nobody knows."""
        answers = [answer for text in texts if (answer := self._words.pathology(text))]
        known = next((answer for answer in answers if answer is not Code.LABEL_UNKNOWN), None)
        if known is None:
            return Code.LABEL_UNKNOWN if answers else Said()
        if len({answer for answer in answers if isinstance(answer, Pathology)}) > 1:
            return Code.LABEL_CONTRADICTORY
        if isinstance(known, Code) or isinstance(place.side, Code):
            return known if isinstance(known, Code) else Code.LABEL_UNDECIDED
        side = self._words.sides_in(" ".join(text for text in texts if " " in text or ":" not in text))
        if place.side and side - {place.side}:
            return Code.LABEL_CONTRADICTORY
        return Said(pathology=known, side=place.side or only(side), weight="doubted" if place.past else "stated")

    def _mentioned(self, prose: str, place: _Place) -> Iterator[Said]:
        """What prose says of BI-RADS; doubted where it is about another side than the container, or a side that is not understood."""
        for birads, named, weight in self._words.mentioned(prose):
            outer: Side = "" if isinstance(place.side, Code) else place.side
            sure = not isinstance(place.side, Code) and not place.past and not (outer and named and named != outer)
            yield Said(birads=birads, side=outer or named, weight=weight if sure else "doubted")

    @staticmethod
    def _named(item: Dataset, names: set[str]) -> bool:
        concept = next(iter(cast(list[Dataset], item.get("ConceptNameCodeSequence") or [])), None)
        return concept is not None and (_code(concept) in names or plain(_meaning(item)) in names)


def _children(node: Dataset) -> list[Dataset]:
    return list(cast(list[Dataset], node.get("ContentSequence") or []))


def _meaning(item: Dataset) -> str:
    """The name of an item's concept, in words."""
    concept = next(iter(cast(list[Dataset], item.get("ConceptNameCodeSequence") or [])), None)
    return str(concept.get("CodeMeaning") or "") if concept is not None else ""


def _code(item: Dataset) -> str:
    return f"{item.get('CodingSchemeDesignator', '')}:{item.get('CodeValue', '') or item.get('LongCodeValue', '')}".upper()


def _texts(item: Dataset) -> list[str]:
    """What an item's value says: its code and its meaning, its text, or its number."""
    codes = cast(list[Dataset], item.get("ConceptCodeSequence") or [])
    measured = cast(list[Dataset], item.get("MeasuredValueSequence") or [])
    texts = [text for code in codes for text in (_code(code), str(code.get("CodeMeaning") or ""))]
    return [*texts, *(f"{float(each.NumericValue):g}" for each in measured), *([str(item.TextValue)] if item.get("TextValue") else [])]


def _images(item: Dataset) -> list[str]:
    references = cast(list[Dataset], item.get("ReferencedSOPSequence") or []) if item.get("ValueType") == "IMAGE" else []
    return [str(reference.ReferencedSOPInstanceUID) for reference in references]


def _outline(item: Dataset) -> Iterator[tuple[str, Box]]:
    """The box around a shape (PS3.3 C.18.6), for each image that it was drawn on; a point has none."""
    numbers = [float(number) for number in cast(list[float], item.get("GraphicData") or [])]
    points = list(zip(numbers[::2], numbers[1::2], strict=True))
    kind = item.get("GraphicType")
    if kind == "POLYLINE" and len(points) > 2:
        box = (min(x for x, _ in points), min(y for _, y in points), max(x for x, _ in points), max(y for _, y in points))
    elif kind in ("CIRCLE", "ELLIPSE"):
        box = _round(points)
    else:
        return
    yield from ((uid, box) for child in _children(item) for uid in _images(child))


def _round(points: list[tuple[float, float]]) -> Box:
    """The box around a circle (centre, a point on it) or an ellipse (ends of its major axis, ends of its minor axis).

    >>> _round([(5.0, 5.0), (5.0, 8.0)]), _round([(0.0, 5.0), (10.0, 5.0), (5.0, 3.0), (5.0, 7.0)])
    ((2.0, 2.0, 8.0, 8.0), (0.0, 3.0, 10.0, 7.0))
    """
    if len(points) == 2:
        (x, y), radius = points[0], dist(*points)
        return (x - radius, y - radius, x + radius, y + radius)
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = points
    x, y = (ax + bx) / 2, (ay + by) / 2
    wide, high = sqrt((bx - ax) ** 2 + (dx - cx) ** 2) / 2, sqrt((by - ay) ** 2 + (dy - cy) ** 2) / 2
    return (x - wide, y - high, x + wide, y + high)
