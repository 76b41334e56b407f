"""Measures on features: each against a slow twin, known answers, intervals that hold the truth."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.linalg import eigvalsh

from busgen_core.errors import ConfigError, InputError
from busgen_core.quality.intervals import bootstrap_mean, jackknife
from busgen_core.quality.kid import kernel, kid, kid_subsets, kid_value
from busgen_core.quality.neighbours import Distances, coverage_value, density_coverage, precision, recall
from busgen_core.quality.samples import Features, Floats, Indices
from busgen_core.quality.vendi import unit_rows, vendi, vendi_value
from busgen_core.scores import Estimate


def drawn(seed: int, count: int, *, dim: int = 6, shift: float = 0.0, per: int = 1) -> tuple[Floats, list[str]]:
    """Normal features, ``per`` correlated images a patient, the first column shifted."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(count // per), per)
    shared = rng.normal(size=(count // per, dim))[patients]
    rows = rng.normal(size=(count, dim)) if per == 1 else np.sqrt(0.6) * shared + np.sqrt(0.4) * rng.normal(size=(count, dim))
    rows[:, 0] += shift
    return rows, [f"p{i}" for i in patients]


def slow_kid(a: Floats, b: Floats, groups_a: list[str], groups_b: list[str]) -> float:
    """MMD^2 pair by pair."""

    def k(x: Floats, y: Floats) -> float:
        return float((sum(x[i] * y[i] for i in range(len(x))) / len(x) + 1) ** 3)

    def within(rows: Floats, groups: list[str]) -> float:
        return float(np.mean([k(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if groups[i] != groups[j]]))

    return within(a, groups_a) + within(b, groups_b) - 2 * float(np.mean([k(x, y) for x in a for y in b]))


def slow_reach(rows: Floats, k: int) -> list[float]:
    return [sorted(float(np.linalg.norm(x - y)) for j, y in enumerate(rows) if j != i)[k - 1] for i, x in enumerate(rows)]


@pytest.mark.parametrize("per", [1, 2])
def test_kid_equals_the_mean_over_pairs(per: int) -> None:
    """The matrix formula equals a loop over pairs, with and without several images a patient."""
    (a, groups_a), (b, groups_b) = drawn(1, 12, per=per), drawn(2, 14, shift=1, per=per)
    assert kid(a, b, seed=1, groups_a=groups_a, groups_b=groups_b).value == pytest.approx(slow_kid(a, b, groups_a, groups_b), rel=1e-9)


def test_kid_in_blocks_is_kid_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many rows of the kernel are in memory changes nothing."""
    (a, groups_a), (b, _) = drawn(1, 40, per=2), drawn(2, 33)
    whole = kid(a, b, seed=1, groups_a=groups_a)
    monkeypatch.setattr("busgen_core.quality.kid.ROWS", 7)
    assert kid(a, b, seed=1, groups_a=groups_a) == pytest.approx(whole)


def test_kid_is_unbiased_where_there_is_no_difference() -> None:
    """Over many pairs of samples of one distribution KID averages to 0, also with two images a patient; leaving pairs of a patient in would not."""
    values, naive = [], []
    for seed in range(150):
        (a, groups), (b, _) = drawn(2 * seed, 30, per=2), drawn(2 * seed + 1, 30, per=2)
        index = np.unique(groups, return_inverse=True)[1]
        values.append(kid_value(a, b, index, index))
        naive.append(kid_value(a, b, np.arange(30), np.arange(30)))
    error = float(np.std(values) / np.sqrt(len(values)))
    assert abs(np.mean(values)) < 4 * error
    assert np.mean(naive) > 4 * error  # the test has teeth


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_kid_interval_holds_the_truth(shift: float) -> None:
    """A 95 % interval holds the expected value in at least 85 % of 60 trials (a chance of 3 in 1000 to fail), with two images a patient."""
    truth = np.mean(
        [kid_value(drawn(s, 400, per=2)[0], drawn(s + 999, 400, per=2, shift=shift)[0], *[np.arange(400) // 2] * 2) for s in range(4000, 4040)]
    )
    inside = []
    for seed in range(60):
        (a, groups), (b, _) = drawn(2 * seed, 100, per=2), drawn(2 * seed + 1, 100, per=2, shift=shift)
        estimate = kid(a, b, seed=seed, groups_a=groups, groups_b=groups, repeats=200)
        inside.append(estimate.low <= truth <= estimate.high)
    assert np.mean(inside) >= 0.85


def test_kid_grows_with_distance() -> None:
    """A larger shift gives a larger KID, and the interval of a large one excludes 0."""
    a = drawn(1, 200)[0]
    values = [kid(a, drawn(2, 200, shift=shift)[0], seed=1, repeats=100) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert [v.value for v in values] == sorted(v.value for v in values)
    assert values[0].low < 0 < values[-1].low


def test_subset_kid_agrees_with_the_whole() -> None:
    """The mean over subsets estimates what the full sample estimates."""
    a, b = drawn(1, 300)[0], drawn(2, 300, shift=1)[0]
    subsets = kid_subsets(a, b, seed=1, size=60, count=200)
    assert subsets.mean == pytest.approx(kid(a, b, seed=1, repeats=10).value, abs=4 * subsets.deviation / np.sqrt(200))
    with pytest.raises(ConfigError, match="size"):
        kid_subsets(a, b, seed=1, size=301)


def test_kernel_is_the_published_one() -> None:
    """(x.y / d + 1)^3."""
    assert kernel(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]])).item() == pytest.approx((11 / 2 + 1) ** 3)


def test_density_and_coverage_equal_slow_twins() -> None:
    """Balls counted one by one give the same numbers."""
    a, b, k = drawn(1, 25)[0], drawn(2, 20, shift=1)[0], 5
    radius = slow_reach(a, k)
    inside = [[float(np.linalg.norm(x - y)) <= radius[i] for y in b] for i, x in enumerate(a)]
    density = sum(sum(row) for row in inside) / (k * len(b))
    coverage = sum(any(row) for row in inside) / len(a)
    found = density_coverage(a, b, k)
    assert (found.density.value, found.coverage.value) == pytest.approx((density, coverage))


def test_recall_and_precision_equal_slow_twins() -> None:
    """Manifolds looked up one by one give the same numbers, and precision is recall the other way round."""
    a, b, k = drawn(1, 25)[0], drawn(2, 20, shift=1.5)[0], 3
    of_fake, of_real = slow_reach(b, k), slow_reach(a, k)
    reached = [any(np.linalg.norm(x - y) <= of_fake[j] for j, y in enumerate(b)) for x in a]
    among = [any(np.linalg.norm(x - y) <= of_real[i] for i, x in enumerate(a)) for y in b]
    assert recall(a, b).value == pytest.approx(np.mean(reached))
    assert precision(a, b).value == pytest.approx(np.mean(among))
    assert 0 < np.mean(reached) < 1
    assert 0 < np.mean(among) < 1


def test_real_with_itself_is_covered() -> None:
    """Coverage, precision and recall of a set with itself are 1; copies of one image leave nearly all of it uncovered."""
    a = drawn(1, 60)[0]
    assert density_coverage(a, a).coverage.value == recall(a, a).value == precision(a, a).value == 1.0
    one = np.repeat(a[:1], 60, axis=0)
    assert density_coverage(a, one).coverage.value < 0.2
    assert recall(a, one).value < 0.05


def test_density_is_one_for_alike_sets() -> None:
    """Two samples of one distribution have density 1 within 4 standard errors (E = 1; Naeem et al. 2020, section 4.3)."""
    values = [density_coverage(drawn(s, 80)[0], drawn(s + 500, 80)[0]).density.value for s in range(12)]
    assert abs(np.mean(values) - 1) < 4 * np.std(values) / np.sqrt(len(values))


def test_coverage_of_alike_sets_is_the_known_one() -> None:
    """Expected coverage of two samples of one distribution: 1 - prod (N-1)...(N-k) / (2N-1)...(2N-k); Naeem et al. 2020, equation 10."""
    n, k = 80, 5
    expected = 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
    values = [coverage_value(Distances.of(drawn(s, n)[0], drawn(s + 500, n)[0])) for s in range(60)]
    assert abs(np.mean(values) - expected) < 4 * np.std(values) / np.sqrt(len(values))


def test_vendi_of_known_sets() -> None:
    """Identical rows count as 1, n orthogonal rows as n, two of each of three as 3."""
    assert vendi(np.ones((10, 4))).value == pytest.approx(1)
    assert vendi(np.eye(9)).value == pytest.approx(9)
    assert vendi(np.repeat(np.eye(5), 2, axis=0)).value == pytest.approx(5)


@pytest.mark.parametrize("count", [12, 40])
def test_vendi_equals_the_slow_twin(count: int) -> None:
    """exp of the entropy of the n x n cosine matrix's eigenvalues, whichever of n and d is smaller."""
    rows = drawn(3, count, dim=20)[0]
    cosines = np.array([[x @ y / np.sqrt((x @ x) * (y @ y)) for y in rows] for x in rows])
    values = [v for v in eigvalsh(cosines / count) if v > 1e-12]
    assert vendi_value(unit_rows(rows)) == pytest.approx(np.exp(-sum(v * np.log(v) for v in values)), rel=1e-9)


NEAR: dict[str, Callable[[Floats, Floats, list[str]], Estimate]] = {
    "density": lambda a, b, groups: density_coverage(a, b, groups_real=groups, groups_fake=groups).density,
    "coverage": lambda a, b, groups: density_coverage(a, b, groups_real=groups, groups_fake=groups).coverage,
    "recall": lambda a, b, groups: recall(a, b, groups_real=groups, groups_fake=groups),
    "vendi": lambda a, b, groups: vendi(b, groups=groups),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NEAR)
def test_jackknife_interval_holds_the_expected_value(name: str) -> None:
    """A 95 % interval holds the value expected at this size in at least 85 % of 60 trials, two images a patient, and says something."""
    pairs = [(drawn(2 * s, 80, per=2), drawn(2 * s + 1, 80, per=2, shift=1)) for s in range(60)]
    found = [NEAR[name](a, b, groups) for (a, groups), (b, _) in pairs]
    truth = np.mean([f.value for f in found])
    assert np.mean([f.low <= truth <= f.high for f in found]) >= 0.85
    assert np.mean([f.high - f.low for f in found]) < 3 * 3.92 * np.std([f.value for f in found])


def test_bootstrap_would_be_wrong_for_neighbours() -> None:
    """Why neighbours get a jackknife: drawing images with replacement moves coverage of real with itself's like far off its value."""
    rng = np.random.default_rng(1)
    a, b = drawn(1, 100)[0], drawn(2, 100)[0]
    found = density_coverage(a, b).coverage
    resampled = [coverage_value(Distances.of(a[rng.integers(100, size=100)], b[rng.integers(100, size=100)])) for _ in range(50)]
    assert np.quantile(resampled, 0.975) < found.value
    assert found.low < found.value <= found.high


def test_jackknife_of_a_mean_is_the_known_interval() -> None:
    """With as many blocks as patients the jackknife of a mean is the usual standard error; groups of two widen it as they must."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=40)
    doubled = np.repeat(values, 2)

    def mean_of(data: Floats) -> Callable[[list[Indices]], Floats]:
        return lambda kept: np.array([data[kept[0]].mean()])

    single = jackknife(mean_of(values), [np.arange(40)], seed=1)[0]
    grouped = jackknife(mean_of(doubled), [np.repeat(np.arange(40), 2)], seed=1)[0]
    assert single.high - single.value == pytest.approx(2.0227 * values.std(ddof=1) / np.sqrt(40), rel=1e-3)  # t quantile, 39 degrees
    assert (grouped.low, grouped.high) == pytest.approx((single.low, single.high))


def test_bootstrap_of_a_mean_knows_patients() -> None:
    """Each image twice under one patient does not narrow the interval; taken as separate images it does. NaN are left out."""
    values = np.random.default_rng(1).normal(size=60)
    single, doubled = bootstrap_mean(values, np.arange(60), seed=1), np.repeat(values, 2)
    grouped, naive = bootstrap_mean(doubled, np.repeat(np.arange(60), 2), seed=1), bootstrap_mean(doubled, np.arange(120), seed=1)
    assert grouped == pytest.approx(single)
    assert naive.high - naive.low < 0.8 * (single.high - single.low)
    assert bootstrap_mean(np.r_[values, np.nan], np.arange(61), seed=1).value == pytest.approx(values.mean())


BAD: dict[str, Features] = {
    "one dimension": np.ones(20),
    "no rows": np.ones((0, 6)),
    "not finite": np.r_[np.ones((19, 6)), np.full((1, 6), np.nan)],
    "infinite": np.r_[np.ones((19, 6)), np.full((1, 6), np.inf)],
    "text": np.full((20, 6), "x"),
    "too few": np.ones((4, 6)),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_features_are_refused(bad: Features) -> None:
    """Every measure refuses what are no features, in an InputError and without a number."""
    good = drawn(1, 20)[0]
    for measure in (lambda: kid(good, bad, seed=1), lambda: density_coverage(good, bad), lambda: recall(bad, good), lambda: vendi(bad)):
        with pytest.raises(InputError):
            measure()


def test_other_wrong_arguments_are_refused() -> None:
    """Another width, groups of another length, too many neighbours, none, and rows without direction are named."""
    good = drawn(1, 20)[0]
    with pytest.raises(InputError, match="columns"):
        kid(good, good[:, :3], seed=1)
    with pytest.raises(InputError, match="groups"):
        kid(good, good, seed=1, groups_a=["p"] * 19)
    with pytest.raises(InputError, match="too few"):
        kid(good, good, seed=1, groups_a=["p"] * 20)
    with pytest.raises(InputError, match="neighbours"):
        density_coverage(good, good, 19)
    with pytest.raises(ConfigError, match="k=0"):
        recall(good, good, 0)
    with pytest.raises(InputError, match="zero"):
        vendi(np.r_[good, np.zeros((1, 6))])
