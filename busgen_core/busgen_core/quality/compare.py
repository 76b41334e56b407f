"""Every measure of a generated set against a real one, each with its interval and beside its floor."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from busgen_core.errors import InputError
from busgen_core.quality import neighbours
from busgen_core.quality.floor import Floor, Level, draw_splits, over_splits
from busgen_core.quality.intervals import percentile, replicated_means
from busgen_core.quality.kid import kid, kid_value
from busgen_core.quality.report import Better, MeasureResult, QualityReport, Range
from busgen_core.quality.samples import Features, Floats, Indices, checked, checked_frames, group_index
from busgen_core.quality.speckle import STATISTICS, frame_statistics
from busgen_core.quality.vendi import unit_rows, vendi, vendi_value
from busgen_core.scores import Estimate

LARGEST = 4000  # images of a set that are measured; a random choice of larger sets
SPLITS = 20
LEAST_SPECKLED = 0.5  # share of frames with a homogeneous patch
BATCH = 512  # frames that an encoder is given at a time
LOSS: dict[Better, Callable[[float], float]] = {"lower": float, "higher": lambda value: -value, "zero": abs}


class Encoder(Protocol):
    """Anything that turns frames into features: the shipped encoder, or a hospital's own network behind a function.

    Row i must depend on frame i alone; the same frame gives the same row.
    """

    def __call__(self, images: NDArray[np.uint8], /) -> Features:
        """Features, float32 [n, d], of frames, uint8 [n, px, px]."""
        ...


class _Sets(NamedTuple):
    """Everything that is measured, checked."""

    real: Floats  # features [n, d]
    fake: Floats  # features [m, d]
    real_groups: Indices
    fake_groups: Indices
    real_speckle: Floats  # [n, 4]
    fake_speckle: Floats  # [m, 4]


class _Task(NamedTuple):
    name: str
    better: Better
    whole: Callable[[], Estimate]
    part: Callable[[Indices, Indices, bool], float]  # real rows, rows of the other set, whether that is the fake one


def compare(
    real_images: NDArray[np.uint8],
    fake_images: NDArray[np.uint8],
    *,
    encoder: Encoder,
    groups: Sequence[str] | None = None,
    fake_groups: Sequence[str] | None = None,
    seed: int,
    splits: int = SPLITS,
    encoder_name: str | None = None,
    quiet: bool = False,
) -> QualityReport:
    """Measure a fake set against a real one: KID, density, coverage, precision, recall, Vendi score and speckle.

    Args:
        real_images: uint8 [n, px, px], px at least 32.
        fake_images: uint8 [m, px, px].
        encoder: Turns frames into features.
        groups: Patient of every real image. Without it images count as independent, and floors and intervals of a set with
            several images a patient are too small.
        fake_groups: The same of the other set, where that one is of patients too (one hospital against another).
        seed: Fixes every random choice.
        splits: Random halves for the floor.
        encoder_name: How the report calls the encoder; its attribute ``name`` or its type's name otherwise.
        quiet: No progress bar.

    Returns:
        The report. Speckle measures are differences, fake less real, of means over images.

    Raises:
        InputError: wrong shapes, features that are not finite, or too few images or patients (at least 40 real images of 10
            patients, 20 fake images).
        CorruptImageError: constant frames.
    """
    rng = np.random.default_rng(seed)
    real, fake = checked_frames(real_images, name="real images"), checked_frames(fake_images, name="fake images")
    if real.shape[1] != fake.shape[1]:
        raise InputError(f"real images have {real.shape[1]} px, fake ones {fake.shape[1]}; bring them to one size")
    index, fake_index = group_index(groups, len(real), name="real groups"), group_index(fake_groups, len(fake), name="fake groups")
    rows, columns = _chosen(len(real), rng), _chosen(len(fake), rng)
    index, fake_index = _numbered(index[rows]), _numbered(fake_index[columns])
    cuts = draw_splits(index, len(columns), repeats=splits, seed=seed)  # before the encoder runs: too few images are refused at once
    sets = _measured(real[rows], fake[columns], index, fake_index, encoder, quiet)
    notes = _no_speckle(sets)
    tasks = [*_feature_tasks(sets, seed), *([] if notes else _speckle_tasks(sets, seed))]
    results = [_result(task, over_splits(cuts, task.part, loss=LOSS[task.better])) for task in tqdm(tasks, desc="measures", disable=quiet)]
    return QualityReport(
        encoder=encoder_name or str(getattr(encoder, "name", getattr(encoder, "__name__", type(encoder).__name__))),
        features=sets.real.shape[1],
        image_px=real.shape[1],
        real_images=len(rows),
        real_patients=int(index.max()) + 1,
        fake_images=len(columns),
        splits=splits,
        split_images=len(cuts[0].here),
        seed=seed,
        measures=tuple(results),
        notes=notes,
    )


def encoded(images: NDArray[np.uint8], encoder: Encoder, *, name: str = "images", quiet: bool = True) -> Floats:
    """Features of the frames, BATCH at a time, checked: float64 [n, d].

    Raises:
        InputError: the encoder gave another number of rows, or values that are not finite.
    """
    starts = tqdm(range(0, len(images), BATCH), desc=f"encode {name}", unit="batch", disable=quiet)
    parts = [np.asarray(encoder(images[start : start + BATCH])) for start in starts]
    if {part.ndim for part in parts} != {2} or len({part.shape[1] for part in parts}) != 1 or sum(map(len, parts)) != len(images):
        raise InputError(f"the encoder must give one row of features for each of the {len(images)} {name}")
    return checked(np.concatenate(parts), name=f"features of {name}")


def _measured(real: NDArray[np.uint8], fake: NDArray[np.uint8], index: Indices, fake_index: Indices, encoder: Encoder, quiet: bool) -> _Sets:
    a, b = encoded(real, encoder, name="real images", quiet=quiet), encoded(fake, encoder, name="fake images", quiet=quiet)
    return _Sets(a, b, index, fake_index, frame_statistics(real), frame_statistics(fake))


def _feature_tasks(sets: _Sets, seed: int) -> list[_Task]:
    return [_kid_task(sets, seed), *_neighbour_tasks(sets, seed), _vendi_task(sets, seed)]


def _no_speckle(sets: _Sets) -> tuple[str, ...]:
    """A note for each set in which too few frames have a patch to measure speckle on."""
    shares = {"real": np.isfinite(sets.real_speckle[:, 0]).mean(), "fake": np.isfinite(sets.fake_speckle[:, 0]).mean()}
    return tuple(
        f"speckle was not compared: {share:.0%} of the {whose} images have a homogeneous patch that is not black, {LEAST_SPECKLED:.0%} are needed"
        for whose, share in shares.items()
        if share < LEAST_SPECKLED
    )


def _kid_task(sets: _Sets, seed: int) -> _Task:
    def part(rows: Indices, others: Indices, fake: bool) -> float:
        other, groups = (sets.fake, sets.fake_groups) if fake else (sets.real, sets.real_groups)
        return kid_value(sets.real[rows], other[others], _numbered(sets.real_groups[rows]), _numbered(groups[others]))

    def whole() -> Estimate:
        return kid(sets.real, sets.fake, seed=seed, groups_a=_names(sets.real_groups), groups_b=_names(sets.fake_groups))

    return _Task("kid", "lower", whole, part)


def _neighbour_tasks(sets: _Sets, seed: int) -> Iterator[_Task]:
    distances = neighbours.Distances.of(sets.real, sets.fake)
    ours, theirs = _names(sets.real_groups), _names(sets.fake_groups)

    def on_part(measure: Callable[[neighbours.Distances], float]) -> Callable[[Indices, Indices, bool], float]:
        def part(rows: Indices, others: Indices, fake: bool) -> float:
            if fake:
                return measure(distances.kept(rows, others))
            within = distances.real
            return measure(neighbours.Distances(within[np.ix_(rows, rows)], within[np.ix_(others, others)], within[np.ix_(rows, others)]))

        return part

    both: list[neighbours.DensityCoverage] = []

    def density_coverage() -> neighbours.DensityCoverage:
        if not both:
            both.append(neighbours.density_coverage(sets.real, sets.fake, groups_real=ours, groups_fake=theirs, seed=seed))
        return both[0]

    yield _Task("density", "higher", lambda: density_coverage().density, on_part(neighbours.density_value))
    yield _Task("coverage", "higher", lambda: density_coverage().coverage, on_part(neighbours.coverage_value))
    yield _Task(
        "precision",
        "higher",
        lambda: neighbours.precision(sets.real, sets.fake, groups_real=ours, groups_fake=theirs, seed=seed),
        on_part(neighbours.precision_value),
    )
    yield _Task(
        "recall",
        "higher",
        lambda: neighbours.recall(sets.real, sets.fake, groups_real=ours, groups_fake=theirs, seed=seed),
        on_part(neighbours.recall_value),
    )


def _vendi_task(sets: _Sets, seed: int) -> _Task:
    real, fake = unit_rows(sets.real, name="features of real images"), unit_rows(sets.fake, name="features of fake images")

    def part(_rows: Indices, others: Indices, of_fake: bool) -> float:
        return vendi_value((fake if of_fake else real)[others])

    return _Task("vendi", "higher", lambda: vendi(sets.fake, groups=_names(sets.fake_groups), seed=seed), part)


def _speckle_tasks(sets: _Sets, seed: int) -> Iterator[_Task]:
    for number, name in enumerate(STATISTICS):
        real, fake = sets.real_speckle[:, number], sets.fake_speckle[:, number]
        yield _Task(name, "zero", _difference(real, fake, sets, seed), _difference_of_parts(real, fake))


def _difference(real: Floats, fake: Floats, sets: _Sets, seed: int) -> Callable[[], Estimate]:
    def whole() -> Estimate:
        replicates = replicated_means(fake, sets.fake_groups, seed=seed) - replicated_means(real, sets.real_groups, seed=seed + 1)
        return percentile(float(np.nanmean(fake) - np.nanmean(real)), replicates)

    return whole


def _difference_of_parts(real: Floats, fake: Floats) -> Callable[[Indices, Indices, bool], float]:
    def part(rows: Indices, others: Indices, of_fake: bool) -> float:
        return float(np.nanmean((fake if of_fake else real)[others]) - np.nanmean(real[rows]))

    return part


def _result(task: _Task, over: Floor) -> MeasureResult:
    whole = task.whole()
    return MeasureResult(
        name=task.name,
        better=task.better,
        value=whole.value,
        low=whole.low,
        high=whole.high,
        matched=_range(over.matched),
        floor=_range(over.floor),
        worse_share=over.worse_share,
    )


def _range(level: Level) -> Range:
    return Range(mean=level.mean, low=level.low, high=level.high)


def _chosen(count: int, rng: np.random.Generator) -> Indices:
    """All rows, or LARGEST of them."""
    return np.arange(count) if count <= LARGEST else np.sort(rng.choice(count, LARGEST, replace=False))


def _numbered(groups: Indices) -> Indices:
    """Group numbers without gaps, from 0."""
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def _names(groups: Indices) -> list[str]:
    return [str(number) for number in groups]
