"""What an intake costs does not grow with what the node holds: counted in SQL statements and in names of folders gone through, not timed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from pydicom import dcmread
from sqlalchemy import Connection, Engine, event, select
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.orm import Session

from busgen_client import image_files
from busgen_client.admission import NewImage
from busgen_client.cohort import CohortStore
from busgen_client.database import open_store
from busgen_client.held import Held, HeldStore
from busgen_client.intake import labels, masking
from busgen_client.intake.dicom import files_below, intake_dicom
from busgen_client.intake.findings import Code, IntakeResult, QuarantineError
from busgen_client.intake.labels import CurrentLabels, read_labels
from busgen_client.intake.mapping import SHIPPED
from busgen_client.intake.phantom_dicom import write_phantom_study
from busgen_client.intake.run import take_in
from busgen_client.intake.spool import Spool
from busgen_client.quarantine import Quarantine
from busgen_client.quarantine_rows import DecisionRow, HeldRow
from busgen_core.digests import sha256_file
from busgen_core.errors import ConfigError, StateError
from busgen_core.labels import Pathology
from tests.client.test_cohort import CRASH
from tests.client.waiting import study_of_unknown_device

FEW, MANY = 10, 120  # images, and as many that wait
CHANCE = 20  # names: one shelf of the spool's 256 may hold more than another


@pytest.fixture(autouse=True)
def _unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phantoms hold no text inside the scan; looking for it takes most of the time of an intake."""
    monkeypatch.setattr(masking, "find_text", lambda images, **_: [[] for _ in images])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One object of a known scanner in ``known``, one of an unknown one in ``unknown``, each with labels."""
    folder = tmp_path_factory.mktemp("study")
    write_phantom_study(folder / "known", site="Testville", patients=1, seed=4)
    study_of_unknown_device(folder / "unknown")
    for path in folder.glob("*/IM*"):
        if path.name != "IM00001":
            path.unlink()
    return folder


@dataclass
class Meter:
    """What was done to the store and its folders while it ran."""

    statements: list[tuple[str, object]] = field(default_factory=list)
    names: int = 0  # of folders that were listed
    below: Path | None = None  # which folders count; None while nothing is metered


METER = Meter()


def _listed(what: str, arguments: tuple[object, ...]) -> None:
    below, folder = METER.below, arguments[0] if what in ("os.listdir", "os.scandir") else None
    if below is not None and isinstance(folder, str | os.PathLike) and Path(folder).is_relative_to(below) and Path(folder).is_dir():
        METER.below = None  # what is counted is listed, too
        METER.names += len(os.listdir(folder))  # noqa: PTH208
        METER.below = below


sys.addaudithook(_listed)  # stays for the process; it counts only inside ``metered``


@contextmanager
def metered(store: CohortStore) -> Iterator[Meter]:
    def executed(_connection: object, _cursor: DBAPICursor, statement: str, parameters: object, _context: object, _many: bool) -> None:
        METER.statements.append((statement, parameters))

    METER.statements, METER.names, METER.below = [], 0, store.data
    event.listen(store.engine, "before_cursor_execute", executed)
    try:
        yield METER
    finally:
        METER.below = None
        event.remove(store.engine, "before_cursor_execute", executed)


def filled(data: Path, count: int) -> CohortStore:
    """A cohort with ``count`` images, and as many objects in quarantine with pictures, in the spool's quarantine, and decided on."""
    store, rng = CohortStore(open_store(data), data), np.random.default_rng(count)
    waiting, spool = HeldStore(store), Spool(store, data)
    for number in range(count):
        image = small(store, rng, number)
        store.add(image)
        key = store.pseudonyms.key("waits", str(number))
        store.quarantine(key, code=Code.DEVICE_UNKNOWN.value, reason="")
        waiting.put(key, Held(images=(replace(image, source_key=key),)))
        decided(store, number)
        name = store.pseudonyms.object_key(str(number))[:32]
        shelf = data / "spool" / "held" / name[:2]
        shelf.mkdir(parents=True, exist_ok=True)
        (shelf / f"{name}-{key[:32]}.held").write_bytes(b"")
    assert len(spool.waiting(held=True)) == count
    with store.intake():  # the first of a process sweeps
        pass
    return store


