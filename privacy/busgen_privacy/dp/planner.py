"""From public figures alone - cohort size, epsilon, delta, allowed time - to a plan, and what to expect of it. Nothing is spent here.

Budget is split in squares of mu (Gaussian DP: J. Dong, A. Roth, W. Su 2022, arXiv:1905.02383, corollary 3.3): a mechanism with share s of
mu^2 gets noise 1 / sqrt(s mu^2); the last one's noise is then solved exactly, by both accountants, beside the others and the audit.

Which mechanisms run follows from the noise they would have. Thresholds and expectations come from rehearsals (``rehearsals.json``,
written by ``bench/rehearsals.py``), never from the hospital's own images: tuning on those would cost budget.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from math import ceil, sqrt

from pydantic import BaseModel, ConfigDict

from busgen_core.errors import ConfigError
from busgen_privacy.dp.accounting import GaussianEvent, epsilon_of, gdp_mu, noise_for
from busgen_privacy.dp.means import expected_deviation
from busgen_privacy.dp.plan import LEARNING_RATE, AdaptationPlan, DpSgdPlan, Mechanism, Subset, choose_subset
from busgen_privacy.dp.reference import PER_CLASS
from busgen_privacy.policy import Policy

ORDER: tuple[Mechanism, ...] = ("vote", "mean", "dp-sgd")
LOUDEST_MEAN = 1.0  # noise on a class mean, in deviations of an image, above which rehearsals showed no gain
LOUDEST_VOTE = 0.1  # noise on a vote count, as a share of the cohort, above which the histogram is noise
SHARES: Mapping[Mechanism, float] = {"vote": 0.1, "mean": 0.9}
CANDIDATES = 4
DPSGD_SHARE = 0.5  # of mu^2, where a DP-SGD run is asked for beside vote and means
IMAGES_EACH = 1.5  # images of a patient, on average: public experience of breast ultrasound sets
AUDIT_LOOKS = 10.0  # gradients' worth of work that the audit does for each member's image where a network was trained (bench/audit_speed.py)
AUDIT_SECONDS = 60.0  # of attacks on images, the search for copies and the reading of text
OVERHEAD = 1.2  # of a job over the parts that are reckoned: encoding, signing, starts
AUDIT_SHARE = 0.1  # of mu^2, at most, that the audit's figures may use
RATE, STEPS = 0.1, 30  # of a DP-SGD run where the settings leave them open: as rehearsed (bench/rehearsals_dpsgd.py)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mechanics:
    """How a DP-SGD run is cut: steps, chance of a patient to enter one, noise draws an image; None chooses the subset by size."""

    steps: int
    patient_rate: float
    draws: int
    subset: Subset | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds on this machine: to draw one image, to look at one in all styles, for one patient's gradient of one image."""

    image: float
    look: float
    gradient: float


class Rehearsal(BaseModel):
    """One line of the rehearsals: what a plan gave where nothing private was at stake.

    Attributes:
        patients: Members of the rehearsal.
        epsilon: Of the adaptation, at delta 1e-5.
        choice: Mechanisms that ran, joined by "+", or "foundation".
        gain: AUC after - AUC before, train on synthetic, test on real.
        low: Lower end of its 95 % interval.
        high: Upper end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    patients: int
    epsilon: float
    choice: str
    gain: float
    low: float
    high: float


class Forecast(BaseModel):
    """What a plan will spend, how long it takes here, and what rehearsals lead one to expect.

    Attributes:
        plan: ``AdaptationPlan.to_dict``.
        choice: Mechanisms, joined by "+", or "foundation".
        epsilon: Stated epsilon of mechanisms and audit together.
        pld: By the first accountant.
        prv: By the second.
        delta: Of these.
        spends: For each mechanism, its epsilon had it been run alone.
        seconds: Expected on this machine, or None where nothing was measured.
        expected: The rehearsal nearest in cohort and epsilon, or None.
        reasons: Why this plan, in words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: dict[str, object]
    choice: str
    epsilon: float
    pld: float
    prv: float
    delta: float
    spends: dict[str, float]
    seconds: float | None
    expected: Rehearsal | None
    reasons: tuple[str, ...]

    def words(self) -> str:
        """For people: one fact a line."""
        lines = [f"plan: {self.choice}", *(f"  because {reason}" for reason in self.reasons)]
        lines.append(f"spends: epsilon {self.epsilon:.3f} at delta {self.delta:g} (PLD {self.pld:.3f}, PRV {self.prv:.3f}), for every patient")
        lines += [f"  {name}: {epsilon:.3f} if it were alone" for name, epsilon in self.spends.items()]
        if self.seconds is not None:
            lines.append(f"takes: about {self.seconds / 60:.1f} minutes on this machine")
        if self.expected is None:
            lines.append("expect: nothing; no rehearsal had so few patients and so little epsilon")
        else:
            e = self.expected
            gain = f"{e.gain:+.3f} ({e.low:+.3f} to {e.high:+.3f})"
            lines.append(f"expect: AUC {gain} over the foundation as it is, in rehearsals with {e.patients} patients at epsilon {e.epsilon:g}")
        return "\n".join(lines)


