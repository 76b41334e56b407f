"""Rehearsal audit: canary patients go through the whole of ``adapt``, and what they leave behind is held against the claim.

Each canary is in or out of the cohort by a fair coin, and its gradient points along a coordinate that nobody else uses. The auditor
sees every update that the optimizer was given (white box: Nasr et al. 2023, arXiv:2302.07956), and asks four things:

1.  Can who was in be told better than the claimed epsilon allows? Two attacks (``likelihood_scores``, ``energy_scores``), two bounds:
    ``steinke_bound`` is certified, it holds for every mechanism that is (epsilon, delta)-DP, but stays low; ``epsilon_lower_bound``
    reads the scores as normal (Andrew et al. 2023, arXiv:2302.03098), which sees a halved sigma, and is checked by simulation.
2.  Do canaries enter as Poisson sampling has it? Exact binomial statements on how often and how evenly.
3.  Does a canary that enters move the update by C / (patient_rate x public_cohort), whoever else is present?
4.  Were there as many updates as steps in the account?

Right code is accused with chance at most 1 % a rehearsal, over all of these together. A rehearsal needs no patient: it runs in the
test suite, never on a hospital's budget. A low bound certifies nothing; a high one proves a bug.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import binom, norm

from busgen_core.errors import InputError
from busgen_privacy.dp.accounting import NO_PROMISE, gdp_epsilon
from busgen_privacy.dp.plan import DpSgdPlan

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]

# Chance that right code is accused: together at most 1 % a rehearsal. The last is shared by all checks of all runs.
GAUSSIAN_ALARM, CERTIFIED_ALARM, RUNS_ALARM = 5e-3, 1e-3, 3e-3
# Shares of canaries that the certified bound guesses on, chosen before looking; it abstains on the others. More "in" than "out": a canary
# that never entered a step looks like one that is out, whatever the bug.
GUESSED_IN, GUESSED_OUT = 3 / 8, 1 / 8
SHARPEST = 1e-4  # smallest standard error of a share: normalisation itself takes about a millionth off
MOST_MU = 50.0  # beyond it the normal model says no more than "told apart at sight"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsal:
    """One run of ``adapt`` with canaries, as seen by somebody who sees everything but the noise itself.

    Gradients are in units of what one patient may add to an update, C / (patient_rate x public_cohort).

    Attributes:
        plan: The claim: epsilon, delta, steps, rate, noise.
        present: Coin of each canary, bool [canaries].
        entered: Who entered each step, bool [steps, canaries]; false where the canary is absent.
        updates: Each canary's coordinate of each update, float64 [updates, canaries].
        unowned: Coordinates that no canary owns, float64 [updates, numbers].
        step_of: Step that made each update, int [updates].

    Raises:
        InputError: shapes that do not fit, or numbers that are not finite.
    """

    plan: DpSgdPlan
    present: Flags
    entered: Flags
    updates: Numbers
    unowned: Numbers
    step_of: NDArray[np.int64]

    def __post_init__(self) -> None:
        canaries, updates = len(self.present), len(self.step_of)
        shapes = (self.entered.shape, self.updates.shape, self.unowned.shape[:1])
        if shapes != ((self.plan.steps, canaries), (updates, canaries), (updates,)):
            raise InputError(f"a rehearsal's arrays do not fit each other: {shapes}")
        if not (np.isfinite(self.updates).all() and np.isfinite(self.unowned).all()):
            raise InputError("a rehearsal's updates are not all finite")
        if not updates or not 0 <= self.step_of.min() <= self.step_of.max() < self.plan.steps:
            raise InputError("a rehearsal has no updates, or updates of steps that the plan has not")
        if not 2 <= self.present.sum() <= canaries - 2:
            raise InputError("a rehearsal needs at least two canaries in and two out")


@dataclass(frozen=True, slots=True)
class Finding:
    """One statistic, and whether it accuses the code.

    Attributes:
        name: Short stable name.
        value: What was measured.
        limit: What the claim allows; the value may pass it by chance, the reason says whether it did by more.
        reason: One sentence for people; empty where nothing speaks against the code.
    """

    name: str
    value: float
    limit: float
    reason: str = ""


def gaussian_mu(scores_in: Numbers, scores_out: Numbers, *, confidence: float) -> float:
    """Lower confidence bound of the distance between two normal samples in standard deviations: mu of Gaussian DP; 0 at least.

    t sqrt(1/m + 1/n) with t Student's statistic, whose law is noncentral t; its distribution function is taken as
    Phi((t (1 - 1/(4 df)) - ncp) / sqrt(1 + t^2 / (2 df))) (Abramowitz & Stegun 1964, 26.7.10); a test holds it against the exact one.

    Raises:
        InputError: fewer than two scores on a side.
    """
    if min(len(scores_in), len(scores_out)) < 2:
        raise InputError("a bound needs at least two scores on each side")
    freedom = len(scores_in) + len(scores_out) - 2
    unit = sqrt(1 / len(scores_in) + 1 / len(scores_out))
    squares = float(((scores_in - scores_in.mean()) ** 2).sum() + ((scores_out - scores_out.mean()) ** 2).sum())
    difference = float(scores_in.mean() - scores_out.mean())
    if squares == 0:
        return MOST_MU if difference > 0 else 0.0
    t = difference / (sqrt(squares / freedom) * unit)
    lower = t * (1 - 1 / (4 * freedom)) - norm.isf(1 - confidence) * sqrt(1 + t**2 / (2 * freedom))
    return float(min(max(lower * unit, 0.0), MOST_MU))


def epsilon_lower_bound(scores_in: Numbers, scores_out: Numbers, delta: float, *, confidence: float = 0.95) -> float:
    """Lower confidence bound of epsilon, if scores are normal with one variance: the powerful bound, not the certified one.

    A Poisson-sampled composition is Gaussian only in the limit (Dong, Roth, Su 2022, arXiv:1905.02383, section 5); at few steps its
    epsilon lies above that of the normal fit to its scores, so the bound errs to the low side. The tests and the benchmark simulate it.

    Source: Andrew et al. 2023, arXiv:2302.03098, section 3 (epsilon of two fitted normals), here with a confidence bound.

    Args:
        scores_in: Scores of canaries that were in, float [m].
        scores_out: Scores of canaries that were out, float [n].
        delta: Delta at which epsilon is stated.
        confidence: One-sided.

    Raises:
        InputError: fewer than two scores on a side.
    """
    return gdp_epsilon(gaussian_mu(scores_in, scores_out, confidence=confidence), delta)


def steinke_chance(correct: int, guesses: int, epsilon: float, delta: float, *, canaries: int) -> float:
    """Largest chance of ``correct`` or more right guesses that (epsilon, delta)-DP allows.

    P[W >= v] <= P[B >= v] + 2 m delta max_i P[v > B >= v - i] / i, B binomial(r, e^eps / (1 + e^eps)), i from 1 to m; beyond v the
    maximum only falls. Steinke, Nasr, Jagielski 2023, arXiv:2305.08846, theorem 5.2.

    Args:
        correct: Right guesses, v.
        guesses: Canaries guessed on, r; the rest were abstained on.
        epsilon: Claim to test.
        delta: Claim to test.
        canaries: Canaries whose coin was tossed, m.

    Raises:
        InputError: not 0 <= correct <= guesses <= canaries.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise InputError(f"need 0 <= correct <= guesses <= canaries: {correct}, {guesses}, {canaries}")
    each = float(expit(epsilon))
    below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, each))
    worst = float((below / np.arange(1, correct + 1)).max(initial=0.0))
    return min(float(binom.sf(correct - 1, guesses, each)) + 2 * canaries * delta * worst, 1.0)


