"""What the node is doing: health, jobs, cohort, journal."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from busgen_client.cohort import ROLES
from busgen_client.cohort_rows import JournalRow
from busgen_client.console.desk import AnyPerson, Node, page
from busgen_client.doctor import examine
from busgen_client.jobs import JobStore
from busgen_core.labels import Pathology

LINES = 100  # of the journal on a page

router = APIRouter()


@router.get("/")
def overview(request: Request, desk: Node, person: AnyPerson) -> Response:
    """Health, jobs and cohort."""
    return page(
        request,
        "overview.html",
        person=person,
        health=examine(desk.settings, hub=False),
        jobs=JobStore(desk.store.engine).all(),
        summary=desk.store.summary(),
        roles=ROLES,
        pathologies=list(Pathology),
    )


@router.get("/journal")
def journal(request: Request, desk: Node, person: AnyPerson, skip: Annotated[int, Query(ge=0)] = 0) -> Response:
    """What happened to the cohort, last first; but for the check of the secret and the lines that name patients' digests."""
    wanted = select(JournalRow).where(JournalRow.event.not_in(("secret", "split"))).order_by(JournalRow.id.desc())
    with Session(desk.store.engine) as session:
        rows = session.scalars(wanted.limit(LINES + 1).offset(skip)).all()
    return page(request, "journal.html", person=person, rows=rows[:LINES], skip=skip, lines=LINES, more=len(rows) > LINES)
