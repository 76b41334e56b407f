"""Decoding, resizing and scaling of grayscale frames."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError
from torch import Tensor

from busgen_core.errors import CorruptImageError

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 as fractions of width and height
MAX_PIXELS = 64_000_000  # larger than any ultrasound frame; a guard against decompression bombs


def decode_gray(data: bytes, *, size: int = 64) -> NDArray[np.uint8]:
    """Decode PNG or JPEG bytes to a square 8-bit gray frame (Lanczos, aspect not kept).

    Returns:
        uint8 [size, size].

    Raises:
        CorruptImageError: not an image, too large, or constant.
    """
    try:
        with PillowImage.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise CorruptImageError(f"image has more than {MAX_PIXELS} pixels; it was not decoded")
            gray = np.asarray(picture.convert("L"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, PillowImage.DecompressionBombError) as error:
        raise CorruptImageError(f"image does not decode ({type(error).__name__}); export it again") from None
    return resize_gray(gray, size=size)


def resize_gray(gray: NDArray[np.uint8], *, size: int) -> NDArray[np.uint8]:
    """Resize a gray frame to [size, size]; a constant frame is refused.

    Raises:
        CorruptImageError: every pixel has the same value.
    """
    if gray.size == 0 or gray.min() == gray.max():
        raise CorruptImageError("image is empty or constant; there is nothing to learn from it")
    return np.asarray(PillowImage.fromarray(gray).resize((size, size), PillowImage.Resampling.LANCZOS))


def encode_png(gray: NDArray[np.uint8]) -> bytes:
    """Encode uint8 [rows, columns] as PNG without any metadata."""
    out = io.BytesIO()
    PillowImage.fromarray(gray).save(out, "PNG", optimize=False)
    return out.getvalue()


def to_unit(images: NDArray[np.uint8]) -> Tensor:
    """uint8 [n, rows, columns] to float32 [n, 1, rows, columns] in [-1, 1].

    >>> to_unit(np.array([[[0, 255]]], np.uint8)).tolist()
    [[[[-1.0, 1.0]]]]
    """
    return torch.from_numpy(images.astype(np.float32) / 127.5 - 1.0).unsqueeze(1)


def to_bytes(images: Tensor) -> NDArray[np.uint8]:
    """float [n, 1, rows, columns] in [-1, 1] to uint8 [n, rows, columns]."""
    scaled = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(scaled.squeeze(1).cpu().numpy())


def box_channel(boxes: Sequence[Box | None], *, size: int) -> Tensor:
    """Box masks as a channel: 1 inside, 0 outside, and -1 everywhere where no box is given.

    Returns:
        float32 [n, 1, size, size].

    >>> box_channel([None, (0.0, 0.0, 1.0, 0.5)], size=2).tolist()
    [[[[-1.0, -1.0], [-1.0, -1.0]]], [[[1.0, 1.0], [0.0, 0.0]]]]
    """
    centres = (torch.arange(size) + 0.5) / size
    out = torch.full((len(boxes), 1, size, size), -1.0)
    for channel, box in zip(out, boxes, strict=True):
        if box is not None:
            across = (centres >= box[0]) & (centres <= box[2])
            down = (centres >= box[1]) & (centres <= box[3])
            channel[0] = (down[:, None] & across[None, :]).float()
    return out
