"""A TLS relay that writes down every byte that a node sends to the hub, in the clear."""

import asyncio
import contextlib
import ssl
import threading
from pathlib import Path


class Recorder:
    """Stands between a node and the hub's public port with the hub's own certificate; used by tests alone."""

    def __init__(self, *, port: int, hub_port: int, pki: Path) -> None:
        self.sent = bytearray()  # everything from node to hub, all connections in turn
        self._streams: set[asyncio.StreamWriter] = set()
        self._port, self._hub_port = port, hub_port
        self._server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server_tls.load_cert_chain(pki / "server.crt", pki / "server.key")
        self._client_tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "Recorder":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(20)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", self._port, ssl=self._server_tls)

    async def _close(self) -> None:
        self._server.close()
        for stream in self._streams:
            stream.transport.abort()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.2)  # so that aborted transports are closed before their loop is

    async def _relay(self, node_in: asyncio.StreamReader, node_out: asyncio.StreamWriter) -> None:
        streams = {node_out}
        self._streams |= streams
        with contextlib.suppress(OSError, asyncio.CancelledError):
            hub_in, hub_out = await asyncio.open_connection("127.0.0.1", self._hub_port, ssl=self._client_tls, server_hostname="127.0.0.1")
            streams.add(hub_out)
            self._streams.add(hub_out)
            await asyncio.gather(self._copy(node_in, hub_out, keep=True), self._copy(hub_in, node_out, keep=False))
        for stream in streams:
            stream.close()
            with contextlib.suppress(OSError, asyncio.CancelledError, TimeoutError):
                await asyncio.wait_for(stream.wait_closed(), 2)
            stream.transport.abort()
        self._streams -= streams

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, keep: bool) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while data := await source.read(65536):
                if keep:
                    self.sent += data
                sink.write(data)
                await sink.drain()
        with contextlib.suppress(OSError, RuntimeError):
            sink.close()
