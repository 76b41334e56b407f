"""What the hub says next to one site: a pure function of what it knows. DESIGN.md's protocol in one place."""

from collections.abc import Sequence
from dataclasses import dataclass

from busgen_core.wire import (
    Campaign,
    FoundationChunk,
    Hello,
    JobState,
    Offer,
    Payload,
    Receipt,
    ReleaseRequest,
    ScoreRequest,
    StatusRequest,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What became of a site's release here."""

    release_id: str
    admitted: bool
    code: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JobView:
    """A job as the hub last heard of it."""

    state: JobState
    foundation_have: int
    release_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteView:
    """All that decides the next message to one site about one campaign.

    Attributes:
        campaign: The campaign.
        hello_due: The site was not heard of lately.
        status_due: The last status is older than the polling interval.
        job: Its job, None before the first answer to the offer.
        held: Bytes of its release that are here.
        judged: What became of its release, None while it is not judged.
        receipt_told: The node was told so in this run.
        scores_due: Models that it has not yet scored.
    """

    campaign: Campaign
    hello_due: bool
    status_due: bool
    job: JobView | None
    held: int
    judged: Judged | None
    receipt_told: bool
    scores_due: Sequence[ScoreRequest]


def next_request(view: SiteView, *, chunk_bytes: int) -> Payload | None:
    """The next message to this site, or None when there is nothing to say now. Pure."""
    campaign_id = view.campaign.campaign_id
    if view.hello_due:
        return Hello()
    if view.job is None:
        return Offer(campaign=view.campaign)
    if view.job.state is JobState.ACCEPTED and view.job.foundation_have < view.campaign.foundation_bytes:
        return FoundationChunk(campaign_id=campaign_id, offset=view.job.foundation_have, total=view.campaign.foundation_bytes)
    if not view.job.state.ended:
        return StatusRequest(campaign_id=campaign_id) if view.status_due else None
    if view.job.state is JobState.RELEASED:
        if view.judged is None:
            return ReleaseRequest(campaign_id=campaign_id, offset=view.held, length=chunk_bytes)
        if not view.receipt_told:
            return Receipt(campaign_id=campaign_id, release_id=view.judged.release_id, admitted=view.judged.admitted, code=view.judged.code)
        if view.scores_due and view.status_due:
            return view.scores_due[0]
    return None


def settled(job: JobView | None, judged: Judged | None) -> bool:
    """True when nothing more is to be expected of a site before scoring."""
    return job is not None and job.state.ended and (job.state is not JobState.RELEASED or judged is not None)
