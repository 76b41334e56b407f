"""Attacks on released images: each finds a planted leak, none finds one where nothing was learnt, and each equals its slow twin."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.neighbors import KernelDensity

from busgen_core.errors import CheckpointError, InputError
from busgen_core.labels import Pathology
from busgen_privacy.attacks import attributes, closest_record, domias, gan_leaks, monte_carlo, neighbours, reidentify
from busgen_privacy.attacks.attributes import label_leak, scanner_leak, site_leak
from busgen_privacy.attacks.base import BlackBoxAttack, Features, MemberScores
from busgen_privacy.attacks.blackbox import STANDARD, cost, run_all
from busgen_privacy.attacks.closest_record import closest_record as measure_closest
from busgen_privacy.attacks.holdout_disclosure import holdout_disclosure, member_share
from busgen_privacy.cohort import Cohort
from busgen_privacy.statistics import auc

WIDTH = 24
Side = tuple[Cohort, Features]


def drawn(rng: np.random.Generator, count: int) -> Features:
    """Features of images of different people: a few directions matter much, many little."""
    return (rng.normal(size=(count, WIDTH)) / np.sqrt(np.arange(1, WIDTH + 1))).astype(np.float32)


def people(rng: np.random.Generator, count: int, prefix: str) -> Side:
    """Patients with one to three images each."""
    keys = tuple(f"{prefix}{i:03d}" for i in range(count) for _ in range(1 + i % 3))
    blank = np.zeros((len(keys), 2, 2), np.uint8)
    return Cohort(blank, (Pathology.BENIGN,) * len(keys), (None,) * len(keys), keys), drawn(rng, len(keys))


def part(side: Side, keep: Callable[[str], bool]) -> Side:
    """A side without some of its patients."""
    cohort, features = side
    rows = [i for i, key in enumerate(cohort.patients) if keep(key)]
    names = tuple(cohort.patients[i] for i in rows)
    return Cohort(cohort.images[rows], (Pathology.BENIGN,) * len(rows), (None,) * len(rows), names), features[rows]


def scene(seed: int, *, learnt: bool, members: int = 30, holdout: int = 30) -> tuple[Features, Features, Side, Side]:
    """Released images that resemble the members' (noise of a quarter), or nobody's; reference images; both sides."""
    rng = np.random.default_rng(seed)
    inside, outside = people(rng, members, "m"), people(rng, holdout, "h")
    released = drawn(rng, 300)
    if learnt:
        released = inside[1][rng.integers(len(inside[1]), size=300)] + released / 4
    return released.astype(np.float32), drawn(rng, 200), inside, outside


def verifier(seed: int = 0, *, blind: bool = False) -> reidentify.Verifier:
    """Trained on 120 public patients with two images each: half of the directions tell patients apart, or none does."""
    rng = np.random.default_rng(seed)
    person, image = (rng.normal(size=(240, WIDTH)) for _ in range(2))
    if not blind:
        person = np.repeat(person[:120], 2, axis=0)
    person[:, WIDTH // 2 :] = rng.normal(size=(240, WIDTH // 2))
    return reidentify.train((2 * person + image).astype(np.float32), [f"p{i // 2}" for i in range(240)])


REIDENTIFY = reidentify.attack(verifier())
ALL = (*STANDARD, REIDENTIFY)
BY_NAME = pytest.mark.parametrize("attack", ALL, ids=lambda attack: attack.name)


def found(scores: MemberScores) -> float:
    """AUC of an attack."""
    return auc(scores.members, scores.holdout)


@BY_NAME
def test_a_planted_leak_is_found(attack: BlackBoxAttack) -> None:
    """Released images that are noisy copies of members give an AUC above .9 in every attack."""
    assert found(attack.run(*scene(0, learnt=True))) > 0.9


@BY_NAME
def test_where_nothing_was_learnt_nothing_is_found(attack: BlackBoxAttack) -> None:
    """Over 40 releases of strangers the mean AUC is 1/2 within .05: four of its standard deviations."""
    values = [found(attack.run(*scene(seed, learnt=False))) for seed in range(100, 140)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.05)


@BY_NAME
def test_a_patients_score_depends_on_that_patient_alone(attack: BlackBoxAttack) -> None:
    """Without half of the patients on either side, the scores of all others stay the same bit for bit."""
    released, reference, inside, outside = scene(1, learnt=True)
    fewer = [part(side, lambda key: int(key[1:]) % 2 == 0) for side in (inside, outside)]
    whole, half = attack.run(released, reference, inside, outside), attack.run(released, reference, *fewer)
    assert np.array_equal(whole.members[::2], half.members)
    assert np.array_equal(whole.holdout[::2], half.holdout)


def test_run_all_is_each_attack_by_its_name() -> None:
    """Every attack is there under its name, with its own scores, and progress ends at the number of attacks."""
    setting, steps = scene(2, learnt=True), []
    scores = run_all(*setting, attacks=ALL, progress=lambda done, total: steps.append((done, total)))
    assert list(scores) == [attack.name for attack in ALL]
    assert all(np.array_equal(scores[attack.name].members, attack.run(*setting).members) for attack in ALL)
    assert steps == [(i + 1, len(ALL)) for i in range(len(ALL))]


def test_only_distances_to_the_closest_record_are_diagnostic() -> None:
    """The one attack that never decides is the one that "the DCR delusion" is about."""
    assert [attack.name for attack in STANDARD if attack.diagnostic] == ["closest-record"]


def test_costs_are_those_that_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stated number of distances is the number that each attack asks for."""
    released, reference, inside, outside = scene(3, learnt=False)
    asked = []

    def counting(queries: np.ndarray, points: np.ndarray) -> np.ndarray:
        asked.append(len(queries) * len(points))
        return cdist(queries, points)

    cdist = neighbours.cdist
    monkeypatch.setattr(neighbours, "cdist", counting)
    stated = cost(len(released), len(reference), len(inside[1]) + len(outside[1]), attacks=ALL)
    for attack in ALL:
        asked.clear()
        attack.run(released, reference, inside, outside)
        assert sum(asked) == stated[attack.name], attack.name


