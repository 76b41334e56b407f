"""The node's cohort: de-identified frames in data/images, their rows in the node's store, and the patient-wise split.

An image exists when its row does, and the images of an object come to exist all at once. Files are complete on disk (written aside, fsync,
renamed) before the rows commit, so a crash leaves at most files that no row names; the next ``CohortStore.intake`` sweeps those. Nothing of
the patient is in a file name: patients and sources are known only by keyed digests (HMAC-SHA256) under data/secret.key, which never leaves the
node. Where the site seals its files (``storage``), each image is sealed for its own id.

A patient's role is drawn by a keyed digest of the patient alone. Balancing strata would make one patient's role depend on who else came, and
"add or remove one patient" would then change more than one patient's part: epsilon would not hold as stated. The journal notes each role with
its stratum (the worst class of the patient's first object), so that ``data_card`` can show how even the strata came out, and with a keyed
digest of role and rule: whoever edits the store has no key to make another, and ``cohort_files.verify`` finds it.
"""

import fcntl
import io
import json
import os
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sqlalchemy import Engine, delete, func, select
from sqlalchemy.orm import Session

from busgen_client import patients
from busgen_client.cohort_rows import DRAWN, ROLES, ImageRow, JournalRow, ObjectRow, PatientRow, QuarantineRow, Role, WithdrawnRow
from busgen_client.database import Base, open_store, store_errors
from busgen_client.image_files import ImageFiles
from busgen_client.pseudonyms import site_pseudonyms
from busgen_client.storage import StorageSettings, Vault
from busgen_core.digests import sha256_bytes
from busgen_core.errors import StateError
from busgen_core.labels import Birads, Pathology
from busgen_privacy.deidentify import BASIC, Choices

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from busgen_client.settings import NodeSettings
    from busgen_privacy.cohort import Cohort

__all__ = [
    "Admission",
    "Box",
    "CohortStore",
    "CohortSummary",
    "ImageRow",
    "JournalRow",
    "NewImage",
    "ObjectRow",
    "Origin",
    "PatientRow",
    "QuarantineRow",
    "Role",
    "open_cohort",
]

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 as fractions of width and height

SMALLEST_CELL = 5  # patients; a cell with fewer is shown as suppressed
ROUNDED_TO = 5  # patients or images; what all other cells and totals are rounded to
PLAIN_STORAGE = StorageSettings(key="none")
ENDED_WELL = b"ended well\n"  # in intake.lock, while no intake runs and the last one left no file behind


class Admission(StrEnum):
    """What became of an image that was handed in."""

    ADDED = "added"
    DUPLICATE = "duplicate"
    ROLE_CONFLICT = "role-conflict"
    PATIENT_CONFLICT = "patient-conflict"
    WITHDRAWN = "withdrawn"


REFUSED = frozenset({Admission.PATIENT_CONFLICT, Admission.ROLE_CONFLICT, Admission.WITHDRAWN})


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """The DICOM object that images come from, by keyed digests: see ``ObjectRow``."""

    object_key: str
    pixels_key: str
    frames_key: str
    class_key: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class NewImage:
    """One clean frame on its way into the cohort.

    Attributes:
        gray: uint8 [rows, columns], de-identified.
        patient_key: As ``Pseudonyms.patient_key`` gives it.
        pathology: Its label.
        box: Lesion box as fractions of this frame, or None.
        device: Scrubbed device model, or empty.
        source_key: Keyed digest of the source object; the same object twice has the same.
        role: Role fixed by the data set's authors, or None for the node's own split.
        origin: The DICOM object that it comes from, if any.
        birads: BI-RADS assessment, or None.
        person: By what the patient is known again, if the source says more than an identifier.
        frame_key: Keyed digest of the frame as it came, where ``source_key`` is made of it and the patient: see ``frame_source``.
    """

    gray: "NDArray[np.uint8]"
    patient_key: str
    pathology: Pathology
    box: Box | None
    device: str
    source_key: str
    role: Role | None = None
    origin: Origin | None = None
    birads: Birads | None = None
    person: patients.Person | None = None
    frame_key: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class CohortSummary:
    """Counts for people at the hospital, as ``shown_count`` has them.

    Attributes:
        patients: Patients of each role and pathology; a patient with two kinds of image is in two cells.
        images: Images of the same cells, suppressed together with them.
        quarantined: Objects in quarantine by code, exact: a list of work, in which each object is named anyway.
    """

    patients: Mapping[str, Mapping[Pathology, int | None]]
    images: Mapping[str, Mapping[Pathology, int | None]]
    quarantined: Mapping[str, int]


