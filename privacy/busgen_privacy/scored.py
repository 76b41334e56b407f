"""From scores to findings: each attack held against what is granted, with its power and its intervals; copies with their nearest pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from busgen_privacy.attacked import Release
from busgen_privacy.attacks import copies, extraction
from busgen_privacy.attacks.base import MemberScores
from busgen_privacy.attacks.copies import NearCopies
from busgen_privacy.attacks.extraction import Extraction
from busgen_privacy.findings import AttackFinding, CopyFinding, Hits, Pair, PatientScores
from busgen_privacy.gate import ABOVE, BEYOND, Claim, granted_mu
from busgen_privacy.leak import auc_of, drawn_epsilon, gaussian_epsilon, split_epsilon
from busgen_privacy.policy import GatePolicy
from busgen_privacy.power import sight
from busgen_privacy.statistics import (
    auc,
    auc_exact_interval,
    auc_interval,
    best_auc,
    ceiling_auc,
    ceiling_tpr,
    found_outright,
    hit_rate,
    passing,
    permutation_chance,
    surely_found,
)

FALSE_ALARMS = (0.001, 0.01, 0.05)
CLOSEST_PAIRS = 12
USUAL = 10  # times the release, that copies are looked for among: Carlini et al. 2023 draw many more images than they show
SILENT = "{name}: it ran, but so many patients have the same score that its silence says nothing."


@dataclass(frozen=True, kw_only=True)
class Described:
    """An attack as its finding names it."""

    name: str
    white: bool
    what: str
    source: str
    cost: float
    diagnostic: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What every attack is held against.

    Attributes:
        level: Of the tests for more than is granted, all together.
        tests: How many share it.
        null: AUC that is granted.
        alarm: Chance that the lower end of one hit rate is too high.
    """

    level: float
    tests: int
    null: float
    alarm: float

    @classmethod
    def of(cls, release: Release, deciding: Sequence[MemberScores], policy: GatePolicy, *, members: int) -> "Judged":
        """For ``deciding``, the scores of every attack that the gate looks at, of as many members."""
        claim = Claim(epsilon=release.epsilon, delta=release.delta, members=members)
        rates = sum(passing(len(scores.holdout), fpr) >= 1 for scores in deciding for fpr in FALSE_ALARMS)
        return cls(
            level=ABOVE * policy.family_level,
            tests=2 * len(deciding) + rates,
            null=auc_of(granted_mu(claim, policy)),
            alarm=BEYOND * policy.family_level / max(rates, 1),
        )

    def caught(self, *, members: int, holdout: int, reach: float = 1.0) -> float | None:
        """Smallest true AUC that an attack would have caught; None: none."""
        return sight(members=members, holdout=holdout, level=self.level, tests=self.tests, null=self.null, reach=reach).auc

    def silent(self, attack: AttackFinding) -> bool:
        """Whether equal scores alone keep an attack from catching anything."""
        return not attack.diagnostic and attack.caught is None and self.caught(members=attack.members, holdout=attack.holdout) is not None


def finding(attack: Described, scores: MemberScores, release: Release, judged: Judged, *, coin: float | None, seed: int) -> AttackFinding:
    """What one attack found: AUC, hit rates and bounds of epsilon with their intervals, beside what is claimed and what it would have caught.

    Args:
        attack: Which it is.
        scores: By patient; higher is more like a member.
        release: For its claim.
        judged: What every attack is held against.
        coin: As ``by_draw`` gives it.
        seed: Of bootstraps, permutations and splits.
    """
    members, holdout = scores.members, scores.holdout
    (low, high), (exact_low, exact_high) = auc_interval(members, holdout, seed=seed), auc_exact_interval(members, holdout)
    delta, reach = release.delta or 1e-5, best_auc(members, holdout)
    claim = None if release.epsilon is None or release.delta is None else (release.epsilon, release.delta)
    return AttackFinding(
        name=attack.name,
        kind="white-box" if attack.white else "black-box",
        what=attack.what,
        source=attack.source,
        cost=attack.cost,
        auc=auc(members, holdout),
        low=low,
        high=high,
        exact_low=exact_low,
        exact_high=exact_high,
        reach=reach,
        chance=permutation_chance(members, holdout, seed=seed),
        ceiling=None if claim is None else ceiling_auc(*claim),
        outright=found_outright(members, holdout),
        hits=_hits(scores, claim, judged, seed=seed),
        epsilon_low=gaussian_epsilon(members, holdout, delta=delta),
        epsilon_any=split_epsilon(members, holdout, delta=delta, seed=seed),
        epsilon_coin=coin,
        caught=judged.caught(members=len(members), holdout=len(holdout), reach=reach),
        diagnostic=attack.diagnostic,
        scores=PatientScores(members=tuple(members.tolist()), holdout=tuple(holdout.tolist())),
        members=len(members),
        holdout=len(holdout),
    )