BAD = {
    "another size": lambda s: (s[0][:, :5], *s[1:]),
    "nothing released": lambda s: (s[0][:0], *s[1:]),
    "a reference that is no number": lambda s: (s[0], np.full_like(s[1], np.nan), *s[2:]),
    "a member that is no number": lambda s: (*s[:2], (s[2][0], np.where(np.arange(WIDTH) == 3, np.nan, s[2][1]).astype(np.float32)), s[3]),
    "features of other images": lambda s: (*s[:2], (s[2][0], s[2][1][1:]), s[3]),
}


@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD)
def test_features_that_do_not_fit_are_refused(spoil: Callable) -> None:
    """Features of another size, none, NaN, or of another number of images than the cohort has: an error that says so, never a score."""
    with pytest.raises(InputError, match="features"):
        run_all(*spoil(scene(4, learnt=False)))


@pytest.mark.parametrize("name", [name for name in BAD if name != "a reference that is no number"])
def test_findings_about_a_release_refuse_features_that_do_not_fit(name: str) -> None:
    """Holdout disclosure and closest records refuse what attacks refuse."""
    released, _, inside, outside = BAD[name](scene(4, learnt=False))
    for measure in (holdout_disclosure, measure_closest):
        with pytest.raises(InputError, match="features"):
            measure(released, inside, outside, seed=0)


def test_a_verifier_refuses_features_of_another_encoder() -> None:
    """Features that fit one another, but are not of the size that the verifier was trained on."""
    narrow = [features[:, :5] for features in (drawn(np.random.default_rng(22), 9), drawn(np.random.default_rng(23), 9))]
    with pytest.raises(InputError, match="another size"):
        REIDENTIFY.score(narrow[0], narrow[1], narrow[1])


