"""What the hub remembers. Every method is one transaction; several processes may use the store at once.

Rows that are returned are detached copies: changing them changes nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Engine, Select, select
from sqlalchemy.orm import Session, sessionmaker

from busgen_core.errors import StateError
from busgen_core.wire import Campaign, HelloReply, JobStatus, ScoreReply
from busgen_server.database import (
    WRITING,
    Base,
    CampaignRow,
    CampaignState,
    JobRow,
    JournalRow,
    Json,
    ModelRow,
    ReauditRow,
    ReleaseRow,
    ReleaseState,
    ResultRow,
    ScoreRow,
    SiteRow,
    WithdrawalRow,
    now,
)

Row = TypeVar("Row", bound=Base)
RETIRED = "release-retired"  # code of a release that the coordinator took out of later pools
POOL = "pool"  # the "site" of a result over all sites

# From a state to those that may follow it; the same state again is always allowed.
CAMPAIGN_STEPS: Mapping[str, frozenset[str]] = {
    "open": frozenset({"scoring", "cancelled"}),
    "scoring": frozenset({"open", "done", "cancelled"}),
    "done": frozenset(),
    "cancelled": frozenset(),
}


class HubStore:
    """Sites, campaigns, jobs, releases, models, scores, results, journal."""

    def __init__(self, engine: Engine) -> None:
        """Use an engine of ``busgen_server.database.open_store``."""
        self._read = sessionmaker(engine, expire_on_commit=False)
        self._write = sessionmaker(engine.execution_options(**WRITING), expire_on_commit=False)

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        with self._write.begin() as session:
            yield session

    def _all(self, query: Select[Row]) -> list[Row]:
        with self._read.begin() as session:
            return list(session.scalars(query))

    def _one(self, table: type[Row], key: object) -> Row | None:
        with self._read.begin() as session:
            return session.get(table, key)

    # Sites

    def add_site(self, name: str, *, node_key: str, officer_key: str, flower_key: str) -> SiteRow:
        """Enrol a hospital; again with the same keys changes nothing.

        Raises:
            StateError: the name is enrolled with other keys, or another site holds one of these keys.
        """
        keys = (node_key, officer_key, flower_key)
        with self._writing() as session:
            for row in session.scalars(select(SiteRow)):
                held = (row.node_key, row.officer_key, row.flower_key)
                if row.name == name and held == keys:
                    return row
                if row.name == name:
                    raise StateError(f"{name} is enrolled with other keys; remove it first if its keys have changed")
                if set(held) & set(keys):
                    raise StateError(f"{name}: {row.name} is enrolled with one of these keys; every site needs its own")
            row = SiteRow(name=name, node_key=node_key, officer_key=officer_key, flower_key=flower_key)
            session.add(row)
            _note(session, "site.enrolled", site=name)
            return row

    def site(self, name: str) -> SiteRow:
        """The enrolled site; raises StateError when there is none of that name."""
        return _known(self._one(SiteRow, name), f"site {name}")

    def sites(self) -> list[SiteRow]:
        """All sites by name."""
        return self._all(select(SiteRow).order_by(SiteRow.name))

    def site_of_node(self, node_id: str) -> SiteRow | None:
        """The site whose SuperNode has this Flower id."""
        found = self._all(select(SiteRow).where(SiteRow.node_id == node_id))
        return found[0] if found else None

    def bind_node(self, name: str, node_id: str | None) -> None:
        """State which Flower node speaks for a site (after registration); None forgets it."""
        with self._writing() as session:
            _bind(session, name, node_id)

    def record_hello(self, node_id: str, reply: HelloReply) -> SiteRow:
        """Note that a node was heard of. The first node to answer for a site is bound to it.

        Raises:
            StateError: the site is not enrolled, is bound to another node, or the node to another site.
        """
        with self._writing() as session:
            site = _known(session.get(SiteRow, reply.site), f"site {reply.site}")
            if site.node_id is None:
                _bind(session, site.name, node_id)
            elif site.node_id != node_id:
                raise StateError(f"a node that is not {reply.site}'s answered in its name")
            site.last_seen = now()
            site.health = reply.model_dump(mode="json", exclude={"site", "version"})
            for campaign_id in reply.withdrawal_notices:
                _withdrawn(session, campaign_id, site.name)
            return site

    def seen(self, name: str) -> None:
        """Note that a site's node has answered just now."""
        with self._writing() as session:
            _known(session.get(SiteRow, name), f"site {name}").last_seen = now()

    # Campaigns and jobs

    def add_campaign(self, campaign: Campaign) -> CampaignRow:
        """Open a campaign; again with the same content changes nothing.

        Raises:
            StateError: the id is taken by another campaign.
        """
        offer = campaign.model_dump(mode="json")
        with self._writing() as session:
            row = session.get(CampaignRow, campaign.campaign_id)
            if row is not None and row.offer != offer:
                raise StateError(f"campaign {campaign.campaign_id} exists with other content; choose another id")
            if row is None:
                row = CampaignRow(campaign_id=campaign.campaign_id, offer=offer)
                session.add(row)
                _note(session, "campaign.opened", campaign_id=campaign.campaign_id)
            return row

    def campaign(self, campaign_id: str) -> Campaign:
        """The campaign as it was offered; raises StateError when unknown."""
        return Campaign.model_validate(self.campaign_row(campaign_id).offer)

    def campaign_row(self, campaign_id: str) -> CampaignRow:
        """The campaign with its state; raises StateError when unknown."""
        return _known(self._one(CampaignRow, campaign_id), f"campaign {campaign_id}")

    def campaigns(self, *, state: CampaignState | None = None) -> list[CampaignRow]:
        """Campaigns, newest first."""
        query = select(CampaignRow).order_by(CampaignRow.created.desc(), CampaignRow.campaign_id)
        return self._all(query if state is None else query.where(CampaignRow.state == state))

    def set_campaign_state(self, campaign_id: str, state: CampaignState) -> None:
        """Move a campaign on.

        Raises:
            StateError: unknown campaign, or a step that CAMPAIGN_STEPS does not allow.
        """
        with self._writing() as session:
            row = _known(session.get(CampaignRow, campaign_id), f"campaign {campaign_id}")
            if row.state == state:
                return
            if state not in CAMPAIGN_STEPS[row.state]:
                raise StateError(f"campaign {campaign_id} is {row.state}; it cannot become {state}")
            row.state = state
            _note(session, "campaign.moved", campaign_id=campaign_id, state=state)

    def upsert_job(self, site: str, status: JobStatus) -> JobRow:
        """Keep what a node said of its job; the journal notes each change of state."""
        with self._writing() as session:
            row = session.get(JobRow, (status.campaign_id, site))
            if row is None or row.state != status.state.value:
                _note(session, "job.moved", campaign_id=status.campaign_id, site=site, state=status.state.value, code=status.code)
            if row is None:
                row = JobRow(campaign_id=status.campaign_id, site=site)
                session.add(row)
            row.state, row.code, row.progress = status.state.value, status.code, status.progress
            row.foundation_have, row.updated = status.foundation_have, now()
            row.release_id, row.release_bytes, row.release_sha256 = status.release_id, status.release_bytes, status.release_sha256
            if status.withdrawal_notice:
                _withdrawn(session, status.campaign_id, site)
            return row

    def job(self, campaign_id: str, site: str) -> JobRow | None:
        """One site's job of a campaign."""
        return self._one(JobRow, (campaign_id, site))

    def jobs(self, campaign_id: str) -> list[JobRow]:
        """A campaign's jobs by site."""
        return self._all(select(JobRow).where(JobRow.campaign_id == campaign_id).order_by(JobRow.site))

    def forget_job(self, campaign_id: str, site: str) -> None:
        """Drop a job that the node no longer knows, so that the campaign is offered again."""
        with self._writing() as session:
            row = session.get(JobRow, (campaign_id, site))
            if row is not None:
                session.delete(row)
                _note(session, "job.forgotten", campaign_id=campaign_id, site=site)

    # Releases

    def add_release(self, release: ReleaseRow) -> ReleaseRow:
        """Keep a release; a second one of the same id changes nothing and the first is returned."""
        with self._writing() as session:
            row = session.get(ReleaseRow, release.release_id)
            if row is not None:
                return row
            session.add(release)
            session.flush()  # sets the columns' defaults
            _note(session, f"release.{release.state}", release_id=release.release_id, site=release.site, code=release.code, images=release.images)
            return release

    def release(self, release_id: str) -> ReleaseRow | None:
        """One release, admitted or rejected."""
        return self._one(ReleaseRow, release_id)

    def releases(self, *, campaign_id: str | None = None, state: ReleaseState | None = None) -> list[ReleaseRow]:
        """Releases by site, then time."""
        query = select(ReleaseRow).order_by(ReleaseRow.site, ReleaseRow.created)
        if campaign_id is not None:
            query = query.where(ReleaseRow.campaign_id == campaign_id)
        return self._all(query if state is None else query.where(ReleaseRow.state == state))

    def retire_release(self, release_id: str) -> ReleaseRow:
        """Leave an admitted release out of every pool from now on; its files and what was trained on it stay. Again changes nothing.

        Raises:
            StateError: no release of that id was admitted.
        """
        with self._writing() as session:
            row = session.get(ReleaseRow, release_id)
            if row is None or row.state == "rejected":
                raise StateError(f"no release {release_id} was admitted")
            if row.state != "retired":
                row.state, row.code, row.message = "retired", RETIRED, "retired by the coordinator; it is in no later pool"
                _note(session, "release.retired", release_id=release_id, site=row.site)
            return row

    def withdrawals(self) -> set[tuple[str, str]]:
        """Campaign and site of every release that holds a withdrawn patient, as the sites have said."""
        return {(row.campaign_id, row.site) for row in self._all(select(WithdrawalRow))}

    # Re-audits

    def reaudit(self, release_id: str) -> ReauditRow | None:
        """What the hub found in a release by itself, or that it tried."""
        return self._one(ReauditRow, release_id)

    def start_reaudit(self, release_id: str) -> None:
        """Count an attempt, before it is made: a process that dies has had it."""
        with self._writing() as session:
            row = session.get(ReauditRow, release_id) or ReauditRow(release_id=release_id, attempts=0)
            row.attempts, row.code, row.updated = row.attempts + 1, "", now()
            session.add(row)

    def keep_reaudit(self, release_id: str, *, found: Json) -> None:
        """Keep what was found, in place of what was found before."""
        with self._writing() as session:
            session.merge(ReauditRow(release_id=release_id, found=found, code="", attempts=0, updated=now()))
            _note(session, "release.reaudited", release_id=release_id)

    def fail_reaudit(self, release_id: str, *, code: str) -> None:
        """Note why an attempt failed; what an earlier one found stays."""
        with self._writing() as session:
            row = session.get(ReauditRow, release_id) or ReauditRow(release_id=release_id, attempts=1)
            row.code, row.updated = code, now()
            session.add(row)
            _note(session, "release.reaudit-failed", release_id=release_id, code=code)

    # Downstream models, scores, results

    def upsert_model(self, model: ModelRow) -> None:
        """Keep a downstream model; a model of the same id is replaced and its scores are dropped if the weights differ."""
        with self._writing() as session:
            old = session.get(ModelRow, model.model_id)
            if old is not None and old.sha256 != model.sha256:
                for score in session.scalars(select(ScoreRow).where(ScoreRow.model_id == model.model_id)):
                    session.delete(score)
            session.merge(model)

    def models(self, campaign_id: str) -> list[ModelRow]:
        """A campaign's models by id."""
        return self._all(select(ModelRow).where(ModelRow.campaign_id == campaign_id).order_by(ModelRow.model_id))

    def upsert_score(self, site: str, reply: ScoreReply) -> None:
        """Keep one site's counts of one model; counts are final, a refusal may still become counts.

        Raises:
            StateError: the model is unknown.
        """
        with self._writing() as session:
            _known(session.get(ModelRow, reply.model_id), f"model {reply.model_id}")
            row = session.get(ScoreRow, (reply.model_id, site))
            if row is not None and row.counts is not None:
                return
            counts = None if reply.counts is None else reply.counts.model_dump(mode="json")
            session.merge(ScoreRow(model_id=reply.model_id, site=site, counts=counts, code=reply.code, created=now()))

    def scores(self, model_id: str) -> list[ScoreRow]:
        """A model's scores by site."""
        return self._all(select(ScoreRow).where(ScoreRow.model_id == model_id).order_by(ScoreRow.site))

    def upsert_results(self, results: Sequence[ResultRow]) -> None:
        """Keep result lines; a line of the same campaign, name and site is replaced."""
        with self._writing() as session:
            for result in results:
                session.merge(result)

    def results(self, campaign_id: str) -> list[ResultRow]:
        """A campaign's result table by name, then site."""
        return self._all(select(ResultRow).where(ResultRow.campaign_id == campaign_id).order_by(ResultRow.name, ResultRow.site))

    # Journal

    def note(self, event: str, **fields: str | int | float) -> None:
        """Append an event: a constant name, ids and counts; nothing of a patient."""
        with self._writing() as session:
            _note(session, event, **fields)

    def journal(self, *, limit: int = 100) -> list[JournalRow]:
        """The newest events, newest first."""
        return self._all(select(JournalRow).order_by(JournalRow.entry.desc()).limit(limit))


def _note(session: Session, event: str, **fields: str | int | float) -> None:
    session.add(JournalRow(event=event, fields=dict(fields)))


def _withdrawn(session: Session, campaign_id: str, site: str) -> None:
    """Keep a site's notice; of a campaign that this hub does not know it means nothing."""
    known = session.get(CampaignRow, campaign_id) is not None and session.get(SiteRow, site) is not None
    if known and session.get(WithdrawalRow, (campaign_id, site)) is None:
        session.add(WithdrawalRow(campaign_id=campaign_id, site=site))
        _note(session, "release.withdrawal", campaign_id=campaign_id, site=site)


def _bind(session: Session, name: str, node_id: str | None) -> None:
    site = _known(session.get(SiteRow, name), f"site {name}")
    if node_id is not None and session.scalar(select(SiteRow.name).where(SiteRow.node_id == node_id, SiteRow.name != name)):
        raise StateError(f"the node that answers for {name} is bound to another site")
    site.node_id = node_id


def _known(row: Row | None, what: str) -> Row:
    if row is None:
        raise StateError(f"{what} is not known to this hub")
    return row
