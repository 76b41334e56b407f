"""From the consortium's conditions to what the published network understands: class row, device row, box plane."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from busgen_core.conditions import Condition
from busgen_core.errors import ConfigError, LabelError
from busgen_core.images import Box
from busgen_core.labels import Pathology

# Rows 1 to 19 of the device table, in order (published code, Utils.py, DEVICE_dict_all); row 0 is the null. Its authors note
# that 9 and 16 are the same scanner, spelt in two ways: both rows were trained, so both are kept.
PUBLISHED_DEVICES = (
    "Siemens-ACUSON-Oxana",
    "GE-LOGIQ-E9",
    "Esaote-MyLab90",
    "Esaote-MyLabClassC",
    "Philips-EPIQ7",
    "Sonoscape-S60",
    "GE-EDVoluson-E8-Expert",
    "Samsung-RS80A",
    "Sonoscape-Clinic",
    "TOSHIBA-Aplio-i700",
    "Mindray-M9",
    "Canon-Aplio-i800",
    "Siemens-ACUSON-NX3-Elite",
    "VINNO-G86",
    "Mindray-Resona-R9",
    "SonoScape-Clinic",
    "Mindray-NuewaI9",
    "Mindray-Resona7",
    "Samsung-Heraw10",
)
NO_DEVICE = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class OfficialLabels:
    """Rows of the class table.

    The published code numbers normal -1, benign 0, malignant 1 and adds 1, so that "normal" falls on row 0, which is also
    "no label given" (Dataset.py, Train.py): its network cannot be asked for a normal breast. A network that was trained on
    with a row of its own for normal says so in ``normal``.

    Attributes:
        null: "No label given".
        benign: Benign lesion.
        malignant: Malignant lesion.
        normal: No lesion; None where the network has no such row.

    Raises:
        ConfigError: rows that are negative or used twice.

    >>> OfficialLabels().row(Pathology.MALIGNANT), OfficialLabels().row(None)
    (2, 0)
    """

    null: int = 0
    benign: int = 1
    malignant: int = 2
    normal: int | None = None

    def __post_init__(self) -> None:
        if min(self.rows) < 0 or len(set(self.rows)) < len(self.rows):
            raise ConfigError(f"class rows must be 0 or above, each used once: {self}")

    @property
    def rows(self) -> tuple[int, ...]:
        """Every row in use."""
        return (self.null, self.benign, self.malignant, *(() if self.normal is None else (self.normal,)))

    def row(self, pathology: Pathology | None) -> int:
        """Row of the class table for ``pathology``; None is the null.

        Raises:
            LabelError: a normal breast is asked of a network that has no row for it.
        """
        found = {None: self.null, Pathology.NORMAL: self.normal, Pathology.BENIGN: self.benign, Pathology.MALIGNANT: self.malignant}[pathology]
        if found is None:
            raise LabelError(
                "the published network has no class for a normal breast: its code gives 'normal' the row of 'no label given'. "
                "Ask for benign, malignant or any, or name the row in OfficialLabels if the network was trained on with one"
            )
        return found


@dataclass(frozen=True, slots=True)
class OfficialConditions:
    """Conditions of a batch: class rows int64 [n], device rows int64 [n], box planes float32 [n, 1, px, px]."""

    classes: Tensor
    devices: Tensor
    planes: Tensor

    def to(self, device: torch.device) -> "OfficialConditions":
        """The same on ``device``."""
        return OfficialConditions(self.classes.to(device), self.devices.to(device), self.planes.to(device))

    def null(self, labels: OfficialLabels) -> "OfficialConditions":
        """Nothing asked for: null rows, and no box (published code, Eval.py)."""
        return OfficialConditions(torch.full_like(self.classes, labels.null), torch.full_like(self.devices, NO_DEVICE), torch.zeros_like(self.planes))


def encode_official(conditions: Sequence[Condition], *, labels: OfficialLabels, devices: Sequence[str], px: int) -> OfficialConditions:
    """Conditions as the published network takes them.

    Args:
        conditions: At least one. Class, device and box; BI-RADS and mask are not known to this network.
        labels: Rows of the class table.
        devices: Names of rows 1 and up of the device table.
        px: Rows and columns of an image.

    Raises:
        LabelError: a normal breast, a BI-RADS category or an unknown device.
        ConfigError: a mask, or a box outside the frame or without a pixel.
    """
    return OfficialConditions(
        torch.tensor([labels.row(condition.pathology) for condition in conditions]),
        torch.tensor([_device_row(condition, devices) for condition in conditions]),
        torch.stack([box_plane(condition.box, px=px) for condition in conditions]),
    )


def _device_row(condition: Condition, devices: Sequence[str]) -> int:
    if condition.birads is not None:
        raise LabelError("the published network knows no BI-RADS categories; ask without one")
    if condition.mask is not None:
        raise ConfigError("the published network was trained on boxes, not on masks; give the lesion's box")
    if condition.device is None:
        return NO_DEVICE
    if condition.device not in devices:
        raise LabelError(f"this network does not know the device; it knows {list(devices)}. Ask for one of them, or for none")
    return list(devices).index(condition.device) + 1


def box_plane(box: Box | None, *, px: int) -> Tensor:
    """The fourth input channel: 1 inside the box, 0 outside, 0 everywhere without one; edges are cut down to whole pixels.

    Returns:
        float32 [1, px, px].

    Raises:
        ConfigError: a box outside the frame, or one that holds no pixel and so would silently mean "no box".

    Source: published code, Model.py, ``cat_box``.

    >>> box_plane((0.0, 0.5, 0.5, 1.0), px=2).tolist()
    [[[0.0, 0.0], [1.0, 0.0]]]
    """
    plane = torch.zeros(1, px, px)
    if box is not None:
        if not all(math.isfinite(edge) and 0 <= edge <= 1 for edge in box):
            raise ConfigError(f"a lesion box is x0, y0, x1, y1 as fractions from 0 to 1, not {box}")
        left, top, right, bottom = (int(edge * px) for edge in box)
        plane[0, top:bottom, left:right] = 1
        if not plane.any():
            raise ConfigError(f"the lesion box {box} holds no pixel of {px} x {px}; make it larger")
    return plane
