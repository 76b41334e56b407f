"""What a suite of attacks found, exact: for the hospital's eyes. As JSON it follows docs/audit.schema.json."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from busgen_privacy.pixel_text import PixelText

Share = float  # in [0, 1]


class _Finding(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Hits(_Finding):
    """Members found at a rate of false alarms, by patient.

    Attributes:
        fpr: Share of holdout patients taken for members, at most.
        tpr: Share of members found.
        low: Lower end of the exact 95 % interval; it pays for the threshold too.
        high: Upper end.
        bootstrap_low: Lower end of the bootstrap's 95 % interval; narrower, and only roughly right where fpr x holdout is small.
        bootstrap_high: Upper end.
        ceiling: The most that the claim allows; None without a claim.
        surely: Lower end that holds for the hit rates of all attacks together; the gate holds it against the ceiling.
    """

    fpr: float = Field(gt=0, lt=1)
    tpr: Share = Field(ge=0, le=1)
    low: Share = Field(ge=0, le=1)
    high: Share = Field(ge=0, le=1)
    bootstrap_low: Share = Field(ge=0, le=1)
    bootstrap_high: Share = Field(ge=0, le=1)
    ceiling: float | None = Field(default=None, ge=0, le=1)
    surely: Share = Field(default=0.0, ge=0, le=1)


class PatientScores(_Finding):
    """Scores by patient, in the order of their keys; for curves."""

    members: tuple[float, ...]
    holdout: tuple[float, ...]


class AttackFinding(_Finding):
    """One membership attack.

    Attributes:
        name: Short stable name.
        kind: What the attacker holds: the adapted network, or only the released images.
        what: The question that it asks, for people.
        source: Paper.
        cost: Network passes (white-box) or distances (black-box) in all.
        auc: Chance that a member scores above a holdout patient, ties half.
        low: Lower end of the 95 % interval, bootstrap by patient.
        high: Upper end.
        exact_low: Lower end of the 95 % interval that holds at every size and for every law of the scores (``statistics.auc_exact_interval``).
        exact_high: Upper end.
        reach: Largest AUC that these scores allow, however they were split: below 1 where many are equal.
        chance: How often a release that learnt nothing gives this AUC or a larger one (exact, or permutation).
        ceiling: Largest AUC that the claim allows; None without a claim.
        outright: Share of members above every holdout patient.
        hits: At 1 % and .1 % false alarms where there are patients enough, and at 5 %.
        epsilon_low: Lower bound of epsilon at 95 %, if the mechanism is Gaussian (``leak.gaussian_epsilon``).
        epsilon_any: The same for any mechanism, at one threshold (``leak.split_epsilon``).
        epsilon_coin: The same for any mechanism, from the draw of the roles (``leak.drawn_epsilon``); None: roles were not drawn one by one.
        caught: Smallest true AUC that this attack would have caught, four times out of five; None: none, for too few patients
            or too many equal scores.
        diagnostic: Shown, never deciding.
        scores: By patient.
        members: Member patients attacked.
        holdout: Holdout patients attacked.
    """

    name: str
    kind: Literal["white-box", "black-box"]
    what: str
    source: str
    cost: float = Field(ge=0)
    auc: Share = Field(ge=0, le=1)
    low: Share = Field(ge=0, le=1)
    high: Share = Field(ge=0, le=1)
    exact_low: Share = Field(default=0.0, ge=0, le=1)
    exact_high: Share = Field(default=1.0, ge=0, le=1)
    reach: Share = Field(default=1.0, ge=0, le=1)
    chance: Share = Field(ge=0, le=1)
    ceiling: float | None = Field(default=None, ge=0.5, le=1)
    outright: Share = Field(default=0.0, ge=0, le=1)
    hits: tuple[Hits, ...]
    epsilon_low: float = Field(ge=0)
    epsilon_any: float = Field(default=0.0, ge=0)
    epsilon_coin: float | None = Field(default=None, ge=0)
    caught: float | None = Field(default=None, ge=0.5, le=1)
    diagnostic: bool
    scores: PatientScores
    members: int = Field(ge=1)
    holdout: int = Field(ge=1)


class Pair(_Finding):
    """A released image and the member image nearest to it; rows, never keys."""

    released: int = Field(ge=0)
    member: int = Field(ge=0)
    distance: float = Field(ge=0)
    mirrored: bool = False


class CopyFinding(_Finding):
    """Released images that are copies of real ones.

    Attributes:
        count: Images nearer to a member's image than ``threshold``.
        holdout_count: The same against holdout patients: what chance gives.
        compared: Released, or generated, images compared.
        threshold: Distance (1 - correlation) below which an image counts as a copy.
        closest: The closest pairs, nearest first.
    """

    count: int = Field(ge=0)
    holdout_count: int = Field(ge=0)
    compared: int = Field(ge=1)
    threshold: float = Field(ge=0)
    closest: tuple[Pair, ...]


class Disclosure(_Finding):
    """Holdout disclosure: share of released images whose nearest patient is a member, sides of equal size; chance by permutation. Diagnostic."""

    share: Share = Field(ge=0, le=1)
    chance_low: Share = Field(ge=0, le=1)
    chance_high: Share = Field(ge=0, le=1)
    chance: Share = Field(ge=0, le=1)


class ClosestRecords(_Finding):
    """5th percentiles of distances and of distance ratios; diagnostic, and never a reason to release."""

    member_distance: float = Field(ge=0)
    holdout_distance: float = Field(ge=0)
    member_ratio: float = Field(ge=0)
    holdout_ratio: float = Field(ge=0)


class Distances(_Finding):
    """Distance of each released image to the nearest one of each group, in the embedding's units; for histograms."""

    members: tuple[float, ...]
    holdout: tuple[float, ...]
    reference: tuple[float, ...]


