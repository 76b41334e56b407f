"""The shipped foundation, sampled without any adaptation: what a classifier learns from it, and how far its images are from public ones.

Expected before measuring: AUC near that of the public real images it was trained on (.74 to .78 on these hospitals), since it knows nothing else; KID
above the real-against-real floor; below a plain diffusers DDPM trained for the same processor seconds on the same shards.

The peer is trained by ``bench.plain_ddpm`` (resumable, in ``bench/work``); beside it stands our own run as it was after the same seconds, with the
learning rate still high. ``BUSGEN_BENCH_WORK`` names the folder of ``public`` and ``phantoms`` (shards), ``peer.run`` and ``snapshot`` (our run).
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tqdm import tqdm

from bench import plain_ddpm
from bench.quality import public_images, shipped_encoder
from bench.rows import RESULTS, ROOT, SHARED, row, write
from busgen_core.cli import SHIPPED
from busgen_core.corpus import public_examples, read_table
from busgen_core.downstream import train_classifier
from busgen_core.foundation import Foundation, load_foundation
from busgen_core.generator import Generator, Shape, build_network
from busgen_core.labels import Pathology
from busgen_core.quality.compare import Encoder, compare
from busgen_core.sampling import SamplePlan, plan_images, progress_of
from busgen_core.scores import auc
from busgen_server.trainer import EPOCHS

WORK = Path(os.environ.get("BUSGEN_BENCH_WORK", ROOT / "bench" / "work"))
PER_CLASS = int(os.environ.get("BUSGEN_BENCH_IMAGES", "2000"))
SEEDS = 5
PEER_IMAGES = 1000  # of both lesion classes
HOSPITALS = ("cairo", "rio", "warsaw")
LESIONS = (Pathology.BENIGN, Pathology.MALIGNANT)
RESAMPLES = 500

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Holdout:
    """Lesion images of patients that nothing here was trained or tuned on."""

    images: Images
    malignant: NDArray[np.bool_]
    groups: NDArray[np.int64]


def holdout(hospital: str) -> Holdout:
    """A hospital's holdout."""
    folder = SHARED / hospital
    examples, rows = public_examples(folder, size=64, role="holdout"), [r for r in read_table(folder) if r["role"] == "holdout"]
    kept = [i for i, e in enumerate(examples) if e.condition.pathology in LESIONS]
    groups = np.unique([rows[i]["group"] for i in kept], return_inverse=True)[1]
    truth = np.array([examples[i].condition.pathology is Pathology.MALIGNANT for i in kept])
    return Holdout(np.stack([examples[i].image for i in kept]), truth, groups)


def generated(
    foundation: Foundation,
    *,
    per_class: int,
    network: Generator | None = None,
    seed: int = 11,
    classes: Sequence[Pathology] = tuple(Pathology),
) -> tuple[Images, list[Pathology]]:
    """``per_class`` images of each class."""
    plan = SamplePlan(seed=seed, counts=dict.fromkeys(classes, per_class))
    with tqdm(total=len(plan.pathologies), desc="samples", unit="image") as bar:
        return plan_images(foundation, plan, network=network, progress=progress_of(bar)), plan.pathologies


def scored(images: Images, labels: Sequence[Pathology], tests: Mapping[str, Holdout], *, name: str) -> dict[str, NDArray[np.float64]]:
    """Predictions of ``SEEDS`` classifiers, float [seeds, n], for each hospital."""
    models = [train_classifier(images, labels, seed=seed, epochs=EPOCHS) for seed in tqdm(range(SEEDS), desc=f"classifiers, {name}", unit="model")]
    return {hospital: np.stack([model.predict(test.images) for model in models]) for hospital, test in tests.items()}


