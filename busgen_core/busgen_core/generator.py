"""The conditional generator: diffusers' U-Net on 2x2 pixel patches, its scheduler, its conditions.

A 64 px frame is folded into 32 x 32 x 4 patches (E. Hoogeboom et al. 2023, "simple diffusion", arXiv:2301.11093,
section 3.2), which quarters the cost of the outermost layers. The network predicts v (T. Salimans, J. Ho 2022,
arXiv:2202.00512, equation 10) under a cosine schedule (A. Nichol, P. Dhariwal 2021, arXiv:2102.09672, equation 17).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from torch import Tensor
from torch.nn import functional

from busgen_core.images import Box
from busgen_core.labels import CLASS_COUNT
from busgen_core.tensors import box_channel

FOLD = 2  # side of a pixel patch
PATCH_CHANNELS = FOLD * FOLD
TRAIN_STEPS = 1000  # diffusion time steps, 0 quietest


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What fixes the network: nothing else decides its tensors."""

    image_px: int = 64
    channels: tuple[int, ...] = (32, 64, 96)
    groups: int = 8
    heads: int = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """Conditions of a batch: class indices int64 [n] and one box (or None) for each image."""

    classes: Tensor
    boxes: Sequence[Box | None]

    def __len__(self) -> int:
        return len(self.boxes)


def build_network(shape: Shape) -> UNet2DModel:
    """A freshly initialised U-Net for ``shape``; inputs are patches plus one box channel."""
    deep = len(shape.channels) - 1
    return UNet2DModel(
        sample_size=shape.image_px // FOLD,
        in_channels=PATCH_CHANNELS + 1,
        out_channels=PATCH_CHANNELS,
        block_out_channels=shape.channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * deep + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * deep,
        norm_num_groups=shape.groups,
        attention_head_dim=shape.heads,
        num_class_embeds=CLASS_COUNT,
    )


def build_scheduler() -> DDPMScheduler:
    """The noise schedule that the network is trained under."""
    return DDPMScheduler(num_train_timesteps=TRAIN_STEPS, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False)


def fold(images: Tensor) -> Tensor:
    """[n, 1, 2r, 2c] pixels to [n, 4, r, c] patches."""
    return functional.pixel_unshuffle(images, FOLD)


def unfold(patches: Tensor) -> Tensor:
    """[n, 4, r, c] patches to [n, 1, 2r, 2c] pixels."""
    return functional.pixel_shuffle(patches, FOLD)


def predict(network: UNet2DModel, noisy: Tensor, steps: Tensor, classes: Tensor, box_planes: Tensor) -> Tensor:
    """The network's v for noisy patches [n, 4, r, c] at time steps [n], given conditions; same shape as ``noisy``."""
    output: Tensor = network(torch.cat([noisy, box_planes], dim=1), steps, class_labels=classes).sample
    return output


def denoising_loss(
    network: UNet2DModel,
    scheduler: DDPMScheduler,
    images: Tensor,
    classes: Tensor,
    box_planes: Tensor,
    noise: Tensor,
    steps: Tensor,
) -> Tensor:
    """Mean squared error of v, one value for each image.

    Args:
        images: float [n, 1, px, px] in [-1, 1].
        classes: int64 [n].
        box_planes: float [n, 1, px / 2, px / 2].
        noise: Standard normal, [n, 4, px / 2, px / 2].
        steps: Diffusion times int64 [n].

    Returns:
        float [n].
    """
    clean = fold(images)
    noisy = scheduler.add_noise(clean, noise, steps)
    target = scheduler.get_velocity(clean, noise, steps)
    error = predict(network, noisy, steps, classes, box_planes).float() - target
    losses: Tensor = error.square().mean(dim=(1, 2, 3))
    return losses


def sampling_scheduler(scheduler: DDPMScheduler) -> DPMSolverMultistepScheduler:
    """DPM-Solver++ of order 2 for the trained schedule (C. Lu et al. 2022, arXiv:2211.01095)."""
    return DPMSolverMultistepScheduler.from_config(scheduler.config, algorithm_type="dpmsolver++", solver_order=2, use_karras_sigmas=False)


@torch.no_grad()
def sample(
    network: UNet2DModel,
    scheduler: DDPMScheduler,
    conditions: Conditions,
    *,
    seeds: Sequence[int],
    evaluations: int = 15,
) -> Tensor:
    """Draw one image for each condition; image i depends on ``seeds[i]`` and its condition alone.

    Args:
        seeds: One seed for each image.
        evaluations: Network evaluations for each image.

    Returns:
        float32 [n, 1, px, px] in [-1, 1].
    """
    side = int(network.config["sample_size"])
    device = next(network.parameters()).device
    start = [torch.randn(PATCH_CHANNELS, side, side, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    patches = torch.stack(start).to(device)
    planes = box_channel(conditions.boxes, size=side).to(device)
    classes = conditions.classes.to(device)
    solver = sampling_scheduler(scheduler)
    solver.set_timesteps(evaluations)
    low_precision = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    for step in solver.timesteps:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low_precision):
            output = predict(network, patches, step.expand(len(patches)).to(device), classes, planes)
        patches = solver.step(output.float(), step, patches).prev_sample
    return unfold(patches).clamp(-1, 1).cpu()
