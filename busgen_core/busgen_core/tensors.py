"""Between 8-bit frames and the tensors of the network."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from busgen_core.images import Box


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
