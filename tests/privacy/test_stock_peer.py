"""The benchmarks' stock Opacus peers: right per-sample gradients, steps without patients, merged weights."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizer

from bench import stock_opacus as peer
from bench.stock_opacus import RECIPES, Batch, Kind, OneImageEach, adapt, trained_network
from busgen_core.generator import Shape
from busgen_core.labels import NULL_INDEX
from tests.privacy.small import cohort, small_foundation

SHAPE = Shape(image_px=32, channels=(8, 16), groups=4, heads=8)
MEMBERS = cohort([1, 2, 1, 3, 1, 1])
add_noise = DPOptimizer.add_noise
KINDS: tuple[Kind, ...] = ("full", "lora")


def batch_of(entries: OneImageEach) -> Batch:
    """Every patient once."""
    images, labels, planes = zip(*(entries[i] for i in range(len(entries))), strict=True)
    return torch.stack(images), torch.stack(labels), torch.stack(planes)


def worst_error(kind: Kind, *, repaired: bool) -> float:
    """Largest relative error of a parameter's per-sample gradients, hooks against one plain backward for each sample."""
    foundation = small_foundation(SHAPE)
    network = trained_network(foundation, kind, seed=1, repaired=repaired)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)  # at its start of zero no gradient reaches lora_A
    batch = batch_of(OneImageEach(MEMBERS, network, np.random.default_rng(0)))
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    every = peer.losses(network, foundation, batch, np.random.default_rng(3))
    plain = [torch.autograd.grad(loss, list(trained.values()), retain_graph=True) for loss in every]
    module = peer.hooked(network)
    optimizer = peer.dp_optimizer(network, recipe=RECIPES[kind], sigma=1.0, expected=6, seed=0)
    optimizer.step = lambda: None  # type: ignore[method-assign]
    peer.backward(module, foundation, batch, np.random.default_rng(3), optimizer)
    expected = [torch.stack(gradients) for gradients in zip(*plain, strict=True)]
    whole = float(torch.cat([g.flatten() for g in expected]).norm())
    errors = [float((p.grad_sample - g).norm()) / max(float(g.norm()), 1e-4 * whole) for p, g in zip(trained.values(), expected, strict=True)]
    return max(errors)  # keys' biases have no gradient but rounding: hence the floor


@pytest.mark.parametrize("kind", KINDS)
def test_the_peers_gradients_are_exact(kind: Kind) -> None:
    """Every trained parameter's per-sample gradient, as Opacus's hooks give it, is that of a plain backward pass."""
    assert worst_error(kind, repaired=True) < 1e-4


def test_stock_as_it_is_would_be_wrong() -> None:
    """Without contiguous activations the hooks' gradients are wrong, so the comparison can fail and the repair is needed."""
    assert worst_error("full", repaired=False) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_without_patients_adds_noise_alone(kind: Kind) -> None:
    """An empty Poisson batch steps: the gradient is noise of standard deviation sigma C / expected patients."""
    foundation = small_foundation(SHAPE)
    network = trained_network(foundation, kind, seed=1)
    module = peer.hooked(network)
    optimizer: DPOptimizer = peer.dp_optimizer(network, recipe=RECIPES[kind], sigma=3.0, expected=5, seed=0)
    empty: Batch = (torch.zeros(0, 1, 32, 32), torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 2, 16, 16))
    peer.backward(module, foundation, empty, np.random.default_rng(0), optimizer)
    gradient = torch.cat([p.grad.flatten() for p in optimizer.params])
    assert float(gradient.std()) == pytest.approx(3.0 * RECIPES[kind].clip / 5, rel=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_peer_adapts_through_empty_batches(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two patients at q = .1: most samples are empty; the run takes its steps, and the weights of its kind alone have moved."""
    monkeypatch.setattr(peer, "noise_for", lambda **_: 3.0)
    foundation = small_foundation(SHAPE)
    adapted, steps = adapt(foundation, cohort([1, 2]), kind=kind, epsilon=8.0, delta=1e-3, patient_rate=0.1, seconds=60.0, seed=0, steps=8)
    assert steps == 8
    before, after = foundation.network.state_dict(), adapted.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert set(before) == set(after)
    if kind == "lora":
        assert {name.split(".")[-2] for name in moved} == {"to_q", "to_k", "to_v", "0"}
    else:
        assert len(moved) > 0.9 * len(before)
    assert all(bool(torch.isfinite(t).all()) for t in after.values())
    assert not adapted.training


def test_the_noise_follows_from_the_steps_that_the_seconds_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds at two a step are five steps; the noise is asked for five at the run's rate and epsilon, and is the optimizer's."""
    asked: list[dict[str, object]] = []
    used: list[float] = []
    monkeypatch.setattr(peer, "step_seconds", lambda *_, **__: 2.0)
    monkeypatch.setattr(peer, "noise_for", lambda **values: asked.append(values) or 2.5)
    monkeypatch.setattr(DPOptimizer, "add_noise", lambda self: used.append(self.noise_multiplier) or add_noise(self))
    steps = adapt(small_foundation(SHAPE), MEMBERS, kind="lora", epsilon=8.0, delta=1e-3, patient_rate=0.5, seconds=10.0, seed=0)[1]
    assert steps == 5
    assert asked == [{"epsilon": 8.0, "delta": 1e-3, "sample_rate": 0.5, "steps": 5, "beside": ()}]
    assert used == [2.5] * 5


def test_merging_lora_gives_the_same_answers() -> None:
    """The adapted network without adapters answers as the trained one with them."""
    foundation = small_foundation(SHAPE)
    network = trained_network(foundation, "lora", seed=1)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    labels = torch.full((2, 3), NULL_INDEX)
    inputs = (torch.randn(2, 4, 16, 16), torch.zeros(2), torch.zeros_like(labels), torch.zeros(2, 2, 16, 16))
    with torch.no_grad():
        expected = network(*inputs)
        plain = foundation.network(*inputs)
        found = peer.merged(foundation, network, [p.detach().clone() for p in network.parameters() if p.requires_grad])(*inputs)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(plain, expected, atol=1e-3)


def test_a_patient_has_one_entry_and_any_of_its_images() -> None:
    """The data set is as long as the patients are many, and an entry gives each of the patient's images in turn, no other's."""
    foundation = small_foundation(SHAPE)
    entries = OneImageEach(MEMBERS, foundation.network, np.random.default_rng(0))
    assert len(entries) == 6
    drawn = [entries[3][0] for _ in range(40)]
    wanted = {bytes(MEMBERS.images[row]) for row in MEMBERS.patient_rows()["m003"]}
    assert {bytes(((image[0] + 1) * 127.5).round().to(torch.uint8).numpy()) for image in drawn} == wanted
    assert any(not torch.equal(a, b) for a, b in pairwise(drawn))


def test_a_steps_time_is_measured() -> None:
    """A step of 20 patients takes two passes, and longer than nothing."""
    assert peer.step_seconds(small_foundation(SHAPE), "lora", patients=20) > 0
