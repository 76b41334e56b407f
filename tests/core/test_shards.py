"""Shards: what is written is read, in an order that a seed fixes, from any place."""

import io
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from busgen_core import shards
from busgen_core.conditions import Condition
from busgen_core.errors import ConfigError, CorruptImageError, LabelError, StorageFullError, TableError
from busgen_core.images import encode_png
from busgen_core.labels import Birads, Pathology
from busgen_core.shards import SCHEMA, Example, ShardStream, class_folders, shard_bytes, write_shards

PX = 16


def numbered(count: int) -> list[Example]:
    """Images that can be told apart: the number is in the first two pixels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (count, PX, PX), dtype=np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    return [Example(image, Condition(pathology=Pathology.BENIGN)) for image in images]


def numbers(examples: list[Example]) -> list[int]:
    return [int(e.image[0, 0]) + 256 * int(e.image[0, 1]) for e in examples]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """600 images in shards of 256 with row groups of 16."""
    monkeypatch.setattr(shards, "ROW_GROUP", 16)
    write_shards(tmp_path / "s", numbered(600), size=PX, shard_images=256)
    return tmp_path / "s"


def test_everything_known_of_an_image_comes_back(tmp_path: Path) -> None:
    """Pixels, labels, box, mask and seed survive the shard."""
    mask = np.zeros((PX, PX), bool)
    mask[4:9, 5:12] = True
    condition = Condition(pathology=Pathology.MALIGNANT, birads=Birads.FOUR_C, device="A", box=(0.25, 0.25, 0.75, 0.5), mask=mask)
    image = numbered(1)[0].image
    write_shards(tmp_path, [Example(image, condition, 2**62 - 1), Example(image, Condition())], size=PX)
    full, empty = sorted(ShardStream(tmp_path, size=PX, seed=0).read(0, 2), key=lambda e: e.seed is None)
    assert np.array_equal(full.image, image)
    assert full.seed == 2**62 - 1
    assert np.array_equal(full.condition.mask, mask)
    assert (full.condition.pathology, full.condition.birads, full.condition.device) == (Pathology.MALIGNANT, Birads.FOUR_C, "A")
    assert full.condition.box == (0.25, 0.25, 0.75, 0.5)
    assert empty.condition == Condition()
    assert empty.seed is None


def test_an_epoch_holds_every_image_once_and_the_next_another_order(folder: Path) -> None:
    """The stream is a permutation in every epoch, never the same twice, and another seed gives another order."""
    stream = ShardStream(folder, size=PX, seed=1)
    first, second = numbers(stream.read(0, 600)), numbers(stream.read(600, 600))
    assert sorted(first) == sorted(second) == list(range(600))
    assert first != second
    assert first != list(range(600))
    assert numbers(ShardStream(folder, size=PX, seed=2).read(0, 600)) != first


def test_images_of_a_row_group_are_spread(folder: Path) -> None:
    """Neighbours in the file are not neighbours in the stream: rows of four row groups are mixed."""
    order = np.array(numbers(ShardStream(folder, size=PX, seed=1).read(0, 600)))
    assert np.mean(np.abs(np.diff(order)) == 1) < 0.05


@pytest.mark.parametrize("start", [0, 1, 63, 64, 65, 599, 600, 1234])
def test_any_place_is_found_without_reading_what_lies_before(folder: Path, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh stream that starts at a place gives what a stream from the beginning gives there, and reads few row groups for it."""
    whole = numbers(ShardStream(folder, size=PX, seed=1).read(0, start + 20))
    stream, read = ShardStream(folder, size=PX, seed=1), []
    plain = ShardStream._read_group
    monkeypatch.setattr(ShardStream, "_read_group", lambda self, file, group: read.append(group) or plain(self, file, group))
    assert numbers(stream.read(start, 20)) == whole[start:]
    assert len(read) <= 3 * shards.MIXED


def test_only_the_wanted_rows_are_decoded(folder: Path) -> None:
    """With ``keep``, places are counted but only the marked images come back."""
    stream = ShardStream(folder, size=PX, seed=1)
    keep = np.arange(20) % 3 == 1
    assert numbers(stream.read(7, 20, keep=keep)) == [n for n, k in zip(numbers(stream.read(7, 20)), keep, strict=True) if k]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """Reading through ten times as many images takes no more Python memory: only the mixed row groups are held."""

    def peak(count: int) -> int:
        write_shards(tmp_path / str(count), numbered(count), size=PX, shard_images=4096)
        stream = ShardStream(tmp_path / str(count), size=PX, seed=0)
        tracemalloc.start()
        for place in range(0, count, 500):
            stream.read(place, 500)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(10_000) < 1.5 * peak(1_000) + 200_000


