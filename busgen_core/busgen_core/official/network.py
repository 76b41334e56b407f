"""The U-Net of the published BUSGen, with the names and shapes of its state dict, so that its weights load as they are.

Read off the published code (github.com/HaojunYu1998/BUSGen, BUSGen/Model.py, commit ab9f407), written anew. Attribute names
are the file format; they follow the publication, not this project's style. Two of its habits matter to whoever trains on:
the table of time steps starts as a sinusoid and is trained, and row 0 of each label table is the null and stays zero.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from busgen_core.errors import ConfigError

GROUPS = 32  # of every group norm
DROPOUT = 0.15  # Configs/BUSGen_Sampling.json; without effect outside training
IMAGE_CHANNELS = 3  # red, green, blue
INPUT_CHANNELS = IMAGE_CHANNELS + 1  # and the lesion box
MAX_STEPS, MAX_ROWS, MAX_WIDTH, MAX_DEPTH = 10_000, 1000, 2048, 8  # far above the published sizes; a guard against absurd files


@dataclass(frozen=True, kw_only=True, slots=True)
class OfficialSizes:
    """What fixes the network's tensors; the defaults are the published ones.

    Attributes:
        steps: Diffusion time steps T.
        width: Channels after the first convolution; embeddings have four times as many.
        channels: Channels of each level, outermost first; each level halves the sides.
        blocks: Residual blocks of a level on the way down; one more on the way up.
        classes: Rows of the class table, null included.
        devices: Rows of the device table, null included.

    Raises:
        ConfigError: a size out of bounds.
    """

    steps: int = 500
    width: int = 128
    channels: tuple[int, ...] = (128, 256, 256, 256)
    blocks: int = 2
    classes: int = 3
    devices: int = 20

    def __post_init__(self) -> None:
        widths_fit = all(0 < width <= MAX_WIDTH and width % GROUPS == 0 for width in (self.width, *self.channels))
        depths_fit = 1 <= len(self.channels) <= MAX_DEPTH and 1 <= self.blocks <= MAX_DEPTH
        rows_fit = 2 <= self.steps <= MAX_STEPS and 2 <= self.classes <= MAX_ROWS and 1 <= self.devices <= MAX_ROWS
        if not (widths_fit and depths_fit and rows_fit):
            raise ConfigError(f"sizes out of bounds, or channels that {GROUPS} does not divide: {self}")

    @property
    def divisor(self) -> int:
        """What the sides of an image must divide by.

        >>> OfficialSizes().divisor
        8
        """
        return int(2 ** (len(self.channels) - 1))


class TimeEmbedding(nn.Module):
    """Time step to a vector: a trained table that starts as a sinusoid (Ho et al. 2020, arXiv:2006.11239), then two linear layers."""

    def __init__(self, steps: int, width: int) -> None:
        super().__init__()
        table = nn.Embedding(steps, width)
        with torch.no_grad():
            table.weight.copy_(sinusoid(steps, width))
        self.timembedding = nn.Sequential(table, nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))

    def forward(self, steps: Tensor) -> Tensor:
        """int64 [n] to float [n, 4 width]."""
        embedded: Tensor = self.timembedding(steps)
        return embedded


def sinusoid(steps: int, width: int) -> Tensor:
    """Sines and cosines of the time step, in turn: entry 2k is sin(t / 10000^(2k / width)), entry 2k + 1 its cosine.

    Returns:
        float32 [steps, width].

    Source: A. Vaswani et al. 2017, arXiv:1706.03762, section 3.5.

    >>> sinusoid(2, 2)[1].tolist() == [torch.tensor(1.0).sin().item(), torch.tensor(1.0).cos().item()]
    True
    """
    rates = 10_000.0 ** -(torch.arange(0, width, 2) / width)
    angles = torch.outer(torch.arange(steps).float(), rates)
    return torch.stack([angles.sin(), angles.cos()], dim=2).reshape(steps, width)


class ConditionEmbedding(nn.Module):
    """Class and device to a vector: their rows side by side, then two linear layers."""

    def __init__(self, classes: int, devices: int, width: int) -> None:
        super().__init__()
        self.cls_condEmbedding = nn.Embedding(classes, width, padding_idx=0)
        self.dev_condEmbedding = nn.Embedding(devices, width, padding_idx=0)
        self.condEmbedding = nn.Sequential(nn.Linear(2 * width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))

    def forward(self, classes: Tensor, devices: Tensor) -> Tensor:
        """Two int64 [n] to float [n, 4 width]."""
        rows = torch.cat([self.cls_condEmbedding(classes), self.dev_condEmbedding(devices)], dim=1)
        embedded: Tensor = self.condEmbedding(rows)
        return embedded


class Attention(nn.Module):
    """Every place looks at every place, one head, added to the input.

    PyTorch's fused kernel never holds the [places, places] table, which at 160 x 160 px is 2.6 GB an image.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(GROUPS, width)
        self.proj_q, self.proj_k, self.proj_v, self.proj = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, features: Tensor) -> Tensor:
        """[n, width, rows, columns] to the same."""
        normed = self.group_norm(features)
        query, key, value = (self._places(project(normed)) for project in (self.proj_q, self.proj_k, self.proj_v))
        seen = functional.scaled_dot_product_attention(query, key, value)
        answer: Tensor = features + self.proj(seen.squeeze(1).transpose(1, 2).reshape(features.shape))
        return answer

    @staticmethod
    def _places(features: Tensor) -> Tensor:
        """[n, width, rows, columns] to [n, 1 head, places, width]."""
        return features.flatten(2).transpose(1, 2).unsqueeze(1).contiguous()


