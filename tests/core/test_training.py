"""Training: the EDM loss, exact resume after a kill, several processes, presets, tracking."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler

from busgen_core.conditions import Encoded, drop
from busgen_core.errors import CheckpointError, ConfigError, InputError
from busgen_core.generator import PRESETS, SIGMA_DATA, Shape, build_network, build_scheduler, denoising_loss, fold, training_sigmas, unfold
from busgen_core.tracking import track
from busgen_core.training import Mixture, train
from tests.core.samples import TINY, tiny_plan, tiny_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("shards") / "phantoms")


def test_the_loss_is_the_weighted_error_of_the_denoised_image() -> None:
    """Slow twin: lambda(sigma) |D(y + n; sigma) - y|^2 with D preconditioned by diffusers' scheduler, one image at a time (EDM, equation 2)."""
    torch.manual_seed(0)
    network, scheduler = build_network(TINY).eval(), build_scheduler()
    images, noise = torch.rand(3, 1, 32, 32) * 2 - 1, torch.randn(3, 4, 16, 16)
    sigmas = torch.tensor([0.02, 0.7, 30.0])
    conditions = Encoded(torch.tensor([[0, 8, 0], [1, 2, 0], [3, 8, 0]]), torch.rand(3, 2, 16, 16))
    with torch.no_grad():
        fast = denoising_loss(network, scheduler, images, conditions, noise, sigmas)
    for i, sigma in enumerate(sigmas.tolist()):
        clean = fold(images[i : i + 1], 2)
        noisy = clean + sigma * noise[i : i + 1]
        scaled, level = scheduler.precondition_inputs(noisy, sigma), torch.tensor([math.log(sigma) / 4])
        with torch.no_grad():
            answer = network(scaled, level, conditions.labels[i : i + 1], conditions.planes[i : i + 1])
        denoised = scheduler.precondition_outputs(noisy, answer, torch.tensor(sigma))
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        assert float(fast[i]) == pytest.approx(float(weight * (denoised - clean).square().mean()), rel=2e-3)


