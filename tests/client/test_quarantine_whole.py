"""The quarantine under failures, two people at once, and objects that come again: all or nothing, one winner, deleted for good."""

import os
import pwd
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from typer.testing import CliRunner

from busgen_client.admission import Admission, NewImage
from busgen_client.cli import app
from busgen_client.cohort import CohortStore
from busgen_client.cohort_files import verify
from busgen_client.held import Held
from busgen_client.image_files import ImageFiles
from busgen_client.intake.dicom import intake_dicom
from busgen_client.intake.findings import Code, IntakeResult, QuarantineError
from busgen_client.intake.labels import read_labels
from busgen_client.intake.phantom_dicom import write_phantom_study
from busgen_client.intake.run import Source, take_in
from busgen_client.intake.spool import Spool
from busgen_client.intake.table import intake_table
from busgen_client.quarantine import SMALLEST_BOX, Quarantine
from busgen_core.errors import ConsentWithdrawnError, InputError, StateError, StorageFullError
from busgen_core.labels import Pathology
from tests.client.test_quarantine import journal, named, one_waiting, stored
from tests.client.waiting import DEVICE, vouch

pytestmark = pytest.mark.usefixtures("unread")
ADA, BEA = "ada", "bea"  # two stewards
FRAMES = 4
CORNER = (0, 0, 40, 40)


@pytest.fixture
def store(opened: CohortStore) -> CohortStore:
    return opened


@pytest.fixture
def quarantine(store: CohortStore) -> Quarantine:
    return Quarantine(store)


@pytest.fixture
def clip(store: CohortStore) -> str:
    """The name of a clip that waits."""
    source = Source(key=store.pseudonyms.key("object", "clip"), read=refuse, show=lambda: Held(images=tuple(frames(store))))
    take_in(store, [source], total=1, event="test", progress=False)
    return source.key[:12]


def refuse() -> list[NewImage]:
    raise QuarantineError(Code.TEXT_LEFT)


def frames(store: CohortStore, patient: str = "someone") -> list[NewImage]:
    rng, key = np.random.default_rng(5), store.pseudonyms.patient_key(patient)
    first = NewImage(gray=blank(), patient_key=key, pathology=Pathology.BENIGN, box=None, device="", source_key="")
    return [
        replace(first, gray=rng.integers(1, 255, (64, 80), dtype=np.uint8), source_key=store.pseudonyms.key("frame", str(number)))
        for number in range(FRAMES)
    ]


def blank() -> np.ndarray:
    return np.zeros((64, 80), np.uint8)


def failing_at(number: int, error: BaseException) -> Callable[[ImageFiles, str, str, bytes], None]:
    write, count = ImageFiles.write, iter(range(1, 100))

    def failing(files: ImageFiles, name: str, image_id: str, png: bytes) -> None:
        if next(count) == number:
            raise error
        write(files, name, image_id, png)

    return failing


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("error", [StorageFullError("the disk is full"), KeyboardInterrupt()], ids=["full", "interrupted"])
def test_a_release_that_fails_half_way_leaves_nothing(
    store: CohortStore, quarantine: Quarantine, clip: str, monkeypatch: pytest.MonkeyPatch, error: BaseException, killed: bool
) -> None:
    """After the third of four files failed no image is in the cohort, the journal says nothing, and the object waits; killed, it is the same
    once the next intake has swept. Blacked out and released then, every stored image is black there."""
    with monkeypatch.context() as patched:
        patched.setattr(ImageFiles, "write", failing_at(3, error))
        if killed:
            patched.setattr(ImageFiles, "delete", lambda _files, _names: None)  # nobody is left to clear up
        with pytest.raises(type(error)):
            quarantine.release(clip, who=ADA)
    assert (stored(store), len(store.files.names()), journal(store)) == ([], 2 * killed, [])
    quarantine.mask(clip, CORNER, who=ADA)
    assert store.files.names() == set()
    assert quarantine.release(clip, who=ADA) == FRAMES
    assert [bool(pixels[:40, :40].any()) for _, pixels in stored(store)] == [False] * FRAMES
    assert verify(store, progress=False).whole


