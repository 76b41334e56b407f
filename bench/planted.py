"""Headers with planted identifiers: one of its own in every attribute of PS3.6 and every nested place, so that each that survives names its place.

No person is behind any of it. An identifier is a name, a record number, a date or an address that occurs at one place only; numbers are
planted as numbers, bytes as bytes.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from pydicom import Dataset
from pydicom._dicom_dict import DicomDictionary, RepeatersDictionary
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement

from busgen_client.intake.annex_e import basic_action
from busgen_privacy.attributes import PIXELS

FAMILIES = ("Smith", "Müller", "Lefèvre", "Fernández", "Gonçalves", "Kowalska", "al-Hassan", "O'Brien", "von Weber", "dos Santos", "bin Rashid")
GIVEN = ("Emily", "Jürgen", "François", "María", "João", "Agnieszka", "Fatima", "Khadija", "Zofia", "Ángel", "Ursula", "Noël")
STREETS = ("12 Nowhere Lane", "Musterstraße 4", "3, rue Fictive", "Calle Falsa 123", "Rua Inventada 9", "ul. Zmyślona 7", "Shari' al-Khayal 5")
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]  # 70: three of them tell 343,000 places apart
DATE_FORMATS = (
    *("%Y%m%d", "%Y-%m-%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%d %m %Y"),
    *("%d.%m.%y", "%d/%m/%y", "%d-%b-%Y", "%d %B %Y", "%B %d, %Y"),
)
STRUCTURE = PIXELS | {"SpecificCharacterSet", "SOPClassUID", "Modality", "SequenceOfUltrasoundRegions", "TransferSyntaxUID"}
PER_OBJECT = 60
PRIVATE_VRS = (
    "AE",
    "CS",
    "DA",
    "DS",
    "DT",
    "IS",
    "LO",
    "LT",
    "PN",
    "SH",
    "ST",
    "TM",
    "UI",
    "UT",
    "UC",
    "UR",
    "OB",
    "OW",
    "UN",
    "UL",
    "SL",
    "FL",
    "FD",
)
MACHINE = "the machine's own identity"
RETAINED = {(0x0008_1010, "top"), (0x0018_1000, "top")}  # Station Name, Device Serial Number: a site may choose to retain them
TOO_SHORT = ("AS",)  # an age identifies nobody
PACKED = {"UL": "<I", "SL": "<i", "UV": "<Q", "SV": "<q", "FL": "<f", "FD": "<d"}


@dataclass(frozen=True, slots=True)
class Planted:
    """One identifier at one place.

    Attributes:
        place: Kind of place: top, nested, deep, private, …
        vr: Value representation that it sits in.
        needle: Bytes that give it away in a written file.
        named: Table E.1-1 names the attribute, or it is private: where identifiers are expected. Elsewhere they are by mistake or malice.
    """

    place: str
    vr: str
    needle: bytes
    named: bool = True


class Identifiers:
    """Hands out identifiers, none twice."""

    def __init__(self) -> None:
        self.count = 0

    def value(self, vr: str) -> tuple[object, bytes] | None:
        """A value for this VR and the bytes to look for; None for a VR that is too short to identify anybody."""
        self.count += 1
        n = self.count
        if vr in PACKED:
            number = 410_000_000 + 97 * n
            plain = float(number // 97) + 0.5 if vr == "FL" else number  # exact in single precision
            return plain, struct.pack(PACKED[vr], plain)
        if vr in ("US", "SS"):
            data = self.unique(n).encode() + b" X"  # letters, two to a number
            return list(struct.unpack("<4H", data)), data[:6]
        if vr == "AT":
            bcd = int(self.day(n).strftime("%Y%m%d"), 16)
            return bcd, struct.pack("<HH", bcd >> 16, bcd & 0xFFFF)
        if vr in ("OB", "OW", "UN", "OF", "OD", "OL", "OV"):
            data = f"{self.unique(n)} {self.record(n)}".encode()
            return data + bytes(-len(data) % 8), data
        return None if vr in TOO_SHORT else self.text(vr, n)

    def text(self, vr: str, n: int) -> tuple[str, bytes]:
        """Text for a VR that holds text."""
        day, record, name = self.day(n), self.record(n), self.unique(n)
        made = {
            "PN": (self.name(n), name),
            "AE": (f"{name}_PC".upper(), name),
            "SH": (record, record),
            "CS": (name.upper(), name),
            "UI": (f"1.2.826.0.1.3680043.8.498.{record}.{n}", record),
            "DA": (day.strftime("%Y%m%d"),) * 2,
            "DT": (day.strftime("%Y%m%d") + f"1015{n % 60:02d}.{n:06d}", day.strftime("%Y%m%d1015")),
            "TM": (f"1015{n % 60:02d}.{n:06d}",) * 2,
            "IS": (str(410_000_000 + 97 * n),) * 2,
            "DS": (record, record),
            "UR": (f"https://example.org/{name}", name),
        }
        text, needle = made.get(vr) or self.prose(n)
        return text, needle.encode()

    def prose(self, n: int) -> tuple[str, str]:
        """A name, record number, date, address, phone or e-mail, in turn, and what gives it away."""
        record, name, written = self.record(n), self.unique(n), self.day(n).strftime(DATE_FORMATS[n % len(DATE_FORMATS)])
        kinds = (
            (self.name(n).replace("^", ", "), name),
            (f"MRN {record}", record),
            (f"{written} seen by Dr {name}", written),
            (f"{STREETS[n % len(STREETS)]} {name}", name),
            (f"+00 {record}", record),
            (f"{name.lower()}@example.org", name),
        )
        return kinds[n % len(kinds)]

    @staticmethod
    def day(n: int) -> date:
        """A date of this century or the last."""
        return date(1921, 1, 1) + timedelta(days=n % 29_000)

    @staticmethod
    def unique(n: int) -> str:
        """A family name that nobody has."""
        return "".join(SYLLABLES[n // 70**i % 70] for i in range(3)).capitalize()

    def name(self, n: int) -> str:
        """A double family name and a given name, as PN writes them."""
        return f"{FAMILIES[n % len(FAMILIES)]}-{self.unique(n)}^{GIVEN[n % len(GIVEN)]}"

    @staticmethod
    def record(n: int) -> str:
        """A record number of ten digits."""
        return str(4_000_000_000 + 1_009 * n)


def standard_attributes() -> list[tuple[int, str]]:
    """Every attribute of PS3.6 that a data set may hold and that no image needs, with its VR; overlays and curves of two groups each."""
    single = [(tag, entry[0], entry[4]) for tag, entry in DicomDictionary.items() if tag >> 16 > 4]
    repeating = [(int(mask.replace("x", digit), 16), entry[0], entry[4]) for mask, entry in RepeatersDictionary.items() for digit in "02"]
    tags = {tag: vr.split(" or ")[0] for tag, vr, keyword in [*single, *repeating] if keyword and keyword not in STRUCTURE}
    return sorted((tag, vr) for tag, vr in tags.items() if tag >> 16 not in (0xFFFE, 0x7FE0) and tag & 0xFFFF and vr != "NONE")


def element(tag: int, vr: str, identifiers: Identifiers, place: str) -> tuple[DataElement, Planted] | None:
    """One attribute with an identifier in it; a sequence gets an item with a name."""
    if vr == "SQ":
        item = Dataset()
        name, needle = _must(identifiers.value("PN"))
        item.PersonName = name
        return DataElement(tag, "SQ", [item]), Planted(place, "SQ", needle, bool(basic_action(tag)))
    made = identifiers.value(vr)
    if made is None:
        return None
    return DataElement(tag, vr, made[0]), Planted(MACHINE if (tag, place) in RETAINED else place, vr, made[1], bool(basic_action(tag)))


def planted_objects(base: Callable[[], Dataset], *, every: int = 1) -> Iterator[tuple[Dataset, list[Planted]]]:
    """Objects made of ``base()``, each with up to ``PER_OBJECT`` planted identifiers.

    Args:
        base: A clean object to plant into, new at each call.
        every: Only each so many-th attribute; 1 for all.
    """
    identifiers = Identifiers()
    standard = standard_attributes()[::every]
    flat = [(tag, vr) for tag, vr in standard if vr != "SQ"]
    yield from _spread(base, standard, identifiers, "top", _itself)
    yield from _spread(base, flat, identifiers, "nested", _in_request)
    yield from _spread(base, flat[::5], identifiers, "three deep", _three_deep)
    yield from _spread(base, flat[::5], identifiers, "in a kept sequence", _in_region)
    yield from _spread(base, flat[::5], identifiers, "in a private sequence", _in_private)
    yield _private(base(), identifiers)
    yield _elsewhere(base(), identifiers)


def _spread(
    base: Callable[[], Dataset], tags: Sequence[tuple[int, str]], identifiers: Identifiers, place: str, inside: Callable[[Dataset], Dataset]
) -> Iterator[tuple[Dataset, list[Planted]]]:
    for start in range(0, len(tags), PER_OBJECT):
        whole = base()
        target = inside(whole)
        planted = []
        for tag, vr in tags[start : start + PER_OBJECT]:
            if (tag not in target or target is whole) and (made := element(tag, vr, identifiers, place)) is not None:
                target[tag] = made[0]
                planted.append(made[1])
        yield whole, planted


def _itself(whole: Dataset) -> Dataset:
    return whole


def _item(whole: Dataset, keyword: str) -> Dataset:
    item = Dataset()
    setattr(whole, keyword, [item])
    return item


def _in_request(whole: Dataset) -> Dataset:
    return _item(whole, "RequestAttributesSequence")


def _three_deep(whole: Dataset) -> Dataset:
    return _item(_item(_item(whole, "ReferencedStudySequence"), "ReferencedSeriesSequence"), "PurposeOfReferenceCodeSequence")


def _in_region(whole: Dataset) -> Dataset:
    return whole.SequenceOfUltrasoundRegions[0]


def _in_private(whole: Dataset) -> Dataset:
    item = Dataset()
    whole.private_block(0x0029, "FICTITIOUS VENDOR", create=True).add_new(0x10, "SQ", [item])
    return item


def _private(whole: Dataset, identifiers: Identifiers) -> tuple[Dataset, list[Planted]]:
    """Private attributes of every VR in three groups, and names for private creators."""
    planted = []
    for group in (0x0009, 0x0029, 0x7FE1):
        creator, needle = _must(identifiers.value("PN"))
        planted.append(Planted("private", "LO", needle))
        block = whole.private_block(group, str(creator)[:60], create=True)
        for number, vr in enumerate(PRIVATE_VRS):
            value, needle = _must(identifiers.value(vr))
            block.add_new(number, vr, value)
            planted.append(Planted("private", vr, needle))
    return whole, planted


def _elsewhere(whole: Dataset, identifiers: Identifiers) -> tuple[Dataset, list[Planted]]:
    """File meta, thumbnail, trailing padding, codes' meanings and the marks of an earlier de-identification."""
    planted = []

    def plant(target: Dataset, keyword: str, vr: str) -> None:
        value, needle = _must(identifiers.value(vr))
        target[keyword] = DataElement(tag_for_keyword(keyword) or 0, vr, value)
        planted.append(Planted("elsewhere", vr, needle))

    for keyword in ("SourceApplicationEntityTitle", "SendingApplicationEntityTitle", "ReceivingApplicationEntityTitle"):
        plant(whole.file_meta, keyword, "AE")
    plant(whole.file_meta, "ImplementationVersionName", "SH")
    whole.file_meta.PrivateInformationCreatorUID = "1.2.3"
    plant(whole.file_meta, "PrivateInformation", "OB")
    icon = _item(whole, "IconImageSequence")
    icon.Rows, icon.Columns, icon.SamplesPerPixel, icon.PhotometricInterpretation = 8, 8, 1, "MONOCHROME2"
    icon.BitsAllocated, icon.BitsStored, icon.HighBit, icon.PixelRepresentation = 8, 8, 7, 0
    plant(icon, "PixelData", "OB")
    plant(whole, "DataSetTrailingPadding", "OB")
    region = _item(whole, "AnatomicRegionSequence")
    region.CodeValue, region.CodingSchemeDesignator = "76752008", "SCT"
    plant(region, "CodeMeaning", "LO")
    plant(whole, "DeidentificationMethod", "LO")
    method = _item(whole, "DeidentificationMethodCodeSequence")
    plant(method, "CodeMeaning", "LO")
    return whole, planted


def _must(made: tuple[object, bytes] | None) -> tuple[object, bytes]:
    assert made is not None
    return made
