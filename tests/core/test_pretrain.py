"""Pretraining and foundations."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline

from busgen_core.errors import CheckpointError, LabelError, TableError
from busgen_core.foundation import foundation_digest, load_foundation, unpack_foundation
from busgen_core.generator import Shape
from busgen_core.pretrain import PretrainPlan, pretrain, public_frames
from busgen_core.transfer import folder_files
from busgen_core.wire import FOUNDATION_FILES
from tests.shared import shared_data

PLAN = PretrainPlan(seed=3, steps=6, batch=4, phantoms=12, warmup=2, shape=Shape(image_px=32, channels=(8, 16), groups=4, heads=8))


@pytest.fixture(scope="module")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("foundation") / "tiny"
    pretrain(PLAN, public=None, out=out)
    return out


def test_a_run_that_was_stopped_ends_with_the_same_weights(foundation: Path, tmp_path: Path) -> None:
    """Stopped after three steps and started again, pretraining gives the weights of a run without a stop."""
    out = tmp_path / "resumed"
    pretrain(PLAN, public=None, out=out, save_every=3, minutes=0)  # stops after its first step
    pretrain(PLAN, public=None, out=out)
    whole, resumed = load_foundation(foundation).network, load_foundation(out).network
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name


def test_another_plan_does_not_resume(foundation: Path) -> None:
    """A checkpoint of another plan is refused, not mixed in."""
    with pytest.raises(CheckpointError):
        pretrain(replace(PLAN, seed=4), public=None, out=foundation)


def test_diffusers_loads_the_folder_without_our_code(foundation: Path) -> None:
    """The folder is a diffusers pipeline."""
    pipeline = DDPMPipeline.from_pretrained(foundation, local_files_only=True, low_cpu_mem_usage=False)
    assert pipeline.unet.config.in_channels == 5


def test_a_changed_byte_changes_the_digest(foundation: Path, tmp_path: Path) -> None:
    """A foundation with another digest than the campaign's is refused."""
    files = folder_files(foundation, FOUNDATION_FILES)
    digest = foundation_digest(foundation)
    unpack_foundation(files, tmp_path / "good", expected_digest=digest)
    assert foundation_digest(tmp_path / "good") == digest
    damaged = {**files, "boxes.json": files["boxes.json"] + b" "}
    with pytest.raises(CheckpointError):
        unpack_foundation(damaged, tmp_path / "bad", expected_digest=digest)
    assert not (tmp_path / "bad").exists()
    with pytest.raises(CheckpointError):
        load_foundation(foundation, expected_digest="0" * 64)


def test_a_pickle_in_place_of_weights_does_not_load(foundation: Path, tmp_path: Path) -> None:
    """Weights that are a pickle are refused by name."""
    for name, data in folder_files(foundation, FOUNDATION_FILES).items():
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    torch.save({"x": torch.zeros(1)}, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError):
        load_foundation(tmp_path)


def test_public_images_give_lesions_and_normal_tissue() -> None:
    """The public folder gives benign and malignant frames with boxes, and lesion-free frames as normal."""
    frames = public_frames(shared_data() / "public", size=32)
    counts = {p.value: frames.labels.count(p) for p in set(frames.labels)}
    assert counts["benign"] == 702
    assert counts["malignant"] == 364
    assert counts["normal"] > 100
    assert all((box is None) == (label == "normal") for box, label in zip(frames.boxes, frames.labels, strict=True))


def test_a_folder_without_a_table_is_refused(tmp_path: Path) -> None:
    """No images.csv, or one without its columns, is named."""
    with pytest.raises(TableError):
        public_frames(tmp_path, size=32)
    (tmp_path / "images.csv").write_text("file,pathology\nx.png,benign\n")
    with pytest.raises(TableError):
        public_frames(tmp_path, size=32)


def test_an_unknown_label_is_not_repeated_in_the_error() -> None:
    """An error about a label does not carry the label's text, which may be a patient's."""
    from busgen_core.labels import parse_pathology

    with pytest.raises(LabelError) as caught:
        parse_pathology("free text 4711")
    assert "4711" not in str(caught.value)
