"""Re-identification: does a released image look like the same patient as a real one? Learnt from public patients with several images.

Two-covariance model, a linear PLDA: features are patient + image, both Gaussian. In the directions in which patients differ most from what
images of one patient do, with variance 1 within and b_k between patients, two images x, y have the log odds of "same patient"

LLR(x, y) = sum_k  1/2 log(s^2 / D) - (p - q/2) (x_k^2 + y_k^2) - q/2 (x_k - y_k)^2,
s = b_k + 1,  D = 2 b_k + 1,  q = b_k / D,  p = (s / D - 1 / s) / 2.

score(x) = max_i LLR(x, g_i) - max_j LLR(x, r_j), g the released and r the reference images: as in GAN-Leaks, calibrated by how
much the patient resembles people who were never in the data.

Source: S. Ioffe 2006, "Probabilistic Linear Discriminant Analysis", doi:10.1007/11744085_41; S. Prince, J. Elder 2007,
doi:10.1109/ICCV.2007.4409052. Shrinkage: O. Ledoit, M. Wolf 2004, doi:10.1016/S0047-259X(03)00096-4. Re-identification
of patients by a learnt metric: K. Packhäuser et al. 2022, doi:10.1038/s41598-022-19045-3.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.special import stdtrit
from sklearn.covariance import LedoitWolf
from sklearn.model_selection import GroupKFold

from busgen_core.errors import CheckpointError, InputError
from busgen_core.files import write_whole
from busgen_privacy.attacks.base import BlackBoxAttack, Features, Scores, every_pair
from busgen_privacy.attacks.neighbours import Floats, checked, distances, projected
from busgen_privacy.statistics import auc

DIRECTIONS = 32  # at most
FOLDS = 5
FEWEST = 20  # public patients with two images or more
LARGEST_BYTES = 16 * 1024 * 1024
AT_ONCE = 2000  # known images whose odds are held at once


@dataclass(frozen=True, slots=True)
class Verifier:
    """Patient verification learnt from public images.

    Attributes:
        mean: float64 [d].
        directions: float64 [d, k]; variance within a patient is 1 along each.
        between: Variance between patients along each, float64 [k], above 0.
        auc: Same against different patients, on patients that it was not trained on; 1/2: it is blind, and its silence says nothing.
        low: The AUC is surely above this, roughly at 95 % (t over the folds); at 1/2 or below the suite does not ask it.
        patients: Public patients with at least two images.
    """

    mean: Floats
    directions: Floats
    between: Floats
    auc: float
    low: float
    patients: int

    def odds(self, wanted: Features, known: Features) -> Floats:
        """Log odds that a wanted image [n, d] and a known one [m, d] are of the same patient, float64 [n, m]."""
        s, d = self.between + 1, 2 * self.between + 1
        q = self.between / d
        own = (s / d - 1 / s) / 2 - q / 2
        x, y = (projected(each - self.mean, self.directions) for each in (wanted, known))
        apart = np.concatenate(list(distances(x * np.sqrt(q), y * np.sqrt(q))))
        alone = (np.square(x) * own).sum(1)[:, None] + (np.square(y) * own).sum(1)[None, :]
        return np.asarray(0.5 * np.log(s**2 / d).sum() - alone - np.square(apart) / 2)

    def closest(self, wanted: Features, known: Features) -> Scores:
        """Largest log odds of each wanted image [n, d] with any known one [m, d], float64 [n]."""
        return np.asarray(np.max([self.odds(wanted, known[start : start + AT_ONCE]).max(1) for start in range(0, len(known), AT_ONCE)], axis=0))


def train(features: Features, groups: Sequence[str]) -> Verifier:
    """Learn who is who from public images.

    Args:
        features: float32 [n, d] of public images.
        groups: Patient of each; at least FEWEST with two images or more.

    Raises:
        InputError: features that cannot be compared, another number of groups, or too few patients with several images.
    """
    checked(features)
    if len(groups) != len(features):
        raise InputError("features and groups differ in the number of images")
    index = np.unique(np.array(groups), return_inverse=True)[1]
    several = int((np.bincount(index) > 1).sum())
    if several < FEWEST:
        raise InputError(f"{several} public patients have two images or more; patient verification needs {FEWEST}")
    value, low = _checked_auc(features, index)
    return Verifier(*_fit(features.astype(np.float64), index), auc=value, low=low, patients=several)


def save(verifier: Verifier, file: Path) -> None:
    """Write a verifier as npz, without pickle.

    Raises:
        StorageFullError: no room.
    """
    out = io.BytesIO()
    columns = {"mean": verifier.mean, "directions": verifier.directions, "between": verifier.between}
    np.savez(out, auc=np.float64(verifier.auc), low=np.float64(verifier.low), patients=np.int64(verifier.patients), **columns)  # type: ignore[arg-type]
    write_whole(file, out.getvalue())


def load(file: Path) -> Verifier:
    """Read what ``save`` wrote.

    Raises:
        CheckpointError: missing, larger than any verifier, damaged, or numbers that do not fit.
    """
    try:
        if file.stat().st_size > LARGEST_BYTES:
            raise CheckpointError("the verifier's file is larger than any verifier; it was not read")
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as found:
            mean, directions, between = (np.asarray(found[name], np.float64) for name in ("mean", "directions", "between"))
            verifier = Verifier(mean, directions, between, float(found["auc"]), float(found["low"]), int(found["patients"]))
    except CheckpointError:
        raise
    except Exception as error:  # np.load raises whatever zipfile, zlib and struct do
        raise CheckpointError(f"the verifier does not load ({type(error).__name__}); train it again") from None
    if directions.shape != (*mean.shape, *between.shape) or not all(np.isfinite(each).all() for each in (mean, directions, between)):
        raise CheckpointError("the verifier's numbers do not fit one another or are not finite; train it again")
    if not (between > 0).all() or not 0 <= verifier.auc <= 1:
        raise CheckpointError("the verifier's variances or its AUC are outside their range; train it again")
    return verifier


def attack(verifier: Verifier) -> BlackBoxAttack:
    """The attack with this verifier; features must come from the encoder that it was trained on."""

    def score(released: Features, reference: Features, attacked: Features) -> Scores:
        checked(released, reference, attacked)
        if released.shape[1] != len(verifier.mean):
            raise InputError("the verifier was trained on features of another size")
        return verifier.closest(attacked, released) - verifier.closest(attacked, reference)

    return BlackBoxAttack(
        name="reidentification",
        what="Does a released image look like the same patient as a member, more than as a patient never seen?",
        source="Ioffe 2006, doi:10.1007/11744085_41 (PLDA); Packhäuser et al. 2022, doi:10.1038/s41598-022-19045-3",
        score=score,
        pairs=every_pair,
    )


def _fit(features: Floats, index: NDArray[np.intp]) -> tuple[Floats, Floats, Floats]:
    """Mean, directions and variances between patients."""
    centred = features - (mean := features.mean(0))
    within = LedoitWolf(assume_centered=True).fit(_residuals(centred, index)).covariance_
    total = LedoitWolf(assume_centered=True).fit(centred).covariance_
    floor = 1e-6 * np.trace(total) / len(total) * np.eye(len(total))
    ratio, directions = eigh(total + floor, within + floor)  # total variance along each direction, in units of that within; ascending
    kept = np.arange(len(ratio))[::-1][:DIRECTIONS]
    return mean, directions[:, kept], np.maximum(ratio[kept] - 1, 1e-3)


def _residuals(features: Floats, index: NDArray[np.intp]) -> Floats:
    """Images minus their patient's mean, scaled so that their covariance is that within a patient; patients with one image have none."""
    counts = np.bincount(index)
    sums = np.zeros((len(counts), features.shape[1]))
    np.add.at(sums, index, features)
    many = counts[index]
    rows = many > 1
    scale = np.sqrt(many[rows] / (many[rows] - 1))[:, None]
    return np.asarray((features - sums[index] / many[:, None])[rows] * scale)


def _checked_auc(features: Features, index: NDArray[np.intp]) -> tuple[float, float]:
    """AUC of same against different patients, each patient judged by a fit without it: mean over folds, and its lower end."""
    found = []
    wide = features.astype(np.float64)
    for known, left in GroupKFold(FOLDS).split(wide, groups=index):
        if (np.bincount(index[left]) > 1).any() and (np.bincount(index[known]) > 1).any():
            judge = Verifier(*_fit(wide[known], index[known]), auc=0.5, low=0.0, patients=0)
            odds = judge.odds(features[left], features[left])
            same, upper = index[left][:, None] == index[left][None, :], np.triu(np.ones_like(odds, bool), 1)
            found.append(auc(odds[same & upper], odds[~same & upper]))
    if len(found) < 2:
        return float(np.mean(found)), 0.0
    error = float(np.std(found, ddof=1) / np.sqrt(len(found)))
    return float(np.mean(found)), max(float(np.mean(found)) - float(stdtrit(len(found) - 1, 0.95)) * error, 0.0)
