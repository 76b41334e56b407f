"""PIA: the noise that the network sees in the clean image, added at a louder level, is recognised again where the image is a member's.

    R_p(x_0, t) = |eps(x_0, 0) - eps(sqrt(a_t) x_0 + sqrt(1 - a_t) eps(x_0, 0), t)|_p        (equation 9; members have a small one)

In noise levels (``queries``), with s_0 = .05 in place of t = 0 and p = 4 as in the paper,

    e_0 = e(x; s_0),        R(x, s) = |e_0 - e(x + s e_0; s)|_4,
    score = mean over levels s of ln R of the reference network - ln R of the adapted one.

The paper takes one level, t = 200 (s = .72); here levels lie between .05 and 1.24. The variant that rescales e_0 (PIAN) is not used.

Source: Kong et al. 2023, "An efficient membership inference attack for the diffusion model by proximal initialization", arXiv:2305.18355, equation 9;
calibrated as Watson et al. 2022, arXiv:2111.08440.
"""

from diffusers import EDMDPMSolverMultistepScheduler
from torch import Tensor

from busgen_core.conditions import Encoded
from busgen_core.generator import Generator
from busgen_privacy.attacks.base import Access, Draws, Scores, WhiteBoxAttack
from busgen_privacy.attacks.queries import compared, middle_sigmas, predicted_noise, repeated, size
from busgen_privacy.cohort import Cohort
from busgen_privacy.denoising import LOWEST_SIGMA

POWER = 4  # the norm that the paper's experiments use


def score(access: Access, cohort: Cohort, rows: list[int], draws: Draws) -> Scores:
    """How much better the adapted network recognises its own noise, float64 [rows]; as many levels as draws, nothing is random."""
    return compared(access, cohort, rows, middle_sigmas(draws.count), misses)


def misses(network: Generator, scheduler: EDMDPMSolverMultistepScheduler, clean: Tensor, sigmas: Tensor, conditions: Encoded) -> Tensor:
    """R of each image at each level of ``sigmas``, float32 [levels]: float64 [levels, images]."""
    first = predicted_noise(network, scheduler, clean, clean.new_full((len(clean),), LOWEST_SIGMA), conditions)
    levels, image, noise = sigmas.repeat_interleave(len(clean)), clean.repeat(len(sigmas), 1, 1, 1), first.repeat(len(sigmas), 1, 1, 1)
    noisy = image + levels[:, None, None, None] * noise
    again = predicted_noise(network, scheduler, noisy, levels, repeated(conditions, len(sigmas)))
    return size(noise - again, power=POWER).view(len(sigmas), len(clean))


ATTACK = WhiteBoxAttack(
    name="pia",
    what="Does the network recognise the noise that it sees in an image when that noise is made louder, for members more than for others?",
    source="Kong et al. 2023, arXiv:2305.18355, equation 9; calibrated as Watson et al. 2022, arXiv:2111.08440",
    score=score,
    passes=lambda draws: 2.0 * (draws + 1),
)
