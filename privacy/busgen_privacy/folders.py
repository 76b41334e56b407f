"""Images of any tool's making as the suite wants them: a folder of images, with or without ``images.csv``, or one of our releases.

``images.csv`` has a column ``file``; ``patient`` (or ``group``) says whose image it is, ``pathology`` what it shows, and rows can be picked by
``role``: ``FOLDER:ROLE``. Without the table every image counts as a patient of its own.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from busgen_core.errors import CorruptImageError, InputError, TableError, UnavailableError
from busgen_core.images import decode_gray
from busgen_core.labels import Pathology, parse_pathology
from busgen_core.repository import arrays, read_parquet
from busgen_core.tables import whole_rows
from busgen_privacy.cohort import Cohort

PX = 64  # what the encoder and the attacks see
ENDINGS = (".png", ".jpg", ".jpeg")
PATIENT = ("patient", "group", "patient_id")  # columns that say whose image it is; the first that is there


@dataclass(frozen=True, kw_only=True)
class Released:
    """A release as files have it.

    Attributes:
        images: uint8 [m, 64, 64].
        labels: Of each image, or None where it has none.
        epsilon: Claim of the manifest; None where there is none.
        delta: Claim.
        name: What to call it in the report.
    """

    images: NDArray[np.uint8]
    labels: tuple[Pathology | None, ...]
    epsilon: float | None
    delta: float | None
    name: str


def read_people(where: str) -> Cohort:
    """Patients of ``FOLDER`` or ``FOLDER:ROLE``.

    Raises:
        UnavailableError: no such folder.
        TableError: the table is torn, lacks a column, or has no row of that role.
        CorruptImageError: an image does not decode; the message names the row, never the file.
        InputError: no image, or one image under two patients.
    """
    folder, role = _where(where)
    rows = list(_rows(folder, role))
    if not rows:
        raise InputError("no image was found; give a folder of PNG or JPEG files, or one with images.csv")
    images = np.stack([_decoded(folder / row["file"], number) for number, row in enumerate(rows)])
    patients = tuple(_patient(folder, row) for row in rows)
    _check_once(images, patients)
    return Cohort(images, tuple(_label(row) or Pathology.NORMAL for row in rows), (None,) * len(rows), patients)


def read_scanners(where: str) -> tuple[str, ...]:
    """Scanner of each image that ``read_people`` reads, in its order; nothing where the table does not name one for each.

    Raises:
        UnavailableError, TableError: as ``read_people``.
    """
    found = tuple(row.get("device", "") for row in _rows(*_where(where)))
    return found if all(found) else ()


def read_release(where: Path) -> Released:
    """One of our releases (a folder with ``data/*.parquet``, or a Parquet file), or a folder of images.

    Signatures are not checked here: ``busgen-hub verify`` does that.

    Raises:
        UnavailableError: nothing there.
        TableError: a Parquet file of another shape than ours.
        InputError: no image, or labels that belong to no image.
    """
    tables = [where] if where.suffix == ".parquet" else sorted((where / "data").glob("*.parquet"))
    if not where.exists():
        raise UnavailableError("the release is not there; give a folder or a Parquet file")
    if not tables:
        return _folder_release(where)
    images = [image for table in tables for image in read_parquet(table.read_bytes())]
    frames, labels = arrays(images)
    epsilon, delta = _claim(where, labels)
    return Released(images=frames, labels=tuple(labels), epsilon=epsilon, delta=delta, name=where.name)


def _folder_release(where: Path) -> Released:
    rows = list(_rows(where, None))
    if not rows:
        raise InputError("no image was found in the release")
    images = np.stack([_decoded(where / row["file"], number) for number, row in enumerate(rows)])
    return Released(images=images, labels=tuple(_label(row) for row in rows), epsilon=None, delta=None, name=where.name)


def _claim(where: Path, labels: list[Pathology]) -> tuple[float | None, float | None]:
    """Epsilon and delta of a manifest, and a check that its labels are those of the images."""
    manifest = where / "manifest.json"
    if not manifest.is_file():
        return None, None
    try:
        found = json.loads(manifest.read_bytes())
        stated = {Pathology(name): int(count) for name, count in found["labels"].items() if count}
        privacy = found["privacy"]
        claim = float(privacy["epsilon"]), float(privacy["delta"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"manifest.json is no manifest of ours ({type(error).__name__})") from None
    if stated != {label: labels.count(label) for label in set(labels)}:
        raise InputError("the manifest counts labels that the images do not have; the release was changed after it was made")
    return claim


def _where(where: str) -> tuple[Path, str | None]:
    folder, role = Path(where), None
    if not folder.is_dir() and ":" in where:
        name, _, role = where.rpartition(":")
        folder = Path(name)
    if not folder.is_dir():
        raise UnavailableError("a folder of real images is not there; give FOLDER, or FOLDER:ROLE to pick rows of its images.csv")
    return folder, role


def _rows(folder: Path, role: str | None) -> Iterator[dict[str, str]]:
    table = folder / "images.csv"
    if not table.is_file():
        if role is not None:
            raise TableError("images.csv is not in the folder, so no role can be picked")
        files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)
        yield from ({"file": file} for file in files)
        return
    rows = whole_rows(table, required=("file",) if role is None else ("file", "role"))
    yield from (row for row in rows if role is None or row["role"] == role)


def _patient(folder: Path, row: dict[str, str]) -> str:
    """Whose image it is; without a name, nobody else's: files of one name in two folders are two patients."""
    return next((row[name] for name in PATIENT if row.get(name)), f"{folder.resolve()}/{row['file']}")


def _label(row: dict[str, str]) -> Pathology | None:
    return parse_pathology(row["pathology"]) if row.get("pathology") else None


def _decoded(file: Path, number: int) -> NDArray[np.uint8]:
    try:
        return decode_gray(file.read_bytes(), size=PX)
    except (OSError, CorruptImageError) as error:
        raise CorruptImageError(f"image {number + 1} of the folder cannot be read ({type(error).__name__})") from None


def _check_once(images: NDArray[np.uint8], patients: tuple[str, ...]) -> None:
    """Refuse images that two patients share: they would count twice, and the split may not be by patient."""
    owners: dict[bytes, set[str]] = {}
    for image, patient in zip(images, patients, strict=True):
        owners.setdefault(image.tobytes(), set()).add(patient)
    if shared := sum(len(found) > 1 for found in owners.values()):
        raise InputError(f"{shared} images are there under two patients; remove the duplicates or mend the table")
