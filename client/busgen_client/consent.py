"""Withdrawn consent: what a node can undo, it undoes; what it cannot, it says.

Undone: the patient's images, rows, pictures in local reports and all that waits are deleted; the patient is never taken in again (a tombstone, which
is a keyed digest, knows them); jobs that hold the patient and have not released end with ``consent-withdrawn``.
Not undone: releases that are out. They stay protected by their epsilon; the ledger notes them, and the hub is told that they hold a
withdrawn patient, neither who nor how many.
"""

import json
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from busgen_client import patients
from busgen_client.cohort import CohortStore, open_cohort
from busgen_client.cohort_rows import Role, WithdrawnRow
from busgen_client.database import compact, open_store
from busgen_client.held import HeldStore
from busgen_client.jobs import JobRow, NoticeRow
from busgen_client.protocol import COHORT_FILE, LOCAL_REPORT, job_folder
from busgen_client.settings import NodeSettings
from busgen_core.errors import ConsentWithdrawnError, InputError
from busgen_core.files import UNFINISHED
from busgen_core.wire import JobState
from busgen_privacy.ledger import Ledger

KEY = re.compile(r"[0-9a-f]{64}")  # what Pseudonyms.patient_key gives
ACCOUNTS: dict[Role | None, str] = {"member": "members", "holdout": "holdout", None: ""}
UNKNOWN = (
    "nothing of a patient of that key, or of that identifier and issuer, is or was here; nothing was changed. Check both (--issuer); "
    "--unknown-too refuses this patient from now on all the same"
)
UNFROZEN = (JobState.OFFERED, JobState.ACCEPTED)  # without a list of images these hold nobody yet


@dataclass(frozen=True, kw_only=True, slots=True)
class Withdrawal:
    """What one withdrawal came to; nothing in it names the patient.

    Attributes:
        tombstone: Keyed digest under which the patient is refused from now on.
        created: When, UTC.
        images: Images that were deleted.
        releases: ``(campaign, release)`` that hold the patient and are out.
        stopped: Campaigns whose jobs were ended by it.
    """

    tombstone: str
    created: str
    images: int
    releases: tuple[tuple[str, str], ...]
    stopped: tuple[str, ...]


def withdraw(settings: NodeSettings, patient_key: str, *, known: bool = True) -> Withdrawal:
    """Withdraw a patient's consent. Repeating it, also after a crash, finishes what is left to do and changes nothing else.

    Guarantees: deletion, tombstone, the end of unreleased jobs and the notice to the hub are one transaction, so no release can slip
    between them; when it returns, files and ledger have followed.

    Args:
        settings: The node's.
        patient_key: The patient's opaque key, as ``Pseudonyms.patient_key`` gives it.
        known: Refuse a key of which nothing is here, neither taken in nor waiting (it may be mistyped); False buries it all the same.

    Raises:
        InputError: not a patient key, or one of which nothing is here; nothing was changed.
        StateError: an intake is running.
        LedgerError: the ledger cannot be written; the rest is done, and the same command finishes it.
    """
    from busgen_client.intake.spool import forget, people, sweep_halves  # imports pydicom

    if not KEY.fullmatch(patient_key):
        raise InputError("a patient key is 64 hexadecimal digits, as the cohort store has it")
    engine = open_store(settings.data)
    store = open_cohort(settings, engine)
    with store.intake():
        waiting = [*HeldStore(store).people(), *people(store, settings.data)]
        with Session(engine, expire_on_commit=False) as session:
            patient_key = patients.whose(session, patient_key, waiting)
            row = session.get(WithdrawnRow, store.pseudonyms.tombstone(patient_key))
            row = row or _bury(session, store, settings.data, patient_key, waiting, known=known)
            session.commit()
        store.files.sweep()
        HeldStore(store).forget(patient_key)
        forget(store, settings.data, patient_key)
        sweep_halves(settings.data / "spool")  # one may be of this patient
        remove_pictures(engine, settings.data)
    compact(engine)
    _finish(engine, Ledger(settings.data / "ledger.jsonl", site=settings.site))
    return _withdrawal(row)


