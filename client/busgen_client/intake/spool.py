"""The spool: objects that arrived over the network and wait to be taken in. Folder ``spool`` in the node's data folder, mode 0700.

A name is two keyed digests, of the SOP Instance UID and of the bytes, so the same object twice is one file and nothing of the patient is
in a name. ``*.dcm`` waits to be taken in; ``held/??/*.held`` is in quarantine for something that can be mended at its source, such as its
label, under the first two digits of its name, so that nobody who looks for one object goes through all of them. Of an object that people decide
on by looking at it, only the de-identified pixels stay (``busgen_client.held``).

Where the site seals its files, each is sealed as soon as it is whole; the unsealed one, which pynetdicom wrote, is deleted.

Guarantees:
    - A name appears only when every byte behind it is on the disk (fsync, rename, fsync of the folder), so what a sender was told is stored
      outlives a crash.
    - What was taken in is deleted; so is what no person can mend, and what a person decides on by its picture once that is kept.
    - Nothing is deleted for want of time: what could not be decoded in time is tried ``TRIES`` times, then held.
    - What comes in takes part in the limits while it comes in (``intake.incoming``).
"""

import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil

from busgen_client.cohort import CohortStore
from busgen_client.cohort_rows import OBJECT_DIGITS
from busgen_client.held import HeldStore
from busgen_client.intake.dicom import LARGEST, SPOOL, file_source, person_of
from busgen_client.intake.findings import BY_EYE, Code, QuarantineError
from busgen_client.intake.header import read_identity
from busgen_client.intake.labels import Labels
from busgen_client.intake.run import Source
from busgen_client.patients import Person
from busgen_core.digests import sha256_file
from busgen_core.errors import InputError, SealError, StorageFullError
from busgen_core.files import sweep_unfinished, sync_folder, write_whole

DIGITS = OBJECT_DIGITS  # hexadecimal digits of a digest in a name
COMING = ".dcm"  # suffix of an unfinished file, which is open for as long as somebody wants it
STALE_SECONDS = 600.0  # an unfinished file that nobody wrote to for so long belongs to a broken association, open or not
TRIES = 3  # looks at an object whose frames take too long to decode
AGAIN_SECONDS = 60.0  # before the second of them, twice that before the third
HELD = "held"  # folder of what is in quarantine
LOOK_SECONDS = 1.0  # how long the spool's size is believed

# Nobody can mend these here: another export or the PACS can, or the patient said no. All else is kept for a person to judge.
BEYOND_REPAIR = frozenset(
    {
        *(Code.CONSENT_WITHDRAWN, Code.DICOM_INVALID, Code.FILE_TOO_LARGE, Code.NOT_DICOM, Code.NOT_ULTRASOUND),
        *(Code.PIXELS_LIE, Code.PIXELS_UNDECODABLE, Code.TRANSFER_SYNTAX),
    }
)
TORN = BEYOND_REPAIR - {Code.CONSENT_WITHDRAWN}  # nothing waits for these any more once the object came whole


