"""Files at rest: what opens, what does not, and where the key comes from."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.errors import PasswordDeleteError

from busgen_client import storage, storage_keys
from busgen_client.storage import MAGIC, OVERHEAD, StorageSettings, Vault
from busgen_core.errors import BusgenError, ConfigError, SealError, StateError, StorageKeyError, UnavailableError
from busgen_core.files import create_once

CONTENT = b"a scan of somebody"


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path, StorageSettings())


def key_names(data: Path) -> list[str]:
    return [key["id"] for key in json.loads((data / "storage.json").read_text())["keys"]]


def with_passphrase(folder: Path, text: str) -> StorageSettings:
    file = folder / f"{text}.txt"
    file.write_text(text + "\n")
    return StorageSettings(key="passphrase", passphrase_file=file)


class Memory(KeyringBackend):
    """A key store that forgets with the process."""

    priority = 1

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.held.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.held[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        if self.held.pop((service, username), None) is None:
            raise PasswordDeleteError


@pytest.fixture
def key_store() -> Iterator[Memory]:
    before, memory = keyring.get_keyring(), Memory()
    keyring.set_keyring(memory)
    yield memory
    keyring.set_keyring(before)


def test_what_was_sealed_opens_in_its_place(vault: Vault) -> None:
    """The content comes back; it is not in the sealed bytes; sealing twice gives other bytes, and adds what it says."""
    sealed, again = (vault.seal(CONTENT, role="image", name="a") for _ in range(2))
    assert vault.open(sealed, role="image", name="a") == CONTENT
    assert CONTENT not in sealed
    assert sealed != again
    assert len(sealed) == len(CONTENT) + OVERHEAD


def test_every_flipped_bit_is_refused(vault: Vault) -> None:
    """No sealed file with one bit changed opens; all bits are tried."""
    sealed = vault.seal(b"x", role="image", name="a")
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((SealError, StorageKeyError)):
            vault.open(bytes(changed), role="image", name="a")


def test_every_cut_is_refused(vault: Vault) -> None:
    """No beginning of a sealed file opens."""
    sealed = vault.seal(CONTENT, role="image", name="a")
    for length in range(len(sealed)):
        with pytest.raises(SealError):
            vault.open(sealed[:length], role="image", name="a")


@pytest.mark.parametrize("place", [("image", "b"), ("spool", "a"), ("imagea", ""), ("", "imagea")])
def test_a_swapped_file_is_refused(vault: Vault, place: tuple[str, str]) -> None:
    """A file sealed for one role and name opens for no other, also where both run together the same."""
    with pytest.raises(SealError):
        vault.open(vault.seal(CONTENT, role="image", name="a"), role=place[0], name=place[1])


def test_another_process_opens_it(tmp_path: Path, vault: Vault) -> None:
    """The key outlives the vault; its file is for the owner only, and neither it nor storage.json holds the data key in clear."""
    vault.write(tmp_path / "f", CONTENT, role="r")
    assert Vault(tmp_path, StorageSettings()).read(tmp_path / "f", role="r") == CONTENT
    key_file = tmp_path / "keys" / "storage.key"
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert key_file.read_bytes().hex() not in (tmp_path / "storage.json").read_text()


KEYS = {"missing": None, "short": b"x", "another": b"y" * 32, "readable by all": 0o644}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_a_wrong_key_is_refused_and_nothing_overwritten(tmp_path: Path, vault: Vault, key: bytes | int | None) -> None:
    """Reading and writing end in the named error; file, key and storage.json stay as they are."""
    vault.write(tmp_path / "f", CONTENT, role="r")
    file = tmp_path / "keys" / "storage.key"
    if isinstance(key, int):
        file.chmod(key)
    else:
        file.unlink()
        if key is not None:
            create_once(file, key)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for ask in (lambda v: v.read(tmp_path / "f", role="r"), lambda v: v.write(tmp_path / "f", b"new", role="r"), Vault.check, Vault.rotate):
        with pytest.raises(StorageKeyError):
            ask(Vault(tmp_path, StorageSettings()))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_passphrase_opens_and_another_does_not(tmp_path: Path) -> None:
    """The same words open, other words are refused by name, and the words are nowhere in the data folder."""
    right, wrong = with_passphrase(tmp_path, "correct horse"), with_passphrase(tmp_path, "battery staple")
    Vault(tmp_path / "data", right).write(tmp_path / "data" / "f", CONTENT, role="r")
    assert Vault(tmp_path / "data", right).read(tmp_path / "data" / "f", role="r") == CONTENT
    with pytest.raises(StorageKeyError):
        Vault(tmp_path / "data", wrong).read(tmp_path / "data" / "f", role="r")
    assert not any(b"horse" in path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())


@pytest.mark.parametrize("content", [None, "", "\n"])
def test_no_passphrase_is_refused(tmp_path: Path, content: str | None) -> None:
    """A passphrase file that is missing or empty is refused before a key is made."""
    file = tmp_path / "p"
    if content is not None:
        file.write_text(content)
    with pytest.raises(StorageKeyError):
        Vault(tmp_path / "data", StorageSettings(key="passphrase", passphrase_file=file)).seal(b"", role="r", name="n")
    assert not (tmp_path / "data").exists()


def test_the_systems_key_store_holds_the_key(tmp_path: Path, key_store: Memory) -> None:
    """The key is made once in the key store, two nodes have two keys, and without it nothing opens."""
    settings = StorageSettings(key="keyring")
    for node in ("a", "b"):
        Vault(tmp_path / node, settings).write(tmp_path / node / "f", CONTENT, role="r")
        assert Vault(tmp_path / node, settings).read(tmp_path / node / "f", role="r") == CONTENT
    assert len(key_store.held) == 2
    key_store.held.clear()
    with pytest.raises(StorageKeyError, match="restore"):
        Vault(tmp_path / "a", settings).read(tmp_path / "a" / "f", role="r")
    assert not key_store.held


def test_a_new_data_key_leaves_old_files_readable(tmp_path: Path, vault: Vault) -> None:
    """After a rotation old files open and are not current; a key that is needed is kept, one that is not is dropped."""
    vault.write(tmp_path / "f", CONTENT, role="r")
    vault.rotate()
    fresh = Vault(tmp_path, StorageSettings())
    assert fresh.read(tmp_path / "f", role="r") == CONTENT
    assert not fresh.is_current((tmp_path / "f").read_bytes())
    assert fresh.forget_unused(tmp_path) == 0
    fresh.write(tmp_path / "f", CONTENT, role="r")
    assert fresh.forget_unused(tmp_path) == 1
    assert Vault(tmp_path, StorageSettings()).read(tmp_path / "f", role="r") == CONTENT


def test_a_site_may_seal_nothing_and_still_reads_no_sealed_file_unasked(tmp_path: Path, vault: Vault) -> None:
    """With key = none files are written as they are and no key is made; a sealed file is refused by name."""
    plain = Vault(tmp_path / "plain", StorageSettings(key="none"))
    plain.write(tmp_path / "plain" / "f", CONTENT, role="r")
    assert [path.name for path in (tmp_path / "plain").iterdir()] == ["f"]
    assert plain.read(tmp_path / "plain" / "f", role="r") == CONTENT
    vault.write(tmp_path / "f", CONTENT, role="r")
    with pytest.raises(StorageKeyError):
        Vault(tmp_path, StorageSettings(key="none")).read(tmp_path / "f", role="r")


def test_a_process_that_runs_on_sees_a_new_data_key(tmp_path: Path, vault: Vault) -> None:
    """After a rotation elsewhere, a vault that was opened before seals under the new key and opens what is sealed with it; nothing is lost."""
    vault.write(tmp_path / "f", CONTENT, role="r")
    other = Vault(tmp_path, StorageSettings())
    other.rotate()
    assert other.reseal(tmp_path / "f", role="r")
    assert other.forget_unused(tmp_path) == 1
    vault.write(tmp_path / "g", CONTENT, role="r")
    for name in ("f", "g"):
        assert vault.read(tmp_path / name, role="r") == Vault(tmp_path, StorageSettings()).read(tmp_path / name, role="r") == CONTENT


def test_a_rotation_in_the_midst_of_sealing_leaves_a_file_that_opens(tmp_path: Path, vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another process makes a new data key between the choice of the key and its use, head and ciphertext are still of one key."""
    vault.check()
    plain, other = os.urandom, Vault(tmp_path, StorageSettings())

    def rotated(size: int) -> bytes:
        monkeypatch.setattr(os, "urandom", plain)
        other.rotate()
        return plain(size)

    monkeypatch.setattr(os, "urandom", rotated)
    sealed = vault.seal(CONTENT, role="r", name="n")
    assert len(key_names(tmp_path)) == 2  # it was in the midst
    assert other.open(sealed, role="r", name="n") == CONTENT