def test_a_perfect_denoiser_of_gaussian_data_has_the_expected_loss() -> None:
    """Data N(0, sigma_data^2): the best F is 0 and its loss 1, at every noise level: preconditioning has unit variance (EDM, appendix B.6)."""

    class Silent(torch.nn.Module):
        def forward(self, scaled: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            assert float(scaled.std()) == pytest.approx(1, rel=0.02)
            return torch.zeros_like(scaled)

    draws = torch.Generator().manual_seed(1)
    images = SIGMA_DATA * torch.randn(400, 1, 16, 16, generator=draws)
    noise = torch.randn(400, 4, 8, 8, generator=draws)
    for sigma in (0.01, 0.5, 20.0):
        nothing = Encoded(torch.zeros(400, 3, dtype=torch.int64), torch.zeros(400, 2, 8, 8))
        loss = denoising_loss(Silent(), build_scheduler(), images, nothing, noise, torch.full((400,), sigma))
        assert float(loss.mean()) == pytest.approx(1, rel=0.03)


def test_folding_loses_nothing() -> None:
    """Patches and pixels are the same numbers."""
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(unfold(fold(images, 2), 2), images)


def test_noise_levels_follow_their_distribution() -> None:
    """ln sigma has mean -1 and standard deviation 1.4."""
    logs = training_sigmas(torch.randn(20_000, generator=torch.Generator().manual_seed(0))).log()
    assert float(logs.mean()) == pytest.approx(-1.0, abs=0.05)
    assert float(logs.std()) == pytest.approx(1.4, abs=0.05)


def test_dropped_conditions_are_nulls_at_the_rates_asked_for() -> None:
    """Each condition is replaced by its own null, at its rate together with the rate of dropping all; the rest is untouched."""
    rates, count = (0.1, 0.5, 0.3, 0.2, 0.7), 4000
    encoded = Encoded(torch.zeros(count, 3, dtype=torch.int64), torch.ones(count, 2, 2, 2))
    draws = torch.Generator().manual_seed(0)
    out = drop(encoded, sizes=(4, 9, 3), rates=rates, all_rate=0.1, draws=draws, rows=torch.arange(count), batch=count)
    lost = torch.cat([out.labels == torch.tensor([3, 8, 2]), out.planes[:, :, 0, 0] == -1], dim=1)
    for place, rate in enumerate(rates):
        assert float(lost[:, place].float().mean()) == pytest.approx(0.1 + 0.9 * rate, abs=0.03)
    assert bool(((out.labels == 0) | lost[:, :3]).all())
    assert float(lost.all(1).float().mean()) == pytest.approx(0.1, abs=0.02)


def test_the_rows_of_one_process_are_the_same_whoever_holds_the_others() -> None:
    """Dropping for some rows gives what dropping for all gives there."""
    encoded = Encoded(torch.zeros(8, 3, dtype=torch.int64), torch.ones(8, 2, 2, 2))
    whole = drop(encoded, sizes=(4, 9, 3), rates=(0.5,) * 5, all_rate=0.1, draws=torch.Generator().manual_seed(5), rows=torch.arange(8), batch=8)
    odd = torch.arange(1, 8, 2)
    part = drop(encoded[odd], sizes=(4, 9, 3), rates=(0.5,) * 5, all_rate=0.1, draws=torch.Generator().manual_seed(5), rows=odd, batch=8)
    assert torch.equal(part.labels, whole.labels[odd])
    assert torch.equal(part.planes, whole.planes[odd])


def test_classes_of_a_source_are_drawn_equally_often_and_sources_by_their_share(shards: Path, tmp_path: Path) -> None:
    """Sources follow the plan's shares; within a source the three classes are equally likely."""
    other = tiny_shards(tmp_path / "other", count=9, seed=2)
    mixture = Mixture([shards, other], tiny_plan(shares=(0.75, 0.25)))
    rng = np.random.default_rng(0)
    for _ in range(100):
        mixture.draw(rng, 20, keep=np.zeros(20, bool))
    counts = np.array(mixture.places) / 2000
    assert np.allclose(counts, [0.25, 0.25, 0.25, 1 / 12, 1 / 12, 1 / 12], atol=0.03)


def test_a_stopped_run_goes_on_with_the_losses_it_would_have_had(shards: Path, tmp_path: Path) -> None:
    """Stopped after three of six steps and begun again: the same losses, to the last digit, and the same weights."""
    whole = train(tiny_plan(), [shards], run_folder=tmp_path / "whole")
    assert train(tiny_plan(), [shards], run_folder=tmp_path / "part", stop_after=3).steps == 3
    resumed = train(tiny_plan(), [shards], run_folder=tmp_path / "part")
    assert len(whole.losses) == 6
    assert resumed.losses == whole.losses
    for (name, a), b in zip(whole.network.named_parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(a, b), name


RUN = """
import sys
from pathlib import Path
from busgen_core.training import train
from tests.core.samples import tiny_plan
train(tiny_plan(steps=int(sys.argv[3])), [Path(sys.argv[1])], run_folder=Path(sys.argv[2]), save_every=5)
"""


def test_a_killed_process_goes_on_with_the_losses_it_would_have_had(shards: Path, tmp_path: Path) -> None:
    """SIGKILL at any moment: the run begun again ends with the losses of a run that was not killed."""
    whole = train(tiny_plan(steps=60), [shards], run_folder=tmp_path / "whole")
    run = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", RUN, str(shards), str(run), "60"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (run / "state.json").exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert 5 <= json.loads((run / "state.json").read_text())["step"] < 60
    assert train(tiny_plan(steps=60), [shards], run_folder=run).losses == whole.losses


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(shards: Path, tmp_path: Path) -> None:
    """``accelerate launch`` with two processes on the CPU: each takes half of every batch, and the losses are those of one process."""
    alone = train(tiny_plan(), [shards], run_folder=tmp_path / "one")
    (tmp_path / "run.py").write_text(RUN)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--main_process_port", "0", str(tmp_path / "run.py"), str(shards), str(tmp_path / "two"), "6"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    losses = json.loads((tmp_path / "two" / "state.json").read_text())["losses"]
    assert losses == pytest.approx(alone.losses, rel=2e-2)  # bfloat16 sums in another order


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_at_tiny_width(preset: str, tmp_path: Path) -> None:
    """The whole code path of each preset (its frame size, levels, blocks and attention) runs at tiny width."""
    shape = PRESETS[preset]
    narrow = replace(shape, channels=tuple(8 for _ in shape.channels), groups=4, heads=8)
    from busgen_core.corpus import pack_phantoms

    pack_phantoms(tmp_path / "s", count=6, size=shape.image_px, seed=1)
    trained = train(tiny_plan(shape=narrow, steps=2, batch=2), [tmp_path / "s"], run_folder=tmp_path / "run")
    assert len(trained.losses) == 2
    assert trained.network.image_px == shape.image_px


def test_presets_have_the_sizes_they_promise() -> None:
    """cpu-64: 1 to 2 million parameters; gpu-160: BUSGen's 47.8 million within 5 %, 160 px."""
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in build_network(shape).parameters()) for name, shape in PRESETS.items()}
    assert 1e6 < sizes["cpu-64"] < 2e6
    assert sizes["gpu-160"] == pytest.approx(47.8e6, rel=0.05)
    assert PRESETS["gpu-160"].image_px == 160


