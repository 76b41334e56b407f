"""What the white-box attacks ask of a network: its predicted noise, at which levels, and how answers of two networks are compared.

The network answers F (``busgen_core.generator``). From it follow the denoised image and the predicted noise,

    D(x; sigma) = c_skip(sigma) x + c_out(sigma) F,        e(x; sigma) = (x - D(x; sigma)) / sigma,

and -e / sigma is the score (Karras et al. 2022, arXiv:2206.00364, equations 3 and 7).

The attacks' papers count DDPM steps t: x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) n, with noise predicted as eps(x_t, t). Divided by sqrt(a_t)
that is x_0 + sigma n with sigma = sqrt((1 - a_t) / a_t), so eps(x_t, t) is e(x_t / sqrt(a_t); sigma), and a deterministic DDIM step is an Euler
step of dx = e dsigma (J. Song et al. 2021, arXiv:2010.02502, equations 13 and 14). On the papers' schedule (1000 steps, Ho et al. 2020,
arXiv:2006.11239, section 4) t = 100, 200, 300 are sigma = .34, .72, 1.24, and t = 0 is .01.

Adaptation trains levels from .05 on (``denoising.LOWEST_SIGMA``): what it learned shows there, not below. So .05 stands for t = 0.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import EDMDPMSolverMultistepScheduler
from numpy.typing import NDArray
from torch import Tensor

from busgen_core.conditions import Condition, Encoded, encode
from busgen_core.errors import ConfigError
from busgen_core.generator import Generator, fold
from busgen_core.tensors import to_unit
from busgen_privacy.attacks.base import Access, Draws, Scores
from busgen_privacy.cohort import Cohort
from busgen_privacy.denoising import LOWEST_SIGMA, sigmas_at

LOUDEST_QUIET_SIGMA = 1.24  # t = 300, the loudest step at which the papers of SecMI, PIA and SimA attack
SMALLEST = 1e-6  # sizes below it count as it: what float32 leaves of a perfect answer

Sizes = Callable[[Generator, EDMDPMSolverMultistepScheduler, Tensor, Tensor, Encoded], Tensor]


def networks(access: Access) -> tuple[Generator, Generator]:
    """Reference and adapted network, both on the adapted one's device.

    Raises:
        ConfigError: they do not have the same parameters.
    """
    return same_shape(access.adapted, access.reference), access.adapted


def same_shape(adapted: Generator, other: Generator) -> Generator:
    """``other``, on the device of ``adapted``.

    Raises:
        ConfigError: it does not have the same parameters: it is not the same foundation, or its factors are not merged.
    """
    shapes = [[(name, parameter.shape) for name, parameter in network.named_parameters()] for network in (adapted, other)]
    if shapes[0] != shapes[1] or adapted.devices != other.devices:
        raise ConfigError("two networks of an attack have different parameters or devices; both must come from the same foundation")
    return other.to(next(adapted.parameters()).device)


def questions(network: Generator, cohort: Cohort, rows: Sequence[int]) -> tuple[Tensor, Encoded]:
    """Rows as the network sees them, on its device: clean patches float32 [rows, fold^2, side, side], and conditions."""
    device = next(network.parameters()).device
    asked = [Condition(pathology=cohort.classes[r], box=cohort.boxes[r]) for r in rows]
    conditions = encode(asked, devices=network.devices, side=network.side)
    return fold(to_unit(cohort.images[list(rows)]), network.fold).to(device), conditions.to(device)


def repeated(conditions: Encoded, times: int) -> Encoded:
    """Conditions of a batch that holds the same images ``times`` times, one whole set after the other."""
    return Encoded(conditions.labels.repeat(times, 1), conditions.planes.repeat(times, 1, 1, 1))


def predicted_noise(network: Generator, scheduler: EDMDPMSolverMultistepScheduler, noisy: Tensor, sigmas: Tensor, conditions: Encoded) -> Tensor:
    """e(x; sigma), the noise that the network sees in x; see the module's formula.

    Args:
        network: The network asked.
        scheduler: Its sigma_data is used.
        noisy: x, float32 [n, fold^2, side, side].
        sigmas: Noise levels, float32 [n], standard deviations of pixels in [-1, 1].
        conditions: Of the batch.

    Returns:
        float32 [n, fold^2, side, side].
    """
    data, sigma = float(scheduler.config["sigma_data"]), sigmas[:, None, None, None]
    total = (sigma**2 + data**2).sqrt()
    answer: Tensor = network(noisy / total, sigmas.log() / 4, conditions.labels, conditions.planes).float()
    return (noisy - data**2 / total**2 * noisy - sigma * data / total * answer) / sigma


def quiet_sigmas(places: NDArray[np.float64]) -> Tensor:
    """Noise levels at places in [0, 1] between .05 and 1.24, equally spaced in their logarithm; float32.

    >>> [round(s, 3) for s in quiet_sigmas(np.array([0.0, 0.5, 1.0])).tolist()]
    [0.05, 0.249, 1.24]
    """
    return torch.from_numpy((LOWEST_SIGMA * (LOUDEST_QUIET_SIGMA / LOWEST_SIGMA) ** places).astype(np.float32))


def middle_sigmas(count: int) -> Tensor:
    """One level in the middle of each of ``count`` equal parts of the quiet levels; float32 [count].

    >>> [round(s, 3) for s in middle_sigmas(2).tolist()]
    [0.112, 0.556]
    """
    return quiet_sigmas((np.arange(count) + 0.5) / count)


def loss_draws(draws: Draws, *, levels: Callable[[NDArray[np.float64]], Tensor] = sigmas_at) -> tuple[Tensor, Tensor]:
    """Noise and levels of all draws of all images, stratified as the loss attack has them; an image's draws follow each other.

    Args:
        draws: Of some images.
        levels: Places in [0, 1] to noise levels; by default all that adaptation trains.

    Returns:
        Standard normal float32 [images * draws, fold^2, side, side] and float32 [images * draws].
    """
    return torch.from_numpy(draws.noise.reshape(-1, *draws.noise.shape[2:])), levels(draws.places.reshape(-1))


def size(values: Tensor, *, power: int) -> Tensor:
    """Lp norm of each entry, per number: (mean |v|^p)^(1/p). float [n, ...] to float64 [n].

    >>> size(torch.tensor([[3.0, 4.0]]), power=2).round(decimals=3).tolist()
    [3.536]
    """
    return values.double().abs().pow(power).flatten(1).mean(1).pow(1 / power)


@torch.no_grad()
def compared(access: Access, cohort: Cohort, rows: list[int], sigmas: Tensor, sizes: Sizes) -> Scores:
    """How much smaller the sizes of the adapted network's answers are, float64 [rows]; nothing is random.

    Args:
        access: What the attacker holds.
        cohort: Of the attacked images.
        rows: Theirs.
        sigmas: Noise levels, float32 [levels].
        sizes: Network, scheduler, clean patches, levels and conditions to sizes, float64 [asked, rows]; small for members.
    """
    clean, conditions = questions(access.adapted, cohort, rows)
    levels = sigmas.to(clean.device)
    return calibrated(*(sizes(network, access.scheduler, clean, levels, conditions) for network in networks(access)))


def calibrated(reference: Tensor, adapted: Tensor) -> Scores:
    """How much smaller the adapted network's sizes are: mean over levels of ln(reference) - ln(adapted).

    Difficulty calibration (Watson et al. 2022, arXiv:2111.08440, equation 3) of logarithms, so that no level outweighs another: sizes at
    different levels differ by orders of magnitude.

    Args:
        reference: Sizes of the reference network's answers, float [levels or layers, rows]; small for members.
        adapted: Those of the adapted network.

    Returns:
        float64 [rows]; exactly 0 where both networks answer alike.

    >>> calibrated(torch.tensor([[2.0], [4.0]]), torch.tensor([[1.0], [4.0]])).round(3).tolist()
    [0.347]
    """
    before, after = (sizes.double().clamp_min(SMALLEST).log() for sizes in (reference, adapted))
    return np.asarray((before - after).mean(0).cpu().numpy(), dtype=np.float64)
