"""A quarantine with something in it: fictitious studies of a scanner that nobody vouched for, and rows of a table that need a look."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import dcmread

from busgen_client.cohort import CohortStore
from busgen_client.intake.dicom import intake_dicom
from busgen_client.intake.phantom_dicom import write_phantom_study
from busgen_client.intake.table import intake_table

DEVICE = "LOGIQ E9"
COLUMNS, ROWS = 320, 200  # px of the table's pictures
TEXT = (10, 6, 130, 22)  # px; where the table's pictures hold what is not to be stored: left, top, right, bottom


def study_of_unknown_device(folder: Path, *, patients: int = 1, device: str = DEVICE) -> int:
    """Write a phantom study whose header names another scanner; returns its objects."""
    write_phantom_study(folder, site="Testville", patients=patients, seed=3)
    for path in folder.glob("IM*"):
        header = dcmread(path)
        header.ManufacturerModelName = device
        header.save_as(path)
    return len(list(folder.glob("IM*")))


def table_to_look_at(folder: Path, *, seed: int = 0) -> None:
    """Two rows: one whose picture has a coloured part, one whose label is none of the list."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    with (folder / "images.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image_id", "file", "pathology", "group"])
        for name, pathology, coloured in (("one", "benign", True), ("two", "unheard-of", False)):
            frame = np.repeat(rng.integers(40, 200, (ROWS, COLUMNS, 1), dtype=np.uint8), 3, axis=2)
            if coloured:
                frame[TEXT[1] : TEXT[3], TEXT[0] : TEXT[2]] = (240, 40, 40)
            Image.fromarray(frame).save(folder / f"{name}.png")
            writer.writerow([name, f"{name}.png", pathology, f"patient of {name}"])


def fill(store: CohortStore, folder: Path) -> None:
    """Two objects of one table, and those of a study, wait."""
    table_to_look_at(folder / "table")
    intake_table(store, folder / "table", progress=False)
    study_of_unknown_device(folder / "study")
    intake_dicom(store, folder / "study", folder / "study" / "labels.csv", progress=False)
