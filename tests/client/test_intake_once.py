"""Each object once: whatever way it comes, however it is packed, wherever the last run was cut off. And folders that are watched."""

import itertools
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import RLELossless
from sqlalchemy import select
from sqlalchemy.orm import Session

from busgen_client.cohort import CohortStore
from busgen_client.cohort_rows import ImageRow, ObjectRow
from busgen_client.consent import withdraw
from busgen_client.database import open_store
from busgen_client.image_files import ImageFiles
from busgen_client.intake import dicom, watch
from busgen_client.intake.dicom import intake_dicom
from busgen_client.intake.findings import IntakeResult
from busgen_client.intake.phantom_dicom import write_phantom_study
from busgen_client.intake.watch import watch_folder
from busgen_client.settings import NodeSettings
from busgen_core.errors import StateError, UnavailableError
from tests.client.node import cohort, lay_out

pytestmark = pytest.mark.usefixtures("unread")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_phantom_study(folder, site="Testville", patients=3, seed=3)
    return folder


@pytest.fixture
def node(tmp_path: Path) -> NodeSettings:
    (tmp_path / "node").mkdir()
    return lay_out(tmp_path / "node")


@pytest.fixture
def store(node: NodeSettings) -> CohortStore:
    return cohort(node)


@pytest.fixture
def one(study: Path, tmp_path: Path) -> Path:
    """A folder with one object of the study and the labels, to be changed by a test."""
    folder = tmp_path / "one"
    folder.mkdir()
    shutil.copy(study / "IM00001", folder)
    shutil.copy(study / "labels.csv", folder)
    return folder


def take(store: CohortStore, folder: Path) -> IntakeResult:
    return intake_dicom(store, folder, folder / "labels.csv", progress=False)


def rewrite(folder: Path, change: Callable[[Dataset], object]) -> None:
    header = dcmread(folder / "IM00001")
    change(header)
    header.save_as(folder / "IM00001")


def compress(header: Dataset) -> None:
    header.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)


def darken(header: Dataset) -> None:
    pixels = header.pixel_array.copy()
    pixels[60, 100] ^= 1
    header.PixelData = pixels.tobytes()


def test_another_transfer_syntax_is_the_same_object(store: CohortStore, one: Path) -> None:
    """The same object, sent uncompressed and then compressed, is in the cohort once."""
    assert take(store, one) == IntakeResult(added=1)
    rewrite(one, compress)
    assert dcmread(one / "IM00001").file_meta.TransferSyntaxUID == RLELossless
    assert take(store, one) == IntakeResult(duplicates=1)


