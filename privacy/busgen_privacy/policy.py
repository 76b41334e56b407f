"""The hospital's own limits, and what they say of an offer. The hub can ask for less, never for more."""

from pydantic import BaseModel, ConfigDict, Field

from busgen_core.errors import PolicyError
from busgen_core.wire import Campaign


class GatePolicy(BaseModel):
    """Thresholds of the gate.

    Attributes:
        smallest_holdout: Holdout patients below which an audit says nothing, so the gate refuses.
        near_copies: Released images that may be near copies of a member; above it the gate refuses.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    smallest_holdout: int = Field(default=20, ge=10)
    near_copies: int = Field(default=0, ge=0)


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
