"""The FastAPI application: guards on every request, sign-in, and every error as a page or an RFC 9457 problem."""

import re
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, FastAPI, Form, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException

from busgen_client.cohort import CohortStore
from busgen_client.console import node_routes, quarantine_routes
from busgen_client.console.accounts import Accounts
from busgen_client.console.desk import Desk, Node, Person, SignInNeeded, cookie_name, page, posting, signed_in
from busgen_client.quarantine import Quarantine
from busgen_client.settings import NodeSettings
from busgen_core.errors import BusgenError, ConfigError, InputError, ReleaseRefusedError, StateError, UnavailableError

STATUS: dict[type[BusgenError], int] = {StateError: 409, ReleaseRefusedError: 409, InputError: 422, ConfigError: 500, UnavailableError: 503}
HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]\s]+)(?::\d{1,5})?")  # RFC 9110, section 7.2
READING = frozenset({"GET", "HEAD"})
LARGEST_FORM = 64 * 1024  # bytes
BARE_POLICY = "default-src 'none'; sandbox; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers send forms with Origin: null
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def create_app(settings: NodeSettings, store: CohortStore) -> FastAPI:
    """The console of the node whose cohort is ``store``.

    Raises:
        StorageKeyError: secrets of one-time codes are from before sealing was switched on, and the site's key is missing or another.
    """
    app = FastAPI(title="BUSGen node", docs_url=None, redoc_url=None, openapi_url=None)
    accounts = Accounts(store)
    accounts.secrets.seal()
    app.state.desk = Desk(settings=settings, store=store, quarantine=Quarantine(store), accounts=accounts)
    _add_guards(app)
    _add_sign_in(app)
    app.include_router(node_routes.router)
    app.include_router(quarantine_routes.router)
    return app


def _add_sign_in(app: FastAPI) -> None:
    @app.get("/sign-in")
    def ask(request: Request) -> Response:
        """The way in."""
        return page(request, "sign_in.html", problem="")

    @app.post("/sign-in")
    def enter(
        request: Request, desk: Node, name: Annotated[str, Form()] = "", password: Annotated[str, Form()] = "", code: Annotated[str, Form()] = ""
    ) -> Response:
        """Check name, password and one-time code."""
        if not desk.tries.another(name):
            desk.store.note("console.locked", {"who": name if desk.accounts.find(name) else "a name that is no account"})
            return page(request, "sign_in.html", status=429, problem="Too many tries. Wait a quarter of an hour.")
        account = desk.accounts.check(name, password, code)
        if account is None:
            return page(request, "sign_in.html", status=401, problem="Name, password or code is wrong. A code works once.")
        desk.tries.forgive(name)
        desk.store.note("console.signed-in", {"who": account.name, "role": account.role.value})
        answer = RedirectResponse("/", 303)
        answer.set_cookie(cookie_name(request), desk.sessions.begin(account.name), httponly=True, samesite="strict", path="/")
        return answer

    @app.post("/sign-out")
    def leave(request: Request, desk: Node, _person: Annotated[Person, Depends(posting)]) -> Response:
        """End the session."""
        desk.sessions.end(request.cookies.get(cookie_name(request), ""))
        answer = RedirectResponse("/sign-in", 303)
        answer.delete_cookie(cookie_name(request), path="/")
        return answer


def _add_guards(app: FastAPI) -> None:
    """Headers on every answer; our own host names only (against DNS rebinding); forms from our own pages only, and small."""

    @app.middleware("http")
    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        refused = _refusal(request)
        response = await answer(request) if refused is None else problem(*refused)
        response.headers.setdefault("Content-Security-Policy", BARE_POLICY)
        for header, value in HEADERS.items():
            response.headers.setdefault(header, value)
        return response

    @app.exception_handler(BusgenError)
    def ours(request: Request, error: BusgenError) -> Response:
        status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
        return _told(request, status, error.code, str(error))

    @app.exception_handler(SignInNeeded)
    def unknown(request: Request, error: SignInNeeded) -> Response:
        if request.method in READING and _reads_pages(request):
            return RedirectResponse("/sign-in", 303)
        return problem(error.status_code, "sign-in-needed", error.detail)

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> Response:
        return _told(request, error.status_code, f"http-{error.status_code}", str(error.detail))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, _error: RequestValidationError) -> Response:
        return _told(request, 422, "request-invalid", "a part of the address or form is not what it should be")

    @app.exception_handler(Exception)
    def unexpected(_request: Request, _error: Exception) -> Response:
        return problem(500, "internal", "an unexpected error; it is in the console's log")


def _refusal(request: Request) -> tuple[int, str, str] | None:
    """Why a request is not even looked at: status, code and words."""
    host = request.headers.get("host", "")
    found = HOST.fullmatch(host)
    if found is None or found[1] not in HOSTS:
        return 400, "host-unknown", "this console is served on the node's own machine only"
    if request.method in READING:
        return None
    if request.headers.get("origin") != f"{request.url.scheme}://{host}":
        return 403, "origin-foreign", "forms are taken from this console's own pages only"
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > LARGEST_FORM:
        return 413, "form-too-large", "the form has no length, or is too large"
    return None


def _told(request: Request, status: int, code: str, detail: str) -> Response:
    if not _reads_pages(request):
        return problem(status, code, detail)
    try:
        person = signed_in(request)
    except SignInNeeded:
        person = None
    return page(request, "error.html", status=status, person=person, code=code, detail=detail)


def _reads_pages(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


def problem(status: int, code: str, detail: str) -> JSONResponse:
    """An RFC 9457 problem."""
    body = {"type": f"/problems/{code}", "code": code, "status": status, "detail": detail}
    return JSONResponse(body, status, media_type="application/problem+json")
