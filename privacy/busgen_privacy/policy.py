"""The hospital's own limits, and what they say of an offer. The hub can ask for less, never for more."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from busgen_core.errors import PolicyError
from busgen_core.wire import Campaign

SMALLEST_HOLDOUT = 20  # with the smallest cohort, 30, a dozen attacks then still catch a leak of AUC .87 (power.caught_auc)
FAMILY_LEVEL = 0.05  # one release in twenty that gives nothing away is refused, over all attacks together; the usual level
TOLERATED_AUC = 0.575  # the most that epsilon 1 at delta 1e-5 allows (statistics.ceiling_auc): a strong promise, however the attacker tries
WEAKEST_PROMISE = 8.0  # epsilon beyond which a claim counts as none: its own ceiling, AUC .881, is nearly a memory of patients
MUST_CATCH_AUC = 0.881  # the most that epsilon 8 at delta 1e-5 allows: an audit too blind for the weakest promise is no evidence


class GatePolicy(BaseModel):
    """Thresholds of the gate; ``gate`` says why they stand where they stand.

    Attributes:
        smallest_holdout: Holdout patients below which an audit says nothing, so the gate refuses.
        near_copies: Released images that may be near copies of a member; above it the gate refuses.
        registered_copies: The same after shift, crop, flip and gray map are undone.
        family_level: Chance that a release that gives nothing away is refused by any of the attacks; higher refuses more.
        tolerated_auc: Where a promise was made, the AUC above which no attack may surely lie. Without a promise it is 1/2.
        weakest_promise: Claimed epsilon above which a claim counts as none.
        must_catch_auc: True AUC that at least one attack would have caught, four times out of five; else the audit is too blind.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    smallest_holdout: int = Field(default=SMALLEST_HOLDOUT, ge=10)
    near_copies: int = Field(default=0, ge=0)
    registered_copies: int = Field(default=0, ge=0)
    family_level: float = Field(default=FAMILY_LEVEL, gt=0, le=0.2)
    tolerated_auc: float = Field(default=TOLERATED_AUC, ge=0.5, lt=1)
    weakest_promise: float = Field(default=WEAKEST_PROMISE, ge=0)
    must_catch_auc: float = Field(default=MUST_CATCH_AUC, gt=0.5, le=1)


CONSORTIUM_GATE = GatePolicy()  # the floor of every hospital's gate, and the hub's own

# Which way each threshold is tightened.
TIGHTER: Mapping[str, Literal["higher", "lower"]] = {
    "smallest_holdout": "higher",
    "near_copies": "lower",
    "registered_copies": "lower",
    "family_level": "higher",
    "tolerated_auc": "lower",
    "weakest_promise": "lower",
    "must_catch_auc": "lower",
}


def tightened(local: GatePolicy, consortium: GatePolicy) -> GatePolicy:
    """The hospital's thresholds, if none is looser than the consortium's: the officer can tighten, never loosen. Pure.

    Raises:
        PolicyError: every threshold that is looser, by name.

    >>> tightened(GatePolicy(smallest_holdout=50), GatePolicy()).smallest_holdout
    50
    """
    reasons = []
    for name, way in TIGHTER.items():
        ours, floor = float(getattr(local, name)), float(getattr(consortium, name))
        if (ours < floor) if way == "higher" else (ours > floor):
            reasons.append(f"{name} is {ours:g}, {'at least' if way == 'higher' else 'at most'} {floor:g} is allowed")
    if reasons:
        raise PolicyError(f"the hospital's gate is looser than the consortium's floor: {'; '.join(reasons)}")
    return local


class Policy(BaseModel):
    """The hospital's limits. All privacy figures are for one patient added or removed.

    Attributes:
        lifetime_epsilon: Composed epsilon over all campaigns, for members and, separately, for holdout patients.
        lifetime_delta: Delta of that composition.
        campaign_epsilon: Largest epsilon of one campaign.
        smallest_cohort: Members below which no campaign is accepted.
        public_cohort: A public, round statement of the cohort's size; denominators use it, never the true size.
        auto_accept: Accept campaigns within these limits without asking the steward.
        audit_noise: Noise multiplier of the audit figures that travel.
        score_noise: Standard deviation, in patients, of the noise on scored counts.
        gate: Thresholds of the gate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lifetime_epsilon: float = Field(gt=0)
    lifetime_delta: float = Field(default=1e-5, gt=0, lt=1)
    campaign_epsilon: float = Field(gt=0)
    smallest_cohort: int = Field(default=30, ge=10)
    public_cohort: int = Field(ge=10)
    auto_accept: bool = False
    audit_noise: float = Field(default=4.0, gt=0)
    score_noise: float = Field(default=2.0, gt=0)
    gate: GatePolicy = GatePolicy()


def check_offer(campaign: Campaign, policy: Policy, *, members: int) -> None:
    """Raise unless the campaign stays within the policy. Pure.

    Raises:
        PolicyError: more epsilon or delta than allowed, or a cohort below the smallest; every reason is named.
    """
    reasons = []
    if campaign.epsilon > policy.campaign_epsilon:
        reasons.append(f"asks epsilon {campaign.epsilon:g}, {policy.campaign_epsilon:g} a campaign is allowed")
    if campaign.delta > policy.lifetime_delta:
        reasons.append(f"asks delta {campaign.delta:g}, {policy.lifetime_delta:g} is allowed")
    if campaign.delta >= 1 / policy.public_cohort:
        reasons.append(f"delta {campaign.delta:g} is not below 1 / {policy.public_cohort} patients")
    if policy.lifetime_delta >= 1 / policy.public_cohort:
        reasons.append(f"the policy's own lifetime_delta {policy.lifetime_delta:g} is not below 1 / {policy.public_cohort} patients; lower it")
    if members < policy.smallest_cohort:
        reasons.append(f"the cohort is below the smallest allowed, {policy.smallest_cohort} patients")
    if reasons:
        raise PolicyError(f"campaign {campaign.campaign_id} declined: {'; '.join(reasons)}")
