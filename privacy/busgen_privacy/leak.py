"""How large a leak the ranks of an attack's scores prove: chances under a bounded leak, and lower bounds of epsilon.

A leak of mu: nobody's ROC lies above TPR = Phi(Phi^-1(FPR) + mu), what mu-Gaussian DP allows (Dong, Roth, Su 2022, arXiv:1905.02383,
section 2). Ranks depend on scores only through the ROC, so under a leak of at most mu members rank no higher than normal scores do whose
mean is mu above the others'. Chances computed from normals are therefore never too small, at any size and for every attack; mu = 0 is the
permutation test. What is assumed: patients are exchangeable before adaptation (members were drawn at random), and, once network and
images are given, their scores are independent. Ties count half in the AUC and not at all in a hit rate, which errs to the careful side.

Lower bounds of epsilon, each with its own assumption; a low one certifies nothing, a high one proves a leak. They hold for one attack:
for k attacks ask each at confidence 1 - 0.05 / k.
"""

from functools import lru_cache
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc, betaincinv, ndtr, ndtri

from busgen_core.errors import InputError
from busgen_privacy.dp.accounting import gdp_epsilon
from busgen_privacy.statistics import Scores, auc, passing, share_bounds

LAW_SEED = 20260  # chances are functions of the figures alone: the same audit gets the same verdict everywhere
LAW_DRAWS = 9_999  # so no chance is below 1e-4
BOUND_DRAWS = 1_999
BLOCK = 500  # draws ranked at once
MU_STEP, MOST_MU = 5e-3, 12.0  # accuracy of a bound on mu; beyond 12 nothing is left to tell
# Cells of the integral over where the threshold fell, as chances; finer towards the end that decides small chances.
CELLS = np.concatenate([np.linspace(0, 0.99, 600), 1 - np.geomspace(0.01, 1e-9, 400)[1:], [1.0]])
UNLIKELY = 1e-4  # chance of sides so uneven, below which they did not come about by the draw that is claimed
FEWEST_COINS = 8  # patients; fewer leave no guess "out"
ROUNDING = 1e-9


def mu_of(value: float) -> float:
    """Gaussian leak whose best attack reaches this AUC: sqrt 2 Phi^-1(AUC); 0 at AUC 1/2 or below, 12 at most.

    >>> round(mu_of(0.881), 2)
    1.67
    """
    return float(min(max(sqrt(2) * ndtri(value), 0.0), MOST_MU))


def auc_of(mu: float) -> float:
    """AUC of the best attack on a Gaussian leak: Phi(mu / sqrt 2); the inverse of ``mu_of``.

    >>> round(auc_of(1.666), 3)
    0.881
    """
    return float(ndtr(mu / sqrt(2)))


def hit_rate_of(mu: float, *, fpr: float) -> float:
    """TPR of the best attack on a Gaussian leak: Phi(Phi^-1(fpr) + mu).

    >>> round(hit_rate_of(1.666, fpr=0.01), 3)
    0.255
    """
    return float(ndtr(ndtri(fpr) + mu))


def auc_chance(value: float, *, members: int, holdout: int, mu: float) -> float:
    """Chance of this AUC or a larger one under a leak of at most ``mu``; never understated.

    (1 + b) / (1 + 9,999), b simulated rankings that reach it (Phipson & Smyth 2010, doi:10.2202/1544-6115.1585).

    Args:
        value: AUC of the attack.
        members: Member patients attacked.
        holdout: Holdout patients attacked.
        mu: The leak that is granted, from 0.

    Raises:
        InputError: an AUC or a leak that is none, or a side without patients.
    """
    if not (0 <= value <= 1 and 0 <= mu <= MOST_MU and members > 0 and holdout > 0):
        raise InputError(f"a chance needs an AUC in [0, 1], mu in [0, {MOST_MU:g}] and patients on both sides")
    return _reached(_law(members, holdout, mu, LAW_DRAWS), value)


