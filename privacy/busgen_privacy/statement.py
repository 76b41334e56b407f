"""Checks a release's privacy statement: the arithmetic is done again, from the mechanisms that it names."""

from math import isfinite

from busgen_core.errors import ConfigError, StatementError, WatchdogError
from busgen_core.release import Event, Manifest

TOLERANCE = 1e-3  # by which a stated epsilon may lie below ours: rounding and numerics of the accountants
PLAN_KEYS = ("noise_multiplier", "patient_rate", "steps", "delta")


def check_statement(manifest: Manifest) -> None:
    """Return only if the stated epsilon covers every mechanism, and the mechanisms are those of the plan.

    Guarantees: both accountants were run here, on the manifest's own events, for every account by itself.
    Not checked, for it cannot be from outside: that these mechanisms are all that was run, and the earlier epsilon.

    Raises:
        StatementError: wrong unit, no event of members, epsilon stated too low, or events and plan differ.
    """
    stated = manifest.privacy
    # 1  The unit and the relation are the only ones that this project promises.
    if (stated.unit, stated.relation, stated.accountant) != ("patient", "add or remove one", "max(PLD, PRV)"):
        raise StatementError("the privacy statement is not about adding or removing one patient, by both accountants")

    # 2  The adaptation is among the events, as the plan has it.
    members = [event for event in stated.events if event.account == "members"]
    if not members:
        raise StatementError("the privacy statement names no mechanism that was run on members")
    if missing := [key for key in PLAN_KEYS if key not in manifest.plan]:
        raise StatementError(f"the plan lacks {', '.join(missing)}")
    noise, rate, steps, delta = (manifest.plan[key] for key in PLAN_KEYS)
    if delta != stated.delta:
        raise StatementError(f"the plan's delta is {delta}, the statement's {stated.delta:g}")
    if not any((event.noise_multiplier, event.sample_rate, event.count) == (noise, rate, steps) for event in members):
        raise StatementError(f"no mechanism of the statement is the plan's: noise {noise}, patient rate {rate}, {steps} steps")

    # 3  Epsilon, for members and holdout patients each.
    for account in ("members", "holdout"):
        spent = _epsilon([event for event in stated.events if event.account == account], delta=stated.delta)
        if not spent <= stated.epsilon + TOLERANCE:
            raise StatementError(f"states epsilon {stated.epsilon:.4f}, but its events of {account} compose to {spent:.4f}")

    # 4  A lifetime is no less than its parts.
    if stated.lifetime_epsilon < max(stated.epsilon, stated.earlier_epsilon) - TOLERANCE:
        raise StatementError("the epsilon of all releases together is below that of one of them")


def _epsilon(events: list[Event], *, delta: float) -> float:
    from busgen_privacy.dp.accounting import GaussianEvent, epsilon_of

    try:
        spent = epsilon_of([GaussianEvent(event.noise_multiplier, event.sample_rate, event.count) for event in events], delta=delta).epsilon
    except (ConfigError, WatchdogError) as error:
        raise StatementError(f"the events cannot be accounted for: {error}") from error
    if not isfinite(spent):
        raise StatementError("the events together are no promise at all: epsilon is unbounded")
    return spent
