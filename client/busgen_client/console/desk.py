"""What every route needs: the node's parts, who is signed in, and pages under a policy that runs nothing but our own script."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Form, HTTPException, Query, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from busgen_client.cohort import CohortStore
from busgen_client.console.accounts import Account, Accounts
from busgen_client.console.roles import Role
from busgen_client.console.sessions import Sessions, SignedIn, Tries
from busgen_client.console.words import FILTERS
from busgen_client.database import MOST_SKIPPED
from busgen_client.quarantine import Quarantine
from busgen_client.settings import NodeSettings

TEMPLATES = Path(__file__).parent / "templates"

# Nothing is loaded from elsewhere; scripts and styles only with this answer's nonce; forms only to this console; no frames or base.
POLICY = (
    "default-src 'none'; img-src 'self' data:; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def _pages() -> Environment:
    pages = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters.update(FILTERS)
    return pages


@dataclass(kw_only=True, slots=True)
class Desk:
    """The node behind the console."""

    settings: NodeSettings
    store: CohortStore
    quarantine: Quarantine
    accounts: Accounts
    sessions: Sessions = field(default_factory=Sessions)
    tries: Tries = field(default_factory=Tries)
    pages: Environment = field(default_factory=_pages)


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """Who asks."""

    account: Account
    session: SignedIn

    @property
    def name(self) -> str:
        """As the journal calls the person."""
        return self.account.name

    @property
    def decides(self) -> bool:
        """Whether the person decides on the quarantine."""
        return self.account.role is Role.STEWARD

    @property
    def answers(self) -> bool:
        """Whether the person answers for releases."""
        return self.account.role is Role.OFFICER


class SignInNeeded(HTTPException):
    """Nobody is signed in."""

    def __init__(self) -> None:
        super().__init__(401, "sign in first")


def desk_of(request: Request) -> Desk:
    """The parts that ``create_app`` put together."""
    desk = request.app.state.desk
    assert isinstance(desk, Desk)
    return desk


def cookie_name(request: Request) -> str:
    """The cookie of this console; browsers do not tell ports apart, and two nodes may run on one machine."""
    return f"busgen-console-{request.url.port or 80}"


def signed_in(request: Request) -> Person:
    """Who asks.

    Raises:
        SignInNeeded: nobody whom we know.
    """
    desk = desk_of(request)
    session = desk.sessions.find(request.cookies.get(cookie_name(request), ""))
    account = desk.accounts.find(session.name) if session else None
    if session is None or account is None:
        raise SignInNeeded
    return Person(account=account, session=session)


def posting(person: Annotated[Person, Depends(signed_in)], token: Annotated[str, Form()] = "") -> Person:
    """Who sends a form that we gave out.

    Raises:
        HTTPException: 403, the form is not one of this session's.
    """
    if not secrets.compare_digest(token.encode(), person.session.token.encode()):
        raise HTTPException(403, "this form is not one that your session was given; open the page again")
    return person


def deciding(person: Annotated[Person, Depends(signed_in)]) -> Person:
    """Who may decide on the quarantine.

    Raises:
        HTTPException: 403, another role.
    """
    if not person.decides:
        raise HTTPException(403, "only a steward decides on the quarantine")
    return person


def decided(person: Annotated[Person, Depends(posting)]) -> Person:
    """Who sends a form that we gave out, and may decide.

    Raises:
        HTTPException: 403, another role, or a form that is not one of this session's.
    """
    return deciding(person)


def answering(person: Annotated[Person, Depends(signed_in)]) -> Person:
    """Who answers for releases.

    Raises:
        HTTPException: 403, another role.
    """
    if not person.answers:
        raise HTTPException(403, "only an officer reads reports, which show real images")
    return person


AnyPerson = Annotated[Person, Depends(signed_in)]
Node = Annotated[Desk, Depends(desk_of)]
Skip = Annotated[int, Query(ge=0, le=MOST_SKIPPED)]  # lines of a list to leave out first


def page(request: Request, template: str, *, status: int = 200, person: Person | None = None, **content: object) -> HTMLResponse:
    """One page, with the headers that go with it."""
    desk, nonce = desk_of(request), secrets.token_urlsafe(16)
    everywhere: Mapping[str, object] = {"nonce": nonce, "site": desk.settings.site, "me": person, "path": request.url.path}
    body = desk.pages.get_template(template).render({**content, **everywhere})
    return HTMLResponse(body, status, headers={"Content-Security-Policy": POLICY.format(nonce=nonce)})
