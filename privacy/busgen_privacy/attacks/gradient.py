"""The gradient attack: training would change the network less for a member's image than for another.

    g_l(x) = |d/d theta_l of the mean over draws of L(x; theta)|_2        for each layer l, a parameter tensor theta_l; L is the EDM loss,
    score(x) = mean over layers of ln g_l of the reference network - ln g_l of the adapted one. Both see the same draws.

The paper, too, takes a subsample of levels, averages over it and keeps the norm of each layer; it hands the norms to a classifier trained on
shadow models. Here the un-adapted network takes the shadows' place. Levels are stratified between .05 and 1.24 (``queries``), as in the
other attacks.

Source: Pang et al. 2023, "White-box membership inference attacks against diffusion models", arXiv:2308.06405, gradients subsampled over levels and
aggregated by layer (GSA); calibrated as Watson et al. 2022, arXiv:2111.08440.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter

from busgen_core.generator import Generator
from busgen_privacy.attacks.base import Access, Draws, Scores, WhiteBoxAttack
from busgen_privacy.attacks.queries import calibrated, loss_draws, networks, quiet_sigmas
from busgen_privacy.cohort import Cohort
from busgen_privacy.denoising import patient_losses


def score(access: Access, cohort: Cohort, rows: list[int], draws: Draws) -> Scores:
    """How much shorter the adapted network's gradient is for each image, float64 [rows]."""
    noise, sigmas = loss_draws(draws, levels=quiet_sigmas)
    norms = []
    for network in networks(access):
        with torch.enable_grad(), differentiable(network) as parameters:
            norms.append(torch.stack([layer_norms(loss, parameters) for loss in _losses(network, access, cohort, rows, noise, sigmas)], dim=1))
    return calibrated(*norms)


def _losses(network: Generator, access: Access, cohort: Cohort, rows: list[int], noise: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """Mean loss of each image over its draws, one after the other: only one image's graph is held."""
    for row, n, s in zip(rows, noise.chunk(len(rows)), sigmas.chunk(len(rows)), strict=True):
        yield patient_losses([network], access.scheduler, cohort, [row] * len(s), noise=n, sigmas=s)[0].mean()


def layer_norms(loss: Tensor, parameters: list[Parameter]) -> Tensor:
    """L2 norm of the gradient of ``loss`` by each parameter, 0 where it has none: float64 [parameters]."""
    parts = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.stack([torch.linalg.vector_norm(part, dtype=torch.float64) for part in parts])


@contextmanager
def differentiable(network: Generator) -> Iterator[list[Parameter]]:
    """Every parameter, asking for gradients and contiguous while inside; afterwards tensors and flags are those of before.

    torch's backward on CPU crashes where weights are channels_last and others are frozen, so both are set for all.
    """
    kept = [(parameter, parameter.requires_grad, parameter.data) for parameter in network.parameters()]
    try:
        for parameter, _, data in kept:
            parameter.data = data.clone(memory_format=torch.contiguous_format)
            parameter.requires_grad_(True)
        yield [parameter for parameter, _, _ in kept]
    finally:
        for parameter, wanted, data in kept:
            parameter.data = data
            parameter.requires_grad_(wanted)


ATTACK = WhiteBoxAttack(
    name="gradient",
    what="Would training change the adapted network less for members than for patients it never saw?",
    source="Pang et al. 2023, arXiv:2308.06405, GSA1; calibrated as Watson et al. 2022, arXiv:2111.08440",
    score=score,
    passes=lambda draws: 6.0 * draws,  # two networks, forward and backward
    at_once=1,
)
