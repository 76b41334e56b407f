"""From bytes to a de-identified header. Only this module and ``profile`` see a full header; what they hand on holds nothing of the patient
in clear, save the identity, whose fields are made to be digested and are kept out of every repr."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import pydicom.config
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataset import FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble

from busgen_client.devices import device_key
from busgen_client.intake.findings import Code, QuarantineError
from busgen_client.intake.profile import Profile, deidentify, own_words
from busgen_core.errors import BusgenError
from busgen_privacy.attributes import PIXELS

# PS3.4 table B.5-1, and the two retired ultrasound classes that old archives still hold.
SOP_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.6.1",  # Ultrasound Image Storage
        "1.2.840.10008.5.1.4.1.1.3.1",  # Ultrasound Multi-frame Image Storage
        "1.2.840.10008.5.1.4.1.1.6",  # Ultrasound Image Storage (retired)
        "1.2.840.10008.5.1.4.1.1.3",  # Ultrasound Multi-frame Image Storage (retired)
    }
)

# PS3.5 section 10 and annex A. Deflated is left out: a few bytes of it can fill the memory before a check is possible.
TRANSFER_SYNTAXES = frozenset(
    {
        "1.2.840.10008.1.2",  # Implicit VR Little Endian
        "1.2.840.10008.1.2.1",  # Explicit VR Little Endian
        "1.2.840.10008.1.2.2",  # Explicit VR Big Endian (retired)
        "1.2.840.10008.1.2.4.50",  # JPEG Baseline
        "1.2.840.10008.1.2.4.51",  # JPEG Extended
        "1.2.840.10008.1.2.4.57",  # JPEG Lossless
        "1.2.840.10008.1.2.4.70",  # JPEG Lossless, first-order prediction
        "1.2.840.10008.1.2.4.80",  # JPEG-LS Lossless
        "1.2.840.10008.1.2.4.81",  # JPEG-LS Near-Lossless
        "1.2.840.10008.1.2.4.90",  # JPEG 2000 Lossless
        "1.2.840.10008.1.2.4.91",  # JPEG 2000
        "1.2.840.10008.1.2.5",  # RLE Lossless
    }
)

# Limits against bombs. A parser takes 20 µs for an attribute or item, and each takes it a read or two; PS3.6 has 5,000 attributes.
MOST_READS = 60_000
MOST_ATTRIBUTES = 10_000
LARGEST_VALUE = 256 * 1024  # bytes; twice the largest palette
MOST_NESTED = 2**20  # bytes of values that may hold attributes themselves
MOST_BYTES = 2**23  # of all values, pixels not counted
NESTING = frozenset({None, "SQ", "UN"})  # None: implicit VR, not looked up yet
PIXEL_GROUP = 0x7FE0


@dataclass(frozen=True, slots=True)
class Identity:
    """What ties an object to a patient, and to what was said of it; enters keyed digests and comparisons only."""

    patient_id: str = field(repr=False)
    issuer: str = field(repr=False)
    sop_uid: str = field(repr=False)
    name: str = field(repr=False, default="")
    birth_date: str = field(repr=False, default="")
    study_uid: str = field(repr=False, default="")
    accession: str = field(repr=False, default="")
    side: str = ""  # L or R; empty where the header does not say one


@dataclass(frozen=True, slots=True)
class Clean:
    """An object after de-identification of its header.

    Attributes:
        header: What ``profile.deidentify`` let through, and beside it what describes the pixels (``busgen_privacy.attributes.PIXELS``) and the
            transfer syntax; nothing else.
        device: Model, scrubbed of this header's own names and numbers and of every word that no scanner's name has; may be empty.
        identity: For keyed digests.
        deny: This header's own names and numbers, to judge text in the pixels by; never stored.
        device_key: Keyed digest of manufacturer and model in full; empty where no model is named, or nothing of its name may be shown.
    """

    header: Dataset
    device: str
    identity: Identity
    deny: frozenset[str] = field(default=frozenset(), repr=False)
    device_key: str = ""


@contextmanager
def quietly() -> Iterator[None]:
    """Keep pydicom silent: its warnings and log lines quote values of the header."""
    disabled = pydicom.config.logger.disabled
    pydicom.config.logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        pydicom.config.logger.disabled = disabled


def read_clean(data: bytes, profile: Profile, *, patient_of: Callable[[Identity], str] | None = None) -> Clean:
    """Parse one file and drop all that is not allow-listed.

    Args:
        data: The file.
        profile: Choices and key of the site.
        patient_of: Gives the key of the patient, empty for nobody's; pseudonym and dates go by it. Not given, each identifier is a patient.

    Raises:
        QuarantineError: not-dicom, transfer-syntax, dicom-invalid or not-ultrasound, or whatever ``patient_of`` says.
        ConfigError: a language model that the site chose is not installed.
    """
    with _parsed(data) as full:
        identity = _identity(full)
        clean = _clean(full, profile, identity, patient=patient_of(identity) if patient_of else _own_patient(profile, identity))
    if clean.header.get("Modality") != "US" or clean.header.get("SOPClassUID") not in SOP_CLASSES:
        raise QuarantineError(Code.NOT_ULTRASOUND)
    return clean


def read_identity(data: bytes) -> Identity:
    """Whose object this is; for digests, where no image is taken in.

    Raises:
        QuarantineError: not-dicom, transfer-syntax or dicom-invalid.
    """
    with _parsed(data) as full:
        return _identity(full)


class _Counted(io.BytesIO):
    """Bytes that may be read in so many steps only."""

    left = MOST_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file.

        Raises:
            QuarantineError: too many steps.
        """
        self.left -= 1
        if self.left < 0:
            raise QuarantineError(Code.DICOM_INVALID)
        return super().read(size)


