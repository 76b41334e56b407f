"""The encoder: loading, training, and what the shipped one sees in real images."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from scipy.ndimage import gaussian_filter, median_filter
from torch import Tensor

from busgen_core.errors import CheckpointError, ConfigError, InputError, TableError
from busgen_core.labels import Pathology
from busgen_core.phantom import simulate_batch
from busgen_core.quality import degrade
from busgen_core.quality.compare import Encoder, encoded
from busgen_core.quality.encoder import CARD, CONFIG, SHIPPED, WEIGHTS, EncoderConfig, EncoderNetwork, load_encoder, save_encoder
from busgen_core.quality.encoder_data import UNKNOWN, hold_out, phantom_labelled, public_labelled, tabulate, vocabulary
from busgen_core.quality.encoder_tasks import Tasks, damaged, moved, spread_penalties, total_loss
from busgen_core.quality.train_encoder import EncoderPlan, train_encoder
from busgen_core.tensors import to_unit

TINY = EncoderConfig(name="tiny", image_px=32, widths=(8, 8, 16), features=8)
PLAN = EncoderPlan(seed=3, steps=6, batch=8, phantoms=12, warmup=2, config=TINY)


def noise(count: int, *, px: int = 32, seed: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, px, px), dtype=np.uint8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoder") / "tiny"
    train_encoder(PLAN, public=None, out=out, quiet=True)
    return out


# Loading


def test_the_shipped_encoder_is_what_its_digest_says() -> None:
    """The shipped folder loads under the digest in the code, is small, and gives float32 features of the stated width."""
    encoder = load_encoder()
    features = encoder(noise(3, px=64))
    assert features.shape == (3, encoder.config.features)
    assert features.dtype == np.float32
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) <= 3_000_000
    assert sum(p.numel() for p in encoder.network.parameters()) <= 700_000
    assert encoder.digest[:12] in encoder.name


def test_features_of_a_frame_do_not_depend_on_the_others() -> None:
    """Each row is a function of its own frame: alone, or among others in any order, it is the same to 1e-4."""
    encoder, images = load_encoder(), noise(140, px=64)
    whole = encoder(images)
    assert encoder(images[::-1])[::-1] == pytest.approx(whole, abs=1e-4)
    assert encoder(images[130:131]) == pytest.approx(whole[130:131], abs=1e-4)
    assert encoder(images[:0]).shape == (0, whole.shape[1])


def test_other_sizes_are_resized_and_other_types_refused() -> None:
    """128 px frames become 64 px frames; floats, colour and rectangles are refused."""
    encoder, small = load_encoder(), noise(2, px=64)
    large = small.repeat(2, axis=1).repeat(2, axis=2)
    assert encoder(large).shape == encoder(small).shape
    for wrong in (small.astype(np.float32), small[0], small[:, :, :60], np.stack([small] * 3, axis=-1)):
        with pytest.raises(InputError):
            encoder(wrong)


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for name in (WEIGHTS, CONFIG, CARD):
        (target / name).write_bytes((source / name).read_bytes())
    return target


def flip_byte(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "one bit of the weights": flip_byte,
    "weights missing": lambda folder: (folder / WEIGHTS).unlink(),
    "configuration missing": lambda folder: (folder / CONFIG).unlink(),
    "weights cut short": lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9]),
    "a pickle for weights": lambda folder: torch.save({"x": torch.zeros(1)}, folder / WEIGHTS),
    "another network": lambda folder: (folder / CONFIG).write_text(TINY.model_copy(update={"features": 16}).model_dump_json()),
    "a huge network": lambda folder: (folder / CONFIG).write_text('{"widths": [100000, 8, 8]}'),
    "no JSON": lambda folder: (folder / CONFIG).write_text("widths = 3"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_folder_does_not_load(trained: Path, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """Every defect ends in a CheckpointError, under a digest or without; only the card may change."""
    digest = load_encoder(trained).digest
    folder = copied(trained, tmp_path / "copy")
    (folder / CARD).write_text("another card")
    assert load_encoder(folder, expected_digest=digest).digest == digest
    damage(folder)
    with pytest.raises(CheckpointError):
        load_encoder(folder, expected_digest=digest)
    if damage is not flip_byte:  # without a digest one bit is another, valid encoder
        with pytest.raises(CheckpointError):
            load_encoder(folder)


def test_weights_that_are_not_finite_do_not_load(tmp_path: Path) -> None:
    """NaN in a tensor is found when loading, not when comparing."""
    network = EncoderNetwork(TINY)
    network.get_buffer("mean")[0] = float("nan")
    save_encoder(tmp_path / "bad", config=TINY, network=network, card="")
    with pytest.raises(CheckpointError, match="finite"):
        load_encoder(tmp_path / "bad")


def test_any_callable_is_an_encoder() -> None:
    """A hospital's own function takes the place of the shipped encoder."""

    def own(images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        return images.reshape(len(images), -1)[:, :4].astype(np.float32)

    encoders: list[Encoder] = [own, load_encoder()]
    assert [encoded(noise(2, px=64), encoder).shape for encoder in encoders] == [(2, 4), (2, 128)]


# Training


def test_training_is_repeatable_and_resumes_where_it_stopped(trained: Path, tmp_path: Path) -> None:
    """The same plan gives the same bytes; a run stopped after three steps ends with the same bytes as one that was not."""
    digest = load_encoder(trained).digest
    out = tmp_path / "again"
    assert train_encoder(PLAN, public=None, out=out, save_every=2, stop_after=3, quiet=True) is None
    assert not out.exists()
    assert train_encoder(PLAN, public=None, out=out, quiet=True) == digest
    assert train_encoder(replace(PLAN, seed=4), public=None, out=tmp_path / "other", quiet=True) != digest


def test_another_plan_or_a_torn_checkpoint_does_not_resume(trained: Path, tmp_path: Path) -> None:
    """A checkpoint of another plan is refused, and so is one whose tensors are cut short."""
    with pytest.raises(CheckpointError, match="another plan"):
        train_encoder(replace(PLAN, steps=7), public=None, out=trained, quiet=True)
    out = tmp_path / "torn"
    train_encoder(PLAN, public=None, out=out, stop_after=2, quiet=True)
    state = next((tmp_path / "torn.run").glob("*.safetensors"))
    state.write_bytes(state.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="checkpoint"):
        train_encoder(PLAN, public=None, out=out, quiet=True)


def test_features_are_standardised_over_the_training_images(trained: Path) -> None:
    """Mean 0 and deviation 1 over the phantoms that it was trained on."""
    images = np.stack([item.image for item in phantom_labelled(PLAN.phantoms, size=32, seed=PLAN.seed, quiet=True)])
    features = load_encoder(trained)(images)
    assert features.mean(axis=0) == pytest.approx(np.zeros(8), abs=1e-3)
    assert features.std(axis=0) == pytest.approx(np.ones(8), abs=1e-3)


def test_the_loss_falls_and_the_card_says_how_it_was_made(tmp_path: Path) -> None:
    """Sixty steps on 24 phantoms lower the loss; the card names data, command and seed."""
    import json

    train_encoder(replace(PLAN, steps=60, phantoms=24), public=None, out=tmp_path / "e", quiet=True)
    losses = json.loads((tmp_path / "e.run" / "state.json").read_text())["losses"]
    assert len(losses) == 60
    assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:10])
    assert "--steps 60 --seed 3 --phantoms 24" in (tmp_path / "e" / CARD).read_text()


