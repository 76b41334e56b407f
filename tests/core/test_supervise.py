"""Supervision leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

NAP = f"300.{os.getpid()}"  # seconds, and a mark by which leftovers are known
SCRIPT = """
import sys
from pathlib import Path
from busgen_core.supervise import Program, environment, supervise
folder = Path(sys.argv[1])
detached = "import subprocess, sys; p = subprocess.Popen(['sleep', 'NAP'], start_new_session=True); open(sys.argv[1], 'w').write(str(p.pid))"
supervise([
    Program(name="sleeper", command=["sleep", "NAP"], log_file=folder / "a.log"),
    Program(name="forker", command=[sys.executable, "-c", detached, str(folder / "pid")], log_file=folder / "b.log"),
    Program(name="crasher", command=["sh", "-c", f"echo x >> {folder}/starts; exit 3"], log_file=folder / "c.log"),
], env=environment({}))
""".replace("NAP", NAP)


def wait_until(condition, seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture
def supervisor(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)])
    yield process, tmp_path
    if process.poll() is None:
        process.kill()
    process.wait()


def test_a_crashed_program_starts_again_and_all_end_with_the_supervisor(supervisor) -> None:
    """A program that ends is started again; SIGTERM ends every process, even one that detached itself."""
    process, folder = supervisor
    assert wait_until(lambda: (folder / "starts").exists() and len((folder / "starts").read_text().split()) >= 2)
    assert wait_until(lambda: (folder / "pid").exists() and (folder / "pid").read_text() != "")
    detached = int((folder / "pid").read_text())
    family = [p.pid for p in psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=20)
    assert wait_until(lambda: not any(psutil.pid_exists(pid) for pid in [detached, *family]))


def test_programs_die_with_a_killed_supervisor(supervisor) -> None:
    """SIGKILL of the supervisor takes its direct programs with it (what detached itself into a session of its own is not among them)."""
    process, _ = supervisor

    def sleepers(*, detached: bool) -> list[psutil.Process]:
        children = [p for p in psutil.Process(process.pid).children() if p.name() == "sleep"]
        return [p for p in children if (os.getsid(p.pid) != os.getsid(process.pid)) is detached]

    assert wait_until(lambda: bool(sleepers(detached=False)))
    family, others = sleepers(detached=False), sleepers(detached=True)
    process.kill()
    process.wait()
    gone, _ = psutil.wait_procs(family, timeout=15)
    for other in [*others, *(p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", NAP])]:
        other.kill()
    assert gone == family