def test_rotations_at_once_lose_no_key(tmp_path: Path, vault: Vault) -> None:
    """Of many data keys made at the same time, each is in storage.json afterwards, and what is sealed meanwhile opens."""
    vault.check()
    before, start, sealed = key_names(tmp_path), threading.Barrier(4), list[bytes]()

    def rotate() -> None:
        own = Vault(tmp_path, StorageSettings())
        start.wait()
        for _ in range(5):
            own.rotate()
            sealed.append(own.seal(CONTENT, role="r", name="n"))

    threads = [threading.Thread(target=rotate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = key_names(tmp_path)
    assert (len(names), names[:1]) == (21, before)
    assert [vault.open(each, role="r", name="n") for each in sealed] == [CONTENT] * 20


def test_a_file_read_just_before_a_rotation_still_opens(tmp_path: Path, vault: Vault) -> None:
    """Who has read a file's bytes, and opens them after they were sealed anew and the old key was dropped elsewhere, is not told of a missing key."""
    vault.write(tmp_path / "f", CONTENT, role="r")
    stored, other = (tmp_path / "f").read_bytes(), Vault(tmp_path, StorageSettings())
    other.rotate()
    assert other.reseal(tmp_path / "f", role="r")
    assert other.forget_unused(tmp_path) == 1
    assert vault.open(stored, role="r", name="f") == vault.read(tmp_path / "f", role="r") == CONTENT
    with pytest.raises(StorageKeyError):
        Vault(tmp_path, StorageSettings()).open(stored, role="r", name="f")


def test_no_key_is_dropped_while_a_file_is_being_sealed(tmp_path: Path, vault: Vault) -> None:
    """Dropping keys waits until a file that another process is sealing has its name."""
    vault.check()
    dropping = threading.Thread(target=Vault(tmp_path, StorageSettings()).forget_unused, args=(tmp_path,))
    with vault.sealing():
        dropping.start()
        dropping.join(0.3)
        assert dropping.is_alive()
    dropping.join(10)
    assert not dropping.is_alive()


def test_no_key_is_dropped_while_a_file_cannot_be_read(tmp_path: Path, vault: Vault) -> None:
    """A file that does not read may be sealed under any key, so all are kept; a link that leads nowhere is no such file."""
    vault.check()
    vault.rotate()
    (tmp_path / "unreadable").symlink_to("/proc/self/mem")  # its first byte cannot be read, by root neither
    with pytest.raises(UnavailableError, match="no key"):
        vault.forget_unused(tmp_path)
    assert len(key_names(tmp_path)) == 2
    (tmp_path / "unreadable").unlink()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    assert vault.forget_unused(tmp_path) == 1


@pytest.mark.parametrize("linked", [False, True])
def test_lost_keys_are_never_made_anew_beside_sealed_files(tmp_path: Path, vault: Vault, linked: bool) -> None:
    """Without storage.json, nothing makes another while a sealed file lies below the data folder, also behind a link."""
    folder = tmp_path / "quarantine"
    if linked:
        (tmp_path.parent / f"{tmp_path.name}-elsewhere").mkdir()
        folder.symlink_to(tmp_path.parent / f"{tmp_path.name}-elsewhere")
    else:
        folder.mkdir()
    vault.write(folder / "f", CONTENT, role="r")
    (tmp_path / "storage.json").unlink()
    fresh = Vault(tmp_path, StorageSettings())
    for ask in (fresh.check, lambda: fresh.seal(b"", role="r", name="n"), lambda: fresh.read(folder / "f", role="r")):
        with pytest.raises(StorageKeyError, match="backup"):
            ask()
    assert not (tmp_path / "storage.json").exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"not json"])
