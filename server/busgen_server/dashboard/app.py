"""The FastAPI application: routes, security headers, and every error as an RFC 9457 problem."""

import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException

from busgen_core.errors import BusgenError, ConfigError, InputError, StateError, UnavailableError
from busgen_core.repository import IMAGE_PX
from busgen_server.dashboard.release import ReleasePage, release_page
from busgen_server.dashboard.samples import audit_report, image, sample
from busgen_server.dashboard.state import HubState, hub_state
from busgen_server.dashboard.words import FILTERS
from busgen_server.database import open_store
from busgen_server.settings import HubSettings
from busgen_server.store import HubStore

STATUS: dict[type[BusgenError], int] = {StateError: 404, InputError: 422, ConfigError: 500, UnavailableError: 503}
TEMPLATES = Path(__file__).parent / "templates"
REFRESH_SECONDS = 5

HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]\s]+)(?::\d{1,5})?")  # RFC 9110, section 7.2

# Nothing is loaded from elsewhere; scripts and styles only with this answer's nonce; no frames, forms or base.
PAGE_POLICY = "default-src 'none'; img-src 'self' data:; connect-src 'self'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
EVERYWHERE = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
# A report comes from a hospital: it may style itself and show its own pictures, and run nothing.
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; "
BARE_POLICY = "default-src 'none'; sandbox; "
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def create_app(settings: HubSettings) -> FastAPI:
    """The dashboard of the hub whose data lie in ``settings.data``."""
    store = HubStore(open_store(settings.data))
    pages = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters.update(FILTERS)
    app = FastAPI(title="BUSGen hub", docs_url=None, redoc_url=None, openapi_url=None)
    _add_guards(app, settings)

    def state() -> HubState:
        return hub_state(store, settings.data)

    def release(release_id: str) -> ReleasePage:
        return release_page(store, settings.data, release_id)

    State = Annotated[HubState, Depends(state)]  # noqa: N806  (a type)
    Release = Annotated[ReleasePage, Depends(release)]  # noqa: N806

    def answer(template: str, **content: object) -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        body = pages.get_template(template).render(content, nonce=nonce, refresh=REFRESH_SECONDS, px=IMAGE_PX)
        return HTMLResponse(body, headers={"Content-Security-Policy": PAGE_POLICY.format(nonce=nonce) + EVERYWHERE})

    @app.get("/", response_class=HTMLResponse)
    def read_page(state: State) -> HTMLResponse:
        """Everything on one page."""
        return answer("hub.html", state=state)

    @app.get("/api/state")
    def read_state(state: State) -> HubState:
        """The same for programs."""
        return state

    @app.get("/releases/{release_id}", response_class=HTMLResponse)
    def read_release(release: Release) -> HTMLResponse:
        """One release and what the hub found in it."""
        return answer("release.html", page=release)

    @app.get("/api/releases/{release_id}")
    def read_release_state(release: Release) -> ReleasePage:
        """The same for programs."""
        return release

    @app.get("/releases/{release_id}/samples/{number}.png")
    def read_sample(release_id: str, number: int) -> Response:
        """One of a release's sample images."""
        png = sample(store, settings.data, release_id, number)
        return Response(png, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    @app.get("/releases/{release_id}/images/{number}.png")
    def read_image(release_id: str, number: int) -> Response:
        """Any one image of a release."""
        png = image(store, settings.data, release_id, number)
        return Response(png, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    @app.get("/releases/{release_id}/audit.html")
    def read_audit(release_id: str) -> Response:
        """The hospital's audit report, as signed."""
        return HTMLResponse(audit_report(store, settings.data, release_id), headers={"Content-Security-Policy": REPORT_POLICY + EVERYWHERE})

    return app


def _add_guards(app: FastAPI, settings: HubSettings) -> None:
    """Headers on every answer, known host names only (against DNS rebinding), errors as problems."""
    hosts = {settings.dashboard_host, "localhost", "127.0.0.1", "[::1]", *settings.certificate_names}

    @app.middleware("http")
    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        if _host(request) in hosts:
            response = await answer(request)
        else:
            response = problem(400, "host-unknown", "this dashboard is not served under that name; add it to certificate_names")
        response.headers.setdefault("Content-Security-Policy", BARE_POLICY + EVERYWHERE)
        for header, value in HEADERS.items():
            response.headers.setdefault(header, value)
        return response

    @app.exception_handler(BusgenError)
    async def ours(_request: Request, error: BusgenError) -> Response:
        status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
        return problem(status, error.code, str(error))

    @app.exception_handler(HTTPException)
    async def http(_request: Request, error: HTTPException) -> Response:
        return problem(error.status_code, f"http-{error.status_code}", str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, _error: RequestValidationError) -> Response:
        return problem(422, "request-invalid", "a part of the address is not what it should be")

    @app.exception_handler(Exception)
    async def unexpected(_request: Request, _error: Exception) -> Response:
        return problem(500, "internal", "an unexpected error; it is in the hub's log")


def _host(request: Request) -> str:
    found = HOST.fullmatch(request.headers.get("host", ""))
    return found[1] if found else ""


def problem(status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An RFC 9457 problem."""
    body = {"type": f"/problems/{code}", "code": code, "status": status, "detail": detail}
    return JSONResponse(body, status, dict(headers or {}), media_type="application/problem+json")