def decided(store: CohortStore, number: int) -> None:
    key = store.pseudonyms.key("decided", str(number))
    with Session(store.engine) as session:
        session.add(DecisionRow(source_key=key, object_key=store.pseudonyms.object_key(f"decided {number}"), verdict="deleted"))
        session.commit()


def small(store: CohortStore, rng: np.random.Generator, number: int) -> NewImage:
    gray, patient = rng.integers(0, 255, (32, 32), np.uint8), store.pseudonyms.patient_key(f"patient {number}")
    return NewImage(
        gray=gray, patient_key=patient, pathology=Pathology.BENIGN, box=None, device="", source_key=store.pseudonyms.key("filled", str(number))
    )


def from_folder(store: CohortStore, study: Path) -> None:
    """An object of a folder is admitted, another waits."""
    for name, expected in (("known", IntakeResult(added=1)), ("unknown", IntakeResult(quarantined=1, codes={"device-unknown": 1}))):
        assert intake_dicom(store, study / name, study / name / "labels.csv", progress=False) == expected


def from_spool(store: CohortStore, study: Path) -> None:
    """An object that came over the network waits for its label, is known to be here, and is deleted by a person."""
    spool, path = Spool(store, store.data), study / "known" / "IM00001"
    uid = str(dcmread(path).SOPInstanceUID)
    with spool.receiving():
        spool.put(path.read_bytes(), uid)
    assert not spool.full
    sources = spool.sources(read_labels(None))
    assert take_in(store, sources, total=None, event="test", progress=False).codes == {"label-missing": 1}
    assert spool.absent([uid, "2.25.2"]) == ["2.25.2"]
    key = store.pseudonyms.key("file", sha256_file(path))
    assert spool.absent([uid], held=False) == [uid]
    Quarantine(store).delete(key[:12], who="a person")


WAYS: list[Callable[[CohortStore, Path], None]] = [from_folder, from_spool]


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_costs_the_same_beside_many_images(way: Callable[[CohortStore, Path], None], study: Path, tmp_path: Path) -> None:
    """Twelve times as many images, and as many objects that wait, add no statement, no name to go through, and no table."""
    spent = []
    for count in (FEW, MANY):
        store = filled(tmp_path / str(count), count)
        with metered(store) as meter:
            way(store, study)
        assert len(Spool(store, store.data).waiting(held=True)) == count
        spent.append((len(meter.statements), meter.names))
        assert scans(store.engine, meter.statements) == []
    assert spent[0][0] == spent[1][0]
    assert abs(spent[1][1] - spent[0][1]) <= CHANCE


def scans(engine: Engine, statements: list[tuple[str, object]]) -> list[str]:
    """Statements for which SQLite goes through a whole table of what the node holds; sqlite.org/eqp.html."""
    with engine.connect() as connection:
        return [sql for sql, values in statements if sql.startswith(("SELECT", "DELETE", "UPDATE")) and _scans(connection, sql, values)]


