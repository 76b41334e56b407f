"""The gate: every reason to refuse, and what a release says was checked."""

from collections.abc import Callable
from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busgen_core.errors import PolicyError
from busgen_core.release import GateVerdict
from busgen_privacy.audit import TravellingAttack, TravellingAudit
from busgen_privacy.gate import STAYS, UNREAD, AttackFigures, CopyFigures, Evidence, HitFigures, decide, granted_mu, judge, promised_mu
from busgen_privacy.leak import auc_of
from busgen_privacy.policy import MUST_CATCH_AUC, TIGHTER, TOLERATED_AUC, WEAKEST_PROMISE, GatePolicy, tightened
from busgen_privacy.statistics import ceiling_auc, ceiling_tpr
from tests.privacy.found import attack, findings, scored

CEILING = ceiling_auc(3.0, 1e-5)
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


def travels(**changes: object) -> TravellingAudit:
    """The audit that travels with its attack changed; changes bypass validation, as a faulty producer could."""
    return TRAVELS.model_copy(update={"attacks": (TRAVELS.attacks[0].model_copy(update=changes),)})


REFUSALS = {
    "no attack": (TRAVELS.model_copy(update={"attacks": ()}), "No attack"),
    "AUC is no number": (travels(auc=nan), "not numbers"),
    "interval is no number": (travels(low=nan), "not numbers"),
    "interval upside down": (travels(low=0.6, high=0.5), "not numbers"),
    "ceiling is no number": (travels(ceiling=nan), "not numbers"),
    "ceiling raised": (travels(ceiling=1.0, low=0.5), "epsilon and delta allow"),
    "epsilon is no number": (TRAVELS.model_copy(update={"epsilon": nan}), "promise nothing"),
    "epsilon beyond sense": (TRAVELS.model_copy(update={"epsilon": 1e9}), "promise nothing"),
    "copies reported by the hospital": (TRAVELS.model_copy(update={"near_copies_within": False}), "is not within"),
    "floor below the hub's": (TRAVELS.model_copy(update={"smallest_holdout": 10}), "floor here is 20"),
    "noised figure above its ceiling": (travels(auc=0.9, low=0.8, high=1.0), "promise is broken"),
}


