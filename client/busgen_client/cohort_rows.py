"""Tables of the cohort in the node's store. Patients and sources are in them by keyed digests alone."""

from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import JSON
from sqlalchemy.orm import Mapped, mapped_column

from busgen_client.database import Base

Role = Literal["member", "holdout"]
DRAWN = "hmac-60-40"  # by the node's own draw, ``pseudonyms.own_role``
ROLES: tuple[Role, ...] = ("member", "holdout")
OBJECT_DIGITS = 32  # of a DICOM object's key: what the spool names its files by, and what is left of an object that could not be read


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class PatientRow(Base):
    """One patient's role, fixed at the first image and never changed."""

    __tablename__ = "patients"

    patient_key: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str]
    rule: Mapped[str]  # "given" by the data set's authors, or DRAWN


class MarkRow(Base):
    """One thing by which a patient is known again, as a keyed digest.

    Attributes:
        patient_key: The patient's.
        kind: ``id``: another identifier and issuer than the one the key is made of; ``person``: name with birth date; ``name``; ``birth``.
        mark: The digest.
    """

    __tablename__ = "patient_marks"

    patient_key: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    mark: Mapped[str] = mapped_column(primary_key=True, index=True)


class WithdrawnMarkRow(Base):
    """What is left of a mark of a patient who withdrew consent: a digest of the digest."""

    __tablename__ = "withdrawn_marks"

    tombstone: Mapped[str] = mapped_column(primary_key=True)


class ImageRow(Base):
    """One de-identified frame."""

    __tablename__ = "images"

    image_id: Mapped[str] = mapped_column(primary_key=True)  # random; names the file too
    patient_key: Mapped[str] = mapped_column(index=True)
    role: Mapped[str] = mapped_column(index=True)  # its patient's
    pathology: Mapped[str]
    birads: Mapped[str | None]
    box: Mapped[list[float] | None] = mapped_column(JSON(none_as_null=True))
    device: Mapped[str]  # model, scrubbed; empty if unknown
    file: Mapped[str]  # ends in .sealed if it is; the role and name it is sealed for are "image" and the image's id
    sha256: Mapped[str]  # of the PNG, not of the sealed file
    source_key: Mapped[str] = mapped_column(unique=True)


class ObjectRow(Base):
    """One DICOM object that was taken in whole, under every way in the same: what tells it when it comes again."""

    __tablename__ = "objects"

    object_key: Mapped[str] = mapped_column(primary_key=True)  # keyed digest of its SOP Instance UID
    patient_key: Mapped[str] = mapped_column(index=True)
    pixels_key: Mapped[str]  # keyed digest of its pixel data as it came
    frames_key: Mapped[str]  # keyed digest of its decoded frames: the same when only the transfer syntax changed
    images: Mapped[int]
    class_key: Mapped[str | None]  # keyed digest of its SOP Class UID; None for an object that an earlier version took in


class QuarantineRow(Base):
    """One object that waits: which rule held it back, in words that hold nothing of the patient.

    Attributes:
        object_key: The first ``OBJECT_DIGITS`` of a DICOM object's key, if it came over the network: it is not fetched again.
        looks: How often in a row it was looked at, and waited for the same reason.
    """

    __tablename__ = "quarantine"

    id: Mapped[int] = mapped_column(primary_key=True)
    source_key: Mapped[str] = mapped_column(unique=True)
    code: Mapped[str]
    reason: Mapped[str]
    created: Mapped[str] = mapped_column(default=_now)
    object_key: Mapped[str | None] = mapped_column(index=True)
    looks: Mapped[int | None]


class JournalRow(Base):
    """What happened to the cohort, in order; rows are only added, but for those of a withdrawn patient, which go with the patient."""

    __tablename__ = "journal"

    id: Mapped[int] = mapped_column(primary_key=True)
    created: Mapped[str] = mapped_column(default=_now)
    event: Mapped[str]
    detail: Mapped[str]  # JSON: counts, rules, keyed digests


class WithdrawnRow(Base):
    """One withdrawn consent, without saying whose.

    Attributes:
        tombstone: Keyed digest of the patient's key: a patient who comes again is recognised, the key cannot be read from it.
        account: Whose budget the patient's images were charged to; empty where none were held.
        images: Images that were deleted.
        held: Campaigns whose frozen cohort held the patient, whatever became of them.
        releases: ``[campaign, release]`` of those that had released.
        stopped: Campaigns of those that were stopped.
        finished: Files, ledger and notices are done too; else the same command finishes them.
    """

    __tablename__ = "withdrawn"

    tombstone: Mapped[str] = mapped_column(primary_key=True)
    created: Mapped[str] = mapped_column(default=_now)
    account: Mapped[str] = mapped_column(default="")
    images: Mapped[int] = mapped_column(default=0)
    held: Mapped[list[str]] = mapped_column(JSON, default=list)
    releases: Mapped[list[list[str]]] = mapped_column(JSON, default=list)
    stopped: Mapped[list[str]] = mapped_column(JSON, default=list)
    finished: Mapped[bool] = mapped_column(default=False)
