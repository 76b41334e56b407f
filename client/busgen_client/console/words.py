"""What the pages say, where a template would be too long for it."""

import json
from collections.abc import Callable

EVENTS = {
    "console.signed-in": "signed in",
    "console.locked": "too many wrong sign-ins",
    "account.added": "account made",
    "account.removed": "account removed",
    "paper.copied": "copied a paper of a job",
    "paper.read": "read a report",
    "device.trusted": "vouched for a scanner",
    "quarantine.allowed": "took a deletion back",
    "quarantine.deleted": "deleted",
    "quarantine.masked": "blacked out",
    "quarantine.released": "released",
    "quarantine.unmasked": "took boxes off",
}
HIDDEN = frozenset({"check", "patient"})  # keyed digests, which say nothing to people
DONE = {
    "released": "Released into the cohort.",
    "deleted": "Deleted.",
    "masked": "Blacked out. Release it when nothing else is to be hidden.",
    "unmasked": "All boxes are off again.",
    "trusted": "Vouched for. What waited for nothing but this scanner is released.",
}


def event_words(event: str) -> str:
    """A journal event for people.

    >>> event_words("quarantine.masked"), event_words("intake.table")
    ('blacked out', 'intake.table')
    """
    return EVENTS.get(event, event)


def detail_words(detail: str) -> str:
    """A journal line's detail for people, without digests of patients.

    >>> detail_words('{"who": "ada", "boxes": [[1, 2, 3, 4]], "patient": "9f"}')
    'who ada, boxes 1 2 3 4'
    """
    pairs = {key: value for key, value in json.loads(detail).items() if key not in HIDDEN}
    return ", ".join(f"{key} {_plain(value)}" for key, value in pairs.items())


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {_plain(each)}" for key, each in value.items()) or "none"
    if isinstance(value, list):
        return " ".join(_plain(each) for each in value) or "none"
    return str(value)


def moment(text: str) -> str:
    """A time of the journal, shorter.

    >>> moment("2031-02-03T04:05:06+00:00")
    '2031-02-03 04:05:06'
    """
    return text[:19].replace("T", " ")


FILTERS: dict[str, Callable[[str], str]] = {"event_words": event_words, "detail_words": detail_words, "moment": moment}
