"""The hub's one public port: a TLS proxy that passes Flower's Fleet API to the SuperLink, and nothing else of it.

The SuperLink's Control API has no authentication of its own: whoever reaches it can register nodes and start runs.
So the SuperLink listens on loopback, and this gateway stands before it. It is an allow-list, on the bytes of the
request line: ``POST /v1/fleet/<operation>`` where the operation is lower-case letters and single hyphens. Every
SuperNode call of Flower 1.41 has that form (flwr/supernode/fleet_http_client.py); dots, slashes, percent signs,
absolute targets and queries have no place in it. The upstream URL is built anew from what matched.
"""

import os
import re
import ssl
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import httpx
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from busgen_server.pki import KeyPair, issue_server_certificate
from busgen_server.settings import CONFIG_VARIABLE, HubSettings, load_settings

FLEET = re.compile(rb"/v1/fleet/[a-z]+(?:-[a-z]+)*")
BODY_LIMIT = 64 * 2**20  # bytes of one request; Flower sends arrays in pieces of 5 MiB
CONNECTIONS = 2000
# RFC 9110, section 7.6.1, and the headers that the gateway writes itself.
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade".split()
    + b"expect host date server".split()
)
IDLE_SECONDS = 2.0  # below the 5 s after which the SuperLink's uvicorn closes an idle connection, so none is used half-closed
TIMEOUT = httpx.Timeout(60, connect=5)


class Gateway:
    """ASGI application: answers 403 to everything but the Fleet API, 503 while the SuperLink is not there."""

    def __init__(self, *, upstream: str, ca_file: Path) -> None:
        """Pass requests to ``upstream`` (https://127.0.0.1:PORT), whose certificate must be of the authority ``ca_file``."""
        self._upstream = upstream
        self._ca_file = ca_file
        self._client: httpx.AsyncClient | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            response = await self._answer(Request(scope, receive))
            if response is not None:
                await response(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        trusting = ssl.create_default_context(cafile=str(self._ca_file))
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=50, keepalive_expiry=IDLE_SECONDS)
        async with httpx.AsyncClient(verify=trusting, timeout=TIMEOUT, limits=limits, trust_env=False) as client:
            client.headers.clear()  # a node's headers go through as they are, none is added
            self._client = client
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, request: Request) -> Response | None:
        path: bytes = request.scope["raw_path"]
        if request.method != "POST" or not FLEET.fullmatch(path) or request.scope["query_string"]:
            return _problem(403, "control-api-refused", "this port serves nodes only; Flower's other interfaces are not reachable here")
        if {"transfer-encoding", "content-length"} <= set(request.headers):  # request smuggling: RFC 9112, section 6.1
            return _problem(400, "request-ambiguous", "a request states its length once")
        if _announced(request) > BODY_LIMIT:
            return _too_large()
        assert self._client is not None  # the lifespan has begun
        outgoing = self._client.build_request(
            "POST", self._upstream + path.decode("ascii"), headers=_forwarded(request.headers.raw), content=_limited(request)
        )
        try:
            reply = await self._client.send(outgoing, stream=True)
        except _BodyTooLargeError:
            return _too_large()
        except ClientDisconnect:
            return None
        except httpx.TransportError:
            return _problem(503, "hub-starting", "the hub is starting or restarting; try again in a few seconds", {"Retry-After": "5"})
        return _passed_on(reply)


class _BodyTooLargeError(Exception):
    """The body is larger than BODY_LIMIT; nothing more of it is read."""


def serve(settings: HubSettings, server: KeyPair, ca_file: Path) -> None:
    """Serve the public port until a signal ends the process."""
    uvicorn.Server(server_config(settings, server, ca_file)).run()


def server_config(settings: HubSettings, server: KeyPair, ca_file: Path) -> uvicorn.Config:
    """How uvicorn runs the gateway: TLS, asyncio, the strict h11 parser, no websockets, no access log, no banner."""
    return uvicorn.Config(
        Gateway(upstream=f"https://127.0.0.1:{settings.superlink_port}", ca_file=ca_file),
        host=settings.public_host,
        port=settings.public_port,
        ssl_certfile=server.certificate,
        ssl_keyfile=server.key,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="on",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=5,
        log_level="warning",
    )


def _announced(request: Request) -> int:
    length = request.headers.get("content-length", "0")
    return int(length) if length.isdecimal() else 0


async def _limited(request: Request) -> AsyncIterator[bytes]:
    seen = 0
    async for piece in request.stream():
        seen += len(piece)
        if seen > BODY_LIMIT:
            raise _BodyTooLargeError
        yield piece


def _forwarded(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """End-to-end headers only: neither the fixed hop-by-hop ones nor those that Connection names."""
    every = [(name.lower(), value) for name, value in headers]
    named = {token.strip().lower() for name, value in every if name == b"connection" for token in value.split(b",")}
    return [(name, value) for name, value in every if name not in HOP_BY_HOP and name not in named]


def _passed_on(reply: httpx.Response) -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        try:
            async for piece in reply.aiter_raw():
                yield piece
        finally:
            await reply.aclose()

    response = StreamingResponse(body(), reply.status_code)
    response.raw_headers = _forwarded(reply.headers.raw)
    return response


def _too_large() -> Response:
    return _problem(413, "body-too-large", f"a request may have {BODY_LIMIT} bytes; send smaller pieces")


def _problem(status: int, code: str, detail: str, headers: dict[str, str] | None = None) -> Response:
    """An RFC 9457 problem."""
    body = {"type": f"/problems/{code}", "code": code, "status": status, "detail": detail}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def main() -> None:
    """``python -m busgen_server.gateway``; the configuration's path is in the environment."""
    settings = load_settings(Path(os.environ[CONFIG_VARIABLE]))
    pki = settings.data / "pki"
    serve(settings, issue_server_certificate(pki, [settings.public_host, *settings.certificate_names]), pki / "ca.crt")


if __name__ == "__main__":
    main()
