"""Tables of the quarantine in the node's store, beside the cohort's row of code and reason. Objects and patients are keyed digests alone."""

from sqlalchemy import JSON
from sqlalchemy.orm import Mapped, mapped_column

from busgen_client.database import Base


class HeldRow(Base):
    """What is kept of one waiting object: where its de-identified pixels lie, and what its admission needs.

    Attributes:
        source_key: As in the cohort's quarantine.
        token: Random; its files are ``quarantine/TOKEN-NUMBER``.
        patient_key: Whose it is.
        object_key: Of the DICOM object, empty for others.
        rows: Of a frame, pixels.
        columns: Of a frame, pixels.
        device: Scrubbed device model, or empty.
        pathology: Its label, empty if it has none that can be used.
        images: One for each frame: the fields of ``cohort.NewImage`` but its pixels.
        masks: Boxes drawn so far, x0, y0, x1, y1 in pixels.
    """

    __tablename__ = "held"

    source_key: Mapped[str] = mapped_column(primary_key=True)
    token: Mapped[str]
    patient_key: Mapped[str] = mapped_column(index=True)
    object_key: Mapped[str] = mapped_column(index=True)
    rows: Mapped[int]
    columns: Mapped[int]
    device: Mapped[str]
    pathology: Mapped[str]
    images: Mapped[list[dict[str, object]]] = mapped_column(JSON)
    masks: Mapped[list[list[int]]] = mapped_column(JSON)


class DecisionRow(Base):
    """What a person decided of one object, so that the same object does not wait again. Who and when is in the journal."""

    __tablename__ = "decisions"

    source_key: Mapped[str] = mapped_column(primary_key=True)
    object_key: Mapped[str] = mapped_column(index=True)
    verdict: Mapped[str]  # "released" or "deleted"


class PlaceRow(Base):
    """As what a row of a table waits: by its picture, and when that is corrected, what waited for the row before waits no more."""

    __tablename__ = "waiting_places"

    place: Mapped[str] = mapped_column(primary_key=True)  # keyed digest of folder and row
    source_key: Mapped[str] = mapped_column(index=True)


class DeviceRow(Base):
    """One model of scanner that a person here has vouched for. Who and when is in the journal."""

    __tablename__ = "trusted_devices"

    device: Mapped[str] = mapped_column(primary_key=True)  # as ``busgen_client.held.model_name`` writes it
