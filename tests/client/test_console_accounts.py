"""Who may use the console: passwords, one-time codes, sessions, and how often one may try."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyotp
import pytest
from sqlalchemy import Engine

from busgen_client.cohort import CohortStore
from busgen_client.cohort_files import encrypt, verify
from busgen_client.console import accounts as module
from busgen_client.console.accounts import Account, Accounts
from busgen_client.console.app import create_app
from busgen_client.console.roles import Role
from busgen_client.console.sessions import IDLE_SECONDS, LONGEST_SECONDS, Sessions, Tries
from busgen_client.database import open_store
from busgen_client.storage import MAGIC, StorageSettings, Vault
from busgen_core.errors import InputError, SealError, StateError, StorageKeyError
from tests.client.node import lay_out

PASSWORD = "a sentence for tests"
NOW = 1_900_000_000  # seconds since 1970; the beginning of a step


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_store(tmp_path)
    yield engine
    engine.dispose()


@pytest.fixture
def people(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Accounts:
    monkeypatch.setattr(module.time, "time", lambda: NOW)
    return Accounts(sealed(engine, tmp_path))


def sealed(engine: Engine, data: Path) -> CohortStore:
    return CohortStore(engine, data, vault=Vault(data, StorageSettings()))


def stored(data: Path) -> bytes:
    """All bytes of the data folder: the store, its log, and all other files."""
    return b"".join(file.read_bytes() for file in data.rglob("*") if file.is_file())


@pytest.fixture
def code(people: Accounts) -> pyotp.TOTP:
    return pyotp.TOTP(people.add("ada", Role.STEWARD, PASSWORD))


def test_name_password_and_code_together_open(people: Accounts, code: pyotp.TOTP) -> None:
    """All three right give the account; any of them wrong gives nothing."""
    now = code.at(NOW)
    for wrong in (("eve", PASSWORD, now), ("ada", PASSWORD + "x", now), ("ada", PASSWORD, code.at(NOW + 90)), ("ada", PASSWORD, ""), ("", "", "")):
        assert people.check(*wrong) is None
    assert people.check("ada", PASSWORD, now) == Account(name="ada", role=Role.STEWARD)


def test_a_code_works_once(people: Accounts, code: pyotp.TOTP) -> None:
    """Nor does an earlier one work after a later one."""
    assert people.check("ada", PASSWORD, code.at(NOW))
    assert people.check("ada", PASSWORD, code.at(NOW)) is None
    assert people.check("ada", PASSWORD, code.at(NOW - 30)) is None
    assert people.check("ada", PASSWORD, code.at(NOW + 30))


def test_a_wrong_password_does_not_use_the_code_up(people: Accounts, code: pyotp.TOTP) -> None:
    """Who types the password wrong may take the same code again."""
    assert people.check("ada", "another sentence", code.at(NOW)) is None
    assert people.check("ada", PASSWORD, code.at(NOW))


@pytest.mark.parametrize(("late", "opens"), [(-60, False), (-30, True), (29, True), (60, False)])
def test_a_clock_may_be_half_a_minute_off(people: Accounts, code: pyotp.TOTP, late: int, opens: bool) -> None:
    """One step before and after, and no more."""
    assert (people.check("ada", PASSWORD, code.at(NOW + late)) is not None) is opens


def test_no_password_and_no_secret_is_on_the_disk(people: Accounts, code: pyotp.TOTP, tmp_path: Path) -> None:
    """The store holds an argon2id hash of 64 MiB; password and secret of the codes are nowhere in the data folder."""
    assert b"$argon2id$v=19$m=65536,t=3,p=4$" in stored(tmp_path)
    assert PASSWORD.encode() not in stored(tmp_path)
    assert code.secret.encode() not in stored(tmp_path)


def test_a_site_that_seals_nothing_keeps_secrets_in_the_store(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With key = none an account works as ever, no file and no key appears, and there is nothing to seal."""
    monkeypatch.setattr(module.time, "time", lambda: NOW)
    people = Accounts(CohortStore(engine, tmp_path))
    secret = people.add("ada", Role.STEWARD, PASSWORD)
    assert people.secrets.seal() == 0
    assert secret.encode() in stored(tmp_path)
    assert not (tmp_path / "accounts").exists()
    assert not (tmp_path / "storage.json").exists()
    assert people.check("ada", PASSWORD, pyotp.TOTP(secret).at(NOW))


