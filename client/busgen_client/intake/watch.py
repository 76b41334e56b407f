"""A folder of DICOM files that is watched: what is there first, then what comes, once it is whole.

Guarantees: a file that is below the folder when the watch ends, and was whole for ``QUIET_SECONDS`` before, has been looked at, unless the end
came while files before it were taken in: the first look at the folder comes after the watch has begun, and a new folder is searched, since
files may be in it before its own watch begins.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from watchfiles import Change, watch

from busgen_client.cohort import CohortStore
from busgen_client.intake.dicom import file_source, files_below
from busgen_client.intake.findings import IntakeResult
from busgen_client.intake.labels import CurrentLabels
from busgen_client.intake.run import combined, take_in
from busgen_core.errors import InputError, StateError, TableError

QUIET_SECONDS = 2.0  # a file that nobody wrote to for so long is whole; exporters write slowly
PAUSE_SECONDS = 2.0  # while another intake runs
AT_ONCE = 1000  # files that are looked at before a batch is taken in


def watch_folder(store: CohortStore, folder: Path, labels: Path | None, *, progress: bool, stop: threading.Event) -> IntakeResult:
    """Take in every file below ``folder``, and those that come until ``stop`` is set. Labels are those of the time at which a batch is taken in.

    While another intake runs, or the label file cannot be read, files wait. Folders on a network announce nothing: set
    WATCHFILES_FORCE_POLLING=true there.

    Raises:
        InputError: ``folder`` is not a folder.
        TableError: the label file as a whole cannot be used when the watch begins.
        UnavailableError: the node's store or folder failed.
    """
    if not folder.is_dir():
        raise InputError("the DICOM folder does not exist or is not a folder")
    current = CurrentLabels(labels, store.mapping)
    current.now()
    passed_over, total = labels.resolve() if labels else None, IntakeResult()
    for files in _settled(folder, stop):
        wanted = [path for path in files if path.resolve() != passed_over]
        total = combined([total, _patiently(store, wanted, current, progress=progress, stop=stop)])
    return total


def _patiently(store: CohortStore, files: Sequence[Path], labels: CurrentLabels, *, progress: bool, stop: threading.Event) -> IntakeResult:
    """Take a batch in, once no other intake runs and the label file is not being written."""
    while not stop.is_set():
        try:
            known = labels.now()
            sources = (file_source(store, path, known) for path in files)
            return take_in(store, sources, total=len(files), event="intake.dicom", progress=progress, unread=known.unread)
        except (StateError, TableError):
            stop.wait(PAUSE_SECONDS)
    return IntakeResult()


def _settled(folder: Path, stop: threading.Event) -> Iterator[list[Path]]:
    """Files in batches, each once nobody writes to it any more, and again when it changes."""
    pending: set[Path] = set()
    new = [folder]
    for changes in watch(folder, stop_event=stop, yield_on_timeout=True, rust_timeout=500, debounce=400, raise_interrupt=False):
        new += [Path(path) for change, path in changes if change is not Change.deleted]
        found = (file for path in new for file in (files_below(path) if path.is_dir() else [path]))
        while some := list(islice(found, AT_ONCE)):
            yield from _quiet_of(pending, some)
        yield from _quiet_of(pending, ())
        new = []


def _quiet_of(pending: set[Path], new: Iterable[Path]) -> Iterator[list[Path]]:
    """One batch of the files that nobody writes to, if there are any; the others stay pending."""
    pending.update(new)
    quiet = {path for path in pending if _quiet(path)}
    pending -= quiet
    if files := sorted(path for path in quiet if path.is_file()):
        yield files


def _quiet(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > QUIET_SECONDS
    except OSError:  # gone again
        return True