def split(
    shares: Mapping[Mechanism, float],
    *,
    policy: Policy,
    epsilon: float,
    delta: float,
    mechanics: Mechanics | None = None,
    candidates: int = CANDIDATES,
) -> AdaptationPlan:
    """The plan that spends ``epsilon`` on some mechanisms and the audit's figures.

    Guarantees: ``epsilon_of([*plan.events(), plan.audit_event()], delta=delta).epsilon <= epsilon``, checked on what is returned.

    Args:
        shares: Share of each mechanism in mu^2, above 0; a mechanism that is not named does not run.
        policy: Its public_cohort and audit_noise are used.
        epsilon: Of the campaign.
        delta: Of the campaign.
        mechanics: Of DP-SGD; needed where it has a share.
        candidates: Images drawn for each one released.

    Raises:
        ConfigError: an argument is outside its range.
    """
    bare = AdaptationPlan(public_cohort=policy.public_cohort, epsilon=epsilon, delta=delta, audit_noise=audit_noise(policy, epsilon, delta))
    run = [name for name in ORDER if shares.get(name, 0) > 0]
    if not run:
        return checked(bare)
    beside, noise = [bare.audit_event()], {}
    left = gdp_mu(epsilon, delta) ** 2 - 1 / bare.audit_noise**2
    for name in run[:-1]:
        noise[name] = 1 / sqrt(left * shares[name] / sum(shares[n] for n in run))
        beside.append(GaussianEvent(noise[name], 1.0, 1))
    rate, steps = (mechanics.patient_rate, mechanics.steps) if mechanics and run[-1] == "dp-sgd" else (1.0, 1)
    noise[run[-1]] = noise_for(epsilon=epsilon, delta=delta, sample_rate=rate, steps=steps, beside=beside)
    return checked(
        replace(
            bare,
            vote_noise=noise.get("vote"),
            mean_noise=noise.get("mean"),
            dpsgd=_dpsgd(policy, epsilon, delta, mechanics, noise["dp-sgd"]) if "dp-sgd" in noise else None,
            candidates=candidates if {"vote", "mean"} & set(run) else 1,
        )
    )


def audit_noise(policy: Policy, epsilon: float, delta: float) -> float:
    """Noise of the audit's figures that travel: the policy's, or more where that would use over a tenth of mu^2."""
    return max(policy.audit_noise, sqrt(1 / AUDIT_SHARE) / gdp_mu(epsilon, delta))


def checked(plan: AdaptationPlan) -> AdaptationPlan:
    """The plan, if it keeps its epsilon beside the audit's figures; otherwise ConfigError."""
    plan.check([plan.audit_event()])
    return plan


