"""Images and the audit report of an admitted release."""

from functools import lru_cache
from pathlib import Path

from busgen_core.errors import StateError
from busgen_core.labels import Pathology
from busgen_core.repository import read_parquet
from busgen_server.database import ReleaseRow
from busgen_server.store import HubStore

SAMPLES = 12


def sample(store: HubStore, data: Path, release_id: str, number: int) -> bytes:
    """PNG of sample ``number`` (from 0): labels in turn, in the order of the release.

    Raises:
        StateError: no admitted release of that id, or no such sample.
    """
    pngs = _samples(data / _admitted(store, release_id).folder)
    if not 0 <= number < len(pngs):
        raise StateError(f"this release shows {len(pngs)} samples, numbered from 0")
    return pngs[number]


def image(store: HubStore, data: Path, release_id: str, number: int) -> bytes:
    """PNG of image ``number`` (from 0), in the order of the release.

    Raises:
        StateError: no admitted release of that id, or no such image.
    """
    return _image(data / _admitted(store, release_id).folder, number)


def audit_report(store: HubStore, data: Path, release_id: str) -> bytes:
    """The release's audit.html, byte for byte; from a hospital, so it is served in a sandbox.

    Raises:
        StateError: no admitted release of that id, or its files are gone.
    """
    file = data / _admitted(store, release_id).folder / "audit.html"
    if not file.is_file():
        raise StateError("the files of this release are not on this hub's disk")
    return file.read_bytes()


def _admitted(store: HubStore, release_id: str) -> ReleaseRow:
    row = store.release(release_id)
    if row is None or row.state != "admitted":
        raise StateError("no release of that id was admitted")
    return row


@lru_cache(maxsize=64)
def _samples(folder: Path) -> tuple[bytes, ...]:
    """A release never changes, so what was read once stays right."""
    images = read_parquet(_tables(folder)[0].read_bytes())
    by_label = [[image.png for image in images if image.pathology is label] for label in Pathology]
    turns = [pngs[turn] for turn in range(SAMPLES) for pngs in by_label if turn < len(pngs)]
    return tuple(turns[:SAMPLES])


@lru_cache(maxsize=256)
def _image(folder: Path, number: int) -> bytes:
    left = number
    for table in _tables(folder):
        images = read_parquet(table.read_bytes())
        if 0 <= left < len(images):
            return images[left].png
        left -= len(images)
    raise StateError("this release has no image of that number; the first is 0")


def _tables(folder: Path) -> list[Path]:
    """All of them, in the order of ``catalogue.load_images``."""
    tables = sorted((folder / "data").glob("*.parquet"))
    if not tables:
        raise StateError("the files of this release are not on this hub's disk")
    return tables
