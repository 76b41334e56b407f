"""Ed25519 signing keys (RFC 8032), stored as PKCS #8 PEM (RFC 5958), one file a key, readable by its owner alone."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from busgen_core.digests import sha256_bytes
from busgen_core.errors import ConfigError, SignatureError, StateError

RAW_BYTES = 32  # RFC 8032, section 5.1.5


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An Ed25519 public key.

    Attributes:
        hex: The raw 32 bytes in lower-case hexadecimal.
    """

    hex: str

    def __post_init__(self) -> None:
        try:
            raw = bytes.fromhex(self.hex)
        except ValueError:
            raw = b""
        if len(raw) != RAW_BYTES or raw.hex() != self.hex:
            raise SignatureError(f"a public key is {2 * RAW_BYTES} lower-case hexadecimal digits; copy it again")

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Read a key as people pass it on; surrounding blanks are ignored.

        Raises:
            SignatureError: not 64 lower-case hexadecimal digits.
        """
        return cls(text.strip())

    @property
    def key_id(self) -> str:
        """SHA-256 of the raw bytes, hexadecimal: the ``keyid`` of a DSSE signature."""
        return sha256_bytes(bytes.fromhex(self.hex))

    def verify(self, signature: bytes, data: bytes) -> None:
        """Return only if ``signature`` is this key's over ``data``.

        Raises:
            SignatureError: it is not.
        """
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.hex)).verify(signature, data)
        except (InvalidSignature, ValueError):
            raise SignatureError(f"the signature is not one of key {self.key_id[:12]}… over these bytes") from None


class SigningKey:
    """An Ed25519 private key; its bytes are never printed."""

    __slots__ = ("_key",)

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    def __repr__(self) -> str:
        return f"SigningKey(of {self.public.key_id[:12]}…)"

    @classmethod
    def generate(cls) -> Self:
        """A new key from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path, passphrase: bytes | None) -> Self:
        """Read a key file.

        Raises:
            SignatureError: the file is missing or no Ed25519 key, or the passphrase is wrong, missing or not needed.
        """
        try:
            key = load_pem_private_key(path.read_bytes(), password=passphrase)
        except OSError as error:
            raise SignatureError(f"{path.name}: the key file cannot be read ({type(error).__name__})") from None
        except TypeError:
            missing = "it is encrypted: give its passphrase" if passphrase is None else "it is not encrypted, but a passphrase was given"
            raise SignatureError(f"{path.name}: {missing}") from None
        except (ValueError, UnsupportedAlgorithm):
            raise SignatureError(f"{path.name}: wrong passphrase, or not a PKCS #8 PEM key") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise SignatureError(f"{path.name}: not an Ed25519 key")
        return cls(key)

    def save(self, path: Path, passphrase: bytes | None) -> None:
        """Write the key, mode 0600, encrypted if there is a passphrase; an existing file is never overwritten.

        Raises:
            ConfigError: the passphrase is empty.
            StateError: the file exists.
        """
        if passphrase == b"":
            raise ConfigError("the passphrase is empty; give one, or None for a key without")
        protection: KeySerializationEncryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise StateError(f"{path.name} exists; move it away first, a key cannot be made again") from None
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(pem)
            stream.flush()
            os.fsync(stream.fileno())

    @property
    def public(self) -> PublicKey:
        """The public half."""
        return PublicKey(self._key.public_key().public_bytes_raw().hex())

    def sign(self, data: bytes) -> bytes:
        """Ed25519 signature over ``data``, 64 bytes, deterministic."""
        return self._key.sign(data)