def test_a_damaged_list_of_keys_is_refused(tmp_path: Path, vault: Vault, content: bytes) -> None:
    """storage.json that does not parse is named, and is not replaced."""
    vault.check()
    (tmp_path / "storage.json").write_bytes(content)
    with pytest.raises(StorageKeyError, match=r"storage\.json"):
        Vault(tmp_path, StorageSettings()).seal(b"", role="r", name="n")
    assert (tmp_path / "storage.json").read_bytes() == content


RINGS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no key": lambda ring: ring["keys"].clear(),
    "a name that is not hexadecimal": lambda ring: ring["keys"][0].update(id="not hexadecimal!"),
    "a name cut short": lambda ring: ring["keys"][0].update(id=ring["keys"][0]["id"][:-2]),
    "a key that is not hexadecimal": lambda ring: ring["keys"][0].update(wrapped="x" * 120),
    "a key cut short": lambda ring: ring["keys"][0].update(wrapped=ring["keys"][0]["wrapped"][:-2]),
    "a salt that is not hexadecimal": lambda ring: ring.update(salt="salt"),
}


@pytest.mark.parametrize("damage", RINGS.values(), ids=RINGS)
def test_a_list_of_keys_with_odd_fields_is_refused(tmp_path: Path, vault: Vault, damage: Callable[[dict[str, Any]], object]) -> None:
    """storage.json that parses, and holds no key or what is none, is named by every way in, and is not replaced."""
    vault.write(tmp_path / "f", CONTENT, role="r")
    ring = json.loads((tmp_path / "storage.json").read_text())
    damage(ring)
    (tmp_path / "storage.json").write_text(json.dumps(ring))
    fresh = Vault(tmp_path, StorageSettings())
    asks = (fresh.check, fresh.rotate, lambda: fresh.seal(b"", role="r", name="n"), lambda: fresh.read(tmp_path / "f", role="r"))
    for ask in (*asks, lambda: fresh.forget_unused(tmp_path), lambda: fresh.is_current(b"")):
        with pytest.raises(StorageKeyError, match=r"storage\.json.*backup"):
            ask()
    assert json.loads((tmp_path / "storage.json").read_text()) == ring


