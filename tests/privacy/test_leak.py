"""Chances under a bounded leak are never understated, and lower bounds of epsilon stay below the truth."""

from itertools import combinations
from math import exp, log

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import beta, binom, mannwhitneyu, norm

from busgen_core.errors import InputError
from busgen_privacy.dp.accounting import gdp_mu
from busgen_privacy.dp.canaries import steinke_bound
from busgen_privacy.leak import auc_chance, auc_of, coin_epsilon, drawn_epsilon, gaussian_epsilon, hit_chance, mu_of, split_epsilon
from busgen_privacy.statistics import auc, hit_rate

Numbers = NDArray[np.float64]
MU_8 = gdp_mu(8.0, 1e-5)


def normals(rng: np.random.Generator, members: int, holdout: int, *, mu: float) -> tuple[Numbers, Numbers]:
    return rng.normal(mu, 1, members), rng.normal(0, 1, holdout)


def test_without_a_leak_the_chance_is_that_of_the_permutation_test() -> None:
    """At mu = 0 it is within three standard errors of the share of all 3,003 choices of 5 of 15 that reach the AUC, and of Mann-Whitney's."""
    scores = np.random.default_rng(0).permutation(15).astype(float)
    choices = [auc(scores[list(one)], np.delete(scores, list(one))) for one in combinations(range(15), 5)]
    for value in (0.4, 0.6, 0.7, 0.86):
        exact = float(np.mean(np.array(choices) >= value - 1e-9))
        assert auc_chance(value, members=5, holdout=10, mu=0) == pytest.approx(exact, abs=3 * np.sqrt(exact * (1 - exact) / 1e4) + 1e-4)
    members, holdout = normals(np.random.default_rng(1), 20, 15, mu=0.4)
    exact = float(mannwhitneyu(members, holdout, alternative="greater", method="exact").pvalue)
    assert auc_chance(auc(members, holdout), members=20, holdout=15, mu=0) == pytest.approx(exact, abs=0.015)


def test_the_chance_of_an_auc_is_that_of_the_slow_twin() -> None:
    """Normal scores drawn and compared pair by pair, 3,000 times, reach the AUC as often, to three standard errors."""
    rng, reached = np.random.default_rng(2), 0
    for _ in range(3000):
        members, holdout = normals(rng, 12, 9, mu=1.0)
        reached += sum(m > h for m in members for h in holdout) / 108 >= 0.85
    share = reached / 3000
    assert auc_chance(0.85, members=12, holdout=9, mu=1.0) == pytest.approx(share, abs=3.5 * np.sqrt(share * (1 - share) / 3000))


def test_the_chance_of_hits_is_that_of_the_slow_twin() -> None:
    """The integral written out over the density of the threshold's rate, each binomial tail on its own: at most 3 % below, never above."""
    for members, holdout, fpr, tpr, mu in ((30, 100, 0.01, 0.2, 0.0), (60, 150, 0.05, 0.3, 1.0), (50, 120, 0.02, 1.0, 1.666)):
        passed, grid = int(fpr * holdout), (np.arange(2000) + 0.5) / 5000
        tails = [binom.sf(round(tpr * members) - 1, members, norm.cdf(norm.ppf(rate) + mu)) for rate in grid]
        slow = float((beta.pdf(grid, passed + 1, holdout - passed) * np.array(tails)).sum() / 5000)
        assert 0.999 * slow <= hit_chance(tpr, fpr=fpr, members=members, holdout=holdout, mu=mu) <= 1.03 * slow + 1e-8


