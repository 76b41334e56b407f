"""The shipped encoder: a small network that turns 64 px gray frames into 128 features, and its folder.

```
encoder.safetensors   weights, and the mean and deviation that standardise the features
config.json           EncoderConfig
README.md             card: data, command, seed, what it was checked on
```
A hospital may use its own network instead: wherever features are computed, any callable from uint8 [n, px, px] to float32
[n, d] does (``busgen_core.quality.Encoder``). There is no loader for foreign network code on purpose: code that comes in a
file is what a pickle is.

Images are not brought to one mean and contrast, and the blocks normalise inside their branch only (K. He et al. 2016,
arXiv:1603.05027), so that gain and contrast reach the features. GroupNorm: Y. Wu, K. He 2018, arXiv:1803.08494.
"""

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from busgen_core.digests import canonical_json, sha256_bytes
from busgen_core.errors import CheckpointError, InputError
from busgen_core.files import write_whole
from busgen_core.images import resize_gray
from busgen_core.tensors import to_unit

WEIGHTS, CONFIG, CARD = "encoder.safetensors", "config.json", "README.md"
SHIPPED = Path(__file__).parents[1] / "encoders" / "cpu-64"
SHIPPED_DIGEST = "4f6d0468236117365667f64132f2d530ea5dbcff714a86c73e76d8b956234713"
GROUPS = 8
FOLD = 2  # 2 x 2 pixels become 4 channels: nothing is lost, and the first layers work on a quarter of the places
BATCH = 128
LARGEST_BYTES = 64 * 1024 * 1024  # no encoder of this kind is larger


class EncoderConfig(BaseModel):
    """What fixes the network. It may arrive from outside, so sizes are bounded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,40}$")] = "cpu-64"
    image_px: Annotated[int, Field(ge=32, le=256, multiple_of=32)] = 64
    widths: Annotated[tuple[Annotated[int, Field(ge=8, le=256, multiple_of=8)], ...], Field(min_length=3, max_length=5)] = (32, 64, 96, 128)
    features: Annotated[int, Field(ge=8, le=512)] = 128


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut that is never normalised; ``stride`` 2 halves the sides."""

    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(GROUPS, before), nn.GroupNorm(GROUPS, after)])
        self.first = nn.Conv2d(before, after, 3, stride, 1)
        self.second = nn.Conv2d(after, after, 3, 1, 1)
        self.shortcut = nn.Identity() if stride == 1 and before == after else nn.Conv2d(before, after, 1)
        self.pool = nn.AvgPool2d(2) if stride == 2 else nn.Identity()

    def forward(self, values: Tensor) -> Tensor:
        """[n, before, r, c] to [n, after, r / stride, c / stride]."""
        inner = self.first(functional.relu(self.norms[0](values)))
        inner = self.second(functional.relu(self.norms[1](inner)))
        out: Tensor = inner + self.shortcut(self.pool(values))
        return out


class EncoderNetwork(nn.Module):
    """Frames float [n, 1, px, px] in [-1, 1] to features [n, d]: every stage is averaged over its places, then mixed linearly."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        widths = config.widths
        self.stem = nn.Conv2d(FOLD**2, widths[0], 3, 1, 1)
        halving = [Block(before, after, stride=2) for before, after in pairwise(widths)]
        self.stages = nn.ModuleList([Block(widths[0], widths[0], stride=1), *halving])
        self.mix = nn.Linear(sum(widths), config.features)
        self.register_buffer("mean", torch.zeros(config.features))
        self.register_buffer("deviation", torch.ones(config.features))

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Raw features [n, d] and the maps of all stages, [n, width, side, side]."""
        values = self.stem(functional.pixel_unshuffle(images, FOLD))
        maps = []
        for stage in self.stages:
            values = stage(values)
            maps.append(values)
        pooled = torch.cat([functional.relu(m).mean(dim=(2, 3)) for m in maps], dim=1)
        return self.mix(pooled), maps

    def standardised(self, images: Tensor) -> Tensor:
        """Features [n, d] with mean 0 and deviation 1 over the images that it was trained on."""
        mean, deviation = self.get_buffer("mean"), self.get_buffer("deviation")
        out: Tensor = (self(images)[0] - mean) / deviation
        return out