class ResidualBlock(nn.Module):
    """Two convolutions; time and condition are added between them, the input after them; then attention, where there is any."""

    def __init__(self, inner: int, outer: int, *, embedding: int, attention: bool) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.GroupNorm(GROUPS, inner), nn.SiLU(), nn.Conv2d(inner, outer, 3, padding=1))
        self.temb_proj = nn.Sequential(nn.SiLU(), nn.Linear(embedding, outer))
        self.cond_proj = nn.Sequential(nn.SiLU(), nn.Linear(embedding, outer))
        self.block2 = nn.Sequential(nn.GroupNorm(GROUPS, outer), nn.SiLU(), nn.Dropout(DROPOUT), nn.Conv2d(outer, outer, 3, padding=1))
        self.shortcut = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)
        self.attn = Attention(outer) if attention else nn.Identity()

    def forward(self, features: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """[n, inner, rows, columns] and two [n, embedding] to [n, outer, rows, columns]."""
        shift = self.temb_proj(time) + self.cond_proj(condition)
        changed = self.block2(self.block1(features) + shift[:, :, None, None])
        answer: Tensor = self.attn(changed + self.shortcut(features))
        return answer


class DownSample(nn.Module):
    """Half the sides: the sum of a 3 x 3 and a 5 x 5 convolution of stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.c2 = nn.Conv2d(width, width, 5, stride=2, padding=2)

    def forward(self, features: Tensor) -> Tensor:
        """[n, width, 2 r, 2 c] to [n, width, r, c]."""
        answer: Tensor = self.c1(features) + self.c2(features)
        return answer


class UpSample(nn.Module):
    """Twice the sides: a 5 x 5 transposed convolution of stride 2, then a 3 x 3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c = nn.Conv2d(width, width, 3, padding=1)
        self.t = nn.ConvTranspose2d(width, width, 5, stride=2, padding=2, output_padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """[n, width, r, c] to [n, width, 2 r, 2 c]."""
        answer: Tensor = self.c(self.t(features))
        return answer


class OfficialUNet(nn.Module):
    """The published network: 47.8 M parameters with the default sizes."""

    def __init__(self, sizes: OfficialSizes) -> None:
        super().__init__()
        self.sizes = sizes
        inner = sizes.channels[-1]
        self.time_embedding = TimeEmbedding(sizes.steps, sizes.width)
        self.cond_embedding = ConditionEmbedding(sizes.classes, sizes.devices, sizes.width)
        self.head = nn.Conv2d(INPUT_CHANNELS, sizes.width, 3, padding=1)
        self.downblocks, skips = self._down(sizes)
        self.middleblocks = nn.ModuleList([self._block(inner, inner, attention=True), self._block(inner, inner, attention=False)])
        self.upblocks = self._up(sizes, skips)
        outer = sizes.channels[0]
        self.tail = nn.Sequential(nn.GroupNorm(GROUPS, outer), nn.SiLU(), nn.Conv2d(outer, IMAGE_CHANNELS, 3, padding=1))

    def _block(self, inner: int, outer: int, *, attention: bool) -> ResidualBlock:
        return ResidualBlock(inner, outer, embedding=4 * self.sizes.width, attention=attention)

    def _down(self, sizes: OfficialSizes) -> tuple[nn.ModuleList, list[int]]:
        """Blocks on the way down, and the widths of what they leave for the way up."""
        blocks, skips = nn.ModuleList(), [sizes.width]
        for level, width in enumerate(sizes.channels):
            for _ in range(sizes.blocks):
                blocks.append(self._block(skips[-1], width, attention=True))
                skips.append(width)
            if level < len(sizes.channels) - 1:
                blocks.append(DownSample(width))
                skips.append(width)
        return blocks, skips

    def _up(self, sizes: OfficialSizes, skips: list[int]) -> nn.ModuleList:
        blocks, inner, left = nn.ModuleList(), sizes.channels[-1], list(skips)
        for level, width in reversed(list(enumerate(sizes.channels))):
            for _ in range(sizes.blocks + 1):
                blocks.append(self._block(inner + left.pop(), width, attention=False))
                inner = width
            if level > 0:
                blocks.append(UpSample(width))
        return blocks

    def forward(self, images: Tensor, steps: Tensor, classes: Tensor, devices: Tensor) -> Tensor:
        """The noise in ``images``.

        Args:
            images: float [n, 4, px, px]: noisy red, green, blue of images in [-1, 1], and the box, 1 inside and 0 outside.
            steps: int64 [n], time steps 0 to T - 1, 0 quietest.
            classes: int64 [n], rows of the class table; 0 is the null.
            devices: int64 [n], rows of the device table; 0 is the null.

        Returns:
            float [n, 3, px, px], epsilon of Ho et al. 2020, arXiv:2006.11239, equation 14.
        """
        time, condition = self.time_embedding(steps), self.cond_embedding(classes, devices)
        features: Tensor = self.head(images)
        skips = [features]
        for block in self.downblocks:
            features = block(features, time, condition) if isinstance(block, ResidualBlock) else block(features)
            skips.append(features)
        for block in self.middleblocks:
            features = block(features, time, condition)
        for block in self.upblocks:
            if isinstance(block, UpSample):
                features = block(features)
                continue
            features = block(torch.cat([features, skips.pop()], dim=1), time, condition)
        noise: Tensor = self.tail(features)
        return noise
