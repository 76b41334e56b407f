"""Admission: clean frames on their way into the cohort. All images of an object come to exist, or none.

Files are complete on disk before the rows that name them commit; where anything fails in between, they go again. What a crash leaves without a
row is swept by the next ``CohortStore.intake``.
"""

import io
import json
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from busgen_client import patients
from busgen_client.cohort_rows import DRAWN, ImageRow, JournalRow, ObjectRow, PatientRow, QuarantineRow, Role, WithdrawnRow
from busgen_client.database import Base
from busgen_client.image_files import ImageFiles
from busgen_client.pseudonyms import Pseudonyms
from busgen_core.digests import sha256_bytes
from busgen_core.labels import Birads, Pathology

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from busgen_core.images import Box


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
    box: "Box | None"
    device: str
    source_key: str
    role: Role | None = None
    origin: Origin | None = None
    birads: Birads | None = None
    person: patients.Person | None = None
    frame_key: str = ""


def is_withdrawn(session: Session, pseudonyms: Pseudonyms, patient_key: str, person: patients.Person | None) -> bool:
    """Whether an object belongs to a patient who withdrew consent: by the key under which the patient is held, or by any mark of the object's own."""
    buried = session.get(WithdrawnRow, pseudonyms.tombstone(patient_key)) is not None
    return buried or patients.is_buried(session, pseudonyms.key, person or patients.Person(key=patient_key))


def admit(
    session: Session,
    files: ImageFiles,
    pseudonyms: Pseudonyms,
    images: Sequence[NewImage],
    *,
    clears: str,
    renew: bool,
    beside: Sequence[Base],
) -> list[Admission]:
    """Admit all images of an object or none: see ``CohortStore.add_all``. Commits."""
    with ExitStack() as undo:
        desk = _Desk(session, files, pseudonyms, undo)
        outcomes = [desk.admitted(image) for image in images]
        if refused := next((each for each in outcomes if each in REFUSED), None):
            return [refused] * len(outcomes)
        there = [image for image, outcome in zip(images, outcomes, strict=True) if renew and outcome is Admission.DUPLICATE]
        replaced = [desk.renewed(image) for image in there]
        for row in (*_object_rows(images), *beside):
            session.merge(row)
        session.execute(delete(QuarantineRow).where(QuarantineRow.source_key == clears))
        session.commit()
        undo.pop_all()
        files.delete(replaced)
    return outcomes


class _Desk:
    """Writes files and rows in its caller's transaction; the files go again unless ``undo`` is emptied."""

    def __init__(self, session: Session, files: ImageFiles, pseudonyms: Pseudonyms, undo: ExitStack) -> None:
        self._session, self._files, self._pseudonyms, self._undo = session, files, pseudonyms, undo

    def admitted(self, image: NewImage) -> Admission:
        """Write one file and its rows."""
        if is_withdrawn(self._session, self._pseudonyms, image.patient_key, image.person):
            return Admission.WITHDRAWN
        if image.origin and (before := self._session.get(ObjectRow, image.origin.object_key)) and before.patient_key != image.patient_key:
            return Admission.PATIENT_CONFLICT
        if whose := self._session.scalar(select(ImageRow.patient_key).where(ImageRow.source_key == image.source_key)):
            return self._again(image, whose)
        patient = self._session.get(PatientRow, image.patient_key)
        if patient is not None and image.role not in (None, patient.role):
            return Admission.ROLE_CONFLICT
        patient = patient or self._new_patient(image)
        if image.person is not None:
            patients.remember(self._session, image.patient_key, image.person)
        image_id = uuid.uuid4().hex
        file, sha256 = self._written(image, image_id, self._files.name_for(self._session, image_id))
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
        self._session.add(row)
        return Admission.ADDED

    def _again(self, image: NewImage, whose: str) -> Admission:
        """An image that is there already: the same patient's, of whom it may say more, or nobody knows whose."""
        if whose != image.patient_key:
            return Admission.PATIENT_CONFLICT
        if image.person is not None:
            patients.remember(self._session, whose, image.person)
        return Admission.DUPLICATE

    def _new_patient(self, image: NewImage) -> PatientRow:
        role = image.role or self._pseudonyms.own_role(image.patient_key)
        patient = PatientRow(patient_key=image.patient_key, role=role, rule="given" if image.role else DRAWN)
        proof = self._pseudonyms.role_proof(image.patient_key, role=role, rule=patient.rule)
        detail = {"patient": image.patient_key, "role": role, "rule": patient.rule, "stratum": image.pathology.value, "proof": proof}
        self._session.add_all([patient, JournalRow(event="split", detail=json.dumps(detail))])
        self._session.flush()
        return patient

    def renewed(self, image: NewImage) -> str:
        """Store an image that is there already as it is here, under the same id; returns the name of the file that it had.

        What is black in that one stays black, since a person may have blacked it out; where it was cut otherwise, it is replaced.
        """
        row = self._session.scalars(select(ImageRow).where(ImageRow.source_key == image.source_key)).one()
        before, gray = row.file, _black_in_both(image.gray, self._files.read(row))
        name = self._files.name_for(self._session, row.image_id, anew=True)
        row.file, row.sha256 = self._written(replace(image, gray=gray), row.image_id, name)
        row.box = None if image.box is None or row.pathology == Pathology.NORMAL else list(image.box)
        return before

    def _written(self, image: NewImage, image_id: str, name: str) -> tuple[str, str]:
        """Write a file; returns its name and the SHA-256 of its PNG."""
        from busgen_core.images import encode_png  # imports numpy, which a reply to the hub need not wait for

        png = encode_png(image.gray, quick=True)
        self._undo.callback(self._files.delete, [name])
        self._files.write(name, image_id, png)
        return name, sha256_bytes(png)


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
