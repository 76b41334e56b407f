"""The quarantine as people work at it: look, black out, release, delete, vouch for a scanner. The console and the command line share it.

Guarantees:
    - Every action is in the journal, with who, when and what, if and only if it is carried out: one transaction holds both. Nothing of a
      patient is in the line.
    - A released object passes the same checks of pixels and the same admission (whose it is by what is known at its release, role, consent,
      duplicates) as any other.
    - The images of an object enter together or not at all. What was blacked out is black in every one that is stored, at full resolution,
      before anything is resized, also in those that came by another object before.
    - An action refers to what the person saw: if the object changed meanwhile, or somebody decided on it, it is refused. People and intake
      take turns.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from busgen_client.admission import Admission, NewImage
from busgen_client.cohort import CohortStore
from busgen_client.cohort_rows import JournalRow, QuarantineRow
from busgen_client.devices import model_name
from busgen_client.held import DELETED, RELEASED, HeldStore, as_image, box_of
from busgen_client.intake.findings import BY_EYE, BY_LABEL, REASONS, Code, QuarantineError
from busgen_client.intake.frames import Gray, Rectangle, box_in, check_scan, to_gray
from busgen_client.masks import MOST, Pixels, around, blacked, box, left_over
from busgen_client.quarantine_rows import DecisionRow, DeviceRow, HeldRow
from busgen_core.digests import canonical_json, sha256_bytes
from busgen_core.errors import ConsentWithdrawnError, InputError, StateError
from busgen_core.images import Box, encode_png
from busgen_core.labels import Pathology

DIGITS = 12  # hexadecimal digits of a source key that name an object
PATIENCE_SECONDS = 10.0  # a receiver holds the cohort for moments, a folder for longer
CHANGED = "this object is not as it was shown; look at it again, then decide"
GONE = "this object is not as it was shown: it was decided meanwhile"
SMALLEST_BOX = 4  # pixels on each side of a box that may hide text


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One waiting object, as people see it; nothing in it names the patient.

    Attributes:
        name: The object's name in lists, commands and the journal.
        code: Why it waits.
        reason: The same in words.
        created: Since when, UTC.
        device: Scrubbed model, or empty.
        device_key: Keyed digest of manufacturer and model in full, or empty.
        pathology: Its label, or None if it has none that can be used.
        frames: Pictures that can be looked at; 0 where the object can only be deleted here.
        rows: Of a picture, pixels.
        columns: Of a picture, pixels.
        masks: Boxes that are blacked out.
        stamp: Changes whenever something changes that a person decides by.
    """

    name: str
    code: str
    reason: str
    created: str
    device: str
    device_key: str
    pathology: Pathology | None
    frames: int
    rows: int
    columns: int
    masks: tuple[Rectangle, ...]
    stamp: str

    @property
    def releasable(self) -> bool:
        """Whether a person may release it."""
        return self.frames > 0

    @property
    def must_mask(self) -> bool:
        """Whether something must be blacked out first: the header says that text is burned in.

        A box counts from ``SMALLEST_BOX`` on each side: no letter can be read that is smaller, so a smaller box hides none. Whether the
        boxes are where the text is, only the person can tell; this keeps a stray click from passing for a look.
        """
        hiding = any(min(each.x1 - each.x0, each.y1 - each.y0) >= SMALLEST_BOX for each in self.masks)
        return self.releasable and self.code == Code.BURNED_IN_TEXT and not hiding

    @property
    def trustable(self) -> bool:
        """Whether vouching for its scanner would release it."""
        return self.names_scanner and self.pathology is not None

    @property
    def names_scanner(self) -> bool:
        """Whether its scanner could be vouched for."""
        return self.releasable and self.code == Code.DEVICE_UNKNOWN and bool(self.device and self.device_key)


