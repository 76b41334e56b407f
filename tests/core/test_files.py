"""Files are whole or absent, also where there is no room."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from busgen_core.errors import StorageFullError
from busgen_core.files import write_whole


def test_no_space_is_our_error_and_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC while syncing: the named error, the old bytes, no torn file beside them."""
    target = tmp_path / "a"
    write_whole(target, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFullError, match="a: no room"):
        write_whole(target, b"new")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_real_limit_of_the_system_is_our_error(tmp_path: Path) -> None:
    """A process whose files may not grow beyond 4 KiB gets the named error, and the old file stays whole."""
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from busgen_core.files import write_whole; from busgen_core.errors import StorageFullError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "target = Path(sys.argv[1]); write_whole(target, b'old')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: write_whole(target, bytes(100_000))\n"
        "except StorageFullError as error: print(error.code, target.read_bytes().decode())\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a")], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["storage-full", "old"]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096
