"""The node's keys: Flower's node key, the release-signing key, the privacy officer's key (under a passphrase)."""

import json
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from busgen_client.settings import NodeSettings
from busgen_core.errors import ConfigError
from busgen_core.files import write_whole
from busgen_core.keys import PublicKey, SigningKey
from busgen_core.release import TrustedKeys

SMALLEST_PASSPHRASE = 12  # characters


def create_keys(data: Path, passphrase: bytes) -> None:
    """Create what is missing of the three keys; existing keys are never replaced.

    Raises:
        ConfigError: the passphrase is shorter than 12 characters.
    """
    if len(passphrase.decode(errors="replace")) < SMALLEST_PASSPHRASE:
        raise ConfigError(f"the officer's passphrase has fewer than {SMALLEST_PASSPHRASE} characters")
    folder = data / "keys"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    if not (folder / "node.pem").exists():
        SigningKey.generate().save(folder / "node.pem", None)
    if not (folder / "officer.pem").exists():
        key = SigningKey.generate()
        key.save(folder / "officer.pem", passphrase)
        (folder / "officer.pub").write_text(key.public.hex)
    if not flower_key_file(data).exists():
        flower = ec.generate_private_key(ec.SECP384R1())
        private = flower.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
        write_whole(flower_key_file(data), private)
        flower_key_file(data).chmod(0o600)


def flower_key_file(data: Path) -> Path:
    """Private key of the SuperNode: EC P-384, OpenSSH format, as Flower asks."""
    return data / "keys" / "flower"


def flower_public_key(data: Path) -> str:
    """The SuperNode's public key as one OpenSSH line."""
    key = serialization.load_ssh_private_key(flower_key_file(data).read_bytes(), None)
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def node_key(data: Path) -> SigningKey:
    """The node's release-signing key."""
    return SigningKey.load(data / "keys" / "node.pem", None)


def officer_key(data: Path, passphrase: bytes) -> SigningKey:
    """The privacy officer's key.

    Raises:
        SignatureError: the passphrase is wrong.
    """
    return SigningKey.load(data / "keys" / "officer.pem", passphrase)


def public_keys(settings: NodeSettings) -> TrustedKeys:
    """The two public keys that vouch for this site's releases."""
    officer = PublicKey.from_hex((settings.data / "keys" / "officer.pub").read_text().strip())
    return TrustedKeys(site=settings.site, node=node_key(settings.data).public, officer=officer)


def join_request(settings: NodeSettings) -> str:
    """What the coordinator needs to enrol this site: its name and three public keys, as JSON."""
    keys = public_keys(settings)
    return json.dumps(
        {"site": settings.site, "node_key": keys.node.hex, "officer_key": keys.officer.hex, "flower_key": flower_public_key(settings.data)}, indent=1
    )
