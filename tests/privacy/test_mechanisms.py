"""Vote and means: one patient moves them by at most their bound, whatever the images; noise and post-processing are as promised."""

import itertools

import numpy as np
import pytest

from busgen_core.errors import InputError
from busgen_core.labels import Pathology
from busgen_core.phantom import simulate_batch
from busgen_core.styles import PLAIN, STYLES, restyle
from busgen_privacy.cohort import Cohort
from busgen_privacy.dp.means import BOUND, CLIP_NORM, COUNT_SHARE, class_sums, contribution, expected_deviation, from_sums
from busgen_privacy.dp.noise import SeededGaussian
from busgen_privacy.dp.reference import NUMBERS, Reference, build, coarse
from busgen_privacy.dp.votes import ballot, mixture, vote
from tests.privacy.small import cohort

CLASSES = list(Pathology)
QUIET = 0.05  # the smallest noise that there is


@pytest.fixture(scope="module")
def reference() -> Reference:
    """A reference made of phantoms."""
    labels = [CLASSES[i % 3] for i in range(90)]
    images = [simulate_batch([p], size=64, seeds=[i])[0].image for i, p in enumerate(labels)]
    return build(np.stack(images), np.array([p.class_index for p in labels]))


@pytest.fixture(scope="module")
def people() -> Cohort:
    """Patients with one to five images, and one whose images are extreme."""
    found = cohort([1, 2, 5, 1, 3], size=64)
    images = found.images.copy()
    images[0] = np.where(np.indices(images[0].shape).sum(0) % 2, 255, 0)
    return Cohort(images, found.classes, found.boxes, found.patients)


def without(people: Cohort, patient: str) -> Cohort:
    """The neighbouring cohort."""
    rows = [i for i, key in enumerate(people.patients) if key != patient]
    return Cohort(people.images[rows], *(tuple(column[i] for i in rows) for column in (people.classes, people.boxes, people.patients)))


def test_a_patient_has_one_vote(reference: Reference, people: Cohort) -> None:
    """A ballot is non-negative and sums to 1, for one image and for five, so its L2 norm is at most 1."""
    for rows in people.patient_rows().values():
        votes = ballot(reference, people, rows)
        assert votes.min() >= 0
        assert votes.sum() == pytest.approx(1)
        assert np.linalg.norm(votes) <= 1 + 1e-12


def test_removing_a_patient_moves_the_histogram_by_one_vote(reference: Reference, people: Cohort) -> None:
    """The same seed draws the same noise, so the difference of two noised histograms is the patient's ballot."""
    whole = vote(reference, people, noise_multiplier=2.0, source=SeededGaussian(1))
    for key, rows in people.patient_rows().items():
        rest = vote(reference, without(people, key), noise_multiplier=2.0, source=SeededGaussian(1))
        assert np.abs(whole - rest - ballot(reference, people, rows)).max() < 1e-8


def test_votes_follow_the_gray_map(reference: Reference) -> None:
    """The same new frames in three gray maps: the brighter they are, the brighter the styles that they vote for."""
    frames = np.stack([p.image for p in simulate_batch([Pathology.BENIGN] * 40, size=64, seeds=list(range(500, 540)))])
    brightness = np.array([restyle(frames, style).mean() for style in STYLES])
    found = []
    for index in (3 * 4, PLAIN, 3):  # dark, plain, bright
        people = Cohort(restyle(frames, STYLES[index]), (Pathology.BENIGN,) * 40, (None,) * 40, tuple(f"p{i:02d}" for i in range(40)))
        votes = vote(reference, people, noise_multiplier=QUIET, source=SeededGaussian(0))
        found.append(votes @ brightness / votes.sum())
    assert found[0] + 5 < found[1] < found[2] - 5  # gray levels of 255


