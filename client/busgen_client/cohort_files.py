"""What the node stores against its rows: verify that every file is there and whole, and seal those that are not sealed yet.

That is images of the cohort, pictures that wait in quarantine, objects in the spool, secrets of one-time codes, and what jobs leave
for the hospital alone.
"""

import hmac
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from busgen_client.cohort import CohortStore
from busgen_client.cohort_rows import PatientRow
from busgen_client.consent import remove_pictures
from busgen_client.console.code_secrets import ROLE as CODES
from busgen_client.console.code_secrets import CodeSecrets
from busgen_client.held import ROLE as QUARANTINE
from busgen_client.held import HeldStore
from busgen_client.image_files import SEALED
from busgen_client.intake.dicom import SPOOL
from busgen_client.intake.spool import sweep_halves
from busgen_client.jobs import JobStore
from busgen_client.papers import ROLE as PAPERS
from busgen_client.papers import Paper, sealed_name
from busgen_client.pseudonyms import Pseudonyms
from busgen_client.storage import MAGIC, StorageSettings
from busgen_core.errors import ConfigError, CorruptImageError, SealError, StateError
from busgen_core.labels import Pathology

BEAT_SECONDS = 20.0  # since the worker's last heartbeat; it has one every 5 s


class Problem(StrEnum):
    """What can be wrong with a cohort. Stable: the command, the console and tests rely on it."""

    DAMAGED = "damaged"  # does not open, or is not the bytes that were stored
    MISSING = "missing"  # a row without its file
    ORPHAN = "orphan"  # a file without a row; the next intake deletes it
    ROLE = "role"  # an image on the other side than its patient, or a patient on the other side than the journal, its proof or the draw says
    UNPROVED = "unproved"  # a role that an earlier version noted without a proof, or whose proof was taken away: nobody can tell if it was edited
    UNSEALED = "unsealed"  # the site seals its files, and this one is from before; 'cohort encrypt' seals it


@dataclass(frozen=True, kw_only=True, slots=True)
class CohortState:
    """What ``verify`` found.

    Attributes:
        images: Rows.
        sealed: Images whose file is sealed.
        found: ``(problem, what)``: an image's id, or a file's name (those outside ``images/`` with their folder); for a patient the first twelve
            digits of the key.
    """

    images: int
    sealed: int
    found: tuple[tuple[Problem, str], ...]

    @property
    def whole(self) -> bool:
        """Nothing is missing, damaged, too many or on the wrong side."""
        return all(problem is Problem.UNSEALED for problem, _ in self.found)

    def counts(self) -> dict[str, int]:
        """How often each problem was found."""
        return dict(sorted(Counter(problem.value for problem, _ in self.found).items()))


def verify(store: CohortStore, *, progress: bool = True) -> CohortState:
    """Open every image and compare files, rows, roles and journal. Changes nothing.

    Raises:
        StateError: an intake is running.
        StorageKeyError: files are sealed, and the key is missing or another.
    """
    with store.still():
        rows = store.rows()
        found = [*_of_files(store, progress=progress), *_of_beside(store), *_of_roles(store)]
        return CohortState(images=len(rows), sealed=sum(row.file.endswith(SEALED) for row in rows), found=tuple(found))


def _of_files(store: CohortStore, *, progress: bool) -> Iterator[tuple[Problem, str]]:
    rows, files = store.rows(), store.files.names()
    for row in tqdm(rows, desc="verify", unit="image", disable=not progress):
        if row.file not in files:
            yield Problem.MISSING, row.image_id
            continue
        try:
            store.png(row.image_id)
        except CorruptImageError:
            yield Problem.DAMAGED, row.image_id
        if store.vault.seals and not row.file.endswith(SEALED):
            yield Problem.UNSEALED, row.image_id
    for name in sorted(files - {row.file for row in rows}):
        yield Problem.ORPHAN, name


@dataclass(frozen=True, slots=True)
class _Beside:
    """A file beside the images, and what it is sealed for."""

    path: Path
    shown: str  # its path in the data folder
    role: str
    sealed_name: str


def _beside(store: CohortStore) -> list[_Beside]:
    def listed(pattern: str, role: str, sealed_name: Callable[[Path], str]) -> list[_Beside]:
        return [_Beside(path, path.relative_to(store.data).as_posix(), role, sealed_name(path)) for path in sorted(store.data.glob(pattern))]

    return [
        *listed("quarantine/*-*", QUARANTINE, lambda path: path.name),
        *listed("spool/*.dcm", SPOOL, lambda path: path.stem),
        *listed("spool/**/*.held", SPOOL, lambda path: path.stem),
        *listed("accounts/*.secret", CODES, lambda path: path.stem),
        *(file for paper in Paper for file in listed(f"jobs/*/{paper}", PAPERS, sealed_name)),
    ]


def _expected(store: CohortStore) -> set[str]:
    """The files beside the images that rows name."""
    return {f"quarantine/{name}" for name in HeldStore(store).files()} | {f"accounts/{name}" for name in CodeSecrets(store).files()}


def _of_beside(store: CohortStore) -> Iterator[tuple[Problem, str]]:
    expected, files = _expected(store), _beside(store)
    for file in files:
        try:
            stored = file.path.read_bytes()
            store.vault.opened(stored, role=file.role, name=file.sealed_name)
        except FileNotFoundError:  # decided on meanwhile
            continue
        except SealError:
            yield Problem.DAMAGED, file.shown
            continue
        if store.vault.seals and not stored.startswith(MAGIC):
            yield Problem.UNSEALED, file.shown
    if store.vault.seals:
        yield from ((Problem.UNSEALED, f"accounts/{name}") for name in CodeSecrets(store).in_rows())
    named = {file.shown for file in files if file.role in (QUARANTINE, CODES)}
    yield from ((Problem.MISSING, name) for name in sorted(expected - named))
    yield from ((Problem.ORPHAN, name) for name in sorted(named - expected))


