"""The label file of a DICOM folder: ``SOPInstanceUID,pathology`` and optionally ``x0,y0,x1,y1`` in pixels of the whole frame."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from busgen_client.intake.findings import Code, QuarantineError
from busgen_client.intake.frames import Box
from busgen_client.intake.rows import read_rows
from busgen_core.errors import LabelError
from busgen_core.labels import Pathology, parse_pathology

BOX_COLUMNS = ("x0", "y0", "x1", "y1")


@dataclass(frozen=True, slots=True)
class Label:
    """What a reader said of one object.

    Attributes:
        pathology: The label.
        box: Lesion box in pixels of the whole frame, edges not centres, or None.
    """

    pathology: Pathology
    box: Box | None


class Labels:
    """Labels by SOP Instance UID. What is wrong with one row is told when its object comes, not before."""

    def __init__(self, found: Mapping[str, Label | Code]) -> None:
        self._found = found

    def of(self, uid: str) -> Label:
        """Label of an object.

        Raises:
            QuarantineError: label-missing, label-unknown, label-contradictory or box-invalid.
        """
        label = self._found.get(uid, Code.LABEL_MISSING)
        if isinstance(label, Code):
            raise QuarantineError(label)
        return label


def read_labels(path: Path | None) -> Labels:
    """Read a label file; without one, every object will wait for its label.

    Raises:
        TableError: the file as a whole cannot be used.
    """
    rows = [] if path is None else read_rows(path, required=("SOPInstanceUID", "pathology"))
    found: dict[str, Label | Code] = {}
    for row in rows:
        if row is not None:
            uid, label = row["SOPInstanceUID"], _label(row)
            found[uid] = label if found.get(uid, label) == label else Code.LABEL_CONTRADICTORY
    return Labels(found)


def _label(row: Mapping[str, str]) -> Label | Code:
    try:
        pathology = parse_pathology(row["pathology"])
    except LabelError:
        return Code.LABEL_UNKNOWN
    texts = [row.get(name, "") for name in BOX_COLUMNS]
    if not any(texts):
        return Label(pathology, None)
    try:
        x0, y0, x1, y1 = (float(text) for text in texts)
    except ValueError:
        return Code.BOX_INVALID
    if not all(map(isfinite, (x0, y0, x1, y1))) or not (0 <= x0 < x1 and 0 <= y0 < y1):
        return Code.BOX_INVALID
    return Code.LABEL_CONTRADICTORY if pathology is Pathology.NORMAL else Label(pathology, (x0, y0, x1, y1))
