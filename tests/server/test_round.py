"""The hub's next word to a site, as a pure function."""

from dataclasses import replace

import pytest

from busgen_core.labels import Pathology
from busgen_core.wire import Campaign, FoundationChunk, Hello, JobState, Offer, Payload, Receipt, ReleaseRequest, ScoreRequest, StatusRequest
from busgen_server.round import JobView, Judged, SiteView, next_request, settled

CAMPAIGN = Campaign(
    campaign_id="c1",
    images={Pathology.BENIGN: 5, Pathology.MALIGNANT: 5},
    epsilon=8,
    delta=1e-5,
    foundation="0" * 64,
    foundation_bytes=100,
    foundation_package="1" * 64,
    deadline="2030-01-01",
)
JOB = JobView(state=JobState.ACCEPTED, foundation_have=100, release_id="")
RELEASED = JobView(state=JobState.RELEASED, foundation_have=100, release_id="r1")
JUDGED = Judged(release_id="r1", admitted=True, code="")
SCORE = ScoreRequest(campaign_id="c1", model_id="m1", weights_sha256="2" * 64, edges=(0.5,))
QUIET = SiteView(campaign=CAMPAIGN, hello_due=False, status_due=True, job=JOB, held=0, judged=None, receipt_told=False, scores_due=())

SITUATIONS: dict[str, tuple[SiteView, Payload | None]] = {
    "not heard of lately": (replace(QUIET, hello_due=True), Hello()),
    "no job yet": (replace(QUIET, job=None), Offer(campaign=CAMPAIGN)),
    "foundation incomplete": (replace(QUIET, job=replace(JOB, foundation_have=40)), FoundationChunk(campaign_id="c1", offset=40, total=100)),
    "at work": (QUIET, StatusRequest(campaign_id="c1")),
    "asked a moment ago": (replace(QUIET, status_due=False), None),
    "declined": (replace(QUIET, job=replace(JOB, state=JobState.DECLINED)), None),
    "release half here": (replace(QUIET, job=RELEASED, held=7), ReleaseRequest(campaign_id="c1", offset=7, length=65536)),
    "release judged": (replace(QUIET, job=RELEASED, judged=JUDGED), Receipt(campaign_id="c1", release_id="r1", admitted=True)),
    "model to score": (replace(QUIET, job=RELEASED, judged=JUDGED, receipt_told=True, scores_due=[SCORE]), SCORE),
    "all said": (replace(QUIET, job=RELEASED, judged=JUDGED, receipt_told=True), None),
}


@pytest.mark.parametrize(("view", "expected"), SITUATIONS.values(), ids=SITUATIONS)
def test_each_situation_has_one_next_word(view: SiteView, expected: Payload | None) -> None:
    """What the hub knows of a site decides what it says next, and nothing else does."""
    assert next_request(view, chunk_bytes=65536) == expected


def test_a_site_is_settled_only_when_nothing_more_can_come() -> None:
    """A release counts once it was judged; a decline counts at once; silence never does."""
    assert settled(replace(JOB, state=JobState.DECLINED), None)
    assert settled(RELEASED, JUDGED)
    assert not settled(RELEASED, None)
    assert not settled(JOB, None)
    assert not settled(None, None)
