"""Words that may survive in free text, and how two spellings of a word are told to be the same.

A list of names is never whole; a list of the words that descriptions and scanner names are made of can be. So free text keeps what is in a
vocabulary and loses the rest, whatever language the rest is in. The lists lie in ``words/`` as text.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

WORDS = Path(__file__).parent / "words"
TOKEN = re.compile(r"[^\W_]+")
PLAIN = str.maketrans("łŁøØđĐıßæÆœŒ’", "lLoOdDisaAoO'")
TRANSLITERATED = {"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "æ": "ae", "œ": "oe", "ø": "oe", "å": "aa"}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a kind of text may be made of.

    Attributes:
        words: Allowed words, folded and in lower case.
        shape: What a token with a digit may look like, folded and in lower case.
    """

    words: frozenset[str]
    shape: re.Pattern[str]

    def __contains__(self, token: str) -> bool:
        """Whether a token may survive; a single letter may."""
        plain = fold(token).casefold()
        return plain in self.words or (len(plain) == 1 and plain.isalpha()) or self.shape.fullmatch(plain) is not None

    def with_words(self, extra: Iterable[str]) -> "Vocabulary":
        """The same, and the words of a site."""
        return Vocabulary(self.words | {fold(word).casefold() for word in extra}, self.shape)


def fold(text: str) -> str:
    """``text`` without accents, character for character, so that positions stay.

    >>> fold("Müller, Łódź")
    'Muller, Lodz'
    """
    return text if text.isascii() else "".join(_base(c) for c in text.translate(PLAIN))


def _base(character: str) -> str:
    decomposed = unicodedata.normalize("NFKD", character)
    return decomposed[0] if len(decomposed) > 1 and all(map(unicodedata.combining, decomposed[1:])) else character


def spellings(word: str) -> frozenset[str]:
    """A word in lower case as it stands, without accents, and with its umlauts written out.

    >>> sorted(spellings("Müller"))
    ['mueller', 'muller', 'müller']
    """
    plain = word.casefold() if "ß" not in word else word.lower()
    written_out = "".join(TRANSLITERATED.get(c, c) for c in plain)
    return frozenset({plain, fold(plain), fold(written_out)})


def read_words(name: str) -> frozenset[str]:
    """The words of ``words/NAME.txt``."""
    lines = (WORDS / f"{name}.txt").read_text("utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


@lru_cache(maxsize=1)
def device_words() -> Vocabulary:
    """Of scanner names. With a digit: a model such as S2000, iU22, 12MHz; at most four digits and six letters."""
    return Vocabulary(read_words("device"), re.compile(r"(?=(?:\D*\d){1,4}\D*$)(?=(?:[^a-z]*[a-z]){0,6}[^a-z]*$)[a-z0-9]+"))


@lru_cache(maxsize=1)
def breast_words() -> Vocabulary:
    """Of descriptions. With a digit: a clock position or BI-RADS category up to 12, a measure in mm, cm or MHz."""
    return Vocabulary(read_words("breast"), re.compile(r"(?:\d|1[0-2])|[456][abc]|\d{1,2}(?:mm|cm|mhz)"))
