"""Intake of DICOM files, from a folder or wherever they come from: header allow-listed, text outside the scan region blacked out, frame
cropped to the scan.

Guarantees:
    - Of the header, only the scrubbed device model is stored; identifiers, and the model in full, enter keyed digests and are forgotten.
    - No pixel outside the header's B-mode tissue regions is stored. Text inside a region is looked for and masked as ``masking`` says,
      furniture too.
    - Whatever a file holds, it is admitted, counted as a duplicate, or waits in quarantine; no file ends the run.
    - An object counts once: by its SOP Instance UID and pixels, also in another transfer syntax, and by its pixels within a patient.
    - An object that comes again is the same patient's, or waits; what it says of the patient is learnt, a new number too.
    - Of a patient who withdrew consent, nothing is decoded and no picture is kept.
    - An object that a person saw and deleted is passed over by its SOP Instance UID, in whatever file it comes.
"""

import os
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from busgen_client.admission import NewImage, Origin
from busgen_client.cohort import CohortStore
from busgen_client.cohort_rows import ObjectRow
from busgen_client.held import Held, HeldStore
from busgen_client.intake.decode import check_described, frames
from busgen_client.intake.findings import Code, IntakeResult, QuarantineError
from busgen_client.intake.frames import Gray, Rectangle, box_in, check_scan, chroma, hull, only_scan, to_gray
from busgen_client.intake.header import Clean, Identity, read_clean
from busgen_client.intake.labels import Label, Labels, read_labels
from busgen_client.intake.masking import Known, covered
from busgen_client.intake.masking import clean as clean_pixels
from busgen_client.intake.modes import check_modes
from busgen_client.intake.profile import Profile
from busgen_client.intake.regions import scan_regions
from busgen_client.intake.run import Source, take_in
from busgen_client.patients import Person
from busgen_client.storage import OVERHEAD
from busgen_core.digests import sha256_bytes
from busgen_core.errors import BusgenError, InputError, SealError
from busgen_core.labels import Pathology

LARGEST = 2**30  # bytes of one file
SPOOL = "spool"  # what waiting files are sealed for, by their name without its suffix


def intake_dicom(store: CohortStore, folder: Path, labels: Path | None, *, progress: bool = True) -> IntakeResult:
    """Take in every file below ``folder``.

    Args:
        store: The node's cohort.
        folder: Searched at any depth; the label file itself is passed over.
        labels: As ``labels.read_labels`` takes them, or None: then every good object waits for its label.
        progress: Show a progress bar on standard error.

    Raises:
        InputError: ``folder`` is not a folder.
        TableError: the label file as a whole cannot be used; nothing was added.
        StateError: another intake is running.
        UnavailableError: the node's store or folder failed.
    """
    known = read_labels(labels, store.mapping)
    if not folder.is_dir():
        raise InputError("the DICOM folder does not exist or is not a folder")
    passed_over = labels.resolve() if labels else None
    sources = (file_source(store, path, known) for path in files_below(folder) if path.resolve() != passed_over)
    total = sum(1 for _ in files_below(folder)) if progress else None
    return take_in(store, sources, total=total, event="intake.dicom", progress=progress, unread=known.unread)


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, by name within each folder; links to folders are not followed. Holds the names of one path's folders at a time."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (path for name in sorted(names) if (path := Path(parent, name)).is_file())


def file_source(store: CohortStore, path: Path, labels: Labels, *, sealed: bool = False) -> Source:
    """One file on its way in; ``sealed`` for one of the spool's, which the node may have sealed itself."""
    place = store.pseudonyms.key("path", str(path))
    try:
        data = _content(store, path, sealed=sealed) if path.stat().st_size <= LARGEST + OVERHEAD else None
    except (OSError, SealError):
        return Source(key=place, read=partial(_refuse, Code.FILE_UNREADABLE))
    if data is None:
        return Source(key=place, read=partial(_refuse, Code.FILE_TOO_LARGE))
    store.lift(place)  # it can be read now
    known: Known = {}
    read, show = partial(_guarded, store, data, labels, known), partial(to_look_at, store, data, labels, known=known)
    return Source(key=store.pseudonyms.key("file", sha256_bytes(data)), read=read, show=show)


def _content(store: CohortStore, path: Path, *, sealed: bool) -> bytes:
    """A file from outside is never opened as a sealed one: it would end the run by asking for a key that the node does not have."""
    return store.vault.read(path, role=SPOOL, name=path.stem) if sealed else path.read_bytes()


