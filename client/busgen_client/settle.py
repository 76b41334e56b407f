"""Gives back the part of a reservation that provably never ran, once its job has ended for good.

``work.json`` in the job's folder says what has begun: it is written before the reservation, and rewritten before each private phase.
``work.lock`` is held through such a phase, so nobody settles a job that a worker is at. ``closed.json`` says that the job will never
run again, and what is given back.

Guarantees: a job is closed, its checkpoint deleted, before the ledger's entry is written; a closed or settled job is never run on, also
if its folder or the node's store is put back to an older state. What ran is never below what the evidence allows: steps up to the last
checkpoint and all that could have run until the next; where evidence is missing, unreadable or odd, everything stays spent.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open

from busgen_client.jobs import JobStore
from busgen_client.protocol import job_folder
from busgen_client.settings import NodeSettings
from busgen_core.digests import sha256_bytes, sha256_file
from busgen_core.errors import StateError
from busgen_core.files import write_whole
from busgen_core.wire import Digest, JobState
from busgen_privacy.dp.accounting import GaussianEvent
from busgen_privacy.ledger import Ledger, LedgerEvent, NamedEvent

WORK, LOCK, CLOSED = "work.json", "work.lock", "closed.json"
ADAPT = "adapt"  # the adaptation's folder in the job's
IN_ADAPTATION = ("class counts", "vote", "mean", "dp-sgd")  # mechanisms that run in the phase "adaptation", and only there
IN_AUDIT = ("audit figures",)  # the same of the phase "audit"
FINDINGS = "watchdog.json"  # stays, for whoever asks why the job failed
ENDED = (JobState.FAILED, JobState.REFUSED, JobState.DECLINED)

Phase = Literal["adaptation", "audit"]


class Work(BaseModel):
    """Which private phases of a job have begun."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    adaptation: bool = False
    audit: bool = False


class Closed(BaseModel):
    """A job that will never run again: what stays charged to each account, and the SHA-256 of what proves it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    left: dict[str, tuple[LedgerEvent, ...]]
    evidence: Digest


@dataclass(frozen=True, slots=True)
class Ran:
    """What may have run at most: DP-SGD steps (None: all), whether anything of the adaptation, and of the audit."""

    steps: int | None
    adaptation: bool
    audit: bool
    evidence: str


def record_work(folder: Path, ledger: Ledger, campaign_id: str) -> None:
    """Before the reservation: state that nothing private has begun. Where a reservation is there already, that cannot be known any more."""
    if not (folder / WORK).exists() and not any(e.reference == campaign_id for e in ledger.entries()):
        write_whole(folder / WORK, Work().model_dump_json().encode())


@contextmanager
def at_work(folder: Path, phase: Phase, ledger: Ledger, campaign_id: str) -> Iterator[None]:
    """Hold a job through a private phase; that the phase has begun is on the disk before its body runs.

    Raises:
        StateError: the job is closed.
        LedgerError: its reservation is missing or was given back.
    """
    with _held(folder, wait=True):
        if (folder / CLOSED).exists():
            raise StateError(f"campaign {campaign_id} was closed to give back its budget; it must not run on")
        ledger.check_open("members", campaign_id)
        if (work := _work(folder)) is not None:
            write_whole(folder / WORK, work.model_copy(update={phase: True}).model_dump_json().encode())
        yield


def settle(settings: NodeSettings, jobs: JobStore, ledger: Ledger, campaign_id: str) -> dict[str, tuple[LedgerEvent, ...]]:
    """Close an ended job and give back what never ran. Repeating it, also after a crash, finishes what is left to do.

    Returns:
        What stays charged for this campaign, by account; only accounts that were given something back.

    Raises:
        StateError: the job has not ended, was released, is being worked at, or nothing provably never ran.
        LedgerError: the reservation was committed, or settled otherwise.
    """
    row = jobs.need(campaign_id)
    if row.state not in ENDED:
        raise StateError(f"job of campaign {campaign_id} is {row.state}; only one that failed, was refused or was declined can be settled")
    folder = job_folder(settings.data, campaign_id)
    if not folder.is_dir():
        raise StateError(f"campaign {campaign_id} has no job folder, so nothing proves what ran; everything stays spent")
    with _held(folder, wait=False):
        closed = _close(folder, ledger, campaign_id)
        for account, left in closed.left.items():
            ledger.settle(account, campaign_id, [_named(event) for event in left], evidence=closed.evidence)
    return closed.left


def _close(folder: Path, ledger: Ledger, campaign_id: str) -> Closed:
    """The job's closing, made once: marker first, then the checkpoint goes, so that no state to run on from is left."""
    if (folder / CLOSED).exists():
        closed = Closed.model_validate_json((folder / CLOSED).read_bytes())
    else:
        closed = _given_back(what_ran(folder), ledger, campaign_id)
        write_whole(folder / CLOSED, closed.model_dump_json(indent=1).encode())
    for file in (folder / ADAPT).glob("*"):
        if file.name != FINDINGS:
            file.unlink()
    return closed


