"""What words and codes of a hospital mean: histology to class, names of columns, concepts of reports. A TOML file that the site owns.

Guarantees: nothing is guessed. A text that no entry names or that names two classes is no label, nor is one with a word or sign beside the names
that the file does not list as harmless: it may be a denial, a doubt, or another person's history.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from busgen_client.intake.findings import Code
from busgen_client.intake.wording import NO_SIDE, NUMBER, categories, is_marked, places, plain, sentences
from busgen_core.errors import ConfigError
from busgen_core.labels import Pathology

SHIPPED = Path(__file__).with_name("histology.toml")
STANDS = re.compile(r"(?:bi[- ]?rads)?[\s:_-]*(?:category|categoria|kategorie|cat)?[\s.:_-]*(4\s*[abc]|[0-6])(?:\s*[-–—:(][^0-9]*)?", re.IGNORECASE)

Kind = Literal["normal", "benign", "malignant", "undecided"]
Side = Literal["", "L", "R"]
Weight = Literal["stated", "mentioned", "doubted"]


class _Doubt(BaseModel):
    model_config = ConfigDict(extra="forbid")
    words: frozenset[str]
    past: frozenset[str]
    meanings: tuple[str, ...]


class _Harmless(BaseModel):
    model_config = ConfigDict(extra="forbid")
    words: frozenset[str]
    phrases: tuple[str, ...]


class _Columns(BaseModel):
    model_config = ConfigDict(extra="forbid")
    object: tuple[str, ...]
    accession: tuple[str, ...]
    pathology: tuple[str, ...]
    birads: tuple[str, ...] = ()
    side: tuple[str, ...] = ()
    device: tuple[str, ...] = ()
    mask: tuple[str, ...] = ()


class _Sides(BaseModel):
    model_config = ConfigDict(extra="forbid")
    left: tuple[str, ...]
    right: tuple[str, ...]
    both: tuple[str, ...]


class _Reports(BaseModel):
    model_config = ConfigDict(extra="forbid")
    birads: tuple[str, ...]
    pathology: tuple[str, ...]
    side: tuple[str, ...]


class SiteWords(BaseModel):
    """The file as it stands; ``histology.toml`` explains its sections."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    codes: Mapping[str, Kind]
    pattern: Mapping[str, Kind]
    birads: Mapping[str, Kind]
    phrases: Mapping[str, Kind]
    harmless: _Harmless
    doubt: _Doubt
    columns: _Columns
    sides: _Sides
    reports: _Reports
    assessments: Mapping[str, str]


