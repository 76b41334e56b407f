"""A node's plans: what its settings name is what runs; the pace of the machine is measured on phantoms."""

from pathlib import Path
from typing import Any

import pytest

from busgen_client.planning import measured, plan_for, shares_of
from busgen_client.settings import load_settings
from busgen_core.errors import ConfigError, PolicyError
from busgen_privacy.dp.plan import AdaptationPlan
from busgen_privacy.dp.planner import DPSGD_SHARE, Pace, seconds_of
from tests.client.node import lay_out
from tests.privacy.small import small_foundation

PACE = Pace(image=0.05, look=0.03, gradient=0.05)


def unasked() -> Pace:
    """A pace that nobody may ask for."""
    raise AssertionError("the machine was measured though no time is set")


CAMPAIGN: dict[str, Any] = {"epsilon": 8.0, "delta": 1e-5, "images": 500, "pace": unasked}


def test_settings_can_name_the_mechanisms(tmp_path: Path) -> None:
    """Named mechanisms run and no others, with the steps, the rate and the subset that the settings give; unnamed, the planner chooses."""
    settings = lay_out(tmp_path)
    for names in (("vote",), ("mean", "dp-sgd"), ("dp-sgd",), ()):
        adapt = settings.adapt.model_copy(update={"mechanisms": names, "subset": "film", "patient_rate": 1.0})
        plan = plan_for(settings.model_copy(update={"adapt": adapt}), **CAMPAIGN)
        assert tuple(name for name, _ in plan.mechanisms()) == names
        assert "settings" in plan.reasons[0]
        assert plan.dpsgd is None or (plan.dpsgd.subset, plan.dpsgd.steps, plan.dpsgd.patient_rate) == ("film", 3, 1.0)
    chosen = plan_for(settings.model_copy(update={"adapt": settings.adapt.model_copy(update={"mechanisms": None})}), **CAMPAIGN)
    assert [name for name, _ in chosen.mechanisms()] == ["vote", "mean"]


@pytest.mark.slow
def test_time_allowed_cuts_the_work(tmp_path: Path) -> None:
    """Less time means fewer candidates and a smaller rate, said in the reasons; what the settings fix stays; too little is refused."""
    open_ended = {"mechanisms": ("vote", "mean", "dp-sgd"), "steps": None, "patient_rate": None, "draws": 1, "subset": "bias-norm"}

    def made(minutes: float | None, **more: object) -> AdaptationPlan:
        settings = lay_out(tmp_path)
        adapt = settings.adapt.model_copy(update=open_ended | {"minutes": minutes} | more)
        return plan_for(settings.model_copy(update={"adapt": adapt}), **CAMPAIGN | {"pace": lambda: PACE})  # type: ignore[arg-type]

    whole = made(None)
    needed = seconds_of(whole, PACE, images=500) / 60
    assert made(needed + 0.01) == whole
    half = made(0.75 * needed)
    assert half.dpsgd is not None
    assert whole.dpsgd is not None
    assert seconds_of(half, PACE, images=500) <= 45 * needed
    assert half.dpsgd.patient_rate < whole.dpsgd.patient_rate
    assert half.candidates < whole.candidates
    assert "cut to" in half.reasons[-1]
    half.check([half.audit_event()])
    fixed = made(0.93 * needed, patient_rate=whole.dpsgd.patient_rate)
    assert fixed.dpsgd is not None
    assert fixed.dpsgd.patient_rate == whole.dpsgd.patient_rate
    with pytest.raises(ConfigError, match="would fit"):
        made(0.05 * needed)


def test_the_officer_tightens_the_gate_and_never_loosens_it(tmp_path: Path) -> None:
    """A tighter threshold in node.toml is taken; one looser than the consortium's stops the node at its start, by name."""
    lay_out(tmp_path)
    file = tmp_path / "node.toml"
    plain = file.read_text()
    file.write_text(plain + "\n[policy.gate]\nsmallest_holdout = 50\n")
    assert load_settings(file).policy.gate.smallest_holdout == 50
    file.write_text(plain + "\n[policy.gate]\nnear_copies = 1\n")
    with pytest.raises(PolicyError, match="near_copies is 1"):
        load_settings(file)


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
