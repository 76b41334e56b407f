"""The hub's certificates."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import busgen_server.pki
from busgen_core.errors import ConfigError, StateError
from busgen_server.pki import KeyPair, check_node_key, create_ca, create_node_key, issue_server_certificate

NAMES = ("hub.example.org", "10.1.2.3")


def handshake(server: KeyPair, ca: Path, name: str) -> str:
    """Shake hands in memory as a client that trusts ``ca`` alone; return the protocol."""
    listening = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    listening.load_cert_chain(server.certificate, server.key)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT
    trusting.load_verify_locations(ca)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [trusting.wrap_bio(down, up, server_hostname=name), listening.wrap_bio(up, down, server_side=True)]
    for _ in range(6):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends[0].version() or ""


def test_clients_that_trust_the_authority_accept_the_server(tmp_path: Path) -> None:
    """A strict TLS client accepts the certificate for every name and for loopback, and for no other name."""
    server = issue_server_certificate(tmp_path, NAMES)
    for name in (*NAMES, "127.0.0.1", "localhost"):
        assert handshake(server, tmp_path / "ca.crt", name) == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, tmp_path / "ca.crt", "evil.example.org")


def test_another_authority_is_not_trusted(tmp_path: Path) -> None:
    """A certificate of someone else's authority ends the handshake."""
    server = issue_server_certificate(tmp_path / "a", NAMES)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, create_ca(tmp_path / "b").certificate, "localhost")


def test_nothing_is_minted_twice(tmp_path: Path) -> None:
    """A second start keeps every byte of authority and server certificate."""
    issue_server_certificate(tmp_path, NAMES)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    issue_server_certificate(tmp_path, NAMES)
    issue_server_certificate(tmp_path, NAMES[:1])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert sorted(before) == ["ca.crt", "ca.key", "server.crt", "server.key"]


def test_private_keys_are_for_the_owner_alone(tmp_path: Path) -> None:
    """Keys have mode 0600."""
    issue_server_certificate(tmp_path, NAMES)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.glob("*.key")} == {"ca.key": "0o600", "server.key": "0o600"}


def test_server_certificate_is_renewed_when_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new name, a torn key or a certificate near its end brings a new one, of the same authority."""
    authority = create_ca(tmp_path).certificate.read_bytes()
    seen = [issue_server_certificate(tmp_path, NAMES).certificate.read_bytes()]
    seen.append(issue_server_certificate(tmp_path, [*NAMES, "new.example.org"]).certificate.read_bytes())
    (tmp_path / "server.key").write_bytes(b"torn")
    seen.append(issue_server_certificate(tmp_path, NAMES).certificate.read_bytes())
    monkeypatch.setattr(busgen_server.pki, "RENEW_DAYS", 366)
    seen.append(issue_server_certificate(tmp_path, NAMES).certificate.read_bytes())
    assert len(set(seen)) == 4
    assert create_ca(tmp_path).certificate.read_bytes() == authority
    lasting = x509.load_pem_x509_certificate(seen[-1]).not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=364) < lasting <= timedelta(days=365)


@pytest.mark.parametrize("harm", ["key lost", "certificate lost", "key of another", "torn"])
def test_broken_authority_is_named_not_replaced(tmp_path: Path, harm: str) -> None:
    """An authority that lost a part stays as it is: replacing it would lock every hospital out."""
    pair = create_ca(tmp_path)
    match harm:
        case "key lost":
            pair.key.unlink()
        case "certificate lost":
            pair.certificate.unlink()
        case "key of another":
            pair.key.write_bytes(create_ca(tmp_path / "other").key.read_bytes())
        case "torn":
            pair.certificate.write_bytes(pair.certificate.read_bytes()[:100])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(StateError, match="not a pair"):
        issue_server_certificate(tmp_path, NAMES)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("name", ["", "a b", "https://hub", "*", "hüb.example"])
def test_odd_names_are_refused(tmp_path: Path, name: str) -> None:
    """A name that no certificate can carry is a ConfigError, before a key is written."""
    with pytest.raises(ConfigError, match="certificate name"):
        issue_server_certificate(tmp_path, [name])
    assert not (tmp_path / "server.key").exists()


def test_node_key_is_what_flower_wants() -> None:
    """Node keys are EC P-384 in OpenSSH format, the pair fits, and a check refuses everything else."""
    key = create_node_key()
    private = serialization.load_ssh_private_key(key.private, password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.public_key() == serialization.load_ssh_public_key(key.public.encode())
    check_node_key(key.public + "\n")
    wrong_curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    other = wrong_curve.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    for bad in (other, "", "ssh-ed25519 AAAA", key.public + "\n" + key.public, "é"):
        with pytest.raises(ConfigError):
            check_node_key(bad)
