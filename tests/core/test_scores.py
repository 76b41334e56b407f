"""Binned, noised scores and what is computed from them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busgen_core.errors import ConfigError, InputError
from busgen_core.labels import Pathology
from busgen_core.scores import CLASSES, Estimate, Floats, auc, auc_from_counts, noised, operating_point, patient_counts, quantile_edges
from busgen_core.wire import BinnedCounts

EDGES = (0.25, 0.5, 0.75)
LABELS = st.sampled_from(list(Pathology))
IMAGE = st.tuples(st.floats(allow_nan=True, width=32), LABELS, st.sampled_from("abcdef"))


def silent(exact: Floats) -> Floats:
    return exact


def histogram(images: list[tuple[float, Pathology, str]]) -> Floats:
    return patient_counts(np.array([i[0] for i in images]), [i[1] for i in images], [i[2] for i in images], EDGES)


def drawn(rng: np.random.Generator, *, benign: int, malignant: int, apart: float, edges: tuple[float, ...], noise: float) -> BinnedCounts:
    """A made-up site whose scores are normal, ``apart`` standard deviations between the classes."""
    scores = np.r_[rng.normal(size=benign), rng.normal(apart, 1, malignant)]
    labels = [Pathology.BENIGN] * benign + [Pathology.MALIGNANT] * malignant
    counts = patient_counts(scores, labels, [str(i) for i in range(len(scores))], edges)
    return noised(counts, noise=noise, mechanism=lambda exact: exact + rng.normal(scale=noise, size=exact.shape))


def test_auc_equals_the_slow_count_of_pairs() -> None:
    """The ranked formula equals comparing every pair, ties half; swapping classes mirrors it."""
    rng = np.random.default_rng(1)
    high, low = rng.integers(0, 6, 40).astype(float), rng.integers(0, 5, 30).astype(float)
    pairs = np.mean([(h > low_) + (h == low_) / 2 for h in high for low_ in low])
    assert auc(high, low) == pytest.approx(pairs, abs=1e-12)
    assert auc(low, high) == pytest.approx(1 - pairs, abs=1e-12)
    with pytest.raises(InputError):
        auc([], low)


@given(st.lists(IMAGE, max_size=30))
@settings(max_examples=150, deadline=None)
def test_one_patient_moves_the_histogram_by_at_most_one(images: list[tuple[float, Pathology, str]]) -> None:
    """Sensitivity: without any one patient, whoever, the histogram differs by at most 1 in L2 norm, NaN scores included."""
    whole = histogram(images)
    for patient in "abcdef":
        rest = histogram([image for image in images if image[2] != patient])
        assert np.linalg.norm(whole - rest) <= 1 + 1e-9
    patients = {i[2] for i in images if i[1] in CLASSES}
    assert whole.sum() == pytest.approx(len(patients))


def test_sensitivity_one_is_reached() -> None:
    """The bound is not loose: a patient whose images fall into one cell moves it by exactly 1."""
    images = [(0.9, Pathology.BENIGN, "a")] * 3
    assert np.linalg.norm(histogram(images)) == pytest.approx(1)


def test_edges_cut_into_equal_parts() -> None:
    """Quantile edges give bins of equal count, survive repeats, and refuse a constant score."""
    scores = np.random.default_rng(2).normal(size=800)
    inside = np.bincount(np.searchsorted(quantile_edges(scores), scores, side="right"))
    assert inside.tolist() == [100] * 8
    assert quantile_edges([0.0] * 90 + [1.0] * 10) == (1.0,)
    with pytest.raises(ConfigError, match="constant"):
        quantile_edges([0.5] * 10)


def test_small_cells_are_hidden_and_do_not_follow_from_the_total() -> None:
    """A cell below the limit is hidden, and never alone in its class."""
    counts = noised(np.array([[20.0, 9.0, 3.0], [4.9, 5.0, 30.0]]), noise=1.0, mechanism=silent)
    assert counts.benign == (20.0, None, None)
    assert counts.malignant == (None, None, 30.0)
    assert counts.benign_total == pytest.approx(32)
    assert counts.malignant_total == pytest.approx(39.9)


def test_hiding_looks_at_the_noised_cell() -> None:
    """An exact 20 that noise makes 4 is hidden, an exact 0 that noise makes 6 is shown: hiding tells nothing exact."""
    counts = noised(
        np.array([[20.0, 0.0, 50.0], [0.0, 0.0, 0.0]]), noise=2.0, mechanism=lambda exact: exact + np.reshape([-16.0, 6, 0, 18, 18, 18], (2, 3))
    )
    assert counts.benign == (None, None, 50.0)
    assert counts.malignant == (18.0, 18.0, 18.0)


def test_noise_is_as_loud_as_stated_and_not_optional() -> None:
    """Each cell gets independent noise of the stated deviation; zero noise is refused."""
    rng = np.random.default_rng(3)
    counts = noised(np.full((2, 2000), 100.0), noise=2.0, mechanism=lambda exact: exact + rng.normal(scale=2.0, size=exact.shape))
    shown = np.array([c for c in counts.benign + counts.malignant if c is not None])
    assert len(shown) == 4000
    assert 1.9 < shown.std() < 2.1  # 4.5 standard errors
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="noise"):
            noised(np.ones((2, 4)), noise=wrong, mechanism=silent)
    with pytest.raises(ConfigError, match="one number for each cell"):
        noised(np.ones((2, 4)), noise=1.0, mechanism=lambda exact: exact[0])


def test_auc_of_clean_counts_is_the_auc_of_the_bins() -> None:
    """Without noise and hiding, the AUC from counts is the exact AUC of the binned scores."""
    rng = np.random.default_rng(4)
    bins_benign, bins_malignant = rng.integers(0, 4, 300), np.minimum(rng.integers(0, 6, 200), 3)
    rows = [tuple(map(float, np.bincount(b, minlength=4))) for b in (bins_benign, bins_malignant)]
    counts = BinnedCounts(benign=rows[0], malignant=rows[1], benign_total=300, malignant_total=200, noise=0, suppressed_below=0)
    assert auc_from_counts(counts).value == pytest.approx(auc(bins_malignant.astype(float), bins_benign.astype(float)), abs=1e-12)


@pytest.mark.parametrize(("sites", "apart"), [(1, 1.2), (3, 0.6)])
def test_interval_holds_the_truth_as_often_as_it_says(sites: int, apart: float) -> None:
    """A 95 % interval covers the true AUC in 95 % of made-up sites; 60 trials, below 85 % has a chance of 3 in 1000."""
    rng = np.random.default_rng(5)
    edges = quantile_edges(np.r_[rng.normal(size=20_000), rng.normal(apart, 1, 20_000)])
    truth = drawn(rng, benign=200_000, malignant=200_000, apart=apart, edges=edges, noise=1e-9)
    expected = auc_from_counts(truth).value
    estimates = [auc_from_counts([drawn(rng, benign=80, malignant=50, apart=apart, edges=edges, noise=2.0) for _ in range(sites)]) for _ in range(60)]
    inside = np.mean([e.low <= expected <= e.high for e in estimates])
    assert inside >= 0.85
    assert np.mean([e.high - e.low for e in estimates]) < 0.35  # the test has teeth: [0, 1] would cover as well


def test_more_noise_widens_the_interval() -> None:
    """The interval knows of the noise, not only of the number of patients."""
    rows = (40.0, 30.0, 20.0, 10.0), (10.0, 20.0, 30.0, 40.0)
    quiet, loud = (
        auc_from_counts(BinnedCounts(benign=rows[0], malignant=rows[1], benign_total=100, malignant_total=100, noise=n, suppressed_below=5))
        for n in (0.5, 6.0)
    )
    assert quiet.value == loud.value
    assert loud.high - loud.low > 1.2 * (quiet.high - quiet.low)


def test_pooling_sites_narrows_the_interval() -> None:
    """Four sites alike give the same AUC with about half the width."""
    site = BinnedCounts(benign=(40, 30, 20, 10), malignant=(10, 20, 30, 40), benign_total=100, malignant_total=100, noise=2, suppressed_below=5)
    one, four = auc_from_counts(site), auc_from_counts([site] * 4)
    assert one.value == pytest.approx(four.value)
    assert 0.4 < (four.high - four.low) / (one.high - one.low) < 0.6


def test_operating_point_reads_the_table() -> None:
    """Sensitivity and specificity are the shares on either side of the edge nearest to the wanted specificity."""
    site = BinnedCounts(benign=(50, 38, 8, 4.5), malignant=(5, 15, 20, 60), benign_total=100.5, malignant_total=100, noise=1, suppressed_below=0)
    point = operating_point(site, specificity=0.9)
    assert point.first_bin == 2
    assert point.specificity.value == pytest.approx(88 / 100.5)
    assert point.sensitivity.value == pytest.approx(0.8)
    for rate in point[1:]:
        assert isinstance(rate, Estimate)
        assert 0 <= rate.low < rate.value < rate.high <= 1


def test_counts_that_cannot_be_used_are_named() -> None:
    """No sites, other bins, or a class without patients end in an InputError, never in NaN."""
    one = BinnedCounts(benign=(9, 9), malignant=(9, 9), benign_total=18, malignant_total=18, noise=1, suppressed_below=5)
    three = one.model_copy(update={"benign": (9, 9, 9), "malignant": (9, 9, 9)})
    uneven = one.model_copy(update={"benign": (9, 9, 9)})
    nobody = one.model_copy(update={"malignant": (None, None), "malignant_total": -3.0})
    for wrong in ([], [one, three], uneven, nobody):
        with pytest.raises(InputError):
            auc_from_counts(wrong)


def test_all_hidden_is_still_an_estimate() -> None:
    """With every cell of a class hidden the total is shared evenly: AUC one half, a wide interval, no crash."""
    site = BinnedCounts(benign=(None,) * 4, malignant=(None,) * 4, benign_total=12, malignant_total=10, noise=2, suppressed_below=5)
    estimate = auc_from_counts(site)
    assert estimate.value == pytest.approx(0.5)
    assert estimate.high - estimate.low > 0.2


def test_edges_must_increase() -> None:
    """Edges from the wire that do not increase, or are not finite, are refused before anything is counted."""
    for wrong in ((), (0.5, 0.5), (0.7, 0.2), (float("nan"),)):
        with pytest.raises(ConfigError, match="edges"):
            patient_counts(np.zeros(1), [Pathology.BENIGN], ["a"], wrong)
