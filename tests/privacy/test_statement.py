"""The privacy statement's arithmetic is checked again by whoever receives it."""

from collections.abc import Mapping

import pytest

from busgen_core.errors import StatementError
from busgen_core.release import Event, Manifest
from busgen_privacy.dp.accounting import GaussianEvent, epsilon_of
from busgen_privacy.statement import check_statement
from tests.releases import EVENTS, PLAN, PRIVACY, documents, manifest_of, synthetic_images

TRUE_EPSILON = epsilon_of([GaussianEvent(7.04, 0.25, 400), GaussianEvent(4.0, 1.0, 1)], delta=1e-5).epsilon
MANIFEST = manifest_of(documents(synthetic_images()))
MORE_HOLDOUT = Event(mechanism="scores", account="holdout", noise_multiplier=1.0, sample_rate=1.0, count=10)


def stating(plan: Mapping[str, object] = PLAN, **changes: object) -> Manifest:
    """A manifest whose statement is true but for ``changes``."""
    honest = {"epsilon": TRUE_EPSILON, "lifetime_epsilon": TRUE_EPSILON}
    return MANIFEST.model_copy(update={"plan": plan, "privacy": PRIVACY.model_copy(update=honest | changes)})


def test_a_true_statement_passes() -> None:
    """The composed epsilon passes, and so does one stated higher."""
    check_statement(stating())
    check_statement(stating(epsilon=TRUE_EPSILON + 1, lifetime_epsilon=TRUE_EPSILON + 2, earlier_epsilon=1.5))


WRONG = {
    "epsilon too low": (stating(epsilon=TRUE_EPSILON - 0.002), "compose to"),
    "epsilon of the adaptation alone": (stating(events=(*EVENTS, EVENTS[1])), "compose to"),
    "other delta than the plan": (stating(delta=1e-4), "delta"),
    "other unit": (stating(unit="image"), "one patient"),
    "other relation": (stating(relation="replace one"), "one patient"),
    "no members": (stating(events=EVENTS[2:]), "members"),
    "no events": (stating(events=()), "members"),
    "adaptation left out": (stating(events=EVENTS[1:]), "is the plan's"),
    "less noise in the plan": (stating({**PLAN, "noise_multiplier": 3.0}), "is the plan's"),
    "more steps in the plan": (stating({**PLAN, "steps": 401}), "is the plan's"),
    "plan without its rate": (stating({key: PLAN[key] for key in PLAN if key != "patient_rate"}), "patient_rate"),
    "holdout pays more": (stating(events=(*EVENTS, MORE_HOLDOUT)), "holdout"),
    "no promise": (stating(events=(*EVENTS, EVENTS[1].model_copy(update={"noise_multiplier": 0.05, "count": 9000}))), "no promise"),
    "more steps than are computed": (stating(events=(*EVENTS, EVENTS[0].model_copy(update={"count": 20_000}))), "accounted"),
    "lifetime below this release": (stating(lifetime_epsilon=1.0), "together"),
    "lifetime below earlier": (stating(earlier_epsilon=TRUE_EPSILON + 1), "together"),
}


@pytest.mark.parametrize(("manifest", "message"), WRONG.values(), ids=WRONG)
def test_a_false_statement_is_refused(manifest: Manifest, message: str) -> None:
    """A statement that does not follow from its own events and plan is refused by name."""
    with pytest.raises(StatementError, match=message):
        check_statement(manifest)
