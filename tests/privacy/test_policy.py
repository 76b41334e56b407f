"""What the hospital's limits say of an offer."""

import pytest

from busgen_core.errors import PolicyError
from busgen_core.labels import Pathology
from busgen_core.wire import Campaign
from busgen_privacy.policy import Policy, check_offer

POLICY = Policy(lifetime_epsilon=16, campaign_epsilon=8, public_cohort=500)
OFFER = Campaign(
    campaign_id="spring",
    images={Pathology.BENIGN: 5},
    epsilon=8,
    delta=1e-5,
    foundation="0" * 64,
    foundation_bytes=1,
    foundation_package="1" * 64,
    deadline="2030-01-01",
)
LAX = POLICY.model_copy(update={"lifetime_delta": 1e-2})

REFUSED = {
    "more epsilon": (OFFER.model_copy(update={"epsilon": 8.01}), POLICY, 500, "epsilon 8.01"),
    "more delta": (OFFER.model_copy(update={"delta": 2e-5}), POLICY, 500, "delta 2e-05, 1e-05 is allowed"),
    "delta of one in n": (OFFER.model_copy(update={"delta": 1 / 500}), LAX, 500, "delta 0.002 is not below 1 / 500"),
    "delta above one in n": (OFFER.model_copy(update={"delta": 5e-3}), LAX, 500, "delta 0.005 is not below 1 / 500"),
    "the policy's own delta": (OFFER, LAX, 500, "lifetime_delta 0.01 is not below 1 / 500"),
    "too few patients": (OFFER, POLICY, 29, "smallest allowed, 30"),
}


@pytest.mark.parametrize(("offer", "policy", "members", "said"), REFUSED.values(), ids=REFUSED)
def test_an_offer_outside_the_policy_is_refused_by_name(offer: Campaign, policy: Policy, members: int, said: str) -> None:
    """Each limit that an offer passes is named with both numbers; the true number of patients is not."""
    with pytest.raises(PolicyError, match="spring declined") as caught:
        check_offer(offer, policy, members=members)
    assert said in str(caught.value)
    assert caught.value.code == "policy-declined"
    assert "29" not in str(caught.value)


def test_an_offer_at_the_limits_is_accepted() -> None:
    """Exactly the epsilon, the delta and the smallest cohort are within; delta just below one in n is too."""
    check_offer(OFFER, POLICY, members=30)
    check_offer(OFFER.model_copy(update={"delta": 1.99e-3}), POLICY.model_copy(update={"lifetime_delta": 1.999e-3}), members=30)
