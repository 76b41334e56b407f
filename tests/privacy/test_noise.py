"""Noise and Poisson sampling: distribution, independence, freshness."""

import os

import numpy as np
import pytest
import torch
from scipy.stats import binom, kstest

from busgen_privacy.dp.noise import NoiseSource, SecureGaussian, SeededGaussian, poisson_sample

SOURCES = {"secure": SecureGaussian(), "seeded": SeededGaussian(3)}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_noise_is_standard_normal(source: NoiseSource) -> None:
    """Kolmogorov-Smirnov over 100,000 numbers; correct code fails once in a million runs, 2 % too quiet is caught."""
    numbers = source((100, 1000)).flatten().numpy()
    assert numbers.dtype == np.float64
    assert kstest(numbers, "norm").pvalue > 1e-6
    assert kstest(0.96 * numbers, "norm").pvalue < 1e-6  # the test has teeth


def test_extreme_bits_stay_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """All-zero and all-one random bytes give finite noise: the uniform numbers never touch 0 or 1/2."""
    for byte in (b"\x00", b"\xff"):
        monkeypatch.setattr(os, "urandom", lambda n, byte=byte: byte * n)
        assert torch.isfinite(SecureGaussian()((4,))).all()
        assert 0 <= SecureGaussian().uniform(1)[0] < 1


def test_noise_comes_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every secure number is a function of ``os.urandom`` alone: no seed of torch or numpy changes it."""
    monkeypatch.setattr(os, "urandom", lambda n: bytes(i * 37 % 251 for i in range(n)))
    torch.manual_seed(1)
    first = SecureGaussian()((5,))
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(first, SecureGaussian()((5,)))


def test_secure_noise_never_repeats_under_a_seed() -> None:
    """Seeding torch and numpy alike does not repeat secure noise."""
    torch.manual_seed(0)
    first = SecureGaussian().at_step(0)((50,))
    torch.manual_seed(0)
    assert not torch.equal(first, SecureGaussian().at_step(0)((50,)))


def test_seeded_noise_repeats_by_step_and_differs_between_steps() -> None:
    """A seeded source repeats a step exactly and shares nothing between steps or seeds."""
    source = SeededGaussian(1)
    assert torch.equal(source.at_step(4)((9,)), source.at_step(4)((9,)))
    assert not torch.equal(source.at_step(4)((9,)), source.at_step(5)((9,)))
    assert not torch.equal(source.at_step(4)((9,)), SeededGaussian(2).at_step(4)((9,)))


def test_sampling_is_independent_with_the_promised_rate() -> None:
    """Of 200,000 chances a share q is taken (exact binomial, false alarm 2e-9), and step sizes vary as a binomial's do."""
    rate, people, steps = 0.25, 200, 1000
    sizes = np.array([len(poisson_sample(people, rate, SecureGaussian())) for _ in range(steps)])
    assert 1e-9 < binom.cdf(sizes.sum(), people * steps, rate) < 1 - 1e-9
    expected = people * rate * (1 - rate)
    assert 0.7 * expected < sizes.var() < 1.35 * expected  # 6.7 standard deviations of a sample variance over 1000 steps


def test_rate_one_takes_everybody() -> None:
    """With q = 1 no patient is ever left out."""
    assert len(poisson_sample(500, 1.0, SecureGaussian())) == 500