@contextmanager
def _parsed(data: bytes) -> Iterator[Dataset]:
    """The full header; whatever goes wrong with it inside the block is one of our own errors outside."""
    with quietly():
        _check_transfer_syntax(data)
        try:
            yield _bounded(dcmread(_Counted(data), force=False))
        except BusgenError:
            raise
        except Exception:  # a parser of untrusted bytes raises whatever it likes, and its text may quote the header
            raise QuarantineError(Code.DICOM_INVALID) from None


def _bounded(full: Dataset) -> Dataset:
    """The header without attributes that are larger than any that intake reads; vendors keep raw data of many megabytes in private ones.

    Raises:
        QuarantineError: what is left would still take seconds to look through.
    """
    if len(full) > MOST_ATTRIBUTES:
        raise QuarantineError(Code.DICOM_INVALID)
    nested = total = 0
    for tag in list(full.keys()):
        element = full.get_item(tag)
        size = len(element.value) if tag.group != PIXEL_GROUP and isinstance(element.value, bytes) else 0
        if size > LARGEST_VALUE:
            del full[tag]
            continue
        total += size
        nested += size if element.VR in NESTING else 0
    if total > MOST_BYTES or nested > MOST_NESTED:
        raise QuarantineError(Code.DICOM_INVALID)
    return full


def _check_transfer_syntax(data: bytes) -> None:
    """Read the file meta group alone, before anything is inflated."""
    stream = io.BytesIO(data)
    try:
        read_preamble(stream, force=False)
    except InvalidDicomError:
        raise QuarantineError(Code.NOT_DICOM) from None
    try:
        meta = read_dataset(stream, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, _vr, _length: tag.group != 2)
        syntax = str(meta.TransferSyntaxUID)
    except Exception:  # as above
        raise QuarantineError(Code.DICOM_INVALID) from None
    if syntax not in TRANSFER_SYNTAXES:
        raise QuarantineError(Code.TRANSFER_SYNTAX)


def _own_patient(profile: Profile, identity: Identity) -> str:
    return profile.key("patient", identity.issuer, identity.patient_id) if identity.patient_id else ""


def _clean(full: Dataset, profile: Profile, identity: Identity, *, patient: str) -> Clean:
    header = deidentify(full, profile, patient=patient)
    header.update(_pixels(full))
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = full.file_meta.TransferSyntaxUID
    device = str(header.get("ManufacturerModelName") or "")
    model = device_key(profile.key, manufacturer=_text(full, "Manufacturer"), model=_text(full, "ManufacturerModelName")) if device else ""
    return Clean(header, device, identity, own_words(full), model)


def _identity(full: Dataset) -> Identity:
    side = _text(full, "ImageLaterality") or _text(full, "Laterality")
    identity = Identity(
        patient_id=_text(full, "PatientID"),
        issuer=_text(full, "IssuerOfPatientID"),
        sop_uid=_text(full, "SOPInstanceUID"),
        name=_text(full, "PatientName"),
        birth_date=_text(full, "PatientBirthDate"),
        study_uid=_text(full, "StudyInstanceUID"),
        accession=_text(full, "AccessionNumber"),
        side=side if side in ("L", "R") else "",
    )
    if not identity.sop_uid:
        raise QuarantineError(Code.DICOM_INVALID)
    return identity


def _pixels(full: Dataset) -> Dataset:
    """What decoding needs, as it came, with the value representation that PS3.6 gives it."""
    kept = Dataset()
    for keyword in PIXELS:
        if keyword in full:
            element = full[keyword]
            if element.VR not in dictionary_VR(element.tag).split(" or "):
                raise QuarantineError(Code.DICOM_INVALID)
            kept.add(element)
    return kept


def _text(full: Dataset, keyword: str) -> str:
    return str(cast(object, full.get(keyword)) or "").strip(" \0")
