"""The C-STORE receiver (PS3.4 annex B): objects come in, go to the spool, and from there into the cohort.

Guarantees:
    - "Stored" is answered only for an object that is whole on this node's disk (``spool``).
    - Only peers of the settings are heard: by address before a byte of theirs is parsed, by title and address together before they may send.
    - Associations, half-open connections, waiting objects, those that are coming in, and disk are limited; what is over a limit is refused, and
      the receiver stays up.
"""

import fcntl
import ipaddress
import logging
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socketserver import BaseServer

from pynetdicom import build_context, evt
from pynetdicom.transport import ThreadedAssociationServer
from tqdm import tqdm

from busgen_client.cohort import CohortStore
from busgen_client.intake.commitment import Commitments
from busgen_client.intake.entity import (
    AT_ONCE,
    COMMITMENT,
    CONNECT_SECONDS,
    PLAIN,
    SILENCE_SECONDS,
    VERIFICATION,
    entity,
    server_tls,
    storage_contexts,
)
from busgen_client.intake.findings import IntakeResult
from busgen_client.intake.incoming import SUCCESS, incoming
from busgen_client.intake.labels import CurrentLabels
from busgen_client.intake.run import combined, take_in
from busgen_client.intake.spool import Spool
from busgen_client.pacs import PacsSettings
from busgen_core.errors import BusgenError, ConfigError, StateError, UnavailableError

log = logging.getLogger("busgen.receiver")

BATCH_SECONDS = 2.0  # between two looks at the spool

# PS3.8 table 9-21: result, source, reason.
UNKNOWN_CALLER, CONGESTED = (0x01, 0x01, 0x03), (0x02, 0x03, 0x01)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def receive(store: CohortStore, data: Path, settings: PacsSettings, *, progress: bool, stop: threading.Event) -> IntakeResult:
    """Receive until ``stop`` is set, and take in what arrives, every ``BATCH_SECONDS``.

    While another intake runs, or the label file cannot be read, arrivals wait in the spool.

    Raises:
        ConfigError: no peer may send, or a certificate cannot be read.
        StateError: another receiver runs on this node.
        UnavailableError: the port cannot be listened on.
    """
    spool = Spool(store, data, most_bytes=settings.spool_gib * 2**30, free_bytes=settings.free_gib * 2**30)
    commitments = Commitments(settings, store, spool)
    total, labels = IntakeResult(), CurrentLabels(settings.labels, store.mapping)
    with receiving(settings, data, spool, commitments), commitments.answering(), tqdm(desc="received", unit="object", disable=not progress) as bar:
        while True:
            last = stop.wait(BATCH_SECONDS)
            done = _drain(store, spool, labels)
            bar.update(done.added + done.duplicates + done.quarantined)
            total = combined([total, done])
            spool.sweep()
            if last:
                return total


def _drain(store: CohortStore, spool: Spool, labels: CurrentLabels) -> IntakeResult:
    """Take in what waits; what cannot be done now is done later."""
    if not spool.due():
        return IntakeResult()
    try:
        known = labels.now()
        return take_in(store, spool.sources(known), total=None, event="intake.receive", progress=False, unread=known.unread)
    except BusgenError as error:
        log.warning("receiver.intake_waits code=%s", error.code)
        return IntakeResult()


@contextmanager
def receiving(settings: PacsSettings, data: Path, spool: Spool, commitments: Commitments | None = None) -> Iterator[None]:
    """Listen, in threads of its own, until the block ends; associations that are open then are aborted, and their senders try again.

    Raises:
        ConfigError: no peer may send, or a certificate cannot be read.
        StateError: another receiver runs on this node.
        UnavailableError: the port cannot be listened on.
    """
    with ExitStack() as stack:
        stack.enter_context(_alone(data))
        stack.enter_context(spool.receiving())
        server = _server(settings, spool, commitments)
        stack.callback(server.stop)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="receiver", daemon=True).start()
        log.info("receiver.listens port=%d peers=%d tls=%s", settings.port, len(server.peers), server.ssl_context is not None)
        yield


