"""The node's cohort: de-identified frames in data/images, their rows in the node's store, and the patient-wise split.

An image exists when its row does. The PNG is complete on disk (written aside, fsync, renamed) before the row commits, so a crash
leaves at most a file that no row names; ``CohortStore.intake`` sweeps those. Nothing of the patient is in a file name: patients and
sources are known only by keyed digests (HMAC-SHA256) under data/secret.key, which never leaves the node.
"""

import fcntl
import hashlib
import hmac
import json
import os
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sqlalchemy import Engine, delete, func, select
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from busgen_client.cohort_rows import ImageRow, JournalRow, PatientRow, QuarantineRow, WithdrawnRow
from busgen_core.digests import sha256_bytes
from busgen_core.errors import CorruptImageError, InputError, StateError, UnavailableError
from busgen_core.labels import Pathology

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from busgen_privacy.cohort import Cohort

__all__ = ["Admission", "Box", "CohortStore", "CohortSummary", "ImageRow", "JournalRow", "NewImage", "PatientRow", "QuarantineRow", "Role"]

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 as fractions of width and height
Role = Literal["member", "holdout"]
ROLES: tuple[Role, ...] = ("member", "holdout")

MEMBER_SHARE = 0.6  # of patients; the rest is set aside for audits and scores
SMALLEST_CELL = 5  # patients; a cell with fewer is shown as suppressed
SECRET_BYTES = 32  # HMAC-SHA256 wants a key as long as its output (RFC 2104, section 3)


class Admission(StrEnum):
    """What became of an image that was handed in."""

    ADDED = "added"
    DUPLICATE = "duplicate"
    ROLE_CONFLICT = "role-conflict"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, kw_only=True, slots=True)
class NewImage:
    """One clean frame on its way into the cohort.

    Attributes:
        gray: uint8 [rows, columns], de-identified.
        patient_key: As ``CohortStore.patient_key`` gives it.
        pathology: Its label.
        box: Lesion box as fractions of this frame, or None.
        device: Scrubbed device model, or empty.
        source_key: Keyed digest of the source object; the same object twice has the same.
        role: Role fixed by the data set's authors, or None for the node's own split.
    """

    gray: "NDArray[np.uint8]"
    patient_key: str
    pathology: Pathology
    box: Box | None
    device: str
    source_key: str
    role: Role | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CohortSummary:
    """Counts for people at the hospital. None stands for a cell with fewer than ``SMALLEST_CELL`` patients, zero included.

    Attributes:
        patients: Patients of each role and pathology; a patient with two kinds of image is in two cells.
        images: Images of the same cells, suppressed together with them.
        quarantined: Objects in quarantine by code.
    """

    patients: Mapping[str, Mapping[Pathology, int | None]]
    images: Mapping[str, Mapping[Pathology, int | None]]
    quarantined: Mapping[str, int]