def test_domias_is_the_ratio_of_two_kernel_densities() -> None:
    """Slow twin: scikit-learn's KernelDensity with Scott's bandwidth on whitened components, summed in another way."""
    released, reference, (_, wanted), _ = scene(5, learnt=True)
    pooled = np.concatenate([released, reference]).astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(pooled.T))
    white = [(each - pooled.mean(0)) @ vectors / np.sqrt(values) for each in (released, reference, wanted)]
    twins = [KernelDensity(bandwidth="scott").fit(each).score_samples(white[2]) for each in white[:2]]
    assert domias.score(released, reference, wanted) == pytest.approx(twins[0] - twins[1], rel=1e-5)


def test_domias_bears_fewer_images_than_components() -> None:
    """Ten released and ten reference images leave fewer directions than wanted; those of no variance are dropped."""
    released, reference, (_, wanted), _ = scene(5, learnt=True)
    assert np.isfinite(domias.score(released[:10], reference[:10], wanted)).all()
    assert np.isfinite(domias.score(np.repeat(released[:1], 9, 0), reference[:3], wanted)).all()


def apart(x: np.ndarray, y: np.ndarray) -> float:
    """Euclidean distance, one number after the other."""
    return sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True)) ** 0.5


def test_monte_carlo_is_its_slow_twin() -> None:
    """Every released image within the radius counted by hand; a tenth of the reference images have one within it."""
    released, reference, (_, wanted), _ = (each if isinstance(each, tuple) else each[:40] for each in scene(6, learnt=True))
    radius = np.quantile([min(apart(r, g) for g in released) for r in reference], 0.1)
    slow = [sum(apart(x, g) <= radius for g in released) / len(released) for x in wanted[:10]]
    assert monte_carlo.score(released, reference, wanted[:10]).tolist() == pytest.approx(slow)


def test_gan_leaks_and_closest_record_are_their_slow_twins() -> None:
    """Nearest of all by hand, with and without that of the reference."""
    released, reference, (_, wanted), _ = (each if isinstance(each, tuple) else each[:40] for each in scene(7, learnt=True))
    near = [[min(apart(x, y) for y in known) for x in wanted[:10]] for known in (released, reference)]
    assert gan_leaks.score(released, reference, wanted[:10]) == pytest.approx(np.subtract(near[1], near[0]))
    assert closest_record.score(released, reference, wanted[:10]) == pytest.approx(np.negative(near[0]))


def test_calibration_removes_how_common_an_image_looks() -> None:
    """Where holdout patients are commoner-looking than members, GAN-Leaks without the reference misses a leak that it finds with it."""
    rng = np.random.default_rng(8)
    _, reference, inside, outside = scene(8, learnt=False)
    inside, outside = (inside[0], inside[1] * 2), (outside[0], outside[1] / 4)
    setting = (np.concatenate([inside[1] + drawn(rng, len(inside[1])), drawn(rng, 200)]), reference, inside, outside)
    assert found(closest_record.ATTACK.run(*setting)) < 0.5 < 0.8 < found(gan_leaks.ATTACK.run(*setting))


def test_member_share_is_the_mean_over_all_draws() -> None:
    """Slow twin: every way to draw equally many patients of the larger side, whichever that is."""
    rng = np.random.default_rng(9)
    for members, holdout in ((5, 2), (2, 5), (3, 3), (4, 1)):
        row = np.array([True] * members + [False] * holdout)
        rows = np.stack([rng.permutation(row) for _ in range(12)])
        drawn_each = min(members, holdout)
        slow = []
        for line in rows:
            inside, outside = np.flatnonzero(line), np.flatnonzero(~line)
            slow += [min(a) < min(b) for a in combinations(inside, drawn_each) for b in combinations(outside, drawn_each)]
        assert member_share(rows) == pytest.approx(np.mean(slow))


def test_holdout_disclosure_finds_what_was_learnt_by_heart() -> None:
    """Noisy copies of members: far more than half of the released images are nearest to a member, though only 25 of 40 members are drawn."""
    released, _, inside, outside = scene(10, learnt=True, members=40, holdout=25)
    finding = holdout_disclosure(released, inside, outside, seed=0, permutations=199)
    assert finding.share > 0.8 > finding.chance_high
    assert finding.p_value == 1 / 200
    assert (finding.patients, finding.released) == (25, 300)


