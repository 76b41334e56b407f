"""Labels of DICOM objects, from whatever the hospital has: tables by SOP Instance UID or accession number, exports of the RIS, structured reports.

What several sources say of one object is put together. Where they contradict each other, or say nothing that can be relied on, the object waits.
"""

import logging
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TypeVar

from busgen_client.intake.findings import ALL_READ, Code, QuarantineError, Unread
from busgen_client.intake.frames import Box, decode_picture, mask_box
from busgen_client.intake.mapping import Vocabulary, read_mapping
from busgen_client.intake.ris import is_table, read_table
from busgen_client.intake.sr import is_report, owners, read_report
from busgen_client.intake.statements import Said, Statement
from busgen_client.intake.table import content_in
from busgen_core.labels import Birads, Pathology
from busgen_privacy.text import scrub
from busgen_privacy.vocabulary import device_words

T = TypeVar("T", bound=Hashable)
State = tuple[str, int, int, int]  # of a file: path, inode, bytes, time of its last change in ns
log = logging.getLogger("busgen.labels")

LESION = frozenset({"3", "4", "4a", "4b", "4c", "5", "6"})  # BI-RADS categories that speak of a finding which a normal image has not
HARMLESS = frozenset({"1", "2"})  # and those that no proven malignancy has
PROVEN = "6"  # and the one that says that malignancy is proven


@dataclass(frozen=True, slots=True)
class Label:
    """What was said of one object.

    Attributes:
        pathology: The label.
        box: Lesion box in pixels of the whole frame, edges not centres, or None.
        birads: BI-RADS assessment, or None.
        device: Scanner's model as the table has it, scrubbed; empty if it says none.
        frame: Rows and columns that the frame must have, where the box comes from a mask.
    """

    pathology: Pathology
    box: Box | None
    birads: Birads | None = None
    device: str = ""
    frame: tuple[int, int] | None = None


class Labels:
    """Everything that was said, by what it was said of. What is wrong with it is told when its object comes, not before.

    Args:
        statements: What was said.
        vocabulary: The site's words.
        unread: What could not be read.
    """

    def __init__(self, statements: Iterable[Statement], vocabulary: Vocabulary, unread: Unread = ALL_READ) -> None:
        self._words, self.unread = vocabulary, unread
        self._of: dict[tuple[str, str], list[Said | Code]] = defaultdict(list)
        for one in statements:
            self._of[one.kind, one.key].append(one.said)

    def of(self, uid: str, *, study: str = "", accession: str = "", side: str = "") -> Label:
        """Label of an object.

        Args:
            uid: SOP Instance UID.
            study: Study Instance UID.
            accession: Accession Number.
            side: L or R; empty if it is not known: then what is said of one side can contradict a label, but gives none.

        Raises:
            QuarantineError: label-missing, label-unknown, label-undecided, label-contradictory, report-unreadable, box-invalid or
                mask-unreadable.
        """
        sure, unsure = self._said(uid, study, accession, side)
        label = _together([*sure, *unsure], self._words)
        if not unsure:
            return label
        try:
            return _together(sure, self._words)
        except QuarantineError:
            raise QuarantineError(Code.LABEL_UNDECIDED) from None

    def _said(self, uid: str, study: str, accession: str, side: str) -> tuple[list[Said], list[Said]]:
        """What is said of an object, and what may be said of it or not."""
        sure: list[Said] = []
        unsure: list[Said] = []
        for key in (("object", uid), ("study", study), ("accession", accession)):
            for said in self._of.get(key, ()) if key[1] else ():
                if isinstance(said, Code):
                    raise QuarantineError(said)
                other = said.side and side and said.side != side
                if other and key[0] == "object":
                    raise QuarantineError(Code.LABEL_CONTRADICTORY)
                if not other:
                    known = key[0] == "object" or bool(side) or not said.side
                    (sure if known and said.weight != "doubted" else unsure).append(said)
        return sure, unsure


def read_labels(path: Path | None, mapping: Path | None = None) -> Labels:
    """Read labels; without a path, every object will wait for its label.

    Args:
        path: A table (CSV, or JSON with a list of objects), a structured report (DICOM), or a folder of these, searched below too.
        mapping: The site's file of histologies; None for the one that is shipped.

    Raises:
        TableError: a table as a whole cannot be used.
        ConfigError: the site's file cannot be used.
    """
    vocabulary = read_mapping(mapping)
    placed: list[bool] = []
    statements = [one for file in _files(path) for one in _statements(file, vocabulary, placed, sought=path != file)]
    return Labels(statements, vocabulary, Unread(reports=len(placed), unplaced=placed.count(False)))