class CohortStore:
    """The only door to the cohort's rows and files.

    Args:
        engine: The node's store, as ``busgen_client.database.open_store`` opens it.
        data: The node's data folder; holds ``images/`` and ``secret.key``.

    Raises:
        StateError: the secret is missing, damaged, readable by others, or not the one this cohort was keyed with.
        UnavailableError: the store or the folder cannot be read or written.
    """

    def __init__(self, engine: Engine, data: Path) -> None:
        self._engine, self._data, self._folder = engine, data, data / "images"
        with _storage():
            self._folder.mkdir(parents=True, exist_ok=True)
            with Session(engine) as session:
                self._secret = self._checked_secret(session)

    def _checked_secret(self, session: Session) -> bytes:
        """The secret, created at first use; its check value in the journal tells when another was put in its place."""
        stated = session.scalar(select(JournalRow.detail).where(JournalRow.event == "secret"))
        secret = _read_secret(self._data / "secret.key", create=stated is None)
        check = json.dumps({"check": hmac.digest(secret, b"check", "sha256").hex()})
        if stated is None:
            session.add(JournalRow(event="secret", detail=check))
            session.commit()
        elif stated != check:
            raise StateError("secret.key is not the key this cohort was built with; restore it from the backup taken with the store")
        return secret

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

    def tombstone(self, patient_key: str) -> str:
        """What is kept of a patient who withdrew consent: a keyed digest of the key, hexadecimal."""
        return self.key("withdrawn", patient_key)

    def own_role(self, patient_key: str) -> Role:
        """Role by the node's own split: a uniform draw keyed by the secret, so it needs no memory and nobody can steer it."""
        draw = int(self.key("split", patient_key)[:16], 16) / 2**64
        return "member" if draw < MEMBER_SHARE else "holdout"

    @contextmanager
    def intake(self) -> Iterator[None]:
        """Hold the cohort for one intake; files that a crash left without a row are swept first.

        Raises:
            StateError: another intake is running.
        """
        with _storage(), (self._data / "intake.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateError("another intake is running on this node; wait for it to end") from None
            self.sweep()
            yield

    def sweep(self) -> None:
        """Delete image files that no row names; only while ``intake`` is held, since intake writes the file before the row."""
        with _storage(), Session(self._engine) as session:
            known = set(session.scalars(select(ImageRow.file)))
            for file in self._folder.iterdir():
                if file.name not in known:
                    file.unlink()

    def add(self, image: NewImage, *, clears: str = "") -> Admission:
        """Admit one image: file first, then row, patient, journal and the lifted quarantine in one transaction.

        Args:
            image: The clean frame.
            clears: Quarantine key that is lifted by this admission.
        """
        from busgen_core.images import encode_png

        with _storage(), Session(self._engine) as session:
            if session.get(WithdrawnRow, self.tombstone(image.patient_key)) is not None:
                return Admission.WITHDRAWN
            if session.scalar(select(ImageRow.image_id).where(ImageRow.source_key == image.source_key)):
                session.execute(delete(QuarantineRow).where(QuarantineRow.source_key == clears))
                session.commit()
                return Admission.DUPLICATE
            patient = session.get(PatientRow, image.patient_key)
            if patient is not None and image.role not in (None, patient.role):
                return Admission.ROLE_CONFLICT
            if patient is None:
                role = image.role or self.own_role(image.patient_key)
                patient = PatientRow(patient_key=image.patient_key, role=role, rule="given" if image.role else "hmac-60-40")
                detail = json.dumps({"patient": image.patient_key, "role": role, "rule": patient.rule})
                session.add_all([patient, JournalRow(event="split", detail=detail)])
            image_id, png = uuid.uuid4().hex, encode_png(image.gray)
            row = ImageRow(
                image_id=image_id,
                patient_key=image.patient_key,
                role=patient.role,
                pathology=image.pathology.value,
                box=None if image.box is None else list(image.box),
                device=image.device,
                file=f"{image_id}.png",
                sha256=sha256_bytes(png),
                source_key=image.source_key,
            )
            session.add(row)
            session.execute(delete(QuarantineRow).where(QuarantineRow.source_key == clears))
            _write_whole(self._folder / row.file, png)
            try:
                session.commit()
            except DatabaseError:
                (self._folder / f"{image_id}.png").unlink()
                raise
            return Admission.ADDED

    def forget(self, session: Session, patient_key: str) -> tuple[Role | None, frozenset[str]]:
        """Delete every row of a patient in the caller's transaction; the files go with ``sweep`` once it is committed.

        Returns:
            The patient's role, or None for a patient of whom there is nothing, and the ids of the images that go.
        """
        patient = session.get(PatientRow, patient_key)
        images = frozenset(session.scalars(select(ImageRow.image_id).where(ImageRow.patient_key == patient_key)))
        session.execute(delete(ImageRow).where(ImageRow.patient_key == patient_key))
        session.execute(delete(PatientRow).where(PatientRow.patient_key == patient_key))
        session.execute(delete(JournalRow).where(JournalRow.event == "split", JournalRow.detail.contains(patient_key, autoescape=True)))
        session.add(JournalRow(event="consent.withdrawn", detail=json.dumps({"images": len(images)})))
        return (None if patient is None else _role(patient.role)), images

    def quarantine(self, source_key: str, *, code: str, reason: str) -> None:
        """Note that an object waits; a second look at the same object replaces code and reason."""
        with _storage(), Session(self._engine) as session:
            row = session.scalar(select(QuarantineRow).where(QuarantineRow.source_key == source_key))
            if row is None:
                session.add(QuarantineRow(source_key=source_key, code=code, reason=reason))
            else:
                row.code, row.reason = code, reason
            session.commit()

    def note(self, event: str, detail: Mapping[str, object]) -> None:
        """Add one line to the journal."""
        with _storage(), Session(self._engine) as session:
            session.add(JournalRow(event=event, detail=json.dumps(detail, sort_keys=True)))
            session.commit()

    def ids(self, role: Role) -> list[str]:
        """Ids of a role's images, in order: what a job is bound to, since intake may go on while it works."""
        with _storage(), Session(self._engine) as session:
            return list(session.scalars(select(ImageRow.image_id).where(ImageRow.role == role).order_by(ImageRow.image_id)))

    def load(self, role: Role, *, size: int = 64, only: Collection[str] | None = None) -> "Cohort":
        """All images of a role (or those named by ``only``), resized to [size, size], ordered by image id.

        Raises:
            CorruptImageError: a file is missing, or is not the bytes that were stored.
            StateError: an image of ``only`` is no longer there.
        """
        import numpy as np

        from busgen_core.images import decode_gray  # imports torch
        from busgen_privacy.cohort import Cohort

        with _storage(), Session(self._engine) as session:
            rows = session.scalars(select(ImageRow).where(ImageRow.role == role).order_by(ImageRow.image_id)).all()
        if only is not None:
            rows = [row for row in rows if row.image_id in set(only)]
            if len(rows) != len(only):
                raise StateError(f"{len(only) - len(rows)} images of the job's cohort are gone; the job cannot go on")
        frames = [decode_gray(self._stored(row), size=size) for row in rows]
        return Cohort(
            images=np.stack(frames) if frames else np.zeros((0, size, size), np.uint8),
            classes=tuple(Pathology(row.pathology) for row in rows),
            boxes=tuple(None if row.box is None else (row.box[0], row.box[1], row.box[2], row.box[3]) for row in rows),
            patients=tuple(row.patient_key for row in rows),
        )

    def _stored(self, row: ImageRow) -> bytes:
        try:
            data = (self._folder / row.file).read_bytes()
        except FileNotFoundError:
            raise CorruptImageError(f"image {row.image_id} is missing from the data folder; restore it from the backup") from None
        if sha256_bytes(data) != row.sha256:
            raise CorruptImageError(f"image {row.image_id} is not the bytes that were stored; restore it from the backup")
        return data

    def count_patients(self, role: Role) -> int:
        """Exact number of patients of a role; for decisions inside the node, never for a release."""
        with _storage(), Session(self._engine) as session:
            return session.scalar(select(func.count(ImageRow.patient_key.distinct())).where(ImageRow.role == role)) or 0

    def summary(self) -> CohortSummary:
        """Counts by role and pathology with small cells suppressed, and the quarantine by code."""
        counted = (ImageRow.role, ImageRow.pathology, func.count(ImageRow.patient_key.distinct()), func.count())
        with _storage(), Session(self._engine) as session:
            cells = {(role, name): (p, i) for role, name, p, i in session.execute(select(*counted).group_by(ImageRow.role, ImageRow.pathology))}
            held = session.execute(
                select(QuarantineRow.code, func.count().label("held")).group_by(QuarantineRow.code).order_by(QuarantineRow.code)
            ).all()

        def table(column: int) -> dict[str, dict[Pathology, int | None]]:
            shown = {cell: counts[column] for cell, counts in cells.items() if counts[0] >= SMALLEST_CELL}
            return {role: {p: shown.get((role, p.value)) for p in Pathology} for role in ROLES}

        return CohortSummary(patients=table(0), images=table(1), quarantined={row.code: row.held for row in held})


def _role(text: str) -> Role:
    return "member" if text == "member" else "holdout"


@contextmanager
def _storage() -> Iterator[None]:
    """Turn failures of the database and the disk into our own error; their texts may hold values and are dropped."""
    try:
        yield
    except DatabaseError as error:
        raise UnavailableError(f"the node's store cannot be used ({type(error).__name__}); check or restore node.sqlite") from None
    except OSError as error:
        raise UnavailableError(f"the node's data folder cannot be used ({error.strerror or type(error).__name__})") from None


def _write_whole(path: Path, data: bytes) -> None:
    """Write so that the name appears only with all bytes behind it, on disk."""
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_secret(path: Path, *, create: bool) -> bytes:
    """Read ``secret.key``; with ``create``, make it first, mode 0600, in one step that a second process cannot repeat."""
    if create and not path.exists():
        aside = path.with_name(f".{uuid.uuid4().hex}.tmp")
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(os.urandom(SECRET_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(aside, path)
        except FileExistsError:
            pass
        finally:
            aside.unlink()
    if not path.exists():
        raise StateError("secret.key is missing; a new one would split the patients anew, so restore it from the backup")
    if path.stat().st_mode & 0o077:
        raise StateError("secret.key can be read by other users; set its mode to 0600")
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise StateError(f"secret.key does not hold {SECRET_BYTES} bytes; restore it from the backup")
    return secret
