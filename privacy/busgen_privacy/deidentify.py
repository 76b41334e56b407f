"""De-identification of a DICOM header as data: the allow-list, and the options of a site. What is not listed never gets past intake.

Source: DICOM PS3.15 2026c, Annex E (Attribute Confidentiality Profiles), read the strict way round: table E.1-1 lists what to remove and so
grows with each edition; the allow-list names what may be read and does not. Both must agree: of what is listed here, intake keeps only what
the table does not name, or what an option of the site keeps (columns of the table beside the Basic Profile). Nothing here imports a DICOM
library: attributes go by their PS3.6 keywords.

Guarantees:
    - An attribute without a rule is removed: private ones, overlays (60xx), thumbnails, whatever sequence they are nested in.
    - An attribute with a rule passes only if its value does: a term of a closed list, a number in a range, words of a vocabulary.
    - No rule lets a UID, a name, an identifier or a date through unchanged.
"""

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from busgen_privacy.numbers import number_forms
from busgen_privacy.vocabulary import spellings


class Option(StrEnum):
    """Options of PS3.15 E.3 that a site may choose. Retaining full dates, UIDs or the institution's identity is not among them, and cleaning
    the pixels is not a choice: intake always does it."""

    CLEAN_DESCRIPTORS = "clean-descriptors"  # descriptions, cleaned by vocabulary; else they go
    RETAIN_MODIFIED_DATES = "retain-modified-dates"  # dates and times, moved by the patient's own keyed offset; else they go
    RETAIN_PATIENT_CHARACTERISTICS = "retain-patient-characteristics"  # age (90 and above as 90), sex, size, weight
    RETAIN_DEVICE_IDENTITY = "retain-device-identity"  # serial number and station name; the device UID stays replaced


BASIC_PROFILE = ("113100", "Basic Application Confidentiality Profile")
CLEAN_PIXELS = ("113101", "Clean Pixel Data Option")
SAFE_PRIVATE = ("113111", "Retain Safe Private Option")

# PS3.16 CID 7050, coding scheme DCM: what De-identification Method Code Sequence (0012,0064) says was done.
METHOD_CODES = {
    Option.CLEAN_DESCRIPTORS: ("113105", "Clean Descriptors Option"),
    Option.RETAIN_MODIFIED_DATES: ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    Option.RETAIN_PATIENT_CHARACTERISTICS: ("113108", "Retain Patient Characteristics Option"),
    Option.RETAIN_DEVICE_IDENTITY: ("113109", "Retain Device Identity Option"),
}


class SafePrivate(BaseModel):
    """One private attribute that the site vouches for: a number, told by its private creator. Texts and bytes cannot be listed.

    Attributes:
        group: Odd group number.
        creator: Private creator, exactly as in the header.
        element: Lower byte of the element number, PS3.5 7.8.1.
        vr: Its value representation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: int = Field(ge=0x0009, le=0xFFFD)
    creator: str = Field(min_length=1, max_length=64)
    element: int = Field(ge=0, le=0xFF)
    vr: Literal["DS", "IS", "FD", "FL", "SL", "SS", "UL", "US"]

    @field_validator("group")
    @classmethod
    def _odd(cls, group: int) -> int:
        if group % 2 == 0:
            raise ValueError("a private group is odd")
        return group


class Choices(BaseModel):
    """What a site chose; section ``deidentify`` of node.toml.

    Attributes:
        options: Options of PS3.15 Annex E beside the Basic Profile and Clean Pixel Data.
        safe_private: Private numbers that are kept.
        words: Words that may survive in texts beside the shipped vocabularies, such as a new scanner's name.
        nlp_models: spaCy models installed on this machine that are asked for names too, by name or folder; none is needed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    options: frozenset[Option] = frozenset()
    safe_private: tuple[SafePrivate, ...] = ()
    words: frozenset[str] = frozenset()
    nlp_models: tuple[str, ...] = ()

    @field_validator("words")
    @classmethod
    def _single(cls, words: frozenset[str]) -> frozenset[str]:
        if not all(word.isalpha() for word in words):
            raise ValueError("each of words is one word of letters")
        return words

    def methods(self) -> list[tuple[str, str]]:
        """Codes and meanings of what is done to every header under these choices, in the order of their codes."""
        chosen = [METHOD_CODES[option] for option in self.options]
        return sorted([BASIC_PROFILE, *chosen, *([SAFE_PRIVATE] if self.safe_private else [])])


BASIC = Choices()
SHORTEST_WORD = 3  # shorter pieces of a name would strike out half of any text


def deny_words(values: Iterable[str]) -> frozenset[str]:
    """Words and whole values that must not survive in text, in lower case and every spelling, each of at least ``SHORTEST_WORD`` characters.

    Numbers and dates are among them as others write them, see ``number_forms``.

    >>> sorted(deny_words(["DOE^Jane", "12-345", "0004711"]))
    ['0004711', '12-345', '345', '4711', 'doe', 'doe^jane', 'jane']
    """
    found: set[str] = set()
    for value in values:
        whole = value.strip()
        for word in (whole, *re.split(r"[\W_]+", whole)):
            found.update(form for form in spellings(word) if len(form) >= SHORTEST_WORD)
        found.update(number_forms(whole))
    return frozenset(found)
