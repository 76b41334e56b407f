"""The downstream model: a small residual network, benign against malignant, and its file format.

Trained by the hub on pools of synthetic images, scored by the nodes on real patients. GroupNorm (Y. Wu, K. He 2018,
arXiv:1803.08494) in place of batch norm: no statistics of other images enter a prediction. Residual blocks: K. He et
al. 2015, arXiv:1512.03385.
"""

import json
import math
import struct
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from busgen_core.errors import CheckpointError, ConfigError
from busgen_core.labels import Pathology
from busgen_core.tensors import to_unit

Progress = Callable[[int, int], None]  # optimizer steps done, of how many

LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.02
BATCH = 16  # small: a few hundred images give too few steps otherwise
WARM_UP = 0.1  # share of the steps
SHIFT_PX = 4
GAIN = 0.1  # standard deviation of contrast and of brightness, images in [-1, 1]
METADATA_KEY = "busgen_classifier"


class ClassifierConfig(BaseModel):
    """What fixes the network. It arrives from outside, so sizes are bounded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    image_px: Annotated[int, Field(ge=16, le=256)] = 64
    widths: Annotated[tuple[Annotated[int, Field(ge=8, le=256, multiple_of=8)], ...], Field(min_length=2, max_length=5)] = (16, 32, 64)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; ``stride`` 2 halves the sides."""

    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.GroupNorm(8, after), nn.GroupNorm(8, after)])
        self.shortcut = nn.Identity() if stride == 1 and before == after else nn.Conv2d(before, after, 1, stride)

    def forward(self, values: Tensor) -> Tensor:
        """[n, before, r, c] to [n, after, r / stride, c / stride]."""
        inner = functional.relu(self.norms[0](self.first(values)))
        return functional.relu(self.norms[1](self.second(inner)) + self.shortcut(values))


class Network(nn.Module):
    """Images [n, 1, px, px] to one logit each, [n]; every image is first brought to mean 0 and standard deviation 1."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        widths = config.widths
        self.stem = nn.Conv2d(1, widths[0], 3, 2, 1)
        halving = [Block(before, after, stride=2) for before, after in pairwise(widths)]
        self.blocks = nn.Sequential(*halving, Block(widths[-1], widths[-1], stride=1))
        self.head = nn.Linear(widths[-1], 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of malignant."""
        centred = images - images.mean(dim=(2, 3), keepdim=True)
        centred = centred / (images.std(dim=(2, 3), keepdim=True) + 1e-3)
        deep = self.blocks(functional.relu(self.stem(centred)))
        pooled = (deep.mean(dim=(2, 3)) + deep.amax(dim=(2, 3))) / 2
        logits: Tensor = self.head(pooled).squeeze(1)
        return logits


