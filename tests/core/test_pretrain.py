"""Foundations: pretraining writes a folder that diffusers loads; damaged ones are refused by name; public images become shards."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, EDMDPMSolverMultistepScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from busgen_core.cli import SHIPPED, app
from busgen_core.corpus import pack_public, public_examples
from busgen_core.errors import CheckpointError, ConfigError, CorruptImageError, LabelError, TableError
from busgen_core.foundation import foundation_digest, load_foundation, unpack_foundation
from busgen_core.images import mask_box
from busgen_core.labels import Pathology, parse_birads, parse_pathology
from busgen_core.phantom import SCANNERS
from busgen_core.pretrain import density, pretrain
from busgen_core.shards import ShardStream
from busgen_core.transfer import folder_files
from busgen_core.wire import FOUNDATION_FILES
from tests.core.samples import tiny_plan, tiny_shards
from tests.shared import shared_data

DEVICE = next(iter(SCANNERS))


@pytest.fixture(scope="module")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foundation")
    pretrain(tiny_plan(devices=(DEVICE,)), [tiny_shards(folder / "shards")], folder / "tiny", name="tiny")
    return folder / "tiny"


@pytest.fixture
def copy(foundation: Path, tmp_path: Path) -> Path:
    shutil.copytree(foundation, tmp_path / "copy")
    return tmp_path / "copy"


def test_diffusers_loads_the_folder_without_our_code(foundation: Path) -> None:
    """Network, scheduler and pipeline load with diffusers' own from_pretrained."""
    unet = UNet2DModel.from_pretrained(foundation / "unet", local_files_only=True, low_cpu_mem_usage=False)
    scheduler = EDMDPMSolverMultistepScheduler.from_pretrained(foundation / "scheduler", local_files_only=True)
    pipeline = DDPMPipeline.from_pretrained(foundation, local_files_only=True, low_cpu_mem_usage=False)
    assert unet.config.in_channels == pipeline.unet.config.in_channels == 6
    assert scheduler.config.sigma_data == pipeline.scheduler.config.sigma_data == 0.5


def test_the_shipped_foundation_loads_and_is_small() -> None:
    """The shipped checkpoint is at most 16 MB, has its card, and knows devices and boxes."""
    shipped = load_foundation(SHIPPED)
    assert sum(f.stat().st_size for f in SHIPPED.rglob("*") if f.is_file()) <= 16_000_000
    assert shipped.network.image_px == 64
    assert len(shipped.network.devices) >= 3
    card = (SHIPPED / "README.md").read_text()
    assert "Seed" in card
    assert "CC BY 4.0" in card


def test_the_card_says_what_it_was_trained_on(foundation: Path) -> None:
    """Data, seed, steps and time are in the card."""
    card = (foundation / "README.md").read_text()
    assert "60 phantoms" in card
    assert "Seed 3; 6 of 6 planned steps" in card
    assert DEVICE in card


def test_sampling_starts_around_the_mean_of_the_training_images(foundation: Path) -> None:
    """The mean pixel of the training images is in the folder, and the first noise lies around it."""
    network = load_foundation(foundation).network
    shards = [ShardStream(foundation.parent / "shards" / p.value, size=32, seed=0).read(0, 20) for p in Pathology]
    mean = np.mean([e.image for found in shards for e in found]) / 127.5 - 1
    assert network.image_mean == pytest.approx(mean, abs=0.02)


def test_a_foundation_comes_back_as_it_was_saved(foundation: Path) -> None:
    """Weights, devices and digest are stable: loading twice gives the same answers."""
    one, two = load_foundation(foundation), load_foundation(foundation, expected_digest=foundation_digest(foundation))
    assert one.network.devices == (DEVICE,)
    values = torch.randn(2, 4, 16, 16), torch.zeros(2), torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 2, 16, 16)
    with torch.no_grad():
        assert torch.equal(one.network(*values), two.network(*values))


