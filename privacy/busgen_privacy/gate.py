"""The gate: turns an audit and a policy into *release* or *refuse*, with every reason in plain words. Pure."""

from collections.abc import Iterator
from math import isfinite, nan

from busgen_core.release import GateVerdict
from busgen_privacy.audit import AttackResult, Audit, TravellingAttack, TravellingAudit
from busgen_privacy.policy import GatePolicy
from busgen_privacy.statistics import ceiling_auc

SLACK = 1e-6  # rounding of a ceiling on its way through JSON


def decide(audit: Audit | TravellingAudit, policy: GatePolicy) -> GateVerdict:
    """Judge an audit.

    The hospital judges its exact audit; the hub judges the travelling one again, as far as that can be done without
    exact counts, and the verdict says what it rests on.

    Guarantees: *release* only if at least one attack was run, no attack's interval lies wholly above the ceiling that
    epsilon and delta allow, every figure is a number, and near copies and holdout keep within the policy. A verdict
    of *release* proves nothing about attacks that were not run.

    Returns:
        *refuse* with every reason against; or *release* with everything that was checked.
    """
    findings = list(_attacks(audit))
    findings += _exact(audit, policy) if isinstance(audit, Audit) else _travelling(audit, policy)
    if against := tuple(text for good, text in findings if not good):
        return GateVerdict(verdict="refuse", reasons=against)
    return GateVerdict(verdict="release", reasons=tuple(text for _, text in findings))


def _attacks(audit: Audit | TravellingAudit) -> Iterator[tuple[bool, str]]:
    """Whether each attack stays below the ceiling, computed here from epsilon and delta."""
    if not audit.attacks:
        yield False, "No attack was run, so nothing is known of what the release gives away."
    try:
        allowed = ceiling_auc(audit.epsilon, audit.delta)
    except (ValueError, OverflowError):
        allowed = nan
    if not 0.5 <= allowed <= 1:
        yield False, "The audit's epsilon and delta promise nothing that could be tested."
        return
    for attack in audit.attacks:
        yield _judged(attack, allowed)


def _judged(attack: AttackResult | TravellingAttack, allowed: float) -> tuple[bool, str]:
    name = f"{attack.kind} attack '{attack.name[:60]}'"
    figures = (attack.auc, attack.low, attack.high, attack.ceiling)
    if not all(isfinite(figure) for figure in figures) or not 0 <= attack.low <= attack.high <= 1:
        return False, f"The {name} has figures that are not numbers, or an interval upside down."
    if attack.ceiling > allowed + SLACK:
        return False, f"The {name} is held against a ceiling of {attack.ceiling:.3f}; epsilon and delta allow {allowed:.3f}."
    if attack.low > attack.ceiling:
        return False, (
            f"The {name} tells members from others with AUC {attack.auc:.3f}, surely above {attack.low:.3f}; "
            f"the promise allows {attack.ceiling:.3f}. The promise is broken: look for the fault before anything else."
        )
    return True, f"The {name} reached AUC {attack.auc:.3f} ({attack.low:.3f} to {attack.high:.3f}); the promise allows {attack.ceiling:.3f}."


def _exact(audit: Audit, policy: GatePolicy) -> Iterator[tuple[bool, str]]:
    """What only the hospital can judge."""
    near = audit.near_copies
    text = f"{near.count} of {near.released} images compared are near copies of a member's image; {policy.near_copies} are allowed."
    yield isfinite(near.threshold) and near.count <= policy.near_copies, text
    floor = policy.smallest_holdout
    yield audit.holdout >= floor, f"The holdout has {audit.holdout} patients; an audit needs at least {floor} to say anything."


def _travelling(audit: TravellingAudit, policy: GatePolicy) -> Iterator[tuple[bool, str]]:
    """What the hub can judge: the exact counts stay in the hospital."""
    told = "is" if audit.near_copies_within else "is not"
    yield audit.near_copies_within, f"The number of near copies stays in the hospital, which says that it {told} within its limit; not checked here."
    floor = policy.smallest_holdout
    yield (
        audit.smallest_holdout >= floor,
        f"The number of holdout patients stays in the hospital, whose floor is {audit.smallest_holdout}; the floor here is {floor}.",
    )