def hit_chance(tpr: float, *, fpr: float, members: int, holdout: int, mu: float) -> float:
    """Chance of finding this share of members or more at ``fpr``, threshold as in ``statistics.hit_rate``, under a leak of at most ``mu``.

    With k = floor(fpr holdout), the true rate F of false alarms at the threshold is Beta(k + 1, holdout - k); given F, the members found
    are binomial(members, Phi(Phi^-1(F) + mu)). The chance is the mean over F, summed over
    1,000 cells at the upper end of each, so it is never understated, and overstated by less than 3 %.

    Raises:
        InputError: a share or a leak that is none, or a side without patients.
    """
    if not (0 <= tpr <= 1 and 0 < fpr < 1 and 0 <= mu <= MOST_MU and members > 0 and holdout > 0):
        raise InputError(f"a chance needs shares in [0, 1], mu in [0, {MOST_MU:g}] and patients on both sides")
    passed, found = passing(holdout, fpr), round(tpr * members)
    if found == 0:
        return 1.0
    tails = bdtrc(found - 1, members, ndtr(_thresholds(passed, holdout) + mu))
    return float((tails * np.diff(CELLS)).sum())


@lru_cache(maxsize=32)
def _thresholds(passed: int, holdout: int) -> NDArray[np.float64]:
    """Phi^-1 of the true rate of false alarms where ``passed`` of ``holdout`` pass, at the upper end of each cell."""
    return np.asarray(ndtri(betaincinv(passed + 1, holdout - passed, CELLS[1:])))


@lru_cache(maxsize=128)
def _law(members: int, holdout: int, mu: float, draws: int) -> NDArray[np.float64]:
    """AUCs of normal scores a distance mu apart, sorted, float64 [draws]."""
    rng, places, sums = np.random.default_rng(LAW_SEED), np.arange(1, members + holdout + 1), []
    for start in range(0, draws, BLOCK):
        scores = rng.standard_normal((min(BLOCK, draws - start), members + holdout), dtype=np.float32)
        scores[:, :members] += np.float32(mu)
        sums.append(((scores.argsort(axis=1) < members) * places).sum(1))
    law = np.sort((np.concatenate(sums) - members * (members + 1) / 2) / (members * holdout))
    law.flags.writeable = False
    return law


def _reached(law: NDArray[np.float64], value: float) -> float:
    return float(1 + len(law) - np.searchsorted(law, value - ROUNDING)) / (1 + len(law))


def gaussian_epsilon(members: Scores, holdout: Scores, *, delta: float, confidence: float = 0.95) -> float:
    """Lower bound of epsilon from the AUC, if the mechanism is mu-Gaussian DP for some mu; 0 at least.

    The smallest mu whose ``auc_chance`` is not below 1 - confidence, as the epsilon that it has at ``delta``. A bound on f-DP by ranks, so
    the shape of the scores does not matter; it holds for compositions of Gaussians and is no bound for other (epsilon, delta) mechanisms.

    Raises:
        InputError: a side is empty, or a score is not finite.
    """
    value, sizes = auc(members, holdout), (len(members), len(holdout))

    def refuted(mu: float) -> bool:
        return _reached(_law(*sizes, mu, BOUND_DRAWS), value) < 1 - confidence

    low, high = 0.0, MOST_MU
    if not refuted(low):
        return 0.0
    while high - low > MU_STEP:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return gdp_epsilon(low, delta)


def split_epsilon(members: Scores, holdout: Scores, *, delta: float, seed: int, confidence: float = 0.95) -> float:
    """Lower bound of epsilon for any (epsilon, delta)-DP mechanism, at one threshold; 0 at least.

    The threshold that looks best on a random half of each side's patients is certified on the other half, so that choosing costs nothing.
    There TPR and FPR are bounded by Clopper & Pearson, each at half of the error, and epsilon is at least
    max(ln((TPR - delta) / FPR), ln((1 - FPR - delta) / (1 - TPR))).

    Source: Jagielski, Ullman, Oprea 2020, arXiv:2006.07709, section 4 (bound); Nasr et al. 2021, arXiv:2101.04535 (threshold).

    Raises:
        InputError: fewer than two patients on a side, or a score that is not finite.
    """
    if min(len(members), len(holdout)) < 2 or not (np.isfinite(members).all() and np.isfinite(holdout).all()):
        raise InputError("a bound on half of the patients needs at least two finite scores on each side")
    rng, alarm = np.random.default_rng(seed), (1 - confidence) / 2
    (chosen_in, in_half), (chosen_out, out_half) = (np.array_split(rng.permutation(side), 2) for side in (members, holdout))
    seen = np.unique(np.concatenate([chosen_in, chosen_out]))
    thresholds = (seen[:-1] + seen[1:]) / 2 if len(seen) > 1 else seen
    best = thresholds[np.argmax(_threshold_epsilons(chosen_in, chosen_out, thresholds, delta=delta, alarm=alarm))]
    return float(_threshold_epsilons(in_half, out_half, np.array([best]), delta=delta, alarm=alarm)[0])


