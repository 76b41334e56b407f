"""The profile: what is left of a header, attribute by attribute."""

import copy
from collections.abc import Callable

import pytest
from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from busgen_client.intake.annex_e import basic_action, named_tags
from busgen_client.intake.header import read_clean, read_identity
from busgen_client.intake.profile import ALWAYS, Profile, add_method, deidentify
from busgen_privacy.attributes import CODES, DIGESTED, PEOPLE, PIXELS, PLACES, REGION_RULES, RULES, Kind, Number, Terms
from busgen_privacy.deidentify import BASIC_PROFILE, CLEAN_PIXELS, METHOD_CODES, SAFE_PRIVATE, Choices, Option, SafePrivate
from tests.client.headers import OPEN, PROFILE, key, person, whole

NUMERIC = {"DS", "IS", "FD", "FL", "SL", "SS", "UL", "US"}
VRS = {
    Kind.AGE: {"AS"},
    Kind.CODES: {"SQ"},
    Kind.REGIONS: {"SQ"},
    Kind.DATE: {"DA"},
    Kind.TIME: {"TM"},
    Kind.MOMENT: {"DT"},
    Kind.DEVICE: {"LO"},
    Kind.MACHINE: {"LO", "SH"},
    Kind.DESCRIPTION: {"LO", "LT"},
    Kind.NOTHING: {"DA", "LO", "PN", "SH"},
    Kind.PSEUDONYM: {"LO", "PN"},
    Kind.SOP_CLASS: {"UI"},
    Kind.UID: {"UI"},
}


def under(*options: Option, **choices: object) -> Profile:
    return Profile(key=key, choices=Choices.model_validate({"options": options, **choices}))


def shown(header: Dataset) -> dict[str, str]:
    """Values of a header as text, empty ones left out."""
    return {element.keyword: str(element.value) for element in header if element.value not in (None, "")}


def test_every_keyword_is_one_of_the_standard() -> None:
    """A misspelt keyword would be a rule for nothing."""
    every = [*RULES, *REGION_RULES, *PIXELS, *DIGESTED, *PEOPLE, *PLACES]
    assert [word for word in every if tag_for_keyword(word) is None] == []


@pytest.mark.parametrize("keyword", [*RULES, *REGION_RULES])
def test_check_fits_the_value_representation(keyword: str) -> None:
    """Numbers are checked as numbers, terms as terms, texts as texts: no attribute passes by a check that was made for another kind."""
    check, vr = {**RULES, **REGION_RULES}[keyword].check, dictionary_VR(tag_for_keyword(keyword) or 0)
    wanted = NUMERIC if isinstance(check, Number) else {"CS"} if isinstance(check, Terms) else VRS[check]
    assert vr in wanted


def test_no_number_is_long_enough_for_a_record_or_a_date() -> None:
    """Numbers that may pass have at most five digits before the point."""
    bounds = [rule.check for rule in (*RULES.values(), *REGION_RULES.values()) if isinstance(rule.check, Number)]
    assert max(max(abs(b.low), abs(b.high)) for b in bounds) < 100_000


def test_table_is_the_standard_s() -> None:
    """The package's table has what everybody knows of table E.1-1, and some 650 rows."""
    wanted = {
        "PatientName": "Z",
        "PatientID": "Z/D",
        "StudyDate": "Z",
        "InstitutionName": "X/Z/D",
        "SOPInstanceUID": "U",
        "PatientAge": "X",
        "Rows": "",
    }
    assert {word: basic_action(tag_for_keyword(word) or 0) for word in wanted} == wanted
    assert basic_action(0x0009_1001) == basic_action(0x50FE_0010) == basic_action(0x60FE_4000) == "X"
    assert 600 < len(named_tags()) < 800


def test_no_attribute_of_the_table_keeps_its_value_without_an_option() -> None:
    """Rule and table must agree: what E.1-1 names is replaced, written empty, or waits for an option of the site."""
    named = {word: rule for word, rule in RULES.items() if basic_action(tag_for_keyword(word) or 0)}
    assert len(named) > 30
    assert [word for word, rule in named.items() if rule.option is None and rule.check not in ALWAYS] == []


