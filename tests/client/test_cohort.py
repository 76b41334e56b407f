"""The node's cohort: rows, files, secret and split."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from busgen_client.admission import Admission, NewImage
from busgen_client.cohort import CohortStore
from busgen_client.cohort_rows import ImageRow, JournalRow, QuarantineRow
from busgen_client.database import open_store
from busgen_client.doctor import examine
from busgen_client.pseudonyms import MEMBER_SHARE
from busgen_client.settings import NodeSettings
from busgen_core.errors import CorruptImageError, InputError, StateError, UnavailableError
from busgen_core.labels import Pathology


def image(store: CohortStore, patient: str, number: int = 0, pathology: Pathology = Pathology.BENIGN) -> NewImage:
    gray = np.random.default_rng([number, *patient.encode()]).integers(0, 255, (48, 80), np.uint8)
    source = store.pseudonyms.key("test", patient, str(number))
    box = (0.25, 0.25, 0.5, 0.75)
    return NewImage(gray=gray, patient_key=store.pseudonyms.patient_key(patient), pathology=pathology, box=box, device="", source_key=source)


def test_what_was_added_is_loaded(store: CohortStore) -> None:
    """Label, box, patient and a square frame come back."""
    store.add(replace(image(store, "p"), role="member"))
    cohort = store.load("member")
    assert cohort.images.shape == (1, 64, 64)
    assert (cohort.classes, cohort.boxes, cohort.patients) == ((Pathology.BENIGN,), ((0.25, 0.25, 0.5, 0.75),), (store.pseudonyms.patient_key("p"),))
    assert len(store.load("holdout")) == 0


def test_the_same_object_is_admitted_once(store: CohortStore) -> None:
    """A source key that is known is a duplicate, and leaves no second file."""
    assert [store.add(image(store, "p")) for _ in range(2)] == [Admission.ADDED, Admission.DUPLICATE]
    assert store.count_patients("member") + store.count_patients("holdout") == 1


def test_split_keeps_a_patient_together_and_is_journaled(store: CohortStore, engine: Engine) -> None:
    """Every image of a patient has the patient's one role, and each patient's role is noted once."""
    for patient in "abcdefgh":
        for number in range(3):
            store.add(image(store, patient, number))
    with Session(engine) as session:
        rows = session.execute(select(ImageRow.patient_key, ImageRow.role).distinct()).all()
        notes = session.scalars(select(JournalRow).where(JournalRow.event == "split")).all()
    assert len(rows) == 8
    assert len(notes) == 8


def test_split_is_a_function_of_the_secret_and_the_patient(store: CohortStore, engine: Engine, tmp_path: Path) -> None:
    """Another process with the same secret gives the same roles; another secret gives others."""
    patients = [f"patient {n}" for n in range(64)]
    roles = [store.pseudonyms.own_role(store.pseudonyms.patient_key(p)) for p in patients]
    again = CohortStore(engine, tmp_path)
    assert [again.pseudonyms.own_role(again.pseudonyms.patient_key(p)) for p in patients] == roles
    other_engine = open_store(tmp_path / "other")
    other = CohortStore(other_engine, tmp_path / "other")
    assert [other.pseudonyms.own_role(other.pseudonyms.patient_key(p)) for p in patients] != roles
    other_engine.dispose()


def test_split_is_sixty_to_forty(store: CohortStore) -> None:
    """Members are 60 % of patients: binomial(4000, 0.6); correct code fails for one secret in a million, 65 % is caught."""
    n = 4000
    members = sum(store.pseudonyms.own_role(store.pseudonyms.patient_key(str(p))) == "member" for p in range(n))
    low, high = binom.interval(1 - 1e-6, n, MEMBER_SHARE)
    assert low <= members <= high
    assert high < 0.65 * n


def test_role_of_the_authors_wins_over_the_split(store: CohortStore) -> None:
    """A role that comes with the data is kept, whichever side the digest would choose."""
    for n in range(20):
        store.add(replace(image(store, f"p{n}"), role="holdout"))
    assert (store.count_patients("member"), store.count_patients("holdout")) == (0, 20)


def test_a_patient_never_changes_sides(store: CohortStore) -> None:
    """A second image with the other role is not admitted; one without a role follows the patient."""
    store.add(replace(image(store, "p", 0), role="holdout"))
    assert store.add(replace(image(store, "p", 1), role="member")) is Admission.ROLE_CONFLICT
    assert store.add(image(store, "p", 2)) is Admission.ADDED
    assert (len(store.load("holdout")), len(store.load("member"))) == (2, 0)


def test_patient_key_hides_the_identifier_and_knows_the_issuer(store: CohortStore) -> None:
    """Keys are digests; padding does not matter, the issuer does, and parts do not run together."""
    assert store.pseudonyms.patient_key(" 12 ") == store.pseudonyms.patient_key("12")
    assert (
        len(
            {
                store.pseudonyms.patient_key("12"),
                store.pseudonyms.patient_key("12", issuer="a"),
                store.pseudonyms.patient_key("2", issuer="a1"),
                store.pseudonyms.key("x", "ab"),
                store.pseudonyms.key("x", "a", "b"),
            }
        )
        == 5
    )
    with pytest.raises(InputError):
        store.pseudonyms.patient_key("  ")


def test_secret_is_for_the_owner_only(store: CohortStore, tmp_path: Path) -> None:
    """secret.key holds 32 bytes and has mode 0600; a wider mode is refused."""
    secret = tmp_path / "secret.key"
    assert len(secret.read_bytes()) == 32
    assert secret.stat().st_mode & 0o777 == 0o600
    secret.chmod(0o640)
    with pytest.raises(StateError, match="0600"):
        CohortStore(store._engine, tmp_path)


SECRETS = {"missing": None, "short": b"x", "another": b"y" * 32}


@pytest.mark.parametrize("content", SECRETS.values(), ids=SECRETS)
def test_wrong_secret_is_refused(store: CohortStore, tmp_path: Path, content: bytes | None) -> None:
    """A cohort is never keyed with a second secret, which would split its patients anew."""
    secret = tmp_path / "secret.key"
    secret.unlink() if content is None else secret.write_bytes(content)
    with pytest.raises(StateError):
        CohortStore(store._engine, tmp_path)
    assert secret.exists() == (content is not None)


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_damaged_file_is_refused(store: CohortStore, tmp_path: Path, damage: str) -> None:
    """A PNG that is not the bytes that were stored stops the load."""
    store.add(replace(image(store, "p"), role="member"))
    (file,) = (tmp_path / "images").iterdir()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data) if damage == "flip" else file.unlink()
    with pytest.raises(CorruptImageError, match=file.stem):
        store.load("member")


CRASH = """
import os, sys
from pathlib import Path
import numpy as np
from sqlalchemy import event
from busgen_client.admission import NewImage
from busgen_client.cohort import CohortStore
from busgen_client.database import open_store
from busgen_client.pseudonyms import MEMBER_SHARE
from busgen_core.labels import Pathology

