"""Hostile and unlucky input through the real intake: damaged files, clips that nobody would look at, a disk that is full."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import UltrasoundMultiFrameImageStorage
from sqlalchemy import Engine

from busgen_client.cohort import CohortStore
from busgen_client.cohort_files import verify
from busgen_client.database import open_store
from busgen_client.intake.dicom import intake_dicom
from busgen_client.intake.findings import Code
from busgen_client.intake.phantom_dicom import write_phantom_study
from busgen_client.storage import StorageSettings, Vault
from tests.shared import shared_data

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_phantom_study(folder, site="Testville", patients=3, seed=3)
    return folder


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_store(tmp_path / "node")
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine: Engine, tmp_path: Path) -> CohortStore:
    return CohortStore(engine, tmp_path / "node", vault=Vault(tmp_path / "node", StorageSettings()))


@pytest.mark.parametrize(
    ("start", "count", "text_every"), [(0, 60, 0), pytest.param(20_000, 1000, 21, marks=pytest.mark.slow)], ids=["60", "1000 with text"]
)
def test_damaged_files_wait_or_enter_and_leave_nothing(start: int, count: int, text_every: int) -> None:
    """Ten kinds of damage to the real files: no other error than ours, no end of the process, and no identifying string in what is stored."""
    shared_data()
    command = [sys.executable, "-m", "bench.intake_fuzz", str(start), str(count)]
    environment = os.environ | {"BUSGEN_BENCH_TEXT_EVERY": str(text_every), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    outcomes = Counter(outcome for _, kind, _, outcome, _ in lines if kind not in ("stored", "memory"))
    assert outcomes.total() == count
    assert outcomes.keys() <= {"admitted", "duplicate", "skipped", *(code.value for code in Code)}
    assert outcomes["admitted"] < count // 2 < count < 20 * outcomes["dicom-invalid"]
    assert {outcome for _, kind, _, outcome, _ in lines if kind == "stored"} == {"clean"}


def test_a_colour_clip_of_65_frames_waits(store: CohortStore, study: Path, tmp_path: Path) -> None:
    """A clip of colour Doppler, longer than anybody looks at, waits as colour; what a person is shown is at most eight of its frames."""
    folder = tmp_path / "in"
    folder.mkdir()
    header = dcmread(min(study.glob("IM*")))
    frame = np.repeat(header.pixel_array[..., None], 3, axis=2)
    frame[80:120, 90:130] = (200, 10, 10)
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PlanarConfiguration = 3, "RGB", 0
    header.NumberOfFrames, header.SOPClassUID, header.PixelData = 65, UltrasoundMultiFrameImageStorage, frame.tobytes() * 65
    header.save_as(folder / "clip")
    result = intake_dicom(store, folder, study / "labels.csv", progress=False)
    assert (result.added, result.codes) == (0, {"colour": 1})
    assert 1 <= len(list((store.data / "quarantine").iterdir())) <= 8


FULL = """
import resource, sys
from pathlib import Path
from busgen_client.cohort import CohortStore
from busgen_client.database import open_store
from busgen_client.intake import masking
from busgen_client.intake.dicom import intake_dicom
from busgen_client.storage import StorageSettings, Vault
from busgen_core.errors import StorageFullError

data, folder = Path(sys.argv[1]), Path(sys.argv[2])
store = CohortStore(open_store(data), data, vault=Vault(data, StorageSettings()))
store.vault.check()
masking.find_text = lambda images, **_: [[] for _ in images]
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
try:
    intake_dicom(store, folder, folder / "labels.csv", progress=False)
except StorageFullError:
    sys.exit(3)
"""


@pytest.mark.usefixtures("unread")
def test_a_full_disk_ends_the_run_by_name_and_the_next_goes_on(store: CohortStore, study: Path, tmp_path: Path) -> None:
    """With a real limit on file sizes the run stops at the image that does not fit; with room again each object is in the cohort once."""
    folder = tmp_path / "in"
    shutil.copytree(study, folder)
    large = dcmread(folder / "IM00002")
    pixels = np.random.default_rng(4).integers(0, 255, (900, 900), np.uint8)
    large.Rows, large.Columns, large.PixelData = *pixels.shape, pixels.tobytes()
    region = large.SequenceOfUltrasoundRegions[0]
    region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
    region.RegionLocationMaxX1 = region.RegionLocationMaxY1 = 899
    large.save_as(folder / "IM00002")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "node"), str(folder)], env=environment, check=False)
    assert ended.returncode == 3
    before = verify(store, progress=False)
    assert (before.images, before.found) == (1, ())
    result = intake_dicom(store, folder, folder / "labels.csv", progress=False)
    count = len(list(study.glob("IM*")))
    assert (result.added, result.duplicates, result.quarantined) == (count - 1, 1, 0)
    assert verify(store, progress=False).found == ()
