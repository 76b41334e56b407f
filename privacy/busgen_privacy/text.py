"""The one door for free text: Presidio with pattern recognizers only. No language model, no download, no network.

Presidio's own e-mail and URL recognizers ask tldextract, which fetches a list from the network at first use. Their patterns are
used here without that check: more is struck out, nothing is fetched. Importing Presidio costs seconds, so it waits for the first text.
"""

import re
import warnings
from collections.abc import Collection
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from presidio_analyzer import AnalyzerEngine

LONGEST = 64  # characters, the limit of value representation LO (PS3.5 table 6.2-1)
SCORE = 0.3  # Presidio's confidence above which a find is struck out; its phone pattern answers 0.4

# Beside Presidio's own: what DICOM writes differently from prose.
PATTERNS = {
    "DICOM_NAME": r"[^\s^]+(?:\^[^\s^]*)+",  # PS3.5 6.2.1: components of a name are separated by ^
    "LONG_NUMBER": r"\d(?:[-./ ]?\d){5,}",  # record numbers, dates as YYYYMMDD, UIDs
}


def scrub(text: str, *, deny: Collection[str] = ()) -> str:
    """Return ``text`` without names of ``deny``, numbers, dates, addresses and links; empty when in doubt.

    Args:
        text: One line of at most ``LONGEST`` characters; anything longer is prose and gives an empty answer.
        deny: Words that must not survive, as ``busgen_privacy.deidentify.deny_words`` gives them.

    Guarantees:
        - No word of ``deny`` occurs in the answer, whatever its case and whatever stands beside it.
        - Same arguments, same answer; nothing is read from the network.

    >>> scrub("LOGIQ E9 of Jane", deny={"jane"})
    'LOGIQ E9 of'
    """
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if not plain or len(plain) > LONGEST:
        return ""
    cut = list(plain)
    for start, end in _found(plain) + [m.span() for word in deny for m in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", plain, re.IGNORECASE)]:
        cut[start:end] = " " * (end - start)
    rest = " ".join("".join(cut).split())
    if any(word.casefold() in rest.casefold() for word in deny):  # glued to other letters: nothing of this text can be trusted
        return ""
    return rest


@lru_cache(maxsize=4096)
def _found(text: str) -> list[tuple[int, int]]:
    return [(hit.start, hit.end) for hit in _engine().analyze(text, "en", score_threshold=SCORE)]


@lru_cache(maxsize=1)
def _engine() -> "AnalyzerEngine":
    """Presidio's engine over an NLP engine that loads nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside its imports are not ours to mend
        from presidio_analyzer import AnalyzerEngine, Pattern, PatternRecognizer, RecognizerRegistry
        from presidio_analyzer.nlp_engine import NoOpNlpEngine
        from presidio_analyzer.predefined_recognizers import (
            DateRecognizer,
            EmailRecognizer,
            IpRecognizer,
            MacAddressRecognizer,
            PhoneRecognizer,
            UrlRecognizer,
        )

        nothing = NoOpNlpEngine([{"lang_code": "en", "model_name": "none"}])
        nothing.load()
        own = [PatternRecognizer(supported_entity=name, patterns=[Pattern(name, regex, 1.0)]) for name, regex in PATTERNS.items()]
        offline = [
            PatternRecognizer(supported_entity="EMAIL_ADDRESS", patterns=EmailRecognizer.PATTERNS),
            PatternRecognizer(supported_entity="URL", patterns=UrlRecognizer.PATTERNS),
        ]
        theirs = [DateRecognizer(), IpRecognizer(), MacAddressRecognizer(), PhoneRecognizer()]
        registry = RecognizerRegistry([*own, *offline, *theirs], supported_languages=["en"])
        return AnalyzerEngine(registry=registry, nlp_engine=nothing, supported_languages=["en"])
