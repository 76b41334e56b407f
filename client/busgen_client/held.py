"""What waits for a person's eyes: the de-identified pixels of an object and what its admission needs, until it is decided.

Pixels lie in ``quarantine/`` in the node's data folder, mode 0700, as PNG without metadata under random names, sealed as the cohort's images
are; their rows in the node's store. An object is held when its row is there, and then its files are complete; files that a crash left
without a row are swept.

Guarantees:
    - Nothing of a header is kept but the scrubbed device model; patients, objects and models in full are keyed digests.
    - Where the header names the scan region, only the scan region is kept. Where it names none, the whole frame is, since a person must
      see it; text that is burned into it stays in this folder until a person has decided, and nowhere else.
    - What was decided, and all of a patient who withdrew consent, is deleted.
"""

import io
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from busgen_client.admission import NewImage, Origin
from busgen_client.cohort import CohortStore
from busgen_client.cohort_rows import OBJECT_DIGITS, QuarantineRow
from busgen_client.devices import phantom_keys
from busgen_client.masks import Pixels
from busgen_client.patients import Person
from busgen_client.quarantine_rows import DecisionRow, DeviceRow, HeldRow, PlaceRow
from busgen_core.errors import CorruptImageError
from busgen_core.images import Box, encode_png
from busgen_core.labels import Birads, Pathology

RELEASED, DELETED = "released", "deleted"
ROLE = "quarantine"  # that pictures are sealed for


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """One waiting object.

    Attributes:
        images: As they would be admitted, but unchecked: their pixels may be RGB; all of one size.
        labelled: Whether their label can be used; if not, a person must give one.
        device_key: Of the scanner that the header names, as ``devices.device_key`` has it; empty where it names none.
    """

    images: tuple[NewImage, ...]
    labelled: bool = True
    device_key: str = ""


class HeldStore:
    """The only door to the pixels that wait.

    Args:
        store: The cohort that they may enter.
    """

    def __init__(self, store: CohortStore) -> None:
        self._store, self._engine, self._vault, self._folder = store, store.engine, store.vault, store.data / "quarantine"

    def put(self, source_key: str, held: Held) -> None:
        """Keep an object; a second look at the same frames renews what is known of it, and keeps the boxes drawn on it.

        Raises:
            StorageFullError: the disk has no room for its pictures.
        """
        row = _row(source_key, held)
        with Session(self._engine) as session:
            before, replaced = session.get(HeldRow, source_key), list[Path]()
            if before is not None and _sources(before) == _sources(row):
                row.token, row.masks = before.token, before.masks
            else:
                replaced = self._files(before)
                self._write(row.token, [image.gray for image in held.images])
            session.merge(row)
            session.commit()
        _unlink(replaced)

    def get(self, source_key: str) -> HeldRow | None:
        """The row of an object, or None if none of its pixels is here."""
        with Session(self._engine) as session:
            return session.get(HeldRow, source_key)

    def frame(self, row: HeldRow, number: int) -> Pixels:
        """One frame as it waits, boxes not yet applied: uint8 [rows, columns] or [rows, columns, 3].

        Raises:
            CorruptImageError: the file is missing or damaged.
            SealError, StorageKeyError: as ``Vault.read``.
        """
        try:
            png = self._vault.read(self._file(row.token, number), role=ROLE)
            with PillowImage.open(io.BytesIO(png), formats=("PNG",)) as picture:
                return np.asarray(picture)
        except (OSError, ValueError, SyntaxError):
            raise CorruptImageError("a picture in quarantine is missing or damaged; delete the object and take it in again") from None

    def drop(self, source_key: str) -> None:
        """Delete an object's pixels and row, if it waits here."""
        with Session(self._engine) as session:
            row = session.get(HeldRow, source_key)
            if row is None:
                return
            files = self._files(row)
            session.delete(row)
            session.commit()
        _unlink(files)

    def follow(self, place: str, source_key: str) -> None:
        """Note as what a row of a table waits now, empty if it does not. What it waited as before is given up, unless another row is it.

        Where nothing is noted, it waited under ``place`` itself, as it does while it has no picture.
        """
        with Session(self._engine) as session:
            noted = session.get(PlaceRow, place)
            before = noted.source_key if noted else place
            if before == source_key:
                return
            if source_key:
                session.merge(PlaceRow(place=place, source_key=source_key))
            elif noted:
                session.delete(noted)
            if session.scalar(select(PlaceRow.place).where(PlaceRow.source_key == before).limit(1)):
                before = ""
            session.execute(delete(QuarantineRow).where(QuarantineRow.source_key == before))
            session.commit()
        self.drop(before)

    def forget(self, patient_key: str) -> None:
        """Delete all that waits of a patient, and of everybody who withdrew consent. Hold ``CohortStore.intake`` meanwhile."""
        gone = [key for key, row in self._all().items() if patient_key in (row.patient_key, _person(row).key) or self._store.withdrawn(_person(row))]
        with Session(self._engine) as session:
            for table in (PlaceRow, QuarantineRow, HeldRow):
                for source_key in gone:
                    session.execute(delete(table).where(table.source_key == source_key))
            session.commit()
        self._unlink_strays()

    def people(self) -> list[Person]:
        """Who waits here, one for each object."""
        return [_person(row) for row in self._all().values()]

    def _all(self) -> dict[str, HeldRow]:
        with Session(self._engine) as session:
            return {row.source_key: row for row in session.scalars(select(HeldRow))}

    def sweep(self) -> None:
        """Delete what a crash left: rows of what waits no longer, and files without a row. ``CohortStore.intake`` does so where it must."""
        with Session(self._engine) as session:
            session.execute(delete(HeldRow).where(HeldRow.source_key.not_in(select(QuarantineRow.source_key))))
            session.commit()
        self._unlink_strays()

    def decided(self, source_key: str) -> str:
        """``RELEASED``, ``DELETED``, or empty for an object that nobody has decided on."""
        with Session(self._engine) as session:
            row = session.get(DecisionRow, source_key)
            return row.verdict if row else ""

    def deleted(self, object_key: str) -> bool:
        """Whether a person deleted a DICOM object, in whatever file it came."""
        deleted = select(DecisionRow.source_key).where(DecisionRow.object_key == object_key, DecisionRow.verdict == DELETED)
        with Session(self._engine) as session:
            return bool(object_key) and session.scalar(deleted.limit(1)) is not None

    def knows(self, object_key: str) -> bool:
        """Whether a DICOM object waits here or was decided on, so that it need not be fetched again."""
        return self.waits(object_key) or self._named(object_key, DecisionRow)

    def waits(self, object_key: str) -> bool:
        """Whether anything that came as this DICOM object is in quarantine, with or without a picture."""
        return self._named(object_key, HeldRow) or self._named(object_key[:OBJECT_DIGITS], QuarantineRow)

    def _named(self, object_key: str, table: type[HeldRow | DecisionRow | QuarantineRow]) -> bool:
        with Session(self._engine) as session:
            return session.scalar(select(table.source_key).where(table.object_key == object_key).limit(1)) is not None

    def trusts(self, device_key: str) -> bool:
        """Whether a person here vouched for a model; simulated scanners need nobody to. What has no key is never trusted."""
        if not device_key:
            return False
        with Session(self._engine) as session:
            return session.get(DeviceRow, device_key) is not None or device_key in phantom_keys(self._store.pseudonyms.key)

    def files(self) -> set[str]:
        """Names of the files that rows name, there or not."""
        with Session(self._engine) as session:
            return {f"{row.token}-{number}" for row in session.scalars(select(HeldRow)) for number in range(len(row.images))}

    def _file(self, token: str, number: int) -> Path:
        return self._folder / f"{token}-{number}"

    def _files(self, row: HeldRow | None) -> list[Path]:
        return [self._file(row.token, number) for number in range(len(row.images))] if row else []

    def _write(self, token: str, frames: Sequence[Pixels]) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for number, frame in enumerate(frames):
            self._vault.write(self._file(token, number), encode_png(frame, quick=True), role=ROLE)

    def _unlink_strays(self) -> None:
        known = self.files()
        for file in self._folder.glob("*"):
            if file.name not in known:
                file.unlink(missing_ok=True)


