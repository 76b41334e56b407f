"""A node's plan for a campaign: from its settings, public figures of its policy and a short measurement of this machine."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from busgen_client.settings import AdaptSettings, NodeSettings
from busgen_core.conditions import Condition
from busgen_core.foundation import Foundation
from busgen_core.labels import Pathology
from busgen_core.phantom import simulate_batch
from busgen_core.quality.encoder import load_encoder
from busgen_core.sampling import AT_ONCE, Request, draw
from busgen_core.styles import STYLES
from busgen_privacy.cohort import Cohort
from busgen_privacy.dp.dpsgd import MOST_AT_ONCE, contiguous, gradients_of, trainable
from busgen_privacy.dp.plan import AdaptationPlan, Mechanism
from busgen_privacy.dp.planner import (
    DPSGD_SHARE,
    EFFORTS,
    SHARES,
    Effort,
    Forecast,
    Mechanics,
    Pace,
    forecast,
    recommend,
    seconds_of,
    split,
    within,
)
from busgen_privacy.policy import Policy

PACE_POLICY = Policy(lifetime_epsilon=8, campaign_epsilon=8, public_cohort=100)  # of the step that is timed; its noise takes no time


def plan_for(settings: NodeSettings, *, epsilon: float, delta: float, images: int, pace: Callable[[], Pace]) -> AdaptationPlan:
    """The plan of a campaign; its ``reasons`` say why. Only settings, public constants and this machine's pace enter; no image is read.

    Args:
        settings: Of this node; ``adapt.minutes`` bounds the time.
        epsilon: Of the campaign.
        delta: Of the campaign.
        images: Images that the campaign asks for.
        pace: Measures this machine; asked only where the time is bounded.

    Raises:
        ConfigError: the settings and the campaign admit no plan, or none fits into the time.
    """
    adapt, policy = settings.adapt, settings.policy

    def plan_of(effort: Effort) -> AdaptationPlan:
        if adapt.mechanisms is None:
            return recommend(policy=policy, epsilon=epsilon, delta=delta, candidates=effort.candidates)
        shares, cut = shares_of(adapt.mechanisms), mechanics(adapt, effort)
        plan = split(shares, policy=policy, epsilon=epsilon, delta=delta, mechanics=cut, candidates=effort.candidates)
        return replace(plan, reasons=("the node's settings name the mechanisms",))

    if adapt.minutes is None:
        return plan_of(EFFORTS[0])
    return within(plan_of, pace(), images=images, minutes=adapt.minutes)


def shares_of(mechanisms: tuple[Mechanism, ...]) -> Mapping[Mechanism, float]:
    """Shares of mu^2 of the mechanisms that the settings name: half for DP-SGD where it stands beside others."""
    single = {name: share for name, share in SHARES.items() if name in mechanisms}
    total = sum(single.values())
    if "dp-sgd" not in mechanisms:
        return single
    if not single:
        return {"dp-sgd": 1.0}
    return {name: share / total * (1 - DPSGD_SHARE) for name, share in single.items()} | {"dp-sgd": DPSGD_SHARE}


def mechanics(adapt: AdaptSettings, effort: Effort) -> Mechanics:
    """How a DP-SGD run is cut: by the settings, and by ``effort`` where they leave it open."""
    return Mechanics(
        steps=adapt.steps or effort.steps, patient_rate=adapt.patient_rate or effort.patient_rate, draws=adapt.draws, subset=adapt.subset
    )


def expect(settings: NodeSettings, foundation: Foundation, *, epsilon: float, delta: float, images: int) -> Forecast:
    """What a campaign would spend, how long it would take here and what rehearsals lead one to expect; nothing is spent, no patient is read.

    Args:
        settings: Of this node; ``adapt.minutes`` bounds the time.
        foundation: The campaign's, or one of its size.
        epsilon: Of the campaign.
        delta: Of the campaign.
        images: Images that the campaign asks for.

    Raises:
        ConfigError: the settings and the campaign admit no plan, or none fits into the time.
    """
    pace = measured(foundation, draws=settings.adapt.draws)
    plan = plan_for(settings, epsilon=epsilon, delta=delta, images=images, pace=lambda: pace)
    return forecast(plan, seconds=seconds_of(plan, pace, images=images))


def measured(foundation: Foundation, *, draws: int) -> Pace:
    """This machine's pace with this foundation, on phantoms; takes some seconds."""
    labels = [Pathology.BENIGN] * AT_ONCE
    wanted = [Request(seed, Condition(pathology=label)) for seed, label in enumerate(labels)]
    drawn = _timed(lambda: draw(foundation, wanted)) / AT_ONCE
    frames = np.stack([p.image for p in simulate_batch(labels, size=foundation.image_px, seeds=list(range(AT_ONCE)))])
    encoder = load_encoder()
    looked = _timed(lambda: encoder(frames)) / AT_ONCE * len(STYLES)
    some = tuple(str(number) for number in range(MOST_AT_ONCE))
    people = Cohort(frames[: len(some)], (Pathology.BENIGN,) * len(some), (None,) * len(some), some)
    network, patients = contiguous(foundation.network), list(people.patient_rows().items())
    trainable(network, "bias-norm")
    plan = split({"dp-sgd": 1.0}, policy=PACE_POLICY, epsilon=8.0, delta=1e-5, mechanics=Mechanics(steps=1, patient_rate=1.0, draws=draws)).dpsgd
    assert plan is not None
    learnt = _timed(lambda: gradients_of(network, foundation.scheduler, people, patients, plan, step=0)) / len(some)
    return Pace(image=drawn, look=looked, gradient=learnt)


def _timed(work: Callable[[], object]) -> float:
    """Seconds of the faster of two goes."""
    found = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)
