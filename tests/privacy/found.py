"""Findings of a suite that was never run, for tests of what comes after it."""

from busgen_privacy.findings import AttackFinding, ClosestRecords, CopyFinding, Disclosure, Distances, Findings, Hits, Pair, PatientScores
from busgen_privacy.gate import BEYOND
from busgen_privacy.scored import FALSE_ALARMS
from busgen_privacy.statistics import Scores, auc, best_auc, ceiling_auc, found_outright, hit_rate, surely_found

COPIES = CopyFinding(count=0, holdout_count=0, compared=200, threshold=0.1, closest=(Pair(released=3, member=1, distance=0.3),))


def attack(name: str = "loss", *, auc: float = 0.55, members: int = 80, holdout: int = 40, epsilon: float = 3.0, **changes: object) -> AttackFinding:
    """One attack's finding."""
    values = {
        "name": name,
        "kind": "white-box",
        "what": "Compares losses?",
        "source": "Nobody 2000",
        "cost": 100.0,
        "auc": auc,
        "low": max(auc - 0.07, 0.0),
        "high": min(auc + 0.07, 1.0),
        "chance": 0.2,
        "ceiling": ceiling_auc(epsilon, 1e-5),
        "hits": (Hits(fpr=0.05, tpr=0.05, low=0.0, high=0.2, bootstrap_low=0.01, bootstrap_high=0.1, ceiling=0.3),),
        "epsilon_low": 0.4,
        "caught": 0.72,
        "diagnostic": False,
        "scores": PatientScores(members=(0.1, 0.9), holdout=(0.2, 0.8)),
        "members": members,
        "holdout": holdout,
    }
    return AttackFinding.model_validate(values | changes)


def scored(name: str, inside: Scores, outside: Scores, *, attacks: int = 10, level: float = 0.05) -> AttackFinding:
    """What these scores would be found to be, one of so many attacks: AUC, every hit rate that can be measured, and what ties allow."""
    rates = [fpr for fpr in FALSE_ALARMS if len(outside) * fpr >= 1]
    seen = [(fpr, hit_rate(inside, outside, fpr=fpr, seed=0, resamples=2)) for fpr in rates]
    alarm = BEYOND * level / (attacks * len(rates))
    hits = tuple(
        Hits(
            fpr=fpr,
            tpr=hit.tpr,
            low=hit.low,
            high=hit.high,
            bootstrap_low=hit.bootstrap_low,
            bootstrap_high=hit.bootstrap_high,
            surely=surely_found(inside, outside, fpr=fpr, alarm=alarm),
        )
        for fpr, hit in seen
        if hit
    )
    seen_outright, reach = found_outright(inside, outside), best_auc(inside, outside)
    return attack(name, auc=auc(inside, outside), members=len(inside), holdout=len(outside), hits=hits, outright=seen_outright, reach=reach)


def findings(
    *attacks: AttackFinding, epsilon: float | None = 3.0, members: int = 80, holdout: int = 40, copies: int = 0, **changes: object
) -> Findings:
    """Findings with these attacks, or one that found nothing."""
    return Findings(
        epsilon=epsilon,
        delta=None if epsilon is None else 1e-5,
        attacks=attacks or (attack(members=members, holdout=holdout),),
        near_copies=COPIES.model_copy(update={"count": copies}),
        registered_copies=COPIES,
        disclosure=Disclosure(share=0.5, chance_low=0.4, chance_high=0.6, chance=0.5),
        closest_records=ClosestRecords(member_distance=1.0, holdout_distance=1.1, member_ratio=0.9, holdout_ratio=0.9),
        distances=Distances(members=(1.0, 2.0), holdout=(1.5, 2.5), reference=(1.2, 2.2)),
        members=members,
        holdout=holdout,
        released=200,
        reference=100,
        duplicates=0,
        not_run=("White-box attacks: nothing was trained.",),
    ).model_copy(update=changes)