def by_draw(release: Release, scores: MemberScores, holdout: int, *, seed: int) -> float | None:
    """Bound of epsilon from the draw of roles; None where they were not drawn, or some holdout patients were set aside from this attack."""
    if release.member_share is None or len(scores.holdout) != holdout:
        return None
    return drawn_epsilon(scores.members, scores.holdout, share=release.member_share, delta=release.delta or 1e-5, seed=seed)


def _hits(scores: MemberScores, claim: tuple[float, float] | None, judged: Judged, *, seed: int) -> tuple[Hits, ...]:
    found = [hit_rate(scores.members, scores.holdout, fpr=fpr, seed=seed) for fpr in FALSE_ALARMS]
    return tuple(
        Hits(
            fpr=hit.fpr,
            tpr=hit.tpr,
            low=hit.low,
            high=hit.high,
            bootstrap_low=hit.bootstrap_low,
            bootstrap_high=hit.bootstrap_high,
            ceiling=None if claim is None else ceiling_tpr(*claim, fpr=hit.fpr),
            surely=surely_found(scores.members, scores.holdout, fpr=hit.fpr, alarm=judged.alarm),
        )
        for hit in found
        if hit is not None
    )


def near_finding(found: NearCopies, compared: int) -> CopyFinding:
    """Copies as they are, with the nearest pairs of ``compared`` images."""
    pairs = _closest(found.member_distance, found.member_row, np.zeros(len(found.member_row), bool))
    return CopyFinding(count=found.count, holdout_count=found.holdout_count, compared=compared, threshold=found.threshold, closest=pairs)


def registered_finding(found: Extraction, compared: int) -> CopyFinding:
    """Copies after registration, with the nearest pairs of ``compared`` images."""
    pairs = _closest(found.members.distance, found.members.row, found.members.mirrored)
    return CopyFinding(count=found.count, holdout_count=found.holdout_count, compared=compared, threshold=found.threshold, closest=pairs)


def _closest(distance: NDArray[np.floating], row: NDArray[np.integer], mirrored: NDArray[np.bool_]) -> tuple[Pair, ...]:
    """The nearest pairs of a released image and its member, nearest first."""
    return tuple(
        Pair(released=int(i), member=int(row[i]), distance=max(0.0, float(distance[i])), mirrored=bool(mirrored[i]))
        for i in np.argsort(distance, kind="stable")[:CLOSEST_PAIRS]
    )


def searched(looked: int, released: int) -> tuple[str, ...]:
    """How far the search for copies falls short of ten times the release."""
    if looked >= USUAL * released:
        return ()
    return (f"Copies among {USUAL} times the release: {looked} images were looked at, {looked / released:.1f} times the release.",)


def coarse(near: float, registered: float) -> tuple[str, ...]:
    """Searches whose threshold lies at its floor: it was to be half the distance between different patients, and they are nearer than that."""
    floors = {"as they are": (near, copies.SMALLEST), "after registration": (registered, extraction.SMALLEST)}
    return tuple(
        f"Changed copies, {how}: some images of different patients are so alike that only what is nearer than {floor:g} counts as a copy."
        for how, (threshold, floor) in floors.items()
        if threshold <= floor
    )
