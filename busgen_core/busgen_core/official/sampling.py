"""Images from the published network, through diffusers' solvers.

With t the time steps of Ho et al. 2020 (arXiv:2006.11239) and linear betas, each evaluation asks the network twice, for what
is wanted and for anything (J. Ho, T. Salimans 2022, arXiv:2207.12598, equation 6):

    eps = (1 + w) eps(x, t, condition) - w eps(x, t, null)

and a solver of the diffusion's ordinary differential equation goes on from there. Nothing is random but the first noise.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TypeAlias

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler
from torch import Tensor, nn

from busgen_core.conditions import Condition
from busgen_core.errors import ConfigError
from busgen_core.official.labels import OfficialConditions, OfficialLabels, encode_official
from busgen_core.official.network import IMAGE_CHANNELS, OfficialSizes

BETA_FIRST, BETA_LAST = 1e-4, 0.028  # linear, over the T steps (Configs/BUSGen_Sampling.json)
GUIDANCE, EVALUATIONS = 1.8, 50  # w and dpm_solver_T (same)

Scheduler: TypeAlias = DPMSolverSinglestepScheduler | DPMSolverMultistepScheduler | DDIMScheduler


class Solver(StrEnum):
    """How the equation is solved."""

    SINGLESTEP = "dpmsolver++"  # order 3, C. Lu et al. 2022, arXiv:2211.01095; the published one
    MULTISTEP = "dpmsolver++2m"  # order 2, same paper, algorithm 2
    DDIM = "ddim"  # J. Song et al. 2020, arXiv:2010.02502, with eta = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class OfficialGenerator:
    """The published network, loaded, with what is needed to ask it.

    Attributes:
        network: In eval mode; called like ``OfficialUNet.forward``.
        sizes: Of the network.
        scheduler: The noise schedule, with the published solver.
        image_px: Rows and columns of an image.
        devices: Names of rows 1 and up of the device table; empty where they are not known.
        labels: Rows of the class table.
        digest: SHA-256 of the file, or digest of the folder, that it was loaded from.
        license_note: On whose terms the weights may be used; empty where a bare file was loaded.

    Raises:
        ConfigError: sides that the network cannot halve, names that are not one a row, or class rows beyond the table.
    """

    network: nn.Module
    sizes: OfficialSizes
    scheduler: DPMSolverSinglestepScheduler
    image_px: int
    devices: tuple[str, ...]
    labels: OfficialLabels
    digest: str
    license_note: str = ""

    def __post_init__(self) -> None:
        if self.image_px < 1 or self.image_px % self.sizes.divisor:
            raise ConfigError(f"image_px={self.image_px} is not a multiple of {self.sizes.divisor}, by which the network divides the sides")
        if self.devices and (len(self.devices) != self.sizes.devices - 1 or len({*self.devices, ""}) <= len(self.devices)):
            raise ConfigError(f"the device table has {self.sizes.devices - 1} rows beside the null: give as many distinct names")
        if max(self.labels.rows) >= self.sizes.classes:
            raise ConfigError(f"the class table has {self.sizes.classes} rows, {self.labels} names one beyond them")

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.network.parameters(), torch.empty(0)).device


def build_official_scheduler(steps: int) -> DPMSolverSinglestepScheduler:
    """The published schedule over ``steps`` steps, with the published solver.

    It stops at the quietest trained level (``sigma_min``) as published: 1 % of noise is left, 1.3 gray levels of 255.
    """
    return DPMSolverSinglestepScheduler(
        num_train_timesteps=steps,
        beta_start=BETA_FIRST,
        beta_end=BETA_LAST,
        beta_schedule="linear",
        prediction_type="epsilon",
        algorithm_type="dpmsolver++",
        solver_order=3,
        lower_order_final=True,
        final_sigmas_type="sigma_min",
    )


def _singlestep(scheduler: DPMSolverSinglestepScheduler) -> Scheduler:
    return DPMSolverSinglestepScheduler.from_config(scheduler.config)


def _multistep(scheduler: DPMSolverSinglestepScheduler) -> Scheduler:
    return DPMSolverMultistepScheduler(**_schedule(scheduler), algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="sigma_min")


def _ddim(scheduler: DPMSolverSinglestepScheduler) -> Scheduler:
    return DDIMScheduler(**_schedule(scheduler), clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing")


def _schedule(scheduler: DPMSolverSinglestepScheduler) -> dict[str, object]:
    """What every scheduler of diffusers calls the noise schedule."""
    return {key: scheduler.config[key] for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")}


SOLVERS: MappingProxyType[Solver, Callable[[DPMSolverSinglestepScheduler], Scheduler]] = MappingProxyType(
    {Solver.SINGLESTEP: _singlestep, Solver.MULTISTEP: _multistep, Solver.DDIM: _ddim}
)


def solver_of(scheduler: DPMSolverSinglestepScheduler, solver: Solver | str, *, evaluations: int) -> Scheduler:
    """A scheduler of diffusers, set to ``evaluations`` time steps.

    Raises:
        ConfigError: unknown solver; evaluations not in 2 to T - 1, or, for DDIM, not a divisor of T (diffusers would
            step between levels that it did not visit).
    """
    steps = int(scheduler.config["num_train_timesteps"])
    if solver not in list(Solver):
        raise ConfigError(f"solver must be one of {[s.value for s in Solver]}")
    if not 2 <= evaluations < steps:
        raise ConfigError(f"{evaluations=} is not in 2 to {steps - 1}")
    if solver == Solver.DDIM and steps % evaluations:
        raise ConfigError(f"{evaluations=} does not divide the {steps} steps, as DDIM needs; take another number or solver")
    chosen = SOLVERS[Solver(solver)](scheduler)
    chosen.set_timesteps(evaluations)
    return chosen


def guided_noise(network: nn.Module, noisy: Tensor, steps: Tensor, wanted: OfficialConditions, *, labels: OfficialLabels, guidance: float) -> Tensor:
    """Noise in ``noisy``, pushed from anything towards what is wanted.

    Args:
        network: Called like ``OfficialUNet.forward``.
        noisy: float [n, 3, px, px].
        steps: int64 [n].
        wanted: Conditions of the batch.
        labels: Which row is the null.
        guidance: w; 0 asks for what is wanted and no more, and costs half.

    Returns:
        float [n, 3, px, px].

    Source: J. Ho, T. Salimans 2022, arXiv:2207.12598, equation 6. The null has no box either (published code, Eval.py).
    """
    towards: Tensor = network(torch.cat([noisy, wanted.planes], dim=1), steps, wanted.classes, wanted.devices)
    if guidance == 0:
        return towards
    null = wanted.null(labels)
    away: Tensor = network(torch.cat([noisy, null.planes], dim=1), steps, null.classes, null.devices)
    return (1 + guidance) * towards - guidance * away


def to_gray(images: Tensor) -> Tensor:
    """Mean of red, green and blue, each cut to [-1, 1].

    >>> to_gray(torch.tensor([3.0, 0.0, -1.0]).reshape(1, 3, 1, 1)).tolist()
    [[[[0.0]]]]
    """
    return images.clamp(-1, 1).mean(dim=1, keepdim=True)


@torch.no_grad()
def sample_official(
    generator: OfficialGenerator,
    conditions: Sequence[Condition],
    *,
    seeds: Sequence[int],
    evaluations: int = EVALUATIONS,
    guidance: float = GUIDANCE,
    solver: Solver | str = Solver.SINGLESTEP,
) -> Tensor:
    """Draw images; image i depends on seeds[i] and conditions[i] alone (up to rounding, which may differ with the batch).

    Args:
        generator: The network.
        conditions: What each image shows. All are drawn as one batch: memory grows with their number.
        seeds: One for each image.
        evaluations: Steps of the solver, each asking the network once for what is wanted and once for anything. The published
            solver takes them in threes: a number that leaves 2, as 50 does, ends more exactly than its neighbours.
        guidance: w of :func:`guided_noise`, 0 or above.
        solver: One of :class:`Solver`.

    Returns:
        float32 [n, 1, px, px] in [-1, 1], on the CPU: the gray of the network's red, green and blue.

    Raises:
        LabelError: a condition that the network does not know.
        ConfigError: a number out of range, or not one seed for each condition.
    """
    if len(seeds) != len(conditions) or not (math.isfinite(guidance) and guidance >= 0):
        raise ConfigError(f"need one seed for each condition and a guidance of 0 or above: {len(seeds)=}, {len(conditions)=}, {guidance=}")
    chosen, px, device = solver_of(generator.scheduler, solver, evaluations=evaluations), generator.image_px, generator.device
    if not conditions:
        return torch.empty(0, 1, px, px)
    wanted = encode_official(conditions, labels=generator.labels, devices=generator.devices, px=px).to(device)
    noisy = torch.stack([torch.randn(IMAGE_CHANNELS, px, px, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).to(device)
    for step in chosen.timesteps:
        steps = step.expand(len(noisy)).to(device)
        noise = guided_noise(generator.network, noisy, steps, wanted, labels=generator.labels, guidance=guidance)
        noisy = chosen.step(noise, step, noisy).prev_sample
    return to_gray(noisy).cpu()
