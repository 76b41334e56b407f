"""What our commands have in common: tables or JSON out, errors to exit statuses."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence

import typer
from rich.console import Console
from rich.table import Table

from busgen_core.errors import BusgenError


def print_rows(rows: Sequence[Mapping[str, object]], *, as_json: bool) -> None:
    """Print rows of like keys as a table, or as one JSON list."""
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table(*(rows[0] if rows else ["nothing yet"]))
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


def run_command(name: str, app: Callable[[], None]) -> None:
    """Run a command line; the one place where an error becomes words and an exit status.

    Exit status: 0 done, 1 refused or invalid, 2 wrong usage. A traceback is shown only where BUSGEN_DEBUG is set.
    """
    try:
        app()
    except BusgenError as error:
        sys.exit(f"{name}: {error.code}: {error}")
    except OSError as error:
        if os.environ.get("BUSGEN_DEBUG"):
            raise
        sys.exit(f"{name}: unavailable: {error.strerror or type(error).__name__}: {error.filename or 'no file named'}; check disk, rights and path")
    except Exception as error:
        if os.environ.get("BUSGEN_DEBUG"):
            raise
        sys.exit(f"{name}: internal-error: {type(error).__name__}; run again with BUSGEN_DEBUG=1 and report what it prints")