def test_a_removed_account_leaves_no_secret_in_the_store(engine: Engine, tmp_path: Path) -> None:
    """Also where the site seals nothing, a deleted row's bytes are overwritten once the log is written back."""
    people = Accounts(CohortStore(engine, tmp_path))
    secret = people.add("ada", Role.STEWARD, PASSWORD).encode()
    people.remove("ada")
    engine.dispose()  # the last to leave writes the log back
    assert secret not in stored(tmp_path)


def test_secrets_from_before_are_sealed_at_the_start(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The console seals them as it starts; no byte of them is left in the store, its log or elsewhere; the same codes open."""
    monkeypatch.setattr(module.time, "time", lambda: NOW)
    secrets = {name: Accounts(CohortStore(engine, tmp_path)).add(name, Role.STEWARD, PASSWORD) for name in ("ada", "bea")}
    assert all(secret.encode() in stored(tmp_path) for secret in secrets.values())
    store = sealed(engine, tmp_path)
    assert verify(store, progress=False).counts() == {"unsealed": 2}
    create_app(lay_out(tmp_path), store)
    assert not any(secret.encode() in stored(tmp_path) for secret in secrets.values())
    assert all(Accounts(store).check(name, PASSWORD, pyotp.TOTP(secret).at(NOW)) for name, secret in secrets.items())
    assert verify(store, progress=False).found == ()


def test_a_new_data_key_reaches_secrets(engine: Engine, people: Accounts, code: pyotp.TOTP, tmp_path: Path) -> None:
    """After a rotation they are under the new key, the old one is gone, files of no account too; the same codes open."""
    (tmp_path / "accounts" / "gone.secret").write_bytes(b"x")
    before = (tmp_path / "accounts" / "ada.secret").read_bytes()
    assert encrypt(sealed(engine, tmp_path), tmp_path, rotate=True, progress=False) == 1
    assert [file.name for file in (tmp_path / "accounts").iterdir()] == ["ada.secret"]
    assert (tmp_path / "accounts" / "ada.secret").read_bytes()[:22] != before[:22]
    assert len(json.loads((tmp_path / "storage.json").read_text())["keys"]) == 1
    assert people.check("ada", PASSWORD, code.at(NOW))


@pytest.mark.parametrize("lost", ["keys/storage.key", "storage.json"])
def test_without_the_key_nobody_gets_in(people: Accounts, code: pyotp.TOTP, engine: Engine, tmp_path: Path, lost: str) -> None:
    """Any login ends in the named error, right or wrong, so none tells which; no key is made anew, and nothing is used up."""
    (tmp_path / lost).rename(tmp_path / "kept")
    for name, password in (("ada", PASSWORD), ("ada", "another password"), ("nobody", PASSWORD)):
        with pytest.raises(StorageKeyError):
            Accounts(sealed(engine, tmp_path)).check(name, password, code.at(NOW))
    assert not (tmp_path / lost).exists()
    (tmp_path / "kept").rename(tmp_path / lost)
    assert Accounts(sealed(engine, tmp_path)).check("ada", PASSWORD, code.at(NOW))


def test_the_console_names_a_missing_key(people: Accounts, code: pyotp.TOTP, engine: Engine, tmp_path: Path) -> None:
    """Who signs in reads what is missing, on a page, and not that something unexpected happened."""
    (tmp_path / "keys" / "storage.key").unlink()
    console = httpx.ASGITransport(app=create_app(lay_out(tmp_path), sealed(engine, tmp_path)))

    async def sign_in() -> httpx.Response:
        form = {"name": "ada", "password": PASSWORD, "code": code.at(NOW)}
        async with httpx.AsyncClient(transport=console, base_url="http://localhost") as browser:
            return await browser.post("/sign-in", data=form, headers={"origin": "http://localhost", "accept": "text/html"})

    answer = asyncio.run(sign_in())
    assert answer.status_code == 409
    assert "storage-key" in answer.text
    assert "torage.key is missing" in answer.text  # a sentence, so it begins with a capital


def test_a_secret_works_for_its_own_account_alone(people: Accounts, code: pyotp.TOTP, tmp_path: Path) -> None:
    """A secret that was put in another's place opens nothing: it is refused by name, and 'verify' finds it."""
    people.add("bea", Role.OFFICER, PASSWORD)
    (tmp_path / "accounts" / "bea.secret").write_bytes((tmp_path / "accounts" / "ada.secret").read_bytes())
    with pytest.raises(SealError):
        people.check("bea", PASSWORD, code.at(NOW))
    (tmp_path / "accounts" / "ada.secret").unlink()
    with pytest.raises(SealError, match="missing"):
        people.check("ada", PASSWORD, code.at(NOW))


def test_lost_and_changed_secrets_are_found(people: Accounts, code: pyotp.TOTP, engine: Engine, tmp_path: Path) -> None:
    """A file that is missing, damaged or too many is named; a removed account leaves none behind."""
    for name in ("bea", "eva", "ivy"):
        people.add(name, Role.OFFICER, PASSWORD)
    people.remove("ivy")
    folder = tmp_path / "accounts"
    (folder / "bea.secret").unlink()
    (folder / "eva.secret").write_bytes(MAGIC)
    (folder / "zoe.secret").write_bytes((folder / "ada.secret").read_bytes())
    found = set(verify(sealed(engine, tmp_path), progress=False).found)
    assert found == {
        ("missing", "accounts/bea.secret"),
        ("damaged", "accounts/eva.secret"),
        ("damaged", "accounts/zoe.secret"),
        ("orphan", "accounts/zoe.secret"),
    }


@pytest.mark.parametrize(("name", "password"), [("", PASSWORD), ("Ada", PASSWORD), ("<b>", PASSWORD), ("a" * 40, PASSWORD), ("ada", "short")])
def test_bad_names_and_passwords_make_no_account(people: Accounts, name: str, password: str) -> None:
    """A name is plain, a password is long."""
    with pytest.raises(InputError):
        people.add(name, Role.OFFICER, password)
    assert people.all() == []


def test_an_account_is_made_once_and_can_be_removed(people: Accounts, code: pyotp.TOTP) -> None:
    """A second of the same name is refused; a removed one opens nothing."""
    with pytest.raises(StateError):
        people.add("ada", Role.OFFICER, PASSWORD)
    people.remove("ada")
    assert people.check("ada", PASSWORD, code.at(NOW)) is None
    with pytest.raises(StateError):
        people.remove("ada")


def test_a_stranger_takes_as_long_as_a_wrong_password(people: Accounts, code: pyotp.TOTP) -> None:
    """Whether a name exists does not show in the time: both cost one hash. Without it a stranger takes under a hundredth."""

    def fastest(name: str) -> float:
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            people.check(name, "another sentence", "000000")
            taken.append(time.perf_counter() - start)
        return min(taken)

    assert 0.2 < fastest("nobody") / fastest("ada") < 5


def test_sessions_end() -> None:
    """By signing out, after a quarter of an hour unused, and after eight hours whatever happens; an unknown cookie is nobody's."""
    now = [0.0]
    sessions = Sessions(clock=lambda: now[0])
    out, idle, busy = (sessions.begin("ada") for _ in range(3))
    assert len({out, idle, busy}) == 3
    sessions.end(out)
    assert sessions.find(out) is None
    while now[0] < LONGEST_SECONDS - IDLE_SECONDS:
        now[0] += IDLE_SECONDS / 2
        assert sessions.find(busy)
    assert sessions.find(idle) is None
    now[0] = LONGEST_SECONDS
    assert sessions.find(busy) is None
    assert sessions.find("") is None


def test_tries_are_counted_by_name_and_together() -> None:
    """Five of one name, sixty of all; a right one clears its own name only."""
    tries = Tries()
    assert [tries.another("ada") for _ in range(6)] == [True] * 5 + [False]
    assert tries.another("bea")
    tries.forgive("ada")
    assert tries.another("ada")
    assert sum(tries.another(f"name {number}") for number in range(100)) < 60
