"""The one door for free text: Presidio, the header's own names and numbers, and a vocabulary where the text has one. No download, no network."""

from collections.abc import Collection, Iterator
from functools import lru_cache

from busgen_privacy.numbers import spread
from busgen_privacy.recognizers import LONG_NUMBER, engine
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
        - No word of ``deny`` occurs in the answer, whatever its case, accents or umlauts and whatever stands beside it; no number of
          ``deny`` of six digits or more, whatever signs stand between its digits.
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
    for _, start, end in _found(folded, tuple(models)):
        cut[start:end] = " " * (end - start)
    for start, end in _denied(plain, folded.lower(), deny):
        cut[start:end] = " " * (end - start)
    rest = " ".join("".join(cut).split())
    if holds(rest, deny):  # glued to other letters: nothing of this text can be trusted
        return ""
    return rest if words is None else _only(rest, words)


def _denied(plain: str, folded: str, deny: Collection[str]) -> Spans:
    """Where a denied word stands by itself, in any spelling of the text."""
    whole = [span for word in deny for span in _places(word, folded)]
    whole += [(start, end) for start, end in spread(deny, folded) if not _glued(folded, start, end)]
    return whole + [m.span() for m in TOKEN.finditer(plain) if not spellings(m.group()).isdisjoint(deny)]


def _places(word: str, text: str) -> Iterator[tuple[int, int]]:
    at = text.find(word)
    while at >= 0:
        end = at + len(word)
        if not _glued(text, at, end):
            yield at, end
        at = text.find(word, at + 1)


def _glued(text: str, start: int, end: int) -> bool:
    return _letter(text[max(0, start - 1) : start]) or _letter(text[end : end + 1])


def _letter(character: str) -> bool:
    return character.isalnum() or character == "_"


def holds(text: str, deny: Collection[str]) -> bool:
    """Whether a word of ``deny`` is anywhere in a text, also inside another word, and a longer number also with signs between its digits."""
    forms = (text.casefold(), fold(text).casefold())
    return any(word in form for word in deny for form in forms) or any(spread(deny, text))


def tells_of_someone(name: str, *, deny: Collection[str], models: Collection[str] = ()) -> bool:
    """Whether a machine's name or serial number holds a word of ``deny``, or reads like a name, a date, a telephone or an address.

    A long number alone does not: a serial number is one.

    Args:
        name: One word.
        deny, models: As in ``scrub``.

    Raises:
        ConfigError: a model is not installed.

    >>> [tells_of_someone(name, deny={"jane"}) for name in ("US-LOGIQ-3", "4711815000123", "US-JANE-3", "1961-03-12")]
    [False, False, True, True]
    """
    return holds(name, deny) or any(entity != LONG_NUMBER for entity, _, _ in _found(fold(name), tuple(models)))


def _only(rest: str, words: Vocabulary) -> str:
    """The pieces between spaces of which every token is in the vocabulary, without signs at the ends."""
    kept = " ".join(piece for piece in rest.split() if all(token in words for token in TOKEN.findall(piece)))
    return kept.strip(" -/,.;:&+_'\"") if any(len(token) > 1 for token in TOKEN.findall(kept)) else ""


@lru_cache(maxsize=4096)
def _found(text: str, models: tuple[str, ...]) -> list[tuple[str, int, int]]:
    hits = [hit for model in models or ("",) for hit in engine(model).analyze(text, "en", score_threshold=SCORE)]
    return [(hit.entity_type, hit.start, hit.end) for hit in hits]
