"""Pretraining of a foundation on phantoms and, where given, a folder of public images. Resumable."""

import csv
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from numpy.typing import NDArray
from PIL import Image as PillowImage
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from busgen_core.boxes import BoxDensity, fit_boxes
from busgen_core.errors import CheckpointError, ConfigError, TableError
from busgen_core.foundation import save_foundation
from busgen_core.generator import FOLD, PATCH_CHANNELS, TRAIN_STEPS, Shape, build_network, build_scheduler, denoising_loss
from busgen_core.images import Box, resize_gray
from busgen_core.labels import NULL_INDEX, Pathology, parse_pathology
from busgen_core.phantom import simulate
from busgen_core.tensors import box_channel, to_unit


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainPlan:
    """One pretraining run; the card of the foundation states it."""

    seed: int
    steps: int
    batch: int = 32
    learning_rate: float = 4e-4
    warmup: int = 200
    condition_dropout: float = 0.1  # chance that class or box is replaced by its null
    phantoms: int = 6000  # distinct phantom frames
    phantom_share: float = 0.15  # share of a batch drawn from phantoms once public images are given
    ema_decay: float = 0.999
    shape: Shape = field(default_factory=Shape)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not 0 <= self.condition_dropout < 1:
            raise ConfigError(f"steps and batch must be at least 1, condition_dropout in [0, 1): {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Frames:
    """Labelled frames in memory: uint8 [n, px, px], one pathology and one box (or None) for each."""

    images: NDArray[np.uint8]
    labels: list[Pathology]
    boxes: list[Box | None]


def phantom_frames(count: int, *, size: int, seed: int) -> Frames:
    """``count`` phantoms, the three classes in turn."""
    classes = [list(Pathology)[i % len(Pathology)] for i in range(count)]
    drawn = [simulate(p, size=size, seed=seed * 1_000_003 + i) for i, p in enumerate(tqdm(classes, desc="phantoms", unit="image"))]
    return Frames(images=np.stack([d.image for d in drawn]), labels=classes, boxes=[d.box for d in drawn])


def public_frames(folder: Path, *, size: int) -> Frames:
    """Public images listed in ``folder/images.csv`` (columns file, mask_file, pathology).

    Beside each lesion image, its widest strip without lesion becomes a "normal" frame: normal tissue beside a lesion.

    Raises:
        TableError: the table is missing or lacks columns.
    """
    table = folder / "images.csv"
    if not table.is_file():
        raise TableError(f"{table.name} is not in the public folder; give the folder that holds it")
    images, labels, boxes = [], [], []
    with table.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or not {"file", "mask_file", "pathology"} <= rows[0].keys():
        raise TableError(f"{table.name} lacks one of the columns file, mask_file, pathology")
    for row in tqdm(rows, desc="public images", unit="image"):
        gray = np.asarray(PillowImage.open(folder / row["file"]).convert("L"))
        box = mask_box(np.asarray(PillowImage.open(folder / row["mask_file"]).convert("1"))) if row["mask_file"] else None
        images.append(resize_gray(gray, size=size))
        labels.append(parse_pathology(row["pathology"]))
        boxes.append(box)
        if box is not None and (strip := _lesion_free(gray, box)) is not None:
            images.append(resize_gray(strip, size=size))
            labels.append(Pathology.NORMAL)
            boxes.append(None)
    return Frames(images=np.stack(images), labels=labels, boxes=boxes)


def mask_box(mask: NDArray[np.bool_]) -> Box | None:
    """Bounding box of a mask as fractions of the frame, None when the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return None
    height, width = mask.shape
    return (float(columns[0] / width), float(rows[0] / height), float((columns[-1] + 1) / width), float((rows[-1] + 1) / height))


def _lesion_free(gray: NDArray[np.uint8], box: Box) -> NDArray[np.uint8] | None:
    """Beside the lesion, in the frame's own proportions: the wider side, if it is at least 40 % of the frame wide."""
    height, width = gray.shape
    left, right = gray[:, : int(box[0] * width)], gray[:, int(np.ceil(box[2] * width)) :]
    strip = left if left.shape[1] >= right.shape[1] else right
    strip = strip[: round(height * strip.shape[1] / width)]
    return strip if strip.shape[1] >= 0.4 * width and strip.min() < strip.max() else None


def draw_batch(frames: Frames, rows: NDArray[np.int64], rng: np.random.Generator, *, dropout: float) -> tuple[torch.Tensor, ...]:
    """Images [n, 1, px, px], class indices [n] and box planes of the chosen rows, mirrored at random, conditions dropped at random."""
    flip = rng.random(len(rows)) < 0.5
    images = np.where(flip[:, None, None], frames.images[rows][:, :, ::-1], frames.images[rows])
    classes, boxes = [], []
    for row, mirrored in zip(rows, flip, strict=True):
        box = frames.boxes[row]
        if box is not None and mirrored:
            box = (1 - box[2], box[1], 1 - box[0], box[3])
        boxes.append(None if rng.random() < dropout else box)
        classes.append(NULL_INDEX if rng.random() < dropout else frames.labels[row].class_index)
    planes = box_channel(boxes, size=frames.images.shape[1] // FOLD)
    return to_unit(images), torch.tensor(classes), planes


def pretrain(plan: PretrainPlan, *, public: Path | None, out: Path, save_every: int = 500, minutes: float | None = None) -> str:
    """Train and write a foundation to ``out``; a run that was stopped goes on from its last checkpoint.

    Args:
        public: Folder of public images, or None for phantoms alone.
        out: Foundation folder; the checkpoint of the run lies beside it in ``<out>.run``.
        save_every: Steps between checkpoints.
        minutes: Stop after this wall time in this process, even if steps are left, and write what there is.

    Returns:
        Digest of the foundation.

    Raises:
        CheckpointError: the checkpoint beside ``out`` belongs to another plan.
    """
    run = out.with_name(out.name + ".run")
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    phantoms = phantom_frames(plan.phantoms, size=plan.shape.image_px, seed=plan.seed)
    real = public_frames(public, size=plan.shape.image_px) if public else None
    network, scheduler = build_network(plan.shape).to(device), build_scheduler()
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, weight_decay=0.01)
    average = EMAModel(network.parameters(), decay=plan.ema_decay, use_ema_warmup=True, power=0.75)
    done, seconds, losses = _resume(run, plan, network, optimizer, average)
    started = time.monotonic() - seconds
    stop_at = None if minutes is None else time.monotonic() + 60 * minutes
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda" or torch.cpu._is_avx512_bf16_supported())
    network.train()
    progress = tqdm(range(done, plan.steps), initial=done, total=plan.steps, desc="pretrain", unit="step")
    step = done
    for step in progress:
        rng = np.random.default_rng((plan.seed, step))  # a resumed step draws what the first try would have drawn
        share = plan.phantom_share if real else 1.0
        many = round(plan.batch * share)
        parts = [draw_batch(phantoms, rng.integers(len(phantoms.labels), size=many), rng, dropout=plan.condition_dropout)] if many else []
        if real:
            parts.append(draw_batch(real, _balanced(real, plan.batch - many, rng), rng, dropout=plan.condition_dropout))
        images, classes, planes = (torch.cat(column).to(device) for column in zip(*parts, strict=True))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        noise = torch.randn(len(images), PATCH_CHANNELS, *planes.shape[2:], generator=generator).to(device)
        times = torch.randint(0, TRAIN_STEPS, (len(images),), generator=generator).to(device)
        with autocast:
            loss = denoising_loss(network, scheduler, images, classes, planes, noise, times).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * _rate(step, plan)
        optimizer.step()
        optimizer.zero_grad()
        average.step(network.parameters())
        losses.append(round(loss.item(), 5))
        if step % 20 == 0:
            progress.set_postfix(loss=f"{np.mean(losses[-100:]):.4f}")
        if (step + 1) % save_every == 0:
            _checkpoint(run, plan, network, optimizer, average, step + 1, time.monotonic() - started, losses)
        if stop_at is not None and time.monotonic() > stop_at:
            break
    _checkpoint(run, plan, network, optimizer, average, step + 1, time.monotonic() - started, losses)
    average.copy_to(network.parameters())
    boxes = _public_boxes(real or phantoms)
    card = model_card(plan, public=public, steps=step + 1, seconds=time.monotonic() - started, device=device.type, loss=float(np.mean(losses[-200:])))
    return save_foundation(out, network=network.cpu().eval(), scheduler=scheduler, boxes=boxes, card=card)


def _balanced(frames: Frames, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows drawn with the three classes equally likely."""
    labels = np.array([p.class_index for p in frames.labels])
    weight = 1.0 / np.bincount(labels, minlength=len(Pathology))[labels]
    return rng.choice(len(labels), size=count, p=weight / weight.sum())


def _rate(step: int, plan: PretrainPlan) -> float:
    """Warm-up, then cosine decay to 5 %."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    return float(0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * min(1.0, step / plan.steps))))


def _public_boxes(frames: Frames) -> BoxDensity:
    found: dict[Pathology, list[Box]] = {}
    for pathology, box in zip(frames.labels, frames.boxes, strict=True):
        if box is not None:
            found.setdefault(pathology, []).append(box)
    return fit_boxes(found)


def _checkpoint(
    run: Path,
    plan: PretrainPlan,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: EMAModel,
    step: int,
    seconds: float,
    losses: list[float],
) -> None:
    """Write tensors as safetensors, then the state file that makes them valid; each file is replaced whole."""
    names = [name for name, _ in network.named_parameters()]
    tensors = {f"net.{name}": value.detach().cpu().contiguous() for name, value in network.named_parameters()}
    tensors |= {f"ema.{name}": value.detach().cpu().contiguous() for name, value in zip(names, average.shadow_params, strict=True)}
    for name, parameter in network.named_parameters():
        state = optimizer.state[parameter]
        tensors |= {f"{key}.{name}": state[key].detach().cpu().contiguous() for key in ("exp_avg", "exp_avg_sq", "step")}
    file = run / f"state-{step:07d}.safetensors"
    save_file(tensors, file)
    state = {"plan": asdict(plan), "step": step, "seconds": seconds, "losses": losses, "file": file.name, "ema_step": average.optimization_step}
    temporary = run / "state.json.new"
    temporary.write_text(json.dumps(state))
    temporary.replace(run / "state.json")
    for old in run.glob("state-*.safetensors"):
        if old.name != file.name:
            old.unlink()


def _resume(
    run: Path, plan: PretrainPlan, network: torch.nn.Module, optimizer: torch.optim.Optimizer, average: EMAModel
) -> tuple[int, float, list[float]]:
    if not (run / "state.json").exists():
        return 0, 0.0, []
    state = json.loads((run / "state.json").read_text())
    if state["plan"] != json.loads(json.dumps(asdict(plan))):
        raise CheckpointError(f"{run.name} holds a run of another plan; move it away or give its plan")
    tensors = load_file(run / state["file"])
    for (name, parameter), shadow in zip(network.named_parameters(), average.shadow_params, strict=True):
        parameter.data.copy_(tensors[f"net.{name}"])
        shadow.copy_(tensors[f"ema.{name}"])
        optimizer.state[parameter] = {
            key: tensors[f"{key}.{name}"].to(parameter.device if key != "step" else "cpu") for key in ("exp_avg", "exp_avg_sq", "step")
        }
    average.optimization_step = int(state["ema_step"])
    return int(state["step"]), float(state["seconds"]), list(state["losses"])


def model_card(plan: PretrainPlan, *, public: Path | None, steps: int, seconds: float, device: str, loss: float) -> str:
    """Model card: data, command, seed, time and what it is not."""
    data = (
        "BUS-BRA, the 574 patients not scanned with a GE Logiq 5 (1,066 images, benign and malignant; Gómez-Flores et al. 2024, "
        "doi:10.1002/mp.16812, CC BY 4.0), and phantoms of `busgen_core.phantom`. "
        '"Normal" frames are phantoms and lesion-free strips of the same public images.'
        if public
        else "phantoms of `busgen_core.phantom` alone."
    )
    option = " --public PUBLIC_FOLDER" if public else ""
    return f"""---
license: apache-2.0
library_name: diffusers
tags: [ultrasound, breast, diffusion, foundation]
---
# BUSGen Consortium foundation, cpu-64

Conditional diffusion model of {plan.shape.image_px} x {plan.shape.image_px} px breast ultrasound frames (2 x 2 pixel patches, v-prediction,
cosine schedule). Conditions: pathology (normal, benign, malignant, or null) and lesion box (or null).

- Data: {data}
- Command: `busgen-core pretrain OUT --steps {plan.steps} --seed {plan.seed}{option}`
- Seed: {plan.seed}. Steps: {steps} of {plan.steps} planned, batch {plan.batch}. Wall time: {seconds / 60:.0f} minutes on {device}.
- Mean loss (v, all noise levels) over the last 200 steps: {loss:.4f}

Not for diagnosis. Its images are not of patients; it has no differential privacy, since all its data are public or simulated.
"""
