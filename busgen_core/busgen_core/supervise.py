"""Keeping a handful of processes alive, and leaving none behind. Linux.

The supervisor makes itself the "child subreaper" (prctl(2), PR_SET_CHILD_SUBREAPER), so that processes which Flower
detaches become its children and end with it; its direct children die with it (PR_SET_PDEATHSIG) even if it is killed.
"""

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil

log = logging.getLogger("busgen.supervise")

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0  # a process that ran this long starts again without a pause
QUIET_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(kw_only=True, slots=True)
class Program:
    """One supervised command; its output goes to ``log_file``."""

    name: str
    command: Sequence[str]
    log_file: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pause_seconds: float = 0.0
    starts: int = field(default=0)


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of everything we start: telemetry and update checks off, our commands first on the PATH."""
    scripts = str(Path(sys.executable).parent)
    return {**os.environ, **QUIET_ENVIRONMENT, "PATH": f"{scripts}:{os.environ.get('PATH', '')}", **extra}


def supervise(programs: Sequence[Program], *, env: Mapping[str, str], tick: Callable[[], None] = lambda: None) -> None:
    """Run the programs until SIGTERM or SIGINT; start again, with back-off, whichever ends.

    Args:
        tick: Called about once a second, for work that belongs to the supervisor.
    """
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        while not stopping:
            for program in programs:
                _keep(program, env)
            _reap({p.process.pid for p in programs if p.process is not None})
            tick()
            time.sleep(1)
    finally:
        stop_tree()


def _keep(program: Program, env: Mapping[str, str]) -> None:
    if program.process is not None and program.process.poll() is not None:
        ran = time.monotonic() - program.started
        program.pause_seconds = 0.0 if ran > STEADY_SECONDS else min(LONGEST_PAUSE_SECONDS, 1 + 2 * program.pause_seconds)
        log.warning("program.ended name=%s status=%s pause_seconds=%.0f", program.name, program.process.returncode, program.pause_seconds)
        program.started = time.monotonic()
        program.process = None
    if program.process is None and time.monotonic() - program.started >= program.pause_seconds:
        program.log_file.parent.mkdir(parents=True, exist_ok=True)
        with program.log_file.open("ab") as output:
            program.process = subprocess.Popen(
                program.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=dict(env), preexec_fn=_die_with_parent
            )
        program.started = time.monotonic()
        program.starts += 1


def _die_with_parent() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # not Linux: only the clean way down remains
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _reap(own: set[int]) -> None:
    """Collect detached processes that ended; the programs themselves are collected by their Popen."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error, ChildProcessError):
            if child.pid not in own and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)


def stop_tree(*, grace_seconds: float = 8.0) -> None:
    """End every process below this one: politely, then by force."""
    below = psutil.Process().children(recursive=True)
    for process in below:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(below, timeout=grace_seconds)
    for process in {*alive, *psutil.Process().children(recursive=True)}:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=grace_seconds)
