"""Known damage to frames: what the encoder is taught to see, and what it is checked against.

All take and return float [n, 1, rows, columns] in [-1, 1] and a strength for each image, float [n]; strength 0 changes nothing.
"""

import torch
from torch import Tensor
from torch.nn import functional

from busgen_core.errors import ConfigError

BLUR_REACH_PX = 6


def blurred(images: Tensor, sigma_px: Tensor) -> Tensor:
    """Gaussian blur of ``sigma_px`` pixels, at most 3; edges repeated.

    Raises:
        ConfigError: a sigma below 0 or above 3.
    """
    if not bool(((sigma_px >= 0) & (sigma_px <= BLUR_REACH_PX / 2)).all()):
        raise ConfigError(f"blur is from 0 to {BLUR_REACH_PX / 2} px")
    places = torch.arange(-BLUR_REACH_PX, BLUR_REACH_PX + 1, dtype=images.dtype)
    weights = torch.exp(-0.5 * (places / sigma_px.clamp(min=1e-3)[:, None]) ** 2)
    weights = weights / weights.sum(dim=1, keepdim=True)
    padded = functional.pad(images, [BLUR_REACH_PX] * 4, mode="replicate").transpose(0, 1)
    down = functional.conv2d(padded, weights[:, None, :, None], groups=len(images))
    return functional.conv2d(down, weights[:, None, None, :], groups=len(images)).transpose(0, 1)


def noisy(images: Tensor, deviation: Tensor, *, draws: torch.Generator) -> Tensor:
    """White Gaussian noise of standard ``deviation``, in units of [-1, 1], cut to it."""
    return (images + torch.randn(images.shape, generator=draws) * _column(deviation)).clamp(-1, 1)


def stretched(images: Tensor, log_gain: Tensor) -> Tensor:
    """Contrast around each image's mean times exp(``log_gain``), cut to [-1, 1]."""
    mean = images.mean(dim=(2, 3), keepdim=True)
    return (mean + (images - mean) * _column(log_gain).exp()).clamp(-1, 1)


def brightened(images: Tensor, shift: Tensor) -> Tensor:
    """All pixels plus ``shift``, cut to [-1, 1]."""
    return (images + _column(shift)).clamp(-1, 1)


def despeckled(images: Tensor, share: Tensor) -> Tensor:
    """``share``, 0 to 1, of the image replaced by its median over 3 x 3 pixels: grain goes, edges stay."""
    places = functional.unfold(functional.pad(images, [1] * 4, mode="replicate"), 3)
    median = places.median(dim=1).values.view_as(images)
    return images + (median - images) * _column(share)


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]
