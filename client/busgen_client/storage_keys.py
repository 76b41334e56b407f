"""The site's key: where it comes from, and how it wraps the data keys: a file, a passphrase, or the system's key store."""

import base64
import os
import secrets
from pathlib import Path
from typing import Literal, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from busgen_core.errors import ConfigError, StorageKeyError
from busgen_core.files import create_once

KEY_BYTES, ID_BYTES, NONCE_BYTES, TAG_BYTES = 32, 8, 12, 16  # AES-256-GCM; NIST SP 800-38D, 5.2.1
PASSES, LANES, MEMORY_KIB = 3, 4, 64 * 1024  # Argon2id, the second recommended option of RFC 9106, section 4
SALT_BYTES = 16  # RFC 9106, section 3.1
SERVICE = "busgen-node"  # under which the system's key store knows our keys
NO_KEY = "a stored file is sealed, and storage.key in node.toml says none; say there where the key is"


class StorageSettings(BaseModel):
    """How files at rest are sealed.

    Attributes:
        key: Where the site's key comes from. ``none`` seals nothing: for a disk that is encrypted as a whole.
        key_file: 32 random bytes, made at first use, mode 0600; not given, ``keys/storage.key`` in the data folder. Keep it on another disk,
            or whoever has a copy of the data folder has the key too.
        passphrase_file: Holds the passphrase, its last line break not part of it; for instance a credential that systemd hands over at the start.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: Literal["none", "file", "passphrase", "keyring"] = "file"
    key_file: Path | None = None
    passphrase_file: Path | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.key == "passphrase") != (self.passphrase_file is not None):
            raise ValueError("passphrase_file belongs to key = 'passphrase'")
        return self

    def below(self, base: Path) -> "StorageSettings":
        """The same settings with relative paths resolved against the folder of node.toml."""
        paths = {"key_file": self.key_file, "passphrase_file": self.passphrase_file}
        return self.model_copy(update={name: base / path for name, path in paths.items() if path is not None})


class Wrapped(BaseModel):
    """A data key under the site's key; ``nonce | ciphertext | tag``, hexadecimal."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(pattern=rf"^[0-9a-f]{{{2 * ID_BYTES}}}$")
    wrapped: str = Field(pattern=rf"^[0-9a-f]{{{2 * (NONCE_BYTES + KEY_BYTES + TAG_BYTES)}}}$")


class KeyRing(BaseModel):
    """``storage.json``. The last key seals; all open."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    name: str  # random; names the site's key in the system's key store
    salt: str = Field(pattern=rf"^[0-9a-f]{{{2 * SALT_BYTES}}}$")  # of the passphrase
    keys: list[Wrapped]

    @classmethod
    def empty(cls) -> Self:
        """No data key yet; whatever opens it is a new site's key."""
        return cls(name=secrets.token_hex(8), salt=os.urandom(SALT_BYTES).hex(), keys=[])

    @classmethod
    def at(cls, file: Path) -> Self:
        """As a file has it.

        Raises:
            StorageKeyError: the file cannot be read, or has no key.
        """
        try:
            ring = cls.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            raise StorageKeyError("storage.json cannot be read; restore it from the backup, nothing opens without it") from None
        if not ring.keys:
            raise StorageKeyError("storage.json has no key in it; restore it from the backup, nothing opens without it")
        return ring


def site_key(settings: StorageSettings, data: Path, ring: KeyRing, *, create: bool) -> bytes:
    """The site's key for a list of data keys, as the settings have it.

    Args:
        settings: Where it comes from.
        data: The node's data folder.
        ring: Names the key in the system's key store, and has the passphrase's salt.
        create: Make it where there is none yet.

    Raises:
        StorageKeyError: missing, readable by others, of another size, or the settings say ``none``.
        ConfigError: the system's key store is not there.
    """
    match settings.key:
        case "passphrase":
            return _from_passphrase(settings.passphrase_file, bytes.fromhex(ring.salt))
        case "keyring":
            return _from_key_store(ring.name, create=create)
        case "file":
            return _from_file(settings.key_file or data / "keys" / "storage.key", create=create)
    raise StorageKeyError(NO_KEY)


def fresh_data_key(site_key: bytes) -> Wrapped:
    """A new data key under the site's key, with a new name."""
    return wrapped(os.urandom(KEY_BYTES), site_key, name=os.urandom(ID_BYTES))


def wrapped(key: bytes, site_key: bytes, *, name: bytes) -> Wrapped:
    """A data key under the site's key."""
    nonce = os.urandom(NONCE_BYTES)
    return Wrapped(id=name.hex(), wrapped=(nonce + AESGCM(site_key).encrypt(nonce, key, b"data key" + name)).hex())


def unwrapped(key: Wrapped, site_key: bytes) -> bytes:
    """A data key in clear.

    Raises:
        StorageKeyError: it is not under this site's key, or was changed.
    """
    try:
        wrapped = bytes.fromhex(key.wrapped)
        return AESGCM(site_key).decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], b"data key" + bytes.fromhex(key.id))
    except (InvalidTag, ValueError):
        raise StorageKeyError("the key is not the one that storage.json is under (after 'cohort rekey', the new one); nothing was read") from None


def _from_file(path: Path, *, create: bool) -> bytes:
    if create and not path.exists():
        create_once(path, os.urandom(KEY_BYTES))
    return secret_in(path, KEY_BYTES, missing="without it no stored file opens, so restore it from the backup")


def _from_passphrase(path: Path | None, salt: bytes) -> bytes:
    try:
        passphrase = path.read_bytes().removesuffix(b"\n") if path else b""
    except OSError:
        raise StorageKeyError("storage.passphrase_file cannot be read; no stored file opens without the passphrase") from None
    if not passphrase:
        raise StorageKeyError("storage.passphrase_file is empty; no stored file opens without the passphrase")
    return Argon2id(salt=salt, length=KEY_BYTES, iterations=PASSES, lanes=LANES, memory_cost=MEMORY_KIB).derive(passphrase)


def _from_key_store(name: str, *, create: bool) -> bytes:
    try:
        import keyring
    except ImportError:
        raise ConfigError("storage.key is keyring, and the package keyring is not installed; install busgen-client[keyring]") from None
    try:
        stored = keyring.get_password(SERVICE, name)
        if stored is None and create:
            keyring.set_password(SERVICE, name, base64.b64encode(os.urandom(KEY_BYTES)).decode())
            stored = keyring.get_password(SERVICE, name)
    except keyring.errors.KeyringError as error:
        raise StorageKeyError(f"the system's key store does not answer ({type(error).__name__}); unlock it") from None
    if stored is None:
        raise StorageKeyError("the system's key store has no key for this node; without it no stored file opens, restore it")
    return base64.b64decode(stored)


def secret_in(path: Path, size: int, *, missing: str) -> bytes:
    """A secret of ``size`` bytes that nobody else may read.

    Args:
        path: Its file.
        size: Bytes that it has.
        missing: What to say where it is not there.

    Raises:
        StorageKeyError: not there, readable by others, or of another size.
    """
    if not path.exists():
        raise StorageKeyError(f"{path.name} is missing; {missing}")
    if path.stat().st_mode & 0o077:
        raise StorageKeyError(f"{path.name} can be read by other users; set its mode to 0600")
    secret = path.read_bytes()
    if len(secret) != size:
        raise StorageKeyError(f"{path.name} does not hold {size} bytes; restore it from the backup")
    return secret