class Scanners(_Finding):
    """Which public scanner the released images look most like; ``attributes.ScannerLeak`` in JSON. Diagnostic.

    Attributes:
        shares: Of the released images, by scanner, 0 to 1.
        before: The same of images that the generator drew before it was adapted; None: there are none. Only a difference speaks of patients.
        sure: Share that looks like one scanner with near certainty.
        accuracy: Balanced accuracy with which public scanners are told apart, by patient; near chance the shares say nothing.
        chance_low: 2.5 % quantile of that accuracy under permuted scanners.
        chance_high: 97.5 % quantile.
    """

    shares: Mapping[str, float]
    before: Mapping[str, float] | None = None
    sure: float = Field(ge=0, le=1)
    accuracy: float = Field(ge=0, le=1)
    chance_low: float = Field(ge=0, le=1)
    chance_high: float = Field(ge=0, le=1)


class Findings(_Finding):
    """Everything that a suite found. Members and holdout are numbers of patients. Exact: never leaves the hospital.

    Attributes:
        epsilon: Claim, where one was made.
        delta: Claim.
        attacks: Deciding and diagnostic ones.
        near_copies: Copies by pixels as they are.
        registered_copies: Copies once shift, crop, flip and gray map are undone.
        disclosure: Holdout disclosure.
        closest_records: Diagnostic.
        distances: For histograms.
        members: Member patients.
        holdout: Holdout patients.
        released: Released images.
        reference: Public images that attacks were calibrated on.
        duplicates: Released images that are byte for byte another released one.
        text: Text in the released pixels; None: not looked for.
        scanners: What the released images say of the scanner; None: no public images of known scanners.
        not_run: What was not run here, and why, a sentence each.
        seed: Of everything random; None: not kept.
        table_sha256: Of the released table, where a node audited it; it signs no other.
    """

    version: Literal[3] = 3
    epsilon: float | None = Field(default=None, gt=0)
    delta: float | None = Field(default=None, gt=0, lt=1)
    attacks: tuple[AttackFinding, ...]
    near_copies: CopyFinding
    registered_copies: CopyFinding
    disclosure: Disclosure
    closest_records: ClosestRecords
    distances: Distances
    members: int = Field(ge=1)
    holdout: int = Field(ge=1)
    released: int = Field(ge=1)
    reference: int = Field(ge=1)
    duplicates: int = Field(ge=0)
    text: PixelText | None = None
    scanners: Scanners | None = None
    not_run: tuple[str, ...]
    seed: int | None = Field(default=None, ge=0)
    table_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
