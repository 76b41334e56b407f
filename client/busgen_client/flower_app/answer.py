"""The ClientApp. Flower starts a process for every message, so nothing here imports torch or diffusers."""

import os
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from busgen_client.protocol import NodeProtocol
from busgen_client.settings import CONFIG_VARIABLE, load_settings
from busgen_core.errors import BusgenError
from busgen_core.wire import ErrorReply, Payload

app = ClientApp()


@app.query()  # type: ignore[untyped-decorator]
def answer(message: Message, _context: Context) -> Message:
    """Answer one message of the hub from the node's store."""
    try:
        protocol = NodeProtocol(load_settings(Path(os.environ[CONFIG_VARIABLE])))
        reply, data = protocol.respond(*decode(message.content))
    except BusgenError as error:
        reply, data = ErrorReply(code=error.code), b""
    except Exception:  # a traceback would travel to the hub inside Flower's error; a code does not
        reply, data = ErrorReply(code="node-internal"), b""
    return Message(encode(reply, data), reply_to=message)


def encode(payload: Payload, data: bytes) -> RecordDict:
    """A payload and its bytes as Flower records: JSON in a ConfigRecord, bytes as a chunked uint8 Array."""
    records = RecordDict({"payload": ConfigRecord({"json": payload.model_dump_json()})})
    if data:
        records["data"] = ArrayRecord({"bytes": Array(np.frombuffer(data, dtype=np.uint8))})
    return records


def decode(records: RecordDict) -> tuple[str, bytes]:
    """The JSON text and the bytes of a message."""
    text = records.config_records["payload"]["json"]
    data = records.array_records["data"]["bytes"].numpy().tobytes() if "data" in records.array_records else b""
    return str(text), data
