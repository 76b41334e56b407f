"""Selection: means are met, chances are kept, nobody is chosen twice."""

import numpy as np
import pytest

from busgen_core.errors import ConfigError
from busgen_privacy.dp.means import ClassMeans
from busgen_privacy.selection import agreement, choose, expected_means, inclusion, pool_weights, tempered, tilt


def test_a_tilted_pool_has_the_wanted_mean() -> None:
    """With little ridge the weighted mean is the wanted one; with a great one the weights stay as they were."""
    rng = np.random.default_rng(0)
    phi, wanted = rng.standard_normal((4000, 3)), np.array([0.5, -0.3, 0.0])
    weights = tilt(phi, wanted, np.ones(4000), ridge=1e-6)
    assert weights.sum() == pytest.approx(1)
    assert weights @ phi == pytest.approx(wanted, abs=1e-3)
    assert tilt(phi, wanted, np.ones(4000), ridge=1e6) == pytest.approx(np.full(4000, 1 / 4000), rel=1e-3)


def test_tilting_is_the_smallest_change() -> None:
    """Slow twin in one dimension: theta found by bisection gives the same weights."""
    rng = np.random.default_rng(1)
    phi, ridge, mean = rng.standard_normal(500), 0.4, 0.8
    low, high = -5.0, 5.0
    for _ in range(100):
        theta = (low + high) / 2
        w = np.exp(theta * phi)
        low, high = (low, theta) if w @ phi / w.sum() + ridge * theta > mean else (theta, high)
    assert tilt(phi[:, None], np.array([mean]), np.ones(500), ridge=ridge) == pytest.approx(w / w.sum(), rel=1e-3)


def test_nobody_is_chosen_twice_and_weights_are_kept() -> None:
    """Systematic sampling: distinct rows, each with the chance that ``inclusion`` says, styles by weight."""
    rng = np.random.default_rng(2)
    weights = rng.random((3, 40)) ** 4
    chances, hits, styles = inclusion(weights.sum(0), 12), np.zeros(40), np.zeros(3)
    for _ in range(3000):
        rows, chosen = choose(weights, 12, rng)
        assert len(set(rows.tolist())) == 12
        hits[rows] += 1
        styles += np.bincount(chosen, minlength=3)
    assert np.abs(hits / 3000 - chances).max() < 0.05  # 5 standard deviations of a share of 3,000
    expected = (weights / weights.sum(0) * chances).sum(1)
    assert styles / styles.sum() == pytest.approx(expected / expected.sum(), abs=0.02)


def test_a_pool_that_is_too_small_is_refused() -> None:
    """All of a pool can be chosen; one more cannot."""
    rows, _ = choose(np.ones((1, 5)), 5, np.random.default_rng(0))
    assert rows.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ConfigError):
        choose(np.ones((1, 5)), 6, np.random.default_rng(0))


def test_louder_noise_is_believed_less() -> None:
    """Slow twin of the shrinkage: with both classes' noise alike, shift and contrast shrink by prior / (prior + noise), each by its own."""
    pool = {0: np.zeros(3), 1: np.zeros(3), 2: np.full(3, 0.5)}
    noised = np.array([[0.4] * 3, [1.0, 0.0, -1.0], [1.5, 0.5, 1.5]])
    for deviation in (0.01, 0.3, 3.0):
        found = expected_means(pool, ClassMeans(np.full(3, 50.0), noised, np.full(3, deviation)))
        noise = deviation**2 + 1 / 50
        shift = (noised[1] + noised[2] - 0.5) / 2 * 0.2 / (0.2 + noise / 2)
        contrast = (noised[2] - 0.5 - noised[1]) * 0.05 / (0.05 + 2 * noise)
        assert found[1] == pytest.approx(shift - contrast / 2)
        assert found[2] == pytest.approx(0.5 + shift + contrast / 2)
        assert found[0] == pytest.approx(0.4 * 0.2 / (0.2 + noise))


def test_lesions_move_together_or_not_at_all() -> None:
    """Where a lesion class had too few patients, both keep the mixture's weights: one alone would make up a contrast."""
    phi, classes, means = two_classes(np.random.default_rng(3))
    means.means[2] = np.nan
    weights = pool_weights(phi, classes, np.array([0.5, 0.5]), means, {1: 50, 2: 50})
    assert weights == pytest.approx(1 / 400)


def two_classes(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, ClassMeans]:
    """A pool whose benign and malignant images overlap, in two styles; the hospital's classes differ along the first number."""
    classes = np.repeat([1, 2], 200)
    phi = rng.standard_normal((2, 400, 3))
    means = np.zeros((3, 3))
    means[1, 0], means[2, 0] = -0.8, 0.8
    return phi, classes, ClassMeans(np.array([0.0, 50, 50]), means, np.full(3, 0.05))


def test_images_on_the_wrong_side_are_passed_over() -> None:
    """Agreement grows with the distance on the class's own side and knows nothing of other numbers."""
    rng = np.random.default_rng(4)
    phi, classes, _ = two_classes(rng)
    lean = np.exp(0.8 * np.where(classes == 2, 1, -1) * phi[:, :, 0])
    found = agreement(phi, classes, lean)
    malignant = classes == 2
    assert np.corrcoef(found[:, malignant].ravel(), phi[:, malignant, 0].ravel())[0, 1] > 0.9
    assert np.corrcoef(found[:, ~malignant].ravel(), phi[:, ~malignant, 0].ravel())[0, 1] < -0.9
    assert abs(np.corrcoef(found[:, malignant].ravel(), phi[:, malignant, 1].ravel())[0, 1]) < 0.3


def test_weights_never_lean_on_fewer_images_than_are_wanted() -> None:
    """Steep weights are evened out just as far as needed; mild ones stay as they are."""
    steep = np.exp(8 * np.random.default_rng(5).random((2, 100)))
    for count in (10, 60, 100):
        images = tempered(steep, count).sum(0)
        assert 1 / np.square(images).sum() >= 0.99 * count
    mild = np.ones((2, 100)) / 200
    assert tempered(mild, 60) == pytest.approx(mild)
    few = tempered(steep, 1)
    assert few == pytest.approx(steep / steep.sum())


def test_a_pool_without_means_follows_the_styles_alone() -> None:
    """Without means every image of a class weighs the same, and styles have their shares; classes sum to 1."""
    phi, classes, means = two_classes(np.random.default_rng(6))
    styles = np.array([0.7, 0.3])
    plain = pool_weights(phi, classes, styles, None, {1: 50, 2: 50})
    assert plain[:, classes == 1].sum(1) == pytest.approx(styles)
    tilted = pool_weights(phi, classes, styles, means, {1: 50, 2: 50})
    for index, sign in ((1, -1), (2, 1)):
        own = classes == index
        assert tilted[:, own].sum() == pytest.approx(1)
        assert sign * (tilted[:, own] * phi[:, own, 0]).sum() > 0.3
