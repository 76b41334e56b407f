"""Headers for tests: a profile with a fixed key, and a header that is as full of a fictitious person as a header can be."""

import hmac
import io

from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage

from busgen_client.intake.profile import Profile
from busgen_privacy.deidentify import Choices, Option

ALL = Choices(options=frozenset(Option))


def key(kind: str, *parts: bytes | str) -> str:
    """A keyed digest like ``Pseudonyms.key``, under a key that everybody knows."""
    data = b"".join(len(p).to_bytes(8, "big") + (p.encode() if isinstance(p, str) else p) for p in parts)
    return hmac.digest(b"a key for tests", kind.encode() + b"\0" + data, "sha256").hex()


PROFILE = Profile(key=key)
OPEN = Profile(key=key, choices=ALL)  # every option chosen


def person() -> Dataset:
    """A study-level header of a person whom there is not."""
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"
    header.SOPClassUID, header.SOPInstanceUID = UltrasoundImageStorage, "1.2.826.0.1.3680043.8.498.4711"
    header.StudyInstanceUID, header.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.4712", "1.2.826.0.1.3680043.8.498.4713"
    header.Modality = "US"
    header.PatientName, header.PatientID, header.PatientBirthDate = "Wróblewska^Gerlinde", "MRN0815471", "19610211"
    header.PatientSex, header.PatientAge, header.PatientWeight = "F", "063Y", 71.5
    header.InstitutionName, header.StationName, header.DeviceSerialNumber = "Klinikum Nirgendwo LOGIQ", "US-LOGIQ-3", "SN77123"
    header.ReferringPhysicianName, header.AccessionNumber, header.StudyID = "Quacksalber^Otto", "ACC990011", "S4711"
    header.StudyDate, header.StudyTime = "20240229", "083015.500"
    header.AcquisitionDateTime = "20240229083015+0100"
    header.StudyDescription = "Mamma links, Frau Wróblewska"
    header.Manufacturer, header.ManufacturerModelName = "GE Healthcare", "LOGIQ E9"
    header.InstanceNumber, header.SeriesNumber = 3, 1
    return header


def whole(header: Dataset) -> bytes:
    """A DICOM file with this header."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out = io.BytesIO()
    FileDataset(out, header, file_meta=meta, preamble=b"\0" * 128).save_as(out, enforce_file_format=True)
    return out.getvalue()
