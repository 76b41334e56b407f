"""Plans: they keep their epsilon, split it as asked, and tell a cohort that is too small so before anything is spent."""

import json

import pytest

from busgen_core.errors import ConfigError
from busgen_privacy.dp.accounting import GaussianEvent, epsilon_of, gdp_mu
from busgen_privacy.dp.plan import LEARNING_RATE, AdaptationPlan, choose_subset
from busgen_privacy.dp.planner import (
    LOUDEST_MEAN,
    ORDER,
    Mechanics,
    Pace,
    Rehearsal,
    audit_noise,
    check_time,
    forecast,
    nearest,
    recommend,
    seconds_of,
    shipped,
    split,
)
from busgen_privacy.policy import Policy

MECHANICS = Mechanics(steps=20, patient_rate=0.25, draws=2)
EVERYONE = Mechanics(steps=20, patient_rate=1.0, draws=2)  # whose noise is found in a tenth of the time, where the noise is not the claim
ALL = {"vote": 0.1, "mean": 0.4, "dp-sgd": 0.5}


def policy(cohort: int = 600) -> Policy:
    """A hospital with a public cohort."""
    return Policy(lifetime_epsilon=20, campaign_epsilon=8, public_cohort=cohort)


@pytest.mark.parametrize("shares", [ALL, {"dp-sgd": 1.0}, {"vote": 1.0}, {"mean": 1.0}, {"vote": 0.1, "mean": 0.9}, {}], ids=str)
@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_a_plan_keeps_its_epsilon_and_uses_it(shares: dict[str, float], epsilon: float) -> None:
    """Mechanisms and audit together stay within the campaign's epsilon, by both accountants, and come near it."""
    plan = split(shares, policy=policy(), epsilon=epsilon, delta=1e-5, mechanics=MECHANICS)  # type: ignore[arg-type]
    spent = epsilon_of([*plan.events(), plan.audit_event()], delta=1e-5).epsilon
    assert spent <= epsilon
    assert not shares or spent > 0.98 * epsilon
    assert {name for name, _ in plan.mechanisms()} == set(shares)


def test_shares_are_shares_of_mu_squared() -> None:
    """A mechanism with a quarter of the budget has twice the noise of one with all of it (up to the audit's part)."""
    plan = split({"vote": 0.2, "mean": 0.8}, policy=policy(), epsilon=8, delta=1e-5)
    assert plan.vote_noise is not None
    assert plan.mean_noise is not None
    assert plan.vote_noise / plan.mean_noise == pytest.approx(2.0, rel=0.02)


def test_the_audit_never_takes_more_than_a_tenth() -> None:
    """At small epsilon the travelling figures get more noise than the policy asks for; at large the policy's."""
    assert audit_noise(policy(), 8.0, 1e-5) == 4.0
    loud = audit_noise(policy(), 1.0, 1e-5)
    assert 1 / loud**2 == pytest.approx(0.1 * gdp_mu(1.0, 1e-5) ** 2)


def test_small_cohorts_are_told_so() -> None:
    """With fewer patients the plan goes from means to the vote alone and then to the foundation as it is; every step says why."""
    chosen = [recommend(policy=policy(n), epsilon=2.0, delta=1e-5) for n in (2000, 30, 12)]
    assert [[name for name, _ in plan.mechanisms()] for plan in chosen] == [["vote", "mean"], ["vote"], []]
    assert chosen[2].events() == ()
    for plan in chosen[1:]:
        assert f"{plan.public_cohort} patients are too few" in plan.reasons[0]
        assert f"{plan.public_cohort} patients are too few" in " ".join(plan.words())
    assert f"{LOUDEST_MEAN:g}" in chosen[0].reasons[0]


def test_a_plan_says_in_words_what_it_learns() -> None:
    """Every mechanism has its sentence; where none runs, that is the sentence."""
    words = [split(dict.fromkeys(names, 1.0), policy=policy(), epsilon=8, delta=1e-5, mechanics=EVERYONE).words() for names in ((), ORDER)]
    assert words[0] == (words[0][0],)
    assert "Nothing was learnt" in words[0][0]
    assert [said in sentence for said, sentence in zip(("voted", "class means", "DP-SGD: 20 steps"), words[1], strict=True)] == [True] * 3


