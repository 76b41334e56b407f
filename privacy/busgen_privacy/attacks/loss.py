"""The loss attack: how much better the adapted network denoises a patient than the un-adapted one.

score(x) = mean over levels and draws of L_reference(x) - L_adapted(x), L the EDM loss at stratified noise levels. Both networks see the
same noise. Source: Matsumoto et al. 2023, arXiv:2302.03262 (loss thresholds of diffusion models), with the difficulty
calibration of Watson et al. 2022, arXiv:2111.08440, equation 3.
"""

import numpy as np
import torch

from busgen_privacy.attacks.base import Access, Draws, Scores, WhiteBoxAttack
from busgen_privacy.attacks.queries import loss_draws
from busgen_privacy.cohort import Cohort
from busgen_privacy.denoising import patient_losses


@torch.no_grad()
def score(access: Access, cohort: Cohort, rows: list[int], draws: Draws) -> Scores:
    """Improvement of each image, float64 [rows]; levels are stratified over those that adaptation trains."""
    adapted, repeated = access.adapted, [row for row in rows for _ in range(draws.count)]
    noise, sigmas = loss_draws(draws)
    networks = [access.reference.to(next(adapted.parameters()).device), adapted]
    before, after = patient_losses(networks, access.scheduler, cohort, repeated, noise=noise, sigmas=sigmas)
    return np.asarray((before - after).double().cpu().numpy().reshape(draws.places.shape).mean(1))


ATTACK = WhiteBoxAttack(
    name="loss",
    what="Does the adapted network denoise members better than patients it never saw?",
    source="Matsumoto et al. 2023, arXiv:2302.03262; calibrated as Watson et al. 2022, arXiv:2111.08440",
    score=score,
    passes=lambda draws: 2.0 * draws,
)
