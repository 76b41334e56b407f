"""What released images say about where they come from: the site, the scanner, the label. Findings about a release, not about a patient.

A logistic regression on standardised features (balanced classes) is cross-validated; what it reaches on images that it was not
trained on stands beside what chance gives: the same predictions against labels that were permuted within each fold. Where images have patients,
whole patients change places: each takes the labels of another one, repeated or cut to its own number of images.
Source: attribute inference as in Yeom et al. 2018, arXiv:1709.01604, definition 5, here of the whole set; permutation test of a classifier: Ojala &
Garriga 2010, "Permutation Tests for Studying Classifier Performance", JMLR 11, test 1, here with the classifier held fixed in each fold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from busgen_core.errors import InputError
from busgen_privacy.attacks.base import Features
from busgen_privacy.attacks.neighbours import checked

FOLDS = 5
PERMUTATIONS = 999
MOST_IMAGES = 2000  # of a site
SURE = 0.9  # probability from which an image counts as given away
Labels = NDArray[np.str_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """How well a classifier tells classes apart on images that it was not trained on.

    Attributes:
        classes: What it tells apart.
        accuracy: Balanced accuracy: mean over classes of the share that is named right.
        chance_low: 2.5 % quantile of what permuted labels give.
        chance_high: 97.5 % quantile.
        p_value: One-sided: how often permuted labels give at least this accuracy.
        images: Images.
    """

    classes: tuple[str, ...]
    accuracy: float
    chance_low: float
    chance_high: float
    p_value: float
    images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ScannerLeak:
    """What released images say about the scanner, to someone who knows public images of some scanners.

    Attributes:
        public: How well public scanners are told apart, by patient.
        shares: Of the released images, by the scanner that they look most like.
        sure: Share of the released images that look like one scanner with probability SURE or more.
        released: Released images.
        before: Shares of images that the generator drew before it was adapted: a generator looks like some scanner without any patient. None:
            there are none.
    """

    public: Told
    shares: Mapping[str, float]
    sure: float
    released: int
    before: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelLeak:
    """Released labels against what a public classifier sees in the released images.

    Attributes:
        public: How well the classifier names labels of public images, by patient.
        released: How well it names the labels of the released images. Far above ``public``: the label is written into the images more clearly
            than nature does; at chance: the labels are of no image.
    """

    public: Told
    released: Told


def site_leak(released: Mapping[str, Features], *, seed: int) -> Told:
    """Can someone tell from a released image which site's release it comes from? No private data needed.

    Args:
        released: For each site the features of its released images, float32 [m, d]; at most MOST_IMAGES of each are used.
        seed: Of folds and permutations.

    Raises:
        InputError: fewer than two sites, fewer than FOLDS images of one, or features that cannot be compared.
    """
    if len(released) < 2:
        raise InputError("telling sites apart needs the releases of two sites")
    checked(*released.values())
    spread = {site: each[np.linspace(0, len(each) - 1, min(len(each), MOST_IMAGES)).astype(int)] for site, each in released.items()}
    labels = np.repeat(np.array(list(spread)), [len(each) for each in spread.values()])
    return _told(np.concatenate(list(spread.values())), labels, groups=None, seed=seed)


def scanner_leak(
    public: Features, scanners: Sequence[str], groups: Sequence[str], released: Features, *, before: Features | None = None, seed: int
) -> ScannerLeak:
    """Which known scanner do released images look like, and how surely? One that is not known is taken for one that is.

    Args:
        public: float32 [n, d], features of public images.
        scanners: Scanner of each.
        groups: Patient of each; a patient's images stay together.
        released: float32 [m, d].
        before: float32 [b, d], of images that the generator drew before it was adapted.
        seed: Of folds and permutations.

    Raises:
        InputError: columns of different lengths, fewer than two scanners, fewer than FOLDS patients of one, or features that cannot be compared.
    """
    checked(public, released, *([] if before is None else [before]))
    labels = _fitting(public, scanners, groups)
    told = _told(public, labels, groups=groups, seed=seed)
    model = _classifier().fit(public, labels)

    def shares(chance: NDArray[np.float64]) -> dict[str, float]:
        named = np.bincount(chance.argmax(1), minlength=len(told.classes)) / len(chance)
        return dict(zip(told.classes, named.tolist(), strict=True))

    chance = model.predict_proba(released)
    usual = None if before is None else shares(model.predict_proba(before))
    return ScannerLeak(public=told, shares=shares(chance), sure=float((chance.max(1) >= SURE).mean()), released=len(released), before=usual)


def label_leak(
    public: Features, labels: Sequence[str], groups: Sequence[str], released: Features, released_labels: Sequence[str], *, seed: int
) -> LabelLeak:
    """Do released labels fit what a classifier of public images sees in the released images?

    Args:
        public: float32 [n, d].
        labels: Label of each public image.
        groups: Patient of each.
        released: float32 [m, d].
        released_labels: Label of each released image; images whose label no public image has are left out.
        seed: Of folds and permutations.

    Raises:
        InputError: columns of different lengths, fewer than two labels, fewer than FOLDS patients of one, or no released image with a known label.
    """
    checked(public, released)
    known, given = _fitting(public, labels, groups), np.array(released_labels)
    if len(given) != len(released):
        raise InputError("released labels and images differ in number")
    shared = np.isin(given, known)
    if not shared.any():
        raise InputError("no released image has a label that a public image has")
    seen = _classifier().fit(public, known).predict(released[shared])
    rng = np.random.default_rng(seed)
    return LabelLeak(
        public=_told(public, known, groups=groups, seed=seed), released=_against_chance(given[shared], seen, [np.arange(len(seen))], rng)
    )


def _fitting(public: Features, labels: Sequence[str], groups: Sequence[str]) -> Labels:
    found = np.array(labels)
    if not len(public) == len(found) == len(groups):
        raise InputError("public features, labels and groups differ in number")
    patients = [len(set(np.array(groups)[found == value])) for value in np.unique(found)]
    if len(patients) < 2 or min(patients) < FOLDS:
        raise InputError(f"a classifier needs two labels, each of at least {FOLDS} patients")
    return found


def _classifier() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))


def _told(features: Features, labels: Labels, *, groups: Sequence[str] | None, seed: int) -> Told:
    """Cross-validated accuracy, folds by group where there are groups."""
    if min(np.unique(labels, return_counts=True)[1]) < FOLDS:
        raise InputError(f"a classifier needs {FOLDS} images of each class")
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    seen, folds = np.empty_like(labels), []
    for known, left in kind(FOLDS, shuffle=True, random_state=seed).split(features, labels, groups):
        seen[left] = _classifier().fit(features[known], labels[known]).predict(features[left])
        folds.append(left)
    return _against_chance(labels, seen, folds, np.random.default_rng(seed), groups=groups)


def _against_chance(
    labels: Labels, seen: Labels, folds: Sequence[NDArray[np.intp]], rng: np.random.Generator, *, groups: Sequence[str] | None = None
) -> Told:
    """Accuracy, and that of labels permuted within folds, by patient; p as Phipson & Smyth 2010, doi:10.2202/1544-6115.1585."""
    classes, codes = np.unique(labels, return_inverse=True)
    right = _balanced(codes, seen == labels)
    named = np.searchsorted(classes, seen).clip(max=len(classes) - 1)
    known = classes[named] == seen
    whose = np.arange(len(codes)) if groups is None else np.unique(np.array(groups), return_inverse=True)[1]
    places = [_Places.of(fold, whose) for fold in folds]
    chance = []
    for _ in range(PERMUTATIONS):
        mixed = codes.copy()
        for fold in places:
            mixed[fold.rows] = codes[fold.exchanged(rng)]
        chance.append(_balanced(mixed, known & (named == mixed)))
    low, high = np.quantile(chance, [0.025, 0.975])
    p_value = (1 + (np.array(chance) >= right - 1e-12).sum()) / (PERMUTATIONS + 1)
    return Told(
        classes=tuple(map(str, classes)), accuracy=right, chance_low=float(low), chance_high=float(high), p_value=float(p_value), images=len(labels)
    )


@dataclass(frozen=True, slots=True)
class _Places:
    """Rows of a fold, patient by patient.

    Attributes:
        rows: In the order of their patients, int [n].
        patient: Number of each row's patient, int [n].
        place: Its place among that patient's rows, int [n].
        start: First row of each patient, int [patients].
        size: Rows of each patient, int [patients].
    """

    rows: NDArray[np.intp]
    patient: NDArray[np.intp]
    place: NDArray[np.intp]
    start: NDArray[np.intp]
    size: NDArray[np.intp]

    @classmethod
    def of(cls, fold: NDArray[np.intp], whose: NDArray[np.intp]) -> "_Places":
        rows = fold[np.argsort(whose[fold], kind="stable")]
        _, start, patient, size = np.unique(whose[rows], return_index=True, return_inverse=True, return_counts=True)
        return cls(rows, patient, np.arange(len(rows)) - start[patient], start, size)

    def exchanged(self, rng: np.random.Generator) -> NDArray[np.intp]:
        """For each of ``rows`` the row whose label it takes: patients change places, whole."""
        source = rng.permutation(len(self.start))[self.patient]
        return np.asarray(self.rows[self.start[source] + self.place % self.size[source]])


def _balanced(codes: NDArray[np.intp], right: NDArray[np.bool_]) -> float:
    counts = np.bincount(codes)
    return float((np.bincount(codes, weights=right)[counts > 0] / counts[counts > 0]).mean())
