"""What an image is asked to show: pathology, BI-RADS, device, lesion box or mask. Each is optional and has its own null.

Labels become indices of three tables whose last row is the null; the region becomes two planes, one for a box and one for a
mask, each -1 everywhere where it is not given. "Normal" is a pathology like the others, not the null.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from busgen_core.errors import ConfigError, LabelError
from busgen_core.images import Box
from busgen_core.labels import Birads, Pathology
from busgen_core.tensors import box_channel

LABELS = ("pathology", "birads", "device")  # columns of ``Encoded.labels``
REGION_PLANES = 2  # box, mask


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """What one image is asked to show; None everywhere asks for any image.

    Attributes:
        pathology: Class, or None.
        birads: Assessment category, or None.
        device: Name from the foundation's list of devices, or None.
        box: Lesion box as fractions of width and height, or None.
        mask: Lesion mask, bool [rows, columns] over the whole frame, or None.
    """

    pathology: Pathology | None = None
    birads: Birads | None = None
    device: str | None = None
    box: Box | None = None
    mask: NDArray[np.bool_] | None = None

    def without_device(self) -> "Condition":
        """The same, with the device not given."""
        return replace(self, device=None)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Conditions of a batch as tensors.

    Attributes:
        labels: int64 [n, 3], indices of pathology, BI-RADS and device; the null is the last index of each table.
        planes: float32 [n, 2, side, side]: box and mask, 0 to 1, or -1 where not given.
    """

    labels: Tensor
    planes: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Encoded":
        """The same on ``device``."""
        return Encoded(self.labels.to(device), self.planes.to(device))

    def __getitem__(self, rows: slice | Tensor) -> "Encoded":
        return Encoded(self.labels[rows], self.planes[rows])


def table_sizes(devices: Sequence[str]) -> tuple[int, int, int]:
    """Rows of the three label tables, nulls included.

    >>> table_sizes(["Scanner A"])
    (4, 9, 2)
    """
    return len(Pathology) + 1, len(Birads) + 1, len(devices) + 1


def encode(conditions: Sequence[Condition], *, devices: Sequence[str], side: int) -> Encoded:
    """Conditions as tensors.

    Args:
        devices: The foundation's list, in its order.
        side: Rows and columns of the planes: those of the network's input.

    Raises:
        LabelError: a device outside the list.
        ConfigError: a mask that is not a 2-D array.

    >>> encode([Condition(pathology=Pathology.BENIGN), Condition()], devices=["A"], side=2).labels.tolist()
    [[1, 8, 1], [3, 8, 1]]
    """
    labels = torch.tensor([_indices(condition, devices) for condition in conditions], dtype=torch.int64).reshape(-1, len(LABELS))
    boxes = box_channel([condition.box for condition in conditions], size=side)
    masks = torch.stack([_mask_plane(condition.mask, side) for condition in conditions]) if conditions else boxes
    return Encoded(labels, torch.cat([boxes, masks], dim=1))


def _indices(condition: Condition, devices: Sequence[str]) -> list[int]:
    if condition.device is not None and condition.device not in devices:
        raise LabelError(f"the foundation does not know this device; it knows {list(devices)}. Ask for one of them, or for none")
    return [
        len(Pathology) if condition.pathology is None else condition.pathology.class_index,
        len(Birads) if condition.birads is None else condition.birads.class_index,
        len(devices) if condition.device is None else list(devices).index(condition.device),
    ]


def _mask_plane(mask: NDArray[np.bool_] | None, side: int) -> Tensor:
    """Share of each cell that the mask covers, float32 [1, side, side]."""
    if mask is None:
        return torch.full((1, side, side), -1.0)
    if mask.ndim != 2:
        raise ConfigError(f"a lesion mask is [rows, columns], not {list(mask.shape)}")
    plane: Tensor = functional.interpolate(torch.from_numpy(mask.astype(np.float32))[None, None], size=(side, side), mode="area")[0]
    return plane


def drop(
    encoded: Encoded, *, sizes: Sequence[int], rates: Sequence[float], all_rate: float, draws: torch.Generator, rows: Tensor, batch: int
) -> Encoded:
    """Replace each label and each plane by its null, each on its own with its chance, and all together with ``all_rate``.

    Args:
        encoded: Rows ``rows``, int64 [n], of a batch of ``batch`` images.
        sizes: Rows of the label tables.
        rates: Chances of pathology, BI-RADS, device, box, mask.
        all_rate: Chance that every one is dropped.
        draws: Randomness; drawn for the whole batch, so that it does not matter who holds which rows.

    Source: J. Ho, T. Salimans 2022, arXiv:2207.12598, section 3.2 (joint training with the null), here for each condition.
    """
    lost = (torch.rand(batch, len(LABELS) + REGION_PLANES, generator=draws) < torch.tensor(rates))[rows]
    lost |= (torch.rand(batch, 1, generator=draws) < all_rate)[rows]
    labels = torch.where(lost[:, : len(LABELS)], torch.tensor(sizes) - 1, encoded.labels)
    planes = encoded.planes.masked_fill(lost[:, len(LABELS) :, None, None], -1.0)
    return Encoded(labels, planes)