def _unlink(files: Sequence[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


# How fields of ``NewImage`` that JSON cannot hold are made again.
NESTED: Mapping[str, Callable[..., object]] = {"origin": lambda d: Origin(**d), "person": lambda d: Person(**d), "birads": Birads}


def as_image(row: HeldRow, number: int, gray: Pixels, *, pathology: Pathology, box: Box | None) -> NewImage:
    """A frame that a person has released, as intake would have handed it in."""
    facts = row.images[number]
    nested = {name: make(facts[name]) for name, make in NESTED.items() if facts.get(name) is not None}
    changed = {"gray": gray, "pathology": pathology, "box": box}
    return NewImage(**{**facts, **nested, **changed})  # type: ignore[arg-type]  # as _facts wrote them


def _person(row: HeldRow) -> Person:
    facts = row.images[0].get("person")
    return Person(**facts) if isinstance(facts, dict) else Person(key=row.patient_key)


def box_of(row: HeldRow) -> Box | None:
    """The lesion box of an object's frames, as fractions."""
    match row.images[0]["box"]:
        case [float(x0), float(y0), float(x1), float(y1)]:
            return (x0, y0, x1, y1)
    return None


def _row(source_key: str, held: Held) -> HeldRow:
    first = held.images[0]
    return HeldRow(
        source_key=source_key,
        token=uuid.uuid4().hex,
        patient_key=first.patient_key,
        object_key=first.origin.object_key if first.origin else "",
        rows=first.gray.shape[0],
        columns=first.gray.shape[1],
        device=first.device,
        device_key=held.device_key,
        pathology=first.pathology.value if held.labelled else "",
        images=[_facts(image) for image in held.images],
        masks=[],
    )


def _facts(image: NewImage) -> dict[str, object]:
    values = {each.name: getattr(image, each.name) for each in fields(image) if each.name != "gray"}
    values |= {name: asdict(values[name]) for name in ("origin", "person") if values.get(name) is not None}
    return values | {"pathology": image.pathology.value, "box": None if image.box is None else [float(edge) for edge in image.box]}


def _sources(row: HeldRow) -> list[object]:
    return [image["source_key"] for image in row.images]