def test_what_fails_half_way_can_be_deleted_whole(store: CohortStore, quarantine: Quarantine, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleted after a release that failed, nothing of the object is anywhere."""
    with monkeypatch.context() as patched:
        patched.setattr(ImageFiles, "write", failing_at(4, StorageFullError("the disk is full")))
        with pytest.raises(StorageFullError):
            quarantine.release(clip, who=ADA)
    quarantine.delete(clip, who=ADA)
    assert (stored(store), store.files.names(), list((store.data / "quarantine").iterdir())) == ([], set(), [])


def test_one_refused_image_keeps_all_out(store: CohortStore) -> None:
    """Of several images that are handed in at once, one with the other role keeps out those before it, and the patient is not split by them."""
    one, *others = frames(store)
    assert store.add_all([replace(one, role="member"), *(replace(each, role="holdout") for each in others)]) == [Admission.ROLE_CONFLICT] * FRAMES
    assert (stored(store), store.files.names(), store.split()) == ([], set(), ({}, []))


def test_what_is_blacked_out_is_black_in_an_image_that_came_before(store: CohortStore, quarantine: Quarantine, clip: str) -> None:
    """A frame that another object brought into the cohort is stored anew with the boxes, under its id and role; without boxes it stays as it was."""
    still = frames(store)[2]
    store.add(still)
    ((before, _),) = stored(store)
    quarantine.mask(clip, CORNER, who=ADA)
    assert quarantine.release(clip, who=ADA) == FRAMES - 1
    after = {row.image_id: (row, pixels) for row, pixels in stored(store)}
    assert not any(pixels[:40, :40].any() for _, pixels in after.values())
    row, pixels = after[before.image_id]
    assert (row.role, row.source_key, np.array_equal(pixels[40:], still.gray[40:])) == (before.role, before.source_key, True)
    assert len(store.files.names()) == FRAMES
    assert store.files.read(before) == store.png(before.image_id)  # by one who read the row before
    assert verify(store, progress=False).whole


def test_what_one_person_blacked_out_another_does_not_bring_back(store: CohortStore, quarantine: Quarantine, clip: str) -> None:
    """A frame that two objects share, released with other boxes each time, is black in all of them."""
    still = frames(store)[2]
    source = Source(key=store.pseudonyms.key("object", "still"), read=refuse, show=lambda: Held(images=(still,)))
    take_in(store, [source], total=1, event="test", progress=False)
    for name, corners in ((source.key[:12], (50, 10, 60, 20)), (clip, (10, 30, 30, 40))):
        quarantine.mask(name, corners, who=ADA)
        quarantine.release(name, who=ADA)
    (kept,) = [pixels for row, pixels in stored(store) if row.source_key == still.source_key]
    expected = still.gray.copy()
    expected[10:20, 50:60] = expected[30:40, 10:30] = 0
    assert np.array_equal(kept, expected)


def in_between(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> list[object]:
    """Let another person act in the middle of a release; what came of it is in the list once both are done."""
    came: list[object] = []

    def attempt() -> None:
        try:
            came.append(act())
        except Exception as refused:
            came.append(refused)

    fixed, other = Quarantine._fixed, threading.Thread(target=attempt)

    def slow(quarantine: Quarantine, held: object) -> object:
        other.start()
        other.join(0.5)
        return fixed(quarantine, held)  # type: ignore[arg-type]

    monkeypatch.setattr(Quarantine, "_fixed", slow)
    came.append(other)
    return came


@pytest.mark.parametrize("action", ["mask", "unmask", "delete", "release"])
def test_of_two_people_at_once_the_second_is_refused(
    store: CohortStore, quarantine: Quarantine, clip: str, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """What one does while another releases the same object is refused by name; the journal has the release alone, and all of it happened."""
    seen = quarantine.item(clip).stamp
    more = (CORNER,) if action == "mask" else ()
    came = in_between(monkeypatch, lambda: getattr(Quarantine(store), action)(clip, *more, who=BEA, seen=seen))
    assert quarantine.release(clip, who=ADA, seen=seen) == FRAMES
    other = came.pop(0)
    assert isinstance(other, threading.Thread)
    other.join(30)
    (refused,) = came
    assert isinstance(refused, StateError)
    assert "not as it was shown" in str(refused)
    assert [(event, detail["who"]) for event, detail in journal(store)] == [("quarantine.released", ADA)]
    assert len(stored(store)) == FRAMES


def test_of_two_boxes_on_one_picture_the_second_is_refused(store: CohortStore, quarantine: Quarantine, clip: str) -> None:
    """Several people who drew on what they saw at the same time: one box holds, and the journal says whose; the others are told."""
    seen, barrier, came = quarantine.item(clip).stamp, threading.Barrier(4), list[object]()

    def draw(number: int) -> None:
        barrier.wait()
        try:
            came.append(Quarantine(store).mask(clip, (0, 0, 10 + number, 10), who=f"steward {number}", seen=seen).masks)
        except StateError as refused:
            came.append(str(refused))

    people = [threading.Thread(target=draw, args=(number,)) for number in range(4)]
    for each in people:
        each.start()
    for each in people:
        each.join(30)
    boxes = [each for each in came if not isinstance(each, str)]
    assert sum("not as it was shown" in str(each) for each in came) == 3
    assert boxes == [quarantine.item(clip).masks]
    ((_, line),) = journal(store)
    assert line["who"] == f"steward {quarantine.item(clip).masks[0].x1 - 10}"


def test_a_patient_who_withdrew_meanwhile_is_journalled_as_deleted(
    store: CohortStore, quarantine: Quarantine, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that ends in a deletion is in the journal as that."""
    monkeypatch.setattr(CohortStore, "add_all", lambda *_words, **_named: [Admission.WITHDRAWN] * FRAMES)
    with pytest.raises(ConsentWithdrawnError):
        quarantine.release(clip, who=ADA)
    assert [event for event, _ in journal(store)] == ["quarantine.deleted"]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """One object of a scanner that nobody vouched for, with its label."""
    folder = tmp_path / "study"
    write_phantom_study(folder, site="Testville", patients=1, seed=3)
    for path in sorted(folder.glob("IM*"))[1:]:
        path.unlink()
    rewrite(folder, lambda header: setattr(header, "ManufacturerModelName", DEVICE))
    return folder


def rewrite(folder: Path, change: Callable[[Dataset], object]) -> None:
    header = dcmread(folder / "IM00001")
    change(header)
    header.save_as(folder / "IM00001")


def take(store: CohortStore, folder: Path) -> IntakeResult:
    return intake_dicom(store, folder, folder / "labels.csv", progress=False)


def renamed_on_the_way(header: Dataset) -> None:
    header.file_meta.SourceApplicationEntityTitle = "PACS"


def darken(header: Dataset) -> None:
    pixels = header.pixel_array.copy()
    pixels[60, 100] ^= 1
    header.PixelData = pixels.tobytes()


@pytest.mark.parametrize("change", [renamed_on_the_way, darken])
def test_a_deleted_object_does_not_come_back_in_another_file(
    store: CohortStore, quarantine: Quarantine, study: Path, change: Callable[[Dataset], object]
) -> None:
    """Deleted, an object is passed over by its UID when it comes in other bytes, though its scanner is vouched for by now."""
    assert take(store, study).codes == {"device-unknown": 1}
    name = named(quarantine, Code.DEVICE_UNKNOWN)
    quarantine.delete(name, who=ADA)
    vouch(store, study / "IM00001")
    rewrite(study, change)
    assert take(store, study) == IntakeResult(skipped=1)
    assert (stored(store), quarantine.items()) == ([], [])
    quarantine.allow(name, who=ADA)
    assert take(store, study) == IntakeResult(added=1)


def test_a_deleted_object_does_not_come_back_over_the_network(store: CohortStore, quarantine: Quarantine, study: Path) -> None:
    """A copy that arrives by C-STORE is passed over too, and its file is deleted."""
    assert take(store, study).codes == {"device-unknown": 1}
    quarantine.delete(named(quarantine, Code.DEVICE_UNKNOWN), who=ADA)
    rewrite(study, renamed_on_the_way)
    spool, path = Spool(store, store.data), study / "IM00001"
    with spool.receiving():
        spool.put(path.read_bytes(), dcmread(path).SOPInstanceUID)
    sources = spool.sources(read_labels(study / "labels.csv"))
    assert take_in(store, sources, total=1, event="test", progress=False) == IntakeResult(skipped=1)
    assert (spool.waiting(), spool.waiting(held=True), quarantine.items()) == ([], [], [])


def test_another_copy_that_waits_goes_with_the_next_look(store: CohortStore, quarantine: Quarantine, study: Path) -> None:
    """Two files of one object wait; after one is deleted, the other waits no more once it is taken in again, and one permission undoes it."""
    shutil.copy(study / "IM00001", study / "IM00002")
    rewrite(study, renamed_on_the_way)
    assert take(store, study).codes == {"device-unknown": 2}
    first, second = (item.name for item in quarantine.items())
    quarantine.delete(first, who=ADA)
    assert take(store, study) == IntakeResult(skipped=2)
    assert (quarantine.items(), list((store.data / "quarantine").iterdir())) == ([], [])
    quarantine.allow(first, who=ADA)
    assert take(store, study).codes == {"device-unknown": 2}
    for name in (first, second):
        quarantine.delete(name, who=ADA)
    quarantine.allow(second, who=ADA)
    assert take(store, study).codes == {"device-unknown": 2}


def write_table(folder: Path, picture: np.ndarray, pathology: str = "benign") -> Path:
    folder.mkdir(exist_ok=True)
    Image.fromarray(picture).save(folder / "a.png")
    (folder / "images.csv").write_text(f"file,pathology,patient_id\na.png,{pathology},P1\n")
    return folder


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(40, 200, (120, 160), dtype=np.uint8)


def coloured() -> np.ndarray:
    frame = np.repeat(picture(1)[..., None], 3, axis=2)
    frame[20:80, 20:120] = (240, 40, 40)
    return frame


def test_a_deleted_picture_does_not_come_back_in_a_copied_folder(store: CohortStore, quarantine: Quarantine, tmp_path: Path) -> None:
    """A row is known by its picture: with a label that can be used now, here or in a copy of the folder, it stays deleted."""
    folder = write_table(tmp_path / "table", picture(1), "unheard-of")
    assert intake_table(store, folder, progress=False).codes == {"label-unknown": 1}
    quarantine.delete(named(quarantine, Code.LABEL_UNKNOWN), who=ADA)
    write_table(folder, picture(1))
    shutil.copytree(folder, tmp_path / "copy")
    for each in (folder, tmp_path / "copy"):
        assert intake_table(store, each, progress=False) == IntakeResult(skipped=1)
    assert stored(store) == []


def test_another_picture_under_a_deleted_ones_name_is_looked_at(store: CohortStore, quarantine: Quarantine, tmp_path: Path) -> None:
    """A deletion is of what the person saw, not of its name."""
    folder = write_table(tmp_path / "table", picture(1), "unheard-of")
    intake_table(store, folder, progress=False)
    quarantine.delete(named(quarantine, Code.LABEL_UNKNOWN), who=ADA)
    assert intake_table(store, write_table(folder, picture(2)), progress=False) == IntakeResult(added=1)


def test_a_row_waits_once_whatever_becomes_of_its_picture(store: CohortStore, quarantine: Quarantine, tmp_path: Path) -> None:
    """Missing, damaged, corrected: what the row waited as before waits no more, unless the same picture waits in a copy of the folder."""
    folder, copy = write_table(tmp_path / "table", coloured()), tmp_path / "copy"
    shutil.copytree(folder, copy)
    for each in (folder, copy):
        assert intake_table(store, each, progress=False).codes == {"colour": 1}
    assert quarantine.counts() == {"colour": 1}
    (folder / "a.png").unlink()
    intake_table(store, folder, progress=False)
    assert quarantine.counts() == {"colour": 1, "file-missing": 1}
    (folder / "a.png").write_bytes(b"no picture")
    intake_table(store, folder, progress=False)
    assert quarantine.counts() == {"colour": 1, "image-corrupt": 1}
    assert intake_table(store, write_table(folder, picture(2)), progress=False).added == 1
    assert quarantine.counts() == {"colour": 1}
    assert intake_table(store, write_table(copy, picture(3)), progress=False).added == 1
    assert (quarantine.items(), list((store.data / "quarantine").iterdir())) == ([], [])


def test_a_speck_does_not_hide_text(store: CohortStore, quarantine: Quarantine) -> None:
    """Where the header says that text is burned in, a box that could hide no letter is not enough for a release."""
    name = one_waiting(store, Code.BURNED_IN_TEXT)
    for corners in ((0, 0, 1, 1), (0, 0, 80, SMALLEST_BOX - 1), (0, 0, SMALLEST_BOX - 1, 64)):
        quarantine.draw(name, [corners], who=ADA, clear=True)
        with pytest.raises(StateError, match="black it out"):
            quarantine.release(name, who=ADA)
    quarantine.mask(name, (0, 0, SMALLEST_BOX, SMALLEST_BOX), who=ADA)
    assert quarantine.release(name, who=ADA) == 1


def test_boxes_are_looked_at_before_the_old_ones_go(store: CohortStore, quarantine: Quarantine, clip: str, tmp_path: Path) -> None:
    """A command that takes the boxes off and draws others changes nothing where one of them lies outside the picture."""
    before = quarantine.mask(clip, CORNER, who=ADA)
    words = ["quarantine", "mask", clip, "--clear", "--box", "0,0,9,9", "--box", "200,200,300,300", "--config", str(tmp_path / "node.toml")]
    assert isinstance(CliRunner().invoke(app, words).exception, InputError)
    assert quarantine.item(clip) == before
    assert [event for event, _ in journal(store)] == ["quarantine.masked"]


def test_nobody_signs_the_journal_with_anothers_name(store: CohortStore, clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal has the system's name of the user, whatever the environment says; of a user without a name, the number."""
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(variable, "dr.other")
    words = ["quarantine", "mask", clip, "--box", "0,0,9,9", "--config", str(tmp_path / "node.toml")]

    def unknown(_uid: int) -> None:
        raise KeyError

    assert CliRunner().invoke(app, words).exit_code == 0
    name = pwd.getpwuid(os.getuid()).pw_name
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert CliRunner().invoke(app, words).exit_code == 0
    assert [detail["who"] for _, detail in journal(store)] == [f"{name} (command line)", f"user {os.getuid()} (command line)"]