def test_a_plan_outside_its_range_is_refused() -> None:
    """Steps, batch and shares out of range, and phantoms too few for three classes."""
    for wrong in ({"steps": 0}, {"batch": 2}, {"learning_rate": 0.0}, {"dropout": 1.0}):
        with pytest.raises(ConfigError):
            replace(PLAN, **wrong)
    with pytest.raises(ConfigError):
        phantom_labelled(2, size=32, seed=1)
    with pytest.raises(ConfigError):
        hold_out([], share=1.0, seed=1)


def public_folder(folder: Path, *, columns: str = "file,mask_file,pathology,group,birads,device") -> Path:
    """Eight made-up public images of four patients."""
    rows = []
    for i, phantom in enumerate(simulate_batch([Pathology.BENIGN, Pathology.MALIGNANT] * 4, size=40, seeds=range(8))):
        assert phantom.mask is not None
        PillowImage.fromarray(phantom.image).save(folder / f"{i}.png")
        PillowImage.fromarray(phantom.mask).save(folder / f"m{i}.png")
        rows.append(
            {"file": f"{i}.png", "mask_file": f"m{i}.png", "pathology": phantom.pathology.value, "group": f"p{i // 2}", "birads": "3", "device": "A"}
        )
    with (folder / "images.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, columns.split(","), extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    return folder


def test_public_images_carry_their_labels_and_patients_stay_together(tmp_path: Path) -> None:
    """Pathology, BI-RADS, device, mask and group are read; what is held out shares no patient with the rest; no group column, no training."""
    items = public_labelled(public_folder(tmp_path), size=32)
    assert items[1].labels == {"pathology": "malignant", "birads": "3", "device": "A"}
    assert items[1].mask is not None
    assert items[1].mask.any()
    learnt, kept = hold_out(items, share=0.25, seed=1)
    assert (len(learnt), len(kept)) == (6, 2)
    assert not {i.group for i in learnt} & {i.group for i in kept}
    digest = train_encoder(replace(PLAN, held_out=0.5), public=tmp_path, out=tmp_path / "e", quiet=True)
    assert digest == load_encoder(tmp_path / "e").digest
    assert "auc" in (tmp_path / "e" / CARD).read_text()
    public_folder(tmp_path, columns="file,mask_file,pathology")
    with pytest.raises(TableError, match="group"):
        public_labelled(tmp_path, size=32)


def test_phantoms_bring_descriptors_and_masks() -> None:
    """A lesion has its descriptors, normal tissue none and an empty mask; unknown labels are marked as such."""
    items = phantom_labelled(30, size=32, seed=1, quiet=True)
    words = vocabulary(items)
    assert {"pathology", "birads", "device", "shape", "margin", "posterior"} <= set(words)
    table = tabulate(items, words)
    shape, normal = list(words).index("shape"), np.array([i.labels["pathology"] == "normal" for i in items])
    assert (table.labels[normal, shape] == UNKNOWN).all()
    assert (table.labels[~normal, shape] >= 0).all()
    assert table.masked.all()
    assert not table.masks[normal].any()
    assert table.masks[~normal].any(axis=(1, 2)).all()


def test_unknown_labels_and_masks_add_nothing_to_the_loss() -> None:
    """Changing the mask or the logits of an image whose mask or label is not known leaves the loss as it is; where it is known it does not."""
    torch.manual_seed(1)
    features, logits, damage, mask_logits = torch.randn(4, 8), torch.randn(4, 3), torch.randn(4, 5), torch.randn(4, 8, 8)
    masks, masked, labels = torch.rand(4, 8, 8).round(), torch.tensor([True, True, True, False]), torch.tensor([[0], [1], [2], [-1]])

    def loss(m: Tensor, text: Tensor) -> float:
        return float(total_loss((features, [text], damage, mask_logits), m, masked, labels, torch.zeros(4, 5), tasks=("pathology",)))

    for row, changes in ((3, False), (0, True)):
        other_masks, other_logits = masks.clone(), logits.clone()
        other_masks[row], other_logits[row] = 1 - masks[row], logits[row].flip(0) + torch.tensor([1.0, 0, 0])
        assert (abs(loss(other_masks, logits) - loss(masks, logits)) > 1e-4) == changes
        assert (abs(loss(masks, other_logits) - loss(masks, logits)) > 1e-4) == changes
    unknown = torch.full((4, 1), -1)
    nothing = total_loss((features, [logits], damage, mask_logits), masks, torch.zeros(4, dtype=torch.bool), unknown, torch.zeros(4, 5), tasks=["a"])
    assert torch.isfinite(nothing)


def test_spread_penalties_equal_slow_twins() -> None:
    """VICReg's variance and covariance terms, sum by sum."""
    features = torch.from_numpy(np.random.default_rng(1).normal(size=(20, 4)) * [0.3, 1, 2, 1])
    values = features.numpy() - features.numpy().mean(axis=0)
    table = [[sum(values[n, i] * values[n, j] for n in range(20)) / 19 for j in range(4)] for i in range(4)]
    hinge = np.mean([max(0.0, 1 - np.sqrt(table[i][i] + 1e-4)) for i in range(4)])
    off = sum(table[i][j] ** 2 for i in range(4) for j in range(4) if i != j) / 4
    variance, covariance = spread_penalties(features)
    assert (float(variance), float(covariance)) == pytest.approx((hinge, off))


def test_masks_move_with_their_images() -> None:
    """Mirror and shift are the same for an image and its mask, and images differ in theirs."""
    planes = torch.rand(40, 1, 16, 16).repeat(1, 2, 1, 1)
    out = moved(planes, draws=torch.Generator().manual_seed(1))
    assert torch.equal(out[:, 0], out[:, 1])
    assert sum(bool(torch.equal(a, b)) for a, b in zip(out, planes, strict=True)) < 5
    assert {float(v) for v in out[0].unique()} <= {float(v) for v in planes[0].unique()}


def test_damage_is_as_strong_as_it_says() -> None:
    """Frames with all strengths 0 are untouched, the others are not; strengths are shares of the largest."""
    images = to_unit(noise(64, seed=2)) * 0.5
    out, strength = damaged(images, draws=torch.Generator().manual_seed(1))
    untouched = (strength == 0).all(dim=1)
    same = (out - images).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert torch.equal(untouched, same)
    assert 20 < int(untouched.sum()) < 50
    assert float(strength.abs().max()) <= 1


def test_damage_equals_scipy() -> None:
    """Blur and median are those of scipy, strength by strength; contrast and brightness by their formulas; strength 0 changes nothing."""
    images = to_unit(noise(3, seed=2)) * 0.4
    plain = images.squeeze(1).double().numpy()
    sigma = torch.tensor([0.0, 0.7, 1.5])
    slow = np.stack([gaussian_filter(p, float(s), radius=6, mode="nearest") if s else p for p, s in zip(plain, sigma, strict=True)])
    assert degrade.blurred(images, sigma).squeeze(1).numpy() == pytest.approx(slow, abs=1e-5)
    median = np.stack([median_filter(p, 3, mode="nearest") for p in plain])
    half = degrade.despeckled(images, torch.tensor([0.0, 0.5, 1.0])).squeeze(1).numpy()
    assert half == pytest.approx(plain + (median - plain) * np.array([0, 0.5, 1])[:, None, None], abs=1e-5)
    wider = degrade.stretched(images, torch.tensor([0.0, 0.2, -0.5])).squeeze(1).numpy()
    assert wider.std(axis=(1, 2)) == pytest.approx(plain.std(axis=(1, 2)) * np.exp([0, 0.2, -0.5]), rel=1e-4)
    assert degrade.brightened(images, torch.full((3,), 0.1)).squeeze(1).numpy() == pytest.approx(plain + 0.1, abs=1e-6)
    loud = degrade.noisy(images, torch.tensor([0.0, 0.1, 0.1]), draws=torch.Generator().manual_seed(1)).squeeze(1).numpy() - plain
    assert loud.std(axis=(1, 2)) == pytest.approx([0, 0.1, 0.1], abs=0.01)
    with pytest.raises(ConfigError):
        degrade.blurred(images, torch.tensor([0.0, 1.0, 4.0]))


def test_the_heads_fit_their_tasks() -> None:
    """One head a task with one logit a value, a mask of 8 x 8, five kinds of damage, whatever the number of stages."""
    for widths in ((8, 8, 16), (8, 8, 16, 16)):
        model = Tasks(TINY.model_copy(update={"widths": widths}), {"a": ("x", "y"), "b": ("1", "2", "3")}, dropout=0.0)
        features, logits, damage, mask = model(to_unit(noise(2)))
        assert [tuple(part.shape) for part in (features, *logits, damage, mask)] == [(2, 8), (2, 2), (2, 3), (2, 5), (2, 8, 8)]
