"""Training images in Parquet shards, read as an endless shuffled stream that needs no memory and can start at any place.

One row is one image: PNG bytes, labels, box and mask. A stream's order is a function of its seed alone: row groups are
permuted anew in every epoch, a few are mixed at a time, and any position is found without reading what lies before it. That
is what makes a resumed run see the images that it would have seen, which shuffle buffers (WebDataset, ``datasets``) do not.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image as PillowImage

from busgen_core.conditions import Condition
from busgen_core.errors import ConfigError, CorruptImageError, LabelError, TableError
from busgen_core.files import write_whole
from busgen_core.images import Box, decode_exact, encode_png
from busgen_core.labels import parse_birads, parse_pathology

ROW_GROUP = 256  # images that are read at once
MIXED = 4  # row groups that are shuffled into one another
SCHEMA = pa.schema(
    [
        ("image", pa.binary()),  # PNG, 8-bit gray, square
        ("pathology", pa.string()),
        ("birads", pa.string()),
        ("device", pa.string()),
        ("box", pa.list_(pa.float32())),  # x0, y0, x1, y1 as fractions of width and height
        ("mask", pa.binary()),  # PNG, 1-bit, of the image's size
        ("seed", pa.int64()),  # of a generated image
    ]
)


@dataclass(frozen=True, slots=True)
class Example:
    """One image, uint8 [px, px], what is known of it, and the seed that it was drawn with where it was drawn."""

    image: NDArray[np.uint8]
    condition: Condition
    seed: int | None = None


def write_shards(folder: Path, examples: Iterable[Example], *, size: int, shard_images: int = 8192) -> int:
    """Write shards ``00000.parquet`` and so on; returns the number of images.

    Raises:
        CorruptImageError: an image of another shape or type, or constant; the message says which by its number.
        StorageFullError: no room; shards written before are whole.
    """
    stream, written = iter(examples), 0
    while part := list(islice(stream, shard_images)):
        write_whole(folder / f"{written // shard_images:05d}.parquet", shard_bytes(part, size=size, first=written))
        written += len(part)
    if not written:
        raise ConfigError("there are no images to write; the shards would be empty")
    return written


def shard_bytes(examples: Sequence[Example], *, size: int, first: int = 0) -> bytes:
    """One shard; the same examples give the same bytes. ``first`` numbers them in errors.

    Raises:
        CorruptImageError: see :func:`write_shards`.
    """
    rows = [_to_row(example, number=first + i, size=size) for i, example in enumerate(examples)]
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), out, compression="NONE", use_dictionary=["device"], row_group_size=ROW_GROUP)
    return out.getvalue()


def _to_row(example: Example, *, number: int, size: int) -> dict[str, object]:
    image, condition = example.image, example.condition
    if image.shape != (size, size) or image.dtype != np.uint8:
        raise CorruptImageError(f"image {number} is {image.dtype} {list(image.shape)}, not uint8 [{size}, {size}]")
    if image.min() == image.max():
        raise CorruptImageError(f"image {number} is constant; there is nothing to learn from it")
    if condition.mask is not None and condition.mask.shape != image.shape:
        raise CorruptImageError(f"the mask of image {number} is {list(condition.mask.shape)}, not of its image's size")
    return {
        "image": encode_png(image),
        "pathology": condition.pathology,
        "birads": condition.birads,
        "device": condition.device,
        "box": None if condition.box is None else list(condition.box),
        "mask": None if condition.mask is None else _mask_png(condition.mask),
        "seed": example.seed,
    }


def _mask_png(mask: NDArray[np.bool_]) -> bytes:
    out = io.BytesIO()
    PillowImage.fromarray(mask).save(out, "PNG")
    return out.getvalue()


class ShardStream:
    """The images of a folder of shards, endlessly, in an order that a seed fixes.

    Args:
        folder: Holds ``*.parquet`` of :func:`write_shards`.
        size: Rows and columns that every image must have.
        seed: Fixes the order.

    Raises:
        TableError: no shards, or files that are not ours.
    """

    def __init__(self, folder: Path, *, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._files = sorted(folder.glob("*.parquet"))
        self._groups: list[tuple[int, int]] = []  # file, row group
        counts: list[int] = []
        for number, file in enumerate(self._files):
            metadata = _metadata(file)
            self._groups += [(number, group) for group in range(metadata.num_row_groups)]
            counts += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        if not counts:
            raise TableError(f"{folder.name}: holds no Parquet shards; write them with 'busgen-core shards'")
        self._counts = np.array(counts)
        self._block: tuple[tuple[int, int], pa.Table, NDArray[np.int64]] | None = None  # the mixed row groups at hand

    def __len__(self) -> int:
        return int(self._counts.sum())

    def read(self, start: int, count: int, *, keep: NDArray[np.bool_] | None = None) -> list[Example]:
        """Images ``start`` to ``start + count - 1`` of the endless stream.

        Args:
            start: Place in the stream, from 0; the second epoch begins at ``len(self)``.
            count: How many places.
            keep: Which of them are decoded and returned, bool [count]; None is all.

        Raises:
            TableError: a shard that cannot be read.
            CorruptImageError: an image that does not decode, is constant, or of another size.
            LabelError: a label outside the consortium's list.
        """
        wanted = np.ones(count, bool) if keep is None else keep
        return [_to_example(row, self.size) for row, kept in zip(islice(self._rows(start), count), wanted, strict=True) if kept]

    def _rows(self, start: int) -> Iterator[dict[str, object]]:
        epoch, place = divmod(start, len(self))
        while True:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self._groups))
            ends = np.cumsum(self._counts[order])
            blocks = range(0, len(order), MIXED)
            starts = [0, *(int(ends[b + MIXED - 1]) for b in blocks[:-1])]
            for block, begins in zip(blocks, starts, strict=True):
                chosen = order[block : block + MIXED]
                if begins + int(self._counts[chosen].sum()) > place:
                    table, shuffled = self._mixed(epoch, block, chosen)
                    for row in shuffled[max(place - begins, 0) :]:
                        yield table.slice(int(row), 1).to_pylist()[0]
            epoch, place = epoch + 1, 0

    def _mixed(self, epoch: int, block: int, chosen: NDArray[np.int64]) -> tuple[pa.Table, NDArray[np.int64]]:
        """The row groups of a block in one table, and the order of its rows; the last block is kept."""
        if self._block is None or self._block[0] != (epoch, block):
            tables = [self._read_group(*self._groups[g]) for g in chosen]
            table = pa.concat_tables(tables).combine_chunks()
            self._block = ((epoch, block), table, np.random.default_rng((self.seed, epoch, block)).permutation(len(table)))
        return self._block[1], self._block[2]

    def _read_group(self, file: int, group: int) -> pa.Table:
        name = self._files[file]
        try:
            table = pq.ParquetFile(name).read_row_group(group)
        except (pa.ArrowException, OSError) as error:
            raise TableError(f"{name.name}: row group {group} cannot be read ({type(error).__name__}); write the shards again") from error
        return table


def _metadata(file: Path) -> pq.FileMetaData:
    try:
        opened = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"{file.name}: not a Parquet file ({type(error).__name__}); write the shards again") from error
    if opened.schema_arrow.names != SCHEMA.names:
        raise TableError(f"{file.name}: its columns are not {SCHEMA.names}; write the shards with 'busgen-core shards'")
    return opened.metadata


def _to_example(row: dict[str, object], size: int) -> Example:
    image = decode_exact(_bytes(row["image"]), size=size)
    if image.min() == image.max():
        raise CorruptImageError("a shard holds a constant image; there is nothing to learn from it")
    mask, box = row["mask"], row["box"]
    condition = Condition(
        pathology=None if row["pathology"] is None else parse_pathology(str(row["pathology"])),
        birads=None if row["birads"] is None else parse_birads(str(row["birads"])),
        device=None if row["device"] is None else str(row["device"]),
        box=_box(box),
        mask=None if mask is None else decode_exact(_bytes(mask), size=size) > 127,
    )
    seed = row["seed"]
    return Example(image, condition, int(seed) if isinstance(seed, int) else None)


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise CorruptImageError("a shard holds a row without an image; write the shards again")
    return value


def _box(value: object) -> Box | None:
    if value is None:
        return None
    x0, y0, x1, y1 = (float(v) for v in value)  # type: ignore[attr-defined]
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise LabelError("a shard holds a box that is not 0 <= x0 < x1 <= 1, 0 <= y0 < y1 <= 1")
    return (x0, y0, x1, y1)


def class_folders(folder: Path) -> list[Path]:
    """``folder`` itself where it holds shards, else its subfolders that do, one for each class.

    Raises:
        TableError: neither holds shards.
    """
    found = [folder] if any(folder.glob("*.parquet")) else sorted(p for p in folder.glob("*/") if any(p.glob("*.parquet")))
    if not found:
        raise TableError(f"{folder.name}: holds no Parquet shards; write them with 'busgen-core shards' or 'busgen-core phantoms'")
    return found


def read_labels(folder: Path) -> list[tuple[str | None, list[float] | None]]:
    """Pathology and box of every row of a folder's shards, without the images."""
    tables = [pq.read_table(file, columns=["pathology", "box"]) for file in sorted(folder.glob("*.parquet"))]
    return [(row["pathology"], row["box"]) for table in tables for row in table.to_pylist()]
