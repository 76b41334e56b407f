"""Who is who: one patient under several identifiers, or under a changed name, by keyed digests alone.

Identifier and issuer come first. Name with birth date is a second key: it joins studies whose identifier changed. Two patients who are taken
for one share a side of the split and a share of the noise, which harms nobody; one who is taken for two gets half the protection. So what
agrees is joined, what contradicts itself waits for a person, and nothing is guessed.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Protocol

from sqlalchemy import delete, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Session

from busgen_client.cohort_rows import MarkRow, PatientRow, WithdrawnMarkRow

# Words that stand where a name is not known; a name with one of them joins nobody.
NO_NAME = frozenset({"anonym", "anonymised", "anonymized", "anonymous", "deidentified", "desconocido", "inconnu", "nn", "patient", "test", "unknown"})
OLDEST = date(1900, 1, 2)  # earlier is a placeholder


class Keyed(Protocol):
    """Keyed digest of parts: ``Pseudonyms.key``."""

    def __call__(self, kind: str, *parts: bytes | str) -> str:
        """Digest of ``parts``; another ``kind`` gives an unrelated one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """What one object says of its patient, digested. Empty where it says nothing that could be relied on.

    Attributes:
        key: Digest of identifier and issuer: the patient's key, unless the patient is known under another.
        name: Digest of the name.
        birth: Digest of the birth date.
        person: Digest of both together.
        vague: The birth date is a 1 January, which many registers write for an unknown day.
    """

    key: str
    name: str = ""
    birth: str = ""
    person: str = ""
    vague: bool = False

    def marks(self) -> list[tuple[str, str]]:
        """All marks that it has, as (kind, digest)."""
        pairs = {"id": self.key, "name": self.name, "birth": self.birth, "person": self.person}
        return [(kind, mark) for kind, mark in pairs.items() if mark]


def person_of(key: Keyed, patient_key: str, *, name: str, birth_date: str) -> Person:
    """Digest what a header says.

    Args:
        key: Keyed digest.
        patient_key: Digest of identifier and issuer.
        name: Patient's Name (0010,0010), a PN value.
        birth_date: Patient's Birth Date (0010,0030), a DA value.
    """
    words, born = plain_name(name), _born(birth_date)
    named = key("patient-name", words) if words else ""
    dated = key("patient-birth", born.isoformat()) if born else ""
    both = key("patient-person", words, born.isoformat()) if words and born else ""
    return Person(key=patient_key, name=named, birth=dated, person=both, vague=born is not None and (born.month, born.day) == (1, 1))


def plain_name(name: str) -> str:
    """A PN value's alphabetic group as plain words: family, given and middle name, without case, accents and punctuation; empty if it names nobody.

    >>> plain_name("MÜLLER-Śmith^Anna Maria^^Dr.=x"), plain_name("ANONYMOUS^"), plain_name("X")
    ('muller smith anna maria', '', '')
    """
    alphabetic = name.partition("=")[0].split("^")[:3]  # PS3.5 section 6.2, PN: prefix and suffix come and go
    bare = "".join(letter for letter in unicodedata.normalize("NFKD", " ".join(alphabetic).casefold()) if not unicodedata.combining(letter))
    words = re.findall(r"[^\W\d_]+", bare)
    return " ".join(words) if len(words) >= 2 and not NO_NAME & set(words) else ""


def _born(text: str) -> date | None:
    try:
        born = datetime.strptime(text.strip(), "%Y%m%d").date()
    except ValueError:
        return None
    return born if OLDEST <= born <= date.today() else None


def resolve(session: Session, person: Person) -> str | None:
    """The key of the patient whom an object belongs to: a known patient's, or a new one; None where the marks contradict each other.

    Contradictions: the identifier is one patient's and name with birth date another's; the identifier is known and neither name nor birth date
    is; name with birth date, but not the identifier, is several patients', or the birth date is vague.
    """
    known, same = _by_id(session, person.key), _owners(session, "person", person.person)
    if known is None:
        if not same:
            return person.key
        return None if len(same) > 1 or person.vague else next(iter(same))
    return None if same - {known} or _another(session, known, person) else known


