"""The privacy statement's arithmetic is checked again by whoever receives it."""

from collections.abc import Mapping

import pytest

from busgen_core.errors import StatementError
from busgen_core.release import Event, Manifest
from busgen_privacy.dp.accounting import GaussianEvent, epsilon_of
from busgen_privacy.statement import check_statement, pooled_epsilon
from tests.releases import EVENTS, MECHANISM, PLAN, PRIVACY, documents, manifest_of, synthetic_images

TRUE_EPSILON = epsilon_of([GaussianEvent(7.04, 0.25, 400), GaussianEvent(4.0, 1.0, 1)], delta=1e-5).epsilon
MANIFEST = manifest_of(documents(synthetic_images()))
MORE_HOLDOUT = Event(mechanism="scores", account="holdout", noise_multiplier=1.0, sample_rate=1.0, count=10)


def stating(plan: Mapping[str, object] = PLAN, **changes: object) -> Manifest:
    """A manifest whose statement is true but for ``changes``."""
    honest = {"epsilon": TRUE_EPSILON, "lifetime_epsilon": TRUE_EPSILON}
    return MANIFEST.model_copy(update={"plan": plan, "privacy": PRIVACY.model_copy(update=honest | changes)})


def planned(**changes: object) -> dict[str, object]:
    """The plan with another mechanism than was run."""
    return {**PLAN, "mechanisms": [MECHANISM | changes]}


VOTE = Event(mechanism="vote", account="members", noise_multiplier=20.0, sample_rate=1.0, count=1)


def test_a_true_statement_passes() -> None:
    """The composed epsilon passes, and so does one stated higher."""
    check_statement(stating())
    check_statement(stating(epsilon=TRUE_EPSILON + 1, lifetime_epsilon=TRUE_EPSILON + 2, earlier_epsilon=1.5))
    check_statement(stating({"mechanisms": [], "delta": 1e-5}, events=EVENTS[1:]))  # the foundation as it is: only the audit looked


WRONG = {
    "epsilon too low": (stating(epsilon=TRUE_EPSILON - 0.002), "compose to"),
    "epsilon of the adaptation alone": (stating(events=(*EVENTS, EVENTS[1])), "compose to"),
    "other delta than the plan": (stating(delta=1e-4), "delta"),
    "other unit": (stating(unit="image"), "one patient"),
    "other relation": (stating(relation="replace one"), "one patient"),
    "no members": (stating(events=EVENTS[2:]), "members"),
    "no events": (stating(events=()), "members"),
    "adaptation left out": (stating(events=EVENTS[1:]), "leaves out"),
    "less noise in the plan": (stating(planned(noise_multiplier=3.0)), "leaves out"),
    "more steps in the plan": (stating(planned(count=401)), "leaves out"),
    "a mechanism of the plan twice": (stating({**PLAN, "mechanisms": [MECHANISM, MECHANISM]}), "leaves out"),
    "a mechanism that the plan does not have": (stating(events=(*EVENTS, VOTE)), "does not have"),
    "plan without mechanisms": (stating({"delta": 1e-5}), "mechanisms"),
    "mechanism without its rate": (stating({**PLAN, "mechanisms": [{"mechanism": "dp-sgd"}]}), "not a list"),
    "mechanisms in words": (stating({**PLAN, "mechanisms": "none"}), "not a list"),
    "holdout pays more": (stating(events=(*EVENTS, MORE_HOLDOUT)), "holdout"),
    "no promise": (stating(events=(*EVENTS, EVENTS[1].model_copy(update={"noise_multiplier": 0.05, "count": 9000}))), "no promise"),
    "more steps than are computed": (stating(events=(*EVENTS, EVENTS[2].model_copy(update={"count": 20_000}))), "accounted"),
    "lifetime below this release": (stating(lifetime_epsilon=1.0), "together"),
    "lifetime below earlier": (stating(earlier_epsilon=TRUE_EPSILON + 1), "together"),
}


@pytest.mark.parametrize(("manifest", "message"), WRONG.values(), ids=WRONG)
def test_a_false_statement_is_refused(manifest: Manifest, message: str) -> None:
    """A statement that does not follow from its own events and plan is refused by name."""
    with pytest.raises(StatementError, match=message):
        check_statement(manifest)


def test_a_patient_of_all_pooled_releases_has_the_composition_of_their_members_events() -> None:
    """Two releases compose to more than one and to less than their sum; holdout events are another patient's; order is nothing."""
    other = stating(events=(EVENTS[0].model_copy(update={"noise_multiplier": 9.0, "count": 200}), *EVENTS[1:], MORE_HOLDOUT))
    twin = epsilon_of(
        [GaussianEvent(7.04, 0.25, 400), GaussianEvent(4.0, 1.0, 1), GaussianEvent(9.0, 0.25, 200), GaussianEvent(4.0, 1.0, 1)], delta=1e-5
    )
    alone = [pooled_epsilon([manifest], 1e-5) for manifest in (stating(), other)]
    assert alone[0] == TRUE_EPSILON
    assert pooled_epsilon([stating(), other], 1e-5) == pooled_epsilon([other, stating()], 1e-5) == twin.epsilon
    assert max(alone) < twin.epsilon < sum(alone)
    assert pooled_epsilon([], 1e-5) == 0


def test_a_pool_that_cannot_be_accounted_for_is_refused() -> None:
    """More steps than are computed, over all releases, end in the statement's error, not in a figure."""
    many = stating(events=(EVENTS[0].model_copy(update={"count": 15_000}),))
    with pytest.raises(StatementError, match="accounted"):
        pooled_epsilon([many, many], 1e-5)
