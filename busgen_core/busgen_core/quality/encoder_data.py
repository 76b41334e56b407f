"""What the encoder learns from: public images and phantoms, with every label that is known of each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from busgen_core.corpus import public_examples, read_table
from busgen_core.errors import ConfigError, TableError
from busgen_core.labels import Pathology
from busgen_core.phantom import simulate_batch

UNKNOWN = -1
SIMULATED_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Labelled:
    """One frame and what is known of it.

    Attributes:
        image: uint8 [px, px].
        mask: Lesion, bool [px, px]; None: not known. Normal tissue has an empty one.
        labels: Value of each task that is known.
        group: Patient; empty for phantoms.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None
    labels: Mapping[str, str] = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True, slots=True)
class Examples:
    """Frames as arrays.

    Attributes:
        images: uint8 [n, px, px].
        masks: bool [n, px, px], empty where not known.
        masked: bool [n], whether the mask is known.
        labels: int64 [n, tasks], UNKNOWN where not known.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    masked: NDArray[np.bool_]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)


def public_labelled(folder: Path, *, size: int) -> list[Labelled]:
    """The images of ``folder/images.csv`` with pathology, BI-RADS, device, mask and group.

    Raises:
        TableError: the table is missing or lacks a column; ``group`` is needed, since patients are kept apart.
        CorruptImageError: an image does not decode; the message names the row.
    """
    rows = read_table(folder)
    if "group" not in rows[0]:
        raise TableError("images.csv lacks the column group; it must name the patient of every image")
    found = []
    for example, row in zip(public_examples(folder, size=size), rows, strict=True):
        condition = example.condition
        known = {"pathology": condition.pathology, "birads": condition.birads, "device": condition.device}
        labels = {task: str(value) for task, value in known.items() if value is not None}
        found.append(Labelled(example.image, condition.mask, labels, row["group"]))
    return found


def phantom_labelled(count: int, *, size: int, seed: int, quiet: bool = False) -> list[Labelled]:
    """``count`` phantoms, the three classes in turn, with pathology, BI-RADS, descriptors, scanner and mask.

    Raises:
        ConfigError: ``count`` below 3.
    """
    if count < len(Pathology):
        raise ConfigError(f"{count=} gives no phantom of some class; ask for at least {len(Pathology)}")
    classes = [list(Pathology)[i % len(Pathology)] for i in range(count)]
    seeds = [seed * 10_000_000 + i for i in range(count)]
    found = []
    for start in tqdm(range(0, count, SIMULATED_AT_ONCE), desc="phantoms", unit="batch", disable=quiet):
        part = slice(start, start + SIMULATED_AT_ONCE)
        for phantom in simulate_batch(classes[part], size=size, seeds=seeds[part]):
            labels = {"pathology": phantom.pathology.value, "device": phantom.scanner}
            if phantom.birads is not None:
                labels["birads"] = phantom.birads.value
            if phantom.descriptors is not None:
                labels |= {f.name: str(getattr(phantom.descriptors, f.name)) for f in fields(phantom.descriptors)}
            mask = np.zeros((size, size), np.bool_) if phantom.mask is None else phantom.mask
            found.append(Labelled(phantom.image, mask, labels))
    return found


def vocabulary(items: Iterable[Labelled]) -> dict[str, tuple[str, ...]]:
    """Every task that has at least two values, with its values, both sorted.

    >>> image = np.zeros((2, 2), np.uint8)
    >>> vocabulary([Labelled(image, None, {"a": "y", "b": "1"}), Labelled(image, None, {"a": "x", "b": "1"})])
    {'a': ('x', 'y')}
    """
    found: dict[str, set[str]] = {}
    for item in items:
        for task, value in item.labels.items():
            found.setdefault(task, set()).add(value)
    return {task: tuple(sorted(values)) for task, values in sorted(found.items()) if len(values) > 1}


def tabulate(items: Sequence[Labelled], words: Mapping[str, tuple[str, ...]]) -> Examples:
    """Arrays of the items, labels as places in ``words``; a value outside them counts as unknown.

    >>> tabulate([Labelled(np.zeros((2, 2), np.uint8), None, {"a": "y"})], {"a": ("x", "y"), "b": ("1", "2")}).labels.tolist()
    [[1, -1]]
    """
    labels = [[_place(item.labels.get(task), values) for task, values in words.items()] for item in items]
    blank = np.zeros(items[0].image.shape, np.bool_)
    return Examples(
        images=np.stack([item.image for item in items]),
        masks=np.stack([blank if item.mask is None else item.mask for item in items]),
        masked=np.array([item.mask is not None for item in items]),
        labels=np.array(labels, np.int64).reshape(len(items), len(words)),
    )


def hold_out(items: Sequence[Labelled], *, share: float, seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """Items to learn from, and items of a random ``share`` of the groups, which are kept for checking.

    Raises:
        ConfigError: ``share`` not in [0, 1).
    """
    if not 0 <= share < 1:
        raise ConfigError(f"{share=} is not in [0, 1)")
    groups = np.array(sorted({item.group for item in items}))
    kept = set(np.random.default_rng(seed).permutation(groups)[: round(share * len(groups))].tolist())
    return [item for item in items if item.group not in kept], [item for item in items if item.group in kept]


def _place(value: str | None, values: tuple[str, ...]) -> int:
    return values.index(value) if value in values else UNKNOWN