@pytest.mark.parametrize(("members", "holdout"), [(20, 20), (36, 15), (15, 36)])
def test_holdout_disclosure_is_silent_without_a_leak(members: int, holdout: int) -> None:
    """Over 60 releases of strangers: the mean share is 1/2 within .04, and at most 9 p-values are below .05 (more: one in 700)."""
    findings = []
    for seed in range(60):
        released, _, inside, outside = scene(1000 + seed, learnt=False, members=members, holdout=holdout)
        findings.append(holdout_disclosure(released, inside, outside, seed=seed, permutations=99))
    assert np.mean([f.share for f in findings]) == pytest.approx(0.5, abs=0.04)
    assert sum(f.p_value <= 0.05 for f in findings) <= 9
    assert np.mean([f.chance_low <= f.share <= f.chance_high for f in findings]) > 0.85


def test_the_same_images_on_both_sides_favour_neither() -> None:
    """Members and holdout with identical images are told apart by nothing: patients at the same distance are taken in random order."""
    released, _, inside, _ = scene(11, learnt=True)
    shares = [holdout_disclosure(released, inside, inside, seed=seed, permutations=9).share for seed in range(20)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.1)


def test_closest_records_show_copies_and_are_fair_to_unequal_sides() -> None:
    """Copies bring distance and ratio of members to 0; strangers are equally far from 40 members and 15 holdout patients."""
    released, _, inside, outside = scene(12, learnt=False, members=40, holdout=15)
    copied = measure_closest(np.concatenate([released, inside[1]]), inside, outside, seed=0)
    assert copied.member_distance == copied.member_ratio == 0 < min(copied.holdout_distance, copied.holdout_ratio)
    gaps = []
    for seed in range(30):
        released, _, inside, outside = scene(2000 + seed, learnt=False, members=40, holdout=15)
        clean = measure_closest(released, inside, outside, seed=seed)
        gaps.append((clean.member_distance / clean.holdout_distance, clean.member_ratio / clean.holdout_ratio))
    assert np.mean(gaps, axis=0) == pytest.approx([1, 1], abs=0.05)


def test_the_log_odds_are_those_of_two_gaussians() -> None:
    """Slow twin: for each direction the density of the pair as one patient's, divided by that as two patients'."""
    judge, rng = verifier(), np.random.default_rng(13)
    x, y = rng.normal(size=(2, 3, WIDTH)).astype(np.float32)
    slow = np.zeros((3, 3))
    for i, j in np.ndindex(3, 3):
        for direction, b in zip(judge.directions.T, judge.between, strict=True):
            pair = [(x[i] - judge.mean) @ direction, (y[j] - judge.mean) @ direction]
            slow[i, j] += multivariate_normal([0, 0], [[b + 1, b], [b, b + 1]]).logpdf(pair) - multivariate_normal(
                [0, 0], (b + 1) * np.eye(2)
            ).logpdf(pair)
    assert judge.odds(x, y) == pytest.approx(slow, rel=1e-6, abs=1e-6)
    assert judge.closest(x, y) == pytest.approx(slow.max(1), rel=1e-6, abs=1e-6)


def test_the_verifier_says_how_well_it_sees() -> None:
    """Trained where patients differ it tells unseen patients apart, AUC above .9; where they do not, it says so: below .6."""
    assert verifier().auc > 0.9
    assert verifier(blind=True).auc < 0.6


