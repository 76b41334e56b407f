"""Intake of an image folder with a table: ``images.csv`` beside the images.

Columns: ``file`` and ``pathology``; ``group`` or ``patient_id`` (what must never be split; ``group`` wins); optional ``mask_file``,
``device``, ``role`` (train, holdout; pretrain and contradictory are left out) and ``image_id``. Other columns are not read.

No header says where the scan lies in such an image, so the whole of it is looked at as the scan of a DICOM object is: text and furniture are
masked wherever they stand (``masking``), colour maps and split screens wait. What is stored is the whole image, masked.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath

from busgen_client.admission import NewImage
from busgen_client.cohort import CohortStore
from busgen_client.cohort_rows import Role
from busgen_client.held import Held
from busgen_client.intake.findings import Code, IntakeResult, QuarantineError
from busgen_client.intake.frames import Box, Gray, check_scan, chroma, decode_picture, mask_box, to_gray
from busgen_client.intake.masking import Known, clean, covered
from busgen_client.intake.modes import check_modes
from busgen_client.intake.run import Source, take_in
from busgen_core.digests import sha256_bytes
from busgen_core.errors import InputError, LabelError, TableError
from busgen_core.labels import Pathology, parse_pathology
from busgen_core.tables import read_rows
from busgen_privacy.deidentify import deny_words
from busgen_privacy.text import scrub
from busgen_privacy.vocabulary import device_words

TABLE = "images.csv"
LARGEST = 64 * 2**20  # bytes of one image file
ROLES: Mapping[str, Role | None] = {"train": "member", "holdout": "holdout", "": None}
LEFT_OUT = frozenset({"pretrain", "contradictory"})  # public images, and images whose labels contradict each other


def intake_table(store: CohortStore, folder: Path, *, progress: bool = True) -> IntakeResult:
    """Take in ``folder/images.csv`` and the images that it names.

    Args:
        store: The node's cohort.
        folder: Folder of the table; every file it names lies inside.
        progress: Show a progress bar on standard error.

    Raises:
        TableError: the table as a whole cannot be used; nothing was added.
        StateError: another intake is running.
        UnavailableError: the node's store or folder failed.
    """
    rows = read_rows(folder / TABLE, required=("file", "pathology"))
    if rows and not any(row is not None and ("group" in row or "patient_id" in row) for row in rows):
        raise TableError("the table lacks a column 'group' or 'patient_id'; images of one patient could not be kept together")
    return take_in(store, _sources(store, folder.resolve(), rows), total=len(rows), event="intake.table", progress=progress)


def _sources(store: CohortStore, folder: Path, rows: list[dict[str, str] | None]) -> Iterator[Source]:
    """One for each row, known by its picture and id wherever the folder lies; by folder and id while there is no picture."""
    for line, row in enumerate(rows):
        name = "" if row is None else _row_id(row)
        place = store.pseudonyms.key("row", str(folder), name or f"line {line}")
        known: Known = {}
        content = Code.ROW_MALFORMED if row is None else _content(folder, row["file"])
        read, show = partial(_read, store, folder, row, content, known), partial(_to_look_at, store, folder, row, content, known)
        key = place if isinstance(content, Code) else store.pseudonyms.key("picture", sha256_bytes(content), name)
        yield Source(key=key, place=place, read=read, show=show, check=partial(_check_same, store, row, content))


def _content(folder: Path, name: str) -> bytes | Code:
    """A file's bytes, or why there are none."""
    try:
        return content_in(folder, name)
    except QuarantineError as refused:
        return refused.finding


def _there(content: bytes | Code) -> bytes:
    if isinstance(content, Code):
        raise QuarantineError(content)
    return content


def _check_same(store: CohortStore, row: Mapping[str, str] | None, content: bytes | Code) -> None:
    """A row's image is not given to another patient by coming again: a person must say whose it is."""
    if row is None or row.get("role", "").lower() in LEFT_OUT:
        return
    owner = store.owner(_source_key(store, row, _there(content)))
    if _patient(store, row) != owner and owner:
        raise QuarantineError(Code.PATIENT_UNSURE)


def _row_id(row: Mapping[str, str]) -> str:
    return row.get("image_id") or row["file"]