def shown_count(count: int, *, patients: int | None = None) -> int | None:
    """A count as it may lie on a desk: the nearest multiple of ``ROUNDED_TO``, or None for fewer than ``SMALLEST_CELL`` patients, zero included.

    Every cell and every total is rounded by itself, so that a cell that is not shown is no difference of others. No promise of privacy: two
    tables of different days differ by who came in between.

    Args:
        count: Of patients, or of what ``patients`` of them have.
        patients: Not given, ``count`` is of patients.

    >>> [shown_count(count) for count in (0, 4, 5, 7, 8, 30)], shown_count(40, patients=1)
    ([None, None, 5, 5, 10, 30], None)
    """
    if (count if patients is None else patients) < SMALLEST_CELL:
        return None
    return (count + ROUNDED_TO // 2) // ROUNDED_TO * ROUNDED_TO


class CohortStore:
    """The only door to the cohort's rows and files.

    Args:
        engine: The node's store, as ``busgen_client.database.open_store`` opens it.
        data: The node's data folder; holds ``images/`` and ``secret.key``.
        choices: What the site keeps of headers; for those who take images in.
        vault: Seals and opens the image files; not given, files are written as they are.
        mapping: The site's file of histologies; for those who take images in.

    Attributes:
        files: The files of its images.
        pseudonyms: How patients, objects and sources are known here.

    Raises:
        StateError: the secret is missing, damaged, readable by others, or not the one this cohort was keyed with.
        UnavailableError: the store or the folder cannot be read or written.
    """

    def __init__(self, engine: Engine, data: Path, choices: Choices = BASIC, vault: Vault | None = None, mapping: Path | None = None) -> None:
        self.choices, self.mapping, self.vault = choices, mapping, vault or Vault(data, PLAIN_STORAGE)
        self._engine, self._data, self._swept = engine, data, False
        self.files = ImageFiles(engine, data, self.vault)
        with store_errors(), Session(engine) as session:
            self.pseudonyms = site_pseudonyms(session, data)

    @property
    def engine(self) -> Engine:
        """The node's store, for tables beside the cohort's."""
        return self._engine

    @property
    def data(self) -> Path:
        """The node's data folder, for files beside the cohort's."""
        return self._data

    def patient_of(self, person: patients.Person) -> str | None:
        """The key of the patient whom an object belongs to; None where its marks contradict each other (see ``patients.resolve``)."""
        with store_errors(), Session(self._engine) as session:
            return patients.resolve(session, person)

    def as_known(self, image: NewImage) -> NewImage | None:
        """An image that waited, as the patient's whose it is by what is known now; None where its marks contradict each other.

        Raises:
            StateError: it is another's now, and was held back by an earlier version, which did not keep what a change of hands needs.
        """
        person = image.person or patients.Person(key=image.patient_key)
        patient_key = image.patient_key if self.withdrawn(person) else self.patient_of(person)
        if patient_key is None:
            return None
        if patient_key == image.patient_key:
            return image
        if image.person is None:  # its source key does not depend on the patient
            return replace(image, patient_key=patient_key)
        if not image.frame_key:
            raise StateError("whose this object is was learnt since it was held back, by an earlier version; take it in again")
        return replace(image, patient_key=patient_key, source_key=self.pseudonyms.frame_source(patient_key, image.frame_key))

    def learn(self, person: patients.Person) -> None:
        """Note by what else a patient of the cohort is known, from an object that brings no new image; nothing of anybody else."""
        with store_errors(), Session(self._engine) as session:
            patient_key = patients.resolve(session, person)
            if patient_key and session.get(PatientRow, patient_key):
                patients.remember(session, patient_key, person)
                session.commit()

    def canonical(self, patient_key: str) -> str:
        """The key under which a patient is held, given that of any identifier of theirs."""
        with store_errors(), Session(self._engine) as session:
            return patients.canonical(session, patient_key)

    def withdrawn(self, person: patients.Person) -> bool:
        """Whether an object belongs to a patient who withdrew consent."""
        with store_errors(), Session(self._engine) as session:
            return self._withdrawn(session, person.key, person)

    def _withdrawn(self, session: Session, patient_key: str, person: patients.Person | None) -> bool:
        buried = session.get(WithdrawnRow, self.pseudonyms.tombstone(patient_key)) is not None
        return buried or patients.is_buried(session, self.pseudonyms.key, person or patients.Person(key=patient_key))

    @contextmanager
    def intake(self) -> Iterator[None]:
        """Hold the cohort for one intake. Files that a crash left without a row are swept first.

        That looks at every image, so it is done once for each ``CohortStore``, and after an intake, of any process, that did not end well.

        Raises:
            StateError: another intake is running.
        """
        from busgen_client.held import HeldStore  # imports us

        with self._locked() as lock:
            ended_well = lock.read() == ENDED_WELL
            lock.truncate(0)
            os.fsync(lock.fileno())  # before the first file without a row
            if not (ended_well and self._swept):
                self.files.sweep()
                HeldStore(self).sweep()
                self._swept = True
            yield
            lock.write(ENDED_WELL)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Keep every intake out and change nothing.

        Raises:
            StateError: an intake is running.
        """
        with self._locked():
            yield

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """``intake.lock``, held, at its beginning; what is written goes to its end."""
        with store_errors(), (self._data / "intake.lock").open("ab+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateError("another intake is running on this node; wait for it to end") from None
            lock.seek(0)
            yield lock

    def add(self, image: NewImage, *, clears: str = "") -> Admission:
        """``add_all`` of one image."""
        return self.add_all([image], clears=clears)[0]

    def add_all(self, images: Sequence[NewImage], *, clears: str = "", renew: bool = False, beside: Sequence[Base] = ()) -> list[Admission]:
        """Admit all images of an object or none: files first, then one transaction with rows, patient, journal and the lifted quarantine.

        Args:
            images: Its clean frames, of one patient.
            clears: Quarantine key that is lifted by this admission.
            renew: Store images that are there already anew, as they are here: a person blacked something out.
            beside: Rows that are written in the same transaction.

        Returns:
            What became of each; where one is refused, all are.

        Raises:
            StorageFullError: no room; nothing was admitted.
        """
        with store_errors(), Session(self._engine) as session, ExitStack() as undo:
            outcomes = [self._admitted(session, undo, image) for image in images]
            if refused := next((each for each in outcomes if each in REFUSED), None):
                return [refused] * len(outcomes)
            there = [image for image, outcome in zip(images, outcomes, strict=True) if renew and outcome is Admission.DUPLICATE]
            replaced = [self._renewed(session, undo, image) for image in there]
            for row in (*_object_rows(images), *beside):
                session.merge(row)
            session.execute(delete(QuarantineRow).where(QuarantineRow.source_key == clears))
            session.commit()
            undo.pop_all()
            self.files.delete(replaced)
        return outcomes

    def _admitted(self, session: Session, undo: ExitStack, image: NewImage) -> Admission:
        """Write one file and its rows, in the caller's transaction."""
        if self._withdrawn(session, image.patient_key, image.person):
            return Admission.WITHDRAWN
        if image.origin and (before := session.get(ObjectRow, image.origin.object_key)) and before.patient_key != image.patient_key:
            return Admission.PATIENT_CONFLICT
        if whose := session.scalar(select(ImageRow.patient_key).where(ImageRow.source_key == image.source_key)):
            return self._again(session, image, whose)
        patient = session.get(PatientRow, image.patient_key)
        if patient is not None and image.role not in (None, patient.role):
            return Admission.ROLE_CONFLICT
        patient = patient or self._new_patient(session, image)
        if image.person is not None:
            patients.remember(session, image.patient_key, image.person)
        image_id = uuid.uuid4().hex
        file, sha256 = self._written(undo, image, image_id, self.files.name_for(session, image_id))
        row = ImageRow(
            image_id=image_id,
            patient_key=image.patient_key,
            role=patient.role,
            pathology=image.pathology.value,
            birads=image.birads,
            box=None if image.box is None else list(image.box),
            device=image.device,
            file=file,
            sha256=sha256,
            source_key=image.source_key,
        )
        session.add(row)
        return Admission.ADDED

    def _again(self, session: Session, image: NewImage, whose: str) -> Admission:
        """An image that is there already: the same patient's, of whom it may say more, or nobody knows whose."""
        if whose != image.patient_key:
            return Admission.PATIENT_CONFLICT
        if image.person is not None:
            patients.remember(session, whose, image.person)
        return Admission.DUPLICATE

    def _new_patient(self, session: Session, image: NewImage) -> PatientRow:
        role = image.role or self.pseudonyms.own_role(image.patient_key)
        patient = PatientRow(patient_key=image.patient_key, role=role, rule="given" if image.role else DRAWN)
        proof = self.pseudonyms.role_proof(image.patient_key, role=role, rule=patient.rule)
        detail = {"patient": image.patient_key, "role": role, "rule": patient.rule, "stratum": image.pathology.value, "proof": proof}
        session.add_all([patient, JournalRow(event="split", detail=json.dumps(detail))])
        session.flush()
        return patient

    def _renewed(self, session: Session, undo: ExitStack, image: NewImage) -> str:
        """Store an image that is there already as it is here, under the same id; returns the name of the file that it had.

        What is black in that one stays black, since a person may have blacked it out; where it was cut otherwise, it is replaced.
        """
        row = session.scalars(select(ImageRow).where(ImageRow.source_key == image.source_key)).one()
        before, gray = row.file, _black_in_both(image.gray, self.files.read(row))
        name = self.files.name_for(session, row.image_id, anew=True)
        row.file, row.sha256 = self._written(undo, replace(image, gray=gray), row.image_id, name)
        row.box = None if image.box is None or row.pathology == Pathology.NORMAL else list(image.box)
        return before

    def _written(self, undo: ExitStack, image: NewImage, image_id: str, name: str) -> tuple[str, str]:
        """Write a file that goes again unless ``undo`` is emptied; returns its name and the SHA-256 of its PNG."""
        from busgen_core.images import encode_png

        png = encode_png(image.gray, quick=True)
        undo.callback(self.files.delete, [name])
        self.files.write(name, image_id, png)
        return name, sha256_bytes(png)

    def forget(self, session: Session, patient_key: str) -> tuple[Role | None, frozenset[str]]:
        """Delete every row of a patient in the caller's transaction; the files go with ``ImageFiles.sweep`` once it is committed.

        Returns:
            The patient's role, or None for a patient of whom there is nothing, and the ids of the images that go.
        """
        patient = session.get(PatientRow, patient_key)
        images = frozenset(session.scalars(select(ImageRow.image_id).where(ImageRow.patient_key == patient_key)))
        session.execute(delete(ImageRow).where(ImageRow.patient_key == patient_key))
        session.execute(delete(ObjectRow).where(ObjectRow.patient_key == patient_key))
        session.execute(delete(PatientRow).where(PatientRow.patient_key == patient_key))
        patients.bury(session, self.pseudonyms.key, patient_key)
        session.execute(delete(JournalRow).where(JournalRow.event == "split", JournalRow.detail.contains(patient_key, autoescape=True)))
        session.add(JournalRow(event="consent.withdrawn", detail=json.dumps({"images": len(images)})))
        return (None if patient is None else _role(patient.role)), images

    def quarantine(self, source_key: str, *, code: str, reason: str, object_key: str = "") -> None:
        """Note that an object waits; a second look at the same object replaces code and reason.

        Args:
            object_key: As ``QuarantineRow`` has it; empty if it is not known.
        """
        with store_errors(), Session(self._engine) as session:
            row = session.scalar(select(QuarantineRow).where(QuarantineRow.source_key == source_key))
            if row is None:
                session.add(QuarantineRow(source_key=source_key, code=code, reason=reason, object_key=object_key or None, looks=1))
            else:
                row.looks = (row.looks or 0) + 1 if row.code == code else 1
                row.code, row.reason, row.object_key = code, reason, object_key or row.object_key
            session.commit()

    def looks(self, source_key: str) -> int:
        """How often in a row an object that waits was looked at for nothing."""
        with store_errors(), Session(self._engine) as session:
            return session.scalar(select(QuarantineRow.looks).where(QuarantineRow.source_key == source_key)) or 0

    def taken(self, object_key: str) -> ObjectRow | None:
        """A DICOM object as it was taken in; None for one that was not."""
        with store_errors(), Session(self._engine) as session:
            return session.get(ObjectRow, object_key)

    def owner(self, source_key: str) -> str | None:
        """The key of the patient whose image this is; None where it is not in the cohort."""
        with store_errors(), Session(self._engine) as session:
            return session.scalar(select(ImageRow.patient_key).where(ImageRow.source_key == source_key))

    def holds(self, source_key: str, patient_key: str, role: Role | None) -> bool:
        """Whether this very image is in the cohort, with this patient and, unless None, in this role."""
        same = [ImageRow.source_key == source_key, ImageRow.patient_key == patient_key, *([ImageRow.role == role] if role else [])]
        with store_errors(), Session(self._engine) as session:
            return session.scalar(select(ImageRow.image_id).where(*same)) is not None

    def lift(self, source_key: str) -> None:
        """End the waiting of an object that need not wait any more."""
        with store_errors(), Session(self._engine) as session:
            session.execute(delete(QuarantineRow).where(QuarantineRow.source_key == source_key))
            session.commit()

    def lift_others(self, object_key: str, codes: Collection[str]) -> None:
        """End the waiting of whatever came as a DICOM object before, for one of ``codes``; ``object_key`` as ``QuarantineRow`` has it."""
        others = delete(QuarantineRow).where(QuarantineRow.object_key == object_key, QuarantineRow.code.in_(codes))
        with store_errors(), Session(self._engine) as session:
            session.execute(others)
            session.commit()

    def note(self, event: str, detail: Mapping[str, object]) -> None:
        """Add one line to the journal."""
        with store_errors(), Session(self._engine) as session:
            session.add(JournalRow(event=event, detail=json.dumps(detail, sort_keys=True)))
            session.commit()

    def ids(self, role: Role) -> list[str]:
        """Ids of a role's images, in order: what a job is bound to, since intake may go on while it works."""
        with store_errors(), Session(self._engine) as session:
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

        with store_errors(), Session(self._engine) as session:
            rows = session.scalars(select(ImageRow).where(ImageRow.role == role).order_by(ImageRow.image_id)).all()
        if only is not None:
            rows = [row for row in rows if row.image_id in set(only)]
            if len(rows) != len(only):
                raise StateError(f"{len(only) - len(rows)} images of the job's cohort are gone; the job cannot go on")
        frames = [decode_gray(self.files.read(row), size=size) for row in rows]
        return Cohort(
            images=np.stack(frames) if frames else np.zeros((0, size, size), np.uint8),
            classes=tuple(Pathology(row.pathology) for row in rows),
            boxes=tuple(None if row.box is None else (row.box[0], row.box[1], row.box[2], row.box[3]) for row in rows),
            patients=tuple(row.patient_key for row in rows),
        )

    def png(self, image_id: str) -> bytes:
        """One image as it was stored.

        Raises:
            StateError: there is none.
            CorruptImageError: the file is missing, or is not the bytes that were stored.
            StorageKeyError: it is sealed, and the key is not there.
        """
        with store_errors(), Session(self._engine) as session:
            row = session.get(ImageRow, image_id)
        if row is None:
            raise StateError("no image of this id is in the cohort")
        return self.files.read(row)

    def rows(self) -> Sequence[ImageRow]:
        """All images, in the order of their ids."""
        with store_errors(), Session(self._engine) as session:
            return session.scalars(select(ImageRow).order_by(ImageRow.image_id)).all()

    def split(self) -> tuple[dict[str, PatientRow], list[dict[str, str]]]:
        """Patients by key, and the journal's line about each role, in order."""
        with store_errors(), Session(self._engine) as session:
            people = {row.patient_key: row for row in session.scalars(select(PatientRow))}
            return people, [json.loads(line) for line in session.scalars(select(JournalRow.detail).where(JournalRow.event == "split"))]

    def count_patients(self, role: Role) -> int:
        """Exact number of patients of a role; for decisions inside the node, never for a release."""
        with store_errors(), Session(self._engine) as session:
            return session.scalar(select(func.count(ImageRow.patient_key.distinct())).where(ImageRow.role == role)) or 0

    def summary(self) -> CohortSummary:
        """Counts by role and pathology, small cells suppressed and others rounded, and the quarantine by code."""
        counted = (ImageRow.role, ImageRow.pathology, func.count(ImageRow.patient_key.distinct()), func.count())
        with store_errors(), Session(self._engine) as session:
            cells = {(role, name): (p, i) for role, name, p, i in session.execute(select(*counted).group_by(ImageRow.role, ImageRow.pathology))}
            held = session.execute(
                select(QuarantineRow.code, func.count().label("held")).group_by(QuarantineRow.code).order_by(QuarantineRow.code)
            ).all()

        def table(column: int) -> dict[str, dict[Pathology, int | None]]:
            shown = {cell: shown_count(counts[column], patients=counts[0]) for cell, counts in cells.items()}
            return {role: {p: shown.get((role, p.value)) for p in Pathology} for role in ROLES}

        return CohortSummary(patients=table(0), images=table(1), quarantined={row.code: row.held for row in held})


def _black_in_both(gray: "NDArray[np.uint8]", png: bytes) -> "NDArray[np.uint8]":
    """``gray``, black where the picture in ``png`` is, if that is of the same size."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        stored = np.asarray(picture)
    return np.where(stored == 0, np.uint8(0), gray) if stored.shape == gray.shape else gray


def _object_rows(images: Sequence[NewImage]) -> list[ObjectRow]:
    """What is noted of the DICOM object behind ``images``, if there is one."""
    if not images or (origin := images[0].origin) is None:
        return []
    row = ObjectRow(
        object_key=origin.object_key,
        patient_key=images[0].patient_key,
        pixels_key=origin.pixels_key,
        frames_key=origin.frames_key,
        images=len(images),
        class_key=origin.class_key or None,
    )
    return [row]


def _role(text: str) -> Role:
    return "member" if text == "member" else "holdout"


def open_cohort(settings: "NodeSettings", engine: Engine | None = None) -> CohortStore:
    """The cohort of a node, as its settings have it; with the node's store, if that is open already."""
    vault = Vault(settings.data, settings.storage)
    return CohortStore(engine or open_store(settings.data), settings.data, settings.deidentify, vault, settings.labels.mapping)
