"""What many tests of the node start from. A module that needs another folder, study or store defines its own under the same name."""

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from sqlalchemy import Engine

from busgen_client.cohort import CohortStore, open_cohort
from busgen_client.database import open_store
from busgen_client.intake import masking
from busgen_client.intake.phantom_dicom import write_phantom_study
from busgen_client.settings import NodeSettings
from tests.client.node import lay_out


@pytest.fixture(autouse=True)
def small_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small reference of the foundation: every test has its own node, and a job draws it at its start."""
    monkeypatch.setattr("busgen_privacy.dp.reference.PER_CLASS", 16)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The node's data folder."""
    return tmp_path


@pytest.fixture
def engine(data: Path) -> Iterator[Engine]:
    engine = open_store(data)
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine: Engine, data: Path) -> CohortStore:
    return CohortStore(engine, data)


@pytest.fixture
def node(tmp_path: Path) -> NodeSettings:
    return lay_out(tmp_path)


@pytest.fixture
def opened(node: NodeSettings) -> Iterator[CohortStore]:
    """The cohort as the node's settings have it."""
    store = open_cohort(node)
    yield store
    store.engine.dispose()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DICOM files of six simulated patients, and their labels."""
    folder = tmp_path_factory.mktemp("study")
    write_phantom_study(folder, site="Testville", patients=6, seed=3)
    return folder


@pytest.fixture(scope="module")
def objects(study: Path) -> list[Dataset]:
    return [dcmread(file) for file in sorted(study.glob("IM*"))]


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phantoms hold no text inside the scan, and looking for it takes most of the time of an intake; it is tested elsewhere."""
    monkeypatch.setattr(masking, "find_text", lambda images, **_: [[] for _ in images])


@pytest.fixture(scope="module")
def collected() -> Iterator[None]:
    """No association outlives its module, so that none is collected during another."""
    yield
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()