def steinke_bound(correct: int, guesses: int, delta: float, *, canaries: int, confidence: float = 0.95) -> float:
    """Certified lower confidence bound of epsilon from right guesses, for any mechanism and in one run; 0 at least.

    Source and arguments: ``steinke_chance``.

    >>> round(steinke_bound(256, 256, 0.0, canaries=512), 3)
    4.442
    """

    def excess(epsilon: float) -> float:
        return steinke_chance(correct, guesses, epsilon, delta, canaries=canaries) - (1 - confidence)

    if excess(0.0) >= 0:
        return 0.0
    return float(brentq(excess, 0.0, NO_PROMISE, xtol=1e-9)) if excess(NO_PROMISE) > 0 else NO_PROMISE


def likelihood_scores(run: Rehearsal) -> Numbers:
    """Log likelihood ratio in/out of each canary over all updates, float64 [canaries]: the best attack on right code.

    Sum over updates of log(1 - q + q exp((2 x - 1) / (2 s^2))), s the noise of that update as measured on unowned coordinates
    (Neyman-Pearson; the pair of Mironov et al. 2019, arXiv:1908.10530, section 3.3). An update without noise weighs most.
    """
    rate = run.plan.patient_rate
    noise = np.maximum(np.sqrt((run.unowned**2).mean(1)), 1e-6)[:, None]
    exponent = (2 * run.updates - 1) / (2 * noise**2)
    stays = np.log1p(-rate) if rate < 1 else -inf
    return np.asarray(np.logaddexp(stays, np.log(rate) + exponent).sum(0))