def _given_back(ran: Ran, ledger: Ledger, campaign_id: str) -> Closed:
    entries = [e for e in ledger.entries() if e.reference == campaign_id]
    reserved = {e.account: e.events for e in entries if e.kind == "reserve"}
    left = {account: what_stays(events, ran) for account, events in reserved.items()}
    left = {account: events for account, events in left.items() if events != reserved[account]}
    if not left or any(e.kind in ("commit", "settle") for e in entries):  # a commit: the adaptation was finished
        raise StateError(f"campaign {campaign_id}: nothing that was reserved provably never ran; everything stays spent")
    return Closed(left=left, evidence=ran.evidence)


def what_stays(reserved: Sequence[LedgerEvent], ran: Ran) -> tuple[LedgerEvent, ...]:
    """The events of a reservation that ran, or may have run. Pure.

    Mechanisms that neither phase is known to run, and DP-SGD in several parts, stay as they are.
    """
    kept = []
    parts = sum(event.mechanism == "dp-sgd" for event in reserved)
    for event in reserved:
        if (event.mechanism in IN_ADAPTATION and not ran.adaptation) or (event.mechanism in IN_AUDIT and not ran.audit):
            continue
        if event.mechanism == "dp-sgd" and parts == 1 and ran.steps is not None:
            event = event.model_copy(update={"count": min(event.count, ran.steps)})
        kept.append(event)
    return tuple(kept)


def what_ran(folder: Path) -> Ran:
    """What the files of a job prove; in doubt, everything."""
    from busgen_privacy.dp.checkpoints import ADAPTED, STATE  # imports torch
    from busgen_privacy.dp.dpsgd import SAVE_EVERY

    work, adapt = _work(folder), folder / ADAPT
    if work is None or work.audit or (adapt / ADAPTED).exists():
        return Ran(None, True, True, sha256_bytes(b""))
    if not work.adaptation:
        begun = (adapt / STATE).exists()  # contradicts the record: then everything ran
        return Ran(None, begun, begun, sha256_file(folder / WORK))
    step = _checkpointed(adapt / STATE, every=SAVE_EVERY)
    evidence = sha256_file(adapt / STATE) if step else sha256_file(folder / WORK)
    return Ran(step + SAVE_EVERY if step else None, True, False, evidence)


def _checkpointed(file: Path, *, every: int) -> int | None:
    """The step of a checkpoint; None for one that is missing, unreadable, or not as ``dp.checkpoints`` writes it."""
    try:
        with safe_open(file, "np") as opened:
            metadata = opened.metadata() or {}
        step, sizes = int(metadata["step"]), json.loads(metadata["watchdog"])["sizes"]
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None
    return step if step > 0 and step % every == 0 and len(sizes) == step and metadata.get("run") else None


def _work(folder: Path) -> Work | None:
    try:
        return Work.model_validate_json((folder / WORK).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


@contextmanager
def _held(folder: Path, *, wait: bool) -> Iterator[None]:
    """The job's lock; without ``wait`` refused at once when somebody else has it."""
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError("a worker is at this job, or somebody settles it; wait a moment") from None
        yield
    finally:
        os.close(lock)


def _named(event: LedgerEvent) -> NamedEvent:
    return event.mechanism, GaussianEvent(*event.numbers)