class Quarantine:
    """Everything that people do with what waits.

    Args:
        store: The cohort that it may enter.
    """

    def __init__(self, store: CohortStore) -> None:
        self._store, self._held, self._engine = store, HeldStore(store), store.engine

    def items(self, *, code: str = "", most: int = 50, skip: int = 0) -> list[Item]:
        """What waits, oldest first; with ``code``, for that reason only."""
        wanted = select(QuarantineRow, HeldRow).outerjoin(HeldRow, HeldRow.source_key == QuarantineRow.source_key)
        if code:
            wanted = wanted.where(QuarantineRow.code == code)
        with Session(self._engine) as session:
            return [_item(row, held) for row, held in session.execute(wanted.order_by(QuarantineRow.id).limit(most).offset(skip))]

    def counts(self) -> Mapping[str, int]:
        """How many objects wait for each reason."""
        counted = select(QuarantineRow.code, func.count()).group_by(QuarantineRow.code).order_by(QuarantineRow.code)
        with Session(self._engine) as session:
            return {row[0]: row[1] for row in session.execute(counted)}

    def item(self, name: str) -> Item:
        """One object.

        Raises:
            StateError: nothing of that name waits.
        """
        with self._transaction(name) as (_, row, held):
            return _item(row, held)

    def picture(self, name: str, number: int = 0) -> bytes:
        """One frame as PNG, boxes blacked out.

        Raises:
            StateError: nothing of that name waits, or it has no such picture.
            CorruptImageError: the file is missing or damaged.
        """
        with self._transaction(name) as (_, _, held):
            pass
        if held is None or not 0 <= number < len(held.images):
            raise StateError("this object has no such picture")
        return encode_png(blacked(self._held.frame(held, number), _masks(held)))

    def mask(self, name: str, corners: Sequence[int], *, who: str, keep: bool = False, seen: str = "") -> Item:
        """``draw`` one box."""
        return self.draw(name, [corners], who=who, keep=keep, seen=seen)

    def unmask(self, name: str, *, who: str, seen: str = "") -> Item:
        """Take all boxes off again: ``draw`` none."""
        return self.draw(name, [], who=who, clear=True, seen=seen)

    def draw(self, name: str, boxes: Sequence[Sequence[int]], *, who: str, keep: bool = False, clear: bool = False, seen: str = "") -> Item:
        """Black out boxes in every picture of an object, all of them or, where one is refused, none.

        Args:
            boxes: Of each x0, y0, x1, y1 in pixels of the full picture.
            who: The person, for the journal.
            keep: Black out all but the box.
            clear: Take the boxes off that are there.
            seen: Stamp of what the person saw; empty to act on what is there now.

        Raises:
            StateError: nothing of that name waits, it changed, it has no picture, or an intake is running.
            InputError: no such box, or too many.
        """
        with self._alone(), self._transaction(name, seen) as (session, row, held):
            if held is None:
                raise StateError("this object has no picture that could be blacked out")
            new = [corners for each in boxes for corners in _corners(held, each, keep=keep)]
            held.masks = [*([] if clear else held.masks), *new]
            if len(held.masks) > MOST:
                raise InputError(f"a picture has at most {MOST} boxes; delete the object instead")
            if clear:
                session.add(_line("unmasked", row, who))
            if boxes:
                session.add(_line("masked", row, who, boxes=new))
            return _item(row, held)

    def release(self, name: str, *, who: str, pathology: Pathology | None = None, seen: str = "") -> int:
        """Let an object into the cohort, as its boxes leave it.

        Args:
            pathology: Label for an object that waits for want of one; others keep theirs.

        Returns:
            Images that are new in the cohort; fewer than the object has where some were there already.

        Raises:
            StateError: it changed, cannot be released, a label or a box is missing, its patient has the other role or is not sure, or an intake
                is running.
            InputError: what the boxes leave is no scan.
            ConsentWithdrawnError: its patient withdrew consent; the object is deleted.
        """
        with self._alone():
            return self._release(name, seen, who=who, pathology=pathology)

    def delete(self, name: str, *, who: str, seen: str = "") -> None:
        """Delete an object; it is passed over when it comes again.

        A DICOM object with a picture is known by its SOP Instance UID then, in whatever file it comes; a row of a table by its picture and
        id. What has no picture, which nobody has seen, is known by its bytes alone: another export of it is looked at.

        Raises:
            StateError: nothing of that name waits, it changed, or an intake is running.
        """
        with self._alone():
            self._delete(name, seen, who)

    def trust(self, device: str, *, who: str) -> int:
        """Vouch for the one model of scanner that waits under a scrubbed name; otherwise as ``trust_scanner_of``.

        Raises:
            InputError: no model waits under this name, or several do.
            StateError: an intake is running.
        """
        name = model_name(device)
        with self._alone():
            models = {item.device_key for item in self._every(Code.DEVICE_UNKNOWN) if item.names_scanner and model_name(item.device) == name}
            if not models:
                raise InputError("no object of a scanner of this name waits for somebody to vouch for it")
            if len(models) > 1:
                raise InputError(f"{len(models)} models are shown by this name; look at an object of each and vouch for its scanner")
            return self._vouch(models.pop(), name, who)

    def trust_scanner_of(self, name: str, *, who: str, seen: str = "") -> int:
        """Vouch for the model of scanner that an object comes from, manufacturer and model as its header said them: images of it are no longer
        held back for being of an unknown device, and those that wait for nothing else are released.

        Returns:
            Objects that were released.

        Raises:
            InputError: the object names no scanner, or waits for something else.
            StateError: nothing of that name waits, it changed, or an intake is running.
        """
        with self._alone():
            with self._transaction(name, seen) as (_, row, held):
                item = _item(row, held)
            if not item.names_scanner:
                raise InputError("this object does not wait for a scanner that it names; it can be released by itself only")
            return self._vouch(item.device_key, model_name(item.device), who)

    def _vouch(self, device_key: str, device: str, who: str) -> int:
        detail = json.dumps({"device": device, "model": device_key[:DIGITS], "who": who}, sort_keys=True)
        with Session(self._engine) as session:
            session.add(JournalRow(event="device.trusted", detail=detail))
            session.merge(DeviceRow(device_key=device_key, device=device))
            session.commit()
        waiting = [item for item in self._every(Code.DEVICE_UNKNOWN) if item.trustable and item.device_key == device_key]
        return sum(self._released_with_its_device(item, who) for item in waiting)

    def allow(self, name: str, *, who: str) -> None:
        """Take back a deletion: when the same object comes again, it is looked at as if for the first time. Its pixels are gone.

        Raises:
            StateError: no object of that name was deleted.
        """
        deleted = select(DecisionRow).where(DecisionRow.source_key.between(*_named(name)), DecisionRow.verdict == DELETED)
        with Session(self._engine) as session:
            rows = session.scalars(deleted.limit(2)).all() if len(name) >= DIGITS else []
            if len(rows) != 1:
                raise StateError("no object of that name was deleted here")
            session.add(JournalRow(event="quarantine.allowed", detail=json.dumps({"item": rows[0].source_key[:DIGITS], "who": who})))
            if rows[0].object_key:  # it may have been deleted in several files
                session.execute(delete(DecisionRow).where(DecisionRow.object_key == rows[0].object_key, DecisionRow.verdict == DELETED))
            else:
                session.delete(rows[0])
            session.commit()

    def trusted(self) -> list[str]:
        """Scrubbed names of the models that people here vouched for, in order; models that share one are each listed."""
        with Session(self._engine) as session:
            return list(session.scalars(select(DeviceRow.device).order_by(DeviceRow.device)))

    def _released_with_its_device(self, item: Item, who: str) -> bool:
        try:
            self._release(item.name, item.stamp, who=who)
        except (StateError, InputError, ConsentWithdrawnError):  # it waits on, and a person sees why when releasing it alone
            return False
        return True

    def _every(self, code: Code) -> Iterator[Item]:
        skip, at_once = 0, 500
        while batch := self.items(code=code, most=at_once, skip=skip):
            yield from batch
            skip += at_once

    def _release(self, name: str, seen: str, *, who: str, pathology: Pathology | None = None) -> int:
        with self._transaction(name, seen) as (_, row, held):
            item = _item(row, held)
        if held is None:
            raise StateError(f"an object that waits for {row.code} cannot be released: {row.reason}")
        if item.must_mask:
            raise StateError(f"the header says that text is burned in: black it out first, by a box of {SMALLEST_BOX} x {SMALLEST_BOX} px or more")
        label = item.pathology or pathology
        if label is None:
            raise StateError("this object has no label that can be used; give one, or correct the label file and take it in again")
        frames, box_left = self._fixed(held)
        box_left = None if label is Pathology.NORMAL else box_left
        images = self._as_known([as_image(held, number, frame, pathology=label, box=box_left) for number, frame in enumerate(frames)])
        line = _line("released", row, who, images=len(images), boxes=len(held.masks), **({} if item.pathology else {"label": label.value}))
        outcomes = self._store.add_all(images, clears=row.source_key, renew=bool(held.masks), beside=[line, _decision(row, held, RELEASED)])
        if Admission.WITHDRAWN in outcomes:
            self._delete(name, seen, who)
            raise ConsentWithdrawnError("this patient has withdrawn consent; the object was deleted")
        if Admission.PATIENT_CONFLICT in outcomes:
            raise StateError(REASONS[Code.PATIENT_UNSURE])
        if Admission.ROLE_CONFLICT in outcomes:
            raise StateError(REASONS[Code.ROLE_CONFLICT])
        self._clear(row, held)
        return outcomes.count(Admission.ADDED)

    def _as_known(self, images: Sequence[NewImage]) -> list[NewImage]:
        known = [self._store.as_known(image) for image in images]
        if None in known:
            raise StateError(REASONS[Code.PATIENT_UNSURE])
        return [image for image in known if image]

    def _fixed(self, held: HeldRow) -> tuple[list[Gray], Box | None]:
        """Frames with their boxes black and black borders cut off; the lesion box in what is left."""
        masks = _masks(held)
        part = left_over(masks, rows=held.rows, columns=held.columns)
        try:
            frames = [_scan(blacked(self._held.frame(held, number), masks), part) for number in range(len(held.images))]
            if (lesion := box_of(held)) is None:
                return frames, None
            x0, y0, x1, y1 = lesion
            return frames, box_in(part, (x0 * held.columns, y0 * held.rows, x1 * held.columns, y1 * held.rows))
        except QuarantineError as refused:
            raise InputError(f"what is left cannot be released: {refused}") from None

    def _delete(self, name: str, seen: str, who: str) -> None:
        with self._transaction(name, seen) as (session, row, held):
            session.add(_line("deleted", row, who))
            session.merge(_decision(row, held, DELETED))
            session.delete(row)
        self._clear(row, held)

    def _clear(self, row: QuarantineRow, held: HeldRow | None) -> None:
        """Delete all that is kept of a decided object, the original that the network brought too."""
        self._held.drop(row.source_key)
        if (self._store.data / "spool").is_dir():
            from busgen_client.intake.spool import Spool  # imports pydicom

            Spool(self._store, self._store.data).discard(row.source_key, held.object_key if held else "")

    @contextmanager
    def _transaction(self, name: str, seen: str = "") -> Iterator[tuple[Session, QuarantineRow, HeldRow | None]]:
        """One transaction on an object that waits, as it was seen; committed at its end.

        Raises:
            StateError: nothing of that name waits, or it changed.
        """
        wanted = select(QuarantineRow).where(QuarantineRow.source_key.between(*_named(name))).limit(2)
        with Session(self._engine, expire_on_commit=False) as session:
            rows = session.scalars(wanted).all() if len(name) >= DIGITS else []
            if len(rows) != 1:
                raise StateError(GONE if seen else "nothing of that name waits in quarantine; it may have been decided already")
            held = session.get(HeldRow, rows[0].source_key)
            if seen and seen != _item(rows[0], held).stamp:
                raise StateError(CHANGED)
            yield session, rows[0], held
            session.commit()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the cohort, after waiting a little for whoever holds it."""
        until = time.monotonic() + PATIENCE_SECONDS
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(self._store.intake())
                    break
                except StateError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.2)
            yield


def _line(what: str, row: QuarantineRow, who: str, **more: object) -> JournalRow:
    """What the journal says of an action."""
    detail = {"item": row.source_key[:DIGITS], "code": row.code, "who": who, **more}
    return JournalRow(event=f"quarantine.{what}", detail=json.dumps(detail, sort_keys=True))


def _decision(row: QuarantineRow, held: HeldRow | None, verdict: str) -> DecisionRow:
    return DecisionRow(source_key=row.source_key, object_key=held.object_key if held else "", verdict=verdict)


def _corners(held: HeldRow, corners: Sequence[int], *, keep: bool) -> list[list[int]]:
    """The boxes that are black when a person draws one, as ``HeldRow.masks`` has them."""
    drawn = box(corners, rows=held.rows, columns=held.columns)
    black = around(drawn, rows=held.rows, columns=held.columns) if keep else [drawn]
    return [[each.x0, each.y0, each.x1, each.y1] for each in black]


def _scan(frame: Pixels, part: Rectangle) -> Gray:
    return check_scan(to_gray(frame[part.y0 : part.y1, part.x0 : part.x1]))


def _masks(held: HeldRow) -> list[Rectangle]:
    return [Rectangle(*corners) for corners in held.masks]


def _named(name: str) -> tuple[str, str]:
    """Between which keys those lie that begin with ``name``: hexadecimal digits come before g. Unlike a pattern, it is looked up in the index."""
    return name, name + "g"


def _item(row: QuarantineRow, held: HeldRow | None) -> Item:
    can = held if held is not None and row.code in BY_EYE | BY_LABEL else None
    shown = [row.source_key, row.code, *([can.token, can.masks, can.pathology, can.device, can.device_key] if can else [])]
    return Item(
        name=row.source_key[:DIGITS],
        code=row.code,
        reason=row.reason,
        created=row.created,
        device=can.device if can else "",
        device_key=(can.device_key or "") if can else "",
        pathology=Pathology(can.pathology) if can and can.pathology else None,
        frames=len(can.images) if can else 0,
        rows=can.rows if can else 0,
        columns=can.columns if can else 0,
        masks=tuple(_masks(can)) if can else (),
        stamp=sha256_bytes(canonical_json(shown))[:DIGITS],
    )