def canonical(session: Session, patient_key: str) -> str:
    """The key under which a patient is held, given the digest of any identifier of theirs."""
    return _by_id(session, patient_key) or patient_key


def whose(session: Session, identifier: str, people: Iterable[Person]) -> str:
    """``canonical``, where nobody was taken in under this identifier too: people who wait may say whose it is, if they agree."""
    if known := _by_id(session, identifier):
        return known
    said = {resolve(session, person) for person in people if person.key == identifier} - {None, identifier}
    return said.pop() or identifier if len(said) == 1 else identifier


def remember(session: Session, patient_key: str, person: Person) -> None:
    """Note the marks of an admitted object, in the caller's transaction."""
    rows = [{"patient_key": patient_key, "kind": kind, "mark": mark} for kind, mark in person.marks() if (kind, mark) != ("id", patient_key)]
    if rows:
        session.execute(insert(MarkRow).on_conflict_do_nothing(), rows)


def learn_all(session: Session, patient_key: str, people: Iterable[Person]) -> int:
    """Note the marks of those who are this patient by what is known, and of those who then are, in the caller's transaction; how many are."""
    left, learnt = list(people), 0
    while found := [person for person in _near(session, patient_key, left) if resolve(session, person) == patient_key]:
        for person in found:
            remember(session, patient_key, person)
        learnt += len(found)
        left = [person for person in left if person not in found]
    return learnt


def _near(session: Session, patient_key: str, people: Iterable[Person]) -> list[Person]:
    """Those who share an identifier, or name with birth date, with a patient."""
    marks = select(MarkRow.mark).where(MarkRow.patient_key == patient_key, MarkRow.kind.in_(("id", "person")))
    known = {patient_key, *session.scalars(marks)}
    return [person for person in people if known & {person.key, person.person}]


def bury(session: Session, key: Keyed, patient_key: str) -> None:
    """Delete a patient's marks in the caller's transaction; identifiers, and name with birth date, stay recognisable as withdrawn."""
    for row in session.scalars(select(MarkRow).where(MarkRow.patient_key == patient_key, MarkRow.kind.in_(("id", "person")))):
        session.merge(WithdrawnMarkRow(tombstone=key("withdrawn", row.mark)))
    session.execute(delete(MarkRow).where(MarkRow.patient_key == patient_key))


def is_buried(session: Session, key: Keyed, person: Person) -> bool:
    """Whether an object belongs to a patient who withdrew consent under this identifier, or under this name and birth date."""
    wanted = [key("withdrawn", mark) for kind, mark in person.marks() if kind in ("id", "person")]
    return session.scalar(select(WithdrawnMarkRow).where(WithdrawnMarkRow.tombstone.in_(wanted)).limit(1)) is not None


def _by_id(session: Session, digest: str) -> str | None:
    if session.get(PatientRow, digest) is not None:
        return digest
    return session.scalar(select(MarkRow.patient_key).where(MarkRow.kind == "id", MarkRow.mark == digest))


def _owners(session: Session, kind: str, mark: str) -> set[str]:
    return set(session.scalars(select(MarkRow.patient_key).where(MarkRow.kind == kind, MarkRow.mark == mark))) if mark else set()


def _another(session: Session, patient_key: str, person: Person) -> bool:
    """Whether an identifier was given to somebody else: the patient has a name and a birth date, the object too, and both differ."""
    rows = session.scalars(select(MarkRow).where(MarkRow.patient_key == patient_key)).all()
    names, births = ({row.mark for row in rows if row.kind == kind} for kind in ("name", "birth"))
    return bool(names and births and person.name and person.birth) and person.name not in names and person.birth not in births