def energy_scores(run: Rehearsal) -> Numbers:
    """Energy of each canary's updates where the noise is quiet, float64 [canaries]: the attack on noise that repeats.

    x' S^-1 x, S the covariance of updates as measured on unowned coordinates: noise that two updates share cancels in their
    difference, and what a canary added remains. For right code it tells next to nothing.
    """
    covariance = run.unowned @ run.unowned.T / run.unowned.shape[1]
    covariance += np.eye(len(covariance)) * max(1e-6 * float(np.trace(covariance)) / len(covariance), 1e-12)
    return np.asarray((run.updates * np.linalg.solve(covariance, run.updates)).sum(0))


def right_guesses(scores: Numbers, present: Flags, *, inside: int, outside: int) -> int:
    """Right ones among the guesses that the ``inside`` highest scores were in and the ``outside`` lowest were out.

    >>> right_guesses(np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, False, True, True]), inside=2, outside=1)
    1
    """
    order = np.argsort(scores, kind="stable")
    return int(present[order[len(order) - inside :]].sum() + (~present[order[:outside]]).sum())


def spread_chance(counts: NDArray[np.int64], *, size: int, rate: float) -> float:
    """Two-sided chance that independent binomial(size, rate) counts vary as these do; exact.

    The statistic is the sum of (count - round(size rate))^2, an integer, whose law is a power of one count's law in the Fourier
    domain. Turns of a shuffled epoch and batches of fixed size vary too little; batches drawn once and kept vary too much.

    Args:
        counts: Independent counts, int [n].
        size: Tries behind each count.
        rate: Chance of each try.
    """
    values = (np.arange(size + 1) - round(size * rate)) ** 2
    measured = int(((counts - round(size * rate)) ** 2).sum())
    single = np.bincount(values, weights=binom.pmf(np.arange(size + 1), size, rate), minlength=int(values.max()) * len(counts) + 1)
    law = np.fft.irfft(np.fft.rfft(single) ** len(counts), len(single))
    return float(np.clip(2 * min(law[: measured + 1].sum(), law[measured:].sum()), 0.0, 1.0))


def participation_chances(run: Rehearsal) -> dict[str, float]:
    """Chance under Poisson sampling of how often canaries entered, how evenly turns fell, and how even step sizes are."""
    entered, rate = run.entered[:, run.present], run.plan.patient_rate
    turns, sizes = entered.sum(0), entered.sum(1)
    total, tries = int(turns.sum()), entered.size
    often = min(2 * min(binom.cdf(total, tries, rate), binom.sf(total - 1, tries, rate)), 1.0)
    if rate == 1:
        return {"entries": float(often)}
    return {
        "entries": float(often),
        "turns of a patient": spread_chance(turns, size=run.plan.steps, rate=rate),
        "sizes of a step": spread_chance(sizes, size=entered.shape[1], rate=rate),
    }


