"""What intake found: every code that holds an object back, with the reason that people read, and the counts of one run.

Reasons are constant texts: nothing of a file, a header or a table can get into them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from busgen_core.errors import InputError


class Code(StrEnum):
    """Why an object waits in quarantine. Stable: the console, logs and tests rely on it."""

    BOX_INVALID = "box-invalid"
    BOX_OUTSIDE_REGION = "box-outside-region"
    BURNED_IN_TEXT = "burned-in-text"
    COLOUR = "colour"
    CONSENT_WITHDRAWN = "consent-withdrawn"
    DEVICE_UNKNOWN = "device-unknown"
    DICOM_INVALID = "dicom-invalid"
    FEW_LEVELS = "few-levels"
    FILE_MISSING = "file-missing"
    FILE_TOO_LARGE = "file-too-large"
    FILE_UNREADABLE = "file-unreadable"
    IMAGE_CORRUPT = "image-corrupt"
    IMAGE_EMPTY = "image-empty"
    IMAGE_SMALL = "image-small"
    LABEL_CONTRADICTORY = "label-contradictory"
    LABEL_MISSING = "label-missing"
    LABEL_UNDECIDED = "label-undecided"
    LABEL_UNKNOWN = "label-unknown"
    MASK_UNREADABLE = "mask-unreadable"
    NO_SCAN_REGION = "no-scan-region"
    NOT_DICOM = "not-dicom"
    NOT_ULTRASOUND = "not-ultrasound"
    OTHER_MODE = "other-mode"
    PATH_OUTSIDE = "path-outside"
    PATIENT_MISSING = "patient-missing"
    PATIENT_UNSURE = "patient-unsure"
    PIXELS_LIE = "pixels-lie"
    PIXELS_SLOW = "pixels-slow"
    PIXELS_UNDECODABLE = "pixels-undecodable"
    REPORT_UNREADABLE = "report-unreadable"
    ROLE_CONFLICT = "role-conflict"
    ROLE_UNKNOWN = "role-unknown"
    ROW_MALFORMED = "row-malformed"
    SCAN_REGION_INVALID = "scan-region-invalid"
    SPLIT_SCREEN = "split-screen"
    TEXT_LEFT = "text-left"
    TEXT_OVER_SCAN = "text-over-scan"
    TRANSFER_SYNTAX = "transfer-syntax"
    UID_REUSED = "uid-reused"


REASONS: Mapping[Code, str] = {
    Code.BOX_INVALID: "the lesion box is not four numbers x0 < x1, y0 < y1 in pixels of the whole frame; correct the label file",
    Code.BOX_OUTSIDE_REGION: "more than half of the lesion box lies outside the scan region; box and image do not belong together",
    Code.BURNED_IN_TEXT: "the header says that text is burned into the pixels, and names no scan region outside which to black it out",
    Code.COLOUR: "colour Doppler or another colour overlay covers the scan; the generator learns gray B-mode only",
    Code.CONSENT_WITHDRAWN: "this patient has withdrawn consent; repeat the withdrawal, it deletes what was taken in under another number too",
    Code.DEVICE_UNKNOWN: "nobody here has vouched for this model of scanner; look at what it writes into the scan, then vouch for it or not",
    Code.DICOM_INVALID: "the DICOM file is truncated, or an attribute that is needed is missing or malformed; export it again",
    Code.FEW_LEVELS: "the scan uses so few gray levels that text in it cannot be seen; export it again in its full range",
    Code.FILE_MISSING: "the table names a file that is not in the folder",
    Code.FILE_TOO_LARGE: "the file or frame is larger than any ultrasound frame; it was not decoded",
    Code.FILE_UNREADABLE: "the file cannot be read; check its permissions and the disk",
    Code.IMAGE_CORRUPT: "the image does not decode as PNG, JPEG or BMP; export it again",
    Code.IMAGE_EMPTY: "every pixel of the scan has the same value; there is nothing to learn from it",
    Code.IMAGE_SMALL: "the scan is smaller than 32 px on one side",
    Code.LABEL_CONTRADICTORY: "two labels contradict each other, or a normal image has a lesion; correct the label file",
    Code.LABEL_MISSING: "no label is given for this object; add it to the label file and take it in again",
    Code.LABEL_UNDECIDED: (
        "the histology is of uncertain kind (B3, atypia, borderline), or its words leave doubt about class or side; a person must say the class"
    ),
    Code.LABEL_UNKNOWN: "the pathology label is not in the consortium's list; correct the label file",
    Code.MASK_UNREADABLE: "the lesion mask is missing, does not decode, or has another size than its image",
    Code.NO_SCAN_REGION: "the header names no B-mode tissue region, so nobody knows where burned-in text may be",
    Code.NOT_DICOM: "not a DICOM file",
    Code.NOT_ULTRASOUND: "not an ultrasound image object",
    Code.OTHER_MODE: "M-mode or spectral Doppler shares the frame; the generator learns B-mode only",
    Code.PATH_OUTSIDE: "the table names a file outside its own folder",
    Code.PATIENT_MISSING: "no patient identifier, so its images cannot be kept on one side of the split",
    Code.PATIENT_UNSURE: "patient number, name and birth date point to different patients; a person must say whose this is",
    Code.PIXELS_LIE: "the pixel data does not have the size that the header states; export it again",
    Code.PIXELS_SLOW: "the frames took longer to decode than they may, perhaps as the machine was busy; take it in again, or export it uncompressed",
    Code.PIXELS_UNDECODABLE: "the pixel data does not decode, or its kind of pixel is not supported; export it uncompressed",
    Code.REPORT_UNREADABLE: "a structured report on this examination cannot be read, so what it says is unknown; export it again",
    Code.ROLE_CONFLICT: "this patient already has the other role; members and holdout are never mixed",
    Code.ROLE_UNKNOWN: "the role is none of train, holdout, pretrain, contradictory",
    Code.ROW_MALFORMED: "the row has more or fewer fields than the table's header",
    Code.SCAN_REGION_INVALID: "a scan region lies outside the frame, so it cannot be trusted to leave text out",
    Code.SPLIT_SCREEN: "two scans stand side by side; the generator learns one scan a frame",
    Code.TEXT_LEFT: "text in the scan was masked, and something beside it still reads like text that no scanner writes; look at the picture",
    Code.TEXT_OVER_SCAN: "more than a quarter of the scan is covered by text or markings; look at the picture",
    Code.TRANSFER_SYNTAX: "the transfer syntax is not one that intake decodes; export it uncompressed",
    Code.UID_REUSED: "an object with the same SOP Instance UID and other pixels is in the cohort; ask the PACS which of them is right",
}


# What a person can decide by looking at the pixels, and what a person can decide by giving a label. Everything else can only be deleted, or
# mended where it comes from and taken in again.
BY_EYE = frozenset(
    {
        *(Code.BURNED_IN_TEXT, Code.COLOUR, Code.DEVICE_UNKNOWN, Code.NO_SCAN_REGION, Code.OTHER_MODE, Code.SCAN_REGION_INVALID),
        *(Code.SPLIT_SCREEN, Code.TEXT_LEFT, Code.TEXT_OVER_SCAN),
    }
)
BY_LABEL = frozenset(
    {
        *(Code.BOX_INVALID, Code.BOX_OUTSIDE_REGION, Code.MASK_UNREADABLE),
        *(Code.LABEL_CONTRADICTORY, Code.LABEL_MISSING, Code.LABEL_UNDECIDED, Code.LABEL_UNKNOWN, Code.REPORT_UNREADABLE),
    }
)


class QuarantineError(InputError):
    """One object must wait. Never leaves intake: the runner turns it into a row of the quarantine."""

    def __init__(self, code: Code) -> None:
        self.finding = code
        super().__init__(REASONS[code])


@dataclass(frozen=True, order=True, slots=True)
class Unread:
    """Counts of structured reports that cannot be read.

    Attributes:
        reports: All of them.
        unplaced: Those that do not even say whose they are, so that no object waits for them.
    """

    reports: int = 0
    unplaced: int = 0


ALL_READ = Unread()


@dataclass(frozen=True, slots=True)
class IntakeResult:
    """Counts of one run.

    Attributes:
        added: Images that are new in the cohort.
        duplicates: Images that were in it already.
        skipped: Rows whose role keeps them out of a hospital's cohort, and objects that a person deleted.
        quarantined: Objects that wait, among them those of earlier runs that were seen again.
        codes: The same objects by code.
        unread: Structured reports among the labels that cannot be read; of several runs, the most.
    """

    added: int = 0
    duplicates: int = 0
    skipped: int = 0
    quarantined: int = 0
    codes: Mapping[str, int] = field(default_factory=dict)
    unread: Unread = ALL_READ
