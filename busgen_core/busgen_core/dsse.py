"""DSSE envelopes: bytes, their type, and signatures that stand for roles.

Source: https://github.com/secure-systems-lab/dsse, protocol.md and envelope.md, version 1.0.0. Stricter than it in three
ways, so that an envelope has exactly one form: standard base64 without slack bits, canonical JSON, and the signatures
in the order of the roles.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from busgen_core.digests import canonical_json
from busgen_core.errors import SignatureError, VerificationError
from busgen_core.keys import PublicKey, SigningKey
from busgen_core.wire import Digest

MAX_ENVELOPE = 64 * 1024  # bytes; ours have about 1 KiB


class CanonicalModel(BaseModel):
    """A value that has exactly one JSON form: canonical JSON of its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_bytes(self) -> bytes:
        """The one JSON form."""
        return canonical_json(self.model_dump(mode="json"))


Model = TypeVar("Model", bound=CanonicalModel)


def parse_canonical(model: type[Model], data: bytes, *, error: type[VerificationError], name: str, limit: int) -> Model:
    """Read a value and accept only its one JSON form: no repeated or unknown key, no other spelling of a number.

    Raises:
        VerificationError: the given ``error``; its message has ``name`` and the field, never the field's content.
    """
    if len(data) > limit:
        raise error(f"{name}: {len(data)} bytes, more than {limit}")
    try:
        value = model.model_validate_json(data, strict=True)
        same = value.to_bytes() == data
    except ValidationError as wrong:
        first = wrong.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(step)[:40] for step in first["loc"][:4])
        raise error(f"{name}: {where}: {first['type']}" if where else f"{name}: {first['type']}") from None
    except ValueError as wrong:  # integers too long to print
        raise error(f"{name}: not of the expected form ({type(wrong).__name__})") from None
    if not same:
        raise error(f"{name}: not canonical JSON (a repeated key, blanks, or another spelling of a value)")
    return value


class Signature(CanonicalModel):
    """One signature: SHA-256 of the raw public key, and the signature in base64."""

    keyid: Digest
    sig: str


class Envelope(CanonicalModel):
    """A DSSE envelope; the payload is standard base64."""

    payloadType: str  # noqa: N815  (the name in the standard)
    payload: str
    signatures: tuple[Signature, ...]

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read an envelope file.

        Raises:
            SignatureError: too large, not JSON, or not in its canonical form.
        """
        return parse_canonical(cls, data, error=SignatureError, name="attestation", limit=MAX_ENVELOPE)


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding: the bytes that are signed (protocol.md, "Signature Definition").

    >>> pae("http://example.com/HelloWorld", b"hello world")
    b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload_type: str, payload: bytes, keys: Sequence[SigningKey]) -> Envelope:
    """Wrap ``payload`` and sign it with each key, in the order of the roles that they stand for."""
    envelope = Envelope(payloadType=payload_type, payload=base64.b64encode(payload).decode(), signatures=())
    for key in keys:
        envelope = add_signature(envelope, key)
    return envelope


def add_signature(envelope: Envelope, key: SigningKey) -> Envelope:
    """The envelope with one more signature at the end.

    Raises:
        SignatureError: the payload is not base64, or this key has signed already.
    """
    if any(found.keyid == key.public.key_id for found in envelope.signatures):
        raise SignatureError("this key has signed the envelope already; each role signs once, with a key of its own")
    message = pae(envelope.payloadType, decode_base64(envelope.payload))
    signature = Signature(keyid=key.public.key_id, sig=base64.b64encode(key.sign(message)).decode())
    return envelope.model_copy(update={"signatures": (*envelope.signatures, signature)})


def decode_base64(text: str) -> bytes:
    """Decode standard base64 (RFC 4648, section 4); a second spelling of the same bytes is refused.

    Raises:
        SignatureError: a character outside the alphabet, wrong padding, or slack bits that are not zero.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = None
    if data is None or base64.b64encode(data).decode() != text:
        raise SignatureError("attestation: payload or signature is not canonical base64")
    return data


def verified_payload(envelope: Envelope, *, roles: Mapping[str, PublicKey]) -> bytes:
    """Return the payload only if every role signed it: once, with its own key, in the order of ``roles``. Pure.

    Raises:
        SignatureError: a signature is missing, repeated, unknown, wrong or out of order; names the role where it can.
    """
    # 1  Roles are different keys, so that nobody signs for another.
    names = {key.key_id: role for role, key in roles.items()}
    if not roles or len(names) != len(roles):
        raise SignatureError(f"{' and '.join(roles) or 'no role'}: every role needs a key of its own")

    # 2  Exactly the roles' keys have signed, once each.
    found = [signature.keyid for signature in envelope.signatures]
    for role, key in roles.items():
        if (times := found.count(key.key_id)) != 1:
            raise SignatureError(f"signature of the {role} is {'missing' if times == 0 else 'repeated'}")
    if unknown := [keyid for keyid in found if keyid not in names]:
        raise SignatureError(f"{len(unknown)} signatures are by keys that nobody trusts, such as {unknown[0][:12]}…")
    if found != list(names):
        raise SignatureError(f"signatures are not in the order {', '.join(roles)}: were the keys exchanged?")

    # 3  Each signature holds over the same bytes.
    payload = decode_base64(envelope.payload)
    message = pae(envelope.payloadType, payload)
    for (role, key), signature in zip(roles.items(), envelope.signatures, strict=True):
        try:
            key.verify(decode_base64(signature.sig), message)
        except SignatureError:
            raise SignatureError(f"signature of the {role} does not hold: the payload or the signature was changed") from None
    return payload