SHAPES = {"normal": lambda z: z, "long tail": np.exp, "ties": np.round, "almost all tied": lambda z: np.maximum(z.round(), 2.0)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mu", [0.0, 1.0])
def test_a_granted_leak_is_not_held_against_a_release(shape: str, mu: float) -> None:
    """Scores that leak just mu have chances below .05 and .01 in at most 5 % and 1 % of 1,000 samples (three standard errors): AUC and hits,
    whatever the scores' shape, ties among them."""
    rng, found = np.random.default_rng(3), []
    for _ in range(1000):
        members, holdout = (SHAPES[shape](side) for side in normals(rng, 40, 60, mu=mu))
        threshold = np.sort(holdout)[-4]  # floor(0.05 x 60) may pass
        hits = hit_chance(float((members > threshold).mean()), fpr=0.05, members=40, holdout=60, mu=mu)
        found.append((auc_chance(auc(members, holdout), members=40, holdout=60, mu=mu), hits))
    for level in (0.05, 0.01):
        assert (np.mean(np.array(found) <= level, axis=0) <= level + 3 * np.sqrt(level * (1 - level) / 1000)).all()


def test_a_larger_leak_is_noticed() -> None:
    """Scores that leak mu = 1.7 where .3 is granted have chances below .01 in most samples, by AUC and by hits."""
    rng, found = np.random.default_rng(4), []
    for seed in range(60):
        members, holdout = normals(rng, 60, 120, mu=1.7)
        rate = hit_rate(members, holdout, fpr=0.05, seed=seed, resamples=10)
        assert rate is not None
        sizes = {"members": 60, "holdout": 120, "mu": 0.3}
        found.append((auc_chance(auc(members, holdout), **sizes), hit_chance(rate.tpr, fpr=0.05, **sizes)))
    assert (np.mean(np.array(found) < 0.01, axis=0) > 0.8).all()


def test_a_leak_of_few_patients_shows_in_hits_not_in_the_auc() -> None:
    """8 of 100 members given away entirely, 92 not at all: AUC .54 has chance above .05, 8 % found at 1 % false alarms has below .01."""
    rng = np.random.default_rng(5)
    members, holdout = rng.normal(0, 1, 100), rng.normal(0, 1, 200)
    members[:8] += 100
    rate = hit_rate(members, holdout, fpr=0.01, seed=0, resamples=10)
    assert rate is not None
    assert auc_chance(auc(members, holdout), members=100, holdout=200, mu=0) > 0.05
    assert hit_chance(rate.tpr, fpr=0.01, members=100, holdout=200, mu=0) < 0.01


def test_chances_only_fall_as_figures_rise() -> None:
    """A larger AUC or hit rate, or a smaller leak granted, never has a larger chance; nothing found has chance 1."""
    aucs = [auc_chance(value, members=30, holdout=20, mu=0.4) for value in np.linspace(0, 1, 101)]
    hits = [hit_chance(value, fpr=0.05, members=30, holdout=20, mu=0.4) for value in np.linspace(0, 1, 31)]
    granted = [(auc_chance(0.7, members=30, holdout=20, mu=mu), hit_chance(0.3, fpr=0.05, members=30, holdout=20, mu=mu)) for mu in (0, 0.3, 1, 3)]
    assert (np.diff(aucs) <= 0).all()
    assert (np.diff(hits) <= 0).all()
    assert (np.diff(granted, axis=0) >= 0).all()
    assert aucs[0] == hits[0] == 1
    assert aucs[-1] == 1e-4


def test_auc_and_leak_are_two_words_for_one_thing() -> None:
    """mu of AUC .575, .694 and .881 is that of epsilon 1, 3 and 8; AUCs at 1/2 and below are no leak."""
    for value, epsilon in ((0.575, 1), (0.694, 3), (0.881, 8)):
        assert mu_of(value) == pytest.approx(gdp_mu(epsilon, 1e-5), abs=5e-3)
        assert auc_of(mu_of(value)) == pytest.approx(value)
    assert mu_of(0.5) == mu_of(0.2) == 0
    assert mu_of(1.0) == 12


def test_the_gaussian_bound_is_below_the_truth_and_sharp() -> None:
    """At epsilon 8 with 100 on each side it exceeds 8 in at most 5 % of 150 samples (three standard errors), and its median is above 5."""
    rng = np.random.default_rng(6)
    bounds = [gaussian_epsilon(*normals(rng, 100, 100, mu=MU_8), delta=1e-5) for _ in range(150)]
    assert np.mean(np.array(bounds) > 8.0) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)
    assert 5 < np.median(bounds) < 8


def test_the_gaussian_bound_reads_ranks_alone() -> None:
    """Scores of another shape but the same order have the same bound; scores that say nothing have 0."""
    members, holdout = normals(np.random.default_rng(7), 50, 40, mu=1.5)
    assert gaussian_epsilon(np.exp(members), np.exp(holdout), delta=1e-5) == gaussian_epsilon(members, holdout, delta=1e-5) > 0
    assert gaussian_epsilon(holdout, holdout + 1, delta=1e-5) == 0


def test_the_split_bound_is_below_the_truth() -> None:
    """At epsilon 8 with 150 on each side it exceeds neither 8 nor, in most samples, the 1.5 of all 300 canaries without a split;
    it is above nothing at all."""
    rng = np.random.default_rng(8)
    bounds = np.array([split_epsilon(*normals(rng, 150, 150, mu=MU_8), delta=1e-5, seed=seed) for seed in range(200)])
    assert (bounds > 8.0).mean() <= 0.05
    assert 0.5 < np.median(bounds) < 2.0


