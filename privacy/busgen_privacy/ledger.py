"""The node's own record of privacy spent: append-only, hash-chained, for the life of the installation.

One JSON line an entry: ``{seq, time, kind, account, reference, events, previous, hash}``, where ``hash`` is the SHA-256 of
the canonical JSON of all other fields and ``previous`` the hash of the entry before. The first ``previous`` names the site.
Beside the ledger lie ``<ledger>.head`` (number and hash of the last entry), ``<ledger>.lock``, and what a crash tore
(``<ledger>.torn-N``).

Guarantees: an entry that was acknowledged is on the disk; a reservation counts as spent from that moment, whatever becomes of
the job; no reservation is written that would take its account past its cap, also with several processes at once; the order
is that of ``seq``, so a clock set back changes nothing. An edited, reordered, shortened or deleted ledger is noticed.
Not noticed: ledger *and* head file put back together to an older state, or both rewritten whole. The releases carry
the head, so the hub can notice that.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from busgen_core.digests import canonical_json, sha256_bytes
from busgen_core.errors import BudgetExceededError, ConfigError, LedgerError
from busgen_core.wire import Digest

if TYPE_CHECKING:  # the accountants are heavy; only reserve and spent need them
    from busgen_privacy.dp.accounting import GaussianEvent

Kind = Literal["reserve", "commit", "note"]
Account = Annotated[str, Field(pattern=r"^[a-z][a-z-]{0,30}$")]
Reference = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,199}$")]  # campaign, release and model names: never a patient's


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LedgerEvent(_Frozen):
    """A Gaussian mechanism as it is written down."""

    noise_multiplier: float
    sample_rate: float
    count: int


class LedgerEntry(_Frozen):
    """One line of the ledger.

    Attributes:
        seq: 1, 2, 3, …
        time: UTC, ISO 8601; for people, nothing is decided by it.
        previous: Hash of the entry before.
        hash: SHA-256 of the canonical JSON of the other fields.
    """

    seq: Annotated[int, Field(ge=1)]
    time: str
    kind: Kind
    account: Account
    reference: Reference
    events: tuple[LedgerEvent, ...]
    previous: Digest
    hash: Digest

    def line(self) -> bytes:
        """The entry as it stands in the file."""
        return canonical_json(self.model_dump(mode="json")) + b"\n"

    def expected_hash(self) -> str:
        """The hash that the other fields give."""
        return sha256_bytes(canonical_json(self.model_dump(mode="json", exclude={"hash"})))


class _Head(_Frozen):
    seq: int
    hash: Digest


class Ledger:
    """The ledger of one site in one file.

    Every method reads the whole file and checks the chain first, under a lock that other processes wait for.

    Raises (every method):
        LedgerError: the ledger was edited, shortened, deleted, is another site's, or cannot be read or written.
    """

    def __init__(self, path: Path, *, site: str) -> None:
        self._path, self._site = path, site
        self._start = sha256_bytes(f"busgen ledger v1 of {site}".encode())

    def reserve(self, *, account: str, reference: str, events: Sequence["GaussianEvent"], cap_epsilon: float, delta: float) -> str:
        """Write down what a job is going to spend; only after that may it touch a patient's image.

        Repeating a reservation with the same events changes nothing.

        Args:
            account: Whose budget: ``members`` or ``holdout``.
            reference: What it is for; unique in its account.
            cap_epsilon: Largest epsilon of all reservations of this account together, at ``delta``.

        Returns:
            Hash of the reservation's entry, the ledger's head when it was written.

        Raises:
            BudgetExceededError: the account would pass its cap. Nothing was written.
            LedgerError: ``reference`` has reserved other events before.
        """
        wanted = tuple(_written(event) for event in events)
        if not wanted or not cap_epsilon > 0:
            raise ConfigError(f"a reservation needs events and a cap above 0: {len(wanted)} events, {cap_epsilon=}")
        with self._locked() as entries:
            if found := _find(entries, "reserve", account, reference):
                if found.events != wanted:
                    raise LedgerError(f"{reference} has reserved other events of {account} before; a new job needs a new reference")
                return found.hash
            after = _epsilon([*_reserved(entries, account), *wanted], delta)
            if not after <= cap_epsilon:
                raise BudgetExceededError(site=self._site, epsilon_after=after, agreed=cap_epsilon)
            return self._append(entries, "reserve", account, reference, wanted)

    def commit(self, account: str, reference: str) -> str:
        """Note that a reservation was used to its end; it was spent already. Repeating it changes nothing.

        Raises:
            LedgerError: nothing was reserved under this reference.
        """
        with self._locked() as entries:
            if not _find(entries, "reserve", account, reference):
                raise LedgerError(f"{reference} has reserved nothing of {account}")
            found = _find(entries, "commit", account, reference)
            return found.hash if found else self._append(entries, "commit", account, reference, ())

    def note(self, account: str, reference: str) -> str:
        """Write a remark that spends nothing, such as a changed policy."""
        with self._locked() as entries:
            return self._append(entries, "note", account, reference, ())

    def spent(self, account: str, delta: float) -> float:
        """Epsilon of all reservations of an account, composed; unused reservations count."""
        return _epsilon(_reserved(self.entries(), account), delta)

    def entries(self) -> tuple[LedgerEntry, ...]:
        """All entries, oldest first."""
        with self._locked() as entries:
            return tuple(entries)

    @property
    def head(self) -> str:
        """Hash of the last entry; of the site's name where there is none."""
        entries = self.entries()
        return entries[-1].hash if entries else self._start

    def verify(self) -> None:
        """Return only if nothing was edited; the error names the first line that was."""
        self.entries()

    @contextmanager
    def _locked(self) -> Iterator[list[LedgerEntry]]:
        """The checked entries, while no other process reads or writes."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._beside("lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise LedgerError(f"{self._path.name}: cannot be locked ({error.strerror})") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self._read()
        except OSError as error:
            raise LedgerError(f"{self._path.name}: cannot be read or written ({error.strerror}); nothing more was acknowledged") from error
        finally:
            os.close(lock)

    def _read(self) -> list[LedgerEntry]:
        """Entries after checking the chain against the head file, and setting aside what a crash tore."""
        head_file = self._beside("head")
        try:
            head = _Head.model_validate_json(head_file.read_bytes()) if head_file.exists() else _Head(seq=0, hash=self._start)
        except ValidationError:
            raise LedgerError(f"{head_file.name}: unreadable; restore it from a backup") from None
        data = self._path.read_bytes() if self._path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        entries = self._parse(whole)
        if not head.seq <= len(entries) <= head.seq + 1:
            raise LedgerError(f"{self._path.name}: {len(entries)} entries, {head_file.name} tells of {head.seq}: lines or files were removed")
        if head.hash != (entries[head.seq - 1].hash if head.seq else self._start):
            raise LedgerError(f"{self._path.name}: line {head.seq} is not the one that {head_file.name} tells of: the ledger was rewritten")
        if torn := data[len(whole) :]:  # a crash while writing; the entry was never acknowledged
            self._set_aside(torn, keep=len(whole))
        if len(entries) == head.seq + 1:  # a crash between entry and head
            self._write_head(entries[-1])
        return entries

    def _parse(self, data: bytes) -> list[LedgerEntry]:
        entries: list[LedgerEntry] = []
        for number, line in enumerate(data.splitlines(keepends=True), start=1):
            try:
                entry = LedgerEntry.model_validate_json(line, strict=True)
                intact = entry.line() == line and entry.hash == entry.expected_hash()
            except ValueError:
                raise LedgerError(f"{self._path.name}: line {number} is not an entry; it was edited or damaged") from None
            previous = entries[-1].hash if entries else self._start
            if not intact or entry.seq != number or entry.previous != previous:
                raise LedgerError(f"{self._path.name}: line {number} was edited, moved, or is of another site's ledger")
            entries.append(entry)
        return entries

    def _append(self, entries: list[LedgerEntry], kind: Kind, account: str, reference: str, events: tuple[LedgerEvent, ...]) -> str:
        """Write one entry, then the head; return the entry's hash once both are on the disk."""
        fields = {
            "seq": len(entries) + 1,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "kind": kind,
            "account": account,
            "reference": reference,
            "events": events,
            "previous": entries[-1].hash if entries else self._start,
        }
        try:
            draft = LedgerEntry.model_validate({**fields, "hash": self._start})
        except ValidationError:
            raise ConfigError("account and reference of a ledger entry are names: letters, digits and ._:/-") from None
        entry = draft.model_copy(update={"hash": draft.expected_hash()})
        new = not self._path.exists()
        _write(self._path, entry.line(), os.O_APPEND)
        if new:
            _sync_folder(self._path.parent)
        self._write_head(entry)
        return entry.hash

    def _write_head(self, entry: LedgerEntry) -> None:
        fresh = self._beside("head.new")
        _write(fresh, canonical_json({"seq": entry.seq, "hash": entry.hash}), os.O_TRUNC)
        fresh.replace(self._beside("head"))
        _sync_folder(self._path.parent)

    def _set_aside(self, torn: bytes, *, keep: int) -> None:
        number = 1
        while self._beside(f"torn-{number}").exists():
            number += 1
        _write(self._beside(f"torn-{number}"), torn, os.O_EXCL)
        with self._path.open("r+b") as stream:
            stream.truncate(keep)
            os.fsync(stream.fileno())

    def _beside(self, ending: str) -> Path:
        return self._path.with_name(f"{self._path.name}.{ending}")


def _write(path: Path, data: bytes, flags: int) -> None:
    """Write all of ``data`` and wait until the disk has it."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600), "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _written(event: "GaussianEvent") -> LedgerEvent:
    return LedgerEvent(noise_multiplier=float(event.noise_multiplier), sample_rate=float(event.sample_rate), count=int(event.count))


def _find(entries: Sequence[LedgerEntry], kind: Kind, account: str, reference: str) -> LedgerEntry | None:
    return next((entry for entry in entries if (entry.kind, entry.account, entry.reference) == (kind, account, reference)), None)


def _reserved(entries: Sequence[LedgerEntry], account: str) -> list[LedgerEvent]:
    return [event for entry in entries if entry.kind == "reserve" and entry.account == account for event in entry.events]


def _epsilon(events: Sequence[LedgerEvent], delta: float) -> float:
    from busgen_privacy.dp.accounting import GaussianEvent, epsilon_of

    return epsilon_of([GaussianEvent(event.noise_multiplier, event.sample_rate, event.count) for event in events], delta=delta).epsilon