def test_a_changed_byte_changes_the_digest(foundation: Path, tmp_path: Path) -> None:
    """A foundation with another digest than the campaign's is refused and not written."""
    files = folder_files(foundation, FOUNDATION_FILES)
    digest = foundation_digest(foundation)
    unpack_foundation(files, tmp_path / "good", expected_digest=digest)
    assert foundation_digest(tmp_path / "good") == digest
    with pytest.raises(CheckpointError):
        unpack_foundation({**files, "boxes.json": files["boxes.json"] + b" "}, tmp_path / "bad", expected_digest=digest)
    assert not (tmp_path / "bad").exists()
    with pytest.raises(CheckpointError, match="digest"):
        load_foundation(foundation, expected_digest="0" * 64)


def edit(file: Path, change: str) -> None:
    tensors = load_file(file)
    name = "conv_out.bias" if "conv_out.bias" in tensors else "pathology.weight"
    if change == "missing":
        del tensors[name]
    elif change == "unknown":
        tensors["stranger"] = torch.zeros(1)
    elif change == "shape":
        tensors[name] = torch.zeros(99, 3)
    else:
        tensors[name] = tensors[name] * float("nan")
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("part", ["unet", "labels"])
@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "not finite"])
def test_tensors_that_are_not_the_foundations_are_refused(copy: Path, part: str, change: str) -> None:
    """Missing tensors are never filled at random; unknown, misshapen and non-finite ones are named."""
    edit(copy / part / "diffusion_pytorch_model.safetensors", change)
    with pytest.raises(CheckpointError):
        load_foundation(copy)


def test_a_pickle_in_place_of_weights_does_not_load(copy: Path) -> None:
    """Weights that are a pickle are refused by name."""
    torch.save({"x": torch.zeros(1)}, copy / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError):
        load_foundation(copy)


def test_parts_that_do_not_fit_each_other_are_refused(copy: Path) -> None:
    """A missing file, a configuration that is no JSON, and tables of another width are named."""
    config = copy / "labels" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"width": 8}))
    with pytest.raises(CheckpointError):
        load_foundation(copy)
    config.write_text("{")
    with pytest.raises(CheckpointError):
        load_foundation(copy)
    config.unlink()
    with pytest.raises(CheckpointError, match="lacks"):
        load_foundation(copy)


def test_the_box_density_needs_boxes(tmp_path: Path) -> None:
    """Fewer than eight boxes of a class fit no density."""
    with pytest.raises(TableError, match="fewer than 8"):
        density(tiny_shards(tmp_path / "few", count=9))


def test_the_command_line_pretrains_and_samples(tmp_path: Path) -> None:
    """phantoms, pretrain, sample: each goes on or refuses with its exit status; a share that is no number is wrong usage."""
    run = CliRunner()
    assert run.invoke(app, ["phantoms", str(tmp_path / "p"), "--count", "60"], catch_exceptions=False).exit_code == 0
    train = ["pretrain", str(tmp_path / "f"), "--source", f"{tmp_path / 'p'}=1", "--steps", "2", "--batch", "2"]
    first = run.invoke(app, [*train, "--stop-after", "1"], catch_exceptions=False)
    assert first.exit_code == 0
    assert run.invoke(app, train, catch_exceptions=False).exit_code == 0
    asked = ["sample", str(tmp_path / "s"), "--foundation", str(tmp_path / "f"), "--count", "normal=2", "--evaluations", "1"]
    assert run.invoke(app, asked, catch_exceptions=False).stdout.strip() == "2 images"
    assert run.invoke(app, ["pretrain", "x", "--source", "nowhere", "--steps", "1"]).exit_code == 2
    assert run.invoke(app, ["pretrain", "x", "--source", "nowhere=1", "--steps", "1", "--preset", "huge"]).exit_code == 2


# Public images