class Classifier:
    """A network with its configuration; scoring, writing and reading."""

    def __init__(self, config: ClassifierConfig, network: Network) -> None:
        self.config, self.network = config, network.eval()

    @torch.no_grad()
    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Probability of malignant, averaged over each image and its mirror image.

        Args:
            images: uint8 [n, px, px].

        Returns:
            float64 [n] in [0, 1]; image i depends on image i alone.

        Raises:
            ConfigError: another shape than the network takes.
        """
        side = self.config.image_px
        if images.shape[1:] != (side, side) or images.dtype != np.uint8:
            raise ConfigError(f"the classifier takes uint8 [n, {side}, {side}], not {images.dtype} {list(images.shape)}")
        parts = [torch.zeros(0)]
        for start in range(0, len(images), 256):
            batch = to_unit(images[start : start + 256])
            parts.append((self.network(batch).sigmoid() + self.network(batch.flip(3)).sigmoid()) / 2)
        return torch.cat(parts).double().numpy()

    def to_bytes(self) -> bytes:
        """Safetensors with the configuration in the metadata; the same weights give the same bytes."""
        tensors = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        return save(tensors, metadata={METADATA_KEY: self.config.model_dump_json()})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Classifier":
        """Read what ``to_bytes`` wrote; nothing is executed.

        Raises:
            CheckpointError: not safetensors, no or other configuration, tensors that do not fit it or are not finite.
        """
        try:
            (length,) = struct.unpack("<Q", data[:8])
            header = json.loads(data[8 : 8 + length])  # slices never reach beyond the data
            config = ClassifierConfig.model_validate_json(header["__metadata__"][METADATA_KEY])
            tensors = load(data)
            network = Network(config)
            network.load_state_dict(tensors)
        except (SafetensorError, ValidationError, struct.error, ValueError, KeyError, TypeError, RuntimeError, RecursionError) as error:
            raise CheckpointError(f"downstream model does not load ({type(error).__name__}); ask the hub to send it again") from None
        if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
            raise CheckpointError("downstream model has weights that are not finite; ask the hub to train it again")
        return cls(config, network)


def train_classifier(
    images: NDArray[np.uint8], labels: Sequence[Pathology], *, seed: int, epochs: int, progress: Progress | None = None
) -> Classifier:
    """Train benign against malignant; normal images are left out. AdamW, cosine to zero, mirrored, shifted, re-lit images.

    Args:
        images: uint8 [n, 64, 64].
        labels: One for each image.
        seed: Fixes weights, order and augmentation: the same seed on the same machine gives the same model.
        epochs: Passes over the images.

    Raises:
        ConfigError: a class is missing, ``epochs < 1``, or lengths differ.
    """
    if len(images) != len(labels) or epochs < 1:
        raise ConfigError(f"need one label for each image and at least one epoch: {len(images)=}, {len(labels)=}, {epochs=}")
    used = [i for i, label in enumerate(labels) if label is not Pathology.NORMAL]
    truth = torch.tensor([float(labels[i] is Pathology.MALIGNANT) for i in used])
    if not 0 < truth.sum() < len(used):
        raise ConfigError("a downstream model needs benign and malignant images; one class is missing")
    units = to_unit(images[used])
    config = ClassifierConfig(image_px=images.shape[1])
    draws = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(config).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batches = math.ceil(len(used) / BATCH)
    for step in range(epochs * batches):
        if step % batches == 0:
            order = torch.randperm(len(used), generator=draws)
        chosen = order[(step % batches) * BATCH :][:BATCH]
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * _pace(step / (epochs * batches))
        loss = functional.binary_cross_entropy_with_logits(network(augment(units[chosen], draws)), truth[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if progress is not None:
            progress(step + 1, epochs * batches)
    return Classifier(config, network)


def augment(images: Tensor, draws: torch.Generator) -> Tensor:
    """Mirror, shift by up to SHIFT_PX (edges repeated), and change contrast and brightness, each image on its own.

    Args:
        images: float [n, 1, px, px] in [-1, 1].

    Returns:
        The same shape; values may leave [-1, 1] a little.
    """
    count, _, rows, columns = images.shape
    down, across = torch.randint(-SHIFT_PX, SHIFT_PX + 1, (2, count, 1), generator=draws)
    r = (torch.arange(rows) + down).clamp(0, rows - 1)
    c = (torch.arange(columns) + across).clamp(0, columns - 1)
    mirrored = torch.rand(count, 1, generator=draws) < 0.5
    c = torch.where(mirrored, c.flip(1), c)
    moved = images[torch.arange(count)[:, None, None], 0, r[:, :, None], c[:, None, :]].unsqueeze(1)
    contrast, brightness = torch.randn(2, count, 1, 1, 1, generator=draws) * GAIN
    changed: Tensor = moved * (1 + contrast) + brightness
    return changed


def _pace(done: float) -> float:
    """Learning rate factor: a straight rise, then half a cosine to 0."""
    if done < WARM_UP:
        return (done + 1e-3) / (WARM_UP + 1e-3)
    return (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2
