"""One step on the same images: without privacy, ours for each subset of parameters, and stock Opacus by hooks and by ghost clipping.

24 patients of 1 to 4 public images, four draws of each (K = 4), the shipped network, steps of every kind taken in turn. Without privacy
the images go through in one batch, in pieces of 16, and a patient at a time; a private step is compared with the fastest of these.
Stock has neither patients nor draws: it sees each image and draw as a sample of its own, in pieces of 16. One thread is timed in
processor seconds, two threads by the clock on the wall.

Expected before measuring: ours <= 1.1 x, since it is the same backward pass in smaller pieces, noise below 10 % of a step; hooks 1.8 to 2.0 x,
ghost clipping 2.5 x (measured earlier on another network of two convolutions and on one of 12 M parameters).
"""

import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from itertools import count

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch.nn import Parameter
from tqdm import tqdm

from bench import stock_opacus
from bench.rows import SHARED, row, write
from busgen_core.cli import SHIPPED
from busgen_core.corpus import public_examples
from busgen_core.foundation import Foundation, load_foundation
from busgen_core.generator import Generator
from busgen_core.labels import Pathology
from busgen_privacy.cohort import Cohort
from busgen_privacy.denoising import patient_losses, sigmas_at
from busgen_privacy.dp.dpsgd import PatientOptimizer, contiguous, gradients_of, trainable
from busgen_privacy.dp.noise import SecureGaussian
from busgen_privacy.dp.plan import SUBSET_SIZE, DpSgdPlan, Subset
from busgen_privacy.dp.watchdog import Watchdog

PATIENTS, MOST_IMAGES, DRAWS, PIECE = 24, 4, 4, 16
REPEATS = int(os.environ.get("BUSGEN_BENCH_REPEATS", "5"))  # steps of each kind that are timed, after one that is not
SUBSETS = os.environ.get("BUSGEN_BENCH_SUBSETS", "class-embedding,bias-norm,full").split(",")
THREADS = [int(n) for n in os.environ.get("BUSGEN_BENCH_THREADS", "1,2").split(",")]
PLAIN = {"one batch": 10**6, "pieces of 16": PIECE, "a patient at a time": None}  # without privacy: images of a pass, at most
GOAL, NOISE_GOAL = 1.1, 0.1
STILL = 1e-6  # learning rate: weights stay where they are
SIGMA, CLIP = 7.0, 1.0

Step = Callable[[], None]
Trained = tuple[Generator, list[Parameter]]  # a network and which of its parameters learn


def people() -> Cohort:
    """Public images as if of 24 patients with 1, 2, 3, 4, 1, ... images."""
    patients = [f"p{i:02d}" for i in range(PATIENTS) for _ in range(1 + i % MOST_IMAGES)]
    examples = public_examples(SHARED / "public", size=64)[: len(patients)]
    classes = tuple(e.condition.pathology or Pathology.NORMAL for e in examples)
    return Cohort(np.stack([e.image for e in examples]), classes, tuple(e.condition.box for e in examples), tuple(patients))


def pieces_of(cohort: Cohort, *, largest: int | None) -> list[list[int]]:
    """Rows with their draws, in pieces of at most ``largest``; None is a piece for each patient."""
    by_patient = [[row for row in rows for _ in range(DRAWS)] for rows in cohort.patient_rows().values()]
    if largest is None:
        return by_patient
    rows = [row for piece in by_patient for row in piece]
    return [rows[start : start + largest] for start in range(0, len(rows), largest)]


def trained(foundation: Foundation, subset: Subset) -> Trained:
    """A copy of the network of which ``subset`` learns."""
    network = contiguous(foundation.network)
    return network, list(trainable(network, subset).values())


def trained_lora(foundation: Foundation) -> Trained:
    """The peer's: both factors of rank 8 beside every attention projection."""
    network = stock_opacus.trained_network(foundation, "lora", seed=0)
    return network, [p for p in network.parameters() if p.requires_grad]


