"""What the node answers: from its store, at once, without torch. The worker does the work."""

import shutil
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from busgen_client import __version__
from busgen_client.cohort import CohortStore
from busgen_client.database import open_store
from busgen_client.jobs import JobStore
from busgen_client.settings import NodeSettings
from busgen_core.digests import sha256_bytes
from busgen_core.errors import BusgenError, ConfigError, PolicyError, StateError, TransferError
from busgen_core.transfer import append_chunk
from busgen_core.wire import (
    BinnedCounts,
    Campaign,
    ErrorReply,
    FoundationChunk,
    Hello,
    HelloReply,
    JobState,
    JobStatus,
    Offer,
    Payload,
    Receipt,
    ReleaseChunk,
    ReleaseRequest,
    ScoreReply,
    ScoreRequest,
    StatusRequest,
)
from busgen_privacy.policy import check_offer

Request = Annotated[Hello | Offer | StatusRequest | FoundationChunk | ReleaseRequest | Receipt | ScoreRequest, Field(discriminator="kind")]
REQUEST: TypeAdapter[Request] = TypeAdapter(Request)
WORKER_SILENT_SECONDS = 60.0
LOCAL_REPORT = "report.html"  # the hospital's version of the audit report, with nearest pairs; never leaves
COHORT_FILE = "cohort.json"  # the images that a job is bound to, by id


class NodeProtocol:
    """Answers the hub's messages for one node."""

    def __init__(self, settings: NodeSettings) -> None:
        engine = open_store(settings.data)
        self.settings = settings
        self.jobs = JobStore(engine)
        self.cohort = CohortStore(engine, settings.data)

    def respond(self, text: str, data: bytes) -> tuple[Payload, bytes]:
        """Answer one message; every refusal is an ErrorReply with a stable code, no free text."""
        try:
            request = REQUEST.validate_json(text)
        except ValidationError:
            return ErrorReply(code=ConfigError.code), b""
        try:
            return self._dispatch(request, data)
        except BusgenError as error:
            return ErrorReply(code=error.code), b""

    def _dispatch(self, request: Request, data: bytes) -> tuple[Payload, bytes]:
        match request:
            case Hello():
                return self._hello(), b""
            case Offer():
                return self._offer(request), b""
            case StatusRequest():
                return self.jobs.status(request.campaign_id), b""
            case FoundationChunk():
                return self._foundation(request, data), b""
            case ReleaseRequest():
                return self._release(request)
            case Receipt():
                self.jobs.set_receipt(request.campaign_id, admitted=request.admitted, code=request.code)
                return self.jobs.status(request.campaign_id), b""
            case ScoreRequest():
                return self._score(request, data), b""

    def _hello(self) -> HelloReply:
        alive = self.jobs.worker_age_seconds() < WORKER_SILENT_SECONDS
        free = shutil.disk_usage(self.settings.data).free // 2**20
        problems = (() if alive else ("worker-silent",)) + (() if free > 500 else ("disk-low",))
        return HelloReply(
            site=self.settings.site,
            software=__version__,
            worker_alive=alive,
            disk_free_mb=free,
            problems=problems,
            withdrawal_notices=self.jobs.notices(),
        )

    def _offer(self, request: Offer) -> JobStatus:
        row = self.jobs.offer(request.campaign)
        if row.state == JobState.OFFERED and self.settings.policy.auto_accept:
            decide(self.jobs, self.cohort, self.settings, request.campaign.campaign_id)
        return self.jobs.status(row.campaign_id)

    def _foundation(self, request: FoundationChunk, data: bytes) -> JobStatus:
        row = self.jobs.need(request.campaign_id)
        campaign = Campaign.model_validate_json(row.campaign)
        if row.state == JobState.ACCEPTED and request.total == campaign.foundation_bytes:
            part = foundation_part(self.settings.data, campaign.campaign_id)
            have = append_chunk(part, offset=request.offset, data=data, total=request.total, sha256=campaign.foundation_package)
            self.jobs.set_foundation(campaign.campaign_id, have)
        return self.jobs.status(request.campaign_id)

    def _release(self, request: ReleaseRequest) -> tuple[ReleaseChunk, bytes]:
        row = self.jobs.need(request.campaign_id)
        if row.state != JobState.RELEASED:
            raise StateError(f"campaign {request.campaign_id} has no release")
        with release_file(self.settings.data, request.campaign_id).open("rb") as stream:
            stream.seek(request.offset)
            piece = stream.read(request.length)
        return ReleaseChunk(release_id=row.release_id, offset=request.offset, total=row.release_bytes, chunk_sha256=sha256_bytes(piece)), piece

    def _score(self, request: ScoreRequest, data: bytes) -> ScoreReply:
        answer = ScoreReply(campaign_id=request.campaign_id, model_id=request.model_id)
        self.jobs.need(request.campaign_id)
        row = self.jobs.score(request.model_id)
        if row is not None and row.request != request.model_dump_json():
            raise StateError(f"model {request.model_id} was sent before with other terms")
        if row is not None and row.state != "pending":
            counts = BinnedCounts.model_validate_json(row.counts) if row.counts else None
            return answer.model_copy(update={"counts": counts, "code": row.code})
        if row is None:
            if not data:
                return answer.model_copy(update={"code": "weights-needed"})
            if sha256_bytes(data) != request.weights_sha256:
                raise TransferError("the weights that arrived are not those announced")
            target = model_file(self.settings.data, request.model_id)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            self.jobs.request_score(request)
        return answer.model_copy(update={"code": "pending"})


def decide(jobs: JobStore, cohort: CohortStore, settings: NodeSettings, campaign_id: str) -> JobState:
    """Accept an offered campaign, or decline it when the policy says no; the state it then has."""
    row = jobs.need(campaign_id)
    campaign = Campaign.model_validate_json(row.campaign)
    try:
        check_offer(campaign, settings.policy, members=cohort.count_patients("member"))
    except PolicyError as error:
        jobs.move(campaign_id, JobState.DECLINED, code=error.code, message=str(error))
        return JobState.DECLINED
    jobs.move(campaign_id, JobState.ACCEPTED)
    return JobState.ACCEPTED


def job_folder(data: Path, campaign_id: str) -> Path:
    """Working folder of a job."""
    return data / "jobs" / campaign_id


def foundation_part(data: Path, campaign_id: str) -> Path:
    """Where the packed foundation of a campaign arrives."""
    return job_folder(data, campaign_id) / "foundation.tar"


def release_file(data: Path, campaign_id: str) -> Path:
    """The packed, signed release of a job."""
    return job_folder(data, campaign_id) / "release.tar"


def model_file(data: Path, model_id: str) -> Path:
    """Weights of a downstream model that the hub sent."""
    return data / "models" / f"{model_id}.safetensors"