class Spool:
    """The only door to the spool's files.

    Args:
        store: The cohort whose keys name the files.
        data: The node's data folder.
        most_bytes: The spool is full when so much waits to be taken in.
        free_bytes: It is full too when the disk has less room than this.
    """

    def __init__(self, store: CohortStore, data: Path, *, most_bytes: float = float("inf"), free_bytes: float = 0.0) -> None:
        self._store, self._folder, self._most, self._free = store, data / "spool", most_bytes, free_bytes
        self._partial = self._folder / f"partial-{os.getpid()}"
        self._full, self._crowded, self._looked = False, False, float("-inf")
        self._later: dict[str, float] = {}  # names of what is put off, and until when
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)

    @contextmanager
    def receiving(self) -> Iterator[Path]:
        """A folder for unfinished files, and Python's own temporary folder meanwhile: pynetdicom writes what it receives there.

        Unfinished files that a crash of an earlier process left are deleted.
        """
        for left in self._folder.glob("partial-*"):
            if not psutil.pid_exists(int(left.name.partition("-")[2])):
                shutil.rmtree(left, ignore_errors=True)
        self._store.vault.check()  # before anybody is told that something is stored
        self._partial.mkdir(exist_ok=True)
        before, tempfile.tempdir = tempfile.tempdir, str(self._partial)
        try:
            yield self._partial
        finally:
            tempfile.tempdir = before
            shutil.rmtree(self._partial, ignore_errors=True)

    def sweep(self) -> None:
        """Delete unfinished files of associations that broke: what nobody has open, and what nobody wrote to for ``STALE_SECONDS``."""
        files = list(self._partial.glob("*"))
        wanted = {Path(each.path) for each in psutil.Process().open_files()} if files else set()
        for file in files:
            with suppress(FileNotFoundError):
                left = file.suffix == COMING and file.resolve() not in wanted
                if left or time.time() - file.stat().st_mtime > STALE_SECONDS:
                    file.unlink()

    def admit(self, finished: Path, sop_uid: str) -> None:
        """Take over a whole DICOM file; when this returns, it is on the disk for good.

        Args:
            finished: Lies in ``receiving``'s folder, and is moved from there.
            sop_uid: SOP Instance UID, as the sender states it.

        Raises:
            StorageFullError: the spool or the disk is full, or the object is larger than any that is taken in; nothing is kept.
            OSError: the disk failed.
        """
        if self.full or finished.stat().st_size > LARGEST:
            raise StorageFullError("the spool has no room for this object now")
        name = f"{self._stem(sop_uid)}-{self._store.pseudonyms.key('file', sha256_file(finished))[:DIGITS]}"
        with self._store.vault.sealing():
            if self._store.vault.seals:
                whole = finished.with_name(f"{name}.sealed")
                write_whole(whole, self._store.vault.seal(finished.read_bytes(), role=SPOOL, name=name))
                finished.unlink()
            else:
                whole = finished
                with whole.open("rb") as stream:
                    os.fsync(stream.fileno())
            whole.chmod(0o600)
            whole.rename(self._folder / f"{name}.dcm")
        sync_folder(self._folder)

    def put(self, content: bytes, sop_uid: str) -> None:
        """``admit`` bytes that are in memory."""
        with tempfile.NamedTemporaryFile(dir=self._partial, suffix=COMING, delete=False) as stream:
            finished = Path(stream.name)
            try:
                stream.write(content)
                stream.flush()
                self.admit(finished, sop_uid)
            finally:
                finished.unlink(missing_ok=True)

    def has(self, sop_uid: str, *, held: bool = True) -> bool:
        """Whether an object is here, waiting for its turn or, with ``held``, for a person, or decided by one."""
        return not self.absent([sop_uid], held=held)

    def absent(self, sop_uids: Iterable[str], *, held: bool = True) -> list[str]:
        """Those of which ``has`` is false; one look at what waits to be taken in for all of them."""
        stems = {path.name.partition("-")[0] for path in files_in(self._folder)}
        left = [uid for uid in sop_uids if self._stem(uid) not in stems]
        return [uid for uid in left if not self._holds(self._store.pseudonyms.object_key(uid))] if held else left

    def unsettled(self, sop_uids: Iterable[str]) -> set[str]:
        """Those under which something waits: for its turn, or in quarantine. One look at what waits for its turn for all of them."""
        uids = list(sop_uids)
        return set(uids) - {uid for uid in self.absent(uids, held=False) if not self._held(self._store.pseudonyms.object_key(uid))}

    def _holds(self, object_key: str) -> bool:
        """Whether an object waits for a person, or was decided by one."""
        return self._held(object_key) or HeldStore(self._store).knows(object_key)

    def _held(self, object_key: str) -> bool:
        stem = object_key[:DIGITS]
        return any(_shelf(self._folder, stem).glob(f"{stem}-*")) or HeldStore(self._store).waits(object_key)

    def discard(self, source_key: str, object_key: str) -> None:
        """Delete an object that a person has decided on.

        Args:
            source_key: The key under which it waited.
            object_key: As ``Pseudonyms.object_key`` gives it; empty if it is not known, then all that is held is looked through.
        """
        stem, end = object_key[:DIGITS], f"-{source_key[:DIGITS]}.held"
        places = (_shelf(self._folder, stem), self._folder)  # the second is from before there were shelves
        files = [place / (stem + end) for place in places] if stem else self._folder.rglob(f"*{end}")
        for file in files:
            if file.exists():
                file.unlink()
                sync_folder(file.parent)

    def waiting(self, *, held: bool = False) -> list[Path]:
        """Files that wait to be taken in, oldest first; with ``held``, those in quarantine instead."""
        return [path for path, _ in sorted(self._files(held=held), key=lambda file: file[1].st_mtime_ns)]

    def due(self) -> list[Path]:
        """``waiting``, without what is put off."""
        now = time.monotonic()
        return [path for path in self.waiting() if self._later.get(path.name, now) <= now]

    def sources(self, labels: Labels, *, only: Collection[str] | None = None, held: bool = False) -> Iterator[Source]:
        """What waits, for ``take_in``: deleted once it is in the cohort, held once it is in quarantine.

        Args:
            labels: Labels by SOP Instance UID.
            only: SOP Instance UIDs to which this is limited; None takes all.
            held: Take what is in quarantine up again.
        """
        stems = None if only is None else {self._stem(uid) for uid in only}
        for path in self.waiting(held=True) if held else self.due():
            stem = path.name.partition("-")[0]
            if stems is None or stem in stems:
                source = file_source(self._store, path, labels, sealed=True)
                yield replace(source, object_key=stem, done=partial(self._settle, path, source.key))

    def _settle(self, path: Path, source_key: str, code: Code | None) -> None:
        """Delete a file that was looked at, keep it for a person, or leave it to be tried again."""
        if code is None:
            self._store.lift_others(path.name.partition("-")[0], TORN)
        if code is Code.PIXELS_SLOW and path.suffix != ".held" and (looks := self._store.looks(source_key)) < TRIES:
            self._later[path.name] = time.monotonic() + AGAIN_SECONDS * looks
            return
        self._later.pop(path.name, None)
        if code is None or code in BEYOND_REPAIR or (code in BY_EYE and HeldStore(self._store).get(source_key) is not None):
            _delete(path)
        elif path.suffix != ".held":
            _hold(path)

    @property
    def full(self) -> bool:
        """Whether more would be refused now; looked up once a second."""
        now = time.monotonic()
        if now - self._looked > LOOK_SECONDS:
            used = sum(status.st_size for _, status in self._files())
            coming = sum(_size(file) for file in self._folder.glob("partial-*/*"))
            self._full = used >= self._most or shutil.disk_usage(self._folder).free < self._free
            self._crowded = self._full or coming >= self._most
            self._looked = now
        return self._full

    def outgrown(self, size: int) -> bool:
        """Whether there is no room for an object of which so many bytes have come; the next is judged by what is left then."""
        if size <= LARGEST and not self.full and not self._crowded:
            return False
        self._looked = float("-inf")
        return True

    def _files(self, *, held: bool = False) -> Iterator[tuple[Path, os.stat_result]]:
        for path in files_in(self._folder, held=held):
            with suppress(FileNotFoundError):  # taken in meanwhile
                yield path, path.stat()

    def _stem(self, sop_uid: str) -> str:
        return self._store.pseudonyms.object_key(sop_uid)[:DIGITS]


