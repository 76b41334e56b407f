"""This node as a DICOM application entity: what it stores, how it is reached, and its silence. The door to pynetdicom, with its neighbours
``receiver``, ``commitment`` and ``dimse``.

Guarantees: pynetdicom logs nothing, since its lines quote identifiers; what it receives goes to the disk as it comes, not to memory.
"""

import logging
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from pynetdicom import AE, _config, build_context, evt, register_uid
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext
from pynetdicom.service_class import StorageServiceClass

from busgen_client.intake.header import SOP_CLASSES, TRANSFER_SYNTAXES
from busgen_client.pacs import PacsSettings, PeerSettings
from busgen_core.errors import ConfigError, UnavailableError

CONNECT_SECONDS = 15.0
SILENCE_SECONDS = 60.0  # on the network; the association is broken then
ANSWER_SECONDS = 300.0  # for one message; a PACS that fetches from tape says nothing for long
PDU_BYTES = 128 * 1024  # largest protocol data unit that we take; the library's 16 KiB cost time

# SOP classes, PS3.6 annex A.
VERIFICATION = "1.2.840.10008.1.1"
FIND, MOVE, GET = (f"1.2.840.10008.5.1.4.1.2.2.{number}" for number in (1, 2, 3))  # Study Root
COMMITMENT, COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"  # Push Model
PLAIN = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")  # little endian, explicit and implicit: for all that is no image

_config.LOG_HANDLER_LEVEL = "none"
_config.STORE_RECV_CHUNKED_DATASET = True
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)

register_uid("1.2.840.10008.5.1.4.1.1.6", "RetiredUltrasoundImageStorage", StorageServiceClass)
register_uid("1.2.840.10008.5.1.4.1.1.3", "RetiredUltrasoundMultiFrameImageStorage", StorageServiceClass)


def entity(settings: PacsSettings) -> AE:
    """An application entity with this node's title and limits, and no contexts yet."""
    ours = AE(settings.ae_title)
    ours.connection_timeout, ours.acse_timeout = CONNECT_SECONDS, CONNECT_SECONDS
    ours.network_timeout, ours.dimse_timeout = SILENCE_SECONDS, ANSWER_SECONDS
    ours.maximum_pdu_size, ours.maximum_associations = PDU_BYTES, settings.associations
    ours.require_called_aet = True
    return ours


def storage_contexts() -> list[PresentationContext]:
    """One context for each class that intake takes and each transfer syntax that it decodes, so that the sender need not convert."""
    return [build_context(uid, syntax) for uid in sorted(SOP_CLASSES) for syntax in sorted(TRANSFER_SYNTAXES)]


@contextmanager
def associated(
    settings: PacsSettings,
    peer: PeerSettings,
    contexts: Sequence[PresentationContext],
    *,
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Sequence[evt.EventHandlerType] = (),
) -> Iterator[Association]:
    """An association with a peer, released at the end, aborted at an error.

    Raises:
        UnavailableError: the peer cannot be reached, or refuses.
        ConfigError: a certificate of ours cannot be read.
    """
    tls = (client_tls(settings), peer.host) if peer.tls else None
    association = entity(settings).associate(
        peer.host,
        peer.port,
        list(contexts),
        peer.ae_title,
        PDU_BYTES,
        list(roles),
        tls_args=tls,
        evt_handlers=[*AT_ONCE, *handlers],
    )
    if not association.is_established:
        why = f"refuses associations with {settings.ae_title}" if association.is_rejected else "cannot be reached"
        raise UnavailableError(f"{peer.ae_title} at {peer.host}:{peer.port} {why}; check titles, address and port on both sides")
    try:
        yield association
    except BaseException:
        association.abort()
        raise
    if association.is_established:
        association.release()


def _at_once(event: evt.Event) -> None:
    """Send what there is, and acknowledge what comes. Messages are short writes in turn; each waits 40 ms for the other side otherwise."""
    if (line := event.assoc.dul.socket) is not None and line.socket is not None:
        with suppress(OSError):  # closed meanwhile
            line.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # Linux forgets it at the next write


AT_ONCE: tuple[evt.EventHandlerType, ...] = ((evt.EVT_CONN_OPEN, _at_once), (evt.EVT_DATA_SENT, _at_once))


def client_tls(settings: PacsSettings) -> ssl.SSLContext:
    """TLS towards a peer (PS3.15 annex B: 1.2 or newer, certificates checked); ours is shown if there is one.

    Raises:
        ConfigError: a file cannot be read.
    """
    return _tls(settings, ssl.Purpose.SERVER_AUTH)


def server_tls(settings: PacsSettings) -> ssl.SSLContext | None:
    """TLS for those who connect to us; None without a certificate. With an authority, peers must show a certificate of it.

    Raises:
        ConfigError: a file cannot be read.
    """
    if settings.certificate_file is None:
        return None
    context = _tls(settings, ssl.Purpose.CLIENT_AUTH)
    if settings.ca_file:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _tls(settings: PacsSettings, purpose: ssl.Purpose) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(purpose, cafile=settings.ca_file)
        if settings.certificate_file:
            context.load_cert_chain(settings.certificate_file, settings.key_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"pacs.certificate_file, pacs.key_file or pacs.ca_file cannot be used ({type(error).__name__})") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
