"""Claims about releases that somebody changed on their way."""

import base64
import json
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busgen_core.digests import sha256_bytes
from busgen_core.dsse import Envelope, sign
from busgen_core.errors import BusgenError, ContentMismatchError, GateRefusedError, ManifestError, SignatureError, TableError
from busgen_core.labels import Pathology
from busgen_core.release import ATTESTATION, MANIFEST, PAYLOAD_TYPE, GateVerdict, TrustedKeys, statement_payload, verify_release
from busgen_core.repository import write_parquet
from tests.releases import NODE, OFFICER, STRANGER, TRUSTED, documents, good_release, manifest_of, signed, synthetic_images

GOOD = good_release()
FILES = {name: data for name, data in GOOD.items() if name not in (MANIFEST, ATTESTATION)}
TRUE = manifest_of(FILES)
ENVELOPE = Envelope.from_bytes(GOOD[ATTESTATION])
A, B = ENVELOPE.signatures
TABLE = "data/train-00000.parquet"
REFUSED = GateVerdict(verdict="refuse", reasons=("The loss attack tells members from others.",))


def flip(data: bytes, bit: int) -> bytes:
    """``data`` with one bit flipped."""
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def attested(envelope: Envelope) -> Mapping[str, bytes]:
    """The good release under another attestation."""
    return {**GOOD, ATTESTATION: envelope.to_bytes()}


def with_signatures(*signatures: object) -> Mapping[str, bytes]:
    """The good release with other signatures over the same payload."""
    return attested(ENVELOPE.model_copy(update={"signatures": signatures}))


def without(name: str) -> Mapping[str, bytes]:
    """The good release without one file."""
    return {key: data for key, data in GOOD.items() if key != name}