NEW_KEYS: dict[str, Callable[[Path], StorageSettings]] = {
    "another file": lambda folder: StorageSettings(key_file=folder / "other.key"),
    "a passphrase": lambda folder: with_passphrase(folder, "correct horse"),
    "the key store": lambda _: StorageSettings(key="keyring"),
}


@pytest.mark.parametrize("new", NEW_KEYS.values(), ids=NEW_KEYS)
@pytest.mark.parametrize("old", NEW_KEYS.values(), ids=[f"from {name}" for name in NEW_KEYS])
def test_another_site_key_opens_all_and_the_old_one_nothing(
    tmp_path: Path,
    key_store: Memory,
    monkeypatch: pytest.MonkeyPatch,
    old: Callable[[Path], StorageSettings],
    new: Callable[[Path], StorageSettings],
) -> None:
    """After a change of the site's key every file opens as it lies, under each data key; the old key opens nothing; back and forth works."""
    monkeypatch.setattr(storage_keys, "MEMORY_KIB", 64)  # how long a passphrase is stretched is another test's
    data, first, second = tmp_path / "data", old(tmp_path), new(tmp_path)
    vault = Vault(data, first)
    vault.write(data / "f", CONTENT, role="r")
    vault.rotate()
    vault.write(data / "g", CONTENT, role="r")
    files = {name: (data / name).read_bytes() for name in ("f", "g")}
    if old is new:
        assert not vault.rekey(second)
        return
    running = Vault(data, first)
    running.check()
    assert vault.rekey(second)
    for name, stored in files.items():
        assert (data / name).read_bytes() == stored
        assert vault.read(data / name, role="r") == Vault(data, second).read(data / name, role="r") == CONTENT
    for late in (running, Vault(data, first)):
        with pytest.raises(StorageKeyError):
            late.read(data / "f", role="r")
    assert not Vault(data, first).rekey(second)  # once more, as after a crash: done already
    assert vault.rekey(first)
    assert Vault(data, first).read(data / "g", role="r") == CONTENT


