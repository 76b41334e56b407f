"""De-identification rules as data: an allow-list over DICOM attributes. What is not listed never gets past intake.

Source: DICOM PS3.15 2024b, Annex E (Attribute Confidentiality Profiles), read the strict way round: table E.1-1 lists what to
remove and so grows with each edition; this table lists what may be read and does not. Nothing here imports a DICOM library:
tags are plain integers, group in the upper 16 bits.

Guarantees:
    - ``action`` answers REMOVE for every tag that is not listed, private tags (odd groups) included.
    - An attribute is KEEP only when pixels cannot be decoded, or the scan region not be found, without it.
"""

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum


class Action(StrEnum):
    """What intake does with one attribute."""

    KEEP = "keep"  # read as it is, to decode the pixels; not stored
    CLEAN = "clean"  # stored, but only through busgen_privacy.text
    DIGEST = "digest"  # enters a keyed digest (HMAC) and is forgotten
    REMOVE = "remove"  # never leaves the parser


ULTRASOUND_REGIONS = 0x0018_6011  # Sequence of Ultrasound Regions, PS3.3 C.8.5.5

# PS3.6 names beside each tag. Group 0002 (file meta) is read apart: only its Transfer Syntax UID is.
ACTIONS: Mapping[int, Action] = {
    0x0008_0016: Action.KEEP,  # SOP Class UID
    0x0008_0018: Action.DIGEST,  # SOP Instance UID
    0x0008_0060: Action.KEEP,  # Modality
    0x0008_1090: Action.CLEAN,  # Manufacturer's Model Name
    0x0010_0020: Action.DIGEST,  # Patient ID
    0x0010_0021: Action.DIGEST,  # Issuer of Patient ID
    ULTRASOUND_REGIONS: Action.KEEP,  # its items: REGION_ACTIONS
    0x0028_0002: Action.KEEP,  # Samples per Pixel
    0x0028_0004: Action.KEEP,  # Photometric Interpretation
    0x0028_0006: Action.KEEP,  # Planar Configuration
    0x0028_0008: Action.KEEP,  # Number of Frames
    0x0028_0010: Action.KEEP,  # Rows
    0x0028_0011: Action.KEEP,  # Columns
    0x0028_0100: Action.KEEP,  # Bits Allocated
    0x0028_0101: Action.KEEP,  # Bits Stored
    0x0028_0102: Action.KEEP,  # High Bit
    0x0028_0103: Action.KEEP,  # Pixel Representation
    0x0028_0301: Action.KEEP,  # Burned In Annotation
    0x0028_1101: Action.KEEP,  # Red Palette Color Lookup Table Descriptor
    0x0028_1102: Action.KEEP,  # Green Palette Color Lookup Table Descriptor
    0x0028_1103: Action.KEEP,  # Blue Palette Color Lookup Table Descriptor
    0x0028_1201: Action.KEEP,  # Red Palette Color Lookup Table Data
    0x0028_1202: Action.KEEP,  # Green Palette Color Lookup Table Data
    0x0028_1203: Action.KEEP,  # Blue Palette Color Lookup Table Data
    0x0028_1221: Action.KEEP,  # Segmented Red Palette Color Lookup Table Data
    0x0028_1222: Action.KEEP,  # Segmented Green Palette Color Lookup Table Data
    0x0028_1223: Action.KEEP,  # Segmented Blue Palette Color Lookup Table Data
    0x7FE0_0010: Action.KEEP,  # Pixel Data
}

# Attributes inside one item of the Sequence of Ultrasound Regions.
REGION_ACTIONS: Mapping[int, Action] = {
    0x0018_6012: Action.KEEP,  # Region Spatial Format
    0x0018_6014: Action.KEEP,  # Region Data Type
    0x0018_6018: Action.KEEP,  # Region Location Min X0
    0x0018_601A: Action.KEEP,  # Region Location Min Y0
    0x0018_601C: Action.KEEP,  # Region Location Max X1
    0x0018_601E: Action.KEEP,  # Region Location Max Y1
}

# Attributes whose words must not survive in any text that is kept; every attribute of value representation PN comes on top.
NAMES_AND_NUMBERS: frozenset[int] = frozenset(
    {
        0x0008_0018,  # SOP Instance UID
        0x0008_0050,  # Accession Number
        0x0008_0080,  # Institution Name
        0x0008_0081,  # Institution Address
        0x0008_1010,  # Station Name
        0x0008_1040,  # Institutional Department Name
        0x0010_0020,  # Patient ID
        0x0010_0021,  # Issuer of Patient ID
        0x0010_0030,  # Patient's Birth Date
        0x0010_1000,  # Other Patient IDs
        0x0010_1040,  # Patient's Address
        0x0010_2154,  # Patient's Telephone Numbers
        0x0018_1000,  # Device Serial Number
        0x0020_000D,  # Study Instance UID
        0x0020_000E,  # Series Instance UID
        0x0020_0010,  # Study ID
        0x0038_0010,  # Admission ID
        0x0040_1001,  # Requested Procedure ID
    }
)

SHORTEST_WORD = 3  # shorter pieces of a name would strike out half of any text


def action(tag: int, *, in_region: bool = False) -> Action:
    """What to do with an attribute; ``in_region`` for items of the Sequence of Ultrasound Regions.

    >>> action(0x0010_0010).value, action(0x0009_1001).value, action(0x0028_0010).value
    ('remove', 'remove', 'keep')
    >>> action(0x0028_0010, in_region=True).value
    'remove'
    """
    return (REGION_ACTIONS if in_region else ACTIONS).get(tag, Action.REMOVE)


def deny_words(values: Iterable[str]) -> frozenset[str]:
    """Words and whole values that must not survive in text: case folded, each of at least ``SHORTEST_WORD`` characters.

    >>> sorted(deny_words(["DOE^Jane", "12-345"]))
    ['12-345', '345', 'doe', 'doe^jane', 'jane']
    """
    found: set[str] = set()
    for value in values:
        whole = value.strip().casefold()
        found.update(word for word in (whole, *re.split(r"[\W_]+", whole)) if len(word) >= SHORTEST_WORD)
    return frozenset(found)