@contextmanager
def _alone(data: Path) -> Iterator[None]:
    with (data / "receiver.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError("another receiver is running on this node") from None
        yield


def _server(settings: PacsSettings, spool: Spool, commitments: Commitments | None) -> "_Server":
    peers = [(peer.ae_title, addresses(peer.host)) for peer in settings.peers.values() if peer.sends]
    if not peers:
        raise ConfigError("no peer may send to this node; name one under [pacs.peers] in node.toml")
    ours = entity(settings)
    ours.supported_contexts = [*storage_contexts(), build_context(VERIFICATION, list(PLAIN))]
    handlers: list[evt.EventHandlerType] = [
        *AT_ONCE,
        (evt.EVT_REQUESTED, _judge, [peers, spool]),
        (evt.EVT_C_ECHO, lambda _event: SUCCESS),
        *incoming(spool),
    ]
    if commitments is not None and settings.commitment:
        ours.supported_contexts = [*ours.supported_contexts, build_context(COMMITMENT, list(PLAIN))]
        handlers.append((evt.EVT_N_ACTION, commitments.ask))
    tls = server_tls(settings)
    try:
        server = _Server(ours, (settings.address, settings.port), ours.ae_title, ours.supported_contexts, tls, handlers)
    except OSError as error:
        raise UnavailableError(f"{settings.address}:{settings.port} cannot be listened on ({error.strerror or type(error).__name__})") from None
    server.peers = frozenset(address for _, theirs in peers for address in theirs)
    return server


class _Server(ThreadedAssociationServer):
    """The library's server, made to outlive hostile and broken peers."""

    daemon_threads = True
    request_queue_size = 64
    peers: frozenset[Address] = frozenset()

    def verify_request(self, _request: object, client_address: tuple[str, int]) -> bool:
        """Drop strangers, and connections beyond twice the limit of associations; up to that, a refusal is sent."""
        return _plain(client_address[0]) in self.peers and len(self.active_associations) < 2 * self.ae.maximum_associations

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept without waiting for a TLS handshake, which would keep all others waiting."""
        assert self.socket is not None
        client, address = self.socket.accept()
        client.settimeout(SILENCE_SECONDS)  # else a peer that stops within a unit holds its thread for ever
        if self.ssl_context:
            client = self.ssl_context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        return client, address

    def process_request_thread(self, request: socket.socket | tuple[bytes, socket.socket], client_address: tuple[str, int] | str) -> None:
        """Shake hands, then serve."""
        if isinstance(request, ssl.SSLSocket):
            try:
                request.settimeout(CONNECT_SECONDS)
                request.do_handshake()
                request.settimeout(SILENCE_SECONDS)
            except OSError:
                self.shutdown_request(request)
                return
        super().process_request_thread(request, client_address)

    def handle_error(self, _request: object, _client_address: object) -> None:
        """Say nothing of the peer."""
        log.warning("receiver.connection_failed")

    def stop(self) -> None:
        """End listening, and abort what is open."""
        BaseServer.shutdown(self)
        self.server_close()
        for association in self.active_associations:
            association.abort()


def addresses(host: str) -> frozenset[Address]:
    """All addresses of a host, looked up once; none if its name is unknown, so that it is refused."""
    try:
        return frozenset(_plain(str(entry[4][0])) for entry in socket.getaddrinfo(host, None))
    except OSError:
        log.warning("receiver.peer_unknown")
        return frozenset()


def _plain(text: str) -> Address:
    address = ipaddress.ip_address(text.partition("%")[0])
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def _judge(event: evt.Event, peers: Iterable[tuple[str, frozenset[Address]]], spool: Spool) -> None:
    """Refuse an association from a title that is not at this address, and any while the spool is full."""
    requestor = event.assoc.requestor
    asked = requestor.primitive.calling_ae_title.strip() if requestor.primitive else ""
    known = any(asked == title and _plain(requestor.address) in theirs for title, theirs in peers)
    if not known or spool.full:
        log.warning("receiver.refused why=%s", "full" if known else "unknown")
        event.assoc.acse.send_reject(*(CONGESTED if known else UNKNOWN_CALLER))
        event.assoc.kill()
