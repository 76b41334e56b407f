"""How often the rehearsal audit catches each planted bug, and how often it accuses right code; the watchdog alone beside it.

Every rehearsal is two runs of the real ``adapt`` on a small network, 256 canaries each, fresh coins, samplings and noise; bugs are
planted in the real code (tests/privacy/rehearsal.py), the watchdog deaf. The second table is the watchdog's alone, 48 canaries.

Expected before measuring: all eight bugs caught in every rehearsal but a halved sigma in 99 %, and noise used twice in 95 %; right code
accused in at most 1 %; the watchdog stops all but the two bugs of clipping. 95 % bounds of right code's epsilon about half of the claim
(512 canaries resolve mu to .09, a poor man's audit; see Andrew et al. 2023), the certified one a tenth of it.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

from bench.rows import RESULTS, row, write
from busgen_core.errors import WatchdogError
from busgen_privacy.dp.canaries import Rehearsal, epsilon_bounds, examine, judge
from busgen_privacy.statistics import share_bounds
from tests.privacy.rehearsal import BUGS, CROWDS, Bug, ideal, rehearsal_plan, rehearse, rehearse_both

SEEDS = int(os.environ.get("BUSGEN_BENCH_SEEDS", "20"))  # rehearsals of each bug; twice as many of right code
IDEALS = int(os.environ.get("BUSGEN_BENCH_IDEALS", "1000"))  # rehearsals of the mechanism on paper
RIGHT = "right code"
FIRST = 1000  # seeds of this benchmark; the tests use smaller ones
WATCHED = 48  # canaries where the watchdog is alone


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What one rehearsal found: the statistics that accuse, and the 95 % bounds of epsilon."""

    accused_by: tuple[str, ...]
    normal: float
    certified: float


def verdict(runs: Sequence[Rehearsal]) -> Verdict:
    """Judge a rehearsal; the certified bound is the larger of two, each at 97.5 %."""
    normal, *certified = epsilon_bounds(runs, normal=0.95, certified=0.975).values()
    return Verdict(accused_by=tuple(f.name for f in examine(runs) if f.reason), normal=normal, certified=max(certified))


def audited(name: str, bug: Bug | None, *, seeds: range) -> list[Verdict]:
    """Verdicts of the audit on rehearsals of one code."""
    with TemporaryDirectory() as scratch:
        return [verdict(rehearse_both(Path(scratch), seed=seed, bug=bug)) for seed in tqdm(seeds, desc=f"audit: {name}")]


def watched(name: str, bug: Bug | None, *, seeds: range) -> int:
    """Runs that the watchdog stops."""

    def stops(folder: Path, seed: int) -> bool:
        try:
            rehearse(folder / str(seed), seed=seed, canaries=WATCHED, bug=bug, watchdog=True)
        except WatchdogError:
            return True
        return False

    with TemporaryDirectory() as scratch:
        return sum(stops(Path(scratch), seed) for seed in tqdm(seeds, desc=f"watchdog: {name}"))


def shares(name: str, verdicts: Sequence[Verdict], stopped: int, *, seconds: float) -> list[dict[str, object]]:
    """Rows of one code: caught by the audit, by epsilon alone, by the watchdog."""
    tries = len(verdicts)
    ways: Mapping[str, Callable[[Verdict], bool]] = {
        "audit": lambda v: bool(v.accused_by),
        "audit, by epsilon alone": lambda v: any(by.startswith("epsilon") for by in v.accused_by),
    }
    counts = {way: sum(map(counted, verdicts)) for way, counted in ways.items()} | {"watchdog": stopped}
    found = []
    for way, hits in counts.items():
        low, high = map(float, share_bounds(hits, tries, alarm=0.025))
        judged = {"goal": "none" if name == RIGHT else "all", "met": hits == (0 if name == RIGHT else tries)} if way == "audit" else {}
        found.append(row(f"{name}: accused by the {way}", hits / tries, "share", low=low, high=high, seeds=tries, seconds=seconds, **judged))  # type: ignore[arg-type]
    return found


def bounds(name: str, verdicts: Sequence[Verdict], claim: float) -> list[dict[str, object]]:
    """Rows of one code: the median of its 95 % bounds, and their range, beside the claim."""
    found = []
    for kind, values in (("normal", [v.normal for v in verdicts]), ("certified", [v.certified for v in verdicts])):
        value = float(np.median(values))
        beside = {"low": min(values), "high": max(values), "peer": "epsilon claimed", "peer_value": round(claim, 3), "seeds": len(values)}
        judged = {"goal": "95 % of them at most the claim", "met": bool(np.mean(np.array(values) > claim) <= 0.05)} if name == RIGHT else {}
        found.append(row(f"{name}: 95 % lower bound of epsilon, {kind}; median and range", value, "epsilon", **beside, **judged))  # type: ignore[arg-type]
    return found


def on_paper() -> dict[str, object]:
    """How often the mechanism on paper is accused: what the promise of 1 % rests on, with more seeds than the real code has time for."""
    began = time.process_time()
    plan = rehearsal_plan()
    seeds = tqdm(range(IDEALS), desc="mechanism on paper")
    hits = sum(bool(judge([ideal(plan, seed=len(CROWDS) * seed + i, canaries=256) for i in range(len(CROWDS))])) for seed in seeds)
    low, high = map(float, share_bounds(hits, IDEALS, alarm=0.025))
    name, seconds = "mechanism on paper: accused by the audit", time.process_time() - began
    return row(name, hits / IDEALS, "share", low=low, high=high, goal="<= .01", met=low <= 0.01, seeds=IDEALS, seconds=seconds)


def plot(found: Mapping[str, Sequence[Verdict]], claim: float, file: Path) -> None:
    """Bounds of each rehearsal against the claim."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(13, 5), layout="constrained")
    for place, verdicts in enumerate(found.values()):
        spread = np.linspace(-0.3, 0.3, len(verdicts))
        axes.plot(place + spread, [v.normal for v in verdicts], "o", color="tab:blue", ms=4, label="scores read as normal" if not place else None)
        axes.plot(place + spread, [v.certified for v in verdicts], "^", color="tab:orange", ms=4, label="certified" if not place else None)
        caught = sum(bool(v.accused_by) for v in verdicts)
        axes.text(place, 31, f"{caught}/{len(verdicts)}", ha="center", va="bottom")
    axes.axhline(claim, color="black", lw=1, label=f"epsilon claimed, {claim:.2f}")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(-0.05, 40)
    axes.set_xticks(range(len(found)), [name.replace(" ", "\n") for name in found], fontsize=8)
    axes.set_yticks([0, 0.5, 1, 2, 3, 5, 10, 20], ["0", ".5", "1", "2", "3", "5", "10", "20"])
    axes.set_ylabel("lower bound of epsilon, 95 %, one rehearsal each")
    axes.set_title("Above each: rehearsals accused, by any statistic", fontsize=10)
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0.9))
    figure.savefig(file, dpi=100)


def main() -> None:
    """Run every rehearsal, write rows and plot."""
    claim, rows, found = rehearsal_plan().epsilon, [on_paper()], {}
    for name, bug in ({RIGHT: None} | dict(BUGS)).items():
        began = time.process_time()
        seeds = range(FIRST, FIRST + SEEDS * (1 if bug else 2))
        found[name] = audited(name, bug, seeds=seeds)
        seconds = (time.process_time() - began) / len(seeds)
        rows += [*shares(name, found[name], watched(name, bug, seeds=seeds), seconds=seconds), *bounds(name, found[name], claim)]
    plot(found, claim, RESULTS / "canaries.png")
    write("canaries", rows)


if __name__ == "__main__":
    main()