def plain(foundation: Foundation, cohort: Cohort, learner: Trained, *, largest: int | None) -> Step:
    """A step without privacy: the mean of the same losses, ``backward`` and Adam."""
    (network, parameters), pieces, rng = learner, pieces_of(cohort, largest=largest), np.random.default_rng(0)
    adam, total = torch.optim.Adam(parameters, lr=STILL), sum(len(piece) for piece in pieces)

    def step() -> None:
        adam.zero_grad(set_to_none=True)
        for piece in pieces:
            noise = torch.from_numpy(rng.standard_normal((len(piece), network.fold**2, network.side, network.side), dtype=np.float32))
            found = patient_losses([network], foundation.scheduler, cohort, piece, noise=noise, sigmas=sigmas_at(rng.random(len(piece))))[0]
            (found.sum() / total).backward()
        adam.step()

    return step


def plan_of(subset: Subset) -> DpSgdPlan:
    """A plan of which only the mechanics matter here."""
    mechanics = {"subset": subset, "draws": DRAWS, "clip_norm": CLIP, "noise_multiplier": SIGMA, "learning_rate": STILL}
    return DpSgdPlan(public_cohort=4 * PATIENTS, steps=400, patient_rate=0.25, epsilon=8.0, delta=1e-5, **mechanics)  # type: ignore[arg-type]


def ours(foundation: Foundation, cohort: Cohort, subset: Subset, clock: dict[str, float]) -> Step:
    """Our step; ``clock`` receives the processor seconds of drawing and adding its noise, and of the whole optimizer."""
    network, plan, source = contiguous(foundation.network), plan_of(subset), SecureGaussian()
    optimizer = PatientOptimizer(trainable(network, subset), plan, Watchdog(plan=plan, patients=PATIENTS), source)
    optimizer.add_noise = timed(optimizer.add_noise, "noise", clock)  # type: ignore[method-assign]
    finish = timed(optimizer.step_patients, "optimizer", clock)
    patients, numbers = list(cohort.patient_rows().items()), count()

    def step() -> None:
        finish(gradients_of(network, foundation.scheduler, cohort, patients, plan, step=next(numbers)), source)

    return step


def timed(function: Callable[..., object], name: str, clock: dict[str, float]) -> Callable[..., None]:
    """The function, its last processor seconds noted under ``name``."""

    def run(*args: object) -> None:
        started = time.process_time()
        function(*args)
        clock[name] = time.process_time() - started

    return run


def stock(foundation: Foundation, cohort: Cohort, learner: Trained, *, ghost: bool = False) -> Step:
    """A step of stock Opacus, every image and draw a sample: pieces whose clipped gradients are summed, as BatchMemoryManager has it."""
    network, parameters = learner
    network = stock_opacus.repair(network).train()
    entries, pieces, rng = (
        stock_opacus.OneImageEach(cohort, network, np.random.default_rng(0)),
        pieces_of(cohort, largest=PIECE),
        np.random.default_rng(0),
    )
    wrap, kind = (GradSampleModuleFastGradientClipping, DPOptimizerFastGradientClipping) if ghost else (GradSampleModule, DPOptimizer)
    adam, backward = torch.optim.Adam(parameters, lr=STILL), ghost_backward if ghost else stock_opacus.backward
    optimizer = kind(adam, noise_multiplier=SIGMA, max_grad_norm=CLIP, expected_batch_size=sum(len(p) for p in pieces))
    module = wrap(network, max_grad_norm=CLIP) if ghost else wrap(network)

    def step() -> None:
        for number, piece in enumerate(pieces, start=1):
            optimizer.signal_skip_step(number < len(pieces))
            batch = entries.images[piece], entries.encoded.labels[piece], entries.encoded.planes[piece]
            backward(module, foundation, batch, rng, optimizer)

    return step


def ghost_backward(
    module: GradSampleModule, foundation: Foundation, batch: stock_opacus.Batch, rng: np.random.Generator, optimizer: DPOptimizer
) -> None:
    """Two backward passes: the first for each sample's norm, the second for the sum of the clipped gradients."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        DPTensorFastGradientClipping(module, optimizer, stock_opacus.losses(module, foundation, batch, rng)).backward()
    optimizer.step()


def steps_of(foundation: Foundation, cohort: Cohort, subset: Subset, clock: dict[str, float]) -> dict[str, Step]:
    """Every way to take a step on a subset, by name."""
    steps = {f"without privacy, {name}": plain(foundation, cohort, trained(foundation, subset), largest=most) for name, most in PLAIN.items()}
    steps["ours"] = ours(foundation, cohort, subset, clock)
    steps["stock Opacus, hooks"] = stock(foundation, cohort, trained(foundation, subset))
    if subset == "full":
        steps["stock Opacus, ghost clipping"] = stock(foundation, cohort, trained(foundation, subset), ghost=True)
    return steps


def lora_steps(foundation: Foundation, cohort: Cohort) -> dict[str, Step]:
    """The peer's LoRA, without privacy and by hooks."""
    steps = {f"without privacy, {name}": plain(foundation, cohort, trained_lora(foundation), largest=most) for name, most in PLAIN.items()}
    return steps | {"stock Opacus, hooks": stock(foundation, cohort, trained_lora(foundation))}