def _finish(engine: Engine, ledger: Ledger) -> None:
    """Note in the ledger what is not noted yet, of an earlier withdrawal too: it may have been by another identifier of the same patient."""
    with Session(engine, expire_on_commit=False) as session:
        left = session.scalars(select(WithdrawnRow).where(WithdrawnRow.finished.is_(False))).all()
    for row in left:
        for _, release_id in row.releases:
            ledger.withdraw(row.account, release_id)
    with Session(engine) as session:
        for row in left:
            session.merge(row).finished = True
        session.commit()


def withdrawals(settings: NodeSettings) -> list[Withdrawal]:
    """All withdrawals, oldest first."""
    with Session(open_store(settings.data)) as session:
        return [_withdrawal(row) for row in session.scalars(select(WithdrawnRow).order_by(WithdrawnRow.created, WithdrawnRow.tombstone))]


def remove_pictures(engine: Engine, data: Path) -> None:
    """Delete the local reports of all jobs that held a withdrawn patient: they show images of members. The worker calls it too."""
    with Session(engine) as session:
        held = {campaign for row in session.scalars(select(WithdrawnRow)) for campaign in row.held}
    for campaign in held:
        for name in (LOCAL_REPORT, LOCAL_REPORT + UNFINISHED):
            (job_folder(data, campaign) / name).unlink(missing_ok=True)


def patient_key_in(store: CohortStore, file: Path, *, issuer: str = "") -> str:
    """The key of the patient whose identifier is the one line of ``file``; it is never on a command line, where others could read it.

    Raises:
        InputError: the file cannot be read, or holds no identifier or several lines.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()  # Windows writes a byte order mark
    except (OSError, ValueError):
        raise InputError("the file with the patient's identifier cannot be read") from None
    if len(lines) != 1:
        raise InputError("the file with the patient's identifier must hold one line")
    return store.pseudonyms.patient_key(lines[0], issuer=issuer)


def _bury(session: Session, store: CohortStore, data: Path, patient_key: str, waiting: Sequence[patients.Person], *, known: bool) -> WithdrawnRow:
    """Everything that happens in the one transaction."""
    here = patients.learn_all(session, patient_key, waiting) or any(person.key == patient_key for person in waiting)
    before = patients.is_buried(session, store.pseudonyms.key, patients.Person(key=patient_key))
    role, images = store.forget(session, patient_key)
    if known and role is None and not (here or before):
        raise InputError(UNKNOWN)
    row = WithdrawnRow(
        tombstone=store.pseudonyms.tombstone(patient_key), account=ACCOUNTS[role], images=len(images), held=[], releases=[], stopped=[]
    )
    for job in session.scalars(select(JobRow).order_by(JobRow.created)):
        if images and _holds(data, job, images):
            _part_with(session, row, job)
    session.add(row)
    session.flush()
    return row


def _part_with(session: Session, row: WithdrawnRow, job: JobRow) -> None:
    """A job that held the patient: told of if it has released, ended if it still could."""
    row.held.append(job.campaign_id)
    if job.state == JobState.RELEASED:
        row.releases.append([job.campaign_id, job.release_id])
        session.merge(NoticeRow(campaign_id=job.campaign_id))
    elif not JobState(job.state).ended:
        row.stopped.append(job.campaign_id)
        job.state, job.code, job.progress = JobState.FAILED.value, ConsentWithdrawnError.code, 0.0
        job.message = "a patient of its cohort withdrew consent; 'busgen-node ledger settle' gives back what did not run"


def _holds(data: Path, job: JobRow, images: Set[str]) -> bool:
    """Whether a job is bound to one of these images; a job past its beginning whose list is lost may be, so it counts."""
    try:
        frozen = json.loads((job_folder(data, job.campaign_id) / COHORT_FILE).read_text())
        return not images.isdisjoint([*frozen["member"], *frozen["holdout"]])
    except FileNotFoundError:
        return JobState(job.state) not in UNFROZEN
    except (ValueError, KeyError, TypeError):
        return True


def _withdrawal(row: WithdrawnRow) -> Withdrawal:
    return Withdrawal(
        tombstone=row.tombstone,
        created=row.created,
        images=row.images,
        releases=tuple((campaign, release) for campaign, release in row.releases),
        stopped=tuple(row.stopped),
    )
