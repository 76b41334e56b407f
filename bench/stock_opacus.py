"""Two peers of our DP-SGD: a full fine-tune and DP-LoRA on every attention layer, as stock Opacus 1.6 and peft do them.

The unit is the patient in the one way stock Opacus can have it: the data set has one entry a patient, and an entry gives one
of the patient's images, drawn anew each time. Everything else is what Opacus ships: GradSampleModule's hooks, DPDataLoader's
Poisson sampling, BatchMemoryManager's small batches, DPOptimizer's flat cut and noise over Adam. It divides by the true number
of patients times the rate, as ``make_private`` does. Stock has no noise multiplicity (Opacus issues #455, #461): one draw an image.

What is added to stock, all in the peer's favour: convolutions see contiguous activations (the hooks' gradients are wrong
otherwise, tests/privacy/test_stock_peer.py), an empty Poisson batch becomes a step of noise alone (diffusers' attention fails on it),
the released weights are an exponential mean like ours, and step size and clip norm were rehearsed (RECIPES).
"""

import time
import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.data_loader import DPDataLoader
from opacus.optimizers import DPOptimizer
from opacus.utils.batch_memory_manager import BatchMemoryManager
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.data import Dataset

from busgen_core.conditions import Condition, Encoded, encode
from busgen_core.errors import ConfigError
from busgen_core.foundation import Foundation
from busgen_core.generator import Generator, denoising_loss
from busgen_core.tensors import to_unit
from busgen_privacy.cohort import Cohort
from busgen_privacy.denoising import sigmas_at
from busgen_privacy.dp.accounting import noise_for
from busgen_privacy.dp.dpsgd import contiguous

Kind = Literal["full", "lora"]
Batch = tuple[Tensor, Tensor, Tensor]  # images [n, 1, px, px], labels [n, 3], planes [n, 2, side, side]

RANK = 8  # of LoRA, with alpha = rank, so that the update is B A
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
PHYSICAL = 16  # patients of one forward pass; more are split and their clipped gradients summed
EMA_DECAY = 0.98  # as ours
MOST_STEPS = 2000
TIMED = 3  # steps that are timed before a run; the fastest counts


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a person would tune: Adam's step size and the L2 bound on one patient's gradient."""

    learning_rate: float
    clip: float


# Rehearsed on `public` alone, as if of a louder machine (0.9 x^0.75 + 0.05): 300 patients, q = .25, 40 steps, change of the held-out loss of .1684.
RECIPES: Mapping[Kind, Recipe] = MappingProxyType({"full": Recipe(learning_rate=3e-4, clip=0.3), "lora": Recipe(learning_rate=2e-2, clip=0.02)})


class OneImageEach(Dataset[Batch]):
    """One entry a patient: one of its images, drawn anew each time, with its labels and region planes."""

    def __init__(self, cohort: Cohort, network: Generator, rng: np.random.Generator) -> None:
        conditions = [Condition(pathology=c, box=b) for c, b in zip(cohort.classes, cohort.boxes, strict=True)]
        self.encoded = encode(conditions, devices=network.devices, side=network.side)
        self.images, self.rows, self.rng = to_unit(cohort.images), list(cohort.patient_rows().values()), rng

    def __len__(self) -> int:
        """Number of patients."""
        return len(self.rows)

    def __getitem__(self, patient: int) -> Batch:
        row = int(self.rng.choice(self.rows[patient]))
        return self.images[row], self.encoded.labels[row], self.encoded.planes[row]


def trained_network(foundation: Foundation, kind: Kind, *, seed: int, repaired: bool = True) -> Generator:
    """A copy of the network with the peer's parameters trainable, in train mode (Opacus captures nothing in eval mode).

    Args:
        seed: Of LoRA's first matrices.
        repaired: Contiguous activations for every convolution; False is stock as it is, for the test that shows why.
    """
    network = contiguous(foundation.network).requires_grad_(kind == "full")
    if kind == "lora":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(ATTENTION)), network.unet)
    return (repair(network) if repaired else network).train()


def repair(network: Generator) -> Generator:
    """The same network, in which every convolution sees contiguous activations: Opacus's unfold reads others as if they were."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
    return network


def hooked(network: Generator) -> GradSampleModule:
    """The network with Opacus's hooks: a backward pass leaves each parameter's per-sample gradients in ``grad_sample``."""
    return GradSampleModule(network, loss_reduction="mean", strict=True)


def losses(module: nn.Module, foundation: Foundation, batch: Batch, rng: np.random.Generator) -> Tensor:
    """Denoising losses of a batch, one noise level and one draw each: float [n]."""
    images, labels, planes = batch
    shape = (len(images), foundation.network.fold**2, foundation.network.side, foundation.network.side)
    noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    return denoising_loss(module, foundation.scheduler, images, Encoded(labels, planes), noise, sigmas_at(rng.random(len(images))))


def backward(module: nn.Module, foundation: Foundation, batch: Batch, rng: np.random.Generator, optimizer: DPOptimizer) -> None:
    """Per-sample gradients of a batch, and ``step``; an empty batch holds no gradient, so that a step adds noise alone."""
    optimizer.zero_grad(set_to_none=True)
    if len(batch) and len(batch[0]):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")  # inputs of the first layers need no gradient
            losses(module, foundation, batch, rng).mean().backward()
    else:
        for parameter in optimizer.params:
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
    optimizer.step()