class CurrentLabels:
    """Labels that may change while a process runs: read again when a file of theirs is another than before, and only then.

    Args:
        path: As ``read_labels`` takes it.
        mapping: Likewise.
    """

    def __init__(self, path: Path | None, mapping: Path | None = None) -> None:
        self._path, self._mapping = path, mapping
        self._read: tuple[list[State | None], Labels] | None = None

    def now(self) -> Labels:
        """The labels as they are now.

        Raises:
            TableError, ConfigError: as ``read_labels``.
        """
        state = [_state(file) for file in (*_files(self._path), *([self._mapping] if self._mapping else []))]
        if self._read is None or self._read[0] != state:
            self._read = state, read_labels(self._path, self._mapping)
        return self._read[1]


def _files(path: Path | None) -> list[Path]:
    if path is None:
        return []
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _state(file: Path) -> State | None:
    """What is another when a file is; None if it is not there."""
    try:
        status = file.stat()
    except OSError:
        return None
    return str(file), status.st_ino, status.st_size, status.st_mtime_ns


def _statements(file: Path, vocabulary: Vocabulary, placed: list[bool], *, sought: bool) -> list[Statement]:
    """What one file says; of a folder, files that are neither table nor report say nothing."""
    try:
        report = is_report(file)
    except OSError:
        report = sought and not is_table(file)
    if report:
        return _reported(file, vocabulary, placed)
    return [] if sought and not is_table(file) else read_table(file, vocabulary)


def _reported(file: Path, vocabulary: Vocabulary, placed: list[bool]) -> list[Statement]:
    """What a report says; of one that cannot be read, that what it is about must wait. ``placed`` notes whether it says what that is."""
    data = b""
    try:
        data = file.read_bytes()
        return read_report(data, vocabulary)
    except (QuarantineError, OSError):
        log.warning("labels.report-unreadable")
    whose = owners(data)
    placed.append(bool(whose))
    return [Statement(kind=kind, key=key, said=Code.REPORT_UNREADABLE) for kind, key in whose]


def _together(said: list[Said], words: Vocabulary) -> Label:
    birads = _birads(said)
    pathology = _one({each.pathology for each in said if each.pathology}) or words.implied(_birads(each for each in said if each.weight == "stated"))
    if pathology is None:
        unclear = any(words.implied(each.birads) for each in said)
        raise QuarantineError(Code.LABEL_UNDECIDED if unclear else Code.LABEL_MISSING)
    boxes = {_box(each) for each in said if each.box or each.mask}
    box, frame = _one(boxes) or (None, None)
    normal, malignant = pathology is Pathology.NORMAL, pathology is Pathology.MALIGNANT
    if (normal and (box or birads in LESION)) or (malignant and birads in HARMLESS) or (not malignant and birads == PROVEN):
        raise QuarantineError(Code.LABEL_CONTRADICTORY)
    device = _one({each.device for each in said if each.device}) or ""
    category = Birads(birads) if birads in set(Birads) else None
    return Label(pathology, box, category, scrub(device, words=device_words()), frame)


def _birads(said: Iterable[Said]) -> str:
    return _one({each.birads for each in said if each.birads}, finer={"4": {"4a", "4b", "4c"}}) or ""


def _one(values: set[T], finer: Mapping[T, set[T]] | None = None) -> T | None:
    """The one value that was said, or None; a coarse one beside a finer one does not count.

    Raises:
        QuarantineError: label-contradictory.
    """
    left = {value for value in values if not (finer and finer.get(value, set()) & values)}
    if len(left) > 1:
        raise QuarantineError(Code.LABEL_CONTRADICTORY)
    return next(iter(left), None)


def _box(said: Said) -> tuple[Box | None, tuple[int, int] | None]:
    if said.mask is None:
        if said.box is None or not _is_box(said.box):
            raise QuarantineError(Code.BOX_INVALID)
        return said.box, None
    folder, name = said.mask
    try:
        mask = decode_picture(content_in(folder, name))
    except QuarantineError as refused:
        raise refused if refused.finding is Code.PATH_OUTSIDE else QuarantineError(Code.MASK_UNREADABLE) from None
    rows, columns = mask.shape[:2]
    part = mask_box(mask if mask.ndim == 2 else mask.max(axis=2))
    return (None if part is None else (part[0] * columns, part[1] * rows, part[2] * columns, part[3] * rows)), (rows, columns)


def _is_box(box: Box) -> bool:
    x0, y0, x1, y1 = box
    return all(map(isfinite, box)) and 0 <= x0 < x1 and 0 <= y0 < y1
