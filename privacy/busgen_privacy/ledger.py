"""The node's own record of privacy spent: append-only, hash-chained, for the life of the installation.

One JSON line an entry: ``{seq, time, kind, account, reference, events, previous, hash}``, where ``hash`` is the SHA-256 of
the canonical JSON of all other fields and ``previous`` the hash of the entry before. The first ``previous`` names the site.
What an entry may say is in ``ledger_entries``, how it reaches the disk in ``ledger_file``.

Guarantees: an entry that was acknowledged is on the disk; a reservation counts as spent from that moment, whatever becomes of
the job, until a ``settle`` proves that less ran; no reservation is written that would take its account or its campaign past a cap,
also with several processes at once; the order is that of ``seq``, so a clock set back changes nothing. An edited, reordered,
shortened or deleted ledger is noticed. A full disk refuses the next entry by name and hides none that is there.
Not noticed: ledger *and* head file put back together to an older state, or both rewritten whole. The releases carry
the head, so the hub can notice that.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from busgen_core.digests import sha256_bytes
from busgen_core.errors import BudgetExceededError, ConfigError, LedgerError
from busgen_privacy.ledger_entries import Books, Kind, LedgerEntry, LedgerEvent, new_entry
from busgen_privacy.ledger_file import LedgerFile

if TYPE_CHECKING:  # the accountants are heavy; only reserve and spent need them
    from busgen_privacy.dp.accounting import GaussianEvent, Spent

__all__ = ["Ledger", "LedgerEntry", "LedgerEvent", "NamedEvent"]

NamedEvent = tuple[str, "GaussianEvent"]  # a mechanism's name and what it is to the accountants


class Ledger:
    """The ledger of one site in one file.

    Every method reads the whole file and checks the chain first, under a lock that other processes wait for.

    Raises (every method):
        LedgerError: the ledger was edited, shortened, deleted, is another site's, or cannot be read or written.
        StorageFullError (every method that writes): no room for an entry. Either none of it was written, or it counts already.
    """

    def __init__(self, path: Path, *, site: str) -> None:
        self._site, self._start = site, sha256_bytes(f"busgen ledger v1 of {site}".encode())
        self._file = LedgerFile(path, start=self._start)

    def reserve(
        self,
        *,
        account: str,
        reference: str,
        events: Sequence[NamedEvent],
        cap_epsilon: float,
        delta: float,
        campaign_cap: tuple[float, float] | None = None,
    ) -> str:
        """Write down what a job is going to spend; only after that may it touch a patient's image.

        Repeating a reservation with the same events changes nothing while the job has not ended.

        Args:
            account: Whose budget: ``members`` or ``holdout``.
            reference: What it is for; unique in its account.
            events: Each mechanism by name.
            cap_epsilon: Largest epsilon of all that is charged to this account together, at ``delta``.
            campaign_cap: Largest epsilon, and its delta, of this reference's events alone.

        Returns:
            Hash of the reservation's entry, the ledger's head when it was written.

        Raises:
            BudgetExceededError: the account or the campaign would pass its cap. Nothing was written.
            LedgerError: ``reference`` has reserved other events before, or was committed or settled: its budget is used up.
        """
        wanted = tuple(_written(name, event) for name, event in events)
        caps = (cap_epsilon, *(campaign_cap or ())[:1])
        if not wanted or not all(cap > 0 for cap in caps):
            raise ConfigError(f"a reservation needs events and caps above 0: {len(wanted)} events, {caps=}")
        with self._file.locked(writing=True) as books:
            if found := _repeated(books, account, reference, wanted):
                return found.hash
            if campaign_cap is not None:
                self._within(campaign_cap[0], wanted, campaign_cap[1])
            self._within(cap_epsilon, [*books.charged(account), *wanted], delta)
            return self._append(books, "reserve", account, reference, wanted)

    def _within(self, cap: float, events: Sequence[LedgerEvent], delta: float) -> None:
        after = _composed(events, delta).epsilon
        if not after <= cap:
            raise BudgetExceededError(site=self._site, epsilon_after=after, agreed=cap)

    def commit(self, account: str, reference: str) -> str:
        """Note that a reservation was used to its end; it was spent already. Repeating it changes nothing.

        Raises:
            LedgerError: nothing was reserved under this reference, or it was settled.
        """
        with self._file.locked(writing=True) as books:
            found = books.find("commit", account, reference)
            return found.hash if found else self._append(books, "commit", account, reference)

    def settle(self, account: str, reference: str, left: Sequence[NamedEvent], *, evidence: str) -> str:
        """Give back what provably never ran: from now on ``left`` is charged in place of the reservation.

        Call it only once the job can never run again. Repeating it with the same events changes nothing.

        Guarantees: only counts of the reservation's own events are lowered, once for each reference, never after a commit.

        Args:
            account: Whose budget.
            reference: The reservation.
            left: What ran, or may have run.
            evidence: SHA-256 of the proof.

        Raises:
            LedgerError: nothing was reserved, it was committed or settled otherwise before, or ``left`` is not less.
        """
        events = tuple(_written(name, event) for name, event in left)
        with self._file.locked(writing=True) as books:
            found = books.find("settle", account, reference)
            if found is not None and (found.events, found.evidence) == (events, evidence):
                return found.hash
            return self._append(books, "settle", account, reference, events, evidence=evidence)

    def withdraw(self, account: str, release_id: str) -> str:
        """Note that a release holds a patient whose consent was withdrawn; nobody is named or counted, so a second changes nothing."""
        with self._file.locked(writing=True) as books:
            found = books.find("withdraw", account, release_id)
            return found.hash if found else self._append(books, "withdraw", account, release_id)

    def note(self, account: str, reference: str) -> str:
        """Write a remark that spends nothing, such as a changed policy."""
        with self._file.locked(writing=True) as books:
            return self._append(books, "note", account, reference)

    def check_open(self, account: str, reference: str) -> None:
        """Return only if a reservation stands and was not settled: what was given back may never be run.

        Raises:
            LedgerError: nothing is reserved, or it was settled.
        """
        with self._file.locked() as books:
            if books.find("settle", account, reference) or not books.find("reserve", account, reference):
                raise LedgerError(f"{reference} has no reservation of {account}, or gave it back; it must not run")

    def charged(self, account: str, *, without: str = "") -> tuple[LedgerEvent, ...]:
        """Every event that counts for an account: reservations, as far as they were not settled for less.

        Args:
            account: Whose budget.
            without: A reference that is left out.
        """
        with self._file.locked() as books:
            return tuple(books.charged(account, without=without))

    def composed(self, account: str, delta: float) -> "Spent":
        """Epsilon of all that is charged to an account, composed over mechanisms, campaigns and releases; by PLD, by PRV, and as stated."""
        return _composed(self.charged(account), delta)

    def spent(self, account: str, delta: float) -> float:
        """The epsilon that ``composed`` states; unused reservations count."""
        return self.composed(account, delta).epsilon

    def entries(self) -> tuple[LedgerEntry, ...]:
        """All entries, oldest first."""
        with self._file.locked() as books:
            return tuple(books.entries)

    @property
    def head(self) -> str:
        """Hash of the last entry; of the site's name where there is none."""
        entries = self.entries()
        return entries[-1].hash if entries else self._start

    def verify(self) -> None:
        """Return only if nothing was edited; the error names the first line that was."""
        self.entries()

    def _append(
        self, books: Books, kind: Kind, account: str, reference: str, events: tuple[LedgerEvent, ...] = (), *, evidence: str | None = None
    ) -> str:
        last = books.entries[-1] if books.entries else None
        try:
            entry = new_entry(
                seq=len(books.entries) + 1,
                time=datetime.now(UTC).isoformat(timespec="seconds"),
                kind=kind,
                account=account,
                reference=reference,
                events=events,
                previous=last.hash if last else self._start,
                evidence=evidence,
            )
        except ValidationError:
            raise ConfigError("account and reference of a ledger entry are names: letters, digits and ._:/-; evidence is a SHA-256") from None
        books.add(entry)  # refuses what contradicts the entries before it
        self._file.append(entry)
        return entry.hash