@dataclass(frozen=True)
class Vocabulary:
    """A site's words, ready to be asked."""

    words: SiteWords

    def pathology(self, text: str) -> Pathology | Code | None:
        """The class that a text, or a code as ``SCHEME:VALUE``, names; None for an empty one, else why it names none.

        >>> words = read_mapping(None)
        >>> words.pathology("Fibroadenoma, 2 cm"), words.pathology("8500/3"), words.pathology("no carcinoma")
        (<Pathology.BENIGN: 'benign'>, <Pathology.MALIGNANT: 'malignant'>, <Code.LABEL_UNDECIDED: 'label-undecided'>)
        """
        if not (stripped := text.strip()):
            return None
        if (exact := self._exact(stripped)) is not None:
            return _class(exact)
        kinds, clear = self._read(stripped)
        if not kinds:
            return Code.LABEL_UNKNOWN
        return _class(kinds.pop()) if clear and len(kinds) == 1 else Code.LABEL_UNDECIDED

    def assessment(self, text: str) -> str | Code:
        """BI-RADS category 0 to 6 or 4a to 4c that a field holds; empty for an empty one.

        >>> words = read_mapping(None)
        >>> [words.assessment(t) for t in ("BI-RADS 4A", "2 - Benign finding", "SCT:397145000", "", "4/5")]
        ['4a', '2', '5', '', <Code.LABEL_UNKNOWN: 'label-unknown'>]
        """
        if not (stripped := text.strip()):
            return ""
        if stripped.upper() in self.words.assessments:
            return self.words.assessments[stripped.upper()]
        if not (stands := STANDS.fullmatch(stripped)):
            return Code.LABEL_UNKNOWN
        category, behind = _category(stands), self._without_meaning(plain(stripped[stands.end(1) :]))
        return Code.LABEL_UNDECIDED if category in self.words.birads and self._is_doubtful(behind) else category

    def mentioned(self, prose: str) -> list[tuple[str, Side, Weight]]:
        """Every BI-RADS category that prose names by that word, the side that its sentence names, and what it is worth.

        ``stated`` where nothing but harmless words stands beside it, ``doubted`` in a sentence with a word of doubt, denial or the past.

        >>> words = read_mapping(None)
        >>> words.mentioned("BI-RADS 2, right"), words.mentioned("Round mass. No BI-RADS 6 lesion.")
        ([('2', 'R', 'stated')], [('6', '', 'doubted')])
        """
        clear, found = self._is_clear(prose), []
        for sentence in sentences(prose):
            named, doubted = categories(sentence)[0], "?" in sentence or self._is_doubtful(self._beside_categories(sentence))
            weight: Weight = "doubted" if doubted else "stated" if clear else "mentioned"
            found += [(category, only(self.sides_in(sentence)), weight) for category in named]
        return found

    def implied(self, birads: str) -> Pathology | None:
        """The class that an assessment stands for where there is no histology; None if it stands for none."""
        kind = self.words.birads.get(birads)
        return Pathology(kind) if kind and kind != "undecided" else None

    def is_past(self, text: str) -> bool:
        """Whether a text speaks of an earlier examination, of history or of family."""
        return not self.words.doubt.past.isdisjoint(plain(text).split())

    def _is_doubtful(self, text: str) -> bool:
        """Whether plain words hold one of doubt, denial or the past."""
        return not (self.words.doubt.words | self.words.doubt.past).isdisjoint(text.split())

    def side(self, text: str) -> Side | Code:
        """The side that a word, words or a code name; empty for an empty text and for both.

        >>> words = read_mapping(None)
        >>> [words.side(text) for text in ("Left breast", "li.", "L 10 Uhr", "both", "", "contralateral")]
        ['L', 'L', 'L', '', '', <Code.LABEL_UNDECIDED: 'label-undecided'>]
        """
        if not (stripped := text.strip()):
            return ""
        if is_marked(stripped):
            return Code.LABEL_UNDECIDED
        for side, names in self._sides.items():
            if {stripped.upper(), plain(stripped)} & names:
                return side
        found = self._side_words(text)
        return only(found) if found and not self._strange(plain(text).split(), ()) else Code.LABEL_UNDECIDED

    def sides_in(self, text: str) -> set[Side]:
        """L and R, as far as a text about something else names them."""
        return self._side_words(text) - {""}

    def _side_words(self, text: str) -> set[Side]:
        words = plain(text).split()
        return {side for side, names in self._sides.items() if not names.isdisjoint(words)}

    @cached_property
    def _sides(self) -> dict[Side, set[str]]:
        """Codes in upper case and words, by side."""
        of: dict[Side, tuple[str, ...]] = {"L": self.words.sides.left, "R": self.words.sides.right, "": self.words.sides.both}
        return {side: {name.upper() if ":" in name else plain(name) for name in names} for side, names in of.items()}

    def _read(self, text: str) -> tuple[set[Kind], bool]:
        """Classes that a text names, and whether all that stands beside their names is harmless."""
        codes = {token: kind for token in re.findall(r"[^\s,;()\[\]]+", text) if (kind := self._exact(token.strip(".:"))) is not None}
        words = plain(" ".join(token for token in re.split(r"[\s,;()\[\]]+", text) if token not in codes)).split()
        found = self._phrases(words)
        strange = self._strange(words, [(start, end) for start, end, _ in found])
        return {*codes.values(), *(kind for _, _, kind in found)}, not (strange or is_marked(text) or NO_SIDE.search(text))

    def _strange(self, words: list[str], named: Sequence[tuple[int, int]]) -> bool:
        """Whether a word is neither part of a name nor harmless."""
        quiet = [(at, at + len(phrase)) for phrase in self._quiet for at in places(phrase, words)]
        covered = {place for start, end in (*named, *quiet) for place in range(start, end)}
        return any(place not in covered and not self._is_harmless(word) for place, word in enumerate(words))

    def _is_harmless(self, word: str) -> bool:
        return word in self.words.harmless.words or any(word in names for names in self._sides.values()) or NUMBER.fullmatch(word) is not None

    def _is_clear(self, prose: str) -> bool:
        """Whether prose says no more than BI-RADS categories, their classes, and harmless words."""
        kinds, clear = self._read(self._beside_categories(prose))
        return clear and not is_marked(prose) and kinds <= {self.words.birads.get(category, "undecided") for category in categories(prose)[0]}

    def _beside_categories(self, text: str) -> str:
        """Plain words of a text, without the categories that it names and the standard's meanings right behind them."""
        before, *behind = map(plain, categories(text)[1])
        return " ".join([before, *map(self._without_meaning, behind)])

    def _without_meaning(self, text: str) -> str:
        meaning = next((each for each in self.words.doubt.meanings if f"{text} ".startswith(f"{each} ")), "")
        return text.removeprefix(meaning)

    @cached_property
    def _quiet(self) -> list[list[str]]:
        return [plain(phrase).split() for phrase in self.words.harmless.phrases]

    def _exact(self, text: str) -> Kind | None:
        if text.upper() in self.words.codes:
            return self.words.codes[text.upper()]
        return next(
            (kind for pattern, kind in self.words.pattern.items() if pattern == text.casefold() or re.fullmatch(pattern, text.casefold())), None
        )

    def _phrases(self, words: list[str]) -> list[tuple[int, int, Kind]]:
        """Phrases that stand in the text, as start, end and class; none that lies within a longer one."""
        found = [(at, at + len(phrase), kind) for phrase, kind in self._known for at in places(phrase, words)]
        return [one for one in found if not any(_within(one[:2], other[:2]) for other in found)]

    @cached_property
    def _known(self) -> list[tuple[list[str], Kind]]:
        return [(plain(phrase).split(), kind) for phrase, kind in self.words.phrases.items()]


def read_mapping(path: Path | None) -> Vocabulary:
    """Read a site's file; without one, the one that is shipped.

    Raises:
        ConfigError: it cannot be read, or a section or class is not as it should be; names the place.
    """
    try:
        words = SiteWords.model_validate(tomllib.loads((path or SHIPPED).read_text(encoding="utf-8")))
        for pattern in words.pattern:
            re.compile(pattern)
        return Vocabulary(words)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, re.error) as error:
        raise ConfigError(f"labels.mapping cannot be used ({type(error).__name__}); compare it with the shipped histology.toml") from None
    except ValidationError as error:
        places = sorted(".".join(map(str, each["loc"])) for each in error.errors())
        raise ConfigError(f"labels.mapping is not right at {places}; compare it with the shipped histology.toml") from None


def _class(kind: Kind) -> Pathology | Code:
    return Code.LABEL_UNDECIDED if kind == "undecided" else Pathology(kind)


def _category(found: re.Match[str]) -> str:
    return "".join(found[1].lower().split())


def only(sides: Set[Side]) -> Side:
    """The one side that is named; empty for none and for both."""
    return next(iter(sides)) if len(sides) == 1 else ""


def _within(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one != other and other[0] <= one[0] and one[1] <= other[1]