def test_the_same_examples_give_the_same_bytes() -> None:
    """Shards can be compared by digest."""
    assert shard_bytes(numbered(5), size=PX) == shard_bytes(numbered(5), size=PX)


BAD = {
    "another shape": np.zeros((PX, PX + 1), np.uint8),
    "another type": np.zeros((PX, PX), np.float32),
    "constant": np.full((PX, PX), 7, np.uint8),
}


@pytest.mark.parametrize("image", BAD.values(), ids=BAD)
def test_a_bad_image_is_named_by_its_number_before_anything_is_written(tmp_path: Path, image: np.ndarray) -> None:
    """Wrong shape, wrong type and constant images are refused when they are packed."""
    with pytest.raises(CorruptImageError, match="image 2 "):
        write_shards(tmp_path, [*numbered(2), Example(image, Condition())], size=PX)
    assert not list(tmp_path.iterdir())


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    """A mask belongs to its image."""
    with pytest.raises(CorruptImageError, match="mask of image 0"):
        write_shards(tmp_path, [Example(numbered(1)[0].image, Condition(mask=np.zeros((3, 3), bool)))], size=PX)


def test_no_images_are_no_shards(tmp_path: Path) -> None:
    """An empty shard folder is not written."""
    with pytest.raises(ConfigError):
        write_shards(tmp_path / "s", [], size=PX)


def damaged(tmp_path: Path, **columns: object) -> Path:
    """A shard of one row in which some columns were replaced."""
    row = {"image": encode_png(numbered(1)[0].image), "pathology": "benign", "birads": None, "device": None, "box": None, "mask": None, "seed": None}
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row | columns], schema=SCHEMA), out)
    (tmp_path / "00000.parquet").write_bytes(out.getvalue())
    return tmp_path


ROWS = {
    "no image": ({"image": None}, CorruptImageError),
    "not a picture": ({"image": b"MZ\x00"}, CorruptImageError),
    "constant picture": ({"image": encode_png(np.zeros((PX, PX), np.uint8))}, CorruptImageError),
    "another size": ({"image": encode_png(np.arange(64, dtype=np.uint8).reshape(8, 8))}, CorruptImageError),
    "unknown pathology": ({"pathology": "patient 4711"}, LabelError),
    "unknown BI-RADS": ({"birads": "7"}, LabelError),
    "box inside out": ({"box": [0.5, 0.5, 0.2, 0.9]}, LabelError),
    "box that is not a number": ({"box": [float("nan"), 0.5, 0.7, 0.9]}, LabelError),
}


@pytest.mark.parametrize(("columns", "error"), ROWS.values(), ids=ROWS)
def test_a_bad_row_is_a_named_error(tmp_path: Path, columns: dict[str, object], error: type[Exception]) -> None:
    """Whatever a shard from elsewhere holds, a stream raises our error and does not repeat free text."""
    stream = ShardStream(damaged(tmp_path, **columns), size=PX, seed=0)
    with pytest.raises(error) as caught:
        stream.read(0, 1)
    assert "4711" not in str(caught.value)


def test_files_that_are_no_shards_are_refused(tmp_path: Path) -> None:
    """No shards, a file that is no Parquet, Parquet with other columns, and a torn file are named."""
    with pytest.raises(TableError, match="no Parquet shards"):
        ShardStream(tmp_path, size=PX, seed=0)
    with pytest.raises(TableError):
        class_folders(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(TableError, match="not a Parquet file"):
        ShardStream(tmp_path, size=PX, seed=0)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    with pytest.raises(TableError, match="columns"):
        ShardStream(tmp_path, size=PX, seed=0)


def test_a_full_disk_is_named_and_leaves_whole_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room for the second shard: the first is whole, the second is not there."""
    plain, calls = shards.write_whole, []

    def full(target: Path, data: bytes) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise StorageFullError("no room")
        plain(target, data)

    monkeypatch.setattr(shards, "write_whole", full)
    with pytest.raises(StorageFullError):
        write_shards(tmp_path, numbered(20), size=PX, shard_images=10)
    assert [p.name for p in tmp_path.iterdir()] == ["00000.parquet"]
    assert len(list(islice(ShardStream(tmp_path, size=PX, seed=0).read(0, 10), 10))) == 10
