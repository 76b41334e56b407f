"""Does the gate cry wolf? Twenty releases whose members and holdout are exchangeable: nothing was learnt of anybody.

For each seed a hospital's patients (both roles) are split anew at random, 60 % members; the release is 400 images of the foundation, in styles
drawn at random. White-box attacks get a network that was fine-tuned, without privacy, on ``public`` alone: it learnt, but nobody here. They see
at most MOST patients of each side, black-box attacks all. Every release claims epsilon 8; the same findings are judged once more as if
nothing were claimed, when the gate grants nothing at all.

Expected before measuring: no more than one refusal in twenty; none by copies. A split by ``role`` is not used: it was made once, so it is one
draw of chance, not twenty.
"""

import os
import sys

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from bench.adaptation import DELTA, fine_tuned, pool, shipped
from bench.audit_power import GATE, WORK, everybody
from bench.foundation import HOSPITALS
from bench.rows import SHARED, row, write
from busgen_core.styles import STYLES, restyle
from busgen_privacy.attacked import Release
from busgen_privacy.attacks.base import Access
from busgen_privacy.dp.dpsgd import contiguous
from busgen_privacy.findings import Findings
from busgen_privacy.folders import read_people
from busgen_privacy.gate import decide
from busgen_privacy.statistics import share_bounds
from busgen_privacy.suite import DRAWS, run

SEEDS, IMAGES, MOST = int(os.environ.get("BUSGEN_BENCH_SEEDS", "20")), 400, 60


def public_network() -> torch.nn.Module:
    """The foundation after a non-private fine-tune on public images; made once."""
    file, network = WORK / "public.safetensors", contiguous(shipped().network)
    if not file.exists():
        people = read_people(str(SHARED / "public"))
        save_file({name: value.contiguous() for name, value in fine_tuned(people, 0).state_dict().items()}, file)
    network.load_state_dict(load_file(file))
    return network.eval().requires_grad_(False)


def findings(seed: int) -> Findings:
    """The suite on one release that learnt nothing; kept."""
    file = WORK / f"alarm-{seed}.json"
    if file.exists():
        return Findings.model_validate_json(file.read_text())
    people, rng = everybody(HOSPITALS[seed % len(HOSPITALS)]), np.random.default_rng((seed, 9))
    keys = rng.permutation(list(people.patient_rows())).tolist()
    cut = int(0.6 * len(keys))
    inside, outside = keys[:cut][: MOST * 3], keys[cut:][: MOST * 3]
    images = pool(seed % 2)[0]
    rows, styles = rng.choice(len(images), IMAGES, replace=False), rng.integers(len(STYLES), size=IMAGES)
    released = np.stack([restyle(images[r][None], STYLES[s])[0] for r, s in zip(rows, styles, strict=True)])
    public = read_people(str(SHARED / "public"))
    access = Access(adapted=public_network(), reference=shipped().network, scheduler=shipped().scheduler)  # type: ignore[arg-type]
    found = run(
        Release(images=released, epsilon=8.0, delta=DELTA, access=access),
        people.only(inside[:MOST]),
        people.only(outside[:MOST]),
        public.images,
        groups=public.patients,
        policy=GATE,
        draws=DRAWS,
        seed=seed,
        progress=lambda *_: None,
    )
    file.write_text(found.model_dump_json())
    return found


def refusals(claimed: bool) -> tuple[list[bool], list[str]]:
    """Whether each release is refused, with its claim or as if it had none; and the reasons."""
    refused, reasons = [], []
    for seed in range(SEEDS):
        found = findings(seed)
        verdict = decide(found if claimed else found.model_copy(update={"epsilon": None, "delta": None}), GATE)
        refused.append(verdict.verdict == "refuse")
        reasons += [f"release {seed}: {reason}" for reason in verdict.reasons] if refused[-1] else []
    return refused, reasons


def main() -> None:
    """Measure and write ``bench/results/audit_false_alarms.json``."""
    WORK.mkdir(parents=True, exist_ok=True)
    every, rows = [findings(seed) for seed in tqdm(range(SEEDS), desc="releases", unit="release")], []
    for claimed, name in ((True, "claiming epsilon 8"), (False, "claiming nothing")):
        refused, reasons = refusals(claimed)
        share, (low, high) = float(np.mean(refused)), map(float, share_bounds(sum(refused), SEEDS, alarm=0.025))
        told = f"releases that learnt nothing and were refused, {name}"
        rows.append(row(told, share, "share", low=low, high=high, goal="<= .05", met=share <= 0.05, seeds=SEEDS))
        print(name, *reasons, sep="\n  ")
    copies = sum(found.near_copies.count + found.registered_copies.count for found in every)
    largest = [max(attack.auc for attack in found.attacks if not attack.diagnostic) for found in every]
    rows += [
        row("images counted as copies, all releases", copies, "images", goal="0", met=copies == 0, seeds=SEEDS),
        row("largest AUC of a release's attacks, mean (range)", float(np.mean(largest)), "AUC", low=min(largest), high=max(largest), seeds=SEEDS),
    ]
    write("audit_false_alarms", rows)


if __name__ == "__main__":
    sys.exit(main())