def _guarded(store: CohortStore, data: bytes, labels: Labels, known: Known) -> list[NewImage] | int | None:
    """``_images`` behind a last barrier: what nobody thought of makes one object wait, and does not end the run."""
    try:
        clean = read_clean(data, _profile(store))
        if HeldStore(store).deleted(store.pseudonyms.object_key(clean.identity.sop_uid)):
            return None
        return _taken(store, clean) or _images(store, clean, labels, known)
    except BusgenError:
        raise
    except Exception:  # its text may quote the header
        raise QuarantineError(Code.DICOM_INVALID) from None


def _refuse(code: Code) -> list[NewImage]:
    raise QuarantineError(code)


def _taken(store: CohortStore, clean: Clean) -> int:
    """Images that this very object gave to the cohort before; 0 if it is new, so nothing is decoded twice."""
    row = store.taken(store.pseudonyms.object_key(clean.identity.sop_uid))
    if row is None or row.pixels_key != _pixels_key(store, clean):
        return 0
    _check_same(row, _patient(store, clean))
    store.learn(person_of(store, clean.identity))
    return row.images


def _check_same(row: ObjectRow, patient_key: str) -> None:
    """An object is not given to another patient by being sent again: a person must say whose it is."""
    if row.patient_key != patient_key:
        raise QuarantineError(Code.PATIENT_UNSURE)


def _pixels_key(store: CohortStore, clean: Clean) -> str:
    return store.pseudonyms.key("pixels", clean.header.get("PixelData") or b"")


def clean_images(store: CohortStore, data: bytes, labels: Labels) -> list[NewImage]:
    """The clean images of one DICOM object: one, or up to eight of a clip.

    A lesion box is that of one frame, so the frames of a clip come without.

    Raises:
        QuarantineError: the object must wait.
    """
    return _images(store, read_clean(data, _profile(store)), labels, {})


def _profile(store: CohortStore) -> Profile:
    return Profile(key=store.pseudonyms.key, choices=store.choices)


def _images(store: CohortStore, clean: Clean, labels: Labels, known: Known) -> list[NewImage]:
    passed = unlabelled(store, clean, known=known)
    return _new_images(store, clean, passed.patient_key, passed.found, passed.origin, _label(clean, labels))


def unlabelled(store: CohortStore, clean: Clean, *, known: Known | None = None) -> "Unlabelled":
    """What intake asks of an object before its label: whose it is, clean scans, no other object of its number, a scanner that is known.

    Raises:
        QuarantineError: the object must wait.
        UnavailableError: no text recognition is installed.
    """
    patient_key = _patient(store, clean)
    found = Scans(*clean_scans(clean.header, deny=clean.deny, known=known))
    origin = _origin(store, clean, patient_key, found.digests)
    if not HeldStore(store).trusts(clean.device_key):
        raise QuarantineError(Code.DEVICE_UNKNOWN)
    return Unlabelled(patient_key, found, origin)


def _patient(store: CohortStore, clean: Clean) -> str:
    try:
        person = person_of(store, clean.identity)
    except InputError:
        raise QuarantineError(Code.PATIENT_MISSING) from None
    if store.withdrawn(person):
        store.learn(person)  # images taken in under another identifier are reached by repeating the withdrawal
        raise QuarantineError(Code.CONSENT_WITHDRAWN)
    patient_key = store.patient_of(person)
    if patient_key is None:
        raise QuarantineError(Code.PATIENT_UNSURE)
    return patient_key


def person_of(store: CohortStore, identity: Identity) -> Person:
    """What an object says of its patient, digested."""
    return store.pseudonyms.person(identity.patient_id, issuer=identity.issuer, name=identity.name, birth_date=identity.birth_date)


def _label(clean: Clean, labels: Labels) -> Label:
    identity = clean.identity
    label = labels.of(identity.sop_uid, study=identity.study_uid, accession=identity.accession, side=identity.side)
    if label.frame not in (None, (clean.header.Rows, clean.header.Columns)):
        raise QuarantineError(Code.MASK_UNREADABLE)
    return label


