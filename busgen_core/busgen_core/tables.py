"""Reading CSV files that people made: the whole table or a TableError, before anything is done with it."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from busgen_core.errors import TableError

LARGEST = 256 * 2**20  # bytes


def read_rows(path: Path, *, required: Iterable[str]) -> list[dict[str, str] | None]:
    """Rows of a CSV file (UTF-8, with or without byte order mark); None for a row with too many or too few fields.

    Raises:
        TableError: as ``read_table``; a required column is missing.
    """
    header, rows = read_table(path)
    if missing := sorted(set(required) - set(header)):
        raise TableError(f"the table lacks the columns {missing}")
    return rows


def read_table(path: Path) -> tuple[list[str], list[dict[str, str] | None]]:
    """Columns and rows of a CSV file; columns are known also where there is no row.

    Raises:
        TableError: missing, too large, not UTF-8, not CSV, or a column repeated. Values are never repeated.
    """
    header, rows = _lines(path)
    return header, [dict(zip(header, row, strict=True)) if len(row) == len(header) else None for _, row in rows]


def read_whole(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV file none of whose rows is torn; there may be none.

    Raises:
        TableError: as ``read_table``; a row has too many or too few fields: its line is named, its content is not.
    """
    header, rows = _lines(path)
    if torn := [line for line, row in rows if len(row) != len(header)]:
        raise TableError(f"line {torn[0]} of the table has more or fewer fields than the first; put fields that hold a comma into quotes")
    return header, [dict(zip(header, row, strict=True)) for _, row in rows]


def _lines(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The first row, and the others that are not empty, each with the line at which it ends."""
    try:
        if path.stat().st_size > LARGEST:
            raise TableError(f"the table is larger than {LARGEST >> 20} MiB; split it")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise TableError(f"the table cannot be read ({error.strerror or type(error).__name__}); check its path and permissions") from None
    except UnicodeDecodeError:
        raise TableError("the table is not UTF-8; save it as CSV UTF-8") from None
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=_delimiter(text))
        lines = [(reader.line_num, [field.strip() for field in line]) for line in reader if line]
    except csv.Error:
        raise TableError("the table is not CSV: a quote is not closed or a field is too long") from None
    header = lines[0][1] if lines else []
    if len(set(header)) != len(header):
        raise TableError("a column name is repeated in the table's first row")
    return header, lines[1:]


def _delimiter(text: str) -> str:
    """A comma; where the first line has none, the semicolon or tab that it has: spreadsheets write those in many countries."""
    first = text.partition("\n")[0]
    return next((mark for mark in ",;\t" if mark in first), ",")


def whole_rows(path: Path, *, required: Iterable[str]) -> list[dict[str, str]]:
    """Rows of a CSV file that has some, none of them torn.

    Raises:
        TableError: as ``read_rows``; no row, or one with too many or too few fields.
    """
    rows = read_rows(path, required=required)
    whole = [row for row in rows if row is not None]
    if not whole or len(whole) < len(rows):
        raise TableError("the table is empty, or torn: a row has more or fewer cells than the first")
    return whole