def test_mixtures_forget_counts_below_the_noise() -> None:
    """Counts within one deviation of the noise get nothing but everybody's share; the rest is proportional."""
    counts = np.zeros(len(STYLES))
    counts[[3, 5]] = [3.0, 12.0]
    shares = mixture(counts, noise_multiplier=4.0)
    assert shares.sum() == pytest.approx(1)
    assert shares[3] == shares[0] == pytest.approx(0.2 / len(STYLES))
    assert shares[5] == pytest.approx(0.8 + 0.2 / len(STYLES))


def test_a_patients_share_of_the_sum_is_bounded(reference: Reference, people: Cohort) -> None:
    """Whatever the images, a contribution has L2 norm at most the bound; extreme frames meet the clip."""
    norms = [np.linalg.norm(contribution(reference, people, rows)) for rows in people.patient_rows().values()]
    assert max(norms) <= BOUND
    assert max(norms) > 0.99 * BOUND


def test_removing_a_patient_moves_the_sums_by_its_share(reference: Reference, people: Cohort) -> None:
    """With the same noise, two neighbouring cohorts differ by exactly one contribution: nobody else's numbers move."""
    whole = class_sums(reference, people, noise_multiplier=2.0, source=SeededGaussian(2))
    for key, rows in people.patient_rows().items():
        rest = class_sums(reference, without(people, key), noise_multiplier=2.0, source=SeededGaussian(2))
        assert np.abs(whole - rest - contribution(reference, people, rows)).max() < 1e-6


def test_noise_on_the_sums_is_as_loud_as_promised(reference: Reference, people: Cohort) -> None:
    """Over many seeds the noise on each number has deviation noise_multiplier x bound, to 5 %."""
    true = np.sum([contribution(reference, people, rows) for rows in people.patient_rows().values()], axis=0)
    noise = np.stack([class_sums(reference, people, noise_multiplier=3.0, source=SeededGaussian(s)) - true for s in range(12)])
    assert noise.std() == pytest.approx(3.0 * BOUND, rel=0.05)  # 12 x 147 numbers: 4 standard deviations


def test_means_come_from_noised_counts_alone() -> None:
    """Sums are divided by the noised count; a class with too few patients has no mean."""
    sums = np.zeros((3, 1 + NUMBERS))
    sums[:, 0] = np.array([2.0, 40.0, 80.0]) * COUNT_SHARE * CLIP_NORM
    sums[1, 1:] = 20.0
    found = from_sums(sums, noise_multiplier=1.5)
    assert np.isnan(found.means[0]).all()
    assert np.isinf(found.deviation[0])
    assert found.means[1] == pytest.approx(np.full(NUMBERS, 0.5))
    assert found.deviation[2] == pytest.approx(1.5 * BOUND / 80)
    assert expected_deviation(noise_multiplier=1.5, public_cohort=160) == pytest.approx(found.deviation[2])


def test_an_image_measures_the_same_alone(reference: Reference, people: Cohort) -> None:
    """A patient's numbers are computed from that patient's images alone, and coarse images are plain means of parts (slow twin)."""
    parts = coarse(people.images)
    for row, i, j in itertools.product(range(2), range(8), range(8)):
        block = people.images[row, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8].mean() / 127.5 - 1
        assert parts[row, 8 * i + j] == pytest.approx(block)
    assert np.abs(reference.measure(people.images)[:1] - reference.measure(people.images[:1])).max() < 1e-3


def test_an_empty_cohort_is_refused(reference: Reference) -> None:
    """Nobody cannot vote, and has no mean."""
    nobody = Cohort(np.zeros((0, 64, 64), np.uint8), (), (), ())
    for mechanism in (vote, class_sums):
        with pytest.raises(InputError):
            mechanism(reference, nobody, noise_multiplier=1.0, source=SeededGaussian(0))


def test_the_reference_is_centred_on_the_foundation(reference: Reference) -> None:
    """In the plain style every number has mean 0 and deviation 1 over the reference's images."""
    plain = reference.phi[PLAIN]
    assert np.abs(plain.mean(0)).max() < 1e-6
    assert np.abs(plain.std(0) - 1).max() < 1e-3
