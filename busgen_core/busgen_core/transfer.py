"""Packing a folder into one deterministic byte string, and receiving it in resumable chunks."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from busgen_core.digests import sha256_file
from busgen_core.errors import TransferError


def pack(files: Mapping[str, bytes]) -> bytes:
    """Pack files into an uncompressed tar; the same files give the same bytes.

    >>> unpack(pack({"a/b": b"1"}))
    {'a/b': b'1'}
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            entry = tarfile.TarInfo(name)
            entry.size = len(files[name])
            archive.addfile(entry, io.BytesIO(files[name]))
    return out.getvalue()


def unpack(data: bytes) -> dict[str, bytes]:
    """Unpack into memory. Names are checked; links, devices and repeated names are refused.

    Raises:
        TransferError: not a tar of plain files with safe names.
    """
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for entry in archive:
                path = PurePosixPath(entry.name)
                stream = archive.extractfile(entry) if entry.isreg() else None
                if stream is None or path.is_absolute() or ".." in path.parts or entry.name in files:
                    raise TransferError("the package holds something other than plain files with safe, distinct names")
                files[entry.name] = stream.read()
    except tarfile.TarError as error:
        raise TransferError(f"the package is not readable ({type(error).__name__}); send it again") from error
    return files


def folder_files(folder: Path, names: tuple[str, ...] | None = None) -> dict[str, bytes]:
    """Read a folder (or the named files of it) into memory, keyed by relative POSIX path."""
    paths = [folder / n for n in names] if names is not None else [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


def append_chunk(part: Path, *, offset: int, data: bytes, total: int, sha256: str) -> int:
    """Append one chunk to ``part``; return the bytes held. A chunk that does not start where the file ends is ignored.

    Raises:
        TransferError: too many bytes, or the complete file has another digest (it is then deleted, to start anew).
    """
    held = part.stat().st_size if part.exists() else 0
    if offset != held:
        return held
    if held + len(data) > total:
        part.unlink(missing_ok=True)
        raise TransferError(f"received {held + len(data)} bytes of {total}; starting again")
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as stream:
        stream.write(data)
    held += len(data)
    if held == total and sha256_file(part) != sha256:
        part.unlink()
        raise TransferError("the complete transfer has another digest than announced; starting again")
    return held
