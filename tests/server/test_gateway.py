"""The public port, with a real TLS upstream on loopback in the SuperLink's place."""

import hashlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import busgen_server.gateway
from busgen_server.gateway import server_config
from busgen_server.pki import KeyPair, issue_server_certificate
from busgen_server.settings import HubSettings

PULL = "/v1/fleet/pull-messages"


class Hub(NamedTuple):
    """A running gateway: its settings, what reached the SuperLink's place, and a client that trusts the authority."""

    settings: HubSettings
    seen: list[tuple[str, str, dict[str, str]]]
    client: httpx.Client
    ca: Path
    server: KeyPair

    def raw(self, request_line: str, *, headers: str = "Host: hub\r\nContent-Length: 0\r\nConnection: close\r\n") -> int:
        """Status of a request whose bytes no client library has tidied up."""
        context = ssl.create_default_context(cafile=str(self.ca))
        plain = socket.create_connection(("127.0.0.1", self.settings.public_port), timeout=10)
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as stream:
            stream.sendall(f"{request_line}\r\n{headers}\r\n".encode("latin-1"))
            return int(stream.recv(65536).split(b" ")[1])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(config: uvicorn.Config) -> Iterator[None]:
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    assert server.started
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10)


def superlink(settings: HubSettings, server: KeyPair, seen: list[tuple[str, str, dict[str, str]]]) -> uvicorn.Config:
    """Something in the SuperLink's place that answers on every path, the control API's too."""

    async def answer(request: Request) -> Response:
        body = await request.body()
        seen.append((request.method, request.url.path, dict(request.headers)))
        if request.url.path.endswith("/push-object"):
            return Response(body[::-1], 201, headers={"X-Flower": "yes", "Connection": "X-Secret", "X-Secret": "1"})
        return JSONResponse({"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)})

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST", "PUT"])])
    return uvicorn.Config(
        app,
        host="127.0.0.1",
        port=settings.superlink_port,
        ssl_certfile=server.certificate,
        ssl_keyfile=server.key,
        ws="none",
        loop="asyncio",
        log_level="critical",
        timeout_graceful_shutdown=1,
    )


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    server = issue_server_certificate(folder / "pki", ["localhost"])
    settings = HubSettings(data=folder, public_port=free_port(), superlink_port=free_port())
    seen: list[tuple[str, str, dict[str, str]]] = []
    ca = folder / "pki" / "ca.crt"
    with (
        serving(superlink(settings, server, seen)),
        serving(server_config(settings, server, ca)),
        httpx.Client(base_url=f"https://127.0.0.1:{settings.public_port}", verify=ssl.create_default_context(cafile=str(ca)), timeout=20) as client,
    ):
        yield Hub(settings, seen, client, ca, server)


def test_node_calls_pass_with_body_and_headers(hub: Hub) -> None:
    """A Fleet call reaches the SuperLink byte for byte, headers of Flower included, and its answer comes back."""
    body = bytes(range(256)) * 40_000  # 10 MB
    reply = hub.client.post(PULL, content=body, headers={"content-type": "application/x-protobuf", "flwr-signature-bin": "abc"})
    assert reply.json() == {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}
    method, path, headers = hub.seen[-1]
    assert (method, path) == ("POST", PULL)
    assert headers["flwr-signature-bin"] == "abc"
    assert headers["content-type"] == "application/x-protobuf"


def test_chunked_body_and_other_status_pass(hub: Hub) -> None:
    """A body of unknown length streams through; status and end-to-end headers of the answer are kept."""
    reply = hub.client.post("/v1/fleet/push-object", content=iter([b"ab", b"cd"]))
    assert (reply.status_code, reply.content, reply.headers["x-flower"]) == (201, b"dcba", "yes")


def test_hop_by_hop_headers_end_at_the_gateway(hub: Hub) -> None:
    """Neither fixed hop-by-hop headers nor those that Connection names cross, in either direction."""
    reply = hub.client.post(
        "/v1/fleet/push-object", content=b"x", headers={"Connection": "close, X-Hop", "X-Hop": "1", "TE": "trailers", "Proxy-Authorization": "x"}
    )
    assert not {"x-hop", "te", "proxy-authorization"} & hub.seen[-1][2].keys()
    assert "x-secret" not in reply.headers


CONTROL = "/v1/control/start-run"
TRICKS = {
    "control": f"POST {CONTROL} HTTP/1.1",
    "control, GET": f"GET {CONTROL} HTTP/1.1",
    "runtime": "POST /v1/runtime/pull-messages HTTP/1.1",
    "documentation": "GET /docs HTTP/1.1",
    "health": "GET /health HTTP/1.1",
    "root": "GET / HTTP/1.1",
    "dots": "POST /v1/fleet/../control/start-run HTTP/1.1",
    "dots at the end": "POST /v1/fleet/.. HTTP/1.1",
    "encoded dots": "POST /v1/fleet/%2e%2e/control/start-run HTTP/1.1",
    "encoded dots, capitals": "POST /v1/fleet/%2E%2E/control/start-run HTTP/1.1",
    "half encoded dots": "POST /v1/fleet/.%2e/control/start-run HTTP/1.1",
    "encoded slash": "POST /v1/fleet/..%2fcontrol%2fstart-run HTTP/1.1",
    "encoded backslash": "POST /v1/fleet/..%5ccontrol HTTP/1.1",
    "backslash": "POST /v1/fleet/..\\control\\start-run HTTP/1.1",
    "encoded twice": "POST /v1/fleet/%252e%252e/control/start-run HTTP/1.1",
    "double slash": f"POST //v1/fleet/pull-messages{CONTROL} HTTP/1.1",
    "slashes inside": "POST /v1/fleet//pull-messages HTTP/1.1",
    "encoded letter": "POST /v1/%66leet/pull-messages HTTP/1.1",
    "capitals": "POST /V1/FLEET/pull-messages HTTP/1.1",
    "subfolder": "POST /v1/fleet/pull-messages/x HTTP/1.1",
    "only the prefix": "POST /v1/fleet/ HTTP/1.1",
    "parameters": "POST /v1/fleet/pull-messages;/../control HTTP/1.1",
    "null byte": "POST /v1/fleet/pull-messages%00 HTTP/1.1",
    "line break": "POST /v1/fleet/pull-messages%0d%0aX:%20y HTTP/1.1",
    "query": "POST /v1/fleet/pull-messages?x=/v1/control HTTP/1.1",
    "fragment": "POST /v1/fleet/pull-messages#/v1/control HTTP/1.1",
    "absolute target": "POST https://127.0.0.1/v1/fleet/pull-messages HTTP/1.1",
    "absolute control": f"POST https://127.0.0.1{CONTROL} HTTP/1.1",
    "tunnel": "CONNECT 127.0.0.1:9092 HTTP/1.1",
    "star": "OPTIONS * HTTP/1.1",
    "another method": f"PUT {PULL} HTTP/1.1",
    "get": f"GET {PULL} HTTP/1.1",
}


@pytest.mark.parametrize("request_line", TRICKS.values(), ids=TRICKS)
def test_nothing_but_fleet_calls_gets_through(hub: Hub, request_line: str) -> None:
    """Every other path, spelled in every known way, is refused and the SuperLink never hears of it."""
    before = len(hub.seen)
    assert hub.raw(request_line) == 403
    assert len(hub.seen) == before


def test_raw_fleet_call_passes(hub: Hub) -> None:
    """The same bare socket gets through on a Fleet path: the tricks above are refused for their path alone."""
    before = len(hub.seen)
    assert hub.raw(f"POST {PULL} HTTP/1.1") == 200
    assert len(hub.seen) == before + 1


def test_smuggled_second_request_is_not_seen(hub: Hub) -> None:
    """Two lengths in one request (RFC 9112, 6.1) are refused before anything is passed on."""
    before = len(hub.seen)
    inner = f"0\r\n\r\nPOST {CONTROL} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    headers = f"Host: hub\r\nTransfer-Encoding: chunked\r\nContent-Length: {len(inner)}\r\n\r\n{inner}"
    assert hub.raw(f"POST {PULL} HTTP/1.1", headers=headers) == 400
    assert len(hub.seen) == before


def test_refusal_is_a_problem_with_a_stable_code(hub: Hub) -> None:
    """A refusal is RFC 9457 problem+json that names what happened, and says nothing of the software."""
    reply = hub.client.post(CONTROL)
    assert reply.headers["content-type"] == "application/problem+json"
    assert "server" not in reply.headers
    assert (reply.status_code, reply.json()["code"]) == (403, "control-api-refused")


def announced(size: int) -> Callable[[Hub], httpx.Response]:
    return lambda hub: hub.client.post(PULL, content=b"x" * size)


def streamed(size: int) -> Callable[[Hub], httpx.Response]:
    return lambda hub: hub.client.post(PULL, content=iter([b"x" * 1000] * (size // 1000)))


@pytest.mark.parametrize("send", [announced(200_000), streamed(200_000)], ids=["announced", "streamed"])
def test_too_large_body_is_refused(hub: Hub, send: Callable[[Hub], httpx.Response], monkeypatch: pytest.MonkeyPatch) -> None:
    """A body above the limit ends in 413, whether its length is told beforehand or not; the limit itself passes."""
    monkeypatch.setattr(busgen_server.gateway, "BODY_LIMIT", 150_000)
    reply = send(hub)
    assert (reply.status_code, reply.json()["code"]) == (413, "body-too-large")
    assert hub.client.post(PULL, content=b"x" * 150_000).json()["bytes"] == 150_000


def test_superlink_away_or_not_ours_is_said(hub: Hub, tmp_path: Path) -> None:
    """With no SuperLink, or one with another authority's certificate, nodes get 503 (which Flower retries), not a hang."""
    stranger = issue_server_certificate(tmp_path, ["localhost"])
    settings = hub.settings.model_copy(update={"public_port": free_port(), "superlink_port": free_port()})
    seen: list[tuple[str, str, dict[str, str]]] = []
    url = f"https://127.0.0.1:{settings.public_port}{PULL}"
    trust = ssl.create_default_context(cafile=str(hub.ca))
    with ExitStack() as gateway:
        gateway.enter_context(serving(server_config(settings, hub.server, hub.ca)))
        away = httpx.post(url, verify=trust)
        with serving(superlink(settings, stranger, seen)):
            foreign = httpx.post(url, verify=trust)
        with serving(superlink(settings, hub.server, seen)):
            back = httpx.post(url, verify=trust)
            gateway.close()  # before the SuperLink's place, which would wait for its idle connection
    assert [(r.status_code, json.loads(r.content).get("code")) for r in (away, foreign)] == [(503, "hub-starting")] * 2
    assert (back.status_code, len(seen)) == (200, 1)
