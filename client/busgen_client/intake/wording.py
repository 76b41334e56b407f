"""How people write: the words of a text, the signs that say no, and the BI-RADS categories that a text names."""

import re
import unicodedata
from collections.abc import Iterator

CATEGORY = r"(?:4\s*[abc]|[0-6])\b(?!\s*(?:mm|cm|uhr|h\b|o.?clock)|[.,]\d)"
MENTION = re.compile(
    rf"bi[- ]?rads[^0-9\n]{{0,20}}({CATEGORY})((?:\s*(?:[/–—-]|\b(?:or|oder|ou|o|lub|to|bis|und|and|et|y|e|i)\b)\s*{CATEGORY})*)", re.IGNORECASE
)
NO_SIDE = re.compile(r"\b(?:lt\.?\s+(?:hist|path|bef|biops|stanz)|re-)", re.IGNORECASE)  # "according to" and "again", not the left and the right
SENTENCES = re.compile(r"(?<=[.;!?\n])\s+")
NUMBER = re.compile(r"\d{1,3}(?:mm|cm|h)?|g[1-4x]|y?[cp]?(?:t(?:[1-4][a-d]?|is|x)|n(?:[0-3][a-d]?|x)|m[01x])")  # sizes, grades, TNM; no year
MARKS = re.compile(
    r"""[^\w\s.,;:()\[\]/+\-–—&%*\#<>=×·•°'’"|]     # any sign that is not usual: ?, an empty set, a box to tick
    |(?<![\w.,/])0+(?!\w|[.,]\d)                   # a lone zero
    |[-–—](?!\s*\w)                                # a minus sign: nothing follows the dash
    |[\[(]\s*[\])]                                 # a box that nobody ticked
    |(?<![\d/])\d{1,2}/\d{2}(?:\d\d)?(?![\d/])     # month and year: of what was, perhaps
    |['’]\d{2}""",
    re.VERBOSE,
)


def plain(text: str) -> str:
    """Words of a text, without case, accents and punctuation.

    >>> plain("Fibroadénome (2 cm), włókniak")
    'fibroadenome 2 cm wlokniak'
    """
    bare = unicodedata.normalize("NFKD", text.casefold().replace("ł", "l"))
    return " ".join(re.findall(r"[^\W_]+", "".join(letter for letter in bare if not unicodedata.combining(letter))))


def is_marked(text: str) -> bool:
    """Whether a sign in the text may mean no, doubt or the past.

    >>> [is_marked(text) for text in ("DCIS, 0.5 cm (G2)", "carcinoma (-)", "carcinoma: 0", "[ ] carcinoma", "carcinoma 03/2015")]
    [False, True, True, True, True]
    """
    return MARKS.search(text) is not None


def sentences(text: str) -> list[str]:
    """The text, cut behind full stops, semicolons, question marks and at the ends of lines."""
    return SENTENCES.split(text)


def categories(text: str) -> tuple[list[str], list[str]]:
    """BI-RADS categories that a text names by that word, and the text before, between and behind; ``2 or 3`` and ``2/3`` name two.

    >>> categories("BI-RADS 4A right, BI-RADS: 2 or 3; BI-RADS 2, 3 cm")
    (['4a', '2', '3', '2'], ['', ' right, ', '; ', ', 3 cm'])
    """
    found, pieces, end = [], [], 0
    for mention in MENTION.finditer(text):
        found += [re.sub(r"\s", "", each.lower()) for each in (mention[1], *re.findall(CATEGORY, mention[2], re.IGNORECASE))]
        pieces.append(text[end : mention.start()])
        end = mention.end()
    return found, [*pieces, text[end:]]


def places(phrase: list[str], words: list[str]) -> Iterator[int]:
    """Where a phrase begins in a text."""
    return (at for at in range(len(words) - len(phrase) + 1) if words[at : at + len(phrase)] == phrase)
