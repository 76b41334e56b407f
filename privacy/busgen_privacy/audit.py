"""The noised copy of an audit that may travel; the exact findings (``findings``) stay."""

from math import sqrt
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from busgen_core.errors import GateRefusedError
from busgen_privacy.dp.noise import NoiseSource, noised
from busgen_privacy.findings import Findings
from busgen_privacy.policy import Policy
from busgen_privacy.statistics import auc_deviation, ceiling_auc


class _Finding(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TravellingAttack(_Finding):
    """One figure of the audit, noised. ``low`` and ``high`` cover sampling and noise together (95 %).

    ``kind`` is white-box where any attack behind the figure had the adapted network; which of them was the strongest stays in the hospital.
    """

    name: str
    kind: Literal["white-box", "black-box"]
    auc: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    ceiling: float = Field(ge=0.5, le=1)
    what: str


class TravellingAudit(_Finding):
    """What leaves with a release: noised figures and public constants only, no exact count of anything private.

    Attributes:
        noise_multiplier: Gaussian noise / sensitivity of the figures together: one event (noise_multiplier, 1, 1).
        noise_std: Standard deviation of the noise on an AUC.
        smallest_cohort: Public floor of members, below which nothing is released.
        smallest_holdout: Public floor of holdout patients.
        near_copies_within: The exact count stayed within the hospital's limit. True in every release, since
            the gate refuses otherwise; that refusal is a heuristic outside the privacy statement.
        released: Released images, public.
    """

    version: Literal[1] = 1
    epsilon: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)
    attacks: tuple[TravellingAttack, ...] = Field(min_length=1)
    noise_multiplier: float = Field(gt=0)
    noise_std: float = Field(gt=0)
    public_cohort: int = Field(ge=1)
    smallest_cohort: int = Field(ge=1)
    smallest_holdout: int = Field(ge=1)
    near_copies_within: bool
    released: int = Field(ge=1)


# Attacks whose scores depend on other patients: ``registration`` by the last digits of matrix products of all at once, ``reference-model`` by whom
# its shadows were adapted to. The hospital's gate judges them; they stay out of the figure that travels, whose sensitivity rests on each score
# being that patient's alone, exactly.
ENTANGLED = frozenset({"registration", "reference-model"})


def travelling(audit: Findings, policy: Policy, noise: NoiseSource, *, noise_multiplier: float | None = None) -> TravellingAudit:
    """The copy that may leave: the largest AUC of the attacks, with Gaussian noise on a grid (``dp.noise.noised``); all else is a public constant.

    Guarantees: one Gaussian event (noise_multiplier, 1, 1) on each account. Given the adapted network and the released
    images, which the adaptation pays for, every patient's score depends on that patient alone. With M members (the larger of
    the two neighbours), a member's win rate a in [0, 1] enters the AUC as a / M, so adding or removing that patient moves it
    by |a - AUC'| / M <= 1 / M, and likewise 1 / H for a holdout patient. Both neighbours reach the public floors or nothing
    travels, so the sensitivity is at most s = 1 / min(smallest_cohort, smallest_holdout). The largest of several figures
    that each move by at most s moves by at most s. The noise has standard deviation audit_noise x s.
    Clipping, interval and sentence are post-processing. That nothing travels below a floor, or after near copies, is not covered.
    Call it once for an audit and keep what it returns: every call with fresh noise is another event.

    Args:
        audit: Exact findings.
        policy: The hospital's limits: noise and floors.
        noise: Source of the noise; a secure one for a release.

    Raises:
        GateRefusedError: members or holdout are below their public floor.
    """
    if audit.epsilon is None or audit.delta is None:
        raise GateRefusedError("the audit has no claim of epsilon and delta; what travels is held against one")
    if audit.members < policy.smallest_cohort or audit.holdout < policy.gate.smallest_holdout:
        raise GateRefusedError("members or holdout patients are fewer than the policy's floors; no figure of the audit may travel")
    sensitivity = 1 / min(policy.smallest_cohort, policy.gate.smallest_holdout)
    multiplier = policy.audit_noise if noise_multiplier is None else noise_multiplier
    deviation = multiplier * sensitivity
    deciding = [attack for attack in audit.attacks if not attack.diagnostic and attack.name not in ENTANGLED]
    if not deciding:
        raise GateRefusedError("no attack was run whose figure may travel")
    largest = max(attack.auc for attack in deciding)
    (loud,) = noised(np.array([largest]), bound=sensitivity, noise_multiplier=multiplier, source=noise)
    value = min(max(float(loud), 0.0), 1.0)
    # Floors instead of true sizes: public, and never narrower than the truth.
    sampling = auc_deviation(value, positives=policy.smallest_cohort, negatives=policy.gate.smallest_holdout)
    half = 1.96 * sqrt(sampling**2 + deviation**2)
    names = ", ".join(attack.name for attack in deciding)
    return TravellingAudit(
        epsilon=audit.epsilon,
        delta=audit.delta,
        attacks=(
            TravellingAttack(
                name="strongest",
                kind="white-box" if any(attack.kind == "white-box" for attack in deciding) else "black-box",
                auc=value,
                low=max(value - half, 0.0),
                high=min(value + half, 1.0),
                ceiling=ceiling_auc(audit.epsilon, audit.delta),
                what=f"Largest AUC of the attacks {names}, with noise of standard deviation {deviation:.3g}.",
            ),
        ),
        noise_multiplier=multiplier,
        noise_std=deviation,
        public_cohort=policy.public_cohort,
        smallest_cohort=policy.smallest_cohort,
        smallest_holdout=policy.gate.smallest_holdout,
        near_copies_within=audit.near_copies.count <= policy.gate.near_copies and audit.registered_copies.count <= policy.gate.registered_copies,
        released=audit.released,
    )