def test_it_finds_a_patient_in_another_image_where_plain_distance_does_not() -> None:
    """Released images of members, each unlike any that is known, are found: the metric looks at what stays with a patient."""
    rng = np.random.default_rng(14)
    half = WIDTH // 2
    persons = np.repeat(rng.normal(size=(60, WIDTH)), 3, axis=0)

    def images(rows: slice) -> Features:
        values = 2 * persons[rows] + rng.normal(size=persons[rows].shape)
        values[:, half:] = 4 * rng.normal(size=values[:, half:].shape)
        return values.astype(np.float32)

    seen = images(slice(0, 180))
    names = [f"{'mh'[i // 90]}{i // 3:03d}" for i in range(180)]
    sides = []
    for rows in (slice(0, 90), slice(90, 180)):
        keys = tuple(names[rows])
        sides.append((Cohort(np.zeros((90, 2, 2), np.uint8), (Pathology.BENIGN,) * 90, (None,) * 90, keys), seen[rows]))
    public = np.repeat(rng.normal(size=(150, WIDTH)), 2, axis=0) * 2 + rng.normal(size=(300, WIDTH))
    public[:, half:] = 4 * rng.normal(size=(300, half))
    judge = reidentify.train(public.astype(np.float32), [f"p{i // 2}" for i in range(300)])
    setting = (images(slice(0, 90)), public.astype(np.float32), *sides)
    assert found(reidentify.attack(judge).run(*setting)) > 0.85
    assert found(gan_leaks.ATTACK.run(*setting)) < 0.8


def test_a_verifier_that_was_saved_gives_the_same_odds(tmp_path: Path) -> None:
    """Written and read again, without pickle, it judges bit for bit alike."""
    judge, images = verifier(), drawn(np.random.default_rng(15), 5)
    reidentify.save(judge, tmp_path / "verifier.npz")
    back = reidentify.load(tmp_path / "verifier.npz")
    assert np.array_equal(back.odds(images, images), judge.odds(images, images))
    assert (back.auc, back.patients) == (judge.auc, judge.patients) == (judge.auc, 120)


def pickled(file: Path) -> None:
    np.savez(file, mean=np.array([print], dtype=object), directions=np.zeros((1, 1)), between=np.ones(1), auc=0.5, patients=1)


BROKEN: dict[str, Callable[[Path], object]] = {
    "missing": lambda file: None,
    "no npz": lambda file: file.write_bytes(b"PK\x03\x04 but not"),
    "pickle inside": pickled,
    "a column missing": lambda file: np.savez(file, mean=np.zeros(2)),
    "sizes differ": lambda file: reidentify.save(replace(verifier(), mean=np.zeros(3)), file),
    "not finite": lambda file: reidentify.save(replace(verifier(), mean=np.full(WIDTH, np.nan)), file),
    "no variance": lambda file: reidentify.save(replace(verifier(), between=-verifier().between), file),
}


@pytest.mark.parametrize("write", BROKEN.values(), ids=BROKEN)
def test_a_damaged_verifier_is_refused(write: Callable[[Path], object], tmp_path: Path) -> None:
    """Whatever is wrong with the file, it ends in CheckpointError; nothing in it is executed."""
    write(file := tmp_path / "verifier.npz")
    with pytest.raises(CheckpointError):
        reidentify.load(file)


def test_too_few_public_patients_train_nothing() -> None:
    """Nineteen patients with two images, or groups of another number than the images: refused."""
    images = drawn(np.random.default_rng(16), 38)
    for groups in ([f"p{i // 2}" for i in range(38)], ["p"] * 5):
        with pytest.raises(InputError):
            reidentify.train(images, groups)


def test_sites_that_differ_are_told_apart_and_others_are_not() -> None:
    """A shift of one feature by two deviations is found; over 20 pairs of sites alike at most 5 p-values are below .05 (more: one in 3,000)."""
    rng = np.random.default_rng(17)
    shift = 2 * np.eye(WIDTH, dtype=np.float32)[0]
    told = site_leak({"a": drawn(rng, 120), "b": drawn(rng, 60) + shift}, seed=0)
    assert told.accuracy > 0.75 > told.chance_high
    assert told.p_value == 1 / 1000
    alike = [site_leak({"a": drawn(rng, 60), "b": drawn(rng, 40)}, seed=seed) for seed in range(20)]
    assert sum(t.p_value <= 0.05 for t in alike) <= 5
    assert np.mean([t.accuracy for t in alike]) == pytest.approx(0.5, abs=0.06)


