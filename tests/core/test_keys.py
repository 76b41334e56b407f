"""Signing keys: round trips, files, and what is refused."""

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from busgen_core.errors import ConfigError, SignatureError, StateError
from busgen_core.keys import PublicKey, SigningKey

# RFC 8032, section 7.1, test 2.
SECRET = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
SIGNATURE = "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"


def test_signature_is_the_one_of_rfc_8032() -> None:
    """Key, signature and verification agree with the standard's own test vector."""
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(SECRET)))
    assert key.public.hex == PUBLIC
    assert key.sign(b"\x72").hex() == SIGNATURE
    PublicKey.from_hex(f" {PUBLIC}\n").verify(bytes.fromhex(SIGNATURE), b"\x72")


@pytest.mark.parametrize("passphrase", [None, b"long and secret"])
def test_saved_key_is_the_key_that_loads(tmp_path: Path, passphrase: bytes | None) -> None:
    """A key survives its file, which only its owner can read and which is encrypted when there is a passphrase."""
    key, file = SigningKey.generate(), tmp_path / "k.pem"
    key.save(file, passphrase)
    assert SigningKey.load(file, passphrase).public == key.public
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (b"ENCRYPTED" in file.read_bytes()) == (passphrase is not None)


@pytest.mark.parametrize(("saved", "given"), [(b"right", b"wrong"), (b"right", None), (None, b"needless"), (b"right", b"")])
def test_wrong_passphrase_is_refused(tmp_path: Path, saved: bytes | None, given: bytes | None) -> None:
    """A passphrase that is wrong, missing or not needed opens nothing."""
    SigningKey.generate().save(tmp_path / "k.pem", saved)
    with pytest.raises(SignatureError):
        SigningKey.load(tmp_path / "k.pem", given)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    """Saving over an existing file is refused and leaves it as it was; an empty passphrase is refused."""
    (tmp_path / "k.pem").write_bytes(b"precious")
    with pytest.raises(StateError):
        SigningKey.generate().save(tmp_path / "k.pem", None)
    assert (tmp_path / "k.pem").read_bytes() == b"precious"
    with pytest.raises(ConfigError):
        SigningKey.generate().save(tmp_path / "other.pem", b"")


@pytest.mark.parametrize("content", [b"", b"junk", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", None])
def test_what_is_no_key_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """Junk, or no file at all, ends in our own error."""
    if content is not None:
        (tmp_path / "k.pem").write_bytes(content)
    with pytest.raises(SignatureError):
        SigningKey.load(tmp_path / "k.pem", None)


@pytest.mark.parametrize("text", ["", "00", "g" * 64, PUBLIC.upper(), PUBLIC + "00", PUBLIC[:62] + " 0"])
def test_public_key_has_one_spelling(text: str) -> None:
    """Only 64 lower-case hexadecimal digits are a public key."""
    with pytest.raises(SignatureError):
        PublicKey.from_hex(text)


def test_signature_of_other_bytes_is_refused() -> None:
    """A signature holds for its bytes and its key alone."""
    key = SigningKey.generate()
    for signature, data in [(key.sign(b"a"), b"b"), (SigningKey.generate().sign(b"a"), b"a"), (b"", b"a")]:
        with pytest.raises(SignatureError):
            key.public.verify(signature, data)


def test_a_private_key_is_not_printed() -> None:
    """The text of a key shows its public half only."""
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(SECRET)))
    assert key.public.key_id[:12] in repr(key)
    assert SECRET not in repr(key)
