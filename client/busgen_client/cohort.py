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
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sqlalchemy import Engine, delete, func, select
from sqlalchemy.orm import Session

from busgen_client import patients
from busgen_client.admission import Admission, NewImage, admit, is_withdrawn
from busgen_client.cohort_counts import CohortSummary, summarise
from busgen_client.cohort_rows import ImageRow, JournalRow, ObjectRow, PatientRow, QuarantineRow, Role
from busgen_client.database import Base, open_store, store_errors
from busgen_client.image_files import ImageFiles
from busgen_client.pseudonyms import site_pseudonyms
from busgen_client.storage import StorageSettings, Vault
from busgen_core.errors import StateError
from busgen_core.labels import Pathology
from busgen_privacy.deidentify import BASIC, Choices

if TYPE_CHECKING:
    from busgen_client.settings import NodeSettings
    from busgen_privacy.cohort import Cohort

PLAIN_STORAGE = StorageSettings(key="none")
ENDED_WELL = b"ended well\n"  # in intake.lock, while no intake runs and the last one left no file behind


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
            return is_withdrawn(session, self.pseudonyms, person.key, person)

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
        with store_errors(), Session(self._engine) as session:
            return admit(session, self.files, self.pseudonyms, images, clears=clears, renew=renew, beside=beside)

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

        from busgen_core.images import decode_gray
        from busgen_privacy.cohort import Cohort  # imports scipy

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
        with store_errors(), Session(self._engine) as session:
            return summarise(session)


def _role(text: str) -> Role:
    return "member" if text == "member" else "holdout"


def open_cohort(settings: "NodeSettings", engine: Engine | None = None) -> CohortStore:
    """The cohort of a node, as its settings have it; with the node's store, if that is open already."""
    vault = Vault(settings.data, settings.storage)
    return CohortStore(engine or open_store(settings.data), settings.data, settings.deidentify, vault, settings.labels.mapping)
