"""One patient's denoising losses: what adaptation learns from and what the loss attack measures."""

import numpy as np
import torch
from diffusers import EDMDPMSolverMultistepScheduler
from numpy.typing import NDArray
from torch import Tensor

from busgen_core.conditions import Condition, encode
from busgen_core.generator import Generator, denoising_loss
from busgen_core.tensors import to_unit
from busgen_privacy.cohort import Cohort

# Noise levels, standard deviations of pixels in [-1, 1]: the middle carries the private signal, phantoms teach speckle.
LOWEST_SIGMA, HIGHEST_SIGMA = 0.05, 20.0


def sigmas_at(places: NDArray[np.float64]) -> Tensor:
    """Noise levels at places in [0, 1], equally spaced in their logarithm; float32.

    >>> [round(s, 3) for s in sigmas_at(np.array([0.0, 0.5, 1.0])).tolist()]
    [0.05, 1.0, 20.0]
    """
    low, high = np.log(LOWEST_SIGMA), np.log(HIGHEST_SIGMA)
    return torch.from_numpy(np.exp(low + places * (high - low)).astype(np.float32))


def patient_losses(
    networks: list[Generator], scheduler: EDMDPMSolverMultistepScheduler, cohort: Cohort, rows: list[int], *, noise: Tensor, sigmas: Tensor
) -> list[Tensor]:
    """EDM loss of each network for some rows of a cohort, all of one patient: float [rows] for each network.

    Args:
        networks: All of one shape, on one device.
        rows: May repeat: one for each draw.
        noise: Standard normal, [rows, fold^2, side, side].
        sigmas: Noise levels, float [rows].
    """
    first = networks[0]
    device = next(first.parameters()).device
    conditions = encode([Condition(pathology=cohort.classes[r], box=cohort.boxes[r]) for r in rows], devices=first.devices, side=first.side)
    images, encoded = to_unit(cohort.images[rows]).to(device), conditions.to(device)
    return [denoising_loss(network, scheduler, images, encoded, noise.to(device), sigmas.to(device)) for network in networks]