def public_folder(folder: Path, rows: list[dict[str, str]]) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(len(rows)):
        Image.fromarray(rng.integers(0, 255, (80, 100), dtype=np.uint8)).save(folder / f"{i}.png")
        mask = np.zeros((80, 100), bool)
        mask[20:40, 10:30] = True
        Image.fromarray(mask).save(folder / f"m{i}.png")
    lines = [",".join(("file", "mask_file", "pathology", "birads", "device"))]
    lines += [",".join((r.get("file", f"{i}.png"), r.get("mask_file", f"m{i}.png"), r["pathology"], "4a", "A")) for i, r in enumerate(rows)]
    (folder / "images.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_public_images_become_shards_with_all_that_is_known(tmp_path: Path) -> None:
    """Whole frames, views that keep the lesion, and lesion-free strips as normal tissue; labels, box and mask go with them."""
    folder = public_folder(tmp_path / "public", [{"pathology": "benign"}, {"pathology": "malignant"}])
    written = pack_public(folder, tmp_path / "out", size=32, views=3, seed=1, about="made for a test")
    lesions = ShardStream(tmp_path / "out" / "benign", size=32, seed=0).read(0, 3)
    normals = ShardStream(tmp_path / "out" / "normal", size=32, seed=0).read(0, 6)
    assert written == 12
    assert all(e.condition.birads == "4a" and e.condition.device == "A" and e.condition.box is not None for e in lesions)
    for example in lesions:
        assert example.condition.mask is not None
        found = mask_box(example.condition.mask)
        assert found is not None
        assert np.allclose(found, example.condition.box, atol=0.04)
        assert example.condition.mask.sum() >= 0.05 * 32 * 32  # the whole lesion, 5 % of the frame, is in every view
    assert all(e.condition.birads is None and e.condition.box is None and e.condition.mask is None for e in normals)
    assert "made for a test" in json.loads((tmp_path / "out" / "source.json").read_text())["text"]


BAD_ROWS = {
    "an unknown label": ({"pathology": "case 4711"}, LabelError),
    "no such file": ({"pathology": "benign", "file": "gone.png"}, CorruptImageError),
    "a mask of another image's size": ({"pathology": "benign", "mask_file": "small.png"}, CorruptImageError),
}


@pytest.mark.parametrize(("row", "error"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_public_row_is_a_named_error(tmp_path: Path, row: dict[str, str], error: type[Exception]) -> None:
    """Errors say which row, never what was in it."""
    folder = public_folder(tmp_path / "public", [{"pathology": "benign"}, row])
    Image.fromarray(np.zeros((5, 5), bool)).save(folder / "small.png")
    with pytest.raises(error) as caught:
        pack_public(folder, tmp_path / "out", size=32, views=1, seed=1, about="")
    assert "4711" not in str(caught.value)


def test_the_shared_public_images_are_read() -> None:
    """All 1,066 public images have their label, box and mask."""
    examples = public_examples(shared_data() / "public", size=64)
    counts = {p: sum(e.condition.pathology is p for e in examples) for p in Pathology}
    assert (counts[Pathology.BENIGN], counts[Pathology.MALIGNANT]) == (702, 364)
    assert all(e.condition.box and e.condition.mask is not None and e.condition.mask.any() for e in examples)


def test_a_folder_without_a_table_is_refused(tmp_path: Path) -> None:
    """No images.csv, or one without its columns, is named."""
    with pytest.raises(TableError):
        pack_public(tmp_path, tmp_path / "out", size=32, views=1, seed=1, about="")
    (tmp_path / "images.csv").write_text("file,pathology\nx.png,benign\n")
    with pytest.raises(TableError):
        pack_public(tmp_path, tmp_path / "out", size=32, views=1, seed=1, about="")


def test_too_few_phantoms_are_refused(tmp_path: Path) -> None:
    """Every class needs a phantom."""
    from busgen_core.corpus import pack_phantoms

    with pytest.raises(ConfigError):
        pack_phantoms(tmp_path, count=2, size=32, seed=1)


@pytest.mark.parametrize("parse", [parse_pathology, parse_birads])
def test_an_unknown_label_is_not_repeated_in_the_error(parse: object) -> None:
    """An error about a label does not carry the label's text, which may be a patient's."""
    with pytest.raises(LabelError) as caught:
        parse("free text 4711")  # type: ignore[operator]
    assert "4711" not in str(caught.value)
