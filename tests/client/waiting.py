"""A quarantine with something in it: fictitious studies of a scanner that nobody vouched for, and rows of a table that need a look."""

import csv
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import dcmread
from sqlalchemy.orm import Session

from busgen_client.cohort import CohortStore
from busgen_client.devices import device_key
from busgen_client.intake.dicom import intake_dicom
from busgen_client.intake.header import quietly
from busgen_client.intake.phantom_dicom import write_phantom_study
from busgen_client.intake.table import intake_table
from busgen_client.quarantine_rows import DeviceRow

DEVICE = "LOGIQ E9"
COLUMNS, ROWS = 320, 200  # px of the table's pictures
TEXT = (10, 6, 130, 22)  # px; where the table's pictures hold what is not to be stored: left, top, right, bottom


def study_of_unknown_device(folder: Path, *, patients: int = 1, devices: Sequence[str] = (DEVICE,), seed: int = 3) -> int:
    """Write a phantom study whose headers name other scanners, one after the other; returns its objects."""
    write_phantom_study(folder, site="Testville", patients=patients, seed=seed)
    for path, device in zip(sorted(folder.glob("IM*")), cycle(devices), strict=False):
        header = dcmread(path)
        header.ManufacturerModelName = device
        header.save_as(path)
    return len(list(folder.glob("IM*")))


def vouch(store: CohortStore, path: Path) -> None:
    """As if a steward had seen an object of this file's scanner before."""
    with quietly():
        header = dcmread(path, stop_before_pixels=True)
    maker, model = (str(header.get(word) or "") for word in ("Manufacturer", "ManufacturerModelName"))
    with Session(store.engine) as session:
        session.merge(DeviceRow(device_key=device_key(store.pseudonyms.key, manufacturer=maker, model=model), device=model))
        session.commit()


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