def _threshold_epsilons(inside: Scores, outside: Scores, thresholds: Scores, *, delta: float, alarm: float) -> NDArray[np.float64]:
    """Bound of epsilon at each threshold, scores above or at it counted as members; float64 [thresholds], 0 at least."""
    found, alarms = ((side[None] >= thresholds[:, None]).sum(1) for side in (inside, outside))
    tpr, fpr = share_bounds(found, len(inside), alarm=alarm)[0], share_bounds(alarms, len(outside), alarm=alarm)[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.maximum((tpr - delta) / fpr, (1 - fpr - delta) / (1 - tpr))
    return np.asarray(np.log(np.maximum(ratios, 1.0)))


def like_a_draw(members: int, holdout: int, *, share: float) -> bool:
    """Whether so many patients on each side could come from a draw of each with this chance: exact two-sided test at 1e-4.

    >>> like_a_draw(60, 40, share=0.6), like_a_draw(60, 60, share=0.1)
    (True, False)
    """
    from scipy.stats import binomtest

    return bool(binomtest(members, members + holdout, share).pvalue >= UNLIKELY)


def drawn_epsilon(members: Scores, holdout: Scores, *, share: float, delta: float, seed: int, confidence: float = 0.95) -> float:
    """Lower bound of epsilon for any mechanism from one run, where each patient became a member with chance ``share``, by a draw of its own.

    Of the likelier side each patient is kept with chance (smaller share) / (larger share); of those who are left a fair coin made each a member
    (Bayes), the others are as if they had always been there. Then ``coin_epsilon``; 0 where fewer than eight are left. A share that is not
    the true one makes a leak out of nothing: ask ``like_a_draw`` first.

    Raises:
        InputError: a share outside (0, 1), or a score that is not finite.
    """
    if not 0 < share < 1:
        raise InputError("the chance with which a patient was drawn a member lies between 0 and 1")
    rng = np.random.default_rng(seed)
    kept = [side[rng.random(len(side)) < min(1.0, rest / own)] for side, own, rest in ((members, share, 1 - share), (holdout, 1 - share, share))]
    if sum(map(len, kept)) < FEWEST_COINS:
        return 0.0
    return coin_epsilon(np.concatenate(kept), np.repeat([True, False], [len(side) for side in kept]), delta=delta, confidence=confidence)


def coin_epsilon(scores: Scores, present: NDArray[np.bool_], *, delta: float, confidence: float = 0.95) -> float:
    """Lower bound of epsilon for any mechanism from one run, where a fair coin of its own made each patient a member; 0 at least.

    Guesses "in" on the highest 3/8 of the scores, "out" on the lowest 1/8 and abstains on the rest, shares fixed beforehand. A split into
    shares of a fixed size is no toss of coins: then this bound says nothing.

    Source: Steinke, Nasr, Jagielski 2023, arXiv:2305.08846, theorem 5.2 (``dp.canaries.steinke_bound``).

    Args:
        scores: Score of every patient, members and others, float [n].
        present: Coin of each, bool [n].

    Raises:
        InputError: scores and coins do not fit, fewer than eight patients, or a score that is not finite.
    """
    from busgen_privacy.dp.canaries import GUESSED_IN, GUESSED_OUT, right_guesses, steinke_bound

    if len(scores) != len(present) or len(scores) < FEWEST_COINS or not np.isfinite(scores).all():
        raise InputError("a bound by coins needs a finite score for each of at least eight patients")
    inside, outside = int(GUESSED_IN * len(scores)), int(GUESSED_OUT * len(scores))
    right = right_guesses(scores, present, inside=inside, outside=outside)
    return steinke_bound(right, inside + outside, delta, canaries=len(scores), confidence=confidence)