def test_another_plan_does_not_resume(shards: Path, tmp_path: Path) -> None:
    """A checkpoint of another plan, or a torn one, is refused, not mixed in."""
    train(tiny_plan(steps=2), [shards], run_folder=tmp_path)
    with pytest.raises(CheckpointError, match="another plan"):
        train(tiny_plan(steps=2, seed=4), [shards], run_folder=tmp_path)
    next(tmp_path.glob("state-*.safetensors")).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(tiny_plan(steps=2), [shards], run_folder=tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN in the loss is a named error and never reaches a checkpoint."""
    monkeypatch.setattr("busgen_core.training.training_sigmas", lambda normal: normal * float("nan"))
    with pytest.raises(InputError, match="not finite at step 0"):
        train(tiny_plan(), [shards], run_folder=tmp_path)
    assert not (tmp_path / "state.json").exists()


BAD_PLANS = {
    "no steps": {"steps": 0},
    "dropout for four conditions": {"dropout": (0.1,) * 4},
    "a chance above one": {"dropout": (0.1, 0.1, 0.1, 0.1, 1.5)},
    "a share of nothing": {"shares": (1.0, 0.0)},
}


@pytest.mark.parametrize("changes", BAD_PLANS.values(), ids=BAD_PLANS)
def test_a_plan_outside_its_ranges_is_refused(changes: dict[str, object]) -> None:
    """Plans are checked when they are made."""
    with pytest.raises(ConfigError):
        tiny_plan(**changes)


def test_a_shape_that_does_not_divide_is_refused() -> None:
    """Frames must halve at every level."""
    with pytest.raises(ConfigError):
        Shape(image_px=50)


@pytest.mark.slow
def test_a_run_is_tracked(shards: Path, tmp_path: Path) -> None:
    """Parameters and losses are in MLflow; a run that goes on is the same run."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.sqlite'}"
    for stop in (50, 100):
        log = track(uri, experiment="pretrain", run="tiny", parameters={"seed": 3})
        train(tiny_plan(steps=100), [shards], run_folder=tmp_path / "run", log=log, stop_after=stop)
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("pretrain").experiment_id])
    assert len(runs) == 1
    assert runs[0].data.params["seed"] == "3"
    assert [m.step for m in client.get_metric_history(runs[0].info.run_id, "loss")] == [50, 100]


def test_the_scheduler_is_diffusers_own() -> None:
    """Sampling levels are those of the shipped scheduler's configuration."""
    scheduler = build_scheduler()
    assert isinstance(scheduler, EDMDPMSolverMultistepScheduler)
    scheduler.set_timesteps(5)
    assert scheduler.sigmas[0].item() == pytest.approx(80.0, rel=1e-4)
    assert scheduler.sigmas[-1].item() == 0
