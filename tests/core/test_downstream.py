"""The downstream classifier."""

import json
import struct
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from busgen_core.downstream import Classifier, ClassifierConfig, Network, augment, train_classifier
from busgen_core.errors import CheckpointError, ConfigError
from busgen_core.labels import Pathology
from busgen_core.scores import auc

LABELS = [(Pathology.BENIGN, Pathology.MALIGNANT)[number % 2] for number in range(96)]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small batches on a busy machine: threads that wait for each other cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def blobs(seed: int, labels: list[Pathology] = LABELS) -> NDArray[np.uint8]:
    """Noise with a dark blob at a chance place: smooth when benign, ragged when malignant."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:64, :64]
    images = rng.normal(140, 25, (len(labels), 64, 64))
    for image, label in zip(images, labels, strict=True):
        angle = np.arctan2(rows - (y := rng.uniform(24, 40)), columns - (x := rng.uniform(24, 40)))
        ragged = 4 * np.sin(7 * angle + rng.uniform(0, 6)) if label is Pathology.MALIGNANT else 0
        image[np.hypot(rows - y, columns - x) < 13 + ragged] -= 70
    clipped: NDArray[np.uint8] = images.clip(0, 255).astype(np.uint8)
    return clipped


@cache
def trained() -> Classifier:
    return train_classifier(blobs(1), LABELS, seed=3, epochs=14)


def separation(classifier: Classifier, images: NDArray[np.uint8]) -> float:
    scores = classifier.predict(images)
    return auc(scores[1::2], scores[::2])


def test_it_learns_a_shape_and_not_the_noise() -> None:
    """Fourteen passes over 96 images of two shapes separate new ones; on shuffled labels nothing is learned of them."""
    assert separation(trained(), blobs(2)) > 0.93
    shuffled = list(np.random.default_rng(0).permutation(np.array(LABELS)))
    mixed = train_classifier(blobs(1), [Pathology(label) for label in shuffled], seed=3, epochs=3)
    assert separation(mixed, blobs(2)) < 0.85


def test_same_seed_gives_the_same_bytes() -> None:
    """Weights depend on data and seed alone: not on torch's global generator, which is left as it was."""
    images, labels = blobs(1)[:16], LABELS[:16]
    torch.manual_seed(1)
    first = train_classifier(images, labels, seed=5, epochs=1).to_bytes()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = train_classifier(images, labels, seed=5, epochs=1).to_bytes()
    assert torch.equal(before, torch.get_rng_state())
    assert first == second
    assert first != train_classifier(images, labels, seed=6, epochs=1).to_bytes()


def test_progress_counts_every_step() -> None:
    """Progress rises by one from 1 to the announced number of steps."""
    seen: list[tuple[int, int]] = []
    train_classifier(blobs(1)[:20], LABELS[:20], seed=0, epochs=2, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(step, 4) for step in range(1, 5)]


def test_normal_images_are_left_out() -> None:
    """Normal images change nothing: the task is benign against malignant."""
    images, labels = blobs(1)[:12], LABELS[:12]
    more = np.concatenate([blobs(9)[:5], images])
    with_normal = train_classifier(more, [Pathology.NORMAL] * 5 + labels, seed=5, epochs=1)
    assert with_normal.to_bytes() == train_classifier(images, labels, seed=5, epochs=1).to_bytes()


@pytest.mark.parametrize(
    ("count", "labels", "epochs"),
    [(4, [Pathology.BENIGN] * 4, 1), (0, [], 1), (4, LABELS[:3], 1), (4, LABELS[:4], 0), (2, [Pathology.NORMAL] * 2, 1)],
    ids=["one class", "nothing", "label missing", "no epoch", "normal only"],
)
def test_what_cannot_be_trained_is_named(count: int, labels: list[Pathology], epochs: int) -> None:
    """Missing classes, labels or epochs are a ConfigError, not a useless model."""
    with pytest.raises(ConfigError):
        train_classifier(blobs(1)[:count], labels, seed=0, epochs=epochs)