def dp_optimizer(network: nn.Module, *, recipe: Recipe, sigma: float, expected: int, seed: int) -> DPOptimizer:
    """Opacus's optimizer over Adam."""
    adam = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=recipe.learning_rate)
    noise = torch.Generator().manual_seed(seed)
    return DPOptimizer(adam, noise_multiplier=sigma, max_grad_norm=recipe.clip, expected_batch_size=expected, generator=noise)


def step_seconds(foundation: Foundation, kind: Kind, *, patients: int) -> float:
    """Processor seconds of one step on ``patients`` random images, in pieces as in a run, with a network that is thrown away."""
    rng, network, pieces = np.random.default_rng(0), foundation.network, -(-patients // PHYSICAL)
    tables, px, count = torch.tensor(network.tables) - 1, network.image_px, -(-patients // pieces)
    batch = (torch.rand(count, 1, px, px) * 2 - 1, tables.expand(count, 3), torch.zeros(count, 2, network.side, network.side))
    trained = trained_network(foundation, kind, seed=0)
    optimizer, module = dp_optimizer(trained, recipe=RECIPES[kind], sigma=1.0, expected=patients, seed=0), hooked(trained)
    found = []
    for _ in range(1 + TIMED):
        started = time.process_time()
        for piece in range(1, pieces + 1):
            optimizer.signal_skip_step(piece < pieces)
            backward(module, foundation, batch, rng, optimizer)
        found.append(time.process_time() - started)
    return min(found[1:])


def batches(patients: OneImageEach, *, rate: float, optimizer: DPOptimizer, seed: int) -> Iterator[Batch]:
    """Poisson samples of patients for ever, in pieces of at most PHYSICAL; ``optimizer`` is told where a sample ends."""
    draws = torch.Generator().manual_seed(seed)
    loader = DPDataLoader(patients, sample_rate=rate, generator=draws)
    with BatchMemoryManager(data_loader=loader, max_physical_batch_size=PHYSICAL, optimizer=optimizer) as pieces:
        while True:
            yield from pieces


def adapt(
    foundation: Foundation,
    cohort: Cohort,
    *,
    kind: Kind,
    epsilon: float,
    delta: float,
    patient_rate: float,
    seconds: float,
    seed: int,
    steps: int = MOST_STEPS,
    recipe: Recipe | None = None,
) -> tuple[Generator, int]:
    """Adapt the foundation as ``kind`` does; the network in eval mode, LoRA merged, and the steps it took.

    The noise has to be known before the first step, so the steps are fixed beforehand: as many as ``seconds`` hold by a step's
    time on random images, at most ``steps``. All randomness follows from ``seed``: a benchmark, not a release.

    Args:
        foundation: Left unchanged.
        cohort: Members only.
        kind: ``full`` or ``lora``.
        epsilon: Of the whole run, at ``delta``, for one patient added or removed.
        delta: The same delta as ours.
        patient_rate: Chance that a given patient enters a step.
        seconds: Processor time of the steps, about.
        seed: Of samples, draws, noise and LoRA's first matrices.
        steps: Most steps.
        recipe: Step size and clip norm; None is the rehearsed one.

    Raises:
        ConfigError: a rate or epsilon outside its range, or an empty cohort.
    """
    if not len(cohort) or not 0 < patient_rate <= 1:
        raise ConfigError(f"the cohort is empty, or {patient_rate=} is not in (0, 1]")
    chosen, rng = recipe or RECIPES[kind], np.random.default_rng(seed)
    network = trained_network(foundation, kind, seed=seed)
    patients = OneImageEach(cohort, network, rng)
    expected = max(1, int(len(patients) * patient_rate))
    count = max(1, min(steps, int(seconds / step_seconds(foundation, kind, patients=expected))))
    sigma = noise_for(epsilon=epsilon, delta=delta, sample_rate=patient_rate, steps=count, beside=())
    optimizer = dp_optimizer(network, recipe=chosen, sigma=sigma, expected=expected, seed=seed)
    average = run(hooked(network), foundation, patients, optimizer, rate=patient_rate, steps=count, rng=rng, seed=seed)
    return merged(foundation, network, average), count


def run(
    module: GradSampleModule,
    foundation: Foundation,
    patients: OneImageEach,
    optimizer: DPOptimizer,
    *,
    rate: float,
    steps: int,
    rng: np.random.Generator,
    seed: int,
) -> list[Tensor]:
    """``steps`` noised steps; the exponential mean of the trained parameters, in the optimizer's order."""
    done: list[int] = []
    optimizer.attach_step_hook(lambda _: done.append(1))  # called once a noised step, not once a piece
    average = [p.detach().clone() for p in optimizer.params]
    for batch in batches(patients, rate=rate, optimizer=optimizer, seed=seed + 1):
        before = len(done)
        backward(module, foundation, batch, rng, optimizer)
        if len(done) > before:
            decay = min(EMA_DECAY, (1 + before) / (10 + before))
            for mean, parameter in zip(average, optimizer.params, strict=True):
                mean.lerp_(parameter.detach(), 1 - decay)
        if len(done) == steps:
            return average
    raise AssertionError("the loader never ends")


def merged(foundation: Foundation, network: Generator, average: list[Tensor]) -> Generator:
    """The foundation's network with the averaged weights in place, and LoRA's updates added to the weights they adapt."""
    for parameter, mean in zip([p for p in network.parameters() if p.requires_grad], average, strict=True):
        parameter.data.copy_(mean)
    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, module.get_base_layer())
    adapted = deepcopy(foundation.network).float().eval()
    adapted.load_state_dict(network.state_dict())
    return adapted.requires_grad_(False)
