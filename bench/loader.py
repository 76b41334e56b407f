"""The training loader from 100,000 images in shards, beside ``datasets`` streaming the same files; a training step of each preset."""

import itertools
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bench.rows import row, write
from busgen_core.conditions import Condition
from busgen_core.labels import Pathology
from busgen_core.phantom import simulate_batch
from busgen_core.shards import Example, ShardStream, write_shards

IMAGES, READ, REPEATS = int(os.environ.get("BUSGEN_BENCH_IMAGES", "100000")), 4000, 3
STEPS = {"cpu-64": (16, 8), "gpu-160": (1, 3)}  # images a step, steps that are timed


def examples() -> Iterator[Example]:
    """Phantoms, rolled by a different number of columns each time they come again: 100,000 different files need no more simulation."""
    phantoms = simulate_batch([Pathology.BENIGN] * 500, size=64, seeds=list(range(500)))
    for number in range(IMAGES):
        phantom = phantoms[number % len(phantoms)]
        image = np.roll(phantom.image, number // len(phantoms), axis=1)
        yield Example(image, Condition(pathology=Pathology.BENIGN, birads=phantom.birads, device=phantom.scanner, box=phantom.box, mask=phantom.mask))


def ours(folder: Path) -> float:
    """Images a second of our stream, decoded, from its beginning."""
    stream = ShardStream(folder, size=64, seed=1)
    started = time.perf_counter()
    for place in range(0, READ, 16):
        stream.read(place, 16)
    return READ / (time.perf_counter() - started)


def streaming(folder: Path) -> float:
    """Images a second of ``datasets``: streamed, shuffled in a buffer as large as our mixed row groups, images and masks decoded."""
    from datasets import Image, load_dataset

    data = load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train", streaming=True, cache_dir=str(folder / "cache"))
    data = data.cast_column("image", Image()).cast_column("mask", Image()).shuffle(seed=1, buffer_size=1024)
    started = time.perf_counter()
    for example in itertools.islice(data, READ):
        np.asarray(example["image"]), np.asarray(example["mask"])
    return READ / (time.perf_counter() - started)


def step(preset: str) -> None:
    """Print seconds a step and the peak memory of this process, MiB: run in a process of its own."""
    import torch

    from busgen_core.generator import PRESETS
    from busgen_core.training import TrainingPlan, train

    torch.set_num_threads(os.cpu_count() or 1)
    batch, steps = STEPS[preset]
    shape = PRESETS[preset]
    with TemporaryDirectory() as scratch:
        phantoms = simulate_batch([Pathology.BENIGN] * 64, size=shape.image_px, seeds=list(range(64)))
        write_shards(Path(scratch) / "s", [Example(p.image, Condition(pathology=p.pathology, box=p.box)) for p in phantoms], size=shape.image_px)
        plan = TrainingPlan(seed=1, steps=steps + 1, shares=(1.0,), batch=batch, shape=shape)
        stamps = []
        log_every_step(stamps)
        train(plan, [Path(scratch) / "s"], run_folder=Path(scratch) / "run")
    found = [after - before for before, after in itertools.pairwise(stamps)]
    print(statistics.median(found), min(found), max(found), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def log_every_step(stamps: list[float]) -> None:
    """Note the time after every optimizer step."""
    import busgen_core.training as training

    plain = training._update

    def update(plan: training.TrainingPlan, run: training._Run) -> None:
        plain(plan, run)
        stamps.append(time.perf_counter())

    training._update = update


def main() -> None:
    """Measure and write ``bench/results/loader.json``."""
    rows = []
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "shards"
        write_shards(folder, examples(), size=64)
        found, peer = sorted(ours(folder) for _ in range(REPEATS)), sorted(streaming(folder) for _ in range(REPEATS))
        name, beside = f"loader, images/s of {IMAGES} in shards, decoded with mask", {"peer": "datasets, streaming", "peer_value": peer[1]}
        rows.append(row(name, found[1], "images/s", low=found[0], high=found[-1], seeds=REPEATS, **beside))
        started = time.perf_counter()
        ShardStream(folder, size=64, seed=1).read(70 * IMAGES // 2 + 11, 1)
        rows.append(row("loader, seconds to go on at image 35 x 100,000", time.perf_counter() - started, "s"))
    for preset, (batch, _) in STEPS.items():
        output = subprocess.run([sys.executable, "-m", "bench.loader", preset], capture_output=True, text=True, check=True).stdout
        middle, low, high, memory = (float(word) for word in output.split()[-4:])
        rows.append(row(f"training step of {preset}, {batch} images, CPU, bfloat16", middle, "s", low=low, high=high, seeds=STEPS[preset][1]))
        rows.append(row(f"peak memory of a training process of {preset}, {batch} images", memory, "MiB"))
    write("loader", rows)


if __name__ == "__main__":
    step(sys.argv[1]) if len(sys.argv) > 1 else main()
