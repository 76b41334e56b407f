"""A node's plans: what its settings name is what runs; the pace of the machine is measured on phantoms."""

from pathlib import Path

import pytest

from busgen_client.planning import measured, plan_for, shares_of
from busgen_privacy.dp.planner import DPSGD_SHARE
from tests.client.node import lay_out
from tests.privacy.small import small_foundation


def test_settings_can_name_the_mechanisms(tmp_path: Path) -> None:
    """Named mechanisms run and no others, with the steps and the subset that the settings give; unnamed, the planner chooses."""
    settings = lay_out(tmp_path)
    for names in (("vote",), ("mean", "dp-sgd"), ("dp-sgd",), ()):
        adapt = settings.adapt.model_copy(update={"mechanisms": names, "subset": "film"})
        plan, reasons = plan_for(settings.model_copy(update={"adapt": adapt}), epsilon=8.0, delta=1e-5)
        assert tuple(name for name, _ in plan.mechanisms()) == names
        assert "settings" in reasons[0]
        assert plan.dpsgd is None or (plan.dpsgd.subset, plan.dpsgd.steps) == ("film", 3)
    chosen, _ = plan_for(settings.model_copy(update={"adapt": settings.adapt.model_copy(update={"mechanisms": None})}), epsilon=8.0, delta=1e-5)
    assert [name for name, _ in chosen.mechanisms()] == ["vote", "mean"]


@pytest.mark.parametrize("names", [("vote", "mean", "dp-sgd"), ("mean", "dp-sgd"), ("dp-sgd",), ("vote", "mean")], ids=str)
def test_shares_sum_to_one(names: tuple[str, ...]) -> None:
    """DP-SGD beside others has its fixed share; the others divide the rest as they would without it."""
    shares = shares_of(names)  # type: ignore[arg-type]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares.get("dp-sgd", 0) in (0, 1, DPSGD_SHARE)


def test_the_pace_is_measured(tmp_path: Path) -> None:
    """Drawing, looking and learning each take some time on this machine; no patient is needed."""
    pace = measured(small_foundation(), draws=1)
    assert min(pace.image, pace.look, pace.gradient) > 0
