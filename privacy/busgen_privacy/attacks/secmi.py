"""SecMI: on a patient's own deterministic path into noise, one step there and back returns nearer to its start for a member.

The paper walks x_0 to x_t by deterministic steps phi, takes one more, steps back by psi, and calls the miss the t-error
|psi(phi(x_t, t), t) - x_t|^2; members have a small one. In noise levels (``queries``) both are Euler steps,

    x_{i+1} = x_i + (s_{i+1} - s_i) e(x_i; s_i),        x_0 = the image, s_0 = .05,
    error_i = |x_{i+1} + (s_i - s_{i+1}) e(x_{i+1}; s_{i+1}) - x_i|^2,
    score   = mean over i of ln(error_i of the reference network) - ln(error_i of the adapted one).

Each network walks its own path. The step back asks for the noise that the next step forward uses too, so a level costs one pass. The paper takes
t = 100 (s = .34) and k = 10 alone; here every step of the walk to 1.24 counts, and fewer draws mean longer steps.

Source: Duan et al. 2023, arXiv:2302.01316, the t-error of section 3 and the attack SecMI_stat; calibrated as Watson et al. 2022, arXiv:2111.08440.
"""

from itertools import pairwise

import numpy as np
import torch
from diffusers import EDMDPMSolverMultistepScheduler
from torch import Tensor

from busgen_core.conditions import Encoded
from busgen_core.generator import Generator
from busgen_privacy.attacks.base import Access, Draws, Scores, WhiteBoxAttack
from busgen_privacy.attacks.queries import compared, predicted_noise, quiet_sigmas, size
from busgen_privacy.cohort import Cohort


def score(access: Access, cohort: Cohort, rows: list[int], draws: Draws) -> Scores:
    """How much smaller the t-errors are in the adapted network, float64 [rows]; as many steps as draws, nothing is random."""
    return compared(access, cohort, rows, quiet_sigmas(np.linspace(0, 1, draws.count + 1)), t_errors)


def t_errors(network: Generator, scheduler: EDMDPMSolverMultistepScheduler, clean: Tensor, sigmas: Tensor, conditions: Encoded) -> Tensor:
    """Mean squared t-error of each step along ``sigmas``, float32 [levels], upwards: float64 [levels - 1, images]."""
    point, errors = clean, []
    noise = predicted_noise(network, scheduler, point, sigmas[0].expand(len(clean)), conditions)
    for low, high in pairwise(sigmas):
        further = point + (high - low) * noise
        noise = predicted_noise(network, scheduler, further, high.expand(len(clean)), conditions)
        errors.append(size(further + (low - high) * noise - point, power=2) ** 2)
        point = further
    return torch.stack(errors)


ATTACK = WhiteBoxAttack(
    name="secmi",
    what="Does a step into noise and back return nearer to where it started for members?",
    source="Duan et al. 2023, arXiv:2302.01316, t-error; calibrated as Watson et al. 2022, arXiv:2111.08440",
    score=score,
    passes=lambda draws: 2.0 * (draws + 1),
)
