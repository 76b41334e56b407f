"""Jobs, score requests and the worker's heartbeat: the node's memory of its campaigns."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from busgen_client.database import Base
from busgen_core.errors import BudgetExceededError, ConsentWithdrawnError, StateError
from busgen_core.wire import BinnedCounts, Campaign, JobState, JobStatus, ScoreRequest


class JobRow(Base):
    """One job: what this node made of one campaign."""

    __tablename__ = "jobs"

    campaign_id: Mapped[str] = mapped_column(primary_key=True)
    campaign: Mapped[str]  # wire.Campaign as JSON, exactly as offered
    state: Mapped[str]
    code: Mapped[str] = mapped_column(default="")
    message: Mapped[str] = mapped_column(default="")  # for people at the hospital; never sent
    progress: Mapped[float] = mapped_column(default=0.0)
    foundation_have: Mapped[int] = mapped_column(default=0)
    release_id: Mapped[str] = mapped_column(default="")
    release_bytes: Mapped[int] = mapped_column(default=0)
    release_sha256: Mapped[str] = mapped_column(default="")
    admitted: Mapped[bool | None] = mapped_column(default=None)
    hub_code: Mapped[str] = mapped_column(default="")
    created: Mapped[float] = mapped_column(default=time.time)
    updated: Mapped[float] = mapped_column(default=time.time, onupdate=time.time)


class ScoreRow(Base):
    """One downstream model to be scored here."""

    __tablename__ = "scores"

    model_id: Mapped[str] = mapped_column(primary_key=True)
    campaign_id: Mapped[str]
    request: Mapped[str]  # wire.ScoreRequest as JSON
    state: Mapped[str] = mapped_column(default="pending")  # pending, done, refused
    counts: Mapped[str] = mapped_column(default="")
    code: Mapped[str] = mapped_column(default="")


class BeatRow(Base):
    """When the worker was last alive, as seconds since 1970."""

    __tablename__ = "heartbeat"

    name: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[float]


class NoticeRow(Base):
    """A campaign whose release holds a patient who withdrew consent since; the hub is told, and never that it is no longer so."""

    __tablename__ = "withdrawal_notices"

    campaign_id: Mapped[str] = mapped_column(primary_key=True)


AGAIN = "review-again"  # code of a job that was in review and is audited, or laid out, anew

# Where a job may go from each state; everything else is a StateError.
NEXT: dict[JobState, frozenset[JobState]] = {
    JobState.OFFERED: frozenset({JobState.ACCEPTED, JobState.DECLINED}),
    JobState.ACCEPTED: frozenset({JobState.ADAPTING, JobState.DECLINED, JobState.REFUSED, JobState.FAILED}),
    JobState.ADAPTING: frozenset({JobState.GENERATING, JobState.FAILED}),
    JobState.GENERATING: frozenset({JobState.AUDITING, JobState.FAILED}),
    JobState.AUDITING: frozenset({JobState.REVIEW, JobState.REFUSED, JobState.FAILED}),
    JobState.REVIEW: frozenset({JobState.AUDITING, JobState.RELEASED, JobState.REFUSED, JobState.FAILED}),
    JobState.RELEASED: frozenset(),
    JobState.DECLINED: frozenset(),
    JobState.REFUSED: frozenset(),
    JobState.FAILED: frozenset(),
}


class JobStore:
    """All reads and writes of jobs; each method is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    def get(self, campaign_id: str) -> JobRow | None:
        """The job of a campaign, or None."""
        with self._session() as session:
            return session.get(JobRow, campaign_id)

    def need(self, campaign_id: str) -> JobRow:
        """The job of a campaign.

        Raises:
            StateError: there is none.
        """
        row = self.get(campaign_id)
        if row is None:
            raise StateError(f"no job for campaign {campaign_id}; 'busgen-node jobs list' shows all")
        return row

    def all(self) -> list[JobRow]:
        """All jobs, oldest first."""
        with self._session() as session:
            return list(session.scalars(select(JobRow).order_by(JobRow.created)))

    def offer(self, campaign: Campaign) -> JobRow:
        """Record an offer; the same offer again changes nothing.

        Raises:
            StateError: another campaign under the same name.
        """
        text = campaign.model_dump_json()
        with self._session() as session:
            row = session.get(JobRow, campaign.campaign_id)
            if row is None:
                row = JobRow(campaign_id=campaign.campaign_id, campaign=text, state=JobState.OFFERED)
                session.add(row)
                session.flush()
            elif row.campaign != text:
                raise StateError(f"campaign {campaign.campaign_id} was offered before with other terms")
            return row

    def move(self, campaign_id: str, to: JobState, *, code: str = "", message: str = "", progress: float = 0.0) -> None:
        """Move a job on; moving to the state it is in only updates the progress.

        Raises:
            StateError: the way from its state to ``to`` does not exist.
            ConsentWithdrawnError: a withdrawal has ended the job.
        """
        with self._session() as session:
            row = session.get(JobRow, campaign_id, with_for_update=True)
            if row is None:
                raise StateError(f"no job for campaign {campaign_id}")
            check_consent(row)
            state = JobState(row.state)
            if to != state and to not in NEXT[state]:
                raise StateError(f"job of campaign {campaign_id} is {state.value}; it cannot become {to.value}")
            if to == state and not code:
                row.progress = progress
                return
            row.state, row.code, row.message, row.progress = to.value, code, message, progress

    def end(self, campaign_id: str, to: JobState, *, code: str, message: str = "") -> None:
        """Move a job to a state that ends it; a job that has ended keeps the state, code and message it ended with."""
        with self._session() as session:
            row = session.get(JobRow, campaign_id)
            if row is not None and not JobState(row.state).ended:
                row.state, row.code, row.message, row.progress = to.value, code, message, 0.0

    def set_release(self, campaign_id: str, *, release_id: str, release_bytes: int, release_sha256: str) -> None:
        """Record the signed, packed release and move the job to released, in one transaction.

        Raises:
            StateError: the job is not in review.
            ConsentWithdrawnError: a withdrawal has ended the job.
        """
        with self._session() as session:
            row = session.get(JobRow, campaign_id)
            if row is not None:
                check_consent(row)
            if row is None or JobState.RELEASED not in NEXT[JobState(row.state)]:
                raise StateError(f"job of campaign {campaign_id} is not in review")
            row.release_id, row.release_bytes, row.release_sha256 = release_id, release_bytes, release_sha256
            row.state, row.progress = JobState.RELEASED.value, 1.0

    def set_foundation(self, campaign_id: str, have: int) -> None:
        """Record how many bytes of the foundation are here."""
        with self._session() as session:
            row = session.get(JobRow, campaign_id)
            if row is not None:
                row.foundation_have = have

    def status(self, campaign_id: str) -> JobStatus:
        """What the hub may know of a job.

        Raises:
            StateError: there is none.
        """
        row = self.need(campaign_id)
        return status_of(row, withdrawal_notice=campaign_id in self.notices())

    def notices(self) -> tuple[str, ...]:
        """Campaigns whose release holds a withdrawn patient, by name."""
        with self._session() as session:
            return tuple(session.scalars(select(NoticeRow.campaign_id).order_by(NoticeRow.campaign_id)))

    def set_receipt(self, campaign_id: str, *, admitted: bool, code: str) -> None:
        """Record what the hub made of the release."""
        with self._session() as session:
            row = session.get(JobRow, campaign_id)
            if row is not None:
                row.admitted, row.hub_code = admitted, code

    def beat(self) -> None:
        """The worker is alive now."""
        with self._session() as session:
            session.merge(BeatRow(name="worker", at=time.time()))

    def worker_age_seconds(self) -> float:
        """Seconds since the worker's last heartbeat; infinite if it never ran."""
        with self._session() as session:
            row = session.get(BeatRow, "worker")
            return float("inf") if row is None else max(0.0, time.time() - row.at)

    def score(self, model_id: str) -> ScoreRow | None:
        """The score request of a model, or None."""
        with self._session() as session:
            return session.get(ScoreRow, model_id)

    def request_score(self, request: ScoreRequest) -> None:
        """Record a model to be scored; again changes nothing."""
        with self._session() as session:
            if session.get(ScoreRow, request.model_id) is None:
                session.add(ScoreRow(model_id=request.model_id, campaign_id=request.campaign_id, request=request.model_dump_json()))

    def pending_scores(self) -> list[ScoreRow]:
        """Models that wait for the worker."""
        with self._session() as session:
            return list(session.scalars(select(ScoreRow).where(ScoreRow.state == "pending")))

    def finish_score(self, model_id: str, *, counts: BinnedCounts | None, code: str = "") -> None:
        """Record the noised counts (drawn once, never again) or the code of a refusal."""
        with self._session() as session:
            row = session.get(ScoreRow, model_id)
            if row is not None and row.state == "pending":
                row.state = "done" if counts else "refused"
                row.counts, row.code = counts.model_dump_json() if counts else "", code


