"""Structured reports, built item by item."""

import io

from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import EnhancedSRStorage, ExplicitVRLittleEndian, UltrasoundImageStorage

STUDY, IMAGE = "1.2.3", "1.2.3.4"


def code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def item(kind: str, concept: Dataset | None = None, *children: Dataset, **values: object) -> Dataset:
    """A content item."""
    node = Dataset()
    node.RelationshipType, node.ValueType = "CONTAINS", kind
    if concept is not None:
        node.ConceptNameCodeSequence = [concept]
    for name, value in values.items():
        setattr(node, name, value)
    if children:
        node.ContentSequence = list(children)
    return node


def coded(concept: Dataset, value: Dataset) -> Dataset:
    return item("CODE", concept, ConceptCodeSequence=[value])


def text(concept: Dataset, words: str) -> Dataset:
    return item("TEXT", concept, TextValue=words)


def image_of(uid: str) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = UltrasoundImageStorage, uid
    return item("IMAGE", ReferencedSOPSequence=[reference])


ASSESSMENT, OVERALL = code("111005", "DCM", "Assessment Category"), code("111413", "DCM", "Overall Assessment")
PATHOLOGY, FINDINGS = code("111042", "DCM", "Pathology"), code("121070", "DCM", "Findings")
SIDE, LEFT, RIGHT = (code("272741003", "SCT", "Laterality"), code("7771000", "SCT", "Left"), code("24028007", "SCT", "Right"))
SUSPICIOUS, BENIGN_FINDING = code("397144001", "SCT", "Suspicious abnormality"), code("397141009", "SCT", "Benign finding")
FIBROADENOMA = code(codes.cid6030.Fibroadenoma.value, "SCT", "Fibroadenoma")
CARCINOMA = code(codes.cid6030.InfiltratingDuctCarcinoma.value, "SCT", "Infiltrating duct carcinoma")


def report(*children: Dataset, **changes: object) -> bytes:
    """A whole report as bytes."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = EnhancedSRStorage, "1.2.9", ExplicitVRLittleEndian
    whole = FileDataset("", item("CONTAINER", code("111400", "DCM", "Breast Imaging Report"), *children), file_meta=meta, preamble=bytes(128))
    whole.SOPClassUID, whole.SOPInstanceUID, whole.StudyInstanceUID, whole.Modality = EnhancedSRStorage, "1.2.9", STUDY, "SR"
    whole.AccessionNumber, whole.CompletionFlag, whole.PatientName = "A1", "COMPLETE", "Doe^Jane"
    for name, value in changes.items():
        setattr(whole, name, value)
    out = io.BytesIO()
    whole.save_as(out, enforce_file_format=True)
    return out.getvalue()


def finding(side: Dataset, *children: Dataset) -> Dataset:
    return item("CONTAINER", FINDINGS, coded(SIDE, side), *children)
