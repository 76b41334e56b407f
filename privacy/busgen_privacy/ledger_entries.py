"""What stands in a ledger, and what an entry may say after those before it. Pure: no file, clock or accountant.

Kinds: ``reserve`` (spent from that moment), ``commit`` (was used to its end), ``settle`` (what ran was less; its events replace the
reservation's), ``withdraw`` (a release holds a patient whose consent was withdrawn), ``note`` (a remark).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from busgen_core.digests import canonical_json, sha256_bytes
from busgen_core.errors import LedgerError
from busgen_core.wire import Digest

Kind = Literal["reserve", "commit", "settle", "withdraw", "note"]
Account = Annotated[str, Field(pattern=r"^[a-z][a-z-]{0,30}$")]
Reference = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,199}$")]  # campaign, release and model names: never a patient's
Mechanism = Annotated[str, Field(pattern=r"^[a-z][a-z -]{0,39}$")]
UNNAMED = "gaussian"  # of lines that were written before mechanisms had names


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LedgerEvent(_Frozen):
    """A Gaussian mechanism as it is written down.

    Attributes:
        noise_multiplier: Standard deviation of the noise / L2 sensitivity to one patient.
        sample_rate: Chance of a patient to enter one repetition.
        count: Repetitions.
        mechanism: ``dp-sgd``, ``vote``, ``mean``, ``class counts``, ``audit figures``, ``score``; for people and for settling,
            no epsilon depends on it.
    """

    noise_multiplier: float
    sample_rate: float
    count: Annotated[int, Field(ge=1)]
    mechanism: Mechanism = UNNAMED

    @property
    def numbers(self) -> tuple[float, float, int]:
        """What accounting sees: noise multiplier, sample rate, count."""
        return self.noise_multiplier, self.sample_rate, self.count


class LedgerEntry(_Frozen):
    """One line of the ledger. A field that has its default is not written, so lines from before it existed still hash the same.

    Attributes:
        seq: 1, 2, 3, …
        time: UTC, ISO 8601; for people, nothing is decided by it.
        previous: Hash of the entry before.
        hash: SHA-256 of the canonical JSON of the other fields.
        evidence: SHA-256 of what proves a ``settle``: the checkpoint, or the job's record that nothing began.
    """

    seq: Annotated[int, Field(ge=1)]
    time: str
    kind: Kind
    account: Account
    reference: Reference
    events: tuple[LedgerEvent, ...]
    previous: Digest
    hash: Digest
    evidence: Digest | None = None

    def line(self) -> bytes:
        """The entry as it stands in the file."""
        return canonical_json(self.model_dump(mode="json", exclude_defaults=True)) + b"\n"

    def expected_hash(self) -> str:
        """The hash that the other fields give."""
        return sha256_bytes(canonical_json(self.model_dump(mode="json", exclude={"hash"}, exclude_defaults=True)))


class Books:
    """The entries in order, and what they add up to. An entry that contradicts those before it is never taken."""

    def __init__(self) -> None:
        self.entries: list[LedgerEntry] = []
        self._found: dict[tuple[Kind, str, str], LedgerEntry] = {}

    def add(self, entry: LedgerEntry) -> None:
        """Take one more entry.

        Raises:
            LedgerError: it contradicts the entries before it.
        """
        if fault := self.fault(entry):
            raise LedgerError(fault)
        self.entries.append(entry)
        self._found.setdefault((entry.kind, entry.account, entry.reference), entry)

    def find(self, kind: Kind, account: str, reference: str) -> LedgerEntry | None:
        """The first entry of this kind, account and reference, or None."""
        return self._found.get((kind, account, reference))

    def fault(self, entry: LedgerEntry) -> str:
        """Why ``entry`` cannot stand here; empty if it can.

        Guarantees: a reference reserves once and ends once, by commit or by settle; a settle only lowers counts of its reservation.
        """
        what = f"{entry.reference} of {entry.account}"
        if entry.kind not in ("reserve", "settle") and entry.events:
            return f"a {entry.kind} spends nothing"
        if (entry.kind == "settle") != (entry.evidence is not None):
            return "a settle has evidence, and nothing else has"
        if entry.kind == "reserve":
            return "" if entry.events and not self.find("reserve", entry.account, entry.reference) else f"{what} reserves twice, or nothing"
        if entry.kind not in ("commit", "settle"):
            return ""
        reserved = self.find("reserve", entry.account, entry.reference)
        if reserved is None:
            return f"{what} has reserved nothing"
        if ended := self.ended(entry.account, entry.reference):
            return f"{what} has ended before, by {ended.kind}"
        if entry.kind == "settle" and not lowers(reserved.events, entry.events):
            return f"{what}: settling may only lower counts of what was reserved"
        return ""

    def ended(self, account: str, reference: str) -> LedgerEntry | None:
        """The commit or settle of a reservation, or None while it is open."""
        return self.find("commit", account, reference) or self.find("settle", account, reference)

    def charged(self, account: str, *, without: str = "") -> list[LedgerEvent]:
        """All events that count for an account: each reservation's, or those of the settle that replaced it.

        Args:
            account: Whose budget.
            without: A reference that is left out.
        """
        reserved = [e for e in self.entries if e.kind == "reserve" and e.account == account and e.reference != without]
        return [event for entry in reserved for event in (self.find("settle", account, entry.reference) or entry).events]


def lowers(before: Sequence[LedgerEvent], after: Sequence[LedgerEvent]) -> bool:
    """True when ``after`` is ``before`` with at least one count lowered, and nothing else is changed.

    >>> ten, four = (LedgerEvent(noise_multiplier=2, sample_rate=0.5, count=count) for count in (10, 4))
    >>> lowers([ten], [four]), lowers([ten], []), lowers([four], [ten]), lowers([ten], [ten])
    (True, True, False, False)
    """
    had, has = _counts(before), _counts(after)
    return has != had and all(count <= had[key] for key, count in has.items())


def _counts(events: Iterable[LedgerEvent]) -> Counter[tuple[str, float, float]]:
    counts: Counter[tuple[str, float, float]] = Counter()
    for event in events:
        counts[event.mechanism, event.noise_multiplier, event.sample_rate] += event.count
    return counts


def read_chain(data: bytes, *, start: str, name: str) -> Books:
    """The entries of whole lines, each checked against its own hash, the entry before it, and what it may say.

    Args:
        data: The ledger's lines, each with its line end.
        start: What stands for the hash before the first entry.
        name: The file's name, for errors.

    Raises:
        LedgerError: names the first line that is wrong.
    """
    books = Books()
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        try:
            entry = LedgerEntry.model_validate_json(line, strict=True)
            intact = entry.line() == line and entry.hash == entry.expected_hash()
        except ValueError:
            raise LedgerError(f"{name}: line {number} is not an entry; it was edited or damaged") from None
        if not intact or entry.seq != number:
            raise LedgerError(f"{name}: line {number} was edited or moved")
        if entry.previous != (books.entries[-1].hash if books.entries else start):
            before = f"line {number - 1}: one of the two was edited" if number > 1 else "this site's name: it was edited, or is another site's ledger"
            raise LedgerError(f"{name}: line {number} does not continue {before}")
        if fault := books.fault(entry):
            raise LedgerError(f"{name}: line {number} cannot be: {fault}")
        books.add(entry)
    return books


def new_entry(**fields: object) -> LedgerEntry:
    """An entry with its hash, from all other fields.

    Raises:
        pydantic.ValidationError: a field is outside its form.
    """
    draft = LedgerEntry.model_validate({**fields, "hash": "0" * 64})
    return draft.model_copy(update={"hash": draft.expected_hash()})
