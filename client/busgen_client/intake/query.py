"""What to fetch from an archive, and what an archive must be able to do. Pure: the archives are in ``dimse`` and ``dicomweb``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from fnmatch import fnmatchcase
from typing import Protocol

from busgen_client.intake.spool import Spool
from busgen_core.errors import ConfigError

MODALITY = "US"
WINDOW = timedelta(days=31)  # of one question: archives cut long answers short without saying so


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """Ultrasound series of a span of time.

    Attributes:
        since: First study date.
        until: Last study date.
        body_part: Body Part Examined (0018,0015), such as BREAST; empty for any.
        procedure: Study Description (0008,1030), ``*`` and ``?`` as wildcards; empty for any.
    """

    since: date
    until: date
    body_part: str = ""
    procedure: str = ""

    def __post_init__(self) -> None:
        if self.until < self.since:
            raise ConfigError(f"the last study date {self.until} is before the first, {self.since}")

    def windows(self) -> Iterator[tuple[date, date]]:
        """The span in pieces of at most ``WINDOW``, first and last day each.

        >>> [(a.isoformat(), b.isoformat()) for a, b in Query(since=date(2024, 1, 1), until=date(2024, 2, 5)).windows()]
        [('2024-01-01', '2024-01-31'), ('2024-02-01', '2024-02-05')]
        """
        first = self.since
        while first <= self.until:
            last = min(first + WINDOW - timedelta(days=1), self.until)
            yield first, last
            first = last + timedelta(days=1)

    def takes_study(self, day: str, description: str) -> bool:
        """Whether a study of this date (YYYYMMDD) and description is wanted. We match ourselves: archives may leave a key out (PS3.4
        C.2.2.1.3), and some tell breast from BREAST.

        >>> query = Query(since=date(2024, 1, 1), until=date(2024, 1, 31), procedure="*breast*")
        >>> query.takes_study("20240102", "US BREAST LEFT"), query.takes_study("20240102", ""), query.takes_study("20230102", "BREAST")
        (True, False, False)
        """
        pattern = self.procedure.upper().replace("[", "[[]")
        return f"{self.since:%Y%m%d}" <= day <= f"{self.until:%Y%m%d}" and (not pattern or fnmatchcase(description.upper(), pattern))

    def takes_series(self, modality: str, body_part: str) -> bool:
        """Whether a series of this modality and body part is wanted; one of which the archive names neither is not."""
        return modality.upper() == MODALITY and self.body_part.upper() in ("", body_part.upper())


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an archive: its study, itself, and its objects, by UID."""

    study: str = field(repr=False)
    uid: str = field(repr=False)
    objects: tuple[str, ...] = field(repr=False)


class Archive(Protocol):
    """Where objects can be found and fetched."""

    def find(self, query: Query) -> Iterator[Series]:
        """Series that match, with their objects.

        Raises:
            UnavailableError: the archive cannot be reached, or refuses.
        """

    def fetch(self, series: Series, wanted: Sequence[str], spool: Spool) -> None:
        """Bring the objects ``wanted`` of a series into the spool; which of them came is seen there.

        Raises:
            UnavailableError: the archive cannot be reached, refuses, or broke off.
        """
