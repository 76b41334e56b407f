"""The quarantine: a list, an object with its picture, and what a steward does with it. Nothing changes but by a form; what cannot be undone
asks once more."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from busgen_client.console.desk import AnyPerson, Node, Person, Skip, decided, deciding, page
from busgen_client.console.words import DONE
from busgen_client.held import model_name
from busgen_client.intake.findings import Code
from busgen_client.quarantine import CHANGED
from busgen_core.errors import InputError, StateError
from busgen_core.labels import Pathology

AT_ONCE = 50  # objects on a page

Steward = Annotated[Person, Depends(decided)]
Seen = Annotated[str, Form(min_length=1)]

router = APIRouter(prefix="/quarantine")


@router.get("")
def listed(request: Request, desk: Node, person: AnyPerson, code: Code | None = None, skip: Skip = 0, done: str = "") -> Response:
    """What waits."""
    found = desk.quarantine.items(code=code or "", most=AT_ONCE + 1, skip=skip)
    return page(
        request,
        "quarantine.html",
        person=person,
        items=found[:AT_ONCE],
        more=len(found) > AT_ONCE,
        counts=desk.quarantine.counts(),
        code=code,
        skip=skip,
        at_once=AT_ONCE,
        done=DONE.get(done, ""),
    )


@router.get("/{name}")
def shown(request: Request, desk: Node, person: AnyPerson, name: str, frame: Annotated[int, Query(ge=0)] = 0, done: str = "") -> Response:
    """One object."""
    item = desk.quarantine.item(name)
    return page(request, "item.html", person=person, item=item, frame=min(frame, max(0, item.frames - 1)), done=DONE.get(done, ""))


@router.get("/{name}/{number}.png")
def picture(desk: Node, _person: AnyPerson, name: str, number: int) -> Response:
    """One of its pictures."""
    return Response(desk.quarantine.picture(name, number), media_type="image/png")


@router.get("/{name}/confirm/{what}")
def confirm(
    request: Request, desk: Node, person: Annotated[Person, Depends(deciding)], name: str, what: Literal["release", "delete", "trust"]
) -> Response:
    """Ask once more."""
    item = desk.quarantine.item(name)
    if what != "delete" and not (item.trustable if what == "trust" else item.releasable and not item.must_mask):
        raise StateError(f"this cannot be done with an object that waits for this reason: {item.reason}")
    return page(request, "confirm.html", person=person, item=item, what=what, pathologies=list(Pathology))


@router.post("/{name}/mask")
def mask(
    desk: Node,
    person: Steward,
    name: str,
    seen: Seen,
    x0: Annotated[int, Form()],
    y0: Annotated[int, Form()],
    x1: Annotated[int, Form()],
    y1: Annotated[int, Form()],
    keep: Annotated[bool, Form()] = False,
    frame: Annotated[int, Form(ge=0)] = 0,
) -> Response:
    """Black out a box, or all but it."""
    desk.quarantine.mask(name, (x0, y0, x1, y1), who=person.name, keep=keep, seen=seen)
    return _to(f"/quarantine/{name}?done=masked&frame={frame}")


@router.post("/{name}/unmask")
def unmask(desk: Node, person: Steward, name: str, seen: Seen) -> Response:
    """Take all boxes off."""
    desk.quarantine.unmask(name, who=person.name, seen=seen)
    return _to(f"/quarantine/{name}?done=unmasked")


@router.post("/{name}/release")
def release(desk: Node, person: Steward, name: str, seen: Seen, pathology: Annotated[Pathology | None, Form()] = None) -> Response:
    """Let it into the cohort."""
    desk.quarantine.release(name, who=person.name, pathology=pathology, seen=seen)
    return _to("/quarantine?done=released")


@router.post("/{name}/delete")
def delete(desk: Node, person: Steward, name: str, seen: Seen) -> Response:
    """Delete it."""
    desk.quarantine.delete(name, who=person.name, seen=seen)
    return _to("/quarantine?done=deleted")


@router.post("/{name}/trust")
def trust(desk: Node, person: Steward, name: str, seen: Seen) -> Response:
    """Vouch for its scanner."""
    item = desk.quarantine.item(name)
    if item.stamp != seen:
        raise StateError(CHANGED)
    if not model_name(item.device):
        raise InputError("this object names no scanner")
    desk.quarantine.trust(item.device, who=person.name)
    return _to("/quarantine?done=trusted")


def _to(path: str) -> Response:
    return RedirectResponse(path, 303)
