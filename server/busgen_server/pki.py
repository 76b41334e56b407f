"""The hub's certificates and the SuperNodes' keys. Made once, kept: a certificate minted anew at each start locks nodes out."""

import ipaddress
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from busgen_core.errors import ConfigError, StateError

CA_YEARS = 10
SERVER_DAYS = 365
RENEW_DAYS = 30  # a server certificate is renewed when less than this is left
CLOCK_SKEW = timedelta(hours=1)  # valid from a little earlier, for nodes whose clock is behind
LOOPBACK = ("localhost", "127.0.0.1")  # the SuperLink uses the same certificate


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyPair:
    """A certificate and its private key, as PEM files."""

    certificate: Path
    key: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeKey:
    """A SuperNode's key pair in OpenSSH format."""

    private: bytes
    public: str


def create_ca(folder: Path) -> KeyPair:
    """The consortium's authority, ``ca.crt`` and ``ca.key`` (mode 0600); made if neither is there, otherwise kept.

    Raises:
        StateError: one of the two is missing, they do not belong together, or the certificate has expired. It is
            never replaced silently: every hospital holds a copy of it.
    """
    pair = KeyPair(certificate=folder / "ca.crt", key=folder / "ca.key")
    if not pair.certificate.exists() and not pair.key.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        _write(pair.key, _pem(key), mode=0o600)
        _write(pair.certificate, _ca_certificate(key).public_bytes(serialization.Encoding.PEM), mode=0o644)
    _authority(folder)
    return pair


def issue_server_certificate(folder: Path, names: Sequence[str]) -> KeyPair:
    """The gateway's and SuperLink's certificate, ``server.crt`` and ``server.key`` (mode 0600), by the authority in ``folder``.

    Kept as long as it is of this authority, covers ``names`` and is valid for another RENEW_DAYS; else issued anew,
    which nodes do not notice.

    Args:
        names: DNS names and IP addresses that hospitals connect to; loopback is always added.

    Raises:
        StateError: as ``create_ca``.
        ConfigError: a name that is neither an IP address nor an ASCII DNS name.
    """
    create_ca(folder)
    authority, authority_key = _authority(folder)
    pair = KeyPair(certificate=folder / "server.crt", key=folder / "server.key")
    wanted = _general_names([*names, *LOOPBACK])
    if not _serves(pair, authority=authority, wanted=wanted):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _server_certificate(key, wanted, authority=authority, authority_key=authority_key)
        _write(pair.key, _pem(key), mode=0o600)
        _write(pair.certificate, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
    return pair


def create_node_key() -> NodeKey:
    """A new EC P-384 key pair in OpenSSH format, as Flower's node authentication wants it. Belongs on the node."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return NodeKey(private=private, public=public.decode("ascii"))


def check_node_key(public: str) -> None:
    """Raise ConfigError unless ``public`` is one line with an EC P-384 public key in OpenSSH format."""
    try:
        key = serialization.load_ssh_public_key(public.encode("ascii"))
    except (ValueError, UnicodeEncodeError):
        key = None
    if "\n" in public.strip() or not (isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp384r1"):
        raise ConfigError("the node's key is not one line with an EC P-384 public key in OpenSSH format; take it from 'busgen-node join'")


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate, key = _read(KeyPair(certificate=folder / "ca.crt", key=folder / "ca.key"))
    if certificate is None or key is None or certificate.public_key() != key.public_key():
        raise StateError(f"{folder}: ca.crt and ca.key are not a pair; restore both from the backup, nodes trust this authority")
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        raise StateError(f"{folder}: ca.crt has expired; make a new folder and hand its ca.crt to every hospital")
    return certificate, key


def _serves(pair: KeyPair, *, authority: x509.Certificate, wanted: Sequence[x509.GeneralName]) -> bool:
    certificate, key = _read(pair)
    if certificate is None or key is None or certificate.public_key() != key.public_key():
        return False
    try:
        certificate.verify_directly_issued_by(authority)
        held = set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
        return False
    return set(wanted) <= held and certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(days=RENEW_DAYS)


def _read(pair: KeyPair) -> tuple[x509.Certificate | None, ec.EllipticCurvePrivateKey | None]:
    """Both parts; None for one that is missing or unreadable."""
    try:
        certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
        key = serialization.load_pem_private_key(pair.key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError):
        return None, None
    return certificate, key if isinstance(key, ec.EllipticCurvePrivateKey) else None


def _general_names(names: Sequence[str]) -> list[x509.GeneralName]:
    out: list[x509.GeneralName] = []
    for name in dict.fromkeys(names):
        try:
            out.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            if not (name.isascii() and name.strip() and not set(name) & set(" /:*")):
                raise ConfigError(f"certificate name {name!r} is neither an IP address nor a DNS name") from None
            out.append(x509.DNSName(name))
    return out


def _builder(subject: str, key: ec.EllipticCurvePrivateKey, *, issuer: x509.Name | None, lasting: timedelta) -> x509.CertificateBuilder:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(issuer or name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - CLOCK_SKEW).not_valid_after(now + lasting)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _ca_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    builder = _builder("BUSGen Consortium hub authority", key, issuer=None, lasting=timedelta(days=365 * CA_YEARS))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.add_extension(_usage(signs_certificates=True), critical=True).sign(key, hashes.SHA256())


def _server_certificate(
    key: ec.EllipticCurvePrivateKey,
    names: Sequence[x509.GeneralName],
    *,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    lasting = min(timedelta(days=SERVER_DAYS), authority.not_valid_after_utc - datetime.now(UTC))
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = _builder("BUSGen Consortium hub", key, issuer=authority.subject, lasting=lasting)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    return builder.sign(authority_key, hashes.SHA256())


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _write(path: Path, data: bytes, *, mode: int) -> None:
    """Write at once or not at all; the file never exists with a wider mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)  # mode 0600 from the start
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(handle)
    Path(temporary).chmod(mode)
    Path(temporary).replace(path)
