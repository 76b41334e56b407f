"""The profile at work: from a full header to a new one that holds only what the allow-list, table E.1-1 and the site's options let through.

Pure: a dataset goes in and is not changed, another comes out; the key is the caller's.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import cast

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.uid import UID

from busgen_client.intake.annex_e import basic_action
from busgen_client.intake.replacements import Keyed, moved_date, moved_moment, moved_time, new_uid, offset, pseudonym
from busgen_core.errors import BusgenError
from busgen_privacy.attributes import CODES, PEOPLE, PLACES, REGION_RULES, RULES, Kind, Number, Rule, Terms
from busgen_privacy.deidentify import BASIC, Choices, SafePrivate, deny_words
from busgen_privacy.text import LONGEST, scrub, tells_of_someone
from busgen_privacy.vocabulary import Vocabulary, breast_words, device_words

METHOD = "allow-list over PS3.15 2026c Annex E"  # De-identification Method (0012,0063)
OLDEST = 90  # years
MACHINE = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._/-]{{0,{LONGEST - 1}}}")
ALWAYS = frozenset({Kind.UID, Kind.PSEUDONYM, Kind.NOTHING})  # never the value that was there, so table E.1-1 is content


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """What a site chose, and its key.

    Attributes:
        key: ``Pseudonyms.key`` of the site.
        choices: Options, safe private attributes, words and language models.
    """

    key: Keyed
    choices: Choices = BASIC


def deidentify(full: Dataset, profile: Profile, *, patient: str = "") -> Dataset:
    """A new header with what may be written, and the marks that PS3.15 E.1 asks for.

    Args:
        full: The header as it came; it is not changed.
        profile: Choices and key of the site.
        patient: Key of the patient; without one there is no pseudonym and no date.

    Guarantees:
        - Nothing is in the answer but attributes of ``busgen_privacy.attributes.RULES``, the private numbers the site listed, and the marks.
        - An attribute that table E.1-1 names is in it only replaced, empty, or through an option that the site chose.
        - Whatever a value is that a rule does not foresee, it is left out.
    """
    clean = _Cleaner(full, profile, patient).dataset(RULES)
    clean.SpecificCharacterSet = "ISO_IR 192"
    _copy_safe_private(full, clean, profile.choices.safe_private)
    _mark(clean, profile.choices.methods(), dates=any(rule.check is Kind.DATE and clean.get(word) for word, rule in RULES.items()))
    return clean


def add_method(clean: Dataset, code: tuple[str, str]) -> None:
    """Say in a de-identified header that one thing more was done; codes stay in order."""
    done = [(str(item.CodeValue), str(item.CodeMeaning)) for item in clean.DeidentificationMethodCodeSequence]
    clean.DeidentificationMethodCodeSequence = [_code("DCM", value, meaning) for value, meaning in sorted({*done, code})]


def _mark(clean: Dataset, methods: Iterable[tuple[str, str]], *, dates: bool) -> None:
    """PS3.15 E.1.1 steps 6 and 7 and E.3.6: Patient Identity Removed, the methods, and what became of the dates."""
    clean.PatientIdentityRemoved = "YES"
    clean.DeidentificationMethod = METHOD
    clean.DeidentificationMethodCodeSequence = [_code("DCM", value, meaning) for value, meaning in methods]
    clean.LongitudinalTemporalInformationModified = "MODIFIED" if dates else "REMOVED"


def _code(scheme: str, value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _copy_safe_private(full: Dataset, clean: Dataset, listed: Iterable[SafePrivate]) -> None:
    for safe in listed:
        try:
            element = full.private_block(safe.group, safe.creator)[safe.element]
        except KeyError:
            continue
        number = _numbers(element, Number(-65536, 65536)) if safe.vr == element.VR else None
        if number is not None:
            clean.private_block(safe.group, safe.creator, create=True).add_new(safe.element, safe.vr, number)


@dataclass(frozen=True)
class _Cleaner:
    """One header under one profile; ``cached_property`` so that what no attribute needs is not computed."""

    full: Dataset
    profile: Profile
    patient: str

    @cached_property
    def people(self) -> frozenset[str]:
        return own_words(self.full)

    @cached_property
    def places(self) -> frozenset[str]:
        return deny_words(own_values(self.full, {"AE"}, PLACES))

    @cached_property
    def by(self) -> timedelta:
        return offset(self.profile.key, self.patient)

    def dataset(self, rules: Mapping[str, Rule], *, source: Dataset | None = None) -> Dataset:
        source = self.full if source is None else source
        clean = Dataset()
        for keyword, rule in rules.items():
            tag = _tag(keyword)
            value = self.passed(source, tag, keyword, rule) if tag in source and self.may_stay(tag, rule) else None
            if value is not None or rule.required:
                clean.add(DataElement(tag, dictionary_VR(tag).split(" or ")[0], value))
        return clean

    def may_stay(self, tag: int, rule: Rule) -> bool:
        """Whether an attribute may have a value at all: table E.1-1 does not name it, its value is replaced, or the site's options keep it."""
        if rule.option is not None:
            return rule.option in self.profile.choices.options
        return rule.check in ALWAYS or not basic_action(tag)

    def passed(self, source: Dataset, tag: int, keyword: str, rule: Rule) -> object | None:
        """The value that may be written, or None. A value of another VR than PS3.6 states is none."""
        try:
            element = source[tag]
            return self.checked(element, keyword, rule) if element.VR in dictionary_VR(tag).split(" or ") else None
        except BusgenError:
            raise
        except Exception:  # whatever a damaged value raises, its text may quote the header and the attribute is left out
            return None

    def checked(self, element: DataElement, keyword: str, rule: Rule) -> object | None:
        match rule.check:
            case Number():
                return _numbers(element, rule.check)
            case Terms():
                return _known(element, rule.check)
            case Kind.REGIONS:
                return [self.dataset(REGION_RULES, source=item) for item in element.value]
            case Kind.CODES:
                return _coded(element)
        text = str(element.value).strip(" \0") if element.VM == 1 else ""
        return self.text(text, keyword, rule.check) if text else None

    def text(self, text: str, keyword: str, kind: Kind) -> str | None:
        match kind:
            case Kind.UID:
                return new_uid(self.profile.key, text)
            case Kind.SOP_CLASS:
                return text if UID(text).type == "SOP Class" else None
            case Kind.PSEUDONYM:
                return pseudonym(self.profile.key, self.patient)
            case Kind.AGE:
                return _age(text)
            case Kind.MACHINE:
                return self.machine(text)
            case Kind.DEVICE:
                return self.cleaned(text, device_words())
            case Kind.DESCRIPTION:
                return self.cleaned(text, breast_words())
            case Kind.DATE | Kind.TIME | Kind.MOMENT:
                return self.moved(text, keyword, kind) if self.patient else None
        return None

    def machine(self, text: str) -> str | None:
        bad = not MACHINE.fullmatch(text) or tells_of_someone(text, deny=self.people, models=self.profile.choices.nlp_models)
        return None if bad else text

    def cleaned(self, text: str, words: Vocabulary) -> str | None:
        choices = self.profile.choices
        known = words.with_words(choices.words)
        deny = self.people | {word for word in self.places if word not in known}
        return scrub(text, deny=deny, words=known, models=choices.nlp_models) or None

    def moved(self, text: str, keyword: str, kind: Kind) -> str:
        if kind is Kind.MOMENT:
            return moved_moment(text, self.by)
        if kind is Kind.TIME:
            return moved_time(text, self.by)
        beside = self.full.get(keyword.removesuffix("Date") + "Time")
        return moved_date(text, str(beside or ""), self.by)