def test_a_row_that_a_later_edition_adds_takes_effect_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the table comes to name an attribute that a rule keeps, it goes without a change of ours."""
    header = person()
    assert deidentify(header, PROFILE).Manufacturer == "GE Healthcare"
    monkeypatch.setattr("busgen_client.intake.profile.basic_action", lambda tag: "X" if tag == 0x0008_0070 else basic_action(tag))
    assert not deidentify(header, PROFILE).Manufacturer


def test_basic_profile_leaves_nothing_of_the_person() -> None:
    """Without options only what describes image and scanner is left, with a pseudonym and new UIDs."""
    header = person()
    left = shown(deidentify(header, PROFILE, patient="p"))
    assert set(left) == {
        *("SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "PatientName", "PatientID"),
        *("Manufacturer", "ManufacturerModelName", "InstanceNumber", "SeriesNumber"),
        *("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence", "LongitudinalTemporalInformationModified"),
    }
    assert left["PatientName"] == left["PatientID"] != str(header.PatientID)
    assert left["LongitudinalTemporalInformationModified"] == "REMOVED"


KEPT = {
    Option.CLEAN_DESCRIPTORS: {"StudyDescription": "Mamma links"},
    Option.RETAIN_PATIENT_CHARACTERISTICS: {"PatientSex": "F", "PatientAge": "063Y", "PatientWeight": "71.5"},
    Option.RETAIN_DEVICE_IDENTITY: {"StationName": "US-LOGIQ-3", "DeviceSerialNumber": "SN77123"},
}


@pytest.mark.parametrize("option", KEPT)
def test_option_keeps_its_own_attributes_alone(option: Option) -> None:
    """Beside the Basic Profile there is what the option names, and its code."""
    basic, left = (deidentify(person(), profile, patient="p") for profile in (PROFILE, under(option)))
    assert {word: value for word, value in shown(left).items() if word not in shown(basic)} == KEPT[option]
    assert [item.CodeValue for item in left.DeidentificationMethodCodeSequence] == ["113100", METHOD_CODES[option][0]]


def test_dates_move_together() -> None:
    """Study and acquisition keep their distance, the day is another, the offset from UTC is gone, and the birth date is never written."""
    left = deidentify(person(), under(Option.RETAIN_MODIFIED_DATES), patient="p")
    assert left.StudyDate != "20240229"
    assert left.AcquisitionDateTime == left.StudyDate + str(left.StudyTime)[:6]
    assert not left.PatientBirthDate
    assert left.LongitudinalTemporalInformationModified == "MODIFIED"


def test_without_a_patient_there_is_no_date() -> None:
    """An offset that is nobody's could be found out from another object of nobody's, so no date is written."""
    left = deidentify(person(), OPEN)
    assert not left.StudyDate
    assert not left.PatientID
    assert left.LongitudinalTemporalInformationModified == "REMOVED"


def test_header_that_came_is_not_changed() -> None:
    """A dataset goes in, another comes out."""
    header = person()
    before = copy.deepcopy(header)
    deidentify(header, OPEN, patient="p")
    assert header == before


def age(header: Dataset) -> None:
    header.PatientAge = "097Y"


def station(header: Dataset) -> None:
    header.StationName = "WROBLEWSKA-PC"


def set_to(keyword: str, value: str) -> Callable[[Dataset], None]:
    """A header with the value in an attribute, and what else a patient's record has numbers of."""

    def change(header: Dataset) -> None:
        header.PatientBirthDate, header.PatientID = "19610312", "0004711815"
        header.PatientTelephoneNumbers, header.StudyID = "+49301234567", "00004711"
        setattr(header, keyword, value)

    return change


def own_name(header: Dataset) -> None:
    header.ManufacturerModelName = "LOGIQ E9 Gerlinde"


def colleague(header: Dataset) -> None:
    header.ImageComments = "left breast, called Penrose 0170 1234567 on 3 March"


def laterality(header: Dataset) -> None:
    header.ImageLaterality = "JONES"


def two(header: Dataset) -> None:
    header.BodyPartExamined = ["BREAST", "JONES"]


def number(header: Dataset) -> None:
    header.InstanceNumber = 19610211


def text_for_number(header: Dataset) -> None:
    header["SeriesNumber"] = DataElement(0x0020_0011, "LO", "JONES")


def meaning(header: Dataset) -> None:
    good, local = Dataset(), Dataset()
    good.CodeValue, good.CodingSchemeDesignator, good.CodeMeaning = "76752008", "SCT", "Breast of Mrs Jones"
    local.CodeValue, local.CodingSchemeDesignator, local.CodeMeaning = "4711", "99KLINIKUM", "Jones"
    header.AnatomicRegionSequence = [good, local]


def uid(header: Dataset) -> None:
    header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.19610211"


