"""The allow-list of DICOM attributes."""

import pytest

from busgen_privacy.deidentify import ACTIONS, NAMES_AND_NUMBERS, REGION_ACTIONS, Action, action, deny_words

# Attributes that the Basic Profile removes, empties or replaces (DICOM PS3.15 2024b, table E.1-1), one of each family.
BASIC_PROFILE = {
    "Accession Number": 0x0008_0050,
    "Acquisition Date": 0x0008_0022,
    "Content Date": 0x0008_0023,
    "Device Serial Number": 0x0018_1000,
    "Image Comments": 0x0020_4000,
    "Institution Address": 0x0008_0081,
    "Institution Name": 0x0008_0080,
    "Operators' Name": 0x0008_1070,
    "Other Patient IDs": 0x0010_1000,
    "Overlay Data": 0x6000_3000,
    "Overlay Comments": 0x6000_4000,
    "Patient's Address": 0x0010_1040,
    "Patient's Age": 0x0010_1010,
    "Patient's Birth Date": 0x0010_0030,
    "Patient's Name": 0x0010_0010,
    "Patient's Sex": 0x0010_0040,
    "Patient Comments": 0x0010_4000,
    "Referring Physician's Name": 0x0008_0090,
    "Request Attributes Sequence": 0x0040_0275,
    "Series Instance UID": 0x0020_000E,
    "Station Name": 0x0008_1010,
    "Study Date": 0x0008_0020,
    "Study Description": 0x0008_1030,
    "Study ID": 0x0020_0010,
    "Study Instance UID": 0x0020_000D,
    "Icon Image Sequence": 0x0088_0200,
}


@pytest.mark.parametrize("tag", BASIC_PROFILE.values(), ids=BASIC_PROFILE)
def test_basic_profile_attribute_is_removed(tag: int) -> None:
    """What PS3.15 removes from a header is removed here too."""
    assert action(tag) is Action.REMOVE
    assert action(tag, in_region=True) is Action.REMOVE


@pytest.mark.parametrize("tag", [0x0010_0020, 0x0010_0021, 0x0008_0018], ids=["Patient ID", "Issuer of Patient ID", "SOP Instance UID"])
def test_identifier_enters_digests_only(tag: int) -> None:
    """The three identifiers that intake needs are never kept and never stored as text."""
    assert action(tag) is Action.DIGEST


def test_no_private_tag_is_listed() -> None:
    """Every private group (odd) falls to REMOVE, at the top and inside regions."""
    assert not [tag for tag in (*ACTIONS, *REGION_ACTIONS) if (tag >> 16) % 2]
    assert {action((group << 16) | 0x1001) for group in range(1, 0x10000, 2)} == {Action.REMOVE}


def test_only_the_device_model_is_stored() -> None:
    """One attribute of the whole header reaches the store, and only through the text door."""
    assert [tag for tag, what in ACTIONS.items() if what is Action.CLEAN] == [0x0008_1090]


def test_no_name_or_number_is_kept() -> None:
    """An attribute whose words must not survive is never one that is kept or stored."""
    assert {action(tag) for tag in NAMES_AND_NUMBERS} <= {Action.REMOVE, Action.DIGEST}


def test_deny_words_are_whole_values_and_their_parts() -> None:
    """A name is denied as written and in each part; parts of two letters are not, they would strike out everything."""
    assert deny_words(["DOE^Jo-Ann", "  ", "XY"]) == {"doe^jo-ann", "doe", "ann"}