def own_words(full: Dataset) -> frozenset[str]:
    """Names and numbers of the people of a header, for ``scrub``."""
    return deny_words(own_values(full, {"PN", "DA", "DT"}, PEOPLE))


def own_values(full: Dataset, kinds: frozenset[str] | set[str], keywords: frozenset[str]) -> Iterator[str]:
    """Values of these VRs and keywords anywhere in a header, nested and private ones too; what does not parse has none to give."""
    for tag in list(full.keys()):
        try:
            element = full[tag]
        except Exception:  # noqa: S112  (an attribute that is dropped anyway; its text may name the patient, so it is not logged)
            continue
        if element.VR == "SQ":
            for item in element.value:
                yield from own_values(item, kinds, keywords)
        elif element.VR in kinds or element.keyword in keywords:
            values = element.value if element.VM > 1 else [element.value]
            yield from (str(value) for value in cast(Iterable[object], values) if value)


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return tag


def _numbers(element: DataElement, bounds: Number) -> object | None:
    """One number, or several if the bounds say so: all inside, floats rounded to six digits."""
    values = list(element.value) if element.VM > 1 else [element.value]
    if not values or len(values) > bounds.most or not all(isinstance(v, int | float) and bounds.low <= v <= bounds.high for v in values):
        return None
    plain = [int(v) if isinstance(v, int) else float(f"{v:.6g}") for v in values]
    return plain if len(plain) > 1 else plain[0]


def _known(element: DataElement, terms: Terms) -> str | None:
    return str(element.value) if element.VM == 1 and str(element.value) in terms.allowed else None


def _coded(element: DataElement) -> list[Dataset] | None:
    pairs = [(str(item.get("CodingSchemeDesignator", "")), str(item.get("CodeValue", ""))) for item in element.value]
    return [_code(*pair, CODES[pair]) for pair in pairs if pair in CODES] or None


def _age(text: str) -> str | None:
    """AS, PS3.5 6.2: three digits and D, W, M or Y; ages above 89 years are one group."""
    if not re.fullmatch(r"\d{3}[DWMY]", text):
        return None
    return f"{min(int(text[:3]), OLDEST):03d}Y" if text[3] == "Y" else text
