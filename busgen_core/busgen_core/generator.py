"""The conditional generator: diffusers' U-Net on pixel patches, tables of labels, EDM preconditioning and loss.

A 64 px frame is folded into 32 x 32 x 4 patches (E. Hoogeboom et al. 2023, "simple diffusion", arXiv:2301.11093,
section 3.2), which quarters the cost of the outermost layers. Preconditioning and loss are those of T. Karras et al. 2022,
"Elucidating the design space of diffusion-based generative models", arXiv:2206.00364, table 1, in the convention of
diffusers' EDM schedulers: the network sees c_in(sigma) x and c_noise(sigma) = ln(sigma) / 4 and answers F, and

    D(x; sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x; c_noise(sigma), conditions).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from types import MappingProxyType

import torch
from diffusers import ConfigMixin, EDMDPMSolverMultistepScheduler, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional

from busgen_core.conditions import REGION_PLANES, Encoded, table_sizes
from busgen_core.errors import ConfigError

SIGMA_DATA = 0.5  # standard deviation of the data, images in [-1, 1] (Karras et al. 2022, table 1)
SIGMA_MIN, SIGMA_MAX = 0.01, 80.0  # noise levels between which images are sampled; 8-bit steps are 0.008 apart


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What fixes the network: nothing else decides its tensors.

    Attributes:
        image_px: Rows and columns of an image.
        fold: Side of the pixel patches that the network sees as channels; 1 sees pixels.
        channels: Width of each level, outermost first; each level halves the sides.
        blocks: Residual blocks of a level.
        attention: How many of the innermost levels have attention.
        groups: Groups of the group norms.
        heads: Channels of an attention head.
    """

    image_px: int = 64
    fold: int = 2
    channels: tuple[int, ...] = (32, 64, 96)
    blocks: int = 1
    attention: int = 1
    groups: int = 8
    heads: int = 16

    def __post_init__(self) -> None:
        if self.image_px % (self.fold * 2 ** (len(self.channels) - 1)) or not 1 <= self.attention <= len(self.channels):
            raise ConfigError(f"image_px must divide by fold x 2^(levels - 1), attention lie in 1 to levels: {self}")

    @property
    def side(self) -> int:
        """Rows and columns of what the network sees."""
        return self.image_px // self.fold


# cpu-64 is the shipped one; gpu-160 has the resolution and about the size of BUSGen's network (47.8 M parameters, 160 px).
PRESETS = MappingProxyType(
    {
        "cpu-64": Shape(),
        "gpu-160": Shape(image_px=160, channels=(128, 256, 256, 320), blocks=2, attention=2, groups=32, heads=64),
    }
)


class LabelTables(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no type hints
    """Embeddings of pathology, BI-RADS and device, summed; the last row of each table is "not given".

    Args:
        devices: Names that the device table knows, in order.
        width: Numbers of an embedding.
        image_mean: Mean pixel of the training images in [-1, 1]: what sampling starts around. At the loudest level noisy images
            are noise around their mean; noise around 0 instead made images .08 to .14 too bright.
    """

    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, devices: Sequence[str] = (), width: int = 128, image_mean: float = 0.0) -> None:  # noqa: ARG002 - kept in the config
        super().__init__()
        pathology, birads, device = table_sizes(devices)
        self.pathology = nn.Embedding(pathology, width)
        self.birads = nn.Embedding(birads, width)
        self.device_table = nn.Embedding(device, width)
        for table in (self.pathology, self.birads, self.device_table):
            nn.init.normal_(table.weight, std=0.5)

    def forward(self, labels: Tensor) -> Tensor:
        """Indices int64 [n, 3] to float [n, width]."""
        summed: Tensor = self.pathology(labels[:, 0]) + self.birads(labels[:, 1]) + self.device_table(labels[:, 2])
        return summed


