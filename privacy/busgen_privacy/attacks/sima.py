"""SimA: asked about the image itself, with no noise added, the network sees less noise in a member's.

    A(x, t) = |eps(x, t)|_p, small for members: eps points from x to the mean of the training images near x, and a member is its own.

In noise levels (``queries``), with p = 4 as in the paper's experiments,

    score = mean over levels s of ln |e(x; s)|_4 of the reference network - ln |e(x; s)|_4 of the adapted one.

One query is one level. The paper searches t = 0 to 300 for the best; here levels lie between .05 and 1.24 (the same range, less what adaptation
does not train) and all count: a level chosen by its result on these patients would flatter the attack. The paper puts x itself into the
network; here it is the noiseless point of its path, sqrt(a_t) x in the paper's coordinates, where a member known by heart gives e = 0.

Source: Rao, Qu, Moyer 2025, "Score-based membership inference on diffusion models", arXiv:2509.25003, the statistic A; calibrated as
Watson et al. 2022, arXiv:2111.08440.
"""

from diffusers import EDMDPMSolverMultistepScheduler
from torch import Tensor

from busgen_core.conditions import Encoded
from busgen_core.generator import Generator
from busgen_privacy.attacks.base import Access, Draws, Scores, WhiteBoxAttack
from busgen_privacy.attacks.queries import compared, middle_sigmas, predicted_noise, repeated, size
from busgen_privacy.cohort import Cohort

POWER = 4  # the norm that the paper's experiments use


def score(access: Access, cohort: Cohort, rows: list[int], draws: Draws) -> Scores:
    """How much less noise the adapted network sees in each image, float64 [rows]; as many levels as draws, nothing is random."""
    return compared(access, cohort, rows, middle_sigmas(draws.count), noise_norms)


def noise_norms(network: Generator, scheduler: EDMDPMSolverMultistepScheduler, clean: Tensor, sigmas: Tensor, conditions: Encoded) -> Tensor:
    """A of each image at each level of ``sigmas``, float32 [levels]: float64 [levels, images]."""
    images, levels = clean.repeat(len(sigmas), 1, 1, 1), sigmas.repeat_interleave(len(clean))
    noise = predicted_noise(network, scheduler, images, levels, repeated(conditions, len(sigmas)))
    return size(noise, power=POWER).view(len(sigmas), len(clean))


ATTACK = WhiteBoxAttack(
    name="sima",
    what="Does the network see less noise in members' images as they are?",
    source="Rao, Qu, Moyer 2025, arXiv:2509.25003; calibrated as Watson et al. 2022, arXiv:2111.08440",
    score=score,
    passes=lambda draws: 2.0 * draws,
)
