"""Packing and resumable transfer."""

import io
import tarfile
from pathlib import Path

import pytest

from busgen_core.digests import sha256_bytes
from busgen_core.errors import TransferError
from busgen_core.transfer import append_chunk, pack, unpack

DATA = bytes(range(256)) * 10


def test_packing_is_deterministic_and_reversible() -> None:
    """The same files give the same bytes, whatever their order, and come back as they were."""
    files = {"b/x": b"1", "a": b""}
    assert pack(files) == pack(dict(reversed(files.items())))
    assert unpack(pack(files)) == files


@pytest.mark.parametrize("name", ["../up", "/etc/x"])
def test_unsafe_names_are_refused(name: str) -> None:
    """No package writes outside the folder that it is meant for."""
    with pytest.raises(TransferError):
        unpack(pack({name: b"x"}))


def test_links_and_repeats_are_refused() -> None:
    """A package of links, or with one name twice, is refused."""
    for kinds in ([tarfile.SYMTYPE], [tarfile.REGTYPE, tarfile.REGTYPE]):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            for kind in kinds:
                entry = tarfile.TarInfo("x")
                entry.type = kind
                archive.addfile(entry)
        with pytest.raises(TransferError):
            unpack(out.getvalue())


def test_garbage_is_refused_by_name() -> None:
    """Bytes that are no package end in our error."""
    with pytest.raises(TransferError):
        unpack(b"\x00garbage" * 200)


def test_a_transfer_resumes_where_it_stopped(tmp_path: Path) -> None:
    """Repeated and misplaced chunks change nothing; the file is complete when its digest fits."""
    part = tmp_path / "part"

    def send(offset: int, length: int) -> int:
        return append_chunk(part, offset=offset, data=DATA[offset : offset + length], total=len(DATA), sha256=sha256_bytes(DATA))

    assert send(0, 1000) == 1000
    assert send(0, 1000) == 1000  # repeated
    assert send(2000, 500) == 1000  # a gap
    assert send(1000, 5000) == len(DATA)
    assert part.read_bytes() == DATA


def test_a_damaged_transfer_starts_anew(tmp_path: Path) -> None:
    """A complete file with another digest is deleted and named, never kept."""
    part = tmp_path / "part"
    with pytest.raises(TransferError):
        append_chunk(part, offset=0, data=DATA[:-1] + b"?", total=len(DATA), sha256=sha256_bytes(DATA))
    assert not part.exists()
