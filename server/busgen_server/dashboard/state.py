"""What the dashboard shows, as typed values: read from the store, and nothing else."""

from collections.abc import Mapping, Sequence, Set
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from busgen_core.wire import Campaign
from busgen_server.dashboard.plot import Mark, Plot, interval_plot
from busgen_server.dashboard.samples import SAMPLES
from busgen_server.database import CampaignRow, JobRow, ReleaseRow, ResultRow, SiteRow, now
from busgen_server.foundations import versions
from busgen_server.looks import Look, look_and_findings
from busgen_server.notices import withdrawal_words
from busgen_server.store import POOL, HubStore

SILENT_AFTER = timedelta(minutes=15)  # the roll is called every ten
EVENTS_SHOWN = 12

SiteStatus = Literal["never seen", "silent", "worker down", "problems", "healthy"]


class View(BaseModel):
    """Base of everything shown."""

    model_config = ConfigDict(frozen=True)


class SiteView(View):
    """One hospital."""

    name: str
    status: SiteStatus
    last_seen: datetime | None
    software: str
    disk_free_mb: int | None
    problems: tuple[str, ...]


class JobView(View):
    """One hospital's part of a campaign; ``waiting`` before its first answer."""

    site: str
    state: str
    code: str
    progress: float
    updated: datetime | None


class ReleaseView(View):
    """One release that arrived. ``look``: how far the hub is with looking at it again; None where it will not."""

    release_id: str
    site: str
    state: str
    code: str
    message: str
    epsilon: float | None
    delta: float | None
    gate: str
    images: int
    samples: int
    notice: str
    look: Look | None
    created: datetime


class Rate(View):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


class ResultView(View):
    """One line of the result table."""

    name: str
    site: str
    baseline: bool
    auc: Rate
    sensitivity: Rate | None
    specificity: Rate | None


class FoundationView(View):
    """The foundation that a campaign hands out; the name is empty where this hub keeps it no more."""

    name: str
    digest: str


class CampaignView(View):
    """One campaign with all that belongs to it."""

    campaign_id: str
    state: str
    foundation: FoundationView
    epsilon: float
    delta: float
    deadline: str
    images: Mapping[str, int]
    created: datetime
    jobs: tuple[JobView, ...]
    releases: tuple[ReleaseView, ...]
    pooled: str
    results: tuple[ResultView, ...]
    plot: Plot | None


class EventView(View):
    """One event of the journal."""

    event: str
    fields: Mapping[str, str]
    created: datetime


class HubState(View):
    """Everything on the page."""

    sites: tuple[SiteView, ...]
    campaigns: tuple[CampaignView, ...]
    events: tuple[EventView, ...]


def hub_state(store: HubStore, data: Path) -> HubState:
    """Read the whole state, newest campaign first."""
    sites = store.sites()
    names = {version.digest: version.name for version in versions(data)}
    return HubState(
        sites=tuple(map(_site, sites)),
        campaigns=tuple(_campaign(store, data, row, [site.name for site in sites], names) for row in store.campaigns()),
        events=tuple(
            EventView(event=row.event, fields={k: str(v) for k, v in row.fields.items() if v != ""}, created=row.created)
            for row in store.journal(limit=EVENTS_SHOWN)
        ),
    )


def _site(row: SiteRow) -> SiteView:
    found = row.health.get("problems", ())
    problems = tuple(map(str, found)) if isinstance(found, list | tuple) else ()
    disk = row.health.get("disk_free_mb")
    status: SiteStatus = "healthy"
    if row.last_seen is None:
        status = "never seen"
    elif now() - row.last_seen > SILENT_AFTER:
        status = "silent"
    elif row.health.get("worker_alive") is False:
        status = "worker down"
    elif problems:
        status = "problems"
    return SiteView(
        name=row.name,
        status=status,
        last_seen=row.last_seen,
        software=str(row.health.get("software", "")),
        disk_free_mb=disk if isinstance(disk, int) else None,
        problems=problems,
    )


def _campaign(store: HubStore, data: Path, row: CampaignRow, sites: Sequence[str], names: Mapping[str, str]) -> CampaignView:
    offer = Campaign.model_validate(row.offer)
    jobs = {job.site: job for job in store.jobs(row.campaign_id)}
    notices = store.withdrawals()
    results = tuple(map(_result, store.results(row.campaign_id)))
    results = tuple(sorted(results, key=lambda r: (r.baseline, r.name == POOL, r.name, r.site == POOL, r.site)))
    return CampaignView(
        campaign_id=row.campaign_id,
        state=row.state,
        foundation=FoundationView(name=names.get(offer.foundation, ""), digest=offer.foundation),
        epsilon=offer.epsilon,
        delta=offer.delta,
        deadline=offer.deadline,
        images={label.value: count for label, count in offer.images.items() if count},
        created=row.created,
        jobs=tuple(_job(site, jobs.get(site)) for site in sorted({*sites, *jobs})),
        releases=tuple(
            release_view(release, data, notices, look_and_findings(store, release)[0]) for release in store.releases(campaign_id=row.campaign_id)
        ),
        pooled=next((model.trained_on for model in store.models(row.campaign_id) if model.name == POOL), ""),
        results=results,
        plot=interval_plot([Mark(r.name, r.site, r.auc.value, r.auc.low, r.auc.high, r.baseline) for r in results]) if results else None,
    )


def _job(site: str, row: JobRow | None) -> JobView:
    if row is None:
        return JobView(site=site, state="waiting", code="", progress=0, updated=None)
    return JobView(site=site, state=row.state, code=row.code, progress=row.progress, updated=row.updated)


def release_view(row: ReleaseRow, data: Path, notices: Set[tuple[str, str]], look: Look | None) -> ReleaseView:
    """One release that arrived.

    Args:
        row: The release.
        data: The hub's data folder.
        notices: ``HubStore.withdrawals``.
        look: How far the hub is with looking at it again.
    """
    there = row.state == "admitted" and (data / row.folder).is_dir()
    told = (row.campaign_id, row.site) in notices and row.state != "rejected"
    return ReleaseView(
        release_id=row.release_id,
        site=row.site,
        state=row.state,
        code=row.code,
        message=row.message,
        epsilon=row.epsilon,
        delta=row.delta,
        gate=row.gate,
        images=row.images,
        samples=min(SAMPLES, row.images) if there else 0,
        notice=withdrawal_words(row.epsilon, retired=row.state == "retired") if told else "",
        look=look,
        created=row.created,
    )


def _result(row: ResultRow) -> ResultView:
    """Details that are shown: ``sensitivity`` and ``specificity`` as [value, low, high], ``baseline`` as a truth value."""
    return ResultView(
        name=row.name,
        site=row.site,
        baseline=row.details.get("baseline") is True,
        auc=Rate(value=row.auc, low=row.low, high=row.high),
        sensitivity=_rate(row.details.get("sensitivity")),
        specificity=_rate(row.details.get("specificity")),
    )


def _rate(found: object) -> Rate | None:
    if not isinstance(found, list | tuple) or len(found) != 3 or not all(isinstance(part, int | float) for part in found):
        return None
    return Rate(value=found[0], low=found[1], high=found[2])
