"""The ledger on the disk: one file of lines, its head beside it, one process at a time.

Beside the ledger lie ``<ledger>.head`` (number and hash of the last entry), ``<ledger>.lock``, and what a crash tore
(``<ledger>.torn-N``). A line is written and synced before the head is, so at most one whole entry is ahead of the head; it counts.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from busgen_core.digests import canonical_json
from busgen_core.errors import LedgerError, StorageFullError
from busgen_core.files import sync_folder
from busgen_core.wire import Digest
from busgen_privacy.ledger_entries import Books, LedgerEntry, read_chain

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Head(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    seq: int
    hash: Digest


class LedgerFile:
    """Reads and appends under a lock.

    Args:
        path: The ledger.
        start: What stands for the hash before the first entry.

    Raises (every method):
        LedgerError: edited, shortened, deleted, another site's, or the system refuses.
        StorageFullError: no room for an entry; either none of it was written, or it counts already.
    """

    def __init__(self, path: Path, *, start: str) -> None:
        self._path, self._start = path, start

    @contextmanager
    def locked(self, *, writing: bool = False) -> Iterator[Books]:
        """The checked entries, while no other process reads or writes; ``writing`` mends first what a crash left."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._beside("lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._failed(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self._read(mend=writing)
        except OSError as error:
            raise self._failed(error) from error
        finally:
            os.close(lock)

    def _failed(self, error: OSError) -> LedgerError | StorageFullError:
        if error.errno in NO_ROOM:
            return StorageFullError(f"{self._path.name}: no room on the disk for an entry; what was acknowledged is there. Make room and start again")
        return LedgerError(f"{self._path.name}: cannot be read or written ({error.strerror}); nothing more was acknowledged")

    def _read(self, *, mend: bool) -> Books:
        """Entries after checking the chain against the head file; what a crash tore is mended before anything is written.

        Without ``mend`` a failure to mend is passed over: a full disk must not hide what was spent.
        """
        head = self._head()
        data = self._path.read_bytes() if self._path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        books = read_chain(whole, start=self._start, name=self._path.name)
        entries = books.entries
        told = f"{self._beside('head').name} tells of {head.seq} entries"
        if len(entries) < head.seq:
            raise LedgerError(f"{self._path.name}: line {len(entries) + 1} is missing, {told}: lines or files were removed")
        if len(entries) > head.seq + 1:
            raise LedgerError(f"{self._path.name}: line {head.seq + 2} is one too many, {told}: lines were added, or the head was put back")
        if head.hash != (entries[head.seq - 1].hash if head.seq else self._start):
            raise LedgerError(f"{self._path.name}: line {head.seq} is not the one that the head tells of: the ledger was rewritten")
        with nullcontext() if mend else suppress(OSError):
            if torn := data[len(whole) :]:  # a crash while writing; the entry was never acknowledged
                self._set_aside(torn, keep=len(whole))
            if len(entries) == head.seq + 1:  # a crash between entry and head
                self._write_head(entries[-1])
        return books

    def _head(self) -> _Head:
        file = self._beside("head")
        try:
            return _Head.model_validate_json(file.read_bytes()) if file.exists() else _Head(seq=0, hash=self._start)
        except ValidationError:
            raise LedgerError(f"{file.name}: unreadable; restore it from a backup") from None

    def append(self, entry: LedgerEntry) -> None:
        """Write one entry, then the head; returns once both are on the disk. Only while ``locked`` for writing."""
        new = not self._path.exists()
        _write(self._path, entry.line(), os.O_APPEND)
        if new:
            sync_folder(self._path.parent)
        self._write_head(entry)

    def _write_head(self, entry: LedgerEntry) -> None:
        fresh = self._beside("head.new")
        _write(fresh, canonical_json({"seq": entry.seq, "hash": entry.hash}), os.O_TRUNC)
        fresh.replace(self._beside("head"))
        sync_folder(self._path.parent)

    def _set_aside(self, torn: bytes, *, keep: int) -> None:
        number = 1
        while self._beside(f"torn-{number}").exists():
            number += 1
        try:
            _write(self._beside(f"torn-{number}"), torn, os.O_EXCL)
        except OSError:
            self._beside(f"torn-{number}").unlink(missing_ok=True)
            raise
        with self._path.open("r+b") as stream:
            stream.truncate(keep)
            os.fsync(stream.fileno())

    def _beside(self, ending: str) -> Path:
        return self._path.with_name(f"{self._path.name}.{ending}")


def _write(path: Path, data: bytes, flags: int) -> None:
    """Write all of ``data`` and wait until the disk has it."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600), "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
