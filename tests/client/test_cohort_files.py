"""The cohort at rest: sealed images, verify, encrypt, and what goes wrong on the way."""

import fcntl
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Delete, Engine, Update, delete, select, update
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from busgen_client import storage
from busgen_client.admission import NewImage
from busgen_client.cli import app
from busgen_client.cohort import CohortStore, open_cohort
from busgen_client.cohort_files import Problem, encrypt, verify
from busgen_client.cohort_rows import ImageRow, JournalRow, PatientRow
from busgen_client.database import open_store
from busgen_client.held import Held, HeldStore
from busgen_client.intake.spool import Spool
from busgen_client.jobs import BeatRow, JobStore
from busgen_client.quarantine_rows import HeldRow
from busgen_client.settings import load_settings
from busgen_client.storage import MAGIC, StorageSettings, Vault
from busgen_core.errors import ConfigError, CorruptImageError, StateError, StorageFullError, StorageKeyError
from busgen_core.labels import Pathology
from tests.client.node import lay_out, new_image


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_store(tmp_path)
    yield engine
    engine.dispose()


def sealed(engine: Engine, data: Path) -> CohortStore:
    return CohortStore(engine, data, vault=Vault(data, StorageSettings()))


def plain(engine: Engine, data: Path) -> CohortStore:
    return CohortStore(engine, data)


def fill(store: CohortStore, patients: int = 6) -> None:
    for number in range(patients):
        gray = np.random.default_rng(number).integers(0, 255, (48, 80), np.uint8)
        key = store.pseudonyms.patient_key(str(number))
        store.add(NewImage(gray=gray, patient_key=key, pathology=Pathology.BENIGN, box=None, device="", source_key=f"s{number}"))


def contents(data: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (data / "images").iterdir()}


def test_stored_images_are_sealed_and_load_as_they_were(engine: Engine, tmp_path: Path) -> None:
    """No stored file holds a PNG, and both stores load the same pixels."""
    (tmp_path / "b").mkdir()
    other_engine = open_store(tmp_path / "b")
    one, other = sealed(engine, tmp_path), plain(other_engine, tmp_path / "b")
    for store in (one, other):
        for number in range(4):
            gray = np.random.default_rng(number).integers(0, 255, (48, 80), np.uint8)
            key = store.pseudonyms.patient_key(str(number))
            store.add(NewImage(gray=gray, patient_key=key, pathology=Pathology.BENIGN, box=None, device="", source_key=f"s{number}", role="member"))
    assert all(content.startswith(MAGIC) and b"PNG" not in content[:64] for content in contents(tmp_path).values())
    assert sorted(map(bytes, one.load("member").images)) == sorted(map(bytes, other.load("member").images))
    other_engine.dispose()


def test_a_whole_cohort_verifies(engine: Engine, tmp_path: Path) -> None:
    """Nothing is found in a sealed cohort; a plain one is whole too where the site seals nothing."""
    store = sealed(engine, tmp_path)
    fill(store)
    state = verify(store, progress=False)
    assert (state.images, state.sealed, state.found, state.whole) == (6, 6, (), True)


def first(data: Path) -> Path:
    return min((data / "images").iterdir())


def cut(data: Path) -> None:
    first(data).write_bytes(first(data).read_bytes()[:-1])


def flip(data: Path) -> None:
    content = bytearray(first(data).read_bytes())
    content[-20] ^= 1
    first(data).write_bytes(content)


def swap(data: Path) -> None:
    one, other, *_ = sorted((data / "images").iterdir())
    aside = one.with_suffix(".x")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def lose(data: Path) -> None:
    first(data).unlink()


def litter(data: Path) -> None:
    (data / "images" / "stray").write_bytes(b"x")


DAMAGE = {
    "cut short": (cut, [Problem.DAMAGED]),
    "changed": (flip, [Problem.DAMAGED]),
    "swapped": (swap, [Problem.DAMAGED, Problem.DAMAGED]),
    "lost": (lose, [Problem.MISSING]),
    "one too many": (litter, [Problem.ORPHAN]),
}


