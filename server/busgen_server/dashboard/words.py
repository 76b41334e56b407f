"""Figures and times in words, for the page."""

from collections.abc import Callable
from datetime import datetime

from busgen_server.database import now
from busgen_server.looks import look_words

STATES = {
    "waiting": "not asked yet",
    "offered": "waits for the steward",
    "accepted": "accepted, waits to start",
    "adapting": "adapting the generator",
    "generating": "drawing images",
    "auditing": "attacking its own result",
    "review": "waits for the privacy officer",
    "released": "released",
    "declined": "declined",
    "refused": "refused",
    "failed": "failed",
}
READS = {"identifying": "a name, a number or a date", "words": "other words", "furniture": "what scanners write"}


def ago(moment: datetime | None) -> str:
    """How long ago, roughly.

    >>> ago(None)
    'never'
    """
    if moment is None:
        return "never"
    seconds = max(0, (now() - moment).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now" if seconds < 20 else f"{seconds:.0f} s ago"


def figure(value: float | None) -> str:
    """Three decimals without the leading zero, as AUCs are written.

    >>> figure(0.8312), figure(1.0), figure(None)
    ('.831', '1.000', '–')
    """
    return "–" if value is None else f"{value:.3f}".removeprefix("0")


def power(value: float | None) -> str:
    """A small number such as delta.

    >>> power(1e-5)
    '1e-5'
    """
    return "–" if value is None else f"{value:.0e}".replace("e-0", "e-")


def job_words(state: str) -> str:
    """A job's state for people.

    >>> job_words("review")
    'waits for the privacy officer'
    """
    return STATES.get(state, state)


def percent(share: float | None) -> str:
    """A share for people; some is never shown as none, nor less than all as all.

    >>> percent(0.25), percent(0.001), percent(0.9996), percent(0.0), percent(None)
    ('25 %', 'under 1 %', 'over 99 %', '0 %', '–')
    """
    if share is None:
        return "–"
    if 0 < share < 0.01:
        return "under 1 %"
    return "over 99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"


def reads_words(kind: str) -> str:
    """What a piece of text reads like, for people.

    >>> reads_words("furniture")
    'what scanners write'
    """
    return READS.get(kind, kind)


FILTERS: dict[str, Callable[..., str]] = {
    "ago": ago,
    "figure": figure,
    "power": power,
    "job_words": job_words,
    "look_words": look_words,
    "percent": percent,
    "reads_words": reads_words,
}
