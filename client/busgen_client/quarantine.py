"""The quarantine as people work at it: look, black out, release, delete, vouch for a scanner. The console and the command line share it.

Guarantees:
    - Every action is in the journal, with who, when and what, before it is carried out; nothing of a patient is in the line.
    - A released object passes the same checks of pixels and the same admission (patient's role, consent, duplicates) as any other.
    - What was blacked out is black in what is stored, at full resolution, before anything is resized.
    - An action refers to what the person saw: if the object changed meanwhile, it is refused.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from busgen_client.cohort import Admission, Box, CohortStore
from busgen_client.cohort_rows import QuarantineRow
from busgen_client.devices import model_name
from busgen_client.held import DELETED, RELEASED, HeldStore, as_image, box_of
from busgen_client.intake.findings import BY_EYE, BY_LABEL, REASONS, Code, QuarantineError
from busgen_client.intake.frames import Gray, Rectangle, box_in, check_scan, to_gray
from busgen_client.masks import MOST, Pixels, around, blacked, box, left_over
from busgen_client.quarantine_rows import DecisionRow, DeviceRow, HeldRow
from busgen_core.digests import canonical_json, sha256_bytes
from busgen_core.errors import ConsentWithdrawnError, InputError, StateError
from busgen_core.images import encode_png
from busgen_core.labels import Pathology

DIGITS = 12  # hexadecimal digits of a source key that name an object
PATIENCE_SECONDS = 10.0  # a receiver holds the cohort for moments, a folder for longer
CHANGED = "this object is not as it was shown; look at it again, then decide"


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
        """Whether something must be blacked out first."""
        return self.releasable and self.code == Code.BURNED_IN_TEXT and not self.masks

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
        return _item(*self._rows(name))

    def picture(self, name: str, number: int = 0) -> bytes:
        """One frame as PNG, boxes blacked out.

        Raises:
            StateError: nothing of that name waits, or it has no such picture.
            CorruptImageError: the file is missing or damaged.
        """
        _, held = self._rows(name)
        if held is None or not 0 <= number < len(held.images):
            raise StateError("this object has no such picture")
        return encode_png(blacked(self._held.frame(held, number), _masks(held)))

    def mask(self, name: str, corners: Sequence[int], *, who: str, keep: bool = False, seen: str = "") -> Item:
        """Black out a box in every picture of an object; with ``keep``, all but the box.

        Args:
            corners: x0, y0, x1, y1 in pixels of the full picture.
            who: The person, for the journal.
            seen: Stamp of what the person saw; empty to act on what is there now.

        Raises:
            StateError: nothing of that name waits, it changed, or it has no picture.
            InputError: no such box, or too many.
        """
        row, held = self._seen(name, seen)
        if held is None:
            raise StateError("this object has no picture that could be blacked out")
        drawn = box(corners, rows=held.rows, columns=held.columns)
        new = around(drawn, rows=held.rows, columns=held.columns) if keep else [drawn]
        boxes = [*held.masks, *([each.x0, each.y0, each.x1, each.y1] for each in new)]
        if len(boxes) > MOST:
            raise InputError(f"a picture has at most {MOST} boxes; delete the object instead")
        self._note("masked", row, who, boxes=[[each.x0, each.y0, each.x1, each.y1] for each in new])
        return self._set_masks(held.source_key, boxes)

    def unmask(self, name: str, *, who: str, seen: str = "") -> Item:
        """Take all boxes off again.

        Raises:
            StateError: as ``mask``.
        """
        row, held = self._seen(name, seen)
        if held is None:
            raise StateError("this object has no picture")
        self._note("unmasked", row, who)
        return self._set_masks(held.source_key, [])

    def release(self, name: str, *, who: str, pathology: Pathology | None = None, seen: str = "") -> int:
        """Let an object into the cohort, as its boxes leave it.

        Args:
            pathology: Label for an object that waits for want of one; others keep theirs.

        Returns:
            Images that are new in the cohort; fewer than the object has where some were there already.

        Raises:
            StateError: it changed, cannot be released, a label or a box is missing, its patient has the other role, or an intake is running.
            InputError: what the boxes leave is no scan.
            ConsentWithdrawnError: its patient withdrew consent; the object is deleted.
        """
        with self._alone():
            row, held = self._seen(name, seen)
            return self._release(row, held, who=who, pathology=pathology)

    def delete(self, name: str, *, who: str, seen: str = "") -> None:
        """Delete an object; the same object is passed over when it comes again.

        Raises:
            StateError: nothing of that name waits, or it changed.
        """
        row, _ = self._seen(name, seen)
        self._note("deleted", row, who)
        self._end(row.source_key, DELETED)

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
            item = _item(*self._seen(name, seen))
            if not item.names_scanner:
                raise InputError("this object does not wait for a scanner that it names; it can be released by itself only")
            return self._vouch(item.device_key, model_name(item.device), who)

    def _vouch(self, device_key: str, device: str, who: str) -> int:
        self._store.note("device.trusted", {"device": device, "model": device_key[:DIGITS], "who": who})
        self._held.vouch(device_key, device=device)
        waiting = [item for item in self._every(Code.DEVICE_UNKNOWN) if item.trustable and item.device_key == device_key]
        return sum(self._released_with_its_device(item, who) for item in waiting)

    def allow(self, name: str, *, who: str) -> None:
        """Take back a deletion: when the same object comes again, it is looked at as if for the first time. Its pixels are gone.

        Raises:
            StateError: no object of that name was deleted.
        """
        deleted = select(DecisionRow).where(DecisionRow.source_key.between(*_named(name)), DecisionRow.verdict == DELETED)
        with Session(self._engine, expire_on_commit=False) as session:
            rows = session.scalars(deleted.limit(2)).all() if len(name) >= DIGITS else []
        if len(rows) != 1:
            raise StateError("no object of that name was deleted here")
        self._store.note("quarantine.allowed", {"item": rows[0].source_key[:DIGITS], "who": who})
        with Session(self._engine) as session:
            session.execute(delete(DecisionRow).where(DecisionRow.source_key == rows[0].source_key))
            session.commit()

    def trusted(self) -> list[str]:
        """Scrubbed names of the models that people here vouched for, in order; models that share one are each listed."""
        with Session(self._engine) as session:
            return list(session.scalars(select(DeviceRow.device).order_by(DeviceRow.device)))

    def _released_with_its_device(self, item: Item, who: str) -> bool:
        try:
            self._release(*self._seen(item.name, item.stamp), who=who)
        except (StateError, InputError, ConsentWithdrawnError):  # it waits on, and a person sees why when releasing it alone
            return False
        return True

    def _every(self, code: Code) -> Iterator[Item]:
        skip, at_once = 0, 500
        while batch := self.items(code=code, most=at_once, skip=skip):
            yield from batch
            skip += at_once

    def _release(self, row: QuarantineRow, held: HeldRow | None, *, who: str, pathology: Pathology | None = None) -> int:
        item = _item(row, held)
        if held is None:
            raise StateError(f"an object that waits for {row.code} cannot be released: {row.reason}")
        if item.must_mask:
            raise StateError("the header says that text is burned in: black it out first")
        label = item.pathology or pathology
        if label is None:
            raise StateError("this object has no label that can be used; give one, or correct the label file and take it in again")
        frames, box_left = self._fixed(held)
        box_left = None if label is Pathology.NORMAL else box_left
        images = [as_image(held, number, frame, pathology=label, box=box_left) for number, frame in enumerate(frames)]
        self._note("released", row, who, images=len(images), boxes=len(held.masks), **({} if item.pathology else {"label": label.value}))
        outcomes = [self._store.add(image, clears=row.source_key if image is images[-1] else "") for image in images]
        if Admission.WITHDRAWN in outcomes:
            self._end(row.source_key, DELETED)
            raise ConsentWithdrawnError("this patient has withdrawn consent; the object was deleted")
        if Admission.ROLE_CONFLICT in outcomes:
            raise StateError(REASONS[Code.ROLE_CONFLICT])
        self._store.settle(images)
        self._end(row.source_key, RELEASED)
        return outcomes.count(Admission.ADDED)

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

    def _end(self, source_key: str, verdict: str) -> None:
        """Delete all that is kept of a decided object, the original that the network brought too."""
        object_key = self._held.decide(source_key, verdict)
        self._held.drop(source_key)
        self._store.lift(source_key)
        if (self._store.data / "spool").is_dir():
            from busgen_client.intake.spool import Spool  # imports pydicom

            Spool(self._store, self._store.data).discard(source_key, object_key)

    def _set_masks(self, source_key: str, boxes: list[list[int]]) -> Item:
        with Session(self._engine) as session:
            held = session.get_one(HeldRow, source_key)
            held.masks = boxes
            session.commit()
        return self.item(source_key[:DIGITS])

    def _seen(self, name: str, stamp: str) -> tuple[QuarantineRow, HeldRow | None]:
        row, held = self._rows(name)
        if stamp and stamp != _item(row, held).stamp:
            raise StateError(CHANGED)
        return row, held

    def _rows(self, name: str) -> tuple[QuarantineRow, HeldRow | None]:
        wanted = select(QuarantineRow).where(QuarantineRow.source_key.between(*_named(name))).limit(2)
        with Session(self._engine, expire_on_commit=False) as session:
            rows = session.scalars(wanted).all() if len(name) >= DIGITS else []
            if len(rows) != 1:
                raise StateError("nothing of that name waits in quarantine; it may have been decided already")
            return rows[0], session.get(HeldRow, rows[0].source_key)

    def _note(self, what: str, row: QuarantineRow, who: str, **more: object) -> None:
        self._store.note(f"quarantine.{what}", {"item": row.source_key[:DIGITS], "code": row.code, "who": who, **more})

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
