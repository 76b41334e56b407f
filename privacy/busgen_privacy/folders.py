"""Images of any tool's making as the suite wants them: a folder of images, with or without ``images.csv``, or one of our releases.

``images.csv`` has a column ``file``; ``patient`` (or ``group``) says whose image it is, ``pathology`` what it shows, and rows can be picked by
``role``: ``FOLDER:ROLE``. Without patients, real images are refused unless whoever calls vouches that each is of another one: figures of images
are no figures of patients, and images of one patient would pass for near copies.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from busgen_core.errors import ConfigError, CorruptImageError, InputError, TableError, UnavailableError
from busgen_core.images import decode_gray
from busgen_core.labels import Pathology, parse_pathology
from busgen_core.repository import arrays, read_parquet
from busgen_core.tables import whole_rows
from busgen_privacy.cohort import Cohort
from busgen_privacy.dp.accounting import gdp_mu

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


def read_people(where: str, *, one_image_each: bool = False) -> Cohort:
    """Patients of ``FOLDER`` or ``FOLDER:ROLE``.

    Args:
        where: The folder.
        one_image_each: Where no table names patients, each image is of another one.

    Raises:
        UnavailableError: no such folder.
        TableError: the table is torn, lacks a column, names patients for some rows only, or has no row of that role; or patients are not named.
        CorruptImageError: an image does not decode; the message names the row, never the file.
        InputError: no image, or one image under two patients.
    """
    folder, role = _where(where)
    rows = list(_rows(folder, role))
    if not rows:
        raise InputError("no image was found; give a folder of PNG or JPEG files, or one with images.csv")
    images = np.stack([_decoded(folder / row["file"], number) for number, row in enumerate(rows)])
    patients = _patients(folder, rows, one_image_each=one_image_each)
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
        InputError: no image, labels that belong to no image, or a manifest that promises nothing.
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


def check_claim(epsilon: float, delta: float) -> None:
    """Return only if a claim can be held against attacks; a very large epsilon is a weak claim, and one all the same.

    Raises:
        ConfigError: epsilon not above 0 or not finite, delta not in (0, 1), or a promise too strict to compute with.
    """
    if not epsilon > 0:
        raise ConfigError(f"epsilon={epsilon:g} is not above 0")
    gdp_mu(epsilon, delta)


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
        check_claim(*claim)
    except ConfigError as error:
        raise InputError(f"manifest.json: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"manifest.json is no manifest of ours ({type(error).__name__})") from None
    if stated != {label: labels.count(label) for label in set(labels)}:
        raise InputError("the manifest counts labels that the images do not have; the release was changed after it was made")
    return claim


def folder_of(where: str) -> Path:
    """The folder of ``FOLDER`` or ``FOLDER:ROLE``.

    Raises:
        UnavailableError: no such folder.
    """
    return _where(where)[0]


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


def _patients(folder: Path, rows: list[dict[str, str]], *, one_image_each: bool) -> tuple[str, ...]:
    """Whose image each is. Where each is of another patient: files of one name in two folders are two of them."""
    column = next((name for name in PATIENT if any(row.get(name) for row in rows)), None)
    if column is None:
        if not one_image_each:
            raise TableError(
                f"nothing says whose images these are: give an images.csv with a column {', '.join(PATIENT[:-1])} or {PATIENT[-1]}, "
                "or say --one-image-per-patient where that is so"
            )
        return tuple(f"{folder.resolve()}/{row['file']}" for row in rows)
    if bare := sum(not row[column] for row in rows):
        raise TableError(f"{bare} of {len(rows)} rows have nothing in the column {column}: say whose images they are, or leave them out")
    return tuple(row[column] for row in rows)


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
