"""A hospital's patients as the adaptation and the audit see them: frames, labels, boxes, opaque patient keys."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from busgen_core.errors import InputError
from busgen_core.images import Box
from busgen_core.labels import Pathology

# 1 - correlation of two images of a patient below which they are one view taken twice. At 64 px, at two hospitals: copies and frames of one
# sweep lie at 0.00 to 0.10, half of them below 0.02 (BUSI); two views of one lesion lie at 0.14 and above (BUS-BRA).
NEAR = 0.08


@dataclass(frozen=True)
class Cohort:
    """Images of a set of patients, one row for each image. The unit of privacy is the patient, not the row.

    Attributes:
        images: uint8 [n, px, px].
        classes: Pathology of each row.
        boxes: Lesion box of each row as fractions of the frame, or None.
        patients: Opaque key of the patient that each row belongs to; the same patient may have many rows.

    Raises:
        InputError: the columns differ in length, or the images are not square uint8 frames.
    """

    images: NDArray[np.uint8]
    classes: tuple[Pathology, ...]
    boxes: tuple[Box | None, ...]
    patients: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 3 or self.images.shape[1] != self.images.shape[2]:
            raise InputError(f"cohort images are {self.images.dtype} {self.images.shape[1:]}, not square uint8 frames")
        if not len(self.images) == len(self.classes) == len(self.boxes) == len(self.patients):
            raise InputError("cohort columns (images, classes, boxes, patients) differ in length")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.patients)

    def patient_rows(self) -> dict[str, list[int]]:
        """Rows of each patient; patients in the order of their keys, rows in the cohort's order."""
        rows: dict[str, list[int]] = {}
        for row, patient in enumerate(self.patients):
            rows.setdefault(patient, []).append(row)
        return dict(sorted(rows.items()))

    def only(self, patients: Collection[str]) -> "Cohort":
        """The rows of these patients, in their order."""
        rows = [row for row, patient in enumerate(self.patients) if patient in patients]
        return Cohort(
            self.images[rows],
            tuple(self.classes[row] for row in rows),
            tuple(self.boxes[row] for row in rows),
            tuple(self.patients[row] for row in rows),
        )

    def views(self, rows: Sequence[int]) -> list[list[int]]:
        """Rows of one patient in groups of near-duplicates: images joined by steps of 1 - correlation below ``NEAR``; both in the rows' order.

        Only a patient's own images are compared, so nobody's presence changes another's groups.
        """
        flat = normalised(self.images[list(rows)])
        near = 1 - flat @ flat.T < NEAR
        count, group = connected_components(near, directed=False)
        return sorted([row for row, own in zip(rows, group, strict=True) if own == number] for number in range(count))


def normalised(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [n, px, px] to float32 [n, px * px] of mean 0 and length 1; a constant image becomes 0."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6), dtype=np.float32)
