"""The commands ``busgen-node intake``: every way in, one line of counts out."""

import json
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from busgen_client.cli_options import NODE_TOML, AsJson, Config
from busgen_client.cohort import CohortStore, open_cohort
from busgen_client.settings import NodeSettings, load_settings
from busgen_core.errors import ConfigError

if TYPE_CHECKING:
    from busgen_client.intake.findings import IntakeResult
    from busgen_client.intake.query import Archive, Query
    from busgen_client.intake.spool import Spool

intake_app = typer.Typer(no_args_is_help=True, help="Take images in.")

LabelFile = Annotated[Path | None, typer.Option("--labels", help="Table by object or accession number, structured report, or a folder.")]
Since = Annotated[datetime, typer.Option("--from", formats=["%Y-%m-%d"], help="First study date.")]
Until = Annotated[datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="Last study date; not given, today.")]
BodyPart = Annotated[str, typer.Option(help="Body Part Examined, such as BREAST; series whose archive names none are left out then.")]
Procedure = Annotated[str, typer.Option(help="Study Description, * and ? as wildcards.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only count what would be fetched.")]


@intake_app.command("table")
def table(folder: Annotated[Path, typer.Argument(help="Folder with images.csv.")], config: Config = NODE_TOML, as_json: AsJson = False) -> None:
    """Take in an image folder with a CSV of labels.

    Exit status: 0 done (some may be in quarantine), 1 the table cannot be read, 2 wrong usage.
    """
    from busgen_client.intake.table import intake_table

    _report(intake_table(_cohort(load_settings(config)), folder, progress=not as_json), as_json)


@intake_app.command("folder")
def folder_of_dicom(
    folder: Annotated[Path, typer.Argument(help="Folder of DICOM files, searched below too.")],
    labels: LabelFile = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on with what comes, until told to stop.")] = False,
    config: Config = NODE_TOML,
    as_json: AsJson = False,
) -> None:
    """Take in DICOM files: de-identified, checked, split by patient. Stopped half-way, the same command goes on from there.

    Exit status: 0 done (some may be in quarantine), 1 refused or invalid, 2 wrong usage.
    """
    from busgen_client.intake.dicom import intake_dicom

    store = _cohort(load_settings(config))
    if not watch:
        _report(intake_dicom(store, folder, labels, progress=not as_json), as_json)
        return
    from busgen_client.intake.watch import watch_folder

    with _until_told() as stop:
        _report(watch_folder(store, folder, labels, progress=not as_json, stop=stop), as_json)


@intake_app.command("receive")
def receive(labels: LabelFile = None, config: Config = NODE_TOML, as_json: AsJson = False) -> None:
    """Receive from the peers in node.toml (C-STORE) and take in what comes, until told to stop. Labels are pacs.labels unless given.

    Exit status: 0 stopped, 1 refused or invalid, 2 wrong usage.
    """
    from busgen_client.intake import receiver

    settings = load_settings(config)
    _log_our_own()
    pacs = settings.pacs.model_copy(update={"labels": labels or settings.pacs.labels})
    with _until_told() as stop:
        _report(receiver.receive(_cohort(settings), settings.data, pacs, progress=not as_json, stop=stop), as_json)


@intake_app.command("pull")
def pull(
    peer: Annotated[str, typer.Argument(help="The PACS, by its name under [pacs.peers] in node.toml.")],
    since: Since,
    until: Until = None,
    body_part: BodyPart = "",
    procedure: Procedure = "",
    labels: LabelFile = None,
    dry_run: DryRun = False,
    config: Config = NODE_TOML,
    as_json: AsJson = False,
) -> None:
    """Find ultrasound in a PACS, fetch it (C-GET or C-MOVE) and take it in. Stopped half-way, the same command goes on from there.

    Exit status: 0 done (some may be in quarantine), 1 the PACS cannot be reached, refuses, or left objects out, 2 wrong usage.
    """
    from busgen_client.intake.dimse import PacsArchive, fetching

    settings = load_settings(config)
    if (found := settings.pacs.peers.get(peer)) is None:
        raise ConfigError(f"no peer called {peer!r} is under [pacs.peers] in node.toml")
    spool, query = _spool(settings), _query(since, until, body_part, procedure)
    with fetching(settings.pacs, found, settings.data, spool):
        _pull(settings, spool, PacsArchive(settings.pacs, found), query, labels, dry_run=dry_run, as_json=as_json)


