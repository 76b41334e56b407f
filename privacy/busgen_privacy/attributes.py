"""The allow-list: every attribute of a header that may be read for the pixels or written into a de-identified object, with the values that may pass.

Sources: PS3.3 A.6 (Ultrasound Image IOD), C.8.5.5 (US Region Calibration), C.8.5.6 (US Image), C.7.6.3 (Image Pixel); keywords of PS3.6.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from busgen_privacy.deidentify import Option


class Kind(StrEnum):
    """How a value is treated that needs no bounds of its own."""

    AGE = "age"  # AS; 90 years and above become 90 (45 CFR 164.514(b)(2)(i)(C))
    CODES = "codes"  # items whose code is in CODES, with the meaning that the standard gives it
    DATE = "date"  # moved by the patient's offset
    TIME = "time"
    MOMENT = "moment"  # date and time in one
    DEVICE = "device"  # text of a scanner's name, cleaned by vocabulary
    DESCRIPTION = "description"  # text about the examination, cleaned by vocabulary
    MACHINE = "machine"  # identifier of a machine: one word in which no name or number of the header is, and that reads like nobody's
    NOTHING = "nothing"  # written empty
    PSEUDONYM = "pseudonym"  # the patient's keyed pseudonym
    REGIONS = "regions"  # items by REGION_RULES
    SOP_CLASS = "sop-class"  # a UID of PS3.4
    UID = "uid"  # replaced by the keyed map


@dataclass(frozen=True, slots=True)
class Terms:
    """One value of a closed list."""

    allowed: frozenset[str]


@dataclass(frozen=True, slots=True)
class Number:
    """Numbers in [low, high], rounded to six significant digits. Ranges are too narrow for a record number or a date."""

    low: float
    high: float
    most: int = 1  # values


@dataclass(frozen=True, slots=True)
class Rule:
    """How one attribute is treated.

    Attributes:
        check: Which values pass, and as what.
        option: The option that keeps it although table E.1-1 removes, empties or replaces it.
        required: The IOD wants it there, if only empty (type 2).
    """

    check: Kind | Terms | Number
    option: Option | None = None
    required: bool = False


def _terms(text: str) -> Terms:
    return Terms(frozenset(text.split("|")))


DATES, PATIENT = Option.RETAIN_MODIFIED_DATES, Option.RETAIN_PATIENT_CHARACTERISTICS
DEVICE, DESCRIPTORS = Option.RETAIN_DEVICE_IDENTITY, Option.CLEAN_DESCRIPTORS

RULES: Mapping[str, Rule] = {
    # SOP Common, Patient
    "SOPClassUID": Rule(Kind.SOP_CLASS),
    "SOPInstanceUID": Rule(Kind.UID),
    "PatientName": Rule(Kind.PSEUDONYM, required=True),
    "PatientID": Rule(Kind.PSEUDONYM, required=True),
    "PatientBirthDate": Rule(Kind.NOTHING, required=True),
    "PatientSex": Rule(_terms("F|M|O"), PATIENT, required=True),
    "PatientAge": Rule(Kind.AGE, PATIENT),
    "PatientSize": Rule(Number(0.2, 2.6), PATIENT),  # m
    "PatientWeight": Rule(Number(0.2, 400), PATIENT),  # kg
    # General Study, General Series
    "StudyInstanceUID": Rule(Kind.UID),
    "StudyDate": Rule(Kind.DATE, DATES, required=True),
    "StudyTime": Rule(Kind.TIME, DATES, required=True),
    "ReferringPhysicianName": Rule(Kind.NOTHING, required=True),
    "StudyID": Rule(Kind.NOTHING, required=True),
    "AccessionNumber": Rule(Kind.NOTHING, required=True),
    "StudyDescription": Rule(Kind.DESCRIPTION, DESCRIPTORS),
    "RequestedProcedureDescription": Rule(Kind.DESCRIPTION, DESCRIPTORS),
    "PerformedProcedureStepDescription": Rule(Kind.DESCRIPTION, DESCRIPTORS),
    "Modality": Rule(_terms("US")),
    "SeriesInstanceUID": Rule(Kind.UID),
    "SeriesNumber": Rule(Number(0, 9999), required=True),
    "SeriesDate": Rule(Kind.DATE, DATES),
    "SeriesTime": Rule(Kind.TIME, DATES),
    "SeriesDescription": Rule(Kind.DESCRIPTION, DESCRIPTORS),
    "ProtocolName": Rule(Kind.DESCRIPTION, DESCRIPTORS),
    "BodyPartExamined": Rule(_terms("BREAST|CHEST|AXILLA|CHESTWALL|SKIN|SOFTTISSUE|LYMPHNODE")),
    "Laterality": Rule(_terms("L|R")),
    # General Equipment
    "Manufacturer": Rule(Kind.DEVICE, required=True),
    "ManufacturerModelName": Rule(Kind.DEVICE),
    "DeviceSerialNumber": Rule(Kind.MACHINE, DEVICE),
    "StationName": Rule(Kind.MACHINE, DEVICE),
    "DeviceUID": Rule(Kind.UID),
    # General Image, General Anatomy
    "InstanceNumber": Rule(Number(0, 9999), required=True),
    "ContentDate": Rule(Kind.DATE, DATES, required=True),
    "ContentTime": Rule(Kind.TIME, DATES, required=True),
    "AcquisitionDate": Rule(Kind.DATE, DATES),
    "AcquisitionTime": Rule(Kind.TIME, DATES),
    "AcquisitionDateTime": Rule(Kind.MOMENT, DATES),
    "ImageComments": Rule(Kind.DESCRIPTION, DESCRIPTORS),
    "LossyImageCompression": Rule(_terms("00|01")),
    "LossyImageCompressionRatio": Rule(Number(0, 1000)),
    "LossyImageCompressionMethod": Rule(_terms("ISO_10918_1|ISO_14495_1|ISO_15444_1|ISO_13818_2|ISO_14496_10|ISO_23008_2")),
    "ImageLaterality": Rule(_terms("L|R|U|B")),
    "AnatomicRegionSequence": Rule(Kind.CODES),
    "PixelSpacing": Rule(Number(1e-6, 100, most=2)),  # mm
    "WindowCenter": Rule(Number(-65536, 65536)),
    "WindowWidth": Rule(Number(0, 65536)),
    # US Region Calibration, US Image
    "SequenceOfUltrasoundRegions": Rule(Kind.REGIONS),
    "TransducerType": Rule(
        _terms(
            "SECTOR_PHASED|SECTOR_MECH|SECTOR_ANNULAR|LINEAR|CURVED LINEAR|SINGLE CRYSTAL|SPLIT XTAL CWD|IV_PHASED|IV_ROT XTAL|IV_ROT MIRROR|"
            "ENDOCAV_PA|ENDOCAV_MECH|ENDOCAV_CLA|ENDOCAV_AA|ENDOCAV_LINEAR|VECTOR_PHASED"
        )
    ),
    "FocusDepth": Rule(Number(0, 1000)),  # cm
    "DepthOfScanField": Rule(Number(0, 1000)),  # mm
    "MechanicalIndex": Rule(Number(0, 10)),
    "BoneThermalIndex": Rule(Number(0, 10)),
    "CranialThermalIndex": Rule(Number(0, 10)),
    "SoftTissueThermalIndex": Rule(Number(0, 10)),
}

# Attributes inside one item of the Sequence of Ultrasound Regions.
REGION_RULES: Mapping[str, Rule] = {
    "RegionSpatialFormat": Rule(Number(0, 20)),
    "RegionDataType": Rule(Number(0, 40)),
    "RegionFlags": Rule(Number(0, 7)),
    "RegionLocationMinX0": Rule(Number(0, 65536)),
    "RegionLocationMinY0": Rule(Number(0, 65536)),
    "RegionLocationMaxX1": Rule(Number(0, 65536)),
    "RegionLocationMaxY1": Rule(Number(0, 65536)),
    "ReferencePixelX0": Rule(Number(-65536, 65536)),
    "ReferencePixelY0": Rule(Number(-65536, 65536)),
    "ReferencePixelPhysicalValueX": Rule(Number(-10_000, 10_000)),
    "ReferencePixelPhysicalValueY": Rule(Number(-10_000, 10_000)),
    "PhysicalUnitsXDirection": Rule(Number(0, 20)),
    "PhysicalUnitsYDirection": Rule(Number(0, 20)),
    "PhysicalDeltaX": Rule(Number(-1000, 1000)),
    "PhysicalDeltaY": Rule(Number(-1000, 1000)),
    "TransducerFrequency": Rule(Number(0, 65536)),  # kHz
}

# Codes of PS3.16 CID 4013 and its parts that breast ultrasound uses: (Coding Scheme Designator, Code Value) and its meaning.
CODES: Mapping[tuple[str, str], str] = {
    ("SCT", "76752008"): "Breast",
    ("SCT", "91470000"): "Axilla",
    ("SCT", "78904004"): "Chest Wall",
    ("SRT", "T-04000"): "Breast",
    ("SRT", "T-D8104"): "Axilla",
}

# Read as they are, to decode the pixels, and never written: the object that is written has pixels and a description of its own.
PIXELS: frozenset[str] = frozenset(
    {
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "PlanarConfiguration",
        "NumberOfFrames",
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "BurnedInAnnotation",
        "RedPaletteColorLookupTableDescriptor",
        "GreenPaletteColorLookupTableDescriptor",
        "BluePaletteColorLookupTableDescriptor",
        "RedPaletteColorLookupTableData",
        "GreenPaletteColorLookupTableData",
        "BluePaletteColorLookupTableData",
        "SegmentedRedPaletteColorLookupTableData",
        "SegmentedGreenPaletteColorLookupTableData",
        "SegmentedBluePaletteColorLookupTableData",
        "PixelData",
    }
)

# Enter keyed digests and are forgotten.
DIGESTED: frozenset[str] = frozenset({"PatientID", "IssuerOfPatientID", "SOPInstanceUID"})

# Words of these must not survive in any text that is kept; every attribute of VR PN, DA and DT comes on top, nested and private ones too.
PEOPLE: frozenset[str] = frozenset(
    {
        "AccessionNumber",
        "AdmissionID",
        "FillerOrderNumberImagingServiceRequest",
        "IssuerOfPatientID",
        "MedicalRecordLocator",
        "OtherPatientIDs",
        "PatientAddress",
        "PatientID",
        "PatientTelephoneNumbers",
        "PlacerOrderNumberImagingServiceRequest",
        "RequestedProcedureID",
        "StudyID",
    }
)

# The same, but for words that are in the vocabulary of scanner names too: stations are named after their scanners. VR AE comes on top.
PLACES: frozenset[str] = frozenset(
    {
        "DeviceSerialNumber",
        "InstitutionAddress",
        "InstitutionName",
        "InstitutionalDepartmentName",
        "RequestingService",
        "StationName",
    }
)