def test_a_release_that_shows_one_scanner_says_so() -> None:
    """Released images with a scanner's mark are assigned to it, most of them surely; the public classifier's own accuracy stands beside."""
    rng = np.random.default_rng(18)
    mark = 5 * np.eye(WIDTH, dtype=np.float32)[1]
    scanners = ["left", "right"] * 60
    public = drawn(rng, 120) + mark * np.array([[s == "right"] for s in scanners])
    leak = scanner_leak(public, scanners, [f"p{i // 4}" for i in range(120)], drawn(rng, 50) + mark, seed=0)
    assert leak.public.accuracy > 0.9
    assert leak.shares["right"] > 0.9
    assert leak.sure > 0.8


def test_what_chance_gives_is_counted_by_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of a patient are alike, and scanners are drawn by patient without any sign of them: the accuracy lies in the stated interval.

    Fails where images change places one by one: 42 % of such sets then lie outside the interval that is to hold 95 %.
    """
    monkeypatch.setattr(attributes, "PERMUTATIONS", 199)
    outside = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        features = (np.repeat(rng.normal(size=(60, 8)), 6, axis=0) + 0.3 * rng.normal(size=(360, 8))).astype(np.float32)
        scanners, patients = np.repeat(rng.choice(["a", "b"], 60), 6).tolist(), [f"p{i // 6}" for i in range(360)]
        told = scanner_leak(features, scanners, patients, features[:5], seed=seed).public
        outside += not told.chance_low <= told.accuracy <= told.chance_high
    assert outside <= 6  # 5 % of 40 are 2; more than 6 by chance in 1 of 300


def test_patients_change_places_whole() -> None:
    """Each row takes the label of a row of one other patient, in turn, repeated or cut to its own number; of its own fold."""
    fold, whose = np.array([0, 1, 2, 3, 5, 7]), np.array([4, 4, 4, 9, 0, 9, 0, 2])
    places = attributes._Places.of(fold, whose)
    rng = np.random.default_rng(0)
    for _ in range(20):
        taken = dict(zip(places.rows.tolist(), places.exchanged(rng).tolist(), strict=True))
        assert set(taken) == set(fold.tolist()) >= set(taken.values())
        sources = {patient: [int(whose[taken[row]]) for row in taken if whose[row] == patient] for patient in (2, 4, 9)}
        assert all(len(set(found)) == 1 for found in sources.values())
        assert sorted(found[0] for found in sources.values()) == [2, 4, 9]


def test_labels_are_compared_with_what_the_images_show() -> None:
    """Labels that fit are recognised, labels that were shuffled are at chance, labels that nobody knows are left out."""
    rng = np.random.default_rng(19)
    sign = 2 * np.eye(WIDTH, dtype=np.float32)[0]
    labels = np.array(["benign", "malignant"] * 60)

    def shown(names: np.ndarray) -> Features:
        return drawn(rng, len(names)) + sign * (names == "malignant")[:, None]

    public, groups, released = shown(labels), [f"p{i // 4}" for i in range(120)], shown(labels)
    right = label_leak(public, labels.tolist(), groups, released, labels.tolist(), seed=0)
    mixed = label_leak(public, labels.tolist(), groups, released, rng.permutation(labels).tolist(), seed=0)
    assert right.released.accuracy > 0.75
    assert right.released.p_value < 0.01
    assert mixed.released.p_value > 0.01
    extra = label_leak(public, labels.tolist(), groups, released, ["normal", *labels[1:].tolist()], seed=0)
    assert extra.released.images == 119


def test_classifiers_refuse_what_they_cannot_learn() -> None:
    """One site, one label, columns of different lengths, labels that nobody knows: refused."""
    rng = np.random.default_rng(20)
    images, groups = drawn(rng, 20), [f"p{i}" for i in range(20)]
    with pytest.raises(InputError):
        site_leak({"a": images}, seed=0)
    with pytest.raises(InputError):
        site_leak({"a": images, "b": images[:3]}, seed=0)
    with pytest.raises(InputError):
        scanner_leak(images, ["x"] * 20, groups, images, seed=0)
    with pytest.raises(InputError):
        scanner_leak(images, ["x"] * 19, groups, images, seed=0)
    with pytest.raises(InputError):
        label_leak(images, ["x", "y"] * 10, groups, images, ["z"] * 20, seed=0)
