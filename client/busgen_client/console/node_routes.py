"""What the node is doing: health, jobs, cohort, journal."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from busgen_client.cohort_rows import ROLES, JournalRow
from busgen_client.console.desk import AnyPerson, Node, Person, Skip, answering, page
from busgen_client.doctor import examine
from busgen_client.jobs import JobStore
from busgen_client.papers import Paper, read_paper
from busgen_client.protocol import job_folder
from busgen_core.labels import Pathology

LINES = 100  # of the journal on a page
# A report is one file: its style and pictures are in it, and it runs nothing.
REPORT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

router = APIRouter()


@router.get("/")
def overview(request: Request, desk: Node, person: AnyPerson) -> Response:
    """Health, jobs and cohort."""
    jobs = JobStore(desk.store.engine).all()
    return page(
        request,
        "overview.html",
        person=person,
        health=examine(desk.settings, hub=False),
        jobs=jobs,
        reports={job.campaign_id for job in jobs if person.answers and (job_folder(desk.store.data, job.campaign_id) / Paper.REPORT).exists()},
        summary=desk.store.summary(),
        roles=ROLES,
        pathologies=list(Pathology),
    )


@router.get("/jobs/{campaign}/report")
def report(campaign: str, desk: Node, person: Annotated[Person, Depends(answering)]) -> Response:
    """The hospital's own audit report of a job, with the nearest real images; who read it is noted."""
    JobStore(desk.store.engine).need(campaign)
    content = read_paper(desk.store.vault, desk.store.data, campaign, Paper.REPORT)
    desk.store.note("paper.read", {"campaign": campaign, "paper": Paper.REPORT.value, "who": person.name})
    return HTMLResponse(content, headers={"Content-Security-Policy": REPORT_POLICY})


@router.get("/journal")
def journal(request: Request, desk: Node, person: AnyPerson, skip: Skip = 0) -> Response:
    """What happened to the cohort, last first; but for the check of the secret and the lines that name patients' digests."""
    wanted = select(JournalRow).where(JournalRow.event.not_in(("secret", "split"))).order_by(JournalRow.id.desc())
    with Session(desk.store.engine) as session:
        rows = session.scalars(wanted.limit(LINES + 1).offset(skip)).all()
    return page(request, "journal.html", person=person, rows=rows[:LINES], skip=skip, lines=LINES, more=len(rows) > LINES)