def remembered(name: str, make: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """What ``make`` gives, kept in ``bench/work``, so that a run that was stopped goes on."""
    file = WORK / f"{name}.npz"
    if not file.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(WORK / "new.npz", **make())
        (WORK / "new.npz").replace(file)
    with np.load(file) as kept:
        return dict(kept)


def auc_rows(
    name: str, predictions: Mapping[str, NDArray[np.float64]], tests: Mapping[str, Holdout], peers: Mapping[str, float]
) -> list[dict[str, object]]:
    """AUC of each hospital and of their mean: mean over seeds, with a bootstrap over patients."""
    rng, rows, all_draws, values = np.random.default_rng(0), [], [], []
    for hospital, test in tests.items():
        value, draws = bootstrap(predictions[hospital], test, rng)
        values.append(value)
        all_draws.append(draws)
        rows.append(auc_row(f"AUC on {hospital}'s holdout, trained on {name}", value, draws, peers.get(hospital)))
    mean = np.mean(all_draws, axis=0)
    return [*rows, auc_row(f"AUC, mean of the three holdouts, trained on {name}", float(np.mean(values)), mean, peers.get("mean"))]


def auc_row(name: str, value: float, draws: NDArray[np.float64], peer: float | None) -> dict[str, object]:
    """One row; the interval is the bootstrap's 2.5 to 97.5 %."""
    low, high = np.quantile(draws, [0.025, 0.975])
    beside = {} if peer is None else {"peer": "public real images", "peer_value": peer}
    return row(name, value, "AUC", low=float(low), high=float(high), seeds=SEEDS, **beside)


def bootstrap(predictions: NDArray[np.float64], test: Holdout, rng: np.random.Generator) -> tuple[float, NDArray[np.float64]]:
    """Mean AUC over seeds, and its replicates with patients drawn anew."""
    members = [np.flatnonzero(test.groups == g) for g in range(test.groups.max() + 1)]

    def mean_auc(index: NDArray[np.int64]) -> float:
        truth = test.malignant[index]
        return float(np.mean([auc(p[index][truth], p[index][~truth]) for p in predictions]))

    draws = [mean_auc(np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])) for _ in range(RESAMPLES)]
    return mean_auc(np.arange(len(test.images))), np.array(draws)


def snapshot(foundation: Foundation) -> tuple[Generator, float]:
    """Our run's averaged network at its snapshot, and the processor seconds it had used."""
    state = json.loads((WORK / "snapshot" / "state.json").read_text())
    network = build_network(plan_shape(state["plan"]["shape"]), foundation.network.devices)
    tensors = load_file(WORK / "snapshot" / state["file"])
    network.load_state_dict({name.removeprefix("ema."): tensor for name, tensor in tensors.items() if name.startswith("ema.")})
    return network.eval(), float(state["seconds"])


def plan_shape(values: dict[str, object]) -> Shape:
    """The shape of a plan that was written as JSON."""
    return Shape(**values | {"channels": tuple(values["channels"])})


def quality_rows(images: Images, encoder: Encoder, *, name: str) -> tuple[list[dict[str, object]], object]:
    """Every measure of lesion images against the public ones, each beside its real-against-real floor."""
    real, _, groups = public_images(LESIONS)
    report = compare(real, images, encoder=encoder, groups=groups, seed=0)
    rows = []
    for m in report.measures:
        floor = {"peer": f"public real halves, {m.floor.low:.3g} to {m.floor.high:.3g}", "peer_value": m.floor.mean}
        rows.append(row(f"{m.name} to public lesions: {name}", m.value, m.name, low=m.low, high=m.high, **floor))
    return rows, report


def main() -> None:
    """Measure and write ``bench/results/foundation{.json,.png,-auc.png,-quality.json}``; real images beside generated ones go to WORK."""
    started = time.perf_counter()
    foundation, encoder = load_foundation(SHIPPED), shipped_encoder()
    tests = {hospital: holdout(hospital) for hospital in HOSPITALS}
    real, classes, _ = public_images(LESIONS)
    labels = SamplePlan(seed=11, counts=dict.fromkeys(Pathology, PER_CLASS)).pathologies
    fake = remembered(f"images-{foundation.digest}-{PER_CLASS}", lambda: {"images": generated(foundation, per_class=PER_CLASS)[0]})["images"]
    lesions = np.array([p in LESIONS for p in labels])
    predictions = remembered("public", lambda: scored(real, classes, tests, name="public real images"))
    peer_rows = auc_rows("public real images", predictions, tests, {})
    peers = dict(zip([*HOSPITALS, "mean"], (float(str(r["value"])) for r in peer_rows), strict=True))
    lesion_labels = [p for p in labels if p in LESIONS]
    predictions = remembered(
        f"foundation-{foundation.digest}-{PER_CLASS}", lambda: scored(fake[lesions], lesion_labels, tests, name="the foundation")
    )
    name = f"the foundation, {PER_CLASS} images a class"
    our_rows = auc_rows(name, predictions, tests, peers)
    rows = [*our_rows, *peer_rows]
    found, report = quality_rows(fake[lesions], encoder, name="the shipped foundation")
    rows += found + same_seconds(foundation, encoder)
    for r in rows:
        r["seconds"] = r["seconds"] or round(time.perf_counter() - started, 1)
    write("foundation", rows)
    (RESULTS / "foundation-quality.json").write_text(report.model_dump_json(indent=1) + "\n")
    grid({f"{p.value}, generated": chosen(fake, labels, p) for p in Pathology}, RESULTS / "foundation.png")
    beside = [(f"{p.value}, {kind}", chosen(i, k, p)) for p in LESIONS for kind, i, k in (("real", real, classes), ("generated", fake, labels))]
    grid(dict(beside), WORK / "foundation-beside-real.png")  # real images stay outside the repository
    bars(our_rows, peer_rows)