def _new_images(store: CohortStore, clean: Clean, patient_key: str, found: "Scans", origin: Origin, label: Label) -> list[NewImage]:
    box = box_in(found.crop, label.box) if label.box and len(found.scans) == 1 else None
    frame_keys = [store.pseudonyms.key("frame-as-it-came", digest) for digest in found.digests]
    return [
        NewImage(
            gray=gray,
            patient_key=patient_key,
            pathology=label.pathology,
            box=box,
            device=clean.device or label.device,
            source_key=store.pseudonyms.frame_source(patient_key, frame_key),
            frame_key=frame_key,
            origin=origin,
            birads=label.birads,
            person=person_of(store, clean.identity),
        )
        for gray, frame_key in zip(found.scans, frame_keys, strict=True)
    ]


def to_look_at(store: CohortStore, data: bytes, labels: Labels, *, known: Known | None = None) -> Held:
    """What a person is shown of an object that waits, and what its admission needs: unchecked pixels, of the scan region where there is one.

    Args:
        store: The node's cohort.
        data: The file.
        labels: What is known of its label.
        known: What was found in its frames before.

    Raises:
        QuarantineError: there is nothing that a person could release.
    """
    clean = read_clean(data, _profile(store))
    patient_key, found = _patient(store, clean), _shown(clean.header, deny=clean.deny, known=known)
    origin = _origin(store, clean, patient_key, found.digests)
    try:
        images, labelled = _new_images(store, clean, patient_key, found, origin, _label(clean, labels)), True
    except QuarantineError:  # the label is what it waits for
        images, labelled = _new_images(store, clean, patient_key, found, origin, Label(Pathology.NORMAL, None)), False
    return Held(images=tuple(images), labelled=labelled, device_key=clean.device_key)


class Scans(NamedTuple):
    """Where the scan lies in a frame; the chosen frames, cropped to it; the digest of each frame as it came."""

    crop: Rectangle
    scans: list[Gray]
    digests: list[str]


class Unlabelled(NamedTuple):
    """An object that lacks nothing but its label."""

    patient_key: str
    found: Scans
    origin: Origin


def _shown(header: Dataset, *, deny: Collection[str], known: Known | None = None) -> Scans:
    """Frames as ``clean_scans`` has them, what was found masked too, but in their colours and unchecked; whole where no scan region can be
    relied on."""
    check_described(header)
    try:
        keep, hide = scan_regions(header)
    except QuarantineError:
        keep, hide = [Rectangle(0, 0, header.Columns, header.Rows)], []
    whole = [frame for _, frame in frames(header)]
    parts = [only_scan(frame, keep=keep, hide=hide) for frame in whole]
    return Scans(hull(keep), covered(parts, deny=deny, known=known), [_digest(frame) for frame in whole])


def clean_scans(header: Dataset, *, deny: Collection[str] = (), known: Known | None = None) -> tuple[Rectangle, list[Gray], list[str]]:
    """Where the scan lies in a frame; the chosen frames, cleaned and cropped to it; the digest of each frame as it came.

    Args:
        header: As ``read_clean`` gives it.
        deny: The words of ``Clean.deny``.
        known: What was found in its frames before; what is found now is added.

    Raises:
        QuarantineError: the object must wait.
        UnavailableError: no text recognition is installed.
    """
    check_described(header)
    keep, hide = scan_regions(header)
    scans, digests, colours = [], [], []
    for _, frame in frames(header):
        part = only_scan(frame, keep=keep, hide=hide)
        scans.append(check_scan(to_gray(part)))
        check_modes(part, scans[-1])
        colours.append(chroma(part))
        digests.append(_digest(frame))
    return hull(keep), [check_scan(gray) for gray in clean_pixels(scans, chroma=colours, deny=deny, known=known)], digests


def _digest(frame: NDArray[np.uint8]) -> str:
    return sha256_bytes(repr(frame.shape).encode() + frame.tobytes())


def _origin(store: CohortStore, clean: Clean, patient_key: str, digests: list[str]) -> Origin:
    """What is noted of the object.

    Raises:
        QuarantineError: uid-reused, or patient-unsure.
    """
    key, frames_key = store.pseudonyms.object_key(clean.identity.sop_uid), store.pseudonyms.key("frames", *digests)
    row = store.taken(key)
    if row is not None and row.frames_key != frames_key:
        raise QuarantineError(Code.UID_REUSED)
    if row is not None:
        _check_same(row, patient_key)
    class_key = store.pseudonyms.class_key(str(clean.header.SOPClassUID))
    return Origin(object_key=key, pixels_key=_pixels_key(store, clean), frames_key=frames_key, class_key=class_key)
