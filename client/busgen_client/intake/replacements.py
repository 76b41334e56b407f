"""Keyed replacements: the same value gives the same replacement under one hospital's secret, and nobody without the secret can go back.

Guarantees:
    - A replacement is a function of an HMAC-SHA256 of the original, so references between objects stay whole over any number of runs.
    - Dates of one patient move by one offset, of at least a day and at most ten years: intervals stay, dates do not.
"""

from datetime import date, datetime, time, timedelta
from typing import Protocol

from pydicom.uid import UID
from pydicom.valuerep import DA, DT, TM

MOST_DAYS = 3650
DAY_SECONDS = 86_400
ANY_DAY = date(2000, 1, 1)


class Keyed(Protocol):
    """Keyed digest of parts, at least 32 hexadecimal digits: ``Pseudonyms.key``."""

    def __call__(self, kind: str, *parts: bytes | str) -> str:
        """Digest of ``parts``; another ``kind`` gives an unrelated one."""


def new_uid(key: Keyed, old: str) -> UID:
    """The UID that replaces ``old``: 2.25 and a UUID of version 8 (PS3.5 B.2, RFC 9562 section 5.8). UIDs that PS3.6 registers stay."""
    if UID(old).type:
        return UID(old)
    digest = int(key("uid", old)[:32], 16)
    versioned = digest & ~(0xF << 76) | 0x8 << 76
    return UID(f"2.25.{versioned & ~(0x3 << 62) | 0x2 << 62}")


def pseudonym(key: Keyed, patient: str) -> str:
    """Sixteen hexadecimal digits that stand for a patient, given the patient's key; empty for none."""
    return key("pseudonym", patient)[:16].upper() if patient else ""


def offset(key: Keyed, patient: str) -> timedelta:
    """How far back the dates of a patient are moved, given the patient's key: whole days and a part of one."""
    digest = int(key("dates", patient)[:32], 16)
    days, seconds = digest % MOST_DAYS, digest // MOST_DAYS % DAY_SECONDS
    return timedelta(days=1 + days, seconds=seconds)


def moved_date(day: str, clock: str, by: timedelta) -> str:
    """A DA value, moved back; ``clock`` is the TM value beside it or empty, since the part of a day may carry over.

    Raises:
        ValueError: not a date, or before the year 1.

    >>> moved_date("20240301", "001500", timedelta(days=1, hours=1)), moved_date("20240301", "", timedelta(days=1, hours=1))
    ('20240228', '20240229')
    """
    if clock:
        moved = _before(datetime.combine(_day(day), _clock(clock)), by)
    else:
        moved = _before(datetime.combine(_day(day), time()), timedelta(days=by.days))
    return moved.date().isoformat().replace("-", "")


def moved_time(clock: str, by: timedelta) -> str:
    """A TM value, moved back around the clock, as exact as it was.

    Raises:
        ValueError: not a time.

    >>> moved_time("0015", timedelta(days=1, hours=1))
    '2315'
    """
    digits, fraction, _ = clock.partition(".")
    moved = datetime.combine(ANY_DAY, _clock(clock)) - by
    return moved.strftime("%H%M%S")[: len(digits)] + (f".{moved.microsecond:06d}" if fraction else "")


def moved_moment(moment: str, by: timedelta) -> str:
    """A DT value, moved back, as exact as it was; its offset from UTC tells where it was taken and goes.

    Raises:
        ValueError: not a date and time, or before the year 1.

    >>> moved_moment("20240301001500+0100", timedelta(days=1, hours=1))
    '20240228231500'
    """
    digits = moment.replace("-", "+").partition("+")[0].partition(".")[0]
    parsed = DT(moment)
    if parsed is None:
        raise ValueError("no date and time")
    moved = _before(parsed.replace(tzinfo=None), by)
    return (moved.date().isoformat().replace("-", "") + moved.strftime("%H%M%S"))[: len(digits)]


def _before(moment: datetime, by: timedelta) -> datetime:
    try:
        return moment - by
    except OverflowError:
        raise ValueError("before the year 1") from None


def _day(text: str) -> date:
    parsed = DA(text)
    if parsed is None:
        raise ValueError("no date")
    return date(parsed.year, parsed.month, parsed.day)


def _clock(text: str) -> time:
    parsed = TM(text)
    if parsed is None:
        raise ValueError("no time")
    return time(parsed.hour, parsed.minute, parsed.second, parsed.microsecond)
