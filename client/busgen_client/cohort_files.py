"""The cohort's files against its rows: verify that every image is there and whole, and seal those that are not sealed yet."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tqdm import tqdm

from busgen_client.cohort import SEALED, CohortStore
from busgen_core.errors import ConfigError, CorruptImageError


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
        found: ``(problem, what)``: an image's id, or a file's name; for a patient the first twelve digits of the key.
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
        found = [*_of_files(store, progress=progress), *_of_roles(store)]
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
    """Seal every image that is not sealed under the newest key. Stopped half-way, the same call goes on from there; how many it sealed.

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
        CorruptImageError: a file is not what was stored; it is left as it is.

    Not promised: a file system or a solid-state disk may keep the bytes of deleted files for long.
    """
    if not store.vault.seals:
        raise ConfigError("storage.key is none, so nothing is sealed here; say in node.toml where the key is")
    with store.intake():
        store.vault.check()
        if rotate:
            store.vault.rotate()
        done = sum(store.reseal(row) for row in tqdm(store.rows(), desc="encrypt", unit="image", disable=not progress))
        store.vault.forget_unused(data)
        store.note("storage.encrypted", {"images": done, "rotated": rotate})
    return done
