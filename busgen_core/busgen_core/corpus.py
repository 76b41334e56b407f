"""What a foundation is trained on: public images in a folder with a table, and phantoms; both become shards, a folder a class."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Never

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from tqdm import tqdm

from busgen_core.conditions import Condition
from busgen_core.errors import ConfigError, CorruptImageError
from busgen_core.files import write_whole
from busgen_core.images import Box, mask_box, resize_gray
from busgen_core.labels import Pathology, parse_birads, parse_pathology
from busgen_core.phantom import simulate_batch
from busgen_core.shards import Example, write_shards
from busgen_core.tables import whole_rows

COLUMNS = ("file", "mask_file", "pathology")
SMALLEST_VIEW = 0.8  # share of a frame's width and height that a random view of it keeps, at least
LEAST_STRIP = 0.4  # share of a frame's width that a lesion-free strip must have
SIMULATED_AT_ONCE = 32
SOURCE_FILE = "source.json"  # what a folder of shards holds, in words, for model cards

Gray = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def pack_phantoms(out: Path, *, count: int, size: int, seed: int) -> int:
    """Write ``count`` phantoms, the three classes in turn, to ``out/<class>``; returns how many were written.

    Raises:
        ConfigError: ``count`` below 3.
        StorageFullError: no room.
    """
    if count < len(Pathology):
        raise ConfigError(f"count={count} gives no phantom of some class; ask for at least {len(Pathology)}")
    with tqdm(total=count, desc="phantoms", unit="image") as bar:
        for number, p in enumerate(Pathology):
            seeds = range(seed_of(seed, p), seed_of(seed, p) + (count + 2 - number) // 3)
            write_shards(out / p.value, _phantoms(p, seeds, size, bar), size=size)
    _describe(out, f"{count} phantoms of `busgen_core.phantom`, {size} px, seed {seed}, the three classes in turn")
    return count


def _describe(out: Path, text: str) -> None:
    write_whole(out / SOURCE_FILE, json.dumps({"text": text}, ensure_ascii=False, indent=1).encode())


def seed_of(seed: int, pathology: Pathology) -> int:
    """First phantom seed of a class: seeds of different classes and of neighbouring ``seed`` do not meet below ten million images."""
    return (seed * len(Pathology) + pathology.class_index) * 10_000_000


def _phantoms(pathology: Pathology, seeds: range, size: int, bar: "tqdm[Never]") -> Iterator[Example]:
    for start in range(0, len(seeds), SIMULATED_AT_ONCE):
        part = seeds[start : start + SIMULATED_AT_ONCE]
        for phantom in simulate_batch([pathology] * len(part), size=size, seeds=part):
            condition = Condition(pathology=pathology, birads=phantom.birads, device=phantom.scanner, box=phantom.box, mask=phantom.mask)
            yield Example(phantom.image, condition)
        bar.update(len(part))


def pack_public(folder: Path, out: Path, *, size: int, views: int, seed: int, about: str) -> int:
    """Write the images of ``folder/images.csv`` to ``out/<class>``: each as it is, and ``views - 1`` random views of it.

    The table has columns file, mask_file and pathology, and may have birads and device; a mask_file may be empty. Beside a lesion
    image, its widest strip without lesion becomes a "normal" frame: normal tissue beside a lesion, without BI-RADS. ``about`` says in
    words where the images come from and under which licence: model cards repeat it.

    Returns:
        Images written.

    Raises:
        TableError: the table is missing or lacks columns; the message names the row of a bad image.
        StorageFullError: no room.
    """
    rows = read_table(folder)
    found: dict[Pathology, list[tuple[Gray, Condition]]] = {p: [] for p in Pathology}
    for number, row in enumerate(tqdm(rows, desc="public images", unit="image")):
        for gray, condition in _frames(folder, row, number):
            found[condition.pathology or Pathology.NORMAL].append((gray, condition))
    counts = {p.value: write_shards(out / p.value, _views(frames, size, views, seed_of(seed, p)), size=size) for p, frames in found.items() if frames}
    _describe(
        out,
        f"{len(rows)} public images ({about}) and lesion-free strips of them, which stand for normal tissue; each frame whole and in "
        f"{views - 1} random views of at least {SMALLEST_VIEW:.0%} of its sides, {size} px, seed {seed}: {counts}",
    )
    return sum(counts.values())


def public_examples(folder: Path, *, size: int, role: str | None = None) -> list[Example]:
    """The images of ``folder/images.csv`` themselves, without strips and views, in the table's order; of one ``role`` where it is given."""
    rows = [(number, row) for number, row in enumerate(read_table(folder)) if role is None or row.get("role") == role]
    first = [_frames(folder, row, number)[0] for number, row in rows]
    return [_view(gray, condition, (0, 0, gray.shape[1], gray.shape[0]), size) for gray, condition in first]


