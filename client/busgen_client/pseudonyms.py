"""Pseudonyms: how patients, objects and sources are known in the node's data.

Each is an HMAC-SHA256 under data/secret.key, which never leaves the node; nothing of a patient can be computed back from one, and two sites
have different ones for the same patient.
"""

import hashlib
import hmac
import json
import os
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from busgen_client import patients
from busgen_client.cohort_rows import JournalRow, Role
from busgen_client.storage_keys import secret_in
from busgen_core.errors import InputError, StateError
from busgen_core.files import create_once

MEMBER_SHARE = 0.6  # of patients; the rest is set aside for audits and scores
SECRET_BYTES = 32  # HMAC-SHA256 wants a key as long as its output (RFC 2104, section 3)


class Pseudonyms:
    """Keyed digests, and what is drawn by them.

    Args:
        secret: The site's own, ``SECRET_BYTES`` long.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def key(self, kind: str, *parts: bytes | str) -> str:
        """Keyed digest of ``parts``, hexadecimal: lengths are part of it, so no two lists of parts run together."""
        mac = hmac.new(self._secret, kind.encode() + b"\0", hashlib.sha256)
        for part in parts:
            data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
            mac.update(len(data).to_bytes(8, "big") + data)
        return mac.hexdigest()

    def patient_key(self, patient_id: str, *, issuer: str = "") -> str:
        """The opaque key of a patient; the same identifier and issuer give the same key whatever the source.

        Raises:
            InputError: the identifier is empty, so nobody could tell this patient from another.
        """
        if not patient_id.strip():
            raise InputError("a patient identifier is empty")
        return self.key("patient", issuer.strip(), patient_id.strip())

    def person(self, patient_id: str, *, issuer: str = "", name: str = "", birth_date: str = "") -> patients.Person:
        """What an object says of its patient, digested; name and birth date as DICOM's PN and DA.

        Raises:
            InputError: the identifier is empty.
        """
        return patients.person_of(self.key, self.patient_key(patient_id, issuer=issuer), name=name, birth_date=birth_date)

    def object_key(self, sop_uid: str) -> str:
        """The opaque key of a DICOM object."""
        return self.key("object", sop_uid)

    def frame_source(self, patient_key: str, frame_key: str) -> str:
        """The source key of a frame within a patient; ``frame_key`` is a keyed digest of the frame alone."""
        return self.key("frame", patient_key, frame_key)

    def class_key(self, sop_class: str) -> str:
        """The opaque key of a SOP class: nothing that a header says is stored as it stands."""
        return self.key("class", sop_class)

    def tombstone(self, patient_key: str) -> str:
        """What is kept of a patient who withdrew consent: a keyed digest of the key, hexadecimal."""
        return self.key("withdrawn", patient_key)

    def own_role(self, patient_key: str) -> Role:
        """Role by the node's own split: a uniform draw keyed by the secret, so it needs no memory and nobody can steer it."""
        draw = int(self.key("split", patient_key)[:16], 16) / 2**64
        return "member" if draw < MEMBER_SHARE else "holdout"

    def role_proof(self, patient_key: str, *, role: str, rule: str) -> str:
        """What the journal keeps beside a role, so that ``cohort verify`` can tell whether it was edited."""
        return self.key("role", patient_key, role, rule)


def site_pseudonyms(session: Session, data: Path) -> Pseudonyms:
    """The site's, by ``secret.key`` in its data folder, made at first use; its check value in the journal tells if another was put in its place.

    Raises:
        StateError: the secret is missing, damaged, readable by others, or not the one that the journal speaks of.
    """
    stated = session.scalar(select(JournalRow.detail).where(JournalRow.event == "secret"))
    secret = _read_secret(data / "secret.key", create=stated is None)
    check = json.dumps({"check": hmac.digest(secret, b"check", "sha256").hex()})
    if stated is None:
        session.add(JournalRow(event="secret", detail=check))
        session.commit()
    elif stated != check:
        raise StateError("secret.key is not the key this cohort was built with; restore it from the backup taken with the store")
    return Pseudonyms(secret)


def _read_secret(path: Path, *, create: bool) -> bytes:
    """Read ``secret.key``; with ``create``, make it first."""
    if create and not path.exists():
        create_once(path, os.urandom(SECRET_BYTES))
    return secret_in(path, SECRET_BYTES, missing="a new one would split the patients anew, so restore it from the backup")
