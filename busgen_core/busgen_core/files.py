"""Files that are there whole or not at all."""

import errno
import os
import uuid
from contextlib import suppress
from pathlib import Path

from busgen_core.errors import StorageFullError

UNFINISHED = ".new"  # suffix of a file until it is whole


def write_whole(target: Path, data: bytes, *, mode: int | None = None) -> None:
    """Write ``data`` so that a crash leaves either the old file or the new one, on the disk; ``mode`` is who may read it, the process's mask if None.

    Raises:
        StorageFullError: no room on the disk, or a quota; the old file is still there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(target.name + UNFINISHED)
    try:
        with fresh.open("wb") as stream:
            if mode is not None:
                os.fchmod(stream.fileno(), mode)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(target)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageFullError(
                f"{target.name}: no room on the disk for {len(data)} bytes; make room and start again, it goes on from here"
            ) from error
        raise


def write_durably(target: Path, data: bytes) -> None:
    """``write_whole``, and the folder's entry is on the disk too.

    Raises:
        StorageFullError: no room; what was there before still is.
    """
    write_whole(target, data)
    sync_folder(target.parent)


def sweep_unfinished(folder: Path) -> None:
    """Delete what a crash of ``write_whole`` left in a folder; only while nobody writes there."""
    for file in folder.glob(f"*{UNFINISHED}"):
        file.unlink(missing_ok=True)


def create_once(target: Path, data: bytes) -> None:
    """Create a file, mode 0600, in one step that a second process cannot repeat; one that is there stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{uuid.uuid4().hex}.tmp")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    with suppress(FileExistsError):
        os.link(aside, target)
    aside.unlink()
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a power cut; POSIX fsync of a directory."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
