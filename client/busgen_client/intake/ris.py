"""Tables of labels: CSV, or JSON with a list of objects, one row for an object (SOP Instance UID) or an examination (accession number).

Columns are found by the names in the site's mapping; ``x0,y0,x1,y1`` is a lesion box in pixels of the whole frame. Others are not read.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from busgen_client.intake.findings import Code
from busgen_client.intake.frames import Box
from busgen_client.intake.mapping import Side, Vocabulary, only
from busgen_client.intake.statements import Said, Statement
from busgen_client.intake.wording import plain
from busgen_core.errors import TableError
from busgen_core.labels import Pathology
from busgen_core.tables import LARGEST, read_whole

BOX_COLUMNS = ("x0", "y0", "x1", "y1")
SUFFIXES = (".csv", ".json")

Row = Mapping[str, str]


def is_table(path: Path) -> bool:
    """Whether a file of a folder is to be read as a table."""
    return path.suffix.lower() in SUFFIXES


def read_table(path: Path, vocabulary: Vocabulary) -> list[Statement]:
    """What a table says. A row about a whole examination may not have a box: nobody could tell of which frame.

    Raises:
        TableError: the table as a whole cannot be used, or a row is torn: nobody could tell whose label it is.
    """
    header, rows = _json(path) if path.suffix.lower() == ".json" else read_whole(path)
    columns = _columns(header, vocabulary)
    found = []
    for row in rows:
        cells = {name: [row[column].strip() for column in names if row.get(column)] for name, names in columns.items()}
        said = _said(row, cells, vocabulary, path.parent)
        kind: Literal["object", "accession"] = "object" if cells["object"] else "accession"
        for key in cells[kind][:1]:
            local = isinstance(said, Said) and (said.box or said.mask)
            found.append(Statement(kind=kind, key=key, said=Code.BOX_INVALID if local and kind == "accession" else said))
    return found


def _columns(header: Sequence[str], vocabulary: Vocabulary) -> dict[str, list[str]]:
    """The table's columns by what they hold.

    Raises:
        TableError: neither objects nor accession numbers, or neither pathology nor BI-RADS.
    """
    present = {column: plain(column).replace(" ", "") for column in header}
    names = vocabulary.words.columns
    wanted = {field: {plain(name).replace(" ", "") for name in getattr(names, field)} for field in type(names).model_fields}
    columns = {field: [column for column, name in present.items() if name in keys] for field, keys in wanted.items()}
    if not (columns["object"] or columns["accession"]):
        raise TableError(f"the table of labels has no column of objects or accession numbers: {[*names.object, *names.accession]}")
    if not (columns["pathology"] or columns["birads"]):
        raise TableError(f"the table of labels has no column of pathology or BI-RADS: {[*names.pathology, *names.birads]}")
    return columns


def _said(row: Row, cells: Mapping[str, list[str]], vocabulary: Vocabulary, folder: Path) -> Said | Code:
    pathologies = {vocabulary.pathology(text) for text in cells["pathology"]} - {None}
    assessments = {vocabulary.assessment(text) for text in cells["birads"]} - {""}
    if bad := sorted(each for each in pathologies | assessments if isinstance(each, Code)):
        return bad[0]
    if len(pathologies) > 1 or len(assessments) > 1:
        return Code.LABEL_CONTRADICTORY
    box = _box(row)
    if isinstance(box, Code):
        return box
    pathology, birads = next(iter(pathologies), None), next(iter(assessments), "")
    side = _side(cells, vocabulary)
    if isinstance(side, Code):
        return side
    mask = (folder.resolve(), cells["mask"][0]) if cells["mask"] else None
    device = cells["device"][0] if cells["device"] else ""
    return Said(pathology=pathology if isinstance(pathology, Pathology) else None, birads=birads, side=side, box=box, mask=mask, device=device)


def _side(cells: Mapping[str, list[str]], vocabulary: Vocabulary) -> Side | Code:
    """The side that a row is about: by its columns, or without them by the words of its histology."""
    stated = {vocabulary.side(text) for text in cells["side"]}
    if bad := [each for each in stated if isinstance(each, Code)]:
        return bad[0]
    sides: set[Side] = {each for each in stated if not isinstance(each, Code)}
    named = vocabulary.sides_in(" ".join(cells["pathology"]))
    if len(sides) > 1 or (sides and named - sides and sides != {""}):
        return Code.LABEL_CONTRADICTORY
    return only(sides) or only(named)


def _box(row: Row) -> Box | Code | None:
    texts = [row.get(name, "") for name in BOX_COLUMNS]
    if not any(texts):
        return None
    try:
        x0, y0, x1, y1 = (float(text) for text in texts)
    except ValueError:
        return Code.BOX_INVALID
    return (x0, y0, x1, y1)


def _json(path: Path) -> tuple[list[str], Sequence[Row]]:
    """Columns and rows of a JSON file; a list or an object is read as the words in it, an empty value is left out."""
    try:
        if path.stat().st_size > LARGEST:
            raise TableError(f"the table is larger than {LARGEST >> 20} MiB; split it")
        loaded: object = json.loads(path.read_bytes())
    except OSError as error:
        raise TableError(f"the table cannot be read ({error.strerror or type(error).__name__}); check its path and permissions") from None
    except (ValueError, RecursionError):
        raise TableError("the table is not JSON") from None
    if not isinstance(loaded, list) or not all(isinstance(row, dict) for row in loaded):
        raise TableError("the table is not a JSON list of objects")
    rows = [{str(name): value if isinstance(value, str) else json.dumps(value) for name, value in row.items() if value is not None} for row in loaded]
    return sorted({name for row in rows for name in row}), rows