def same_seconds(foundation: Foundation, encoder: Encoder) -> list[dict[str, object]]:
    """KID after the same processor seconds: our run's snapshot and the plain DDPM."""
    ours, peers, seconds = rivals(foundation)
    rows = quality_rows(ours, encoder, name=f"our run after {seconds:.0f} processor seconds")[0]
    kept = peers[peers.min(axis=(1, 2)) < peers.max(axis=(1, 2))]
    name = f"plain diffusers DDPM after {seconds:.0f} processor seconds, {len(peers) - len(kept)} of {len(peers)} frames constant and left out"
    rows += quality_rows(kept, encoder, name=name)[0]
    return [r for r in rows if str(r["name"]).startswith(("kid", "coverage"))]


def rivals(foundation: Foundation) -> tuple[Images, Images, float]:
    """Lesion images of our run's snapshot and of the peer, and the processor seconds of both."""
    network, seconds = snapshot(foundation)

    def ours() -> dict[str, Images]:
        images, labels = generated(foundation, per_class=PEER_IMAGES // 2, network=network)
        return {"images": images[[p in LESIONS for p in labels]]}

    def peers() -> dict[str, Images]:
        model = plain_ddpm.train([WORK / "public", WORK / "phantoms"], (0.85, 0.15), WORK / "peer.run", seconds=seconds)
        return {"images": plain_ddpm.sample(model, [LESIONS[i % 2] for i in range(PEER_IMAGES)])}

    return remembered("snapshot-images", ours)["images"], remembered("peer-images", peers)["images"], seconds


def chosen(images: Images, labels: Sequence[Pathology], pathology: Pathology, *, count: int = 28) -> list[Images]:
    """The first images of a class."""
    return [image for image, label in zip(images, labels, strict=True) if label is pathology][:count]


def grid(rows: Mapping[str, list[Images]], file: Path) -> None:
    """Two rows of images for each title."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    columns = len(next(iter(rows.values()))) // 2
    figure, axes = plt.subplots(len(rows), 1, figsize=(columns * 0.8, len(rows) * 1.95), layout="constrained")
    for axis, (title, images) in zip(axes, rows.items(), strict=True):
        tiles = np.concatenate([np.concatenate(images[i * columns : (i + 1) * columns], axis=1) for i in range(2)])
        axis.imshow(tiles, cmap="gray", vmin=0, vmax=255)
        axis.set_title(title, loc="left", fontsize=9)
        axis.axis("off")
    figure.savefig(file, dpi=100)


def bars(ours: Sequence[Mapping[str, object]], peers: Sequence[Mapping[str, object]]) -> None:
    """AUC of both training sets on every holdout, with intervals."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for shift, (name, rows) in enumerate((("foundation, no adaptation", ours), ("public real images", peers))):
        values = np.array([[float(str(r[k])) for k in ("value", "low", "high")] for r in rows]).T
        places = np.arange(len(rows)) + 0.25 * (shift - 0.5)
        axes.errorbar(places, values[0], yerr=[values[0] - values[1], values[2] - values[0]], fmt="o", capsize=4, label=name)
    axes.set(xticks=range(len(ours)), xticklabels=[*HOSPITALS, "mean"], ylabel="AUC on real holdout patients", ylim=(0.5, 1))
    axes.legend(frameon=False)
    figure.savefig(RESULTS / "foundation-auc.png", dpi=120)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("BUSGEN_BENCH_THREADS", os.cpu_count() or 1)))
    main()
