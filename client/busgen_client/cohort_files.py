"""The node's stored pictures against their rows: verify that every one is there and whole, and seal those that are not sealed yet.

That is images of the cohort, pictures that wait in quarantine, and objects in the spool.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session
from tqdm import tqdm

from busgen_client.cohort import SEALED, CohortStore
from busgen_client.held import ROLE as QUARANTINE
from busgen_client.intake.dicom import SPOOL
from busgen_client.intake.spool import files_in
from busgen_client.quarantine_rows import HeldRow
from busgen_client.storage import MAGIC
from busgen_core.errors import ConfigError, CorruptImageError, SealError


class Problem(StrEnum):
    """What can be wrong with a cohort. Stable: the command, the console and tests rely on it."""

    DAMAGED = "damaged"  # does not open, or is not the bytes that were stored
    MISSING = "missing"  # a row without its file
    ORPHAN = "orphan"  # a file without a row; the next intake deletes it
    ROLE = "role"  # an image on the other side than its patient, or a patient on the other side than the journal or the draw says
    UNSEALED = "unsealed"  # the site seals its files, and this one is from before; 'cohort encrypt' seals it


@dataclass(frozen=True, kw_only=True, slots=True)
class CohortState:
    """What ``verify`` found.

    Attributes:
        images: Rows.
        sealed: Images whose file is sealed.
        found: ``(problem, what)``: an image's id, or a file's name (those of quarantine and spool with their folder); for a patient the first
            twelve digits of the key.
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
        found = [*_of_files(store, progress=progress), *_of_waiting(store), *_of_roles(store)]
        return CohortState(images=len(rows), sealed=sum(row.file.endswith(SEALED) for row in rows), found=tuple(found))


def _of_files(store: CohortStore, *, progress: bool) -> Iterator[tuple[Problem, str]]:
    rows, files = store.rows(), store.files()
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
class _Waiting:
    """A file in quarantine or spool, and what it is sealed for."""

    path: Path
    role: str
    sealed_name: str

    @property
    def shown(self) -> str:
        return f"{self.role}/{self.path.name}"


def _waiting(store: CohortStore) -> list[_Waiting]:
    pictures = [_Waiting(path, QUARANTINE, path.name) for path in sorted((store.data / "quarantine").glob("*-*"))]
    objects = sorted([*files_in(store.data / "spool"), *files_in(store.data / "spool", held=True)])
    return pictures + [_Waiting(path, SPOOL, path.stem) for path in objects]


def _of_waiting(store: CohortStore) -> Iterator[tuple[Problem, str]]:
    with Session(store.engine) as session:
        expected = {f"{row.token}-{number}" for row in session.scalars(select(HeldRow)) for number in range(len(row.images))}
    files = _waiting(store)
    for file in files:
        try:
            stored = file.path.read_bytes()
            store.vault.read(file.path, role=file.role, name=file.sealed_name)
        except FileNotFoundError:  # decided on meanwhile
            continue
        except SealError:
            yield Problem.DAMAGED, file.shown
            continue
        if store.vault.seals and not stored.startswith(MAGIC):
            yield Problem.UNSEALED, file.shown
    pictures = {file.path.name for file in files if file.role == QUARANTINE}
    yield from ((Problem.MISSING, f"quarantine/{name}") for name in sorted(expected - pictures))
    yield from ((Problem.ORPHAN, f"quarantine/{name}") for name in sorted(pictures - expected))


def _of_roles(store: CohortStore) -> Iterator[tuple[Problem, str]]:
    people, lines = store.split()
    noted = {line["patient"]: line["role"] for line in reversed(lines)}  # the first line counts: a role is fixed once
    for key, patient in people.items():
        drawn = patient.role if patient.rule == "given" else store.own_role(key)
        if not patient.role == noted.get(key) == drawn:
            yield Problem.ROLE, key[:12]
    for row in store.rows():
        if row.patient_key not in people or people[row.patient_key].role != row.role:
            yield Problem.ROLE, row.image_id


def encrypt(store: CohortStore, data: Path, *, rotate: bool = False, progress: bool = True) -> int:
    """Seal every image, and all that waits, that is not sealed under the newest key. Stopped half-way, the same call goes on from there.

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
        rows, files = store.rows(), _waiting(store)
        images = (store.reseal(row) for row in rows)
        others = (store.vault.reseal(file.path, role=file.role, name=file.sealed_name) for file in files)
        done = sum(tqdm(chain(images, others), total=len(rows) + len(files), desc="encrypt", unit="file", disable=not progress))
        store.vault.forget_unused(data)
        store.note("storage.encrypted", {"files": done, "rotated": rotate})
    return done