def read_table(folder: Path) -> list[dict[str, str]]:
    """Rows of ``folder/images.csv``.

    Raises:
        TableError: it is missing, empty or torn, or lacks a column.
    """
    return whole_rows(folder / "images.csv", required=COLUMNS)


def _frames(folder: Path, row: Mapping[str, str], number: int) -> list[tuple[Gray, Condition]]:
    """The image of a row at its own size, and the lesion-free strip beside its lesion where that is wide enough."""
    try:
        gray = np.asarray(PillowImage.open(folder / row["file"]).convert("L"))
        mask = np.asarray(PillowImage.open(folder / row["mask_file"]).convert("1")) if row["mask_file"] else None
    except (OSError, ValueError, SyntaxError) as error:
        raise CorruptImageError(f"row {number + 2} of images.csv: its image or mask does not decode ({type(error).__name__})") from None
    if mask is not None and mask.shape != gray.shape:
        raise CorruptImageError(f"row {number + 2} of images.csv: the mask is not of its image's size")
    device = row.get("device") or None
    label = parse_pathology(row["pathology"])
    box = None if mask is None else mask_box(mask)
    found = [(gray, Condition(pathology=label, birads=parse_birads(row.get("birads", "")), device=device, box=box, mask=mask if box else None))]
    if box is not None and (strip := _lesion_free(gray, box)) is not None:
        found.append((strip, Condition(pathology=Pathology.NORMAL, device=device)))
    return found


def _lesion_free(gray: Gray, box: Box) -> Gray | None:
    """Beside the lesion, in the frame's own proportions: the wider side, if it is wide enough."""
    height, width = gray.shape
    left, right = gray[:, : int(box[0] * width)], gray[:, int(np.ceil(box[2] * width)) :]
    strip = left if left.shape[1] >= right.shape[1] else right
    strip = strip[: round(height * strip.shape[1] / width)]
    return strip if strip.shape[1] >= LEAST_STRIP * width and strip.min() < strip.max() else None


def _views(frames: list[tuple[Gray, Condition]], size: int, views: int, seed: int) -> Iterator[Example]:
    """Every frame whole, then random views that keep the lesion, in an order that spreads the views of a frame."""
    for view in range(views):
        for number, (gray, condition) in enumerate(frames):
            height, width = gray.shape
            rng = np.random.default_rng((seed, number, view))
            window = (0, 0, width, height) if view == 0 else _window(rng, width, height, condition.box)
            yield _view(gray, condition, window, size)


def _window(rng: np.random.Generator, width: int, height: int, box: Box | None) -> tuple[int, int, int, int]:
    """A random part of the frame, x0, y0, x1, y1 in px, that holds the box."""
    x0, y0, x1, y1 = box or (0.5, 0.5, 0.5, 0.5)
    part_x, part_y = rng.uniform(SMALLEST_VIEW, 1, 2)
    part_x, part_y = max(part_x, x1 - x0), max(part_y, y1 - y0)
    left = rng.uniform(max(0.0, x1 - part_x), max(min(x0, 1 - part_x), max(0.0, x1 - part_x)))
    top = rng.uniform(max(0.0, y1 - part_y), max(min(y0, 1 - part_y), max(0.0, y1 - part_y)))
    return int(left * width), int(top * height), int(np.ceil((left + part_x) * width)), int(np.ceil((top + part_y) * height))


def _view(gray: Gray, condition: Condition, window: tuple[int, int, int, int], size: int) -> Example:
    x0, y0, x1, y1 = window
    image = resize_gray(np.ascontiguousarray(gray[y0:y1, x0:x1]), size=size)
    if condition.mask is None:
        return Example(image, condition)
    cut = condition.mask[y0:y1, x0:x1]
    picture = PillowImage.fromarray(cut).convert("L").resize((size, size), PillowImage.Resampling.BOX)
    mask = np.asarray(picture) > 127
    if not mask.any():  # a lesion thinner than a pixel
        mask = np.asarray(picture) == np.asarray(picture).max()
    return Example(image, replace(condition, box=mask_box(cut), mask=mask))
