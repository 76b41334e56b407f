"""Files that are there whole or not at all."""

import os
from pathlib import Path


def write_whole(target: Path, data: bytes) -> None:
    """Write ``data`` so that a crash leaves either the old file or the new one, on the disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(target.name + ".new")
    with fresh.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(target)
