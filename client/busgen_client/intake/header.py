"""From bytes to an allow-listed header. Only this module sees a full header; what it hands on holds nothing of the patient in clear,
save the identity, whose fields are made to be digested and are kept out of every repr."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import pydicom.config
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble

from busgen_client.intake.findings import Code, QuarantineError
from busgen_privacy.deidentify import NAMES_AND_NUMBERS, ULTRASOUND_REGIONS, Action, action, deny_words
from busgen_privacy.text import scrub

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


@dataclass(frozen=True, slots=True)
class Identity:
    """What ties an object to a patient; enters keyed digests only."""

    patient_id: str = field(repr=False)
    issuer: str = field(repr=False)
    sop_uid: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Clean:
    """An object after de-identification of its header.

    Attributes:
        header: Attributes of ``busgen_privacy.deidentify.ACTIONS`` with action KEEP, and the transfer syntax; nothing else.
        device: Model, scrubbed of this header's own names and numbers; may be empty.
        identity: For keyed digests.
    """

    header: Dataset
    device: str
    identity: Identity


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


def read_clean(data: bytes) -> Clean:
    """Parse one file and drop all that is not allow-listed.

    Raises:
        QuarantineError: not-dicom, transfer-syntax, dicom-invalid or not-ultrasound.
    """
    with quietly():
        _check_transfer_syntax(data)
        try:
            full = dcmread(io.BytesIO(data), force=False)
            clean = _clean(full)
        except QuarantineError:
            raise
        except Exception:  # a parser of untrusted bytes raises whatever it likes, and its text may quote the header
            raise QuarantineError(Code.DICOM_INVALID) from None
    if clean.header.get("Modality") != "US" or clean.header.get("SOPClassUID") not in SOP_CLASSES:
        raise QuarantineError(Code.NOT_ULTRASOUND)
    return clean


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


def _clean(full: Dataset) -> Clean:
    header = _allowed(full, in_region=False)
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = full.file_meta.TransferSyntaxUID
    identity = Identity(_text(full, "PatientID"), _text(full, "IssuerOfPatientID"), _text(full, "SOPInstanceUID"))
    if not identity.sop_uid:
        raise QuarantineError(Code.DICOM_INVALID)
    return Clean(header, scrub(_text(full, "ManufacturerModelName"), deny=deny_words(_own_values(full))), identity)


def _allowed(full: Dataset, *, in_region: bool) -> Dataset:
    """A new dataset with the KEEP attributes, each with the value representation that PS3.6 gives it."""
    kept = Dataset()
    for tag in list(full.keys()):
        if action(int(tag), in_region=in_region) is not Action.KEEP:
            continue
        element = full[tag]
        if element.VR not in dictionary_VR(tag).split(" or "):
            raise QuarantineError(Code.DICOM_INVALID)
        if int(tag) == ULTRASOUND_REGIONS:
            element = DataElement(tag, "SQ", [_allowed(item, in_region=True) for item in element.value])
        kept.add(element)
    return kept


def _own_values(full: Dataset) -> Iterator[str]:
    """Names and numbers of this header, nested and private ones too; an element that does not parse has none to give."""
    for tag in list(full.keys()):
        try:
            element = full[tag]
        except Exception:  # noqa: S112  (an attribute that is dropped anyway; its text may name the patient, so it is not logged)
            continue
        if element.VR == "SQ":
            for item in element.value:
                yield from _own_values(item)
        elif element.VR == "PN" or int(tag) in NAMES_AND_NUMBERS:
            yield str(element.value)


def _text(full: Dataset, keyword: str) -> str:
    return str(cast(object, full.get(keyword)) or "").strip(" \0")