VALUES: dict[str, tuple[Callable[[Dataset], None], str, str | None]] = {
    "an age above 89": (age, "PatientAge", "090Y"),
    "a station named after the patient": (station, "StationName", None),
    "a station named after her birthday": (set_to("StationName", "1961-03-12"), "StationName", None),
    "a serial number that is her birthday": (set_to("DeviceSerialNumber", "12.03.1961"), "DeviceSerialNumber", None),
    "a serial number with her birthday in it": (set_to("DeviceSerialNumber", "US12031961"), "DeviceSerialNumber", None),
    "a birthday between other signs": (set_to("StationName", "US_12_3_1961"), "StationName", None),
    "a serial number that is her telephone": (set_to("DeviceSerialNumber", "SN-0301234567"), "DeviceSerialNumber", None),
    "a station named after her short number": (set_to("StationName", "US4711815"), "StationName", None),
    "a serial number with a name and a date": (set_to("DeviceSerialNumber", "ANNA SCHMIDT 12.03.1961"), "DeviceSerialNumber", None),
    "a station with somebody else's date": (set_to("StationName", "US-02.11.1958"), "StationName", None),
    "a station with somebody else's telephone": (set_to("StationName", "0170-7654321"), "StationName", None),
    "a station of two words": (set_to("StationName", "Room Penrose"), "StationName", None),
    "a serial number that is nobody's": (set_to("DeviceSerialNumber", "LE9-77123456"), "DeviceSerialNumber", "LE9-77123456"),
    "a model with her short number": (set_to("ManufacturerModelName", "LOGIQ E9 4711"), "ManufacturerModelName", "LOGIQ E9"),
    "a model with a number of three digits": (set_to("ManufacturerModelName", "EPIQ 815"), "ManufacturerModelName", "EPIQ 815"),
    "a model with the patient's name": (own_name, "ManufacturerModelName", "LOGIQ E9"),
    "a comment about somebody else": (colleague, "ImageComments", "left breast"),
    "a name for a laterality": (laterality, "ImageLaterality", None),
    "a name beside a body part": (two, "BodyPartExamined", None),
    "a date for an instance number": (number, "InstanceNumber", None),
    "a text for a number": (text_for_number, "SeriesNumber", None),
    "a date for a SOP class": (uid, "SOPClassUID", None),
}


@pytest.mark.parametrize(("change", "keyword", "value"), VALUES.values(), ids=VALUES)
def test_value_that_no_rule_foresees_does_not_pass(change: Callable[[Dataset], None], keyword: str, value: str | None) -> None:
    """An attribute that may stay passes only with a value that may."""
    header = person()
    change(header)
    assert shown(deidentify(header, OPEN, patient="p")).get(keyword) == value


def test_codes_pass_with_the_standard_s_own_meaning() -> None:
    """A code of the list keeps no meaning of the sender; a local code goes."""
    header = person()
    meaning(header)
    (item,) = deidentify(header, PROFILE).AnatomicRegionSequence
    assert (item.CodeValue, item.CodeMeaning) == ("76752008", "Breast")


def test_our_codes_are_the_standard_s() -> None:
    """Method codes are those of CID 7050 in DCM; anatomic codes are in SNOMED CT, or in SRT under the same concept."""
    for value, text in (BASIC_PROFILE, CLEAN_PIXELS, SAFE_PRIVATE, *METHOD_CODES.values()):
        assert text.replace(" ", "") in codes.CID7050.dir()
        assert getattr(codes.CID7050, text.replace(" ", "")).value == value
    for scheme, value in CODES:
        assert Code(value, scheme, "") == Code({"T-04000": "76752008", "T-D8104": "91470000"}.get(value, value), "SCT", "")


def test_private_number_passes_only_if_listed() -> None:
    """The safe list names creator, place and kind; texts beside it, the same place of another creator, and long numbers do not pass."""
    header, listed = person(), SafePrivate(group=0x0019, creator="VENDOR", element=1, vr="DS")
    header.private_block(0x0019, "VENDOR", create=True).add_new(1, "DS", "12.5")
    header.private_block(0x0019, "VENDOR").add_new(2, "LO", "Wróblewska")
    header.private_block(0x0019, "ANOTHER", create=True).add_new(1, "DS", "7")
    assert not [e for e in deidentify(header, OPEN) if e.tag.is_private]
    profile = under(safe_private=[listed])
    left = deidentify(header, profile)
    assert [str(e.value) for e in left if e.tag.is_private] == ["VENDOR", "12.5"]
    assert [item.CodeValue for item in left.DeidentificationMethodCodeSequence] == ["113100", "113111"]
    header.private_block(0x0019, "VENDOR")[1].value = "19610211"
    assert not [e for e in deidentify(header, profile) if e.tag.is_private]


def test_what_was_done_can_be_added_to() -> None:
    """A step after the header adds its code once, in order."""
    left = deidentify(person(), under(Option.CLEAN_DESCRIPTORS))
    for _ in range(2):
        add_method(left, CLEAN_PIXELS)
    assert [item.CodeValue for item in left.DeidentificationMethodCodeSequence] == ["113100", "113101", "113105"]


def test_identity_is_told_without_de_identifying() -> None:
    """Whose object it is can be asked alone, gives the same answer, and shows in no repr."""
    identity = read_identity(whole(person()))
    assert identity == read_clean(whole(person()), PROFILE).identity
    assert identity.patient_id == "MRN0815471"
    assert "0815" not in repr(identity)