@pytest.mark.parametrize(("audit", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_each_reason_alone_refuses(audit: TravellingAudit, reason: str) -> None:
    """One thing wrong is enough, and the only reason given is that one."""
    verdict = decide(audit, POLICY)
    assert verdict.verdict == "refuse"
    assert [reason in text for text in verdict.reasons] == [True]


def test_text_that_nobody_looked_for_is_said() -> None:
    """Without an engine that reads, the release may leave, but the verdict tells the officer to look at the images."""
    assert [reason for reason in judge(Evidence.of(findings()), POLICY).reasons if "Nobody looked for text" in reason] == [UNREAD]
    refused = judge(Evidence.of(findings(copies=2)), POLICY)
    assert UNREAD not in refused.reasons


def test_exact_findings_are_judged_whole() -> None:
    """``decide`` on a suite's findings is ``judge`` on what counts of them: diagnostics never decide, copies and attacks do."""
    assert decide(findings(), POLICY) == judge(Evidence.of(findings()), POLICY)
    assert decide(findings(), POLICY).verdict == "release"
    assert decide(findings(attack(), attack("closest-record", auc=0.99, diagnostic=True)), POLICY).verdict == "release"
    refused = decide(findings(attack(auc=0.85, holdout=30), copies=2, holdout=30, members=80), GatePolicy(smallest_holdout=31))
    words = " ".join(refused.reasons)
    assert all(text in words for text in ("promise is broken", "2 of 200", "at least 31"))


def test_the_hub_says_what_it_could_not_check() -> None:
    """The travelling audit passes, with the words that exact counts were not seen."""
    verdict = decide(TRAVELS, POLICY)
    assert verdict.verdict == "release"
    assert sum("stays in the hospital" in reason for reason in verdict.reasons) == 2


BLACK = AttackFigures(name="domias", kind="black-box", auc=0.55, members=80, holdout=40)
WHITE = AttackFigures(name="loss", kind="white-box", auc=0.52, members=80, holdout=40)
COPIES = CopyFigures(count=0, holdout_count=0, compared=2000, threshold=0.1)
GOOD = Evidence(epsilon=3.0, delta=1e-5, attacks=(BLACK, WHITE), near_copies=COPIES, registered_copies=COPIES, members=80, holdout=40)
UNPROMISED = replace(GOOD, epsilon=None, delta=None)


def with_attack(evidence: Evidence = GOOD, **changes: object) -> Evidence:
    """The evidence with its second attack changed."""
    return replace(evidence, attacks=(evidence.attacks[0], replace(evidence.attacks[1], **changes)))  # type: ignore[arg-type]


def hit(fpr: float, tpr: float, surely: float = 0.0) -> tuple[HitFigures, ...]:
    """One hit rate."""
    return (HitFigures(fpr=fpr, tpr=tpr, surely=surely),)


def larger(evidence: Evidence, *, members: int, holdout: int) -> Evidence:
    attacks = tuple(replace(attack, members=members, holdout=holdout) for attack in evidence.attacks)
    return replace(evidence, attacks=attacks, members=members, holdout=holdout)


def against(verdict: GateVerdict) -> list[str]:
    """Reasons of a refusal, which all end with what the refusal itself tells."""
    assert verdict.verdict == "refuse"
    assert verdict.reasons[-1] == STAYS
    return list(verdict.reasons[:-1])


def test_sound_evidence_is_released_with_what_was_checked() -> None:
    """Every attack, what the audit would have caught, both searches for copies, the holdout and that nobody read text are in the reasons, once."""
    verdict = judge(GOOD, POLICY)
    assert verdict.verdict == "release"
    for word, reason in zip(
        ("domias", "loss", "four times out of five", "near copies", "gray map are undone", "holdout has", UNREAD), verdict.reasons, strict=True
    ):
        assert word in reason


JUDGED: dict[str, tuple[Evidence, str]] = {
    "attack above what is tolerated": (with_attack(auc=0.73), "loss' surely tells members"),
    "attack without a promise": (with_attack(UNPROMISED, auc=0.66), "No promise that counts"),
    "promise too weak to count": (with_attack(replace(GOOD, epsilon=20.0), auc=0.66), "No promise that counts"),
    "promise without end": (with_attack(replace(GOOD, epsilon=inf), auc=0.66), "No promise that counts"),
    "promise that is no number": (with_attack(replace(GOOD, epsilon=nan), auc=0.66), "No promise that counts"),
    "delta that gives a patient away": (with_attack(replace(GOOD, delta=1 / 79), auc=0.66), "No promise that counts"),
    "tight promise": (with_attack(replace(GOOD, epsilon=0.1), auc=0.66), "promise is broken"),
    "promise broken": (with_attack(auc=0.85), "promise is broken"),
    "within the promise, not within reason": (with_attack(replace(GOOD, epsilon=8.0), auc=0.85), "may lie within the promise"),
    "few patients given away": (with_attack(larger(GOOD, members=100, holdout=200), auc=0.53, hits=hit(0.01, 0.12)), "12.0% of members found"),
    "hit rate surely above the promise's": (
        with_attack(replace(larger(GOOD, members=100, holdout=200), epsilon=1.0), auc=0.53, hits=hit(0.01, 0.03, surely=0.021)),
        "at least 2.1% of members found at 1.0% false alarms, more than the promise allows",
    ),
    "attack turned round": (with_attack(auc=0.1), "loss' surely ranks members below"),
    "attack turned round without a promise": (with_attack(UNPROMISED, auc=0.25), "loss' surely ranks members below"),
    "equal scores in every attack": (replace(GOOD, attacks=tuple(replace(one, auc=0.5, reach=0.5) for one in GOOD.attacks)), "must catch AUC 0.881"),
    "copy": (replace(GOOD, near_copies=replace(COPIES, count=1)), "1 of 2000"),
    "copy after registration": (
        replace(GOOD, registered_copies=replace(COPIES, count=1)),
        "1 of 2000 images compared are near copies of a member's image once",
    ),
    "copy threshold is no number": (replace(GOOD, near_copies=replace(COPIES, threshold=nan)), "near copies"),
    "nothing compared": (replace(GOOD, registered_copies=replace(COPIES, compared=0)), "0 of 0"),
    "small holdout": (replace(larger(GOOD, members=200, holdout=19)), "at least 20"),
    "blind audit": (larger(GOOD, members=8, holdout=20), "must catch AUC 0.881"),
    "no attack": (replace(GOOD, attacks=()), "No attack was run that decides"),
    "diagnostics alone": (replace(GOOD, attacks=(replace(BLACK, diagnostic=True),)), "No attack was run that decides"),
    "AUC is no number": (with_attack(auc=nan), "not numbers"),
    "AUC above 1": (with_attack(auc=1.2), "not numbers"),
    "hit rate that nobody can see": (with_attack(hits=hit(0.01, 0.0)), "not numbers"),
    "hit rate is no number": (with_attack(hits=hit(0.05, nan)), "not numbers"),
    "more patients than there are": (with_attack(members=81), "more patients than there are"),
}


@pytest.mark.parametrize(("evidence", "reason"), JUDGED.values(), ids=JUDGED)
def test_each_finding_alone_refuses(evidence: Evidence, reason: str) -> None:
    """One thing wrong is enough, and the only reason given is that one, beside what the refusal tells."""
    assert [reason in text for text in against(judge(evidence, POLICY))] == [True]


PASSED: dict[str, Evidence] = {
    "an AUC that chance gives": with_attack(auc=0.67),
    "what a promise pays for in a large cohort": with_attack(larger(GOOD, members=500, holdout=300), auc=0.58),
    "a diagnostic far above": with_attack(auc=0.99, diagnostic=True),
    "an attack a little worse than guessing": with_attack(auc=0.42),
    "an attack worse than guessing, as far as a promise pays for": with_attack(larger(GOOD, members=500, holdout=300), auc=0.42),
    "a diagnostic turned round": with_attack(auc=0.1, diagnostic=True),
    "equal scores in one attack of two": with_attack(auc=0.5, reach=0.5),
    "hits as many as chance gives": with_attack(larger(GOOD, members=100, holdout=200), auc=0.53, hits=hit(0.01, 0.03)),
    "no promise and nothing found": with_attack(UNPROMISED, auc=0.55),
    "copies of holdout patients, from whom nothing was learnt": replace(GOOD, near_copies=replace(COPIES, holdout_count=3)),
}


@pytest.mark.parametrize("evidence", PASSED.values(), ids=PASSED)
def test_what_is_no_reason_does_not_refuse(evidence: Evidence) -> None:
    """Neither chance, nor what the promise paid for, nor a diagnostic refuses."""
    assert judge(evidence, POLICY).verdict == "release"


def test_every_finding_against_is_given() -> None:
    """A refusal lists all that is wrong; what is well is not among it."""
    wrong = replace(with_attack(auc=0.8), near_copies=replace(COPIES, count=2), registered_copies=replace(COPIES, count=3))
    assert len(against(judge(wrong, POLICY))) == 3


def test_released_images_alone_are_said_to_be_all_that_was_attacked() -> None:
    """Without an attack on the network the verdict says that it holds for the images, and that the network must not leave."""
    verdict = judge(replace(GOOD, attacks=(BLACK,)), POLICY)
    assert verdict.verdict == "release"
    assert sum("network must not leave" in reason for reason in verdict.reasons) == 1


def test_what_is_granted() -> None:
    """The smaller of the promise's ceiling and .575; 1/2 without a promise that counts."""
    assert auc_of(granted_mu(GOOD, POLICY)) == pytest.approx(TOLERATED_AUC)
    assert auc_of(granted_mu(replace(GOOD, epsilon=0.5), POLICY)) == pytest.approx(ceiling_auc(0.5, 1e-5))
    assert granted_mu(UNPROMISED, POLICY) == granted_mu(replace(GOOD, epsilon=8.01), POLICY) == 0
    assert auc_of(promised_mu(replace(GOOD, epsilon=8.0), POLICY) or 0) == pytest.approx(0.881, abs=1e-3)


def test_constants_are_where_their_reasons_put_them() -> None:
    """.575 and .881 are the ceilings of epsilon 1 and of the weakest promise that counts."""
    assert pytest.approx(ceiling_auc(1.0, 1e-5), abs=5e-4) == TOLERATED_AUC
    assert pytest.approx(ceiling_auc(WEAKEST_PROMISE, 1e-5), abs=5e-4) == MUST_CATCH_AUC


def attacked_release(rng: np.random.Generator, *, learnt: float, evidence: Evidence, members: int = 60, holdout: int = 120) -> Evidence:
    """Ten attacks on one release: half of what they see is common to all; members' scores are ``learnt`` deviations higher."""
    common, attacks = rng.normal(size=members + holdout), []
    for number in range(10):
        scores = np.sqrt(0.5) * common + np.sqrt(0.5) * rng.normal(size=members + holdout)
        scores[:members] += learnt
        attacks.append(scored(f"a{number}", scores[:members], scores[members:]))
    return Evidence.of(findings(*attacks, epsilon=evidence.epsilon, members=members, holdout=holdout))


@pytest.mark.parametrize("holdout", [40, pytest.param(120, marks=pytest.mark.slow)])
@pytest.mark.parametrize("evidence", [GOOD, UNPROMISED], ids=["promised", "unpromised"])
def test_the_gate_does_not_cry_wolf(evidence: Evidence, holdout: int) -> None:
    """Of 250 releases that learnt nothing, with ten attacks at all rates of false alarms, at most 5 % are refused (three standard errors)."""
    rng = np.random.default_rng(0)
    verdicts = [judge(attacked_release(rng, learnt=0.0, evidence=evidence, holdout=holdout), POLICY) for _ in range(250)]
    refused = np.mean([verdict.verdict == "refuse" for verdict in verdicts])
    assert refused <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 250)


@pytest.mark.parametrize("evidence", [replace(GOOD, epsilon=8.0), UNPROMISED], ids=["promised", "unpromised"])
def test_a_generator_that_memorises_is_refused(evidence: Evidence) -> None:
    """At AUC .8 with 60 members, below the ceiling of epsilon 8, at least 95 % of 100 releases are refused, and for the attacks alone."""
    rng = np.random.default_rng(1)
    verdicts = [judge(attacked_release(rng, learnt=1.19, evidence=evidence), POLICY) for _ in range(100)]
    refused = [verdict for verdict in verdicts if verdict.verdict == "refuse"]
    assert len(refused) >= 95
    assert all("surely tells members" in reason for verdict in refused for reason in against(verdict))


@pytest.mark.parametrize("epsilon", [1.0, None])
def test_a_few_patients_in_full_sight_are_enough(epsilon: float | None) -> None:
    """Eighteen of 300 members in full sight of one attack of ten: refused in 20 of 20 for those it finds first, which an AUC of .53 does not tell."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        attacks = [(rng.normal(size=300), rng.normal(size=500)) for _ in range(10)]
        attacks[0][0][:18] += 9
        found = findings(*(scored(f"a{n}", *sides) for n, sides in enumerate(attacks)), epsilon=epsilon, members=300, holdout=500)
        evidence = Evidence.of(found)
        assert [one.fpr for one in evidence.attacks[0].hits] == [0.01, 0.05]
        assert "found before the first of 500" in against(judge(evidence, POLICY))[0]


def test_a_lower_end_above_its_ceiling_refuses() -> None:
    """With 140 of 4,000 members in full sight at epsilon 1 the exact lower end at 1 %, for all attacks together, passes its ceiling and refuses."""
    rng = np.random.default_rng(4)
    inside, outside = rng.normal(size=4000), rng.normal(size=2000)
    inside[:140] += 9
    seen = Evidence.of(findings(scored("a", inside, outside), epsilon=1.0, members=4000, holdout=2000)).attacks[0].hits[1]
    assert seen.surely > ceiling_tpr(1.0, 1e-5, fpr=0.01)
    alone = replace(
        larger(replace(GOOD, epsilon=1.0), members=4000, holdout=2000), attacks=(replace(BLACK, members=4000, holdout=2000, hits=(seen,)),)
    )
    assert "promise is broken" in against(judge(alone, POLICY))[0]


def test_scores_that_are_all_equal_are_no_evidence() -> None:
    """Six attacks on a network that answers alike for everybody are blind: no release on them alone, and the network does not count as attacked."""
    blind = [scored(f"w{n}", np.zeros(60), np.zeros(40)).model_copy(update={"kind": "white-box"}) for n in range(6)]
    verdict = judge(Evidence.of(findings(*blind, members=60, holdout=40)), POLICY)
    assert any("could not be relied on to catch any leak" in reason for reason in against(verdict))
    rng = np.random.default_rng(5)
    beside = scored("domias", rng.normal(size=60), rng.normal(size=40)).model_copy(update={"kind": "black-box"})
    passed = judge(Evidence.of(findings(*blind, beside, members=60, holdout=40)), POLICY)
    assert passed.verdict == "release"
    assert sum("says nothing" in reason for reason in passed.reasons) == 6
    assert any("No attack that could see had the adapted network" in reason for reason in passed.reasons)


def test_equal_scores_do_not_hide_what_the_others_tell() -> None:
    """Where most patients tie at 0 and the few that do not are members, the hit rate refuses although no order would move the AUC enough."""
    inside, outside = np.zeros(60), np.zeros(40)
    inside[:14] = 1
    evidence = Evidence.of(findings(scored("monte-carlo", inside, outside), epsilon=None, members=60, holdout=40))
    assert "of members found" in against(judge(evidence, POLICY))[0]


EVIDENCE = st.builds(
    lambda epsilon, aucs, tpr, copies, registered, holdout: Evidence(
        epsilon=epsilon,
        delta=None if epsilon is None else 1e-5,
        attacks=tuple(replace(BLACK, auc=value, hits=hit(0.05, tpr), holdout=40, members=60) for value in aucs),
        near_copies=replace(COPIES, count=copies),
        registered_copies=replace(COPIES, count=registered),
        members=60,
        holdout=holdout,
    ),
    epsilon=st.sampled_from([None, 0.5, 3.0, 8.0]),
    aucs=st.lists(st.floats(0.4, 0.8), min_size=1, max_size=4),
    tpr=st.integers(0, 20).map(lambda found: found / 60),
    copies=st.sampled_from([0, 0, 0, 1]),
    registered=st.sampled_from([0, 0, 0, 1]),
    holdout=st.integers(40, 60),
)
WORSE: dict[str, Callable[[Evidence], Evidence]] = {
    "AUC": lambda e: replace(e, attacks=(replace(e.attacks[0], auc=min(e.attacks[0].auc + 0.05, 1.0)), *e.attacks[1:])),
    "hit rate": lambda e: replace(e, attacks=(*e.attacks[:-1], replace(e.attacks[-1], hits=hit(0.05, e.attacks[-1].hits[0].tpr + 0.1)))),
    "copies": lambda e: replace(e, near_copies=replace(e.near_copies, count=e.near_copies.count + 1)),
    "registered copies": lambda e: replace(e, registered_copies=replace(e.registered_copies, count=e.registered_copies.count + 1)),
    "fewer set aside": lambda e: replace(e, holdout=40),
}


@pytest.mark.parametrize("worse", WORSE.values(), ids=WORSE)
@given(evidence=EVIDENCE)
@settings(max_examples=60, deadline=None)
def test_a_worse_figure_never_turns_refuse_into_release(worse: Callable[[Evidence], Evidence], evidence: Evidence) -> None:
    """Whatever was refused stays refused when one figure is worse."""
    policy = GatePolicy(smallest_holdout=50)
    if judge(evidence, policy).verdict == "refuse":
        assert judge(worse(evidence), policy).verdict == "refuse"


@given(evidence=EVIDENCE, holdout=st.integers(20, 60), copies=st.integers(0, 1), must_catch=st.floats(0.6, 0.881))
@settings(max_examples=60, deadline=None)
def test_a_tighter_policy_never_turns_refuse_into_release(evidence: Evidence, holdout: int, copies: int, must_catch: float) -> None:
    """Whatever the loose policy refused stays refused by a tighter one of holdout, copies and power."""
    loose = GatePolicy(near_copies=1, registered_copies=1)
    local = loose.model_copy(update={"smallest_holdout": holdout, "near_copies": copies, "registered_copies": copies, "must_catch_auc": must_catch})
    if judge(evidence, loose).verdict == "refuse":
        assert judge(evidence, tightened(local, loose)).verdict == "refuse"


CHANGES: dict[str, tuple[float, float]] = {  # looser, tighter
    "smallest_holdout": (19, 40),
    "near_copies": (2, 0),
    "registered_copies": (2, 0),
    "family_level": (0.04, 0.1),
    "tolerated_auc": (0.6, 0.55),
    "weakest_promise": (9.0, 4.0),
    "must_catch_auc": (0.9, 0.7),
}
FLOOR = GatePolicy(near_copies=1, registered_copies=1)


def test_every_threshold_can_be_tightened_and_none_loosened() -> None:
    """The officer's tighter value is taken; a looser one is refused by name; no threshold is left out."""
    assert CHANGES.keys() == TIGHTER.keys() == GatePolicy.model_fields.keys()
    for name, (looser, tighter) in CHANGES.items():
        local = GatePolicy.model_validate(FLOOR.model_dump() | {name: tighter})
        assert tightened(local, FLOOR) == local
        with pytest.raises(PolicyError, match=name):
            tightened(GatePolicy.model_validate(FLOOR.model_dump() | {name: looser}), FLOOR)
    assert tightened(FLOOR, FLOOR) == FLOOR


def test_every_looser_threshold_is_named() -> None:
    """One error names all, with the value that is allowed."""
    with pytest.raises(PolicyError) as caught:
        tightened(GatePolicy(smallest_holdout=10, near_copies=5, family_level=0.01), GatePolicy())
    for words in ("smallest_holdout is 10, at least 20", "near_copies is 5, at most 0", "family_level is 0.01, at least 0.05"):
        assert words in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("tolerated_auc", 0.5), ("weakest_promise", 1.0), ("family_level", 0.2), ("smallest_holdout", 41)])
def test_a_tighter_threshold_refuses_more(name: str, value: float) -> None:
    """An audit that passes by default is refused by each of these, for that threshold alone; copies and power are in the table above."""
    evidence = with_attack(auc=0.67)
    assert judge(evidence, POLICY).verdict == "release"
    assert len(against(judge(evidence, GatePolicy.model_validate({name: value})))) == 1
