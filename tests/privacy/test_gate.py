"""The gate: every reason to refuse, and what a release says was checked."""

from math import nan

import pytest

from busgen_privacy.audit import AttackResult, Audit, NearCopyResult, TravellingAttack, TravellingAudit
from busgen_privacy.gate import decide
from busgen_privacy.policy import GatePolicy
from busgen_privacy.statistics import ceiling_auc

CEILING = ceiling_auc(3.0, 1e-5)
ATTACK = AttackResult(name="loss", kind="white-box", auc=0.55, low=0.48, high=0.99, ceiling=CEILING, members=80, holdout=40, what="Compares losses.")
NEAR = NearCopyResult(count=0, holdout_count=0, threshold=0.1, released=200, closest=(), what="Correlates.")
AUDIT = Audit(epsilon=3.0, delta=1e-5, attacks=(ATTACK,), near_copies=NEAR, members=80, holdout=40, released=200, draws=4)
TRAVELS = TravellingAudit(
    epsilon=3.0,
    delta=1e-5,
    attacks=(TravellingAttack(name="strongest", kind="white-box", auc=0.55, low=0.4, high=0.7, ceiling=CEILING, what="Largest."),),
    noise_multiplier=4.0,
    noise_std=0.1,
    public_cohort=100,
    smallest_cohort=30,
    smallest_holdout=20,
    near_copies_within=True,
    released=200,
)
POLICY = GatePolicy()


def attacked(**changes: object) -> Audit:
    """The good audit with a second attack that is changed; changes bypass validation, as a faulty producer could."""
    return AUDIT.model_copy(update={"attacks": (ATTACK, ATTACK.model_copy(update=changes))})


def test_a_sound_audit_is_released_with_what_was_checked() -> None:
    """A release lists every check; a wide interval whose upper end is above the ceiling is no reason to refuse."""
    verdict = decide(AUDIT, POLICY)
    assert verdict.verdict == "release"
    assert len(verdict.reasons) == 3
    for word, reason in zip(("loss", "near copies", "holdout"), verdict.reasons, strict=True):
        assert word in reason


REFUSALS = {
    "attack above its ceiling": (attacked(auc=0.8, low=CEILING + 0.001), "promise is broken"),
    "near copies": (AUDIT.model_copy(update={"near_copies": NEAR.model_copy(update={"count": 1})}), "1 of 200"),
    "threshold is no number": (AUDIT.model_copy(update={"near_copies": NEAR.model_copy(update={"threshold": nan})}), "near copies"),
    "small holdout": (AUDIT.model_copy(update={"holdout": 19}), "at least 20"),
    "no attack": (AUDIT.model_copy(update={"attacks": ()}), "No attack"),
    "AUC is no number": (attacked(auc=nan), "not numbers"),
    "interval is no number": (attacked(low=nan), "not numbers"),
    "interval upside down": (attacked(low=0.6, high=0.5), "not numbers"),
    "ceiling is no number": (attacked(ceiling=nan), "not numbers"),
    "ceiling raised": (attacked(ceiling=1.0, low=0.9), "epsilon and delta allow"),
    "epsilon is no number": (AUDIT.model_copy(update={"epsilon": nan}), "promise nothing"),
    "epsilon beyond sense": (AUDIT.model_copy(update={"epsilon": 1e9}), "promise nothing"),
    "copies reported by the hospital": (TRAVELS.model_copy(update={"near_copies_within": False}), "is not within"),
    "floor below the hub's": (TRAVELS.model_copy(update={"smallest_holdout": 10}), "floor here is 20"),
    "noised figure above its ceiling": (
        TRAVELS.model_copy(update={"attacks": (TRAVELS.attacks[0].model_copy(update={"auc": 0.9, "low": 0.8, "high": 1.0}),)}),
        "promise is broken",
    ),
}


@pytest.mark.parametrize(("audit", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_each_reason_alone_refuses(audit: Audit | TravellingAudit, reason: str) -> None:
    """One thing wrong is enough, and the only reason given is that one."""
    verdict = decide(audit, POLICY)
    assert verdict.verdict == "refuse"
    assert [reason in text for text in verdict.reasons] == [True]


def test_every_reason_is_given() -> None:
    """A refusal lists all that is wrong, not only the first."""
    wrong = attacked(auc=0.8, low=0.75).model_copy(update={"holdout": 5, "near_copies": NEAR.model_copy(update={"count": 3})})
    assert len(decide(wrong, POLICY).reasons) == 3


def test_limits_are_the_policys() -> None:
    """A figure at its limit passes; the limits are those of the policy."""
    at_limit = AUDIT.model_copy(update={"holdout": 33, "near_copies": NEAR.model_copy(update={"count": 2})})
    assert decide(at_limit, GatePolicy(smallest_holdout=33, near_copies=2)).verdict == "release"
    assert decide(at_limit, GatePolicy(smallest_holdout=34, near_copies=2)).verdict == "refuse"
    assert decide(at_limit, GatePolicy(smallest_holdout=33, near_copies=1)).verdict == "refuse"
    assert decide(attacked(low=CEILING, auc=CEILING), POLICY).verdict == "release"


def test_the_hub_says_what_it_could_not_check() -> None:
    """The travelling audit passes, with the words that exact counts were not seen."""
    verdict = decide(TRAVELS, POLICY)
    assert verdict.verdict == "release"
    assert sum("stays in the hospital" in reason for reason in verdict.reasons) == 2
