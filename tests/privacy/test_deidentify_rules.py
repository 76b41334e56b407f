"""The allow-list of DICOM attributes, and what a site may choose."""

import pytest
from pydantic import ValidationError

from busgen_privacy.attributes import DIGESTED, PEOPLE, PIXELS, PLACES, REGION_RULES, RULES, Kind
from busgen_privacy.deidentify import BASIC, Choices, Option, SafePrivate, deny_words

# Attributes that the Basic Profile removes, empties or replaces (DICOM PS3.15 2026c, table E.1-1), one of each family, and never kept by us.
NEVER = {
    *("OtherPatientIDs", "PatientAddress", "PatientTelephoneNumbers", "PatientComments", "PatientMotherBirthName", "EthnicGroup", "Occupation"),
    *("InstitutionName", "InstitutionAddress", "OperatorsName", "RequestingPhysician", "RequestAttributesSequence", "IssuerOfPatientID"),
    *("IconImageSequence", "OverlayData", "OverlayComments", "CurveData", "DerivationDescription", "AdditionalPatientHistory"),
}


@pytest.mark.parametrize("keyword", sorted(NEVER))
def test_identifying_attribute_has_no_rule(keyword: str) -> None:
    """What identifies and no viewer needs is not on the list at all, whatever a site chooses."""
    assert keyword not in RULES
    assert keyword not in REGION_RULES
    assert keyword not in PIXELS


def test_pixels_and_rules_do_not_overlap() -> None:
    """An attribute is read for the pixels as it came, or written by a rule; none is both."""
    assert not PIXELS & set(RULES)


def test_no_name_or_number_passes_by_a_rule() -> None:
    """An attribute whose words must not survive is written empty, replaced, or only if the site retains its machine."""
    rules = [RULES[word] for word in PEOPLE | PLACES | DIGESTED if word in RULES]
    assert len(rules) >= 5
    assert {rule.check for rule in rules} <= {Kind.NOTHING, Kind.PSEUDONYM, Kind.UID, Kind.MACHINE}
    assert {rule.option for rule in rules if rule.check is Kind.MACHINE} == {Option.RETAIN_DEVICE_IDENTITY}


def test_a_site_that_chose_nothing_claims_the_basic_profile_alone() -> None:
    """Without options there is one method code."""
    assert BASIC.methods() == [("113100", "Basic Application Confidentiality Profile")]


def test_methods_follow_the_choices() -> None:
    """Each option and the safe list add their own code, in order."""
    number = SafePrivate(group=0x0019, creator="VENDOR", element=1, vr="DS")
    assert [code for code, _ in Choices(options=frozenset(Option), safe_private=(number,)).methods()] == [
        *("113100", "113105", "113107", "113108", "113109", "113111")
    ]


BAD = {
    "an option that is not offered": {"options": ["retain-uids"]},
    "an unknown setting": {"keep": ["PatientName"]},
    "a private text": {"safe_private": [{"group": 0x0019, "creator": "V", "element": 1, "vr": "LO"}]},
    "a group that is not private": {"safe_private": [{"group": 0x0010, "creator": "V", "element": 1, "vr": "DS"}]},
    "two words in one": {"words": ["Jane Doe"]},
    "a number for a word": {"words": ["4711"]},
}


@pytest.mark.parametrize("choices", BAD.values(), ids=BAD)
def test_dangerous_choice_is_refused(choices: dict[str, object]) -> None:
    """node.toml cannot ask for what would let an identifier through."""
    with pytest.raises(ValidationError):
        Choices.model_validate(choices)


def test_deny_words_are_whole_values_and_their_parts() -> None:
    """A name is denied as written and in each part; parts of two letters are not, they would strike out everything."""
    assert deny_words(["DOE^Jo-Ann", "  ", "XY"]) == {"doe^jo-ann", "doe", "ann"}


NUMBERS = {
    "leading zeros": ("0004711815", {"0004711815", "4711815"}),
    "zeros behind letters": ("MRN0004711", {"mrn0004711", "0004711", "4711"}),
    "a day": ("19610312", {"12031961", "03121961", "1231961", "3121961", "120361", "031261", "610312"}),
    "a moment": ("20240229083015.5+0100", {"20240229", "29022024", "290224"}),
    "a day with signs": ("1961.03.12", {"19610312", "12031961"}),
    "an international telephone": ("+49 (30) 123-4567", {"49301234567", "01234567"}),
    "a telephone with zeros for the plus": ("0049301234567", {"49301234567", "01234567"}),
    "a national telephone": ("030/123 45 67", {"0301234567", "301234567"}),
}


@pytest.mark.parametrize(("value", "forms"), NUMBERS.values(), ids=NUMBERS)
def test_deny_words_know_other_ways_to_write_a_number(value: str, forms: set[str]) -> None:
    """Zeros in front, the country's code and the order of a day may differ."""
    assert forms <= deny_words([value])


def test_no_short_number_is_made_of_a_longer_one() -> None:
    """What is three digits or less without its zeros is in every scanner's name; it is denied only if it stands in the header like that."""
    assert deny_words(["000009", "0815 E9"]) == {"000009", "0815", "0815 e9"}
    assert not {word for word in deny_words(["20010101"]) if len(word) < 6}


def test_deny_words_know_other_spellings() -> None:
    """Accents may be missing and umlauts written out."""
    assert {"müller", "muller", "mueller", "francois"} <= deny_words(["Müller^François"])
