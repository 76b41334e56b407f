"""Files that are there whole or not at all."""

import errno
import os
from pathlib import Path

from busgen_core.errors import StorageFullError


def write_whole(target: Path, data: bytes) -> None:
    """Write ``data`` so that a crash leaves either the old file or the new one, on the disk.

    Raises:
        StorageFullError: no room on the disk, or a quota; the old file is still there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(target.name + ".new")
    try:
        with fresh.open("wb") as stream:
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