def test_a_plan_reads_back_as_it_was_written() -> None:
    """JSON and back gives the same plan and digest; a changed number another digest; odd JSON a named error."""
    plan = split(ALL, policy=policy(), epsilon=8, delta=1e-5, mechanics=EVERYONE)
    text = json.dumps(plan.to_dict())
    again = AdaptationPlan.from_dict(json.loads(text))
    assert again == plan
    assert again.digest() == plan.digest() != AdaptationPlan.from_dict(json.loads(text) | {"candidates": 9}).digest()
    for bad in ({"candidates": 3}, json.loads(text) | {"more": 1}):
        with pytest.raises(ConfigError):
            AdaptationPlan.from_dict(bad)


def test_plans_that_break_their_promise_are_refused() -> None:
    """Delta of 1/n or more, another epsilon in the DP-SGD run, or too little noise: no such plan is made or checked."""
    with pytest.raises(ConfigError, match="delta"):
        AdaptationPlan(public_cohort=600, epsilon=8, delta=1 / 600, audit_noise=4)
    plan = split({"vote": 1.0}, policy=policy(), epsilon=8, delta=1e-5)
    with pytest.raises(ConfigError, match="promised"):
        plan.check([plan.audit_event(), GaussianEvent(2.0, 1.0, 1)])
    with pytest.raises(ConfigError, match="steps"):
        split({"dp-sgd": 1.0}, policy=policy(), epsilon=8, delta=1e-5)


def test_the_subset_follows_from_public_constants() -> None:
    """d <= (mu n / 8)^2 decides, and where nothing fits film is taken; a plan has the subset's rehearsed step size."""
    found = [choose_subset(epsilon=e, delta=1e-5, public_cohort=n) for e, n in ((1, 300), (8, 300), (8, 400), (8, 600), (8, 8000))]
    assert found == ["film", "film", "film", "bias-norm", "full"]
    plan = split({"dp-sgd": 1.0}, policy=policy(), epsilon=8, delta=1e-5, mechanics=EVERYONE)
    assert plan.dpsgd is not None
    assert (plan.dpsgd.subset, plan.dpsgd.learning_rate) == ("bias-norm", LEARNING_RATE["bias-norm"])


def test_the_forecast_never_promises_more_than_a_smaller_rehearsal() -> None:
    """Of the rehearsals of the same mechanisms, the nearest with no more patients and no more epsilon is quoted, or none."""
    table = [Rehearsal(patients=n, epsilon=e, choice="mean", gain=n / 1e4, low=0, high=1) for n in (100, 200, 400) for e in (1.0, 4.0, 8.0)]
    found = nearest("mean", cohort=300, epsilon=5.0, table=table)
    assert found is not None
    assert (found.patients, found.epsilon) == (200, 4.0)
    assert nearest("mean", cohort=99, epsilon=8, table=table) is None
    assert nearest("vote", cohort=500, epsilon=8, table=table) is None


def test_a_forecast_states_both_accountants_and_every_mechanism() -> None:
    """What is printed holds epsilon by PLD and PRV, each mechanism's own, time, and the reasons."""
    plan = recommend(policy=policy(2000), epsilon=4.0, delta=1e-5)
    found = forecast(plan, seconds=120.0)
    assert found.epsilon >= max(found.pld, found.prv)
    assert set(found.spends) == {"vote", "mean", "audit figures"}
    assert all(0 < e < found.epsilon for e in found.spends.values())
    for words in ("vote+mean", "PLD", "PRV", "2.0 minutes", plan.reasons[0]):
        assert words in found.words()
    assert all(r.low <= r.gain <= r.high for r in shipped())


def test_time_is_reckoned_and_a_plan_that_takes_too_long_is_refused() -> None:
    """More candidates and more steps take longer; the refusal says how many steps would fit, and that many do."""
    pace = Pace(image=0.05, look=0.03, gradient=0.05)
    plan = split(ALL, policy=policy(), epsilon=8, delta=1e-5, mechanics=EVERYONE)
    seconds = seconds_of(plan, pace, images=500)
    assert seconds > seconds_of(plan, pace, images=100)
    check_time(plan, pace, images=500, minutes=seconds / 60 + 0.01)
    with pytest.raises(ConfigError, match="DP-SGD steps would fit") as refused:
        check_time(plan, pace, images=500, minutes=seconds / 60 - 1)
    fits = int(str(refused.value).split("; ")[1].split()[0])
    fewer = split(ALL, policy=policy(), epsilon=8, delta=1e-5, mechanics=Mechanics(steps=fits, patient_rate=1.0, draws=2))
    assert 0 < fits < 20
    assert seconds_of(fewer, pace, images=500) <= seconds - 60 + 1