data = Path(sys.argv[1])
engine = open_store(data)
store = CohortStore(engine, data)
gray = np.arange(4096, dtype=np.uint8).reshape(64, 64)
with store.intake():
    event.listen(engine, "commit", lambda _: os._exit(9))
    store.add(NewImage(gray=gray, patient_key=store.pseudonyms.patient_key("p"), pathology=Pathology.BENIGN, box=None, device="", source_key="s"))
"""


def test_crash_between_file_and_row_leaves_no_half_object(store: CohortStore, tmp_path: Path) -> None:
    """A process that dies after the file and before the commit leaves no row; the next intake sweeps its file and frees the lock."""
    done = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path)], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=False)
    assert done.returncode == 9
    assert len(list((tmp_path / "images").iterdir())) == 1
    assert (store.count_patients("member"), store.count_patients("holdout")) == (0, 0)
    with store.intake():
        assert list((tmp_path / "images").iterdir()) == []


def folder_check(node: NodeSettings) -> bool:
    (found,) = [row["ok"] for row in examine(node, hub=False) if row["check"] == "folder"]
    return bool(found)


def test_the_data_folder_is_closed_to_others(node: NodeSettings, tmp_path: Path) -> None:
    """Whatever the umask, and whatever mode the folder had, nobody else can enter it once the store was opened, and doctor says so."""
    old = os.umask(0o022)
    try:
        open_store(tmp_path / "new").dispose()
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
        for mode in (0o777, 0o755, 0o710):
            node.data.chmod(mode)
            open_store(node.data).dispose()
            assert node.data.stat().st_mode & 0o777 == 0o700
        assert folder_check(node)
    finally:
        os.umask(old)


def test_a_data_folder_of_somebody_else_is_named_by_doctor(node: NodeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the mode cannot be changed the node works on, and doctor says that other users can enter."""
    open_store(node.data).dispose()
    node.data.chmod(0o755)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    assert not folder_check(node)


def test_two_intakes_do_not_run_at_once(store: CohortStore) -> None:
    """The second is told to wait."""
    with store.intake(), pytest.raises(StateError, match="another intake"), store.intake():
        pass


def test_corrupt_database_is_our_error(store: CohortStore, engine: Engine, tmp_path: Path) -> None:
    """A database file that is none ends in UnavailableError, whatever is asked of it."""
    store.add(image(store, "p"))
    engine.dispose()
    for file in tmp_path.glob("node.sqlite*"):
        file.write_bytes(b"not a database " * 4096)
    for ask in (store.summary, lambda: store.load("member"), lambda: store.add(image(store, "q")), lambda: CohortStore(engine, tmp_path)):
        with pytest.raises(UnavailableError):
            ask()


def test_small_cells_are_suppressed(store: CohortStore) -> None:
    """Four patients are not shown, five are, and a cell without patients looks like one with four."""
    for n in range(4):
        store.add(replace(image(store, f"m{n}", pathology=Pathology.MALIGNANT), role="member"))
    for n in range(5):
        for number in range(2):
            store.add(replace(image(store, f"b{n}", number), role="member"))
    summary = store.summary()
    assert summary.patients["member"] == {Pathology.NORMAL: None, Pathology.BENIGN: 5, Pathology.MALIGNANT: None}
    assert summary.images["member"] == {Pathology.NORMAL: None, Pathology.BENIGN: 10, Pathology.MALIGNANT: None}


def test_quarantine_holds_an_object_once_and_lets_it_go(store: CohortStore, engine: Engine) -> None:
    """A second look replaces the reason; admission lifts it."""
    store.quarantine("k", code="label-missing", reason="a")
    store.quarantine("k", code="label-unknown", reason="b")
    assert store.summary().quarantined == {"label-unknown": 1}
    store.add(image(store, "p"), clears="k")
    with Session(engine) as session:
        assert session.scalars(select(QuarantineRow)).all() == []


def test_an_answer_imports_nothing_heavy() -> None:
    """Flower starts a process for each message; what answers it must not cost seconds."""
    code = "import sys, busgen_client.flower_app; sys.exit(bool({'torch', 'scipy', 'pandas', 'diffusers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=False).returncode == 0