REFUSED = {
    "none": (lambda _: StorageSettings(key="none"), ConfigError),
    "a passphrase that is not there": (lambda folder: StorageSettings(key="passphrase", passphrase_file=folder / "p"), StorageKeyError),
    "a key that all can read": (lambda folder: StorageSettings(key_file=readable(folder / "k")), StorageKeyError),
}


def readable(file: Path) -> Path:
    file.write_bytes(bytes(32))
    file.chmod(0o644)
    return file


@pytest.mark.parametrize(("new", "error"), REFUSED.values(), ids=REFUSED)
def test_a_change_to_no_good_key_changes_nothing(
    tmp_path: Path, vault: Vault, new: Callable[[Path], StorageSettings], error: type[BusgenError]
) -> None:
    """A new key that is none, missing or open to others is refused by name; so is any with a wrong old key, and one where nothing is sealed."""
    vault.write(tmp_path / "f", CONTENT, role="r")
    before = (tmp_path / "storage.json").read_bytes()
    with pytest.raises(error):
        vault.rekey(new(tmp_path))
    with pytest.raises(StorageKeyError):
        Vault(tmp_path, StorageSettings(key_file=tmp_path / "wrong.key")).rekey(StorageSettings(key_file=tmp_path / "new.key"))
    with pytest.raises(StateError):
        Vault(tmp_path / "fresh", StorageSettings()).rekey(StorageSettings(key_file=tmp_path / "new.key"))
    assert (tmp_path / "storage.json").read_bytes() == before
    assert not (tmp_path / "new.key").exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_change_that_dies_leaves_one_key_that_opens(tmp_path: Path, vault: Vault, monkeypatch: pytest.MonkeyPatch, replaced: bool) -> None:
    """Before storage.json is replaced the old key is the key, after it the new one is; the same call finishes it."""
    vault.write(tmp_path / "f", CONTENT, role="r")
    old, new = StorageSettings(), StorageSettings(key_file=tmp_path / "new.key")
    plain_write = storage.write_durably

    def dying(path: Path, content: bytes) -> None:
        if replaced:
            plain_write(path, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "write_durably", dying)
    with pytest.raises(KeyboardInterrupt):
        vault.rekey(new)
    monkeypatch.undo()
    right, wrong = (new, old) if replaced else (old, new)
    assert Vault(tmp_path, right).read(tmp_path / "f", role="r") == CONTENT
    with pytest.raises(StorageKeyError):
        Vault(tmp_path, wrong).read(tmp_path / "f", role="r")
    assert Vault(tmp_path, old).rekey(new) is not replaced
    assert Vault(tmp_path, new).read(tmp_path / "f", role="r") == CONTENT


def test_settings_that_do_not_fit_together_are_refused() -> None:
    """A passphrase file without key = passphrase, and the other way round, is a mistake."""
    for wrong in ({"key": "passphrase"}, {"passphrase_file": "p"}):
        with pytest.raises(ValueError, match="belongs"):
            StorageSettings.model_validate(wrong)


def test_errors_are_ours() -> None:
    """Codes are stable: people search for them."""
    assert (StorageKeyError.code, SealError.code, ConfigError.code) == ("storage-key", "seal-broken", "config-invalid")
    assert issubclass(StorageKeyError, BusgenError)
    assert len(MAGIC) == 14


OTHER = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as store:
    store.execute("insert into t values (1)")
store.close()
"""


def test_looking_through_the_folder_leaves_the_store_s_locks(tmp_path: Path) -> None:
    """Making keys and dropping them reads every file's head but the store's: else SQLite would lose its locks on it, another process that closes the
    store would delete the log, and what either wrote afterwards would be lost to the other."""
    store = sqlite3.connect(tmp_path / "node.sqlite")
    try:
        store.execute("PRAGMA journal_mode=WAL")
        store.execute("create table t (a)")
        store.commit()
        vault = Vault(tmp_path, StorageSettings())
        vault.check()
        vault.rotate()
        assert vault.forget_unused(tmp_path) == 1
        log = (tmp_path / "node.sqlite-wal").stat().st_ino
        subprocess.run([sys.executable, "-c", OTHER, str(tmp_path / "node.sqlite")], check=True)
        assert (tmp_path / "node.sqlite-wal").stat().st_ino == log
        assert store.execute("select count(*) from t").fetchone() == (1,)
    finally:
        store.close()