class Generator(nn.Module):
    """The network: labels and planes of a batch, scaled noisy patches and c_noise to F, all of Karras et al. 2022, equation 7."""

    def __init__(self, unet: UNet2DModel, labels: LabelTables) -> None:
        super().__init__()
        self.unet, self.labels = unet, labels

    @property
    def side(self) -> int:
        """Rows and columns of the patches."""
        return int(self.unet.config["sample_size"])

    @property
    def fold(self) -> int:
        """Side of a patch, px."""
        return isqrt(int(self.unet.config["out_channels"]))

    @property
    def image_px(self) -> int:
        """Rows and columns of an image."""
        return self.side * self.fold

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of devices that can be asked for."""
        return tuple(self.labels.config["devices"])

    @property
    def image_mean(self) -> float:
        """Mean pixel of the training images, in [-1, 1]."""
        return float(self.labels.config["image_mean"])

    @property
    def tables(self) -> tuple[int, int, int]:
        """Rows of the label tables."""
        return table_sizes(self.devices)

    def forward(self, scaled: Tensor, c_noise: Tensor, labels: Tensor, planes: Tensor) -> Tensor:
        """F for scaled noisy patches [n, fold^2, side, side] at noise c_noise [n], labels [n, 3], planes [n, 2, side, side]."""
        output: Tensor = self.unet(torch.cat([scaled, planes.to(scaled.dtype)], dim=1), c_noise, class_labels=self.labels(labels)).sample
        return output


def build_network(shape: Shape, devices: Sequence[str] = ()) -> Generator:
    """A freshly initialised generator; inputs are patches and the region planes, FiLM carries noise level and labels."""
    plain = len(shape.channels) - shape.attention
    unet = UNet2DModel(
        sample_size=shape.side,
        in_channels=shape.fold**2 + REGION_PLANES,
        out_channels=shape.fold**2,
        block_out_channels=shape.channels,
        layers_per_block=shape.blocks,
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * shape.attention,
        up_block_types=("AttnUpBlock2D",) * shape.attention + ("UpBlock2D",) * plain,
        norm_num_groups=shape.groups,
        attention_head_dim=shape.heads,
        class_embed_type="identity",
        resnet_time_scale_shift="scale_shift",
    )
    return Generator(unet, LabelTables(devices=list(devices), width=4 * shape.channels[0]))


def build_scheduler() -> EDMDPMSolverMultistepScheduler:
    """DPM-Solver++ of order 2 (C. Lu et al. 2022, arXiv:2211.01095) on EDM noise levels, as diffusers has it."""
    return EDMDPMSolverMultistepScheduler(sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, sigma_data=SIGMA_DATA, solver_order=2)


def fold(images: Tensor, size: int) -> Tensor:
    """[n, 1, size r, size c] pixels to [n, size^2, r, c] patches."""
    return functional.pixel_unshuffle(images, size)


def unfold(patches: Tensor, size: int) -> Tensor:
    """[n, size^2, r, c] patches to [n, 1, size r, size c] pixels."""
    return functional.pixel_shuffle(patches, size)


def training_sigmas(normal: Tensor, *, mean: float = -1.0, spread: float = 1.4) -> Tensor:
    """Noise levels for training, exp(mean + spread z) of standard normal z.

    Karras et al. 2022, table 1, have -1.2 and 1.2; ultrasound needs more of the loud levels, which place tissue layers.
    """
    return (mean + spread * normal).exp()


def denoising_loss(
    network: nn.Module,
    scheduler: EDMDPMSolverMultistepScheduler,
    images: Tensor,
    conditions: Encoded,
    noise: Tensor,
    sigmas: Tensor,
) -> Tensor:
    """EDM loss: squared error of F, which is |D - y|^2 weighted by 1 / c_out^2; one value for each image.

    Args:
        network: A ``Generator``, or what wraps one.
        scheduler: Its sigma_data is used.
        images: float [n, 1, px, px] in [-1, 1].
        conditions: Of the batch.
        noise: Standard normal, [n, fold^2, side, side].
        sigmas: Noise levels, float [n], standard deviations of pixels in [-1, 1].

    Returns:
        float [n].

    Source: Karras et al. 2022, arXiv:2206.00364, equation 8 and table 1.
    """
    data = float(scheduler.config["sigma_data"])
    clean = fold(images, isqrt(noise.shape[1]))
    sigma = sigmas[:, None, None, None]
    total = (sigma**2 + data**2).sqrt()
    noisy = clean + sigma * noise
    target = (clean - data**2 / total**2 * noisy) * total / (sigma * data)
    answer = network(noisy / total, sigmas.log() / 4, conditions.labels, conditions.planes)
    losses: Tensor = (answer.float() - target).square().mean(dim=(1, 2, 3))
    return losses
