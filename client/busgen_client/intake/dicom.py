"""Intake of a folder of DICOM files: header allow-listed, text outside the scan region blacked out, frame cropped to the scan.

Guarantees:
    - Of the header, only the scrubbed device model is stored; identifiers enter keyed digests and are forgotten.
    - No pixel outside the header's B-mode tissue regions is stored. Text *inside* a scan region is not found: where a scanner writes
      into the region, its images must not be taken in.
    - Whatever a file holds, it is admitted, counted as a duplicate, or waits in quarantine; no file ends the run.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from busgen_client.cohort import CohortStore, NewImage
from busgen_client.intake.decode import check_described, frames, scan_regions
from busgen_client.intake.findings import Code, IntakeResult, QuarantineError
from busgen_client.intake.frames import box_in, check_scan, hull, only_scan, to_gray
from busgen_client.intake.header import read_clean
from busgen_client.intake.labels import Labels, read_labels
from busgen_client.intake.run import Source, take_in
from busgen_core.digests import sha256_bytes
from busgen_core.errors import BusgenError, InputError

LARGEST = 2**30  # bytes of one file


def intake_dicom(store: CohortStore, folder: Path, labels: Path | None, *, progress: bool = True) -> IntakeResult:
    """Take in every file below ``folder``.

    Args:
        store: The node's cohort.
        folder: Searched at any depth; the label file itself is passed over.
        labels: CSV of labels by SOP Instance UID, or None: then every good object waits for its label.
        progress: Show a progress bar on standard error.

    Raises:
        InputError: ``folder`` is not a folder.
        TableError: the label file as a whole cannot be used; nothing was added.
        StateError: another intake is running.
        UnavailableError: the node's store or folder failed.
    """
    known = read_labels(labels)
    if not folder.is_dir():
        raise InputError("the DICOM folder does not exist or is not a folder")
    passed_over = labels.resolve() if labels else None
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.resolve() != passed_over]
    return take_in(store, _sources(store, files, known), total=len(files), event="intake.dicom", progress=progress)


def _sources(store: CohortStore, files: list[Path], labels: Labels) -> Iterator[Source]:
    for path in files:
        try:
            data = path.read_bytes() if path.stat().st_size <= LARGEST else None
        except OSError:
            yield Source(key=store.key("path", str(path)), read=partial(_refuse, Code.FILE_UNREADABLE))
            continue
        if data is None:
            yield Source(key=store.key("path", str(path)), read=partial(_refuse, Code.FILE_TOO_LARGE))
        else:
            yield Source(key=store.key("file", sha256_bytes(data)), read=partial(_guarded, store, data, labels))


def _guarded(store: CohortStore, data: bytes, labels: Labels) -> list[NewImage]:
    """``clean_images`` behind a last barrier: what nobody thought of makes one object wait, and does not end the run."""
    try:
        return clean_images(store, data, labels)
    except BusgenError:
        raise
    except Exception:  # its text may quote the header
        raise QuarantineError(Code.DICOM_INVALID) from None


def _refuse(code: Code) -> list[NewImage]:
    raise QuarantineError(code)


def clean_images(store: CohortStore, data: bytes, labels: Labels) -> list[NewImage]:
    """The clean images of one DICOM object: one, or up to eight of a clip.

    A lesion box is that of one frame, so the frames of a clip come without.

    Raises:
        QuarantineError: the object must wait.
    """
    clean = read_clean(data)
    try:
        patient_key = store.patient_key(clean.identity.patient_id, issuer=clean.identity.issuer)
    except InputError:
        raise QuarantineError(Code.PATIENT_MISSING) from None
    check_described(clean.header)
    keep, hide = scan_regions(clean.header)
    scans = [(index, check_scan(to_gray(only_scan(frame, keep=keep, hide=hide)))) for index, frame in frames(clean.header)]
    label = labels.of(clean.identity.sop_uid)
    box = box_in(hull(keep), label.box) if label.box and len(scans) == 1 else None
    pixels = sha256_bytes(clean.header.PixelData)
    return [
        NewImage(
            gray=gray,
            patient_key=patient_key,
            pathology=label.pathology,
            box=box,
            device=clean.device,
            source_key=store.key("dicom", clean.identity.sop_uid, pixels, str(index)),
        )
        for index, gray in scans
    ]
