"""The floor of a measure: what it says of two halves of the same real set.

No finite set is at distance 0 from another one of the same hospital, and coverage of 1 is out of reach for real images too. So
the real set is cut at random into halves, whole patients at a time; a measure of one half against the other is the floor, and
the same half against equally many fake images is what may be compared with it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from busgen_core.errors import ConfigError, InputError
from busgen_core.quality.samples import LEAST_GROUPS, Floats, Indices

LEAST_IMAGES = 20  # in each half, and of the fake set


class Split(NamedTuple):
    """Rows of three samples of one size: two halves of the real set without a patient in common, and fake images."""

    here: Indices
    there: Indices
    fake: Indices


class Level(NamedTuple):
    """A measure over the splits: its mean and the 2.5 % and 97.5 % quantiles. A spread over splits, not a confidence interval."""

    mean: float
    low: float
    high: float


class Floor(NamedTuple):
    """One measure over the splits."""

    floor: Level  # real half against real half
    matched: Level  # real half against as many fake images
    worse_share: float  # splits in which the fake images were worse than the other half; ties count half. 0.5: like real ones


def draw_splits(groups: Indices, fake_count: int, *, repeats: int, seed: int) -> list[Split]:
    """``repeats`` random splits; all three samples of all splits have the same number of images.

    Args:
        groups: Patient of every real image, int64 [n] as ``group_index``.
        fake_count: Fake images there are.

    Raises:
        ConfigError: ``repeats < 1``.
        InputError: too few patients or images for two halves.

    >>> first = draw_splits(np.arange(60), 50, repeats=1, seed=1)[0]
    >>> [len(part) for part in first], set(first.here) & set(first.there)
    ([30, 30, 30], set())
    """
    patients = int(groups.max()) + 1 if len(groups) else 0
    if repeats < 1:
        raise ConfigError(f"{repeats=} must be at least 1")
    if patients < 2 * LEAST_GROUPS:
        raise InputError(f"{patients} real patients cannot be cut into halves; at least {2 * LEAST_GROUPS} are needed")
    rng = np.random.default_rng(seed)
    halves = [_halves(groups, rng) for _ in range(repeats)]
    size = min(fake_count, *(len(half) for pair in halves for half in pair))
    if size < LEAST_IMAGES:
        raise InputError(f"samples would have {size} images; at least {2 * LEAST_IMAGES} real and {LEAST_IMAGES} fake ones are needed")
    return [Split(*(_some(part, size, rng) for part in (*pair, np.arange(fake_count)))) for pair in halves]


def over_splits(splits: Sequence[Split], measure: Callable[[Indices, Indices, bool], float], *, loss: Callable[[float], float]) -> Floor:
    """The floor of one measure.

    Args:
        measure: Takes rows of the real set, rows of the other set, and whether the other set is the fake one.
        loss: Larger where the value is worse.
    """
    floor = np.array([measure(split.here, split.there, False) for split in splits])
    matched = np.array([measure(split.here, split.fake, True) for split in splits])
    worse = [(loss(m) > loss(f)) + (loss(m) == loss(f)) / 2 for m, f in zip(matched, floor, strict=True)]
    return Floor(_level(floor), _level(matched), float(np.mean(worse)))


def _halves(groups: Indices, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Patients in random order; the first ones with half of the images are one half."""
    order = rng.permutation(int(groups.max()) + 1)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    images_until = np.cumsum(np.bincount(groups)[order])
    first = place[groups] <= np.abs(images_until - len(groups) / 2).argmin()
    return np.flatnonzero(first), np.flatnonzero(~first)


def _some(rows: Indices, size: int, rng: np.random.Generator) -> Indices:
    return np.sort(rng.choice(rows, size, replace=False))


def _level(values: Floats) -> Level:
    low, high = np.quantile(values, [0.025, 0.975])
    return Level(float(values.mean()), float(low), float(high))