def _dpsgd(policy: Policy, epsilon: float, delta: float, mechanics: Mechanics | None, noise: float) -> DpSgdPlan:
    if mechanics is None:
        raise ConfigError("a plan with DP-SGD needs its steps, patient rate and draws")
    subset = mechanics.subset or choose_subset(epsilon=epsilon, delta=delta, public_cohort=policy.public_cohort)
    return DpSgdPlan(
        public_cohort=policy.public_cohort,
        subset=subset,
        steps=mechanics.steps,
        patient_rate=mechanics.patient_rate,
        draws=mechanics.draws,
        clip_norm=1.0,
        noise_multiplier=noise,
        learning_rate=LEARNING_RATE[subset],
        epsilon=epsilon,
        delta=delta,
    )


def recommend(*, policy: Policy, epsilon: float, delta: float, mechanics: Mechanics | None = None, candidates: int = CANDIDATES) -> AdaptationPlan:
    """The best plan that rehearsals support; ``reasons`` say why. Only public figures enter; a cohort that is too small is told so here.

    Args:
        policy: Its public_cohort and audit_noise are used.
        epsilon: Of the campaign.
        delta: Of the campaign.
        mechanics: Of a DP-SGD run, where the settings want one; then it gets ``DPSGD_SHARE`` of mu^2.
        candidates: Images drawn for each one released, where the plan selects.

    Raises:
        ConfigError: an argument is outside its range.
    """
    cohort = policy.public_cohort
    shares: dict[Mechanism, float] = dict(SHARES)
    if mechanics:
        shares = {name: share * (1 - DPSGD_SHARE) for name, share in SHARES.items()} | {"dp-sgd": DPSGD_SHARE}
    plan = split(shares, policy=policy, epsilon=epsilon, delta=delta, mechanics=mechanics, candidates=candidates)
    noise = expected_deviation(noise_multiplier=plan.mean_noise or 0.0, public_cohort=cohort)
    if noise <= LOUDEST_MEAN:
        return replace(plan, reasons=(f"noise on a class mean is {noise:.2f} deviations of an image; up to {LOUDEST_MEAN:g} helped in rehearsals",))
    too_small = f"{cohort} patients are too few for class means at epsilon {epsilon:g}: their noise would be {noise:.2f} deviations of an image"
    plan = split({"vote": 1.0}, policy=policy, epsilon=epsilon, delta=delta, candidates=1)
    share = (plan.vote_noise or 0.0) / cohort
    if share <= LOUDEST_VOTE:
        return replace(plan, reasons=(too_small, "the simulator's styles can still be calibrated by vote"))
    nothing = split({}, policy=policy, epsilon=epsilon, delta=delta)
    as_it_is = "the foundation is sampled as it is; nothing is spent on members but the audit"
    return replace(nothing, reasons=(too_small, f"a vote's noise would be {share:.0%} of the cohort", as_it_is))


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How much work a plan may be: candidates for each released image, and the chance to enter a DP-SGD step and their number."""

    candidates: int
    patient_rate: float
    steps: int


# Dearest first. Candidates go last to two, below which nothing can be chosen; a step of fewer patients is as loud but shorter, so the rate goes
# before the number of steps.
EFFORTS = (
    Effort(candidates=CANDIDATES, patient_rate=RATE, steps=STEPS),
    Effort(candidates=CANDIDATES, patient_rate=RATE / 2, steps=STEPS),
    Effort(candidates=3, patient_rate=RATE / 2, steps=STEPS),
    Effort(candidates=2, patient_rate=RATE / 2, steps=STEPS),
    Effort(candidates=2, patient_rate=RATE / 2, steps=STEPS // 2),
    Effort(candidates=2, patient_rate=RATE / 2, steps=STEPS // 3),
)


def within(plan_of: Callable[[Effort], AdaptationPlan], pace: Pace, *, images: int, minutes: float) -> AdaptationPlan:
    """The dearest plan that takes at most ``minutes``; its reasons say what was cut.

    Args:
        plan_of: Makes the plan of an effort.
        pace: Of this machine.
        images: Images that the campaign asks for.
        minutes: Allowed.

    Raises:
        ConfigError: even the cheapest takes longer; the message says what would fit.
    """
    for effort in EFFORTS:
        plan = plan_of(effort)
        if seconds_of(plan, pace, images=images) <= 60 * minutes:
            break
    check_time(plan, pace, images=images, minutes=minutes)
    if effort == EFFORTS[0]:
        return plan
    cut = f"{plan.candidates} candidates an image" + (f", rate {plan.dpsgd.patient_rate:g}, {plan.dpsgd.steps} steps" if plan.dpsgd else "")
    return replace(plan, reasons=(*plan.reasons, f"cut to {minutes:g} minutes: {cut}; rehearsals had {CANDIDATES} candidates"))


def seconds_of(plan: AdaptationPlan, pace: Pace, *, images: int) -> float:
    """Expected seconds of a job with this plan.

    Args:
        plan: Candidates, steps, rate and mechanisms count.
        pace: Of this machine.
        images: Images that the campaign asks for.
    """
    looks = plan.vote_noise is not None or plan.mean_noise is not None
    pool = images * plan.candidates
    seconds = pool * pace.image
    if looks:
        seconds += 3 * PER_CLASS * (pace.image + pace.look) + pool * pace.look + plan.public_cohort * pace.look
    if plan.dpsgd:
        seconds += plan.dpsgd.steps * plan.dpsgd.expected_patients * IMAGES_EACH * pace.gradient
    audited = AUDIT_LOOKS * plan.public_cohort * IMAGES_EACH if plan.dpsgd is not None else 0.0
    return OVERHEAD * seconds + AUDIT_SECONDS + audited * pace.gradient


def check_time(plan: AdaptationPlan, pace: Pace, *, images: int, minutes: float) -> None:
    """Raise ConfigError where a job would take longer than ``minutes``; the message says what would fit."""
    seconds = seconds_of(plan, pace, images=images)
    if seconds <= 60 * minutes:
        return
    advice = "ask for fewer images"
    if plan.dpsgd:
        each = OVERHEAD * plan.dpsgd.expected_patients * IMAGES_EACH * pace.gradient
        advice = f"{max(0, plan.dpsgd.steps - ceil((seconds - 60 * minutes) / each))} DP-SGD steps would fit (adapt.steps)"
    raise ConfigError(f"this plan takes about {seconds / 60:.0f} minutes here, {minutes:g} are allowed (adapt.minutes); {advice}")


def forecast(plan: AdaptationPlan, *, seconds: float | None, rehearsals: Sequence[Rehearsal] | None = None) -> Forecast:
    """What to expect of a plan.

    Args:
        plan: Whose mechanisms are accounted for by both accountants, beside the audit's figures.
        seconds: Expected on this machine, or None.
        rehearsals: Table to look in; None is the shipped one.
    """
    spent = epsilon_of([*plan.events(), plan.audit_event()], delta=plan.delta)
    names = [name for name, _ in plan.mechanisms()]
    choice = "+".join(names) or "foundation"
    alone = {name: epsilon_of([event], delta=plan.delta).epsilon for name, event in (*plan.mechanisms(), ("audit figures", plan.audit_event()))}
    return Forecast(
        plan=plan.to_dict(),
        choice=choice,
        epsilon=spent.epsilon,
        pld=spent.pld,
        prv=spent.prv,
        delta=plan.delta,
        spends=alone,
        seconds=seconds,
        expected=nearest(choice, cohort=plan.public_cohort, epsilon=plan.epsilon, table=shipped() if rehearsals is None else rehearsals),
        reasons=plan.reasons,
    )


def nearest(choice: str, *, cohort: int, epsilon: float, table: Sequence[Rehearsal]) -> Rehearsal | None:
    """The rehearsal of the same mechanisms that has the largest cohort and epsilon not above these; None where all had more.

    Never a rehearsal with more patients or more epsilon: that would promise too much.
    """
    fitting = [r for r in table if r.choice == choice and r.patients <= cohort and r.epsilon <= epsilon]
    return max(fitting, key=lambda r: (r.epsilon, r.patients), default=None)


@cache
def shipped() -> tuple[Rehearsal, ...]:
    """The rehearsals that come with this package."""
    lines = json.loads(files("busgen_privacy").joinpath("rehearsals.json").read_text())
    return tuple(Rehearsal(**line) for line in lines)