def files_in(spool: Path, *, held: bool = False) -> Iterator[Path]:
    """Files of a spool's folder that wait to be taken in; with ``held``, those in quarantine instead."""
    return spool.rglob("*.held") if held else spool.glob("*.dcm")


def sweep_halves(spool: Path) -> None:
    """Delete what a crash left of objects that were being sealed anew; only while nobody does that. The receiver writes elsewhere."""
    for folder in (spool, *spool.glob(f"{HELD}/*")):
        sweep_unfinished(folder)


def _shelf(spool: Path, name: str) -> Path:
    """Where a held object of this name lies."""
    return spool / HELD / name[:2]


def forget(store: CohortStore, data: Path, patient_key: str) -> None:
    """Delete what the spool holds of a patient, and what cannot be told not to be the patient's. Hold ``store.intake`` meanwhile.

    Raises:
        OSError: a file cannot be read or deleted.
    """
    spool = Spool(store, data)
    for path in [*spool.waiting(), *spool.waiting(held=True)]:
        try:
            person = _person(store, path)
            if person.key != patient_key and not store.withdrawn(person):
                continue
        except (QuarantineError, InputError, SealError):
            pass
        path.unlink()


def people(store: CohortStore, data: Path) -> list[Person]:
    """Who waits in the spool, as far as it can be told."""
    spool, found = Spool(store, data), list[Person]()
    for path in [*spool.waiting(), *spool.waiting(held=True)]:
        with suppress(QuarantineError, InputError, SealError):
            found.append(_person(store, path))
    return found


def _person(store: CohortStore, path: Path) -> Person:
    return person_of(store, read_identity(store.vault.read(path, role=SPOOL, name=path.stem)))


def _size(file: Path) -> int:
    with suppress(FileNotFoundError):
        return file.stat().st_size
    return 0


def _hold(path: Path) -> None:
    shelf = _shelf(path.parent, path.name)
    shelf.mkdir(parents=True, exist_ok=True)
    path.rename(shelf / f"{path.stem}.held")
    for folder in (shelf, shelf.parent, path.parent):
        sync_folder(folder)


def _delete(path: Path) -> None:
    """Delete a file, and the same bytes where they are held since they came before."""
    twin = _shelf(path.parent, path.name) / f"{path.stem}.held"
    for file in (path, twin) if path.suffix != ".held" else (path,):
        if file.exists():
            file.unlink()
            sync_folder(file.parent)
