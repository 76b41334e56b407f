"""DSSE envelopes: known answers, roles, and one spelling only."""

import base64
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from busgen_core.dsse import Envelope, add_signature, decode_base64, pae, sign, verified_payload
from busgen_core.errors import SignatureError
from busgen_core.keys import SigningKey

NODE, OFFICER, STRANGER = (SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([n] * 32))) for n in (1, 2, 3))
ROLES = {"node": NODE.public, "officer": OFFICER.public}
GOOD = sign("text/plain", b"payload", [NODE, OFFICER])


def test_pae_is_the_protocols_own_example() -> None:
    """The signed bytes are those of DSSE's protocol.md, and lengths count bytes of UTF-8."""
    assert pae("http://example.com/HelloWorld", b"hello world") == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pae("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "


def test_an_envelope_survives_its_bytes() -> None:
    """What both roles signed is given back, after a round trip through the file."""
    assert verified_payload(Envelope.from_bytes(GOOD.to_bytes()), roles=ROLES) == b"payload"


def test_officer_signs_after_the_node() -> None:
    """Adding signatures one by one gives the same envelope; a key signs once."""
    first = sign("text/plain", b"payload", [NODE])
    assert add_signature(first, OFFICER) == GOOD
    with pytest.raises(SignatureError):
        add_signature(first, NODE)


A, B = GOOD.signatures
WRONG = {
    "officer's missing": ((A,), "officer is missing"),
    "node's missing": ((B,), "node is missing"),
    "none": ((), "missing"),
    "node's repeated": ((A, A, B), "node is repeated"),
    "stranger's added": ((*GOOD.signatures, sign("text/plain", b"payload", [STRANGER]).signatures[0]), "nobody trusts"),
    "order exchanged": ((B, A), "exchanged"),
    "key ids exchanged": ((A.model_copy(update={"sig": B.sig}), B.model_copy(update={"sig": A.sig})), "node does not hold"),
    "signature of another payload": ((A, sign("text/plain", b"other", [OFFICER]).signatures[0]), "officer does not hold"),
    "signature of another type": ((A, sign("text/html", b"payload", [OFFICER]).signatures[0]), "officer does not hold"),
}


@pytest.mark.parametrize(("signatures", "message"), WRONG.values(), ids=WRONG)
def test_wrong_signatures_are_refused_by_role(signatures: tuple, message: str) -> None:
    """Each role signs exactly once, with its own key, over this payload; the error names the role."""
    with pytest.raises(SignatureError, match=message):
        verified_payload(GOOD.model_copy(update={"signatures": signatures}), roles=ROLES)


def test_one_key_cannot_hold_two_roles() -> None:
    """Trusting one key for two roles is refused, and so is trusting no role at all."""
    for roles in ({"node": NODE.public, "officer": NODE.public}, {}):
        with pytest.raises(SignatureError, match="key of its own"):
            verified_payload(sign("text/plain", b"payload", [NODE]), roles=roles)


@pytest.mark.parametrize("text", ["YQ", "YR==", "YQ==\n", " YQ==", "YQ==YQ==", "Y-==", "é", "YQ===", "="])
def test_base64_has_one_spelling(text: str) -> None:
    """Slack bits, blanks, missing padding and the other alphabet are refused; Python's decoder would let some pass."""
    assert decode_base64("YQ==") == b"a"
    with pytest.raises(SignatureError):
        decode_base64(text)


BAD = {
    "empty": b"",
    "not JSON": b"signed, believe me",
    "not UTF-8": b"\xff\xfe",
    "an array": b"[]",
    "blank added": GOOD.to_bytes() + b"\n",
    "key repeated": GOOD.to_bytes().replace(b'{"payload":', b'{"payload":"","payload":', 1),
    "unknown key": GOOD.to_bytes().replace(b'{"payload":', b'{"hint":"","payload":', 1),
    "keys in another order": b'{"payloadType":"t","payload":"","signatures":[]}',
    "escaped letter": GOOD.to_bytes().replace(b"text", b"\\u0074ext"),
    "deep": b'{"payload":' + b"[" * 5000,
    "huge": b"[" + b" " * 100_000 + b"]",
    "long number": b'{"payload":' + b"1" * 5000 + b"}",
    "signatures null": b'{"payload":"","payloadType":"t","signatures":null}',
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_an_envelope_has_one_form(data: bytes) -> None:
    """Everything but canonical JSON of exactly the three fields is refused, by our own error."""
    with pytest.raises(SignatureError):
        Envelope.from_bytes(data)


SPLICES = st.tuples(st.integers(0, len(GOOD.to_bytes())), st.binary(max_size=9))


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode), SPLICES))
def test_only_our_errors_leave_the_parser(found: bytes | tuple[int, bytes]) -> None:
    """Random bytes, and random bytes inside a good envelope, give a SignatureError or the same envelope."""
    good = GOOD.to_bytes()
    data = found if isinstance(found, bytes) else good[: found[0]] + found[1] + good[found[0] + len(found[1]) :]
    with suppress(SignatureError):
        payload = verified_payload(Envelope.from_bytes(data), roles=ROLES)
        assert (data, payload) == (good, b"payload")


def test_payload_is_standard_base64() -> None:
    """Other tools can read the payload: RFC 4648 section 4, padded."""
    assert base64.b64decode(GOOD.payload, validate=True) == b"payload"
