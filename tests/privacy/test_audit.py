"""The audit: what it finds stays exact inside, and what travels is one Gaussian event on public constants."""

import json
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from busgen_core.errors import GateRefusedError
from busgen_privacy.audit import TravellingAudit, travelling
from busgen_privacy.dp.noise import SecureGaussian, SeededGaussian
from busgen_privacy.findings import AttackFinding, Findings
from busgen_privacy.gate import decide
from busgen_privacy.policy import GatePolicy, Policy
from busgen_privacy.statistics import auc
from tests.privacy.found import COPIES, attack, findings

POLICY = Policy(lifetime_epsilon=8, campaign_epsilon=8, public_cohort=100, smallest_cohort=30, audit_noise=4.0, gate=GatePolicy(smallest_holdout=20))


def audit_of(*, value: float = 0.6, members: int = 33, holdout: int = 27, copies: int = 0) -> Findings:
    """Findings of two deciding attacks and one diagnostic that is far above them."""
    sizes = {"members": members, "holdout": holdout}
    attacks = (attack("loss", auc=value, epsilon=8, **sizes), attack("nearest", auc=0.5, epsilon=8, **sizes))
    return findings(*attacks, attack("closest-record", auc=0.99, epsilon=8, diagnostic=True, **sizes), epsilon=8, copies=copies, **sizes)


def with_attack(audit: Findings, more: AttackFinding) -> Findings:
    """The same findings and one attack more."""
    return audit.model_copy(update={"attacks": (*audit.attacks, more)})


def test_one_patient_moves_the_auc_by_at_most_one_over_the_floor() -> None:
    """The sensitivity bound, by brute force at its worst: scores at the extremes, one patient removed on either side, at the floors."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for trial in range(60):
        members, holdout = rng.choice([0.0, 0.5, 1.0], 31), rng.choice([0.0, 0.5, 1.0], 21)
        if trial == 0:
            members, holdout = np.zeros(31), np.append(np.full(20, -1.0), 1.0)  # 20 of 21 lost by the last, a winner
        whole = auc(members, holdout)
        worst = max(worst, *(abs(whole - auc(np.delete(members, i), holdout)) * 30 for i in range(31)))
        worst = max(worst, *(abs(whole - auc(members, np.delete(holdout, i))) * 20 for i in range(21)))
    assert 0.9 < worst <= 1


@pytest.mark.parametrize("name", ["registration", "reference-model"])
def test_attacks_whose_scores_are_not_one_patients_alone_do_not_travel(name: str) -> None:
    """These attacks are judged at home; however high one is, the figure that travels neither holds nor names it."""
    high = attack(name, auc=1.0, epsilon=8, members=33, holdout=27)
    both, alone = (travelling(audit, POLICY, SeededGaussian(3)) for audit in (with_attack(audit_of(), high), audit_of()))
    assert both == alone
    with pytest.raises(GateRefusedError, match="may travel"):
        travelling(findings(high, epsilon=8, members=33, holdout=27), POLICY, SeededGaussian(3))


def test_the_figure_that_travels_has_the_promised_noise() -> None:
    """Over 4,000 copies the noise on the largest AUC has standard deviation audit_noise / smallest floor, and is not biased."""

    class Tape:
        """Real secure noise, remembered."""

        secure = True

        def __init__(self) -> None:
            self.drawn: list[int] = []

        def integers(self, count: int, *, scale: float) -> NDArray[np.int64]:
            self.drawn.append(count)
            return SecureGaussian().integers(count, scale=scale)

    tape = Tape()
    mild = POLICY.model_copy(update={"audit_noise": 1.0})
    values = np.array([travelling(audit_of(value=0.5), mild, tape).attacks[0].auc for _ in range(4000)])  # type: ignore[arg-type]
    assert tape.drawn == [1] * 4000
    assert values.std() == pytest.approx(1 / 20, rel=0.08)  # seven standard deviations of a sample deviation
    assert values.mean() == pytest.approx(0.5, abs=6 * 0.05 / 63)


def test_what_travels_is_the_strongest_attack_within_bounds() -> None:
    """One figure travels, the largest; it and its interval stay in [0, 1] however loud the noise, and cover the exact figure 95 %."""
    covered = 0
    for seed in range(400):
        (attack,) = travelling(audit_of(value=0.9), POLICY, SeededGaussian(seed)).attacks
        assert 0 <= attack.low <= attack.auc <= attack.high <= 1
        covered += attack.low <= 0.9 <= attack.high
    assert covered >= 0.93 * 400


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("white-box", "with and without the adapted network"),
        ("black-box", "on the images alone"),
    ],
)
def test_what_travels_claims_no_attack_that_was_not_run(kind: Literal["white-box", "black-box"], said: str) -> None:
    """Where only the images were attacked, neither the figure nor what the hub says of it speaks of attacks on the network."""
    found = audit_of()
    attacks = tuple(attack.model_copy(update={"kind": "black-box"}) for attack in found.attacks)
    attacks = (*attacks, attacks[0].model_copy(update={"name": "other", "kind": kind}))
    travels = travelling(found.model_copy(update={"attacks": attacks}), POLICY, SeededGaussian(1))
    assert travels.attacks[0].kind == kind
    assert decide(travels, POLICY.gate).reasons[0].startswith(f"The figure 'strongest' of attacks {said} reached AUC")


def test_no_exact_number_travels() -> None:
    """Two cohorts of other sizes and counts give the same copy, byte for byte, when figure and noise are the same."""
    first = travelling(audit_of(members=33, holdout=27), POLICY, SeededGaussian(1))
    second = travelling(audit_of(members=71, holdout=45), POLICY, SeededGaussian(1))
    assert first.model_dump_json() == second.model_dump_json()
    assert TravellingAudit.model_validate_json(first.model_dump_json()) == first
    assert not {"members", "holdout", "count"} & set(json.dumps(first.model_dump()).replace('"', " ").split())


@pytest.mark.parametrize(("members", "holdout"), [(29, 27), (33, 19)], ids=["members", "holdout"])
def test_below_a_floor_nothing_travels(members: int, holdout: int) -> None:
    """The sensitivity bound needs the floors, so below one of them there is no figure."""
    with pytest.raises(GateRefusedError):
        travelling(audit_of(members=members, holdout=holdout), POLICY, SeededGaussian(1))


def test_copies_travel_as_a_yes_or_no() -> None:
    """Of near copies only whether they stayed within the hospital's limit is told."""
    assert travelling(audit_of(copies=0), POLICY, SeededGaussian(1)).near_copies_within
    assert not travelling(audit_of(copies=1), POLICY, SeededGaussian(1)).near_copies_within
    registered = audit_of().model_copy(update={"registered_copies": COPIES.model_copy(update={"count": 1})})
    assert not travelling(registered, POLICY, SeededGaussian(1)).near_copies_within


def test_without_a_claim_nothing_travels() -> None:
    """What travels is held against a claim; findings without one are refused."""
    with pytest.raises(GateRefusedError, match="no claim"):
        travelling(findings(epsilon=None), POLICY, SeededGaussian(1))
