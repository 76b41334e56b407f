"""Files at rest: sealed with AES-256-GCM under a key that lies elsewhere, or comes from a passphrase or the system's key store.

A sealed file is ``MAGIC | key id, 8 bytes | nonce, 12 bytes | ciphertext and tag``. Its role and name are associated data, so a sealed file
opens under no other name and in no other role. ``storage.json`` in the data folder holds the data keys, wrapped by the site's key: another
passphrase needs no file to be written anew (``rekey``), and a data key can be replaced (``rotate``) while files under the old one stay readable.

Guarantees: each file has a fresh random nonce (NIST SP 800-38D, 8.2.2: at most 2^32 files a data key); what opens is, bit for bit, what was
sealed; a wrong or missing key is refused before anything is written. Not hidden: names, sizes and times of files, and the rows of node.sqlite.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from busgen_client.database import STORE_FILE
from busgen_client.storage_keys import (
    ID_BYTES,
    NO_KEY,
    NONCE_BYTES,
    TAG_BYTES,
    KeyRing,
    StorageSettings,
    fresh_data_key,
    site_key,
    unwrapped,
    wrapped,
)
from busgen_core.errors import ConfigError, SealError, StateError, StorageKeyError, UnavailableError
from busgen_core.files import create_once, write_durably

__all__ = ["MAGIC", "OVERHEAD", "StorageSettings", "Vault"]

MAGIC = b"BUSGEN-SEAL-1\n"
OVERHEAD = len(MAGIC) + ID_BYTES + NONCE_BYTES + TAG_BYTES  # bytes that sealing adds
KEYRING_FILE, LOCK_FILE = "storage.json", "storage.lock"


class Vault:
    """Seals and opens files. Opened at first use, so that who reads no file needs no key.

    Args:
        data: The node's data folder.
        settings: Where the key comes from.

    Raises (every method that needs the key):
        StorageKeyError: the key is missing, readable by others, or not the one these files were sealed with. Nothing was written.
        ConfigError: the system's key store is not there.
    """

    def __init__(self, data: Path, settings: StorageSettings) -> None:
        self._data, self._file, self._settings = data, data / KEYRING_FILE, settings
        self._read: tuple[tuple[int, int, int], KeyRing, dict[bytes, AESGCM]] | None = None
        self._known: tuple[str, bytes] | None = None

    @property
    def begun(self) -> bool:
        """Whether keys were ever made here."""
        return self._file.exists()

    @property
    def seals(self) -> bool:
        """Whether what is written is sealed."""
        return self._settings.key != "none"

    def seal(self, content: bytes, *, role: str, name: str) -> bytes:
        """Encrypt ``content`` for one place: a role and a name in it; as it is where the site seals nothing."""
        if not self.seals:
            return content
        ring, keys = self._now()  # looked up once: a rotation may fall between two looks
        current = bytes.fromhex(ring.keys[-1].id)
        head, nonce = MAGIC + current, os.urandom(NONCE_BYTES)
        return head + nonce + keys[current].encrypt(nonce, content, _bound(head, role, name))

    def open(self, sealed: bytes, *, role: str, name: str) -> bytes:
        """Decrypt what ``seal`` gave.

        Raises:
            SealError: not sealed, cut short, changed, or sealed for another place.
        """
        if not sealed.startswith(MAGIC) or len(sealed) < OVERHEAD:
            raise SealError("a stored file is cut short, or is not sealed; restore it from the backup")
        head, rest = sealed[: len(MAGIC) + ID_BYTES], sealed[len(MAGIC) + ID_BYTES :]
        cipher = self._now()[1].get(head[len(MAGIC) :])
        if cipher is None:
            raise StorageKeyError("a stored file was sealed with a key that storage.json does not have; restore both from one backup")
        try:
            return cipher.decrypt(rest[:NONCE_BYTES], rest[NONCE_BYTES:], _bound(head, role, name))
        except InvalidTag:
            raise SealError("a stored file was changed, or lies under another's name; restore it from the backup") from None

    def opened(self, stored: bytes, *, role: str, name: str) -> bytes:
        """The content of a stored file; one from before sealing was switched on is as it is.

        Raises:
            SealError: as ``open``.
        """
        return self.open(stored, role=role, name=name) if stored.startswith(MAGIC) else stored

    def write(self, path: Path, content: bytes, *, role: str, name: str = "") -> None:
        """Seal ``content`` and write it so that its file's name appears only with all bytes behind it, on the disk.

        Args:
            path: The file.
            content: What it shall hold.
            role: What it is sealed for.
            name: The name that it is sealed for, if its file has another.

        Raises:
            StorageFullError: no room; what was there before still is.
        """
        with self.sealing():
            write_durably(path, self.seal(content, role=role, name=name or path.name))

    @contextmanager
    def sealing(self) -> Iterator[None]:
        """From ``seal`` until its file has its name: no data key is dropped meanwhile, in any process (``forget_unused``)."""
        if not self.seals:
            yield
            return
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        self._data.mkdir(parents=True, exist_ok=True)
        with (self._data / LOCK_FILE).open("a") as lock:
            fcntl.flock(lock, how)
            yield

    def read(self, path: Path, *, role: str, name: str = "") -> bytes:
        """What ``write`` wrote, with the same arguments, or ``opened`` gives.

        Raises:
            SealError: as ``open``.
            OSError: the file cannot be read.
        """
        return self.opened(path.read_bytes(), role=role, name=name or path.name)

    def is_current(self, stored: bytes) -> bool:
        """Whether a stored file is as it would be written now: sealed under the newest key."""
        return stored[: len(MAGIC) + ID_BYTES] == MAGIC + self._current if self.seals else not stored.startswith(MAGIC)

    def reseal(self, path: Path, *, role: str, name: str = "") -> bool:
        """Seal a file as it would be sealed now; False if it is so already, or gone. The new one takes its place in one step, and keeps its time.

        Raises:
            SealError, StorageKeyError: it does not open; it is left as it is.
        """
        name = name or path.name
        with self.sealing():
            try:
                state, stored = path.stat(), path.read_bytes()
            except FileNotFoundError:
                return False
            if self.is_current(stored):
                return False
            write_durably(path, self.seal(self.opened(stored, role=role, name=name), role=role, name=name))
            os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
            return True

    def check(self) -> None:
        """Return only if the site's key opens the data keys; makes both at first use."""
        if self.seals or self._file.exists():
            self._now()

    def rotate(self) -> None:
        """Seal with a fresh data key from now on; what was sealed before still opens."""
        self.check()
        with self._locked(fcntl.LOCK_EX):
            ring, _ = self._now()
            self._save(ring.model_copy(update={"keys": [*ring.keys, fresh_data_key(self._key_for(ring))]}))

    def rekey(self, settings: StorageSettings) -> bool:
        """Put the data keys under another site's key, in one step: until then the old one opens them, and from then on the new one.

        No sealed file changes. A new key that is not there yet is made, as at first use; the old one stays where it is.

        Args:
            settings: Where the new key comes from; this vault goes on with them.

        Returns:
            Whether anything was changed: not where the data keys are under that key already, as after a crash.

        Raises:
            ConfigError: the new key is ``none``.
            StateError: there are no data keys yet.
            StorageKeyError: the old or the new key is missing or wrong; nothing was changed.
        """
        if settings.key == "none":
            raise ConfigError("the new key cannot be none, since what is sealed needs one")
        if not self.begun:
            raise StateError("nothing was ever sealed here, so there is no key to change; say in node.toml where the new one is")
        if Vault(self._data, settings)._opens():
            return False
        self.check()
        with self._locked(fcntl.LOCK_EX):
            self._save(self._under(settings))
        self._settings = settings
        return True

    def _under(self, settings: StorageSettings) -> KeyRing:
        """The same data keys under the site's key that other settings name."""
        (ring, _), fresh = self._now(), KeyRing.empty()
        old, new = self._key_for(ring), site_key(settings, self._data, fresh, create=True)
        return fresh.model_copy(update={"keys": [wrapped(unwrapped(key, old), new, name=bytes.fromhex(key.id)) for key in ring.keys]})

    def _opens(self) -> bool:
        try:
            self.check()
        except StorageKeyError:
            return False
        return True

    def forget_unused(self, data: Path) -> int:
        """Drop the data keys under which no file below ``data`` is sealed, and not the newest; how many.

        Raises:
            UnavailableError: a file or folder below ``data`` cannot be read; no key was dropped.
        """
        with self._locked(fcntl.LOCK_EX):
            (ring, _), used = self._now(), _heads(data)
            keys = [key for key in ring.keys[:-1] if MAGIC + bytes.fromhex(key.id) in used] + ring.keys[-1:]
            if len(keys) < len(ring.keys):
                self._save(ring.model_copy(update={"keys": keys}))
            return len(ring.keys) - len(keys)

    def _save(self, ring: KeyRing) -> None:
        write_durably(self._file, ring.model_dump_json(indent=1).encode())

    @property
    def _current(self) -> bytes:
        return bytes.fromhex(self._now()[0].keys[-1].id)

    def _now(self) -> tuple[KeyRing, dict[bytes, AESGCM]]:
        """``storage.json`` as it is now: another process may have put a new data key into it."""
        if not self._file.exists():
            if not self.seals:
                raise StorageKeyError(NO_KEY)
            self._begin()
        state = self._file.stat()
        version = (state.st_ino, state.st_mtime_ns, state.st_size)
        if self._read is None or self._read[0] != version:
            ring, known = KeyRing.at(self._file), {} if self._read is None else self._read[2]  # whoever read a file just now may need a dropped key
            self._read = version, ring, known | {bytes.fromhex(key.id): AESGCM(unwrapped(key, self._key_for(ring))) for key in ring.keys}
        return self._read[1], self._read[2]

    def _begin(self) -> None:
        """Make the first keys; where two processes begin at once, one of them wins and both read the same.

        Never beside files that were sealed with others.
        """
        if any(head.startswith(MAGIC) for head in _heads(self._data)):
            raise StorageKeyError("storage.json is missing, and stored files are sealed; restore it from the backup, nothing opens without it")
        ring = KeyRing.empty()
        ring.keys.append(fresh_data_key(site_key(self._settings, self._data, ring, create=True)))
        create_once(self._file, ring.model_dump_json(indent=1).encode())

    def _key_for(self, ring: KeyRing) -> bytes:
        """The site's key, read once for each that the data keys were put under: a passphrase is stretched for long."""
        if self._known is None or self._known[0] != ring.name:
            self._known = ring.name, site_key(self._settings, self._data, ring, create=False)
        return self._known[1]


def _heads(data: Path) -> set[bytes]:
    """How the files below a folder begin, links followed.

    The store's own files are passed over, and not for speed: who opens and closes one drops every lock that SQLite holds on it in this process
    (POSIX advisory locks), and then another process deletes the log that we still write to.

    Raises:
        UnavailableError: a file or folder cannot be read, so nobody knows which keys are needed.
    """
    try:
        walk = os.walk(data, onerror=_unless_gone, followlinks=True)
        return {_head(Path(folder) / name) for folder, _, names in walk for name in names if not name.startswith(STORE_FILE)}
    except OSError as error:
        raise UnavailableError(f"a file in the data folder cannot be read ({error.strerror}); no key is made or dropped before it can") from None


def _head(path: Path) -> bytes:
    try:
        if not path.is_file():  # a socket, a link that leads nowhere
            return b""
        with path.open("rb") as stream:
            return stream.read(len(MAGIC) + ID_BYTES)
    except FileNotFoundError:  # gone meanwhile
        return b""


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _bound(head: bytes, role: str, name: str) -> bytes:
    return b"\0".join((head, role.encode(), name.encode()))