def test_prediction_is_a_probability_of_that_image_alone() -> None:
    """Scores lie in [0, 1], do not depend on the rest of the batch, and are the same for the mirror image."""
    images = blobs(4)
    scores = trained().predict(images)
    assert scores.dtype == np.float64
    assert scores.shape == (96,)
    assert ((scores >= 0) & (scores <= 1)).all()
    np.testing.assert_allclose(trained().predict(images[5:6])[0], scores[5], atol=1e-5)
    np.testing.assert_allclose(trained().predict(images[:, :, ::-1].copy()), scores, atol=1e-5)
    assert trained().predict(images[:0]).shape == (0,)
    with pytest.raises(ConfigError, match="uint8"):
        trained().predict(images[:, :32])


def test_brightness_and_contrast_hardly_matter() -> None:
    """A frame with half the contrast and another gain gets almost the same score: devices differ in both."""
    images = blobs(4)[:20]
    other = (images // 2 + 60).astype(np.uint8)
    np.testing.assert_allclose(trained().predict(other), trained().predict(images), atol=0.1)


def test_augmentation_moves_each_image_on_its_own() -> None:
    """Shifts stay within their limit, differ between images, and repeat with the seed."""
    image = torch.full((200, 1, 64, 64), -1.0)
    image[:, 0, 32, 20] = 1.0
    moved = augment(image, torch.Generator().manual_seed(0))
    assert torch.equal(moved, augment(image, torch.Generator().manual_seed(0)))
    places = {divmod(int(frame.argmax()), 64) for frame in moved[:, 0]}
    rows, columns = {row for row, _ in places}, {column for _, column in places}
    assert rows == set(range(28, 37))
    assert columns == set(range(16, 25)) | set(range(39, 48))


def test_bytes_round_trip() -> None:
    """A model read back from its bytes predicts the same and writes the same bytes; no pickle is in them."""
    data = trained().to_bytes()
    again = Classifier.from_bytes(data)
    np.testing.assert_array_equal(again.predict(blobs(2)), trained().predict(blobs(2)))
    assert again.to_bytes() == data
    assert 100_000 < sum(p.numel() for p in again.network.parameters()) < 200_000
    assert len(data) < 1_000_000


def with_header(change: dict[str, str]) -> bytes:
    """The model's bytes with another metadata block."""
    data = trained().to_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length]) | {"__metadata__": change}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def not_finite() -> bytes:
    network = Network(ClassifierConfig())
    with torch.no_grad():
        network.head.bias.fill_(float("nan"))
    return Classifier(ClassifierConfig(), network).to_bytes()


BROKEN = {
    "nothing": lambda: b"",
    "short": lambda: b"\x01",
    "not safetensors": lambda: b"x" * 1000,
    "pickle": lambda: b"\x80\x04\x95" + b"." * 100,
    "huge header": lambda: struct.pack("<Q", 2**62) + b"{}",
    "deep header": lambda: struct.pack("<Q", 100_000) + b"[" * 100_000,
    "header is a list": lambda: struct.pack("<Q", 2) + b"[]",
    "cut": lambda: trained().to_bytes()[:-100],
    "no configuration": lambda: with_header({}),
    "other version": lambda: with_header({"busgen_classifier": '{"version":2}'}),
    "other sizes": lambda: with_header({"busgen_classifier": '{"widths":[8,16,32]}'}),
    "monstrous sizes": lambda: with_header({"busgen_classifier": '{"widths":[80000,80000]}'}),
    "unknown field": lambda: with_header({"busgen_classifier": '{"code":"import os"}'}),
    "not finite": not_finite,
}


@pytest.mark.parametrize("make", BROKEN.values(), ids=BROKEN)
def test_malformed_bytes_end_in_one_error(make) -> None:  # type: ignore[no-untyped-def]
    """Whatever arrives in place of a model ends in a CheckpointError, nothing else, and quickly."""
    with pytest.raises(CheckpointError):
        Classifier.from_bytes(make())