def _scans(connection: Connection, sql: str, values: object) -> bool:
    parameters = values[0] if isinstance(values, list) else values
    return any(row.detail.startswith("SCAN") for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", parameters))


def test_the_meter_sees_a_sweep(tmp_path: Path) -> None:
    """What the first intake of a process goes through, every file, is counted; the second goes through nothing."""
    filled(tmp_path, FEW)
    store, names = CohortStore(open_store(tmp_path), tmp_path), []
    for _ in range(2):
        with metered(store) as meter, store.intake():
            pass
        names.append(meter.names)
    assert names[0] >= 2 * FEW
    assert names[1] == 0
    assert scans(store.engine, [("SELECT * FROM images WHERE device = ?", ("x",))])


def test_what_a_crash_of_another_process_left_is_swept_by_one_that_runs_on(tmp_path: Path) -> None:
    """A process that has swept, and ended its intakes well, sweeps again after another died within one."""
    store = filled(tmp_path, 3)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", CRASH, str(tmp_path)], env=environment, check=False).returncode == 9
    assert len(store.files.names()) == 4
    with store.intake():
        assert len(store.files.names()) == 3


def test_what_a_failed_intake_left_is_swept_by_the_next(tmp_path: Path) -> None:
    """Files that an intake left behind when it failed, of the cohort and of the quarantine, are gone when the next one begins."""
    store = filled(tmp_path, 3)
    strays = [tmp_path / "images" / "0123.sealed", tmp_path / "quarantine" / "0123-0"]

    def fail() -> None:
        with store.intake():
            for stray in strays:
                stray.write_bytes(b"left")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with store.intake():
        assert not any(stray.exists() for stray in strays)
        assert len(store.files.names()) == 3


def test_looking_does_not_count_as_an_intake(tmp_path: Path) -> None:
    """``still``, and an intake that is refused because another runs, leave it known that the last intake ended well."""
    store = filled(tmp_path, 3)
    with store.still():
        pass
    with store.intake(), pytest.raises(StateError), store.intake():
        pass
    with metered(store) as meter, store.intake():
        pass
    assert meter.names == 0


def test_a_sweep_keeps_what_rows_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at a few at a time, all files without a row go, half-written ones too, and no other."""
    monkeypatch.setattr(image_files, "SWEPT_AT_ONCE", 3)
    store = filled(tmp_path, 8)
    kept = store.files.names()
    for name in (*(f"{number:032x}.png" for number in range(8)), f"{min(kept)}.new", "odd"):
        (tmp_path / "images" / name).write_bytes(b"left")
    store.files.sweep()
    assert store.files.names() == kept


def test_pictures_that_are_replaced_are_deleted_at_once(tmp_path: Path) -> None:
    """An object that waits with other frames than before keeps only the new ones; dropped, none."""
    store = CohortStore(open_store(tmp_path), tmp_path)
    waiting, rng = HeldStore(store), np.random.default_rng(1)
    for frames in (3, 2):
        waiting.put("key", Held(images=tuple(small(store, rng, 10 * frames + number) for number in range(frames))))
        assert len(list((tmp_path / "quarantine").iterdir())) == frames
    waiting.drop("key")
    assert list((tmp_path / "quarantine").iterdir()) == []


def test_admitted_objects_leave_no_picture(study: Path, tmp_path: Path) -> None:
    """An object that waited for its label, and comes again with it, no longer waits in any form."""
    store = CohortStore(open_store(tmp_path), tmp_path)
    folder = study / "known"
    assert intake_dicom(store, folder, None, progress=False).codes["label-missing"] == 1
    assert len(list((tmp_path / "quarantine").iterdir())) == 1
    assert intake_dicom(store, folder, folder / "labels.csv", progress=False).added == 1
    assert list((tmp_path / "quarantine").iterdir()) == []
    with Session(store.engine) as session:
        assert session.scalars(select(HeldRow)).all() == []


def test_folders_are_looked_at_one_by_one(tmp_path: Path) -> None:
    """Files come in the order of their names, a folder's own first; a folder is not looked at before its turn."""
    for name in ("b/2", "b/10", "a/x/1", "a/1", "c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("nowhere")
    found = files_below(tmp_path)
    first = [next(found), next(found)]
    (tmp_path / "b" / "late").touch()
    assert [str(path.relative_to(tmp_path)) for path in (*first, *found)] == ["c", "a/1", "a/x/1", "b/10", "b/2", "b/late"]


def test_labels_are_read_again_when_they_change_and_only_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two batches nothing is read anew; after a table changed, one came, or the site's words changed, it is."""
    monkeypatch.setattr(labels, "read_labels", read := Mock(wraps=read_labels))
    folder, mapping = tmp_path / "labels", tmp_path / "mapping.toml"
    folder.mkdir()
    table(folder / "a.csv", "benign")
    shutil.copy(SHIPPED, mapping)
    current = CurrentLabels(folder, mapping)
    assert current.now().of("2.25.1").pathology is Pathology.BENIGN
    assert current.now() is current.now()
    assert read.call_count == 1
    table(folder / "a.csv", "malignant")
    assert current.now().of("2.25.1").pathology is Pathology.MALIGNANT
    table(folder / "b.csv", "benign")
    with pytest.raises(QuarantineError):
        current.now().of("2.25.1")
    mapping.write_text("not a file of words")
    for _ in range(2):
        with pytest.raises(ConfigError):
            current.now()


def table(path: Path, pathology: str) -> None:
    path.write_text(f"SOPInstanceUID,pathology\n2.25.1,{pathology}\n")