def test_the_split_bound_keeps_its_confidence_at_a_small_epsilon() -> None:
    """Randomised response at epsilon .5, where the bound's ratio is exact: above .5 in at most 5 % of 400 samples; at epsilon 3 it is above
    .5 in most, so it is not merely 0."""
    rng = np.random.default_rng(9)

    def above_half(epsilon: float) -> float:
        share = exp(epsilon) / (1 + exp(epsilon))
        sides = (((rng.random(60) < share).astype(float), (rng.random(60) >= share).astype(float)) for _ in range(400))
        return float(np.mean([split_epsilon(*both, delta=0.0, seed=seed) > 0.5 for seed, both in enumerate(sides)]))

    assert above_half(0.5) <= 0.05
    assert above_half(3.0) > 0.8


def test_the_split_bound_is_that_of_the_slow_twin_where_all_is_told_apart() -> None:
    """100 members above 100 others: half of each gives TPR .025^(1/50) and FPR 1 - .025^(1/50), and their log ratio."""
    sure = 0.025 ** (1 / 50)
    bound = split_epsilon(np.arange(100.0) + 1000, np.arange(100.0), delta=1e-5, seed=0)
    assert bound == pytest.approx(log((sure - 1e-5) / (1 - sure)), abs=1e-9)


def test_the_bound_by_coins_is_steinkes() -> None:
    """All 128 guesses on 256 patients right is ``steinke_bound``'s figure; at epsilon 8 with 300 patients the median is near 1.7."""
    present = np.arange(256) % 2 == 0
    assert coin_epsilon(present.astype(float), present, delta=0.0) == steinke_bound(128, 128, 0.0, canaries=256)
    rng, bounds = np.random.default_rng(10), []
    for _ in range(100):
        present = rng.random(300) < 0.5
        bounds.append(coin_epsilon(rng.normal(MU_8 * present, 1), present, delta=1e-5))
    assert 1.3 < np.median(bounds) < 2.1
    assert max(bounds) < 8


def test_the_bound_by_the_draw_is_the_one_by_coins_where_the_draw_was_fair() -> None:
    """With a share of one half nobody is left out, and the bound is ``coin_epsilon``'s; of few patients nothing is said; no share, no bound."""
    rng = np.random.default_rng(3)
    inside, outside = rng.normal(3, 1, 90), rng.normal(0, 1, 110)
    coins = coin_epsilon(np.concatenate([inside, outside]), np.arange(200) < 90, delta=1e-5)
    assert drawn_epsilon(inside, outside, share=0.5, delta=1e-5, seed=1) == coins > 0
    assert drawn_epsilon(inside[:4], outside[:3], share=0.5, delta=1e-5, seed=1) == 0
    for share in (0.0, 1.0, 1.5):
        with pytest.raises(InputError, match="between 0 and 1"):
            drawn_epsilon(inside, outside, share=share, delta=1e-5, seed=1)


@pytest.mark.parametrize("share", [0.6, 0.25])
def test_the_bound_by_the_draw_holds_for_uneven_draws(share: float) -> None:
    """Randomised response at epsilon 1, 400 patients: the bound is above 1 in at most 5 % of 400 runs (binomial slack), and is not idle.

    Without leaving patients out, guessing "member" of all would look like a leak: with six in ten members, or one in four.
    """
    rng, bounds = np.random.default_rng(11), []
    for run in range(400):
        present = rng.random(400) < share
        told = np.where(rng.random(400) < exp(1) / (1 + exp(1)), present, ~present) + 0.01 * rng.random(400)
        bounds.append(drawn_epsilon(told[present], told[~present], share=share, delta=0.0, seed=run))
    assert np.mean(np.array(bounds) > 1) <= 0.08
    assert np.median(bounds) > 0.2
    silent = [drawn_epsilon(rng.random(round(400 * share)), rng.random(round(400 * (1 - share))), share=share, delta=0.0, seed=n) for n in range(200)]
    assert np.mean(np.array(silent) > 0) <= 0.1


def test_what_is_no_score_is_refused() -> None:
    """NaN, an empty side, a coin too many, shares outside [0, 1]: InputError, never a chance or a bound."""
    good, bad = np.arange(8.0), np.array([np.nan, 1.0])
    for wrong in (
        lambda: gaussian_epsilon(good, bad, delta=1e-5),
        lambda: split_epsilon(good, bad, delta=1e-5, seed=0),
        lambda: split_epsilon(good, good[:1], delta=1e-5, seed=0),
        lambda: coin_epsilon(good, np.ones(9, dtype=bool), delta=1e-5),
        lambda: auc_chance(np.nan, members=3, holdout=3, mu=0),
        lambda: auc_chance(0.5, members=3, holdout=3, mu=-1),
        lambda: hit_chance(0.5, fpr=0, members=3, holdout=3, mu=0),
        lambda: hit_chance(1.1, fpr=0.1, members=3, holdout=3, mu=0),
    ):
        with pytest.raises(InputError):
            wrong()
