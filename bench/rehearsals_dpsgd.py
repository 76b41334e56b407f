"""Step sizes of DP-SGD, rehearsed where nothing private is at stake: held-out denoising loss after a short private run, on ``public`` alone.

300 patients of ``public`` as if from another machine (gray g becomes .9 g^.75 + .05) are the members, 150 others the held-out ones;
30 steps at rate .1, one draw. The planner's table (``LEARNING_RATE`` in ``dp/plan.py``) takes the step size of each subset that lowers the
held-out loss most at epsilon 8 and, where two are near, the one that is better at epsilon 1.

Expected before measuring: few numbers win at epsilon 1, many at 8. Found: with larger steps than were used before, film, bias-norm and full
are equal at 8, and film and bias-norm ahead at 1; LoRA and smaller steps are behind.
Cells are kept in ``bench/work/rehearsals_dpsgd``.
"""

import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from bench.adaptation import shipped
from bench.rows import ROOT, SHARED, row, write
from busgen_core.corpus import public_examples, read_table
from busgen_core.files import write_whole
from busgen_core.generator import Generator
from busgen_core.labels import Pathology
from busgen_privacy.cohort import Cohort
from busgen_privacy.denoising import patient_losses, sigmas_at
from busgen_privacy.dp.dpsgd import adapt, load_adapted
from busgen_privacy.dp.noise import SeededGaussian
from busgen_privacy.dp.plan import Subset
from busgen_privacy.dp.planner import Mechanics, split
from busgen_privacy.policy import Policy

WORK = Path(os.environ.get("BUSGEN_BENCH_WORK", ROOT / "bench" / "work")) / "rehearsals_dpsgd"
MEMBERS, HELD_OUT, STEPS, RATE, DELTA = 300, 150, 30, 0.1, 1e-5
GRID: tuple[tuple[float, Subset, tuple[float, ...]], ...] = (
    (8.0, "bias-norm", (1e-3, 4e-3, 1.5e-2)),
    (8.0, "full", (1e-4, 3e-4, 1e-3)),
    (8.0, "film", (5e-3, 2e-2)),
    (8.0, "lora", (2e-3, 1e-2)),
    (1.0, "bias-norm", (1e-3, 4e-3)),
    (1.0, "full", (1e-4, 3e-4)),
    (1.0, "film", (5e-3, 2e-2)),
)
POLICY = Policy(lifetime_epsilon=100, campaign_epsilon=100, public_cohort=MEMBERS, audit_noise=10_000)


@dataclass(frozen=True)
class Cell:
    """One run."""

    epsilon: float
    subset: Subset
    learning_rate: float

    @property
    def file(self) -> Path:
        """Where its result is kept."""
        return WORK / f"{self.subset}-{self.learning_rate:g}-{self.epsilon:g}.json"


@cache
def sides() -> tuple[Cohort, Cohort]:
    """Members and held-out patients."""
    folder = SHARED / "public"
    rows = list(zip(public_examples(folder, size=64), (r["group"] for r in read_table(folder)), strict=True))
    groups = sorted({group for _, group in rows})
    np.random.default_rng(5).shuffle(groups)

    def of(chosen: set[str]) -> Cohort:
        kept = [(example, group) for example, group in rows if group in chosen]
        images = 0.9 * (np.stack([e.image for e, _ in kept]) / 255) ** 0.75 + 0.05
        classes = tuple(e.condition.pathology or Pathology.NORMAL for e, _ in kept)
        return Cohort(
            np.round(np.clip(images, 0, 1) * 255).astype(np.uint8), classes, tuple(e.condition.box for e, _ in kept), tuple(g for _, g in kept)
        )

    return of(set(groups[:MEMBERS])), of(set(groups[MEMBERS : MEMBERS + HELD_OUT]))


def held_out_losses(network: Generator) -> NDArray[np.float32]:
    """Loss of each held-out image at a level of its own, float [images]; the same noise for every network."""
    cohort, rng, found = sides()[1], np.random.default_rng(9), []
    with torch.no_grad():
        for start in range(0, len(cohort), 16):
            rows = list(range(start, min(start + 16, len(cohort))))
            noise = torch.from_numpy(rng.standard_normal((len(rows), network.fold**2, network.side, network.side), dtype=np.float32))
            sigmas = sigmas_at((np.array(rows) * 0.6180339887) % 1)  # golden ratio: evenly spread
            found.append(patient_losses([network], shipped().scheduler, cohort, rows, noise=noise, sigmas=sigmas)[0].numpy())
    return np.concatenate(found)


def measure(cell: Cell) -> None:
    """Run a cell; keeps the mean change of the held-out loss and its standard error by image."""
    torch.set_num_threads(1)
    foundation = shipped()
    mechanics = Mechanics(steps=STEPS, patient_rate=RATE, draws=1, subset=cell.subset)
    plan = split({"dp-sgd": 1.0}, policy=POLICY, epsilon=cell.epsilon, delta=DELTA, mechanics=mechanics).dpsgd
    assert plan is not None
    with TemporaryDirectory() as folder:
        run = Path(folder)
        learn = replace(plan, learning_rate=cell.learning_rate)
        adapt(foundation, sides()[0], learn, checkpoint=run, progress=lambda *_: None, source=SeededGaussian(1))
        after = held_out_losses(load_adapted(foundation, run / "adapted.safetensors", allow_seeded=True))
    before = held_out_losses(foundation.network)
    change = after - before
    found = {"change": float(change.mean()), "error": float(change.std() / np.sqrt(len(change))), "before": float(before.mean())}
    write_whole(cell.file, json.dumps(asdict(cell) | found).encode())


def main() -> None:
    """Run what is missing and write ``bench/results/rehearsals_dpsgd.json``."""
    cells = [Cell(epsilon, subset, rate) for epsilon, subset, rates in GRID for rate in rates]
    missing = [cell for cell in cells if not cell.file.exists()]
    with ProcessPoolExecutor(int(os.environ.get("BUSGEN_BENCH_THREADS", os.cpu_count() or 1))) as executor:
        jobs = [executor.submit(measure, cell) for cell in missing]
        for job in tqdm(as_completed(jobs), total=len(jobs), desc="rehearsals", unit="run"):
            job.result()
    rows = []
    for cell in cells:
        found = json.loads(cell.file.read_text())
        change, half = found["change"], 1.96 * found["error"]
        name = f"change of the held-out loss, {cell.subset}, step size {cell.learning_rate:g}, epsilon {cell.epsilon:g}"
        beside = {"peer": "loss before", "peer_value": round(found["before"], 5)}
        rows.append(row(name, change, "loss", low=change - half, high=change + half, **beside))
    write("rehearsals_dpsgd", rows)


if __name__ == "__main__":
    sys.exit(main())
