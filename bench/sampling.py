"""Sampling at 64 px on this machine: images/s and KID of DPM-Solver++ against diffusers' DDIM with 50 steps in float32, on the same network.

Expected before measuring: 8 to 10 evaluations reach the KID of DDIM-50; bfloat16 gives 1.7 x an evaluation, so about 10 x the images/s at 8.
The number of evaluations that ``busgen_core.sampling`` uses by default is the smallest whose KID lies within DDIM's interval.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers import DDIMScheduler, EDMDPMSolverMultistepScheduler
from numpy.typing import NDArray
from tqdm import tqdm

from bench.quality import public_features, shipped_encoder
from bench.rows import RESULTS, row, write
from busgen_core.cli import SHIPPED
from busgen_core.conditions import Encoded, encode
from busgen_core.foundation import Foundation, load_foundation
from busgen_core.generator import SIGMA_DATA, unfold
from busgen_core.labels import Pathology
from busgen_core.quality.kid import kid
from busgen_core.sampling import AT_ONCE, EVALUATIONS, SamplePlan, requests, sample, sample_folder
from busgen_core.tensors import to_bytes

IMAGES = int(os.environ.get("BUSGEN_BENCH_IMAGES", "600"))  # of each setting, as many of each lesion class
REPEATS, TIMED = 3, 96  # timings, images of a timing
STEPS = (5, 6, 7, 8, 10, 12, 15)
LESIONS = (Pathology.BENIGN, Pathology.MALIGNANT)

Draw = Callable[[Encoded, list[int]], torch.Tensor]


@torch.no_grad()
def ddim(foundation: Foundation, conditions: Encoded, seeds: list[int], *, steps: int = 50) -> torch.Tensor:
    """Diffusers' DDIM, float32: a variance-preserving schedule whose levels the network sees as sigma = sqrt(1 / alpha_bar - 1)."""
    network, schedule = foundation.network, DDIMScheduler(prediction_type="sample", clip_sample=False, timestep_spacing="trailing")
    schedule.set_timesteps(steps)
    size = (network.fold**2, network.side, network.side)
    patches = torch.stack([torch.randn(size, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    for t in schedule.timesteps:
        level = schedule.alphas_cumprod[t]
        sigma = ((1 - level) / level).sqrt()
        total = (sigma**2 + SIGMA_DATA**2).sqrt()
        noisy = patches / level.sqrt()
        answer = network(noisy / total, (sigma.log() / 4).expand(len(noisy)), conditions.labels, conditions.planes)
        clean = SIGMA_DATA**2 / total**2 * noisy + sigma * SIGMA_DATA / total * answer
        patches = schedule.step(clean, t, patches).prev_sample
    return unfold(patches, network.fold).clamp(-1, 1)


def wanted(foundation: Foundation, count: int) -> tuple[Encoded, list[int]]:
    """Conditions and seeds of ``count`` lesion images, the same for every setting."""
    plan = SamplePlan(seed=7, counts=dict.fromkeys(LESIONS, count // 2))
    asked = requests(plan, foundation)
    network = foundation.network
    return encode([r.condition for r in asked], devices=network.devices, side=network.side), [r.seed for r in asked]


def images(draw: Draw, conditions: Encoded, seeds: list[int], *, name: str) -> NDArray[np.uint8]:
    """All images of a setting, uint8 [n, 64, 64]."""
    parts = [slice(start, start + AT_ONCE) for start in range(0, len(seeds), AT_ONCE)]
    return np.concatenate([to_bytes(draw(conditions[part], seeds[part])) for part in tqdm(parts, desc=name, unit="batch")])


def speed(draw: Draw, conditions: Encoded, seeds: list[int]) -> list[float]:
    """Images a second, once for each repeat."""
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for start in range(0, TIMED, AT_ONCE):
            draw(conditions[start : start + AT_ONCE], seeds[start : start + AT_ONCE])
        found.append(TIMED / (time.perf_counter() - started))
    return sorted(found)


def main() -> None:
    """Measure and write ``bench/results/sampling.json`` and ``sampling.png``."""
    foundation, encoder, real = load_foundation(SHIPPED), shipped_encoder(), public_features(LESIONS)
    conditions, seeds = wanted(foundation, IMAGES)

    def ours(steps: int, **options: object) -> Draw:
        scheduler = EDMDPMSolverMultistepScheduler.from_config(foundation.scheduler.config, **options)
        return lambda c, s: sample(foundation.network, scheduler, c, seeds=s, evaluations=steps)

    peer: Draw = lambda c, s: ddim(foundation, c, s)  # noqa: E731
    rows, curve = [], []
    peer_speed, peer_kid = speed(peer, conditions, seeds), kid(real, encoder(images(peer, conditions, seeds, name="DDIM 50, float32")), seed=0)
    rows.append(row("KID to public lesions: DDIM 50, float32", peer_kid.value, "KID", low=peer_kid.low, high=peer_kid.high))
    rows.append(row("images/s: DDIM 50, float32", peer_speed[1], "images/s", low=peer_speed[0], high=peer_speed[-1], seeds=REPEATS))
    for steps in STEPS:
        found = kid(real, encoder(images(ours(steps), conditions, seeds, name=f"{steps} evaluations")), seed=0)
        fast = speed(ours(steps), conditions, seeds)
        curve.append((steps, found))
        default = " (default)" if steps == EVALUATIONS else ""
        beside = {"peer": "DDIM 50, float32", "goal": "within DDIM's interval", "met": found.value <= peer_kid.high}
        rows.append(
            row(
                f"KID to public lesions: {steps} evaluations{default}",
                found.value,
                "KID",
                low=found.low,
                high=found.high,
                peer_value=peer_kid.value,
                **beside,
            )
        )
        beside = {"peer": "DDIM 50, float32", "goal": ">= 10 x", "met": fast[1] >= 10 * peer_speed[1]}
        rows.append(
            row(
                f"images/s: {steps} evaluations{default}",
                fast[1],
                "images/s",
                low=fast[0],
                high=fast[-1],
                peer_value=peer_speed[1],
                seeds=REPEATS,
                **beside,
            )
        )
    rows.append(ten_thousand(foundation))
    write("sampling", rows)
    plot(curve, peer_kid)


def ten_thousand(foundation: Foundation) -> dict[str, object]:
    """Seconds for 10,000 images in Parquet, measured whole."""
    with TemporaryDirectory() as folder:
        started = time.perf_counter()
        sample_folder(
            foundation, SamplePlan(seed=1, counts={Pathology.NORMAL: 3334, Pathology.BENIGN: 3333, Pathology.MALIGNANT: 3333}), Path(folder) / "s"
        )
        seconds = time.perf_counter() - started
    return row("10,000 images of 64 px to Parquet", seconds, "s", goal="< 480 s", met=seconds < 480, seconds=seconds)


def plot(curve: list[tuple[int, object]], peer: object) -> None:
    """KID against evaluations, with intervals, and DDIM's as a band."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    steps = [s for s, _ in curve]
    middle = [k.value for _, k in curve]
    spread = [[k.value - k.low for _, k in curve], [k.high - k.value for _, k in curve]]
    axes.errorbar(steps, middle, yerr=spread, marker="o", capsize=3, label="DPM-Solver++, bfloat16")
    axes.axhspan(peer.low, peer.high, alpha=0.2, color="gray", label="DDIM, 50 steps, float32")
    axes.axhline(peer.value, color="gray", lw=1)
    axes.axvline(EVALUATIONS, color="k", lw=0.8, ls=":", label="default")
    axes.set(xlabel="evaluations of the network", ylabel="KID to public lesions", xticks=steps)
    axes.legend(frameon=False)
    figure.savefig(RESULTS / "sampling.png", dpi=120)


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    main()