def _of_roles(store: CohortStore) -> Iterator[tuple[Problem, str]]:
    people, lines = store.split()
    noted = {line["patient"]: line for line in reversed(lines)}  # the first line counts: a role is fixed once
    for key, patient in people.items():
        if problem := _of_role(store.pseudonyms, patient, noted.get(key)):
            yield problem, key[:12]
    for row in store.rows():
        if row.patient_key not in people or people[row.patient_key].role != row.role:
            yield Problem.ROLE, row.image_id


def _of_role(pseudonyms: Pseudonyms, patient: PatientRow, line: Mapping[str, str] | None) -> Problem | None:
    """What is wrong with one patient's role, by the journal's line about it."""
    drawn = patient.role if patient.rule == "given" else pseudonyms.own_role(patient.patient_key)
    if line is None or not patient.role == line["role"] == drawn or patient.rule != line["rule"]:
        return Problem.ROLE
    if "proof" not in line:
        return Problem.UNPROVED
    proof = pseudonyms.role_proof(patient.patient_key, role=patient.role, rule=patient.rule)
    return None if hmac.compare_digest(line["proof"], proof) else Problem.ROLE


def encrypt(store: CohortStore, data: Path, *, rotate: bool = False, progress: bool = True) -> int:
    """Seal all that is not sealed under the newest key: images, what waits, secrets of codes, jobs' papers. Stopped half-way, it goes on.

    Returns:
        How many files it sealed.

    Args:
        store: The node's cohort.
        data: The node's data folder: old keys under which no file in it is sealed any more are dropped.
        rotate: Make a new data key first.
        progress: Show a progress bar on standard error.

    Raises:
        ConfigError: the site seals nothing.
        StateError: an intake is running.
        StorageKeyError: the key is missing or another.
        StorageFullError: no room; what was sealed stays so.
        CorruptImageError, SealError: a file is not what was stored; it is left as it is, and so is the old key. ``verify`` names it.

    Not promised: a file system or a solid-state disk may keep the bytes of deleted files for long.
    """
    if not store.vault.seals:
        raise ConfigError("storage.key is none, so nothing is sealed here; say in node.toml where the key is")
    with store.intake():
        store.vault.check()
        if rotate:
            store.vault.rotate()
        _sweep(store)
        rows, files = store.rows(), [file for file in _beside(store) if file.role != CODES]
        images = (store.files.reseal(row) for row in rows)
        others = (store.vault.reseal(file.path, role=file.role, name=file.sealed_name) for file in files)
        done = sum(tqdm(chain(images, others), total=len(rows) + len(files), desc="encrypt", unit="file", disable=not progress))
        done += CodeSecrets(store).renew()
        remove_pictures(store.engine, data)  # one that a withdrawal deleted while it was sealed anew would be back
        if _expected(store) <= {file.shown for file in _beside(store)}:  # what is missing may be on a disk that comes back
            store.vault.forget_unused(data)
        store.note("storage.encrypted", {"files": done, "rotated": rotate})
    return done


def rekey(store: CohortStore, settings: StorageSettings) -> bool:
    """Change the site's key, as ``Vault.rekey`` does it, while no worker and no intake could be stopped by it half-way.

    Returns:
        Whether anything was changed.

    Raises:
        StateError: the worker or an intake is running, or there are no keys yet.
        ConfigError, StorageKeyError: as ``Vault.rekey``.
    """
    if JobStore(store.engine).worker_age_seconds() < BEAT_SECONDS:
        raise StateError(f"the node's worker is running, and a job that misses its key fails; stop the node, and wait {BEAT_SECONDS:.0f} s")
    with store.still():
        changed = store.vault.rekey(settings)
        if changed:
            store.note("storage.rekeyed", {"key": settings.key})
        return changed


def _sweep(store: CohortStore) -> None:
    """Delete what a crash left half-written; while ``intake`` is held, which does not look at every image each time."""
    store.files.sweep()
    HeldStore(store).sweep()
    sweep_halves(store.data / "spool")


def pictures_twice(store: CohortStore, *, progress: bool = False) -> list[tuple[dict[str, str], dict[str, str]]]:
    """Pictures under two patients: image id, role and patient's key, of the one and of the other."""
    from busgen_core.images import decode_gray
    from busgen_privacy.cohort import Cohort  # imports scipy
    from busgen_privacy.lookalikes import doubles

    rows = store.rows()
    if not rows:
        return []
    read = [decode_gray(store.files.read(row), size=64) for row in tqdm(rows, desc="read", unit="image", disable=not progress)]
    people = tuple(row.patient_key for row in rows)
    cohort = Cohort(np.stack(read), tuple(Pathology(row.pathology) for row in rows), (None,) * len(rows), people)
    with tqdm(total=len(rows), desc="compare", unit="image", disable=not progress) as bar:

        def show(done: int, _: int) -> None:
            bar.update(done - bar.n)

        pairs = doubles(cohort, show)
    told = [{"image": row.image_id, "role": row.role, "patient": row.patient_key} for row in rows]
    return [(told[one], told[other]) for one, other in pairs]
