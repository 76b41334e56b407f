"""How fast one core takes DICOM objects in, and whether time or memory grows with their number. Run: python -m bench.intake_speed.

Everything goes through ``intake_dicom`` into a sealed cohort in the temporary folder (TMPDIR; on a disk, most of the wall time is waiting for
it). Rates are objects a CPU second, since neighbours share the machine. BUSGEN_BENCH_COUNT objects (100,000) tell whether it stays so: each is a
new image with UIDs of its own, of one of 4,000 patients. They are written a part at a time and deleted again; the cohort grows to the end. After
BUSGEN_BENCH_MINUTES (no limit) no further part is begun, and the rows say how many objects were reached. With a count of 0 the rows at scale of
the last run stay, with their own commit.
"""

import csv
import gc
import io
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.uid import UID

from bench.rows import RESULTS, row, write
from busgen_client.cohort import CohortStore
from busgen_client.database import open_store
from busgen_client.intake.dicom import intake_dicom
from busgen_client.intake.phantom_dicom import write_phantom_study
from busgen_client.storage import StorageSettings, Vault
from busgen_core import images
from busgen_core.labels import Pathology
from busgen_core.phantom import SCANNERS, simulate

COUNT = int(os.environ.get("BUSGEN_BENCH_COUNT", "100000"))
PATIENTS = 4_000
MINUTES = float(os.environ.get("BUSGEN_BENCH_MINUTES", "inf"))
PART = max(1, min(2_000, COUNT // 10))  # objects that are on the disk at once
FOLDER = 200  # objects in one
PLAIN_OBJECTS, ROUNDS = 40, 2  # rounds of one object of each simulated scanner
PAIRS = {1: 20, 100: 3}  # intakes of so many objects, so often into the full cohort and into a fresh one by turns
SEED = 9_000
EXAMPLE = 987_654_321  # stands for an object's number until it has one
SITE = "bench"


@dataclass(frozen=True, slots=True)
class Layout:
    """A scanner's frame: its size and where the scan lies in it, in pixels."""

    rows: int
    columns: int
    left: int
    top: int
    wide: int
    high: int


LARGE = Layout(rows=768, columns=1024, left=12, top=60, wide=1000, high=688)
SMALL = Layout(rows=256, columns=320, left=12, top=40, wide=296, high=200)


class Scanner:
    """Writes any number of different objects: the header of a phantom study, scans of a phantom of each simulated scanner by turns, with the
    object's number in four pixels.

    One object of each is made with pydicom; the others are these with other digits in their place, since a hundred thousand are wanted.

    Args:
        layout: Of its frames.
    """

    def __init__(self, layout: Layout) -> None:
        header = _header(layout)
        frames = [_frame(header.pixel_array, layout, scanner) for scanner in SCANNERS]
        header.Rows, header.Columns = layout.rows, layout.columns
        self._objects = [_encoded(header, frame) for frame in frames]
        self._place = -layout.rows * layout.columns + layout.top * layout.columns + layout.left  # of the scan's first pixel, from the end

    def write(self, folder: Path, first: int, count: int) -> Path:
        """Write objects number ``first`` and on, and ``labels.csv``, which is returned."""
        for number in range(first, first + count):
            path = folder / f"{number // FOLDER:06d}" / f"IM{number:07d}"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(path, number)
        labels = folder / "labels.csv"
        with labels.open("w", newline="") as stream:
            csv.writer(stream).writerows(
                [("SOPInstanceUID", "pathology"), *((_uid(number), Pathology.BENIGN.value) for number in range(first, first + count))]
            )
        return labels

    def _write(self, path: Path, number: int) -> None:
        content = self._objects[number % len(self._objects)]
        for theirs, ours in zip(_identity(EXAMPLE), _identity(number), strict=True):
            content = content.replace(theirs.encode(), ours.encode())
        changed = bytearray(content)
        changed[self._place : self._place + 4] = number.to_bytes(4, "little")
        path.write_bytes(changed)


def _uid(number: int) -> str:
    return f"2.25.{SEED}{number:09d}"


def _identity(number: int) -> tuple[str, str, str, str]:
    """Object, patient, study and birth date, each always of the same length."""
    patient = number % PATIENTS
    return _uid(number), f"P{patient:07d}", f"2.25.{SEED}1.1{patient:04d}", f"{date(1930, 1, 2) + timedelta(days=patient):%Y%m%d}"


def _encoded(header: Dataset, frame: NDArray[np.uint8]) -> bytes:
    """An object with the identity of number ``EXAMPLE``, its pixels at the end."""
    uid, header.PatientID, header.StudyInstanceUID, header.PatientBirthDate = _identity(EXAMPLE)
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = UID(uid)
    header.PixelData = frame.tobytes()
    out = io.BytesIO()
    header.save_as(out)
    return out.getvalue()


def _header(layout: Layout) -> Dataset:
    with tempfile.TemporaryDirectory() as folder:
        write_phantom_study(Path(folder), site=SITE, patients=1, seed=SEED)
        header = dcmread(next(iter(sorted(Path(folder).glob("IM*")))))
        _ = header.pixel_array
    region = header.SequenceOfUltrasoundRegions[0]
    region.RegionLocationMinX0, region.RegionLocationMinY0 = layout.left, layout.top
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = layout.left + layout.wide - 1, layout.top + layout.high - 1
    return header


def _frame(small: NDArray[np.uint8], layout: Layout, scanner: str) -> NDArray[np.uint8]:
    """The text above a phantom study's scan, and a scan of its own: a phantom and its mirror image, cut to the region."""
    half = images.resize_gray(simulate(Pathology.BENIGN, size=384, seed=SEED, scanner=scanner).image, size=layout.high)
    frame, above = np.zeros((layout.rows, layout.columns), np.uint8), small.shape[0] // 5
    frame[:above, : small.shape[1]] = small[:above]
    frame[layout.top : layout.top + layout.high, layout.left : layout.left + layout.wide] = np.tile(np.concatenate([half, half[:, ::-1]], axis=1), 2)[
        :, : layout.wide
    ]
    return frame


def sealed_cohort(data: Path) -> CohortStore:
    """A cohort whose images are sealed, as a node's are."""
    return CohortStore(open_store(data), data, vault=Vault(data, StorageSettings()))


@contextmanager
def without_text() -> Iterator[None]:
    """Neither text nor furniture is looked for inside the scan region."""
    with patch("busgen_client.intake.dicom.clean_pixels", lambda scans, **_: scans):
        yield


@dataclass(frozen=True, slots=True)
class Cost:
    """What an intake took."""

    cpu: float  # seconds
    clock: float  # seconds


def cost(store: CohortStore, scanner: Scanner, first: int, count: int) -> Cost:
    """Write objects, take them in, delete them; only taking in is timed.

    Raises:
        RuntimeError: some are not in the cohort, so there is nothing to report.
    """
    with tempfile.TemporaryDirectory() as folder:
        labels = scanner.write(Path(folder), first, count)
        cpu, clock = time.process_time(), time.perf_counter()
        result = intake_dicom(store, Path(folder), labels, progress=False)
        cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
    if result.added != count:
        raise RuntimeError(f"{result.added} of {count} objects were added; waiting: {result.codes}")
    return Cost(cpu, clock)


def at_full_size() -> Iterator[dict[str, object]]:
    """Rates at 1024 x 768 pixels, without and with text looked for; the latter also of the quickest and the slowest simulated scanner, since sharp
    speckle is looked at twice."""
    with tempfile.TemporaryDirectory() as data:
        store, scanner = sealed_cohort(Path(data)), Scanner(LARGE)
        cost(store, scanner, 0, 1)  # reads the text recognition in
        spent = [[cost(store, scanner, len(SCANNERS) * (1 + turn) + kind, 1).cpu for turn in range(ROUNDS)] for kind in range(len(SCANNERS))]
        with without_text():
            plain = PLAIN_OBJECTS / cost(store, scanner, 200, PLAIN_OBJECTS).cpu
    size = f"{LARGE.columns} x {LARGE.rows} px"
    name = f"header, region, sealed store, text not looked for: objects of {size} a CPU second"
    yield row(name, plain, "1/s", goal=">= 20", met=plain >= 20)
    name = f"the same with text looked for, scan region of {LARGE.wide} x {LARGE.high} px, {len(SCANNERS)} simulated scanners (range of these)"
    rates = [ROUNDS / sum(each) for each in spent]
    read = ROUNDS * len(SCANNERS) / sum(map(sum, spent))
    yield row(name, read, "1/s", low=min(rates), high=max(rates), goal=">= 2", met=read >= 2)


def beside_a_fresh_cohort(store: CohortStore, scanner: Scanner, *, images: int) -> Iterator[dict[str, object]]:
    """What intakes into a full cohort take, as multiples of the same into a fresh one at the same time, so that neighbours weigh on both."""
    with tempfile.TemporaryDirectory() as data:
        fresh, first = sealed_cohort(Path(data)), COUNT + 1
        cost(fresh, scanner, first, 1)
        for objects, times in PAIRS.items():
            numbers = [first + objects * (1 + number) for number in range(times)]
            ratio = statistics.median(cost(store, scanner, n, objects).cpu / cost(fresh, scanner, n, objects).cpu for n in numbers)
            name = f"CPU time of an intake of {objects} beside {images} images, in multiples of that into a fresh cohort, median of {times} pairs"
            yield row(name, ratio, "times", goal="< 1.2", met=ratio < 1.2)


def at_scale() -> Iterator[dict[str, object]]:
    """Rate and memory as the cohort grows to COUNT images, or as many as there is time for."""
    costs, used, until = list[Cost](), list[float](), time.monotonic() + 60 * MINUTES
    with tempfile.TemporaryDirectory() as data, without_text():
        store, scanner = sealed_cohort(Path(data)), Scanner(SMALL)
        cost(store, scanner, COUNT, 1)
        while len(costs) < COUNT // PART and (not costs or time.monotonic() < until):
            costs.append(cost(store, scanner, len(costs) * PART, PART))
            gc.collect()
            used.append(psutil.Process().memory_info().rss / 2**20)
            print(f"{len(costs) * PART} objects: {PART / costs[-1].cpu:.1f} a CPU second, {used[-1]:.1f} MiB", flush=True)
        yield from growth(costs, used)
        yield from beside_a_fresh_cohort(store, scanner, images=len(costs) * PART)


def growth(costs: list[Cost], used: list[float]) -> Iterator[dict[str, object]]:
    """Rows of rates in the first and the last tenth, and of memory after a tenth, half and all."""
    tenth, done = max(1, len(costs) // 10), len(costs) * PART
    first, last = (tenth * PART / sum(each.cpu for each in part) for part in (costs[:tenth], costs[-tenth:]))
    size, rates = f"objects of {SMALL.columns} x {SMALL.rows} px a CPU second, sealed store, text not looked for", [PART / each.cpu for each in costs]
    yield row(f"the first {tenth * PART} {size}", first, "1/s", goal=">= 20", met=first >= 20)
    name = f"the last {tenth * PART} of {done} {size} (range of parts of {PART})"
    goal = ">= 0.9 of the first"
    yield row(name, last, "1/s", low=min(rates), high=max(rates), goal=goal, met=last >= 0.9 * first, seconds=sum(each.clock for each in costs))
    for parts in (tenth, len(costs) // 2, len(costs)):
        yield row(f"resident memory after {parts * PART} objects", used[parts - 1], "MiB")
    grown, name = used[-1] - used[tenth - 1], f"resident memory, growth from object {tenth * PART} to object {done} (range after each {PART})"
    yield row(name, grown, "MiB", low=min(used), high=max(used), goal="< 20", met=grown < 20)


def main() -> None:
    """Measure and write bench/results/intake_speed.json."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = list(at_scale()) if COUNT else []  # first: memory that text recognition gave back would hide growth
        full = list(at_full_size())
        write("intake_speed", [*full, *(rows or others_of_before(full))])


def others_of_before(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Rows of the last run that these do not replace."""
    names = {each["name"] for each in rows}
    return [each for each in json.loads((RESULTS / "intake_speed.json").read_text()) if each["name"] not in names]


if __name__ == "__main__":
    main()