def share_of_an_entry(run: Rehearsal) -> tuple[float, float]:
    """What entering a step adds to a canary's coordinate, 1 as claimed, and its standard error.

    Mean over (step, canary) cells with an entry minus the mean over those without; noise is independent between cells.
    """
    steps = np.zeros((run.plan.steps, len(run.present)))
    np.add.at(steps, run.step_of, run.updates)
    inside, outside = steps[run.entered], steps[~run.entered]
    if min(len(inside), len(outside)) < 2:
        raise InputError("the canaries' share needs steps with and without them")
    variance = float(inside.var(ddof=1)) / len(inside) + float(outside.var(ddof=1)) / len(outside)
    return float(inside.mean() - outside.mean()), max(sqrt(variance), SHARPEST)


def examine(runs: Sequence[Rehearsal]) -> list[Finding]:
    """Every statistic over the runs of one rehearsal, all of one plan but with cohorts of different size.

    Guarantees: code that does what ``plan`` says is accused with chance at most 1 %, all findings together: .5 % by the normal
    bound (a model; simulated), .2 % by the certified ones, .3 % by participation and share (exact, and normal), which all runs divide.

    Raises:
        InputError: no run, or runs of different plans.
    """
    if not runs or any(run.plan != runs[0].plan for run in runs):
        raise InputError("a rehearsal needs runs, all of one plan")
    alarm = RUNS_ALARM / (4 * len(runs))
    return [*_epsilon_findings(runs), *(finding for run in runs for finding in _run_findings(run, alarm=alarm))]


def judge(runs: Sequence[Rehearsal]) -> list[str]:
    """Reasons to believe that the code does not do what the plan claims; empty for right code in at least 99 % of rehearsals."""
    return [finding.reason for finding in examine(runs) if finding.reason]


def epsilon_bounds(runs: Sequence[Rehearsal], *, normal: float, certified: float) -> dict[str, float]:
    """Lower bounds of epsilon by name: one that reads scores as normal, two certified ones, each at its own confidence."""
    delta, present = runs[0].plan.delta, np.concatenate([run.present for run in runs])
    likelihood, energy = (np.concatenate([attack(run) for run in runs]) for attack in (likelihood_scores, energy_scores))
    inside, outside = int(GUESSED_IN * len(present)), int(GUESSED_OUT * len(present))
    bounds = {"epsilon, normal scores": epsilon_lower_bound(likelihood[present], likelihood[~present], delta, confidence=normal)}
    for name, scores in (("likelihood", likelihood), ("energy", energy)):
        right = right_guesses(scores, present, inside=inside, outside=outside)
        bounds[f"epsilon, certified, {name}"] = steinke_bound(right, inside + outside, delta, canaries=len(present), confidence=certified)
    return bounds


def _epsilon_findings(runs: Sequence[Rehearsal]) -> list[Finding]:
    claim = runs[0].plan.epsilon
    bounds = epsilon_bounds(runs, normal=1 - GAUSSIAN_ALARM, certified=1 - CERTIFIED_ALARM)
    reasons = {name: f"{name}: at least {bound:.2f}, {claim:.2f} is claimed" for name, bound in bounds.items() if bound > claim}
    return [Finding(name, bound, claim, reasons.get(name, "")) for name, bound in bounds.items()]


def _run_findings(run: Rehearsal, *, alarm: float) -> list[Finding]:
    rate, made, steps = run.plan.patient_rate, len(run.step_of), run.plan.steps
    found = [Finding("updates", made, steps, f"{made} updates were made, {steps} are in the account" if made != steps else "")]
    for what, chance in participation_chances(run).items():
        reason = f"{what}: chance {chance:.1e} under Poisson sampling at {rate:g}" if chance < alarm else ""
        found.append(Finding(f"participation, {what}", chance, alarm, reason))
    if rate < 1:
        share, error = share_of_an_entry(run)
        reason = f"a canary that enters moves the update by {share:.3g} of C / (patient_rate x public_cohort), not by 1"
        found.append(Finding("share of an entry", share, 1.0, reason if 2 * norm.sf(abs(share - 1) / error) < alarm else ""))
    return found
