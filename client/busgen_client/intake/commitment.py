"""Storage commitment (PS3.4 annex J), answered truthfully. A node keeps no original: it commits to an object only when the clean frames of
all of it are in the cohort, and says so in its settings. Whatever else is asked for has failed: still waiting, in quarantine, or never seen.

A request names an object by its UID alone. So while anything waits or is in quarantine that came under a UID, nothing is committed under it: it
may be what the sender speaks of.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pydicom import Dataset
from pynetdicom import build_context, build_role, evt
from pynetdicom.association import Association

from busgen_client.cohort import CohortStore
from busgen_client.intake.entity import COMMITMENT, COMMITMENT_INSTANCE, PLAIN, associated
from busgen_client.intake.header import SOP_CLASSES, quietly
from busgen_client.intake.spool import Spool
from busgen_client.pacs import PacsSettings, PeerSettings
from busgen_core.errors import BusgenError, UnavailableError

log = logging.getLogger("busgen.commitment")

MOST_PENDING = 64  # requests
PATIENCE_SECONDS = 120.0  # that an answer may wait for intake to look at the objects
ATTEMPTS = 5  # to deliver an answer
PAUSE_SECONDS = 5.0  # before the second of them; then twice, three times as long

# PS3.7 annex C; PS3.3 C.14.1.1 for the reasons.
SUCCESS, INVALID_ARGUMENT, NO_SUCH_ACTION, RESOURCE_LIMITATION = 0x0000, 0x0115, 0x0123, 0x0213
PROCESSING_FAILURE, NO_SUCH_OBJECT, CLASS_CONFLICT = 0x0110, 0x0112, 0x0119
REQUEST = 1  # action type, PS3.4 J.3.2
ALL_COMMITTED, SOME_FAILED = 1, 2  # event types, PS3.4 J.3.3


@dataclass(slots=True)
class _Request:
    """One request that waits for its answer; items are SOP class and SOP instance."""

    peer: PeerSettings
    transaction: str = field(repr=False)
    items: list[tuple[str, str]] = field(repr=False)
    asked: float = field(default_factory=time.monotonic)
    due: float = 0.0
    attempts: int = 0


class Commitments:
    """Requests that wait, and their answers: ``ask`` is called by the network's threads, ``answer`` by one of our own."""

    def __init__(self, settings: PacsSettings, store: CohortStore, spool: Spool) -> None:
        self._settings, self._store, self._spool = settings, store, spool
        self._pending: dict[str, _Request] = {}
        self._lock = threading.Lock()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Answer, in a thread of its own, until the block ends."""
        stop = threading.Event()

        def run() -> None:
            while not stop.wait(1.0):
                self.answer()

        thread = threading.Thread(target=run, name="commitments", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def ask(self, event: evt.Event) -> tuple[int, None]:
        """Take a request (N-ACTION) on; its answer follows over an association of our own."""
        if event.action_type != REQUEST:
            return NO_SUCH_ACTION, None
        try:
            with quietly():
                request = self._read(event)
        except Exception:  # malformed; its text may quote the request
            return INVALID_ARGUMENT, None
        with self._lock:
            if len(self._pending) >= MOST_PENDING:
                return RESOURCE_LIMITATION, None
            self._pending[request.transaction] = request
        return SUCCESS, None

    def _read(self, event: evt.Event) -> _Request:
        title = event.assoc.requestor.ae_title.strip()
        peer = next(peer for peer in self._settings.peers.values() if peer.ae_title == title)
        wanted = event.action_information
        items = [(str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID)) for item in wanted.ReferencedSOPSequence]
        return _Request(peer, str(wanted.TransactionUID), items)

    def answer(self) -> None:
        """Answer what intake has looked at, and what has waited too long for it."""
        with self._lock:
            pending = list(self._pending.values())
        for request in pending:
            if time.monotonic() >= request.due and self._done(request):
                with self._lock:
                    self._pending.pop(request.transaction, None)

    def _done(self, request: _Request) -> bool:
        """Answer one request; true if it was answered, or tried ``ATTEMPTS`` times. What goes wrong with one delays no other."""
        try:
            if self._too_early(request):
                return False
            self._report(request)
        except Exception as error:  # the store, the peer, or the library, whose texts may quote the request
            request.attempts += 1
            code = error.code if isinstance(error, BusgenError) else "internal-error"
            log.warning("commitment.not_delivered code=%s attempt=%d", code, request.attempts)
            request.due = time.monotonic() + PAUSE_SECONDS * request.attempts
            return request.attempts >= ATTEMPTS
        return True

    def _too_early(self, request: _Request) -> bool:
        if time.monotonic() - request.asked > PATIENCE_SECONDS:
            return False
        uids = {uid for _, uid in request.items}
        return len(self._spool.absent(uids, held=False)) < len(uids)

    def _report(self, request: _Request) -> None:
        unsettled = self._spool.unsettled(uid for _, uid in request.items)
        items = [_item(kind, uid, PROCESSING_FAILURE if uid in unsettled else self._reason(kind, uid)) for kind, uid in request.items]
        good = [item for item in items if "FailureReason" not in item]
        bad = [item for item in items if "FailureReason" in item]
        report = Dataset()
        report.TransactionUID = request.transaction
        if good:
            report.ReferencedSOPSequence = good
        if bad:
            report.FailedSOPSequence = bad
        kind = SOME_FAILED if bad else ALL_COMMITTED
        contexts = [build_context(COMMITMENT, list(PLAIN))]
        with quietly(), associated(self._settings, request.peer, contexts, roles=[build_role(COMMITMENT, scp_role=True)]) as line:
            _deliver(line, report, kind)
        log.info("commitment.answered committed=%d failed=%d", len(good), len(bad))

    def _reason(self, kind: str, uid: str) -> int | None:
        """Why an object under whose UID nothing waits is not committed; None if it is."""
        names = self._store.pseudonyms
        row = self._store.taken(names.object_key(uid))
        if row is None:
            return PROCESSING_FAILURE if self._spool.has(uid) else NO_SUCH_OBJECT
        same = names.class_key(kind) == row.class_key if row.class_key else kind in SOP_CLASSES
        return None if same else CLASS_CONFLICT


def _deliver(line: Association, report: Dataset, kind: int) -> None:
    """Send a report.

    Raises:
        UnavailableError: the peer broke off, or does not say that it has taken the report.
    """
    status, _ = line.send_n_event_report(report, kind, COMMITMENT, COMMITMENT_INSTANCE)
    if status.get("Status") != SUCCESS:
        raise UnavailableError("a peer did not take a report of storage commitment")


def _item(sop_class: str, uid: str, reason: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
    if reason is not None:
        item.FailureReason = reason
    return item
