"""CLiD over labels: the true labels help the adapted network more with a member's image than with another.

    I(x, c) = E[|eps(x_t, t, null) - n|^2 - |eps(x_t, t, c) - n|^2], large for members        (equation 13, the same noise in both terms)
    score   = I of the adapted network - I of the reference network.

c is what adaptation conditions on: the pathology and the lesion box; null is neither. The expectation is over stratified levels, the squared
error is the EDM loss (``busgen_core.generator``): |e(x; sigma) - n|^2 per number, times 1 + (sigma / .5)^2. The paper further adds the
conditional loss, scaled by quartiles over all patients (equation 16): not here, since a patient's score would then depend on the others';
the loss attack measures that loss on its own.

Source: Zhai et al. 2024, "Membership inference on text-to-image diffusion models via conditional likelihood discrepancy", arXiv:2405.14800,
equation 13; calibrated as Watson et al. 2022, arXiv:2111.08440.
"""

import numpy as np
import torch
from torch import Tensor

from busgen_core.conditions import Condition, encode
from busgen_core.generator import Generator, denoising_loss, unfold
from busgen_privacy.attacks.base import Access, Draws, Scores, WhiteBoxAttack
from busgen_privacy.attacks.queries import loss_draws, networks, questions
from busgen_privacy.cohort import Cohort


@torch.no_grad()
def score(access: Access, cohort: Cohort, rows: list[int], draws: Draws) -> Scores:
    """How much more the labels help the adapted network, float64 [rows]."""
    noise, sigmas = loss_draws(draws)
    repeated = [row for row in rows for _ in range(draws.count)]
    before, after = (discrepancy(network, access, cohort, repeated, noise=noise, sigmas=sigmas) for network in networks(access))
    return np.asarray((after - before).double().cpu().numpy().reshape(draws.places.shape).mean(1))


def discrepancy(network: Generator, access: Access, cohort: Cohort, rows: list[int], *, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Loss without labels minus loss with them, float [rows]; rows may repeat, one for each draw."""
    patches, labelled = questions(network, cohort, rows)
    nulls = encode([Condition()] * len(rows), devices=network.devices, side=network.side).to(patches.device)
    images, noise, sigmas = unfold(patches, network.fold), noise.to(patches.device), sigmas.to(patches.device)
    without, given = (denoising_loss(network, access.scheduler, images, c, noise, sigmas) for c in (nulls, labelled))
    return without - given


ATTACK = WhiteBoxAttack(
    name="clid",
    what="Do the true labels help the adapted network more with members than with patients it never saw?",
    source="Zhai et al. 2024, arXiv:2405.14800, equation 13; calibrated as Watson et al. 2022, arXiv:2111.08440",
    score=score,
    passes=lambda draws: 4.0 * draws,
)