class ShippedEncoder:
    """A loaded encoder: call it with frames.

    Attributes:
        config: Its configuration.
        digest: SHA-256 over configuration and weights.
        name: Name and the digest's first digits, for reports.
    """

    def __init__(self, config: EncoderConfig, network: EncoderNetwork, digest: str) -> None:
        self.config, self.network, self.digest = config, network.eval(), digest
        self.name = f"{config.name} {digest[:12]}"

    @torch.no_grad()
    def __call__(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """Features float32 [n, d] of frames uint8 [n, px, px]; row i depends on frame i alone.

        Frames of another size are resized to ``config.image_px`` (Lanczos): what is finer than that is not seen.

        Raises:
            InputError: another type or shape.
            CorruptImageError: a constant frame that had to be resized.
        """
        if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1] != images.shape[2]:
            raise InputError(f"the encoder takes uint8 [n, px, px], not {images.dtype} {list(images.shape)}")
        px = self.config.image_px
        if images.shape[1] != px:
            images = np.array([resize_gray(image, size=px) for image in images], np.uint8).reshape(-1, px, px)
        parts = [self.network.standardised(to_unit(images[start : start + BATCH])) for start in range(0, len(images), BATCH)]
        return torch.cat([torch.zeros(0, self.config.features), *parts]).numpy()


def encoder_digest(config: bytes, weights: bytes) -> str:
    """Digest of an encoder: SHA-256 over the digests of configuration and weights; the card may be edited."""
    return sha256_bytes(canonical_json({CONFIG: sha256_bytes(config), WEIGHTS: sha256_bytes(weights)}))


def save_encoder(folder: Path, *, config: EncoderConfig, network: EncoderNetwork, card: str) -> str:
    """Write an encoder's folder and return its digest.

    Raises:
        OSError: the folder cannot be written.
    """
    settings = (config.model_dump_json(indent=1) + "\n").encode()
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()})
    for name, data in ((WEIGHTS, weights), (CONFIG, settings), (CARD, card.encode())):
        write_whole(folder / name, data)
    return encoder_digest(settings, weights)


def load_encoder(folder: Path | None = None, *, expected_digest: str | None = None) -> ShippedEncoder:
    """Load an encoder after checking its digest; safetensors only, no pickle.

    Args:
        folder: None for the shipped one, whose digest is in this module.
        expected_digest: Digest that the folder must have; None takes any (not for the shipped one).

    Raises:
        CheckpointError: files are missing, the digest differs, or tensors do not fit the configuration or are not finite.
    """
    if folder is None:
        folder, expected_digest = SHIPPED, expected_digest or SHIPPED_DIGEST
    settings, weights = _read(folder / CONFIG), _read(folder / WEIGHTS)
    digest = encoder_digest(settings, weights)
    if expected_digest is not None and digest != expected_digest:
        raise CheckpointError(f"{folder.name}: the encoder's digest is {digest[:12]}…, not {expected_digest[:12]}…; install it again")
    try:
        config = EncoderConfig.model_validate_json(settings)
        network = EncoderNetwork(config)
        network.load_state_dict(load(weights))
    except (ValidationError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder.name}: encoder does not load ({type(error).__name__}); install it again or train it anew") from None
    if not all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values()):
        raise CheckpointError(f"{folder.name}: the encoder's weights hold values that are not finite; train it anew")
    return ShippedEncoder(config, network, digest)


def _read(file: Path) -> bytes:
    try:
        if file.stat().st_size > LARGEST_BYTES:
            raise CheckpointError(f"{file.name} is larger than any encoder; it was not read")
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"encoder file {file.name} cannot be read ({type(error).__name__}); install it again") from None
