"""A hospital's patients as the adaptation and the audit see them: frames, labels, boxes, opaque patient keys."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from busgen_core.errors import InputError
from busgen_core.labels import Pathology

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 as fractions of width and height


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