@pytest.mark.parametrize(("damage", "expected"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_found(engine: Engine, tmp_path: Path, damage: Callable[[Path], None], expected: list[Problem]) -> None:
    """Every kind of damage is found and named, verify changes nothing, and a damaged image is never loaded."""
    store = sealed(engine, tmp_path)
    fill(store)
    damage(tmp_path)
    before = contents(tmp_path)
    state = verify(store, progress=False)
    assert [problem for problem, _ in state.found] == expected
    assert not state.whole
    assert contents(tmp_path) == before
    if Problem.ORPHAN not in expected:
        with pytest.raises(CorruptImageError):
            [store.load(role) for role in ("member", "holdout")]


EDITS: dict[str, Callable[[str, str], Update | Delete]] = {
    "patient": lambda key, other: update(PatientRow).where(PatientRow.patient_key == key).values(role=other),
    "image": lambda key, other: update(ImageRow).where(ImageRow.patient_key == key).values(role=other),
    "lost line of the journal": lambda key, _: delete(JournalRow).where(JournalRow.event == "split", JournalRow.detail.contains(key)),
    "edited line of the journal": lambda key, other: (
        update(JournalRow)
        .where(JournalRow.event == "split", JournalRow.detail.contains(key))
        .values(detail=json.dumps({"patient": key, "role": other, "rule": "hmac-60-40"}))
    ),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_patient_moved_to_the_other_side_is_found(engine: Engine, tmp_path: Path, edit: Callable[[str, str], Update | Delete]) -> None:
    """Roles are fixed: an edited patient, image or line of the journal, or a line that is gone, is found."""
    store = sealed(engine, tmp_path)
    fill(store, 3)
    assert verify(store, progress=False).whole
    key = store.pseudonyms.patient_key("0")
    with Session(engine) as session:
        session.execute(edit(key, "member" if store.pseudonyms.own_role(key) == "holdout" else "holdout"))
        session.commit()
    assert {problem for problem, _ in verify(store, progress=False).found} == {Problem.ROLE}


def rewrite_line(session: Session, key: str, **changes: str | None) -> None:
    """Edit the journal's line about a patient's role; None takes a field away."""
    (row,) = session.scalars(select(JournalRow).where(JournalRow.event == "split", JournalRow.detail.contains(key)))
    row.detail = json.dumps({name: value for name, value in (json.loads(row.detail) | changes).items() if value is not None})


def test_a_patient_moved_everywhere_at_once_is_found(engine: Engine, tmp_path: Path) -> None:
    """Patient, images and journal edited alike, as if the authors had given the role: only the proof tells, and another's does not serve."""
    store = sealed(engine, tmp_path)
    fill(store, 3)
    key, others = store.pseudonyms.patient_key("0"), [store.pseudonyms.patient_key(number) for number in ("1", "2")]
    role = "member" if store.pseudonyms.own_role(key) == "holdout" else "holdout"
    with Session(engine) as session:
        session.execute(update(PatientRow).where(PatientRow.patient_key == key).values(role=role, rule="given"))
        session.execute(update(ImageRow).where(ImageRow.patient_key == key).values(role=role))
        rewrite_line(session, key, role=role, rule="given")
        session.commit()
    assert verify(store, progress=False).found == ((Problem.ROLE, key[:12]),)
    for proof in (store.pseudonyms.role_proof(other, role=role, rule="given") for other in others):
        with Session(engine) as session:
            rewrite_line(session, key, proof=proof)
            session.commit()
        assert verify(store, progress=False).found == ((Problem.ROLE, key[:12]),)


def test_an_edited_rule_is_found(engine: Engine, tmp_path: Path) -> None:
    """Who calls a drawn role given, in the table and in the journal, or in one of them, is found."""
    store = sealed(engine, tmp_path)
    fill(store, 1)
    key = store.pseudonyms.patient_key("0")
    for edit in (
        lambda session: session.execute(update(PatientRow).values(rule="given")),
        lambda session: rewrite_line(session, key, rule="given"),
    ):
        with Session(engine) as session:
            edit(session)
            session.commit()
        assert verify(store, progress=False).found == ((Problem.ROLE, key[:12]),)


def test_a_role_without_proof_is_not_whole(engine: Engine, tmp_path: Path) -> None:
    """A line without its proof is a problem of its own, so that taking the proofs away hides nothing; images still load."""
    store = sealed(engine, tmp_path)
    fill(store, 2)
    key = store.pseudonyms.patient_key("0")
    with Session(engine) as session:
        rewrite_line(session, key, proof=None)
        session.commit()
    state = verify(store, progress=False)
    assert (state.found, state.whole) == (((Problem.UNPROVED, key[:12]),), False)
    assert sum(len(store.load(role).images) for role in ("member", "holdout")) == 2


def test_a_plain_cohort_is_sealed_and_stays_the_same(engine: Engine, tmp_path: Path) -> None:
    """Migration leaves no plain file, every image loads as before, and a second run does nothing."""
    old = plain(engine, tmp_path)
    fill(old)
    before = [old.load(role).images.tolist() for role in ("member", "holdout")]
    new = sealed(engine, tmp_path)
    assert [new.load(role).images.tolist() for role in ("member", "holdout")] == before
    assert verify(new, progress=False).counts() == {"unsealed": 6}
    assert encrypt(new, tmp_path, progress=False) == 6
    assert encrypt(new, tmp_path, progress=False) == 0
    assert all(content.startswith(MAGIC) for content in contents(tmp_path).values())
    assert [new.load(role).images.tolist() for role in ("member", "holdout")] == before
    assert verify(new, progress=False).found == ()


def test_a_reader_that_looked_before_the_migration_finds_the_image(engine: Engine, tmp_path: Path) -> None:
    """A job that read the rows before an image was sealed still reads the image."""
    old = plain(engine, tmp_path)
    fill(old, 1)
    (row,) = old.rows()
    new = sealed(engine, tmp_path)
    encrypt(new, tmp_path, progress=False)
    assert not (tmp_path / "images" / row.file).exists()
    assert new.files.read(row).startswith(b"\x89PNG")


CRASH = """
import os, sys
from pathlib import Path
from busgen_client.cohort import CohortStore
from busgen_client.cohort_files import encrypt
from busgen_client.database import open_store
from busgen_client.held import Held, HeldStore
from busgen_client.intake.spool import Spool
from busgen_client.quarantine_rows import HeldRow
from busgen_client.storage import StorageSettings, Vault
import busgen_client.storage as storage

data, after = Path(sys.argv[1]), int(sys.argv[2])
store = CohortStore(open_store(data), data, vault=Vault(data, StorageSettings()))
count, write = 0, storage.write_durably
def dying(path, content):
    global count
    count += 1
    write(path, content)
    if count == after:
        os._exit(9)
storage.write_durably = dying
encrypt(store, data, progress=False)
"""


def test_a_migration_that_dies_goes_on(engine: Engine, tmp_path: Path) -> None:
    """Killed between file and row, every image is still there; the next run seals the rest and leaves nothing behind."""
    old = plain(engine, tmp_path)
    fill(old)
    before = [old.load(role).images.tolist() for role in ("member", "holdout")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", CRASH, str(tmp_path), "3"], env=environment, check=False).returncode == 9
    new = sealed(engine, tmp_path)
    assert [new.load(role).images.tolist() for role in ("member", "holdout")] == before
    assert verify(new, progress=False).counts() == {"orphan": 1, "unsealed": 4}
    assert encrypt(new, tmp_path, progress=False) == 4
    assert verify(new, progress=False).found == ()


def test_a_new_data_key_reaches_every_image(engine: Engine, tmp_path: Path) -> None:
    """After a rotation no file is under the old key, which is gone, and every image loads."""
    store = sealed(engine, tmp_path)
    fill(store)
    heads = {content[:22] for content in contents(tmp_path).values()}
    assert encrypt(store, tmp_path, rotate=True, progress=False) == 6
    assert heads.isdisjoint(content[:22] for content in contents(tmp_path).values())
    assert len(json.loads((tmp_path / "storage.json").read_text())["keys"]) == 1
    assert verify(sealed(engine, tmp_path), progress=False).found == ()


def test_no_key_is_dropped_while_an_image_is_stored(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From sealing an image until its file has its name, the lock is held that dropping keys waits for: when it is added, and sealed anew."""
    store, held = sealed(engine, tmp_path), list[bool]()
    plain_write = storage.write_durably

    def looking(path: Path, content: bytes) -> None:
        if path.suffix == ".sealed":
            with (tmp_path / storage.LOCK_FILE).open() as lock, suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held.append(False)
                return plain_write(path, content)
            held.append(True)
        return plain_write(path, content)

    monkeypatch.setattr(storage, "write_durably", looking)
    fill(store, 1)
    encrypt(store, tmp_path, rotate=True, progress=False)
    assert held == [True, True]


def waiting(store: CohortStore) -> HeldRow:
    """A picture in quarantine and an object in the spool."""
    gray = np.random.default_rng(5).integers(0, 255, (48, 80), np.uint8)
    key = store.pseudonyms.patient_key("waits")
    image = NewImage(gray=gray, patient_key=key, pathology=Pathology.BENIGN, box=None, device="", source_key="w")
    store.quarantine("w", code="device-unknown", reason="")
    HeldStore(store).put("w", Held(images=(image,)))
    spool = Spool(store, store.data)
    with spool.receiving():
        spool.put(b"an object", "2.25.1")
    row = HeldStore(store).get("w")
    assert row is not None
    return row


def test_a_new_data_key_reaches_what_waits(engine: Engine, tmp_path: Path) -> None:
    """Pictures in quarantine and objects in the spool are sealed anew with the images, open afterwards, and the old key is gone."""
    store = sealed(engine, tmp_path)
    fill(store, 2)
    row = waiting(store)
    picture, (file,) = HeldStore(store).frame(row, 0), (tmp_path / "spool").glob("*.dcm")
    assert encrypt(sealed(engine, tmp_path), tmp_path, rotate=True, progress=False) == 4
    assert len(json.loads((tmp_path / "storage.json").read_text())["keys"]) == 1
    assert np.array_equal(HeldStore(store).frame(row, 0), picture)  # a console that runs on
    assert sealed(engine, tmp_path).vault.read(file, role="spool", name=file.stem) == b"an object"
    assert verify(store, progress=False).found == ()


def test_half_a_picture_is_swept_and_stops_nothing(engine: Engine, tmp_path: Path) -> None:
    """What a crash left beside a picture that waits goes with the next sweep, the picture stays; it does not keep 'encrypt' from its end."""
    store = sealed(engine, tmp_path)
    row = waiting(store)
    picture = tmp_path / "quarantine" / f"{row.token}-0"
    half, half_object = picture.with_name(picture.name + ".new"), tmp_path / "spool" / "x-1.dcm.new"
    for run in (HeldStore(store).sweep, lambda: encrypt(store, tmp_path, rotate=True, progress=False)):
        half.write_bytes(picture.read_bytes()[:-1])
        half_object.write_bytes(b"half")
        run()
        assert [file.name for file in (tmp_path / "quarantine").iterdir()] == [picture.name]
    assert not half_object.exists()
    assert verify(store, progress=False).found == ()


def test_no_key_is_dropped_while_a_picture_is_missing(engine: Engine, tmp_path: Path) -> None:
    """A folder that is not mounted may come back: the key of its pictures is still there, and goes with the next run."""
    store = sealed(engine, tmp_path)
    row = waiting(store)
    (tmp_path / "quarantine").rename(tmp_path.parent / f"{tmp_path.name}-away")
    encrypt(store, tmp_path, rotate=True, progress=False)
    (tmp_path.parent / f"{tmp_path.name}-away").rename(tmp_path / "quarantine")
    assert HeldStore(store).frame(row, 0).shape == (48, 80)
    encrypt(store, tmp_path, progress=False)
    assert len(json.loads((tmp_path / "storage.json").read_text())["keys"]) == 1
    assert HeldStore(store).frame(row, 0).shape == (48, 80)


def test_what_waits_is_looked_at_too(engine: Engine, tmp_path: Path) -> None:
    """Damaged, missing, orphan and unsealed files of quarantine and spool are named."""
    store = sealed(engine, tmp_path)
    row = waiting(store)
    (file,) = (tmp_path / "spool").glob("*.dcm")
    (tmp_path / "spool" / "plain-1.held").write_bytes(b"from before")
    file.write_bytes(file.read_bytes()[:-1])
    (tmp_path / "quarantine" / f"{row.token}-0").rename(tmp_path / "quarantine" / "other-0")
    expected = {("missing", f"quarantine/{row.token}-0"), ("orphan", "quarantine/other-0"), ("unsealed", "spool/plain-1.held")}
    assert set(verify(store, progress=False).found) == {*expected, ("damaged", "quarantine/other-0"), ("damaged", f"spool/{file.name}")}


def test_a_damaged_image_is_not_replaced_by_the_migration(engine: Engine, tmp_path: Path) -> None:
    """What does not have its digest stops the run, and stays as it is for the backup to be compared with."""
    fill(plain(engine, tmp_path))
    flip(tmp_path)
    before = first(tmp_path).read_bytes()
    name = first(tmp_path).name
    with pytest.raises(CorruptImageError):
        encrypt(sealed(engine, tmp_path), tmp_path, progress=False)
    assert (tmp_path / "images" / name).read_bytes() == before


def test_a_site_that_seals_nothing_is_told(engine: Engine, tmp_path: Path) -> None:
    """Sealing without a key is refused by name."""
    with pytest.raises(ConfigError, match="none"):
        encrypt(plain(engine, tmp_path), tmp_path, progress=False)


@pytest.mark.parametrize("key", [None, b"y" * 32], ids=["missing", "another"])
def test_a_wrong_key_admits_and_reads_nothing(engine: Engine, tmp_path: Path, key: bytes | None) -> None:
    """Adding, loading and verifying are refused by name; no file changes."""
    fill(sealed(engine, tmp_path), 2)
    file = tmp_path / "keys" / "storage.key"
    file.unlink() if key is None else file.write_bytes(key)
    before, store = contents(tmp_path), sealed(engine, tmp_path)
    for ask in (lambda: fill(store, 3), lambda: [store.load(r) for r in ("member", "holdout")], lambda: verify(store, progress=False)):
        with pytest.raises(StorageKeyError):
            ask()
    assert contents(tmp_path) == before


def test_lost_keys_are_not_made_anew(engine: Engine, tmp_path: Path) -> None:
    """Without storage.json no image is added beside those that it opens, and no other storage.json appears."""
    fill(sealed(engine, tmp_path), 2)
    (tmp_path / "storage.json").unlink()
    with pytest.raises(StorageKeyError, match="backup"):
        fill(sealed(engine, tmp_path), 3)
    assert not (tmp_path / "storage.json").exists()


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from busgen_client.admission import NewImage
from busgen_client.cohort import CohortStore
from busgen_client.database import open_store
from busgen_client.held import Held, HeldStore
from busgen_client.intake.spool import Spool
from busgen_client.quarantine_rows import HeldRow
from busgen_client.storage import StorageSettings, Vault
from busgen_core.errors import StorageFullError
from busgen_core.labels import Pathology
import busgen_core.images

data = Path(sys.argv[1])
store = CohortStore(open_store(data), data, vault=Vault(data, StorageSettings()))
gray = np.random.default_rng(7).integers(0, 255, (700, 700), np.uint8)
store.vault.check()
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
try:
    store.add(NewImage(gray=gray, patient_key=store.pseudonyms.patient_key("p"), pathology=Pathology.BENIGN, box=None, device="", source_key="s"))
except StorageFullError:
    sys.exit(3)
"""


def test_a_full_disk_is_named_and_leaves_the_cohort_whole(engine: Engine, tmp_path: Path) -> None:
    """An image that does not fit is refused by name: no row, no file, and what was there verifies."""
    store = sealed(engine, tmp_path)
    fill(store, 2)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], env=environment, check=False).returncode == 3
    assert (len(store.rows()), verify(store, progress=False).found) == (2, ())
    assert StorageFullError.code == "storage-full"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_nothing_runs_beside_an_intake(engine: Engine, tmp_path: Path) -> None:
    """Verify and encrypt wait for an intake to end, and an intake for them."""
    store = sealed(engine, tmp_path)
    with store.intake():
        for run in (lambda: verify(store, progress=False), lambda: encrypt(store, tmp_path, progress=False)):
            with pytest.raises(StateError, match="another intake"):
                run()
    with store.still(), pytest.raises(StateError, match="another intake"), store.intake():
        pass


def test_commands(tmp_path: Path) -> None:
    """Summary, verify and encrypt from the command line: JSON, exit statuses, and no small cell."""
    settings = lay_out(tmp_path)
    runner, config = CliRunner(), ["--config", str(tmp_path / "node.toml"), "--json"]
    fill(plain(open_store(settings.data), settings.data), 3)
    assert json.loads(runner.invoke(app, ["cohort", "encrypt", *config]).stdout) == {"sealed": 3}
    state = runner.invoke(app, ["cohort", "verify", *config])
    assert (state.exit_code, json.loads(state.stdout)) == (0, {"images": 3, "sealed": 3, "whole": True, "found": []})
    cells = json.loads(runner.invoke(app, ["cohort", "summary", *config]).stdout)["cells"]
    assert {cell["patients"] for cell in cells} == {"<5"}
    open_cohort(settings).quarantine("k", code="consent-withdrawn", reason="")
    assert json.loads(runner.invoke(app, ["cohort", "summary", *config]).stdout)["quarantined"] == {"consent-withdrawn": "<5"}
    first(settings.data).unlink()
    assert runner.invoke(app, ["cohort", "verify", *config]).exit_code == 1


def test_a_picture_under_two_patients_is_listed(tmp_path: Path) -> None:
    """Two images of one patient alike are nothing; the same picture, also saved again, under another patient is one line and exit status 1."""
    settings = lay_out(tmp_path)
    store = plain(open_store(settings.data), settings.data)
    runner, ask = CliRunner(), ["cohort", "doubles", "--config", str(tmp_path / "node.toml"), "--json"]
    assert (runner.invoke(app, ask).exit_code, json.loads(runner.invoke(app, ask).stdout)) == (0, [])
    own, other = new_image(store, "a", 0, role="member"), new_image(store, "b", 0, role="holdout")
    for image in (own, replace(own, source_key=store.pseudonyms.key("again")), new_image(store, "a", 1, role="member"), other):
        store.add(image)
    assert runner.invoke(app, ask).exit_code == 0
    noisy = np.clip(own.gray + np.random.default_rng(0).normal(0, 2, own.gray.shape), 0, 255).astype(np.uint8)
    store.add(replace(other, gray=noisy, source_key=store.pseudonyms.key("mixed up")))
    found = runner.invoke(app, ask)
    lines = json.loads(found.stdout)
    assert found.exit_code == 1
    assert {frozenset((line["role"], line["other_role"])) for line in lines} == {frozenset(("member", "holdout"))}
    keys = {store.pseudonyms.patient_key(name) for name in "ab"}
    assert all({line["patient"], line["other_patient"]} == keys for line in lines)
    assert len(lines) == 2  # the picture lies twice under the first patient


def test_the_sites_key_is_changed_by_a_command(tmp_path: Path) -> None:
    """'rekey' prints what node.toml must say; with it all opens as it lies, without it nothing; a running worker or intake refuses it."""
    settings = lay_out(tmp_path)
    store, config = open_cohort(settings), tmp_path / "node.toml"
    fill(store, 2)
    before, runner = contents(settings.data), CliRunner()
    ask = ["cohort", "rekey", "--key", "file", "--key-file", str(tmp_path / "usb" / "busgen.key"), "--config", str(config)]
    JobStore(store.engine).beat()
    assert isinstance(runner.invoke(app, ask).exception, StateError)
    with Session(store.engine) as session:
        session.execute(delete(BeatRow))
        session.commit()
    with store.still():
        assert isinstance(runner.invoke(app, ask).exception, StateError)
    assert isinstance(runner.invoke(app, [*ask, "--passphrase-file", "p"]).exception, ConfigError)
    assert not (tmp_path / "usb").exists()
    done = runner.invoke(app, ask)
    assert done.exit_code == 0
    with pytest.raises(StorageKeyError, match="rekey"):
        verify(open_cohort(settings), progress=False)
    config.write_text(config.read_text() + done.stdout)
    assert verify(open_cohort(load_settings(config)), progress=False).found == ()
    assert contents(settings.data) == before
    again = runner.invoke(app, ask)
    assert (again.exit_code, again.stdout, "already" in again.stderr) == (0, done.stdout, True)


def test_a_node_seals_by_default(tmp_path: Path) -> None:
    """What a node takes in with the settings that 'join' writes is sealed."""
    settings = lay_out(tmp_path)
    fill(open_cohort(settings), 1)
    assert first(settings.data).suffix == ".sealed"
    assert (settings.data / "keys" / "storage.key").exists()


def test_a_store_of_an_earlier_version_opens(tmp_path: Path) -> None:
    """A database without the columns that came later gets them, and keeps its rows."""
    engine = open_store(tmp_path)
    fill(plain(engine, tmp_path), 2)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE images DROP COLUMN birads")
    engine.dispose()
    again = open_store(tmp_path)
    assert [row.birads for row in plain(again, tmp_path).rows()] == [None, None]
    again.dispose()