def check_consent(row: JobRow) -> None:
    """Raise ConsentWithdrawnError if a withdrawal has ended this job."""
    if row.code == ConsentWithdrawnError.code:
        raise ConsentWithdrawnError(f"campaign {row.campaign_id}: a patient of its cohort withdrew consent; nothing of this job may be released")


def status_of(row: JobRow, *, withdrawal_notice: bool = False) -> JobStatus:
    """What the hub may know of a job.

    Guarantees: a job that the gate or the officer refused, that failed, that a withdrawal ended, that waits for the officer or
    is laid out for the officer again looks the same.
    Which of these it is follows from patients' own figures, outside epsilon, so it never leaves.
    """
    state, code, progress = JobState(row.state), row.code, row.progress
    if code == BudgetExceededError.code:  # known before an image is read: the ledger alone says so
        state, progress = JobState.DECLINED, 0.0
    elif state in (JobState.REVIEW, JobState.REFUSED, JobState.FAILED) or code == AGAIN:
        state, code, progress = JobState.REVIEW, "", 1.0
    return JobStatus(
        campaign_id=row.campaign_id,
        state=state,
        code=code,
        progress=min(1.0, max(0.0, progress)),
        foundation_have=row.foundation_have,
        release_id=row.release_id,
        release_bytes=row.release_bytes,
        release_sha256=row.release_sha256,
        withdrawal_notice=withdrawal_notice,
    )
