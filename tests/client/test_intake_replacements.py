"""Keyed replacements of UIDs and dates."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID, UltrasoundImageStorage

from busgen_client.intake.replacements import MOST_DAYS, moved_date, moved_moment, moved_time, new_uid, offset, pseudonym
from tests.client.headers import key


def other(kind: str, *parts: bytes | str) -> str:
    return key("another site", kind, *parts)


def test_uid_is_replaced_by_one_of_the_same_key() -> None:
    """The same UID gives the same replacement, which is valid, of version 8, and another under another key; the old one is not in it."""
    old = "1.2.826.0.1.3680043.8.498.4711"
    new = new_uid(key, old)
    assert new == new_uid(key, old) != new_uid(other, old)
    assert new.is_valid
    assert new.startswith("2.25.")
    bits = int(new[5:])
    assert ((bits >> 76) & 0xF, (bits >> 62) & 0x3) == (8, 2)
    assert "4711" not in new


def test_a_thousand_uids_stay_apart() -> None:
    """Distinct UIDs get distinct replacements."""
    assert len({new_uid(key, f"1.2.{n}") for n in range(1000)}) == 1000


def test_registered_uid_stays() -> None:
    """What PS3.6 registers names no object and is kept; what only looks registered is not."""
    assert new_uid(key, UltrasoundImageStorage) == UltrasoundImageStorage
    assert new_uid(key, "1.2.840.10008.19610211") != UID("1.2.840.10008.19610211")


def test_pseudonym_is_the_patient_s_own() -> None:
    """One for each patient and key; none without a patient."""
    assert len({pseudonym(key, "a"), pseudonym(key, "b"), pseudonym(other, "a"), pseudonym(key, "a")}) == 3
    assert pseudonym(key, "") == ""


def test_offsets_are_spread_over_ten_years() -> None:
    """Every offset is at least a day and at most ten years and a day, whole years are not preferred, and seconds are moved too."""
    found = [offset(key, str(n)) for n in range(2000)]
    assert min(found) >= timedelta(days=1)
    assert max(found) < timedelta(days=MOST_DAYS + 1)
    assert len({by.days for by in found}) > 1400
    assert len({by.seconds for by in found}) > 1900
    assert 0.45 < sum(by.days < MOST_DAYS / 2 for by in found) / 2000 < 0.55  # binomial, 4.5 deviations


@given(first=st.datetimes(datetime(1950, 1, 1), datetime(2030, 1, 1)), gap=st.timedeltas(timedelta(0), timedelta(days=4000)), patient=st.text())
def test_intervals_of_a_patient_stay(first: datetime, gap: timedelta, patient: str) -> None:
    """Between two moments of one patient there is as much time after the move as before, by date and time apart and by both in one."""
    by, second = offset(key, patient), first + gap
    apart, whole = [], []
    for moment in (first, second):
        day, clock = moment.strftime("%Y%m%d"), moment.strftime("%H%M%S.%f")
        apart.append(datetime.strptime(moved_date(day, clock, by) + moved_time(clock, by), "%Y%m%d%H%M%S.%f").replace(tzinfo=UTC))
        whole.append(datetime.strptime(moved_moment(day + clock[:6], by), "%Y%m%d%H%M%S").replace(tzinfo=UTC))
    assert apart[1] - apart[0] == gap
    assert abs((whole[1] - whole[0]) - gap) < timedelta(seconds=1)
    assert whole[0] == apart[0].replace(microsecond=0)


@pytest.mark.parametrize("bad", ["", "2024", "20241301", "00010102", "yesterday", "20240101-20240201"])
def test_what_is_no_date_is_an_error(bad: str) -> None:
    """A value that is no date, or has none so far back, is refused."""
    with pytest.raises(ValueError):  # noqa: PT011  (pydicom words it)
        moved_date(bad, "", timedelta(days=3))


MOMENTS = {"2024": "2022", "202403": "202203", "20240301": "20220303", "20240301101500.25+0200": "20220303101500"}


@pytest.mark.parametrize(("moment", "moved"), MOMENTS.items())
def test_moment_is_as_exact_as_it_was(moment: str, moved: str) -> None:
    """A year stays a year; the offset from UTC goes."""
    assert moved_moment(moment, timedelta(days=729)) == moved