def _written(mechanism: str, event: "GaussianEvent") -> LedgerEvent:
    try:
        return LedgerEvent(
            noise_multiplier=float(event.noise_multiplier),
            sample_rate=float(event.sample_rate),
            count=int(event.count),
            mechanism=mechanism,
        )
    except ValidationError:
        raise ConfigError(f"a mechanism of the ledger has a name of letters, spaces and hyphens, and a count above 0: {mechanism[:40]!r}") from None


def _repeated(books: Books, account: str, reference: str, wanted: Sequence[LedgerEvent]) -> LedgerEntry | None:
    """The same reservation made before, if there is one that still stands."""
    found = books.find("reserve", account, reference)
    if found is not None and [e.numbers for e in found.events] != [e.numbers for e in wanted]:
        raise LedgerError(f"{reference} has reserved other events of {account} before; a new job needs a new reference")
    if found is not None and (ended := books.ended(account, reference)):
        raise LedgerError(f"{reference} of {account} has ended, by {ended.kind}; a new job needs a new reference")
    return found


def _composed(events: Sequence[LedgerEvent], delta: float) -> "Spent":
    from busgen_privacy.dp.accounting import GaussianEvent, epsilon_of

    return epsilon_of([GaussianEvent(*event.numbers) for event in events], delta=delta)
