"""The reference-model attack: the adapted network finds a member likelier than networks that were adapted to other patients do. Optional.

    score(x) = ln [ Pr(x | theta) / mean over shadows s of Pr(x | s) ],        Pr(x | theta) = exp(-L(x; theta)),

L the EDM loss at stratified levels, the mean over pixels and draws; all networks see the same draws. RMIA compares this ratio with that of
population points z and scores the share of z with ratio(x) / ratio(z) >= gamma. All x meet the same z, so that score is a rising step
function of ratio(x); ranks are all that an AUC or a ROC curve needs, so the ratio itself is the score and no population enters. Shadows are
"out" models only, as in the paper's offline attack; its correction for the missing "in" models, which is made for probabilities, is left out.
exp(-L) is the image's likelihood tempered to one pixel: with the whole image's (thousands of nats) a mean over shadows is its largest term alone.

Guarantees: given the shadows, a patient's score depends on that patient alone. But shadows are adapted to patients, and one of those more or less
changes every score: the sensitivity that ``audit.travelling`` relies on does not hold for this attack, so its figures stay in the hospital.
Patients to whom a shadow was adapted must not be attacked: they look like non-members to it whatever the adapted network knows.

Source: Zarifzadeh et al. 2024, "Low-cost high-power membership inference attacks", arXiv:2312.03262 (RMIA, offline).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from busgen_core.errors import ConfigError
from busgen_core.generator import Generator
from busgen_privacy.attacks.base import Access, Draws, Scores, WhiteBoxAttack
from busgen_privacy.attacks.queries import loss_draws, same_shape
from busgen_privacy.cohort import Cohort
from busgen_privacy.denoising import patient_losses


def attack(shadows: Sequence[Generator]) -> WhiteBoxAttack:
    """The attack with these shadows; the access's reference network is not asked.

    Args:
        shadows: The foundation, adapted to patients who are on neither side of the attack; at least one; the source
            shows most of the power with one to four.

    Raises:
        ConfigError: no shadow; when the attack runs, a shadow with other parameters than the adapted network.
    """
    if not shadows:
        raise ConfigError("the reference-model attack needs at least one shadow network")
    kept = tuple(shadows)

    def score(access: Access, cohort: Cohort, rows: list[int], draws: Draws) -> Scores:
        return ratios(access, kept, cohort, rows, draws)

    return WhiteBoxAttack(
        name="reference-model",
        what="Does the adapted network find members likelier than networks adapted to other patients do?",
        source="Zarifzadeh et al. 2024, arXiv:2312.03262 (RMIA, offline)",
        score=score,
        passes=lambda draws: float(draws * (1 + len(kept))),
    )


@torch.no_grad()
def ratios(access: Access, shadows: Sequence[Generator], cohort: Cohort, rows: list[int], draws: Draws) -> Scores:
    """Logarithm of the likelihood ratio of each image, float64 [rows]."""
    adapted = access.adapted
    noise, sigmas = loss_draws(draws)
    repeated = [row for row in rows for _ in range(draws.count)]
    asked = [adapted, *(same_shape(adapted, shadow) for shadow in shadows)]
    losses = torch.stack(patient_losses(asked, access.scheduler, cohort, repeated, noise=noise, sigmas=sigmas))
    return log_ratio(losses.double().view(len(asked), *draws.places.shape).mean(2))


def log_ratio(losses: Tensor) -> Scores:
    """ln of exp(-L) of the first network over its mean in the others; losses float64 [1 + shadows, rows] to float64 [rows].

    >>> log_ratio(torch.tensor([[1.0], [1.5], [1.5]])).tolist()
    [0.5]
    """
    likelihood, others = -losses[0], torch.logsumexp(-losses[1:], dim=0) - np.log(len(losses) - 1)
    return np.asarray((likelihood - others).cpu().numpy(), dtype=np.float64)
