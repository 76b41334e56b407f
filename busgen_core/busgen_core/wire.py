"""What crosses the wire between hub and node: one versioned pydantic model for each payload, and nothing else.

A node sends only: its health, a campaign's job state, releases in chunks, and noised binned counts. Bytes travel
beside the JSON (as uint8 arrays), never inside it.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from busgen_core.labels import Pathology

PROTOCOL: Literal[1] = 1
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


FOUNDATION_FILES = (  # what a foundation folder consists of, and what is sent of it
    "model_index.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "labels/config.json",
    "labels/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
    "boxes.json",
    "README.md",
)


class Payload(BaseModel):
    """Base of all payloads: immutable, no unknown fields, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: Literal[1] = PROTOCOL


class JobState(StrEnum):
    """What a node makes of a campaign."""

    OFFERED = "offered"
    ACCEPTED = "accepted"
    ADAPTING = "adapting"
    GENERATING = "generating"
    AUDITING = "auditing"
    REVIEW = "review"
    RELEASED = "released"
    DECLINED = "declined"  # the policy or the steward said no
    REFUSED = "refused"  # the gate or the privacy officer said no
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """True when nothing more happens on the node."""
        return self in {JobState.RELEASED, JobState.DECLINED, JobState.REFUSED, JobState.FAILED}


class Campaign(Payload):
    """A request by the hub."""

    campaign_id: Name
    task: Literal["diagnosis"] = "diagnosis"
    images: Mapping[Pathology, Annotated[int, Field(ge=0, le=1_000_000)]]  # synthetic images wanted for each label
    epsilon: Annotated[float, Field(gt=0, le=100)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    foundation: Digest
    foundation_bytes: Annotated[int, Field(gt=0)]  # size of the packed foundation
    foundation_package: Digest  # SHA-256 of the packed foundation
    deadline: str  # ISO 8601 date


class Hello(Payload):
    """Hub asks: who are you, how are you."""

    kind: Literal["hello"] = "hello"


class HelloReply(Payload):
    """Node's name, software version, health."""

    site: Name
    software: str
    worker_alive: bool
    disk_free_mb: int
    problems: tuple[str, ...] = ()  # stable codes, no free text
    withdrawal_notices: tuple[Name, ...] = ()  # campaigns whose release from here holds a withdrawn patient; no number, no identity


class Offer(Payload):
    """Hub offers a campaign; repeating it is harmless."""

    kind: Literal["offer"] = "offer"
    campaign: Campaign


class JobStatus(Payload):
    """State of one job; also the reply to an offer and to a receipt."""

    campaign_id: Name
    state: JobState
    code: str = ""  # stable code of the reason when declined, refused or failed
    progress: Annotated[float, Field(ge=0, le=1)] = 0.0
    foundation_have: int = 0  # bytes of the foundation that the node holds
    release_id: str = ""
    release_bytes: int = 0
    release_sha256: str = ""
    withdrawal_notice: bool = False  # the release holds a patient who withdrew consent since; no number, no identity


class StatusRequest(Payload):
    """Hub asks for the state of a campaign's job."""

    kind: Literal["status"] = "status"
    campaign_id: Name


class FoundationChunk(Payload):
    """A piece of the packed foundation; the bytes travel beside it. Reply: JobStatus with foundation_have."""

    kind: Literal["foundation"] = "foundation"
    campaign_id: Name
    offset: Annotated[int, Field(ge=0)]
    total: Annotated[int, Field(gt=0)]


class ReleaseRequest(Payload):
    """Hub asks for a piece of the packed release."""

    kind: Literal["release"] = "release"
    campaign_id: Name
    offset: Annotated[int, Field(ge=0)]
    length: Annotated[int, Field(gt=0, le=64 * 2**20)]


class ReleaseChunk(Payload):
    """A piece of the packed release; the bytes travel beside it."""

    release_id: str
    offset: int
    total: int
    chunk_sha256: Digest


class Receipt(Payload):
    """Hub tells whether the release was admitted. Reply: JobStatus."""

    kind: Literal["receipt"] = "receipt"
    campaign_id: Name
    release_id: str
    admitted: bool
    code: str = ""


class ScoreRequest(Payload):
    """Hub sends a downstream model (safetensors bytes beside it) to be scored on holdout patients."""

    kind: Literal["score"] = "score"
    campaign_id: Name
    model_id: Name
    weights_sha256: Digest
    edges: tuple[float, ...]  # inner edges of the score bins, strictly increasing


class BinnedCounts(Payload):
    """Noised patient counts for each score bin and class; None where suppressed.

    Attributes:
        benign: Noised counts of benign patients, one for each bin; None for a cell below ``suppressed_below``.
        malignant: The same of malignant patients.
        benign_total: Noised number of benign patients over all bins.
        malignant_total: The same of malignant patients.
        noise: Standard deviation of the Gaussian noise on every number, in patients.
    """

    benign: tuple[float | None, ...]
    malignant: tuple[float | None, ...]
    benign_total: float
    malignant_total: float
    noise: float
    suppressed_below: float


class ScoreReply(Payload):
    """Binned counts of one model at one site, or the stable code of a refusal."""

    campaign_id: Name
    model_id: Name
    counts: BinnedCounts | None = None
    code: str = ""


class ErrorReply(Payload):
    """A named refusal in place of a reply; never free text from the node."""

    kind: Literal["error"] = "error"
    code: str
