"""What words and codes of a hospital mean: histology to class, names of columns, concepts of reports. A TOML file that the site owns.

Guarantees: nothing is guessed. A text that no entry names, that names two classes, or that holds a word of doubt, is no label.
"""

import re
import tomllib
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from busgen_client.intake.findings import Code
from busgen_core.errors import ConfigError
from busgen_core.labels import Pathology

SHIPPED = Path(__file__).with_name("histology.toml")
STANDS = re.compile(r"(?:bi[- ]?rads)?[\s:_-]*(?:category|categoria|kategorie|cat)?[\s.:_-]*(4\s*[abc]|[0-6])(?:\s*[-–—:(][^0-9]*)?", re.IGNORECASE)
MENTIONED = re.compile(r"bi[- ]?rads[^0-9\n]{0,20}(4\s*[abc]|[0-6])\b", re.IGNORECASE)

Kind = Literal["normal", "benign", "malignant", "undecided"]
Side = Literal["", "L", "R"]


def plain(text: str) -> str:
    """Words of a text, without case, accents and punctuation.

    >>> plain("Fibroadénome (2 cm), włókniak")
    'fibroadenome 2 cm wlokniak'
    """
    bare = unicodedata.normalize("NFKD", text.casefold().replace("ł", "l"))
    return " ".join(re.findall(r"[^\W_]+", "".join(letter for letter in bare if not unicodedata.combining(letter))))


class _Doubt(BaseModel):
    model_config = ConfigDict(extra="forbid")
    words: frozenset[str]


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
        found = self._phrases(plain(stripped).split())
        if not found:
            return Code.LABEL_UNKNOWN
        covered = {place for start, end, _ in found for place in range(start, end)}
        doubt = any(word in self.words.doubt.words for place, word in enumerate(plain(stripped).split()) if place not in covered)
        kinds = {kind for _, _, kind in found}
        return Code.LABEL_UNDECIDED if doubt or "?" in text or len(kinds) > 1 else _class(kinds.pop())

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
        stands = STANDS.fullmatch(stripped)
        return _category(stands) if stands else Code.LABEL_UNKNOWN

    @staticmethod
    def mentioned(prose: str) -> set[str]:
        """Every BI-RADS category that prose names by that word."""
        return {_category(found) for found in MENTIONED.finditer(prose)}

    def implied(self, birads: str) -> Pathology | None:
        """The class that an assessment stands for where there is no histology; None if it stands for none."""
        kind = self.words.birads.get(birads)
        return Pathology(kind) if kind and kind != "undecided" else None

    def side(self, text: str) -> Side:
        """The side that a word or code names; empty for none, both and what is not known."""
        wanted = {plain(text), text.strip().upper()}
        left, right = ({*map(plain, names), *(name.upper() for name in names)} for names in (self.words.sides.left, self.words.sides.right))
        return "L" if wanted & left else "R" if wanted & right else ""

    def _exact(self, text: str) -> Kind | None:
        if text.upper() in self.words.codes:
            return self.words.codes[text.upper()]
        return next(
            (kind for pattern, kind in self.words.pattern.items() if pattern == text.casefold() or re.fullmatch(pattern, text.casefold())), None
        )

    def _phrases(self, words: list[str]) -> list[tuple[int, int, Kind]]:
        """Phrases that stand in the text, as start, end and class; none that lies within a longer one."""
        found = [(at, at + len(phrase), kind) for phrase, kind in self._known for at in _places(phrase, words)]
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


def _places(phrase: list[str], words: list[str]) -> Iterator[int]:
    return (at for at in range(len(words) - len(phrase) + 1) if words[at : at + len(phrase)] == phrase)


def _within(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one != other and other[0] <= one[0] and one[1] <= other[1]
