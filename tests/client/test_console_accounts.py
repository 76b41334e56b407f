"""Who may use the console: passwords, one-time codes, sessions, and how often one may try."""

import time
from collections.abc import Iterator
from pathlib import Path

import pyotp
import pytest
from sqlalchemy import Engine

from busgen_client.console import accounts as module
from busgen_client.console.accounts import Account, Accounts
from busgen_client.console.roles import Role
from busgen_client.console.sessions import IDLE_SECONDS, LONGEST_SECONDS, Sessions, Tries
from busgen_client.database import open_store
from busgen_core.errors import InputError, StateError

PASSWORD = "a sentence for tests"
NOW = 1_900_000_000  # seconds since 1970; the beginning of a step


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_store(tmp_path)
    yield engine
    engine.dispose()


@pytest.fixture
def people(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Accounts:
    monkeypatch.setattr(module.time, "time", lambda: NOW)
    return Accounts(engine)


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


def test_no_password_is_on_the_disk(people: Accounts, code: pyotp.TOTP, tmp_path: Path) -> None:
    """The store holds an argon2id hash of 64 MiB, and the password nowhere."""
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"$argon2id$v=19$m=65536,t=3,p=4$" in stored
    assert PASSWORD.encode() not in stored


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