def measure(steps: Mapping[str, Step], clock: Mapping[str, float], *, processor: bool) -> dict[str, list[float]]:
    """Seconds of each kind of step, taken in turn so that what slows the machine slows all; and, as shares, parts of our steps."""
    now = time.process_time if processor else time.perf_counter
    found: dict[str, list[float]] = {}
    for repeat in range(1 + REPEATS):
        for name, step in steps.items():
            started, spent = now(), time.process_time()
            step()
            seconds, spent = now() - started, time.process_time() - spent
            if repeat:
                found.setdefault(name, []).append(seconds)
            if repeat and name == "ours":
                for part, share in clock.items():
                    found.setdefault(f"share {part}", []).append(share / spent)
    return found


def rows_of(title: str, found: dict[str, list[float]]) -> list[dict[str, object]]:
    """Seconds of each kind, ratios to the fastest kind without privacy, and the shares of our step."""
    shares = {name.removeprefix("share "): found[name] for name in found if name.startswith("share ")}
    times = {name: values for name, values in found.items() if not name.startswith("share ")}
    base = min((name for name in times if name.startswith("without")), key=lambda name: statistics.median(times[name]))
    rows = [spread(f"{title}: {name}", values, "s") for name, values in times.items()]
    ratios = {name: [a / b for a, b in zip(values, times[base], strict=True)] for name, values in times.items()}
    hooks = statistics.median(ratios["stock Opacus, hooks"])
    for name, values in ratios.items():
        met = {"goal": f"<= {GOAL} x", "met": statistics.median(values) <= GOAL, "peer": "stock Opacus, hooks", "peer_value": hooks}
        if name != base:
            rows.append(spread(f"{title}: {name} / {base}", values, "x", **(met if name == "ours" else {})))
    if "ours" in times:
        rows.append(spread(f"{title}: ours / without privacy, a patient at a time", over(times, "without privacy, a patient at a time"), "x"))
    for part, values in shares.items():
        met = {"goal": f"<= {NOISE_GOAL}", "met": statistics.median(values) <= NOISE_GOAL} if part == "noise" else {}
        rows.append(spread(f"{title}: share of our step, {part}", values, "of the step's processor time", **met))
    return rows


def over(times: Mapping[str, list[float]], base: str) -> list[float]:
    """Our times in units of ``base``'s of the same round."""
    return [a / b for a, b in zip(times["ours"], times[base], strict=True)]


def spread(name: str, values: Iterable[float], unit: str, **judged: object) -> dict[str, object]:
    """A row of the median, with the smallest and the largest repeat."""
    found = sorted(values)
    return row(f"{name} (range of repeats)", statistics.median(found), unit, low=found[0], high=found[-1], seeds=len(found), **judged)  # type: ignore[arg-type]


def main() -> None:
    """Measure and write ``bench/results/dp_step.json``."""
    foundation, cohort, rows = load_foundation(SHIPPED), people(), []
    kinds = [*(name for name in SUBSETS), "LoRA of both factors, rank 8"]
    for threads, kind in tqdm([(t, k) for t in THREADS for k in kinds], unit="kind"):
        torch.set_num_threads(threads)
        clock: dict[str, float] = {}
        steps = steps_of(foundation, cohort, kind, clock) if kind in SUBSET_SIZE else lora_steps(foundation, cohort)  # type: ignore[arg-type]
        rows += rows_of(f"{kind}, {threads} thread{'s' * (threads > 1)}", measure(steps, clock, processor=threads == 1))
    write("dp_step", rows)


if __name__ == "__main__":
    main()
