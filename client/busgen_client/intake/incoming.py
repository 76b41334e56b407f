"""Objects on their way in over an association, from the first of their bytes to the spool: pushed to us, or sent because we asked.

Guarantees:
    - An object for which there is no room takes none: once it is larger than any that is taken in, or the spool or the disk is full, what
      came of it is deleted and what still comes is read and dropped; its sender is told when it ends.
    - An association that breaks, and one on which the disk or the library fails, leaves no file.
"""

import logging
import os
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import IO

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA

from busgen_client.intake.spool import Spool
from busgen_core.errors import InputError, StorageFullError

log = logging.getLogger("busgen.receiver")

MOST_IN_MEMORY = 2**24  # bytes of a message that is no object, such as a request for commitment

# PS3.4 table B.2-1 and PS3.7 annex C.
SUCCESS, OUT_OF_RESOURCES, PROCESSING_FAILURE, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0x0110, 0xC000


def incoming(spool: Spool) -> list[evt.EventHandlerType]:
    """What an association does with objects that it is sent."""
    return [(evt.EVT_CONN_OPEN, _bound, [spool]), (evt.EVT_C_STORE, store_object, [spool]), (evt.EVT_CONN_CLOSE, _drop_torn)]


class _Incoming(DIMSEServiceProvider):
    """The library's reader of messages, kept within the spool's limits. It writes an object to a file as it comes."""

    def __init__(self, association: Association, spool: Spool) -> None:
        super().__init__(association)
        self._spool = spool

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take a part of a message; called by a thread of the library that an exception would end, with a traceback and a torn file left."""
        try:
            super().receive_primitive(primitive)
            self._keep_within_limits()
        except Exception:  # the disk is full, or the message is none
            log.warning("receiver.broken_off")
            self.drop()
            self.assoc.abort(block=False)

    def _keep_within_limits(self) -> None:
        if (file := self._file()) is None:
            if self.message is not None and _length(self.message.encoded_command_set) + _length(self.message.data_set) > MOST_IN_MEMORY:
                raise InputError("a message is larger than any that is answered")
            return
        if (refused := os.fstat(file.fileno()).st_nlink == 0) or self._spool.outgrown(file.tell()):
            if not refused:
                log.warning("receiver.no_room")
            Path(file.name).unlink(missing_ok=True)
            file.seek(0)
            file.truncate()

    def drop(self) -> None:
        """Delete what came of an object."""
        if (file := self._file()) is not None:
            with suppress(OSError):  # it tries to write what it could not write before
                file.close()
            Path(file.name).unlink(missing_ok=True)
        self.message = None

    def _file(self) -> IO[bytes] | None:
        """Where the object is written that is coming in; the library has no public name for it."""
        return getattr(self.message, "_data_set_file", None)


def _length(stream: BytesIO | None) -> int:
    return stream.tell() if stream else 0


def _bound(event: evt.Event, spool: Spool) -> None:
    event.assoc.dimse = _Incoming(event.assoc, spool)


def _drop_torn(event: evt.Event) -> None:
    if isinstance(event.assoc.dimse, _Incoming):
        event.assoc.dimse.drop()


def store_object(event: evt.Event, spool: Spool) -> int:
    """Answer one C-STORE; the status is sent when this returns."""
    try:
        if not isinstance(event.request, C_STORE) or event.dataset_path is None:
            return CANNOT_UNDERSTAND
        if not event.dataset_path.exists():  # there was no room
            return OUT_OF_RESOURCES
        spool.admit(event.dataset_path, str(event.request.AffectedSOPInstanceUID))
    except StorageFullError:
        return OUT_OF_RESOURCES
    except Exception:  # the library would log it with the object's identifiers
        log.warning("receiver.not_stored")
        return PROCESSING_FAILURE
    return SUCCESS
