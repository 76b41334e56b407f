"""Canaries through the whole of ``adapt``: right code is let pass, every planted bug is accused; and the bounds are what they say."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from math import comb, exp, log, sqrt
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import nct

from busgen_core.errors import InputError
from busgen_privacy.dp.accounting import gdp_mu
from busgen_privacy.dp.canaries import (
    Rehearsal,
    energy_scores,
    epsilon_lower_bound,
    examine,
    gaussian_mu,
    judge,
    likelihood_scores,
    right_guesses,
    share_of_an_entry,
    spread_chance,
    steinke_bound,
    steinke_chance,
)
from tests.privacy.rehearsal import BUGS, ideal, rehearsal_plan, rehearse, rehearse_both

PLAN = rehearsal_plan()

# Canaries a run that are enough to see each bug, the runs, and what must accuse it.
QUICK = {
    "sigma halved": (256, rehearse_both, "epsilon, normal scores"),
    "no clipping": (64, rehearse, "moves the update by 1e+03"),
    "clipping per image": (64, rehearse, "moves the update by"),
    "shuffling": (64, rehearse, "turns of a patient"),
    "batches of one size": (96, rehearse, "sizes of a step"),
    "private denominator": (96, rehearse, "moves the update by"),
    "noise once per accumulation": (128, rehearse, "epsilon, normal scores"),
    "noise used twice": (256, rehearse_both, "epsilon, certified, energy"),
}


def runs_of(found: Rehearsal | list[Rehearsal]) -> list[Rehearsal]:
    return found if isinstance(found, list) else [found]


def test_right_code_is_let_pass(tmp_path: Path) -> None:
    """The real ``adapt``, two cohort sizes: nothing accuses it, and every lower bound lies below the claimed epsilon."""
    runs = rehearse_both(tmp_path, seed=1)
    assert judge(runs) == []
    bounds = [finding for finding in examine(runs) if finding.name.startswith("epsilon")]
    assert len(bounds) == 3
    assert all(finding.value < PLAN.epsilon for finding in bounds)
    for run in runs:  # C / (q x public cohort), whoever else is present
        share, error = share_of_an_entry(run)
        assert abs(share - 1) < 4 * error < 0.5


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_accused(tmp_path: Path, name: str) -> None:
    """With the watchdog deaf, what canaries leave behind accuses each bug, and by the statistic that ought to see it."""
    canaries, through, words = QUICK[name]
    runs = runs_of(through(tmp_path, seed=1, canaries=canaries, bug=BUGS[name]))
    assert any(words in reason for reason in judge(runs)), judge(runs)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_accused_whatever_the_noise(tmp_path: Path, name: str) -> None:
    """The same with all canaries and other coins, samplings and noise; ``bench/canaries.py`` gives the power."""
    assert all(judge(rehearse_both(tmp_path, seed=seed, bug=BUGS[name])) for seed in (11, 12))


@pytest.mark.slow
def test_right_code_is_let_pass_whatever_the_noise(tmp_path: Path) -> None:
    """Ten rehearsals of right code: none is accused; at a rate of 1 % two would be, once in 240 times."""
    assert sum(bool(judge(rehearse_both(tmp_path, seed=seed))) for seed in range(20, 30)) <= 1


def test_right_code_is_accused_seldom() -> None:
    """60 simulated rehearsals of the ideal mechanism: at the promised 1 % three accusations have a chance of 3 %; the benchmark has 1,000."""
    assert sum(bool(judge([ideal(PLAN, seed=seed, canaries=64)])) for seed in range(60)) <= 2


def test_the_normal_bound_sees_only_large_errors() -> None:
    """Teeth and limits: a canary of 1.8 C in the ideal mechanism is accused by its epsilon, one of 1.1 C is not (shares see both at length)."""
    loud, slight = ([ideal(PLAN, seed=seed, canaries=256, gain=gain) for seed in (0, 1)] for gain in (1.8, 1.1))
    assert examine(loud)[0].reason
    assert not examine(slight)[0].reason


def slow_steinke(correct: int, guesses: int, epsilon: float, delta: float, canaries: int) -> float:
    """The same bound, term by term as it is printed."""
    each = exp(epsilon) / (1 + exp(epsilon))
    chance = [comb(guesses, k) * each**k * (1 - each) ** (guesses - k) for k in range(guesses + 1)]
    alpha = max(sum(chance[max(correct - i, 0) : correct]) / i for i in range(1, canaries + 1))
    return min(1.0, sum(chance[correct:]) + 2 * canaries * delta * alpha)


@pytest.mark.parametrize(("correct", "guesses", "canaries"), [(20, 20, 40), (17, 20, 20), (3, 10, 30), (0, 10, 10), (55, 60, 90)])
@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.0), (1.0, 1e-5), (3.0, 1e-2)])
def test_the_certified_chance_is_the_published_one(correct: int, guesses: int, canaries: int, epsilon: float, delta: float) -> None:
    """The fast formula is the printed sum."""
    expected = slow_steinke(correct, guesses, epsilon, delta, canaries)
    assert steinke_chance(correct, guesses, epsilon, delta, canaries=canaries) == pytest.approx(expected, rel=1e-9)


def test_the_certified_bound_holds() -> None:
    """Randomised response at epsilon 1 is the worst case: its bound passes 1 in at most 5 % of runs, and seldom in far fewer."""
    right = np.random.default_rng(0).binomial(100, exp(1) / (1 + exp(1)), size=4000)
    bound = {int(k): steinke_bound(int(k), 100, 0.0, canaries=100) for k in np.unique(right)}
    above = np.mean([bound[int(k)] > 1 for k in right])
    assert 0.02 < above <= 0.06
    assert list(bound.values()) == sorted(bound.values())


def test_guesses_no_better_than_chance_bound_nothing() -> None:
    """Half of the guesses right: epsilon may be 0. All right: the bound is the closed form of a power."""
    assert steinke_bound(50, 100, 1e-5, canaries=200) == 0
    assert steinke_bound(100, 100, 0.0, canaries=100) == pytest.approx(log(0.05**0.01 / (1 - 0.05**0.01)), abs=1e-6)


@pytest.mark.parametrize("distance", [0.0, 0.6, 2.0, 8.0])
def test_the_normal_bound_is_students(distance: float) -> None:
    """The closed form inverts the noncentral t distribution: at the bound, what was measured has a chance of 5 %, to a few parts in a thousand."""
    rng = np.random.default_rng(3)
    inside, outside = rng.normal(distance, 1, 120), rng.normal(0, 1, 100)
    bound = gaussian_mu(inside, outside, confidence=0.95)
    pooled = sqrt((119 * inside.var(ddof=1) + 99 * outside.var(ddof=1)) / 218)
    unit = sqrt(1 / 120 + 1 / 100)
    chance = nct.sf((inside.mean() - outside.mean()) / (pooled * unit), 218, bound / unit)
    assert chance == pytest.approx(0.05, abs=0.003) if bound > 0 else chance > 0.05


def test_the_normal_bound_holds() -> None:
    """Of 2,000 samples with distance 1, 95 % bounds pass 1 in about 5 %."""
    rng = np.random.default_rng(4)
    above = np.mean([gaussian_mu(rng.normal(1, 1, 60), rng.normal(0, 1, 60), confidence=0.95) > 1 for _ in range(2000)])
    assert 0.035 < above < 0.065


@pytest.mark.parametrize(("rate", "steps", "sigma"), [(0.25, 16, 2.0), (0.25, 16, 1.0), (1.0, 4, 3.0)])
def test_reading_scores_as_normal_errs_to_the_low_side(rate: float, steps: int, sigma: float) -> None:
    """20,000 canaries in and out of the mechanism on paper: the mu of their scores stays below that of the claimed epsilon (to 3 of its errors)."""
    plan = rehearsal_plan(patient_rate=rate, steps=steps, noise_multiplier=sigma)
    run = ideal(plan, seed=0, canaries=40_000)
    scores = likelihood_scores(run)
    fitted = gaussian_mu(scores[run.present], scores[~run.present], confidence=0.5)
    assert 0.4 < fitted / gdp_mu(plan.epsilon, plan.delta) < 1 + 0.03 / fitted


def test_scores_without_spread_are_told_apart_at_sight() -> None:
    """No noise at all is the largest bound, not a division by zero; in reverse order it is no bound."""
    low, high = np.zeros(5), np.ones(5)
    assert epsilon_lower_bound(high, low, 1e-5) > 1000
    assert epsilon_lower_bound(low, high, 1e-5) == 0


def slow_spread(counts: list[int], size: int, rate: float) -> float:
    """Every sum of squares with its chance, one count after another."""
    single: dict[int, float] = defaultdict(float)
    for k in range(size + 1):
        single[(k - round(size * rate)) ** 2] += comb(size, k) * rate**k * (1 - rate) ** (size - k)
    law = {0: 1.0}
    for _ in counts:
        longer: dict[int, float] = defaultdict(float)
        for total, chance in law.items():
            for square, more in single.items():
                longer[total + square] += chance * more
        law = longer
    measured = sum((k - round(size * rate)) ** 2 for k in counts)
    below, above = (sum(c for total, c in law.items() if keep(total)) for keep in (lambda t: t <= measured, lambda t: t >= measured))
    return min(1.0, 2 * min(below, above))


@pytest.mark.parametrize("counts", [[2, 2, 2, 2, 2], [0, 5, 1, 2, 8], [3, 2, 1, 2, 3]])
@pytest.mark.parametrize("rate", [0.25, 0.31])
def test_the_chance_of_a_spread_is_exact(counts: list[int], rate: float) -> None:
    """The Fourier power is the convolution."""
    assert spread_chance(np.array(counts), size=8, rate=rate) == pytest.approx(slow_spread(counts, 8, rate), rel=1e-9, abs=1e-14)


def test_the_chance_of_a_spread_is_uniform_for_sound_sampling() -> None:
    """Of 600 sound samplings, about 5 % have a chance below 5 %; turns in rotation and a frozen batch have next to none."""
    rng = np.random.default_rng(5)
    assert 0.02 < np.mean([spread_chance(rng.binomial(16, 0.25, 40), size=16, rate=0.25) < 0.05 for _ in range(600)]) < 0.08
    assert spread_chance(np.full(40, 4), size=16, rate=0.25) < 1e-9
    assert spread_chance(np.where(np.arange(40) % 4, 0, 16), size=16, rate=0.25) < 1e-9


def test_the_likelihood_is_summed_over_updates() -> None:
    """The score is the log likelihood ratio, term by term; by it, who was in is told better than by the plain sum."""
    run = ideal(PLAN, seed=0, canaries=256)
    noise = [sqrt(float((row**2).mean())) for row in run.unowned]
    slow = [sum(log(0.75 + 0.25 * exp((2 * x - 1) / (2 * s**2))) for x, s in zip(run.updates[:, i], noise, strict=True)) for i in range(256)]
    assert likelihood_scores(run) == pytest.approx(np.array(slow), rel=1e-9)


def test_an_update_without_noise_decides() -> None:
    """Where one update of many has no noise, the likelihood gives away everybody who entered it."""
    run = ideal(PLAN, seed=0, canaries=64)
    bare = np.vstack([run.updates, run.entered[:1].astype(float)])
    open_run = replace(run, updates=bare, unowned=np.vstack([run.unowned, np.zeros_like(run.unowned[:1])]), step_of=np.append(run.step_of, 0))
    scores = likelihood_scores(open_run)
    assert scores[run.entered[0]].min() > scores[~run.entered[0]].max() + 100


def test_energy_cancels_noise_that_repeats() -> None:
    """Two updates with one noise: their difference tells who entered one of them; with fresh noise the energy tells nothing."""
    run = ideal(PLAN, seed=0, canaries=256)
    owned, free = run.updates - run.entered, run.unowned
    again = replace(run, updates=run.entered + np.repeat(owned[::2], 2, 0), unowned=np.repeat(free[::2], 2, 0))
    once = (run.entered[::2] != run.entered[1::2]).any(0)
    scores = energy_scores(again)
    assert scores[once].min() > scores[~once].max()
    fresh = energy_scores(run)
    assert right_guesses(fresh, run.present, inside=96, outside=32) < 85


@pytest.mark.parametrize(
    "broken",
    [
        lambda run: replace(run, entered=run.entered[:-1]),
        lambda run: replace(run, unowned=run.unowned * np.nan),
        lambda run: replace(run, present=np.zeros_like(run.present)),
        lambda run: replace(run, step_of=run.step_of + 1),
        lambda run: judge([]),
        lambda run: judge([run, replace(run, plan=rehearsal_plan(noise_multiplier=3.0))]),
        lambda run: steinke_chance(5, 4, 1.0, 0.0, canaries=10),
        lambda run: gaussian_mu(np.zeros(1), np.zeros(5), confidence=0.9),
    ],
    ids=["steps", "not finite", "nobody in", "updates after the end", "no run", "two plans", "more right than guessed", "one score"],
)
def test_what_does_not_fit_is_refused(broken: Callable[[Rehearsal], object]) -> None:
    """Arrays that do not belong together end in InputError, not in a verdict."""
    with pytest.raises(InputError):
        broken(ideal(PLAN, seed=0, canaries=16))