def test_what_is_known_is_not_decoded_again(store: CohortStore, one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes over the same folder again costs no decoding, also where the header changed on the way."""
    assert take(store, one) == IntakeResult(added=1)
    monkeypatch.setattr(dicom, "frames", lambda _header: pytest.fail("it was decoded"))
    rewrite(one, lambda header: setattr(header, "InstitutionName", "ELSEWHERE"))
    assert take(store, one) == IntakeResult(duplicates=1)


def test_other_pixels_under_a_known_uid_wait(store: CohortStore, one: Path) -> None:
    """One pixel changed under the same SOP Instance UID is neither dropped as known nor taken in: a person is told."""
    assert take(store, one) == IntakeResult(added=1)
    rewrite(one, darken)
    assert take(store, one).codes == {"uid-reused": 1}


def test_a_file_that_could_not_be_read_waits_no_more_once_it_can(store: CohortStore, one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was too large, or locked, and is whole later leaves nothing in quarantine."""
    with monkeypatch.context() as patch:
        patch.setattr(dicom, "LARGEST", -dicom.OVERHEAD)
        assert take(store, one).codes == {"file-too-large": 1}
    assert take(store, one) == IntakeResult(added=1)
    assert store.summary().quarantined == {}


def test_the_same_pixels_under_another_uid_count_once_within_a_patient(store: CohortStore, one: Path) -> None:
    """A migration that gave an object a new UID does not double it; another patient with equal pixels is another patient."""
    labels = (one / "labels.csv").read_text()
    uid = dcmread(one / "IM00001").SOPInstanceUID
    (one / "labels.csv").write_text(
        "".join([labels, *(line.replace(uid, f"{uid}.{n}") + "\n" for n in (1, 2) for line in labels.splitlines() if uid in line)])
    )
    assert take(store, one) == IntakeResult(added=1)
    rewrite(one, lambda header: setattr(header, "SOPInstanceUID", f"{uid}.1"))
    assert take(store, one) == IntakeResult(duplicates=1)
    rewrite(one, lambda header: header.update(someone_else(f"{uid}.2")))
    assert take(store, one) == IntakeResult(added=1)


def as_it_was(_header: Dataset) -> None:
    pass


def under_another_uid(header: Dataset) -> None:
    header.SOPInstanceUID += ".1"


@pytest.mark.parametrize("packed", [as_it_was, compress, under_another_uid])
def test_a_new_number_is_learnt_from_an_object_that_comes_again(
    node: NodeSettings, store: CohortStore, one: Path, packed: Callable[[Dataset], object]
) -> None:
    """The same pixels under a corrected patient number, name and birth date being the same: a withdrawal by the new number deletes them."""
    label = (one / "labels.csv").read_text()
    uid = dcmread(one / "IM00001").SOPInstanceUID
    (one / "labels.csv").write_text(label + "".join(line.replace(uid, f"{uid}.1") + "\n" for line in label.splitlines() if uid in line))
    assert take(store, one) == IntakeResult(added=1)
    rewrite(one, packed)
    rewrite(one, lambda header: setattr(header, "PatientID", "NEW-NUMBER-77"))
    assert take(store, one) == IntakeResult(duplicates=1)
    assert withdraw(node, number_77(store, one)).images == 1
    assert rows(node, ImageRow) == 0


@pytest.mark.parametrize("packed", [as_it_was, compress])
def test_an_object_is_not_given_to_another_patient_by_coming_again(
    node: NodeSettings, store: CohortStore, one: Path, packed: Callable[[Dataset], object]
) -> None:
    """The same object with the number, name and birth date of somebody else is neither a duplicate nor a second image: a person is told."""
    uid = dcmread(one / "IM00001").SOPInstanceUID
    assert take(store, one) == IntakeResult(added=1)
    rewrite(one, packed)
    rewrite(one, lambda header: header.update(someone_else(uid)))
    assert take(store, one).codes == {"patient-unsure": 1}
    assert rows(node, ImageRow) == 1


def test_a_withdrawal_reaches_images_once_the_number_is_known_to_be_theirs(node: NodeSettings, store: CohortStore, one: Path) -> None:
    """A patient withdraws by a number that is not known here. An object that comes again under it is refused, and the withdrawal, repeated,
    deletes what was taken in under the other number."""
    assert take(store, one) == IntakeResult(added=1)
    number = number_77(store, one)
    assert withdraw(node, number, known=False).images == 0
    rewrite(one, lambda header: setattr(header, "PatientID", "NEW-NUMBER-77"))
    assert take(store, one).codes == {"consent-withdrawn": 1}
    assert withdraw(node, number).images == 1
    assert rows(node, ImageRow) == 0


def number_77(store: CohortStore, folder: Path) -> str:
    """The key of a number that the objects of the study do not have."""
    return store.pseudonyms.patient_key("NEW-NUMBER-77", issuer=dcmread(folder / "IM00001").IssuerOfPatientID)


def someone_else(uid: str) -> Dataset:
    """The identity of another patient."""
    identity = Dataset()
    identity.PatientID, identity.PatientName, identity.PatientBirthDate, identity.SOPInstanceUID = "999", "OTHER^OLGA", "19310203", uid
    return identity


def test_a_clip_that_was_cut_off_is_finished(node: NodeSettings, store: CohortStore, one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk fails after the first frames of a clip, none of them is in the cohort, in any form, and the next run adds them all."""

    def clip(header: Dataset) -> None:
        whole = np.stack([np.roll(header.pixel_array, shift, axis=1) for shift in range(4)])
        header.PixelData, header.NumberOfFrames = whole.tobytes(), 4

    rewrite(one, clip)
    with monkeypatch.context() as patched:
        patched.setattr(ImageFiles, "write", failing_at(3))
        with pytest.raises(UnavailableError):
            take(store, one)
    assert (rows(node, ObjectRow), rows(node, ImageRow), store.files.names()) == (0, 0, set())
    assert take(store, one) == IntakeResult(added=4)
    assert take(store, one) == IntakeResult(duplicates=4)
    assert rows(node, ImageRow) == 4


def failing_at(number: int) -> Callable[[ImageFiles, str, str, bytes], None]:
    """A way to write image files that fails at the given one."""
    write, count = ImageFiles.write, itertools.count(1)

    def failing(files: ImageFiles, name: str, image_id: str, png: bytes) -> None:
        if next(count) == number:
            raise UnavailableError("the disk is gone")
        write(files, name, image_id, png)

    return failing


def rows(node: NodeSettings, kind: type[ImageRow] | type[ObjectRow]) -> int:
    with Session(open_store(node.data)) as session:
        return len(session.scalars(select(kind)).all())


def test_a_withdrawn_patient_leaves_no_object_behind(node: NodeSettings, store: CohortStore, one: Path) -> None:
    """Withdrawal deletes what is noted of the patient's objects, and the object is refused when it comes again."""
    header = dcmread(one / "IM00001")
    assert take(store, one) == IntakeResult(added=1)
    withdraw(node, store.pseudonyms.patient_key(header.PatientID, issuer=header.IssuerOfPatientID))
    assert rows(node, ObjectRow) == 0
    assert take(store, one).codes == {"consent-withdrawn": 1}


def test_a_watched_folder_is_taken_in_as_files_become_whole(store: CohortStore, study: Path, one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there first, then what comes, in folders below too; a file that is written slowly is not touched before it is whole."""
    monkeypatch.setattr(watch, "QUIET_SECONDS", 0.5)
    files = sorted(study.glob("IM*"))
    with watching(store, one) as result:
        until(lambda: rows_of(store) == 1)
        (one / "below" / "further").mkdir(parents=True)
        shutil.copy(files[1], one / "below" / "further" / "late")
        content = files[2].read_bytes()
        with (one / "slow").open("wb") as slow:
            for part in np.array_split(np.frombuffer(content, np.uint8), 8):
                slow.write(part.tobytes())
                slow.flush()
                time.sleep(0.15)
        until(lambda: rows_of(store) == 3)
    assert result.result() == IntakeResult(added=3)


def test_a_file_that_comes_during_the_first_look_is_not_missed(store: CohortStore, study: Path, one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that arrives while the folder's first files are taken in, before anyone waits for news, is taken in too."""
    monkeypatch.setattr(watch, "QUIET_SECONDS", 0.1)
    files, take_in = sorted(study.glob("IM*")), watch.take_in

    def slow(*words: object, **named: object) -> IntakeResult:
        monkeypatch.setattr(watch, "take_in", take_in)
        shutil.copy(files[1], one / "late")
        time.sleep(0.5)
        return take_in(*words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(watch, "take_in", slow)
    with watching(store, one) as result:
        until(lambda: rows_of(store) == 2)
    assert result.result() == IntakeResult(added=2)


def test_a_watched_folder_waits_for_another_intake(store: CohortStore, study: Path, one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another intake runs, a file that comes waits, and is taken in afterwards."""
    monkeypatch.setattr(watch, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(watch, "PAUSE_SECONDS", 0.05)
    with watching(store, one) as result:
        until(lambda: rows_of(store) == 1 and is_free(store))
        with store.intake():
            shutil.copy(sorted(study.glob("IM*"))[1], one / "late")
            time.sleep(1.0)
            assert rows_of(store) == 1
        until(lambda: rows_of(store) == 2)
    assert result.result() == IntakeResult(added=2)


@contextmanager
def watching(store: CohortStore, folder: Path) -> Iterator[Future[IntakeResult]]:
    """A watch on a folder that ends with the block."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(watch_folder, store, folder, folder / "labels.csv", progress=False, stop=stop)
        finally:
            stop.set()


def is_free(store: CohortStore) -> bool:
    """Whether no intake runs; the last row of one is there before it ends."""
    try:
        with store.still():
            return True
    except StateError:
        return False


def rows_of(store: CohortStore) -> int:
    members: Sequence[str] = store.ids("member")
    return len(members) + len(store.ids("holdout"))


def until(look: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