@intake_app.command("dicomweb")
def dicomweb(
    since: Since,
    until: Until = None,
    body_part: BodyPart = "",
    procedure: Procedure = "",
    labels: LabelFile = None,
    dry_run: DryRun = False,
    config: Config = NODE_TOML,
    as_json: AsJson = False,
) -> None:
    """Find ultrasound in a DICOMweb service, fetch it and take it in. Stopped half-way, the same command goes on from there.

    Exit status: 0 done (some may be in quarantine), 1 the service cannot be reached, refuses, or left objects out, 2 wrong usage.
    """
    from busgen_client.intake.dicomweb import DicomWebArchive

    settings = load_settings(config)
    if settings.pacs.dicomweb is None:
        raise ConfigError("no DICOMweb service is in node.toml; name one under [pacs.dicomweb]")
    spool, query = _spool(settings), _query(since, until, body_part, procedure)
    with spool.receiving():
        _pull(settings, spool, DicomWebArchive(settings.pacs.dicomweb), query, labels, dry_run=dry_run, as_json=as_json)


@intake_app.command("waiting")
def waiting(labels: LabelFile = None, config: Config = NODE_TOML, as_json: AsJson = False) -> None:
    """Take up again what came over the network and waits: in the spool after an interruption, or in quarantine, say for its label.

    Exit status: 0 done (some may still be in quarantine), 1 refused or invalid, 2 wrong usage.
    """
    from itertools import chain

    from busgen_client.intake.labels import read_labels
    from busgen_client.intake.run import take_in

    settings = load_settings(config)
    spool, known = _spool(settings), read_labels(labels, settings.labels.mapping)
    total = len(spool.waiting()) + len(spool.waiting(held=True))
    sources = chain(spool.sources(known, held=True), spool.sources(known))
    _report(take_in(_cohort(settings), sources, total=total, event="intake.waiting", progress=not as_json, unread=known.unread), as_json)


@intake_app.command("preview")
def preview(
    folder: Annotated[Path, typer.Argument(help="Folder of DICOM files, searched below too.")],
    out: Annotated[Path, typer.Argument(help="Folder to write de-identified DICOM files to; not inside the other.")],
    config: Config = NODE_TOML,
    as_json: AsJson = False,
) -> None:
    """Write DICOM files as intake de-identifies them, for people at the hospital to look at. Nothing enters the cohort.

    Exit status: 0 done (what intake would hold back is counted), 1 refused or invalid, 2 wrong usage.
    """
    from busgen_client.intake.export import write_deidentified

    result = write_deidentified(_cohort(load_settings(config)), folder, out, progress=not as_json)
    _say({"written": result.added, "held back": result.quarantined, **result.codes}, as_json)


def _pull(settings: NodeSettings, spool: "Spool", archive: "Archive", query: "Query", labels: Path | None, *, dry_run: bool, as_json: bool) -> None:
    from busgen_client.intake.pull import found, pull

    series = found(archive, query, progress=not as_json)
    if dry_run:
        counts = {"studies": len({each.study for each in series}), "series": len(series), "objects": sum(len(each.objects) for each in series)}
        _say(counts, as_json)
        return
    _report(pull(_cohort(settings), spool, archive, series, labels, progress=not as_json), as_json)


def _query(since: datetime, until: datetime | None, body_part: str, procedure: str) -> "Query":
    from busgen_client.intake.query import Query

    return Query(since=since.date(), until=until.date() if until else date.today(), body_part=body_part, procedure=procedure)


def _spool(settings: NodeSettings) -> "Spool":
    from busgen_client.intake.spool import Spool

    most, free = settings.pacs.spool_gib * 2**30, settings.pacs.free_gib * 2**30
    return Spool(_cohort(settings), settings.data, most_bytes=most, free_bytes=free)


def _cohort(settings: NodeSettings) -> CohortStore:
    return open_cohort(settings)


def _log_our_own() -> None:
    """Our own lines to standard error, and nobody else's: other libraries quote what they read."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    ours = logging.getLogger("busgen")
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)


@contextmanager
def _until_told() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _signal, _frame: stop.set())
    yield stop


def _report(result: "IntakeResult", as_json: bool) -> None:
    counts = {"added": result.added, "duplicates": result.duplicates, "skipped": result.skipped, "quarantined": result.quarantined}
    unread = {"reports that cannot be read": result.unread.reports, "of these whose is not known": result.unread.unplaced}
    _say(counts | (unread if result.unread.reports else {}), as_json)


def _say(counts: dict[str, int], as_json: bool) -> None:
    typer.echo(json.dumps(counts) if as_json else ", ".join(f"{key} {value}" for key, value in counts.items()))
