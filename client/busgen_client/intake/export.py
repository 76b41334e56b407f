"""De-identified DICOM objects: for the hospital's own eyes, so that a PACS administrator can open in a viewer what the node keeps and what it
does not. The header is the one that intake reads images by; the pixels are those that intake would store.

Guarantees:
    - Nothing is copied from a source but what ``profile.deidentify`` let through and the cleaned frames; file meta and preamble are new.
    - One patient has one pseudonym and one shift of dates, under however many numbers, as far as intake would tell.
    - Clean Pixel Data is claimed only by a caller who says that text inside the scan region was looked for.
    - ``write_deidentified`` writes no object that intake would hold back for anything but its label: neither of a scanner that nobody vouched
      for, nor of a patient who is unknown, unsure or withdrew consent.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage
from tqdm import tqdm

from busgen_client.cohort import CohortStore
from busgen_client.intake.dicom import LARGEST, files_below, person_of, unlabelled
from busgen_client.intake.findings import Code, IntakeResult, QuarantineError
from busgen_client.intake.frames import Gray, Rectangle
from busgen_client.intake.guests import Guests
from busgen_client.intake.header import Clean, Identity, quietly, read_clean
from busgen_client.intake.profile import Profile, add_method
from busgen_client.intake.regions import is_tissue
from busgen_client.intake.replacements import new_uid
from busgen_core.errors import BusgenError, InputError
from busgen_privacy.attributes import PIXELS
from busgen_privacy.deidentify import CLEAN_PIXELS

CORNERS = {"RegionLocationMinX0": "x0", "RegionLocationMinY0": "y0", "RegionLocationMaxX1": "x0", "RegionLocationMaxY1": "y0"}


def write_deidentified(store: CohortStore, folder: Path, out: Path, *, progress: bool = True) -> IntakeResult:
    """Write every object below ``folder`` that intake would take in to ``out``, de-identified, named by its new SOP Instance UID.

    Nothing of it enters the cohort, and labels are not asked for.

    Raises:
        InputError: ``folder`` is not a folder, or ``out`` lies in it.
        ConfigError: a language model that the site chose is not installed.
    """
    if not folder.is_dir() or out.resolve().is_relative_to(folder.resolve()):
        raise InputError("the DICOM folder does not exist, or the folder to write to lies inside it")
    out.mkdir(parents=True, exist_ok=True)
    profile, held, written = Profile(key=store.pseudonyms.key, choices=store.choices), Counter[str](), 0
    patient_of = partial(_patient_of, store, Guests(store))
    total = sum(1 for _ in files_below(folder)) if progress else None
    for path in tqdm(files_below(folder), total=total, desc="de-identify", unit="file", disable=not progress):
        try:
            objects = _objects_of(store, path, profile, patient_of)
        except QuarantineError as refused:
            held[refused.finding.value] += 1
            continue
        for one in objects:
            one.save_as(out / f"{one.SOPInstanceUID}.dcm", enforce_file_format=True)
        written += len(objects)
    return IntakeResult(added=written, quarantined=held.total(), codes=dict(sorted(held.items())))


def _patient_of(store: CohortStore, guests: Guests, identity: Identity) -> str:
    """The key of an object's patient; empty for one without an identifier."""
    try:
        person = person_of(store, identity)
    except InputError:
        return ""
    return guests.key_of(person)


def _objects_of(store: CohortStore, path: Path, profile: Profile, patient_of: Callable[[Identity], str]) -> list[FileDataset]:
    try:
        if path.stat().st_size > LARGEST:
            raise QuarantineError(Code.FILE_TOO_LARGE)
        clean = read_clean(path.read_bytes(), profile, patient_of=patient_of)
        found = unlabelled(store, clean).found
        return as_objects(clean, found.scans, crop=found.crop, profile=profile, text_removed=True)
    except BusgenError:
        raise
    except OSError:
        raise QuarantineError(Code.FILE_UNREADABLE) from None
    except Exception:  # its text may quote the header
        raise QuarantineError(Code.DICOM_INVALID) from None


def as_objects(clean: Clean, scans: Sequence[Gray], *, crop: Rectangle, profile: Profile, text_removed: bool = False) -> list[FileDataset]:
    """One Ultrasound Image object (PS3.3 A.6) for each cleaned frame.

    Args:
        clean: The de-identified header.
        scans: uint8 [rows, columns], the frames that may be shown.
        crop: Where they lie in the frame that the header describes, in pixels.
        profile: The profile that ``clean`` was made with.
        text_removed: Text inside the scan region was looked for and masked; only then is Clean Pixel Data (113101) claimed.
    """
    with quietly():
        return [_one(clean, scan, index, crop, profile, text_removed=text_removed) for index, scan in enumerate(scans)]


def _one(clean: Clean, scan: Gray, index: int, crop: Rectangle, profile: Profile, *, text_removed: bool) -> FileDataset:
    header = Dataset()
    for element in clean.header:
        if element.keyword not in PIXELS:
            header.add(element)
    header.SOPClassUID = UltrasoundImageStorage
    if index:
        header.SOPInstanceUID = new_uid(profile.key, f"{clean.identity.sop_uid}/{index}")
    header.SequenceOfUltrasoundRegions = [_moved(item, crop) for item in header.get("SequenceOfUltrasoundRegions", ()) if is_tissue(item)]
    header.ImageType = ["DERIVED", "PRIMARY"]
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PixelRepresentation = 1, "MONOCHROME2", 0
    header.BitsAllocated, header.BitsStored, header.HighBit = 8, 8, 7
    header.Rows, header.Columns = scan.shape
    header.PixelData = scan.tobytes() + bytes(scan.size % 2)
    header["PixelData"].VR = "OB"
    if text_removed:
        header.BurnedInAnnotation = "NO"
        add_method(header, CLEAN_PIXELS)
    return FileDataset("", header, file_meta=_meta(header), preamble=bytes(128))


def _moved(item: Dataset, crop: Rectangle) -> Dataset:
    """A region in pixels of the crop."""
    moved = Dataset()
    moved.update(item)
    last = {"X1": crop.x1 - crop.x0 - 1, "Y1": crop.y1 - crop.y0 - 1}
    for keyword, edge in CORNERS.items():
        setattr(moved, keyword, min(int(item[keyword].value) - getattr(crop, edge), last.get(keyword[-2:], 2**16)))
    return moved


def _meta(header: Dataset) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return meta