def _read(store: CohortStore, folder: Path, row: Mapping[str, str] | None, found: bytes | Code, known: Known) -> list[NewImage] | int | None:
    """The clean image of one row; 1 if it is in the cohort already; None if its role keeps it out."""
    if row is None:
        raise QuarantineError(Code.ROW_MALFORMED)
    role = row.get("role", "").lower()
    if role in LEFT_OUT:
        return None
    if role not in ROLES:
        raise QuarantineError(Code.ROLE_UNKNOWN)
    pathology, patient_key = _label(row), _patient(store, row)
    content = _there(found)
    frame = decode_picture(content)
    gray = check_scan(to_gray(frame))
    box = _box(folder, row.get("mask_file", ""), gray.shape)
    if box is not None and pathology is Pathology.NORMAL:
        raise QuarantineError(Code.LABEL_CONTRADICTORY)
    if store.holds(_source_key(store, row, content), patient_key, ROLES[role]):
        return 1
    check_modes(frame, gray)
    [scan] = clean([gray], chroma=[chroma(frame)], deny=deny_words(_identifiers(row)), known=known)
    return [_image(store, row, content, check_scan(scan), patient_key=patient_key, pathology=pathology, box=box)]


def _to_look_at(store: CohortStore, folder: Path, row: Mapping[str, str] | None, found: bytes | Code, known: Known) -> Held | None:
    """What a person is shown of a row that waits; a label or box that cannot be used is left for the person to give.

    Raises:
        QuarantineError: there is nothing that a person could release.
    """
    if row is None or row.get("role", "").lower() not in ROLES:
        return None
    content, patient_key = _there(found), _patient(store, row)
    [frame] = covered([decode_picture(content)], deny=deny_words(_identifiers(row)), known=known)
    try:
        pathology, box = _label(row), _box(folder, row.get("mask_file", ""), frame.shape[:2])
    except QuarantineError as refused:
        pathology, box = Pathology.NORMAL if refused.finding is Code.LABEL_UNKNOWN else _label(row), None
        labelled = refused.finding is not Code.LABEL_UNKNOWN
    else:
        labelled = box is None or pathology is not Pathology.NORMAL
    return Held(images=(_image(store, row, content, frame, patient_key=patient_key, pathology=pathology, box=box),), labelled=labelled)


def _image(
    store: CohortStore, row: Mapping[str, str], content: bytes, gray: Gray, *, patient_key: str, pathology: Pathology, box: Box | None
) -> NewImage:
    return NewImage(
        gray=gray,
        patient_key=patient_key,
        pathology=pathology,
        box=box,
        device=_device(store, row.get("device", ""), deny_words(_identifiers(row))),
        source_key=_source_key(store, row, content),
        role=ROLES[row.get("role", "").lower()],
    )


def _identifiers(row: Mapping[str, str]) -> list[str]:
    return [row.get("group") or "", row.get("patient_id") or ""]


def _source_key(store: CohortStore, row: Mapping[str, str], content: bytes) -> str:
    return store.pseudonyms.key("table", sha256_bytes(content), _row_id(row))


def _label(row: Mapping[str, str]) -> Pathology:
    try:
        return parse_pathology(row["pathology"])
    except LabelError:
        raise QuarantineError(Code.LABEL_UNKNOWN) from None


def _patient(store: CohortStore, row: Mapping[str, str]) -> str:
    try:
        person = store.pseudonyms.person(row.get("group") or row.get("patient_id", ""))
    except InputError:
        raise QuarantineError(Code.PATIENT_MISSING) from None
    if store.withdrawn(person):
        raise QuarantineError(Code.CONSENT_WITHDRAWN)
    return store.canonical(person.key)


def _device(store: CohortStore, text: str, deny: frozenset[str]) -> str:
    """A scanner's name without the patient's identifiers and without words that no scanner's name has."""
    return scrub(text, deny=deny, words=device_words().with_words(store.choices.words), models=store.choices.nlp_models)


def content_in(folder: Path, name: str) -> bytes:
    """Bytes of a file that a table names, if it truly lies in the table's folder, links followed."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if not name or "\0" in name or posix.is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise QuarantineError(Code.PATH_OUTSIDE)
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder):
            raise QuarantineError(Code.PATH_OUTSIDE)
        if not path.is_file():
            raise QuarantineError(Code.FILE_MISSING)
        if path.stat().st_size > LARGEST:
            raise QuarantineError(Code.FILE_TOO_LARGE)
        return path.read_bytes()
    except (OSError, RuntimeError, ValueError):  # a name too long, a loop of links, a lone surrogate
        raise QuarantineError(Code.FILE_UNREADABLE) from None


def _box(folder: Path, name: str, shape: tuple[int, ...]) -> Box | None:
    """Box of the lesion mask as fractions; None without a mask or with an empty one."""
    if not name:
        return None
    try:
        mask = decode_picture(content_in(folder, name))
    except QuarantineError as refused:
        raise refused if refused.finding is Code.PATH_OUTSIDE else QuarantineError(Code.MASK_UNREADABLE) from None
    flat = mask if mask.ndim == 2 else mask.max(axis=2)
    if flat.shape != shape:
        raise QuarantineError(Code.MASK_UNREADABLE)
    return mask_box(flat)
