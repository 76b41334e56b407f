"""Checks a release's privacy statement: the arithmetic is done again, from the mechanisms that it names."""

from collections import Counter
from collections.abc import Iterator, Sequence
from math import isfinite

from busgen_core.errors import ConfigError, StatementError, WatchdogError
from busgen_core.release import Event, Manifest

TOLERANCE = 1e-3  # by which a stated epsilon may lie below ours: rounding and numerics of the accountants
PLAN_KEYS = ("mechanisms", "delta")

Key = tuple[str, float, float, int]  # mechanism, noise_multiplier, sample_rate, count


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

    # 2  The mechanisms of the plan, each of them, are the statement's of members, besides the audit's figures.
    members = [event for event in stated.events if event.account == "members"]
    if not members:
        raise StatementError("the privacy statement names no mechanism that was run on members")
    if missing := [key for key in PLAN_KEYS if key not in manifest.plan]:
        raise StatementError(f"the plan lacks {', '.join(missing)}")
    if manifest.plan["delta"] != stated.delta:
        raise StatementError(f"the plan's delta is {manifest.plan['delta']}, the statement's {stated.delta:g}")
    planned, named = Counter(_planned(manifest.plan["mechanisms"])), Counter(map(_named, members))
    if planned - named:
        raise StatementError(f"the statement leaves out a mechanism of the plan: {_words(planned - named)}")
    if extra := [key for key in (named - planned) if key[0] != "audit figures"]:
        raise StatementError(f"the statement names a mechanism that the plan does not have: {_words(Counter(extra))}")

    # 3  Epsilon, for members and holdout patients each.
    for account in ("members", "holdout"):
        spent = _epsilon([event for event in stated.events if event.account == account], delta=stated.delta)
        if not spent <= stated.epsilon + TOLERANCE:
            raise StatementError(f"states epsilon {stated.epsilon:.4f}, but its events of {account} compose to {spent:.4f}")

    # 4  A lifetime is no less than its parts.
    if stated.lifetime_epsilon < max(stated.epsilon, stated.earlier_epsilon) - TOLERANCE:
        raise StatementError("the epsilon of all releases together is below that of one of them")


def pooled_epsilon(manifests: Sequence[Manifest], delta: float) -> float:
    """Epsilon for a patient who is a member in all of these releases: their events of members, composed. Pure.

    Releases of different hospitals mostly hold different patients, and then each patient has the epsilon of one release. Nobody
    can tell who was seen twice without identifying them, so this is the promise that holds for whoever was.

    Guarantees: both accountants, run on the releases' own events; no release counts less than it states to have run. Not
    included: what a hospital spent outside these releases (its earlier releases are in each ``lifetime_epsilon``).

    Args:
        manifests: Manifests of the releases that are pooled.
        delta: Delta of the composition, for all together.

    Returns:
        Epsilon at ``delta``; 0 for no releases.

    Raises:
        StatementError: the events cannot be accounted for, or together are no promise.

    Source: composition of privacy loss distributions, as in ``dp.accounting``.
    """
    return _epsilon([event for manifest in manifests for event in manifest.privacy.events if event.account == "members"], delta=delta)


def _planned(mechanisms: object) -> Iterator[Key]:
    """The mechanisms that a plan spells out, as ``AdaptationPlan.to_dict`` writes them."""
    try:
        for one in mechanisms:  # type: ignore[attr-defined]
            yield str(one["mechanism"]), float(one["noise_multiplier"]), float(one["sample_rate"]), int(one["count"])
    except (TypeError, KeyError, ValueError, AttributeError):
        raise StatementError("the plan's mechanisms are not a list of mechanism, noise_multiplier, sample_rate, count") from None


def _named(event: Event) -> Key:
    return event.mechanism, event.noise_multiplier, event.sample_rate, event.count


def _words(keys: Counter[Key]) -> str:
    return ", ".join(f"{name} (noise {noise:g}, rate {rate:g}, {count} times)" for name, noise, rate, count in keys)


def _epsilon(events: list[Event], *, delta: float) -> float:
    from busgen_privacy.dp.accounting import GaussianEvent, epsilon_of

    try:
        spent = epsilon_of([GaussianEvent(event.noise_multiplier, event.sample_rate, event.count) for event in events], delta=delta).epsilon
    except (ConfigError, WatchdogError) as error:
        raise StatementError(f"the events cannot be accounted for: {error}") from error
    if not isfinite(spent):
        raise StatementError("the events together are no promise at all: epsilon is unbounded")
    return spent
