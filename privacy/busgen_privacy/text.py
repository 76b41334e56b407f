"""The one door for free text: Presidio, the header's own names and numbers, and a vocabulary where the text has one. No download, no network."""

from collections.abc import Collection, Iterator
from functools import lru_cache

from busgen_privacy.recognizers import engine
from busgen_privacy.vocabulary import TOKEN, Vocabulary, fold, spellings

LONGEST = 64  # characters, the limit of value representation LO (PS3.5 table 6.2-1)
SCORE = 0.3  # Presidio's confidence above which a find is struck out; its phone pattern answers 0.4

Spans = list[tuple[int, int]]


def scrub(text: str, *, deny: Collection[str] = (), words: Vocabulary | None = None, models: Collection[str] = ()) -> str:
    """Return ``text`` without names of ``deny``, names and dates by pattern, numbers, addresses and links; empty when in doubt.

    Args:
        text: One line of at most ``LONGEST`` characters; anything longer is prose and gives an empty answer.
        deny: Words that must not survive, as ``busgen_privacy.deidentify.deny_words`` gives them.
        words: If given, only its words survive; what stands glued to another word goes with it.
        models: spaCy models that are installed here and asked too, by name or folder.

    Guarantees:
        - No word of ``deny`` occurs in the answer, whatever its case, accents or umlauts and whatever stands beside it.
        - With ``words``, every token of the answer is in that vocabulary.
        - Same arguments, same answer; nothing is read from the network.

    Raises:
        ConfigError: a model is not installed.

    >>> scrub("LOGIQ E9 of Jane", deny={"jane"})
    'LOGIQ E9 of'
    """
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if not plain or len(plain) > LONGEST:
        return ""
    folded = fold(plain)
    if len(folded.lower()) != len(plain):  # a letter that has no lower case of its own length: positions would not fit
        return ""
    cut = list(plain)
    for start, end in [*_found(folded, tuple(models)), *_denied(plain, folded.lower(), deny)]:
        cut[start:end] = " " * (end - start)
    rest = " ".join("".join(cut).split())
    if _holds(rest, deny):  # glued to other letters: nothing of this text can be trusted
        return ""
    return rest if words is None else _only(rest, words)


def _denied(plain: str, folded: str, deny: Collection[str]) -> Spans:
    """Where a denied word stands by itself, in any spelling of the text."""
    whole = [span for word in deny for span in _places(word, folded)]
    return whole + [m.span() for m in TOKEN.finditer(plain) if not spellings(m.group()).isdisjoint(deny)]


def _places(word: str, text: str) -> Iterator[tuple[int, int]]:
    at = text.find(word)
    while at >= 0:
        end = at + len(word)
        if not (_letter(text[at - 1 : at]) or _letter(text[end : end + 1])):
            yield at, end
        at = text.find(word, at + 1)


def _letter(character: str) -> bool:
    return character.isalnum() or character == "_"


def _holds(rest: str, deny: Collection[str]) -> bool:
    forms = (rest.casefold(), fold(rest).casefold())
    return any(word in form for word in deny for form in forms)


def _only(rest: str, words: Vocabulary) -> str:
    """The pieces between spaces of which every token is in the vocabulary, without signs at the ends."""
    kept = " ".join(piece for piece in rest.split() if all(token in words for token in TOKEN.findall(piece)))
    return kept.strip(" -/,.;:&+_'\"") if any(len(token) > 1 for token in TOKEN.findall(kept)) else ""


@lru_cache(maxsize=4096)
def _found(text: str, models: tuple[str, ...]) -> Spans:
    hits = [hit for model in models or ("",) for hit in engine(model).analyze(text, "en", score_threshold=SCORE)]
    return [(hit.start, hit.end) for hit in hits]
