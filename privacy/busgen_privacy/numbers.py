"""How else the numbers and dates of a header may be written, as digits alone; and how such digits are known again between signs.

``0004711815`` and ``4711815`` are one record number, ``+49 30 1234567`` and ``0301234567`` one telephone, ``19610312`` and ``12.3.1961`` one day.
"""

import re
from collections.abc import Collection, Iterator
from itertools import product

SHORTEST_NUMBER = 4  # digits; shorter ones are in every scanner's name
SHORTEST_SPREAD = 6  # digits of a number that is looked for between signs too: "10-12 MHz" is no 1012
COUNTRY_CODE = 3  # digits at most (ITU-T E.164, 6.2.1)
SHORTEST_PHONE = 7  # digits that tell a telephone without its country code
NUMBER = re.compile(r"(?<![^\W_])[+(]{0,2}[0-9][0-9\s./()_-]*")
RUN = re.compile(r"[0-9](?:[\W_]{0,3}[0-9])*")  # up to three signs between digits, as in "(030) 123 / 45"
DAY = re.compile(  # DA and DT, PS3.5 table 6.2-1
    r"((?:18|19|20)[0-9]{2})[-./]?(0[1-9]|1[0-2])[-./]?(0[1-9]|[12][0-9]|3[01])(?:[0-9]{2,6}(?:\.[0-9]+)?)?(?:[+-][0-9]{4})?"
)


def number_forms(value: str) -> frozenset[str]:
    """A value's numbers as digits, also without leading zeros or country code, and its day in every order; none below four digits.

    >>> sorted(number_forms("+49 30 1234567"))
    ['01234567', '1234567', '49301234567']
    >>> {"12031961", "03121961", "1231961", "120361"} <= number_forms("19610312")
    True
    >>> sorted(number_forms("LOGIQ E9 007"))
    []
    """
    found = set(re.findall("[0-9]+", value))
    for number in NUMBER.findall(value):
        digits = re.sub("[^0-9]", "", number)
        found |= {digits, _without_country(number, digits)} if len(digits) >= SHORTEST_SPREAD else set()
    found |= {digits.lstrip("0") for digits in found}
    if day := DAY.fullmatch(value):
        found |= set(_day_forms(*day.groups()))
    return frozenset(form for form in found if len(form) >= SHORTEST_NUMBER)


def _without_country(number: str, digits: str) -> str:
    """Of an international number the end that has no country code in it, however long that is; else nothing."""
    whole = digits.lstrip("0")
    if len(whole) <= SHORTEST_PHONE or not number.lstrip("(").startswith(("+", "00")):
        return ""
    return whole[min(COUNTRY_CODE, len(whole) - SHORTEST_PHONE) :]


def _day_forms(year: str, month: str, day: str) -> Iterator[str]:
    for y, m, d in product((year, year[2:]), (month, month.lstrip("0")), (day, day.lstrip("0"))):
        yield from (form for form in (y + m + d, d + m + y, m + d + y) if len(form) >= SHORTEST_SPREAD)


def spread(numbers: Collection[str], text: str) -> Iterator[tuple[int, int]]:
    """Where one of ``numbers`` begins and ends in a text, whatever signs stand between its digits; words, and below six digits, are passed over."""
    long = [number for number in numbers if len(number) >= SHORTEST_SPREAD and number.isdecimal()]
    for run in RUN.finditer(text) if long else ():
        places = [place for place in range(*run.span()) if text[place] in "0123456789"]
        digits = "".join(text[place] for place in places)
        for number in (number for number in long if number in digits):
            for at in range(digits.find(number), len(digits) - len(number) + 1):
                if digits.startswith(number, at):
                    yield places[at], places[at + len(number) - 1] + 1