def resigned(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> Mapping[str, bytes]:
    """The good files, with another payload that the right people signed."""
    return attested(sign(payload_type, payload, [NODE, OFFICER]))


def as_json(**changes: object) -> bytes:
    """Manifest bytes with changes, canonical, hashes right, not signed."""
    return json.dumps(json.loads(GOOD[MANIFEST]) | changes, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


MORE = write_parquet([*synthetic_images(), replace(synthetic_images()[0], sample_id="extra")])
FEWER_SAID = TRUE.model_copy(update={"files": manifest_of(FILES | {TABLE: MORE}).files})
OTHER_LABELS = TRUE.model_copy(update={"labels": {Pathology.NORMAL: 1, Pathology.BENIGN: 3, Pathology.MALIGNANT: 2}})
JUNK_TABLE = {**FILES, TABLE: b"PAR1 junk"}
JUNK_DIGESTS = {name: sha256_bytes(data) for name, data in JUNK_TABLE.items()}
OTHER_STATEMENT = statement_payload(GOOD[MANIFEST], TRUE.model_copy(update={"release_id": "cairo-2"}))

ATTACKS = {
    **{f"byte changed in {name}": ({**GOOD, name: flip(data, 8 * (len(data) // 2))}, ContentMismatchError) for name, data in FILES.items()},
    "byte changed in manifest": ({**GOOD, MANIFEST: flip(GOOD[MANIFEST], 500)}, ManifestError),
    "byte changed in attestation": ({**GOOD, ATTESTATION: flip(GOOD[ATTESTATION], 500)}, SignatureError),
    **{f"removed {name}": (without(name), ContentMismatchError) for name in FILES},
    "removed manifest": (without(MANIFEST), ManifestError),
    "removed attestation": (without(ATTESTATION), SignatureError),
    "nothing there": ({}, SignatureError),
    "file added": ({**GOOD, "data/train-00001.parquet": GOOD[TABLE]}, ContentMismatchError),
    "file added outside": ({**GOOD, "../../etc/passwd": b"x"}, ContentMismatchError),
    "files swapped": ({**GOOD, "README.md": GOOD["audit.html"], "audit.html": GOOD["README.md"]}, ContentMismatchError),
    "file emptied": ({**GOOD, "audit.json": b""}, ContentMismatchError),
    "node's signature missing": (with_signatures(B), SignatureError),
    "officer's signature missing": (with_signatures(A), SignatureError),
    "no signatures": (with_signatures(), SignatureError),
    "signature repeated": (with_signatures(A, A), SignatureError),
    "signature repeated behind": (with_signatures(A, B, B), SignatureError),
    "signer nobody trusts": (signed(FILES, TRUE, keys=[NODE, STRANGER]), SignatureError),
    "third signer": (signed(FILES, TRUE, keys=[NODE, OFFICER, STRANGER]), SignatureError),
    "officer signs as node": (signed(FILES, TRUE, keys=[OFFICER, NODE]), SignatureError),
    "signatures under each other's name": (
        with_signatures(A.model_copy(update={"keyid": B.keyid}), B.model_copy(update={"keyid": A.keyid})),
        SignatureError,
    ),
    "stranger under the officer's name": (
        with_signatures(A, sign(PAYLOAD_TYPE, b"x", [STRANGER]).signatures[0].model_copy(update={"keyid": B.keyid})),
        SignatureError,
    ),
    "other site's release": (signed(FILES, manifest_of(FILES, site="rio")), ManifestError),
    "gate had refused": (signed(FILES, manifest_of(FILES, verdict=REFUSED)), GateRefusedError),
    "manifest edited, not signed again": ({**GOOD, MANIFEST: as_json(ledger_head="b" * 64)}, ManifestError),
    "file and digest edited, not signed again": (
        {**GOOD, "README.md": b"x", MANIFEST: manifest_of(FILES | {"README.md": b"x"}).to_bytes()},
        ManifestError,
    ),
    "manifest of another release": ({**GOOD, MANIFEST: manifest_of(FILES, site="rio").to_bytes()}, ManifestError),
    "statement names another release": (resigned(OTHER_STATEMENT), ManifestError),
    "statement of another type": (resigned(statement_payload(GOOD[MANIFEST], TRUE).replace(b"release:v1", b"release:v2")), ManifestError),
    "statement about nothing": (resigned(b"{}"), ManifestError),
    "payload of another type": (resigned(statement_payload(GOOD[MANIFEST], TRUE), "text/plain"), SignatureError),
    "more images than the manifest says": (signed({**FILES, TABLE: MORE}, FEWER_SAID), ContentMismatchError),
    "other labels than the manifest says": (signed(FILES, OTHER_LABELS), ContentMismatchError),
    "signed table is no table": (signed(JUNK_TABLE, TRUE.model_copy(update={"files": JUNK_DIGESTS})), TableError),
    "attestation not JSON": ({**GOOD, ATTESTATION: b"signed, believe me"}, SignatureError),
    "attestation empty": ({**GOOD, ATTESTATION: b""}, SignatureError),
    "attestation huge": ({**GOOD, ATTESTATION: b"[" * 10_000_000}, SignatureError),
    "attestation deep": ({**GOOD, ATTESTATION: b"[" * 60_000}, SignatureError),
    "attestation with a repeated key": ({**GOOD, ATTESTATION: GOOD[ATTESTATION].replace(b"{", b'{"payload":"",', 1)}, SignatureError),
    "attestation with an unknown key": ({**GOOD, ATTESTATION: GOOD[ATTESTATION].replace(b"{", b'{"note":1,', 1)}, SignatureError),
    "attestation with a line end": ({**GOOD, ATTESTATION: GOOD[ATTESTATION] + b"\n"}, SignatureError),
    "manifest with a repeated key": ({**GOOD, MANIFEST: GOOD[MANIFEST].replace(b'"images":6', b'"images":6,"images":6')}, ManifestError),
}


@pytest.mark.parametrize(("files", "error"), ATTACKS.values(), ids=ATTACKS)
def test_attack_is_refused(files: Mapping[str, bytes], error: type[BusgenError]) -> None:
    """Claim R-1: every known move against a release ends in its named error."""
    assert verify_release(GOOD, TRUSTED) == TRUE  # it is the attack that is refused
    with pytest.raises(BusgenError) as caught:
        verify_release(files, TRUSTED)
    assert type(caught.value) is error


WRONG_TRUST = {
    "one key, two roles": (replace(TRUSTED, officer=NODE.public), SignatureError),
    "officer's and node's key exchanged": (replace(TRUSTED, node=OFFICER.public, officer=NODE.public), SignatureError),
    "another officer": (replace(TRUSTED, officer=STRANGER.public), SignatureError),
    "another site": (replace(TRUSTED, site="rio"), ManifestError),
}


@pytest.mark.parametrize(("trusted", "error"), WRONG_TRUST.values(), ids=WRONG_TRUST)
def test_keys_stand_for_their_role_alone(trusted: TrustedKeys, error: type[BusgenError]) -> None:
    """Claim R-1: a release is refused by whoever trusts other keys, other roles or another site."""
    with pytest.raises(error):
        verify_release(GOOD, trusted)


def test_every_flipped_bit_of_what_is_signed_is_refused() -> None:
    """Claim R-2: no flipped bit of the signed payload or of a signature survives; all are tried."""
    payload = base64.b64decode(ENVELOPE.payload)
    changed = [ENVELOPE.model_copy(update={"payload": base64.b64encode(flip(payload, bit)).decode()}) for bit in range(8 * len(payload))]
    for place, signature in enumerate(ENVELOPE.signatures):
        raw = base64.b64decode(signature.sig)
        for bit in range(8 * len(raw)):
            wrong = signature.model_copy(update={"sig": base64.b64encode(flip(raw, bit)).decode()})
            pair = (wrong, B) if place == 0 else (A, wrong)
            changed.append(ENVELOPE.model_copy(update={"signatures": pair}))
    assert len(changed) > 2000
    for envelope in changed:
        with pytest.raises(SignatureError):
            verify_release(attested(envelope), TRUSTED)


def test_every_flipped_bit_of_the_attestation_is_refused() -> None:
    """Claim R-2: the attestation file has one form; base64's slack bits, key ids and JSON's blanks are no exception."""
    for bit in range(8 * len(GOOD[ATTESTATION])):
        with pytest.raises(SignatureError):
            verify_release({**GOOD, ATTESTATION: flip(GOOD[ATTESTATION], bit)}, TRUSTED)


def test_second_spelling_of_base64_is_refused() -> None:
    """Claim R-2: 64 bytes leave four slack bits in base64; other decoders ignore them, so one signature had 16 spellings."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = A.sig[-3]
    spellings = [A.sig[:-3] + letter + "==" for letter in alphabet if alphabet.index(letter) >> 4 == alphabet.index(last) >> 4 and letter != last]
    assert all(base64.b64decode(text) == base64.b64decode(A.sig) for text in spellings)
    assert len(spellings) == 15
    for text in spellings:
        with pytest.raises(SignatureError):
            verify_release(with_signatures(A.model_copy(update={"sig": text}), B), TRUSTED)


@given(st.sampled_from(sorted(GOOD)), st.data())
def test_only_our_errors_leave_the_check(name: str, data: st.DataObject) -> None:
    """Claim R-3: bytes written over any file of a release end in one of our errors, and never in a pass."""
    at = data.draw(st.integers(0, len(GOOD[name])))
    noise = data.draw(st.binary(max_size=6))
    files = {**GOOD, name: GOOD[name][:at] + noise + GOOD[name][at + len(noise) :]}
    if files == GOOD:
        return
    with pytest.raises(BusgenError):
        verify_release(files, TRUSTED)


def test_a_release_needs_no_file_but_its_own() -> None:
    """Claim R-4: the check is made of the files and the trusted keys alone; the same input gives the same answer."""
    assert verify_release(dict(reversed(GOOD.items())), TRUSTED) == verify_release(GOOD, TRUSTED)
    assert documents(synthetic_images()) == FILES
