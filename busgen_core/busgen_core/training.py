"""Training of a foundation from shards: EDM loss, EMA, condition dropout, exact resume, one or several processes.

``accelerate launch -m busgen_core.cli pretrain …`` runs it on several GPUs. Everything random in a step comes from (seed, step)
and is drawn for the whole batch, of which each process takes its rows: the losses do not depend on how many processes share
the work, nor on whether the run was stopped and started again.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor
from tqdm import tqdm

from busgen_core.conditions import LABELS, REGION_PLANES, Encoded, drop, encode
from busgen_core.errors import CheckpointError, ConfigError, InputError
from busgen_core.files import write_whole
from busgen_core.generator import Generator, Shape, build_network, build_scheduler, denoising_loss, training_sigmas
from busgen_core.shards import Example, ShardStream, class_folders
from busgen_core.tensors import to_unit

Log = Callable[[int, Mapping[str, float]], None]  # step, values
# Chance that pathology, BI-RADS, device, box, mask is replaced by its null. Most images are asked for by pathology and box alone.
DROPOUT = (0.1, 0.5, 0.5, 0.15, 0.75)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPlan:
    """One training run; the foundation's card states it.

    Attributes:
        seed: Of everything random.
        steps: Optimizer steps.
        shares: Share of the images that each source gives; a source's classes are drawn equally often.
        batch: Images a step, over all processes.
        learning_rate: AdamW's, after ``warmup`` steps; then half a cosine to 5 %.
        dropout: Chance of the null for pathology, BI-RADS, device, box, mask.
        drop_all: Chance that all of them are replaced at once.
        clip_norm: L2 bound of the whole gradient.
        ema_decay: Of the averaged weights, which are the foundation.
        shape: Network.
        devices: Names that the device table knows; other devices are trained as "not given".
    """

    seed: int
    steps: int
    shares: tuple[float, ...]
    batch: int = 16
    learning_rate: float = 4e-4
    warmup: int = 200
    dropout: tuple[float, ...] = DROPOUT
    drop_all: float = 0.05
    clip_norm: float = 1.0
    ema_decay: float = 0.9995
    shape: Shape = field(default_factory=Shape)
    devices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or len(self.dropout) != len(LABELS) + REGION_PLANES or not all(0 <= d < 1 for d in self.dropout):
            raise ConfigError(f"steps and batch must be at least 1, dropout five chances in [0, 1): {self}")
        if not self.shares or not all(s > 0 for s in self.shares):
            raise ConfigError(f"every source needs a share above 0: {self.shares}")


class Mixture:
    """Images of several sources, each class of a source equally often; the place in every stream is the whole state."""

    def __init__(self, sources: Sequence[Path], plan: TrainingPlan) -> None:
        if len(sources) != len(plan.shares):
            raise ConfigError(f"{len(sources)} sources, {len(plan.shares)} shares; give one share for each")
        parts = [part for source, share in zip(sources, plan.shares, strict=True) for part in _parts(source, share)]
        self.streams = [ShardStream(folder, size=plan.shape.image_px, seed=plan.seed + i) for i, (folder, _) in enumerate(parts)]
        weights = np.array([weight for _, weight in parts])
        self.weights = weights / weights.sum()
        self.places = [0] * len(self.streams)

    def draw(self, rng: np.random.Generator, count: int, *, keep: NDArray[np.bool_]) -> list[Example]:
        """The next ``count`` images; only those of ``keep``, bool [count], are decoded and returned, in order."""
        chosen = rng.choice(len(self.streams), size=count, p=self.weights)
        found: dict[int, Example] = {}
        for number, stream in enumerate(self.streams):
            slots = np.flatnonzero(chosen == number)
            examples = stream.read(self.places[number], len(slots), keep=keep[slots])
            self.places[number] += len(slots)
            found |= dict(zip(slots[keep[slots]].tolist(), examples, strict=True))
        return [found[slot] for slot in sorted(found)]


def _parts(source: Path, share: float) -> list[tuple[Path, float]]:
    classes = class_folders(source)
    return [(folder, share / len(classes)) for folder in classes]


@dataclass
class _Run:
    """What changes while training."""

    network: Generator
    optimizer: torch.optim.Optimizer
    average: EMAModel
    mixture: Mixture
    step: int = 0
    seconds: float = 0.0  # processor seconds of this and earlier processes
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A trained generator with its averaged weights, in eval mode on the CPU, and how it went."""

    network: Generator
    steps: int
    processor_seconds: float
    losses: list[float]


def train(
    plan: TrainingPlan, sources: Sequence[Path], *, run_folder: Path, save_every: int = 500, log: Log | None = None, stop_after: int | None = None
) -> Trained:
    """Train; a run that was stopped goes on from its last checkpoint with the losses that it would have had.

    Args:
        sources: Folders of shards, or of one folder of shards for each class; one for each of the plan's shares.
        run_folder: Holds the checkpoint of this run alone.
        save_every: Steps between checkpoints.
        log: Called with (step, values) now and then, in the first process.
        stop_after: Return after this step with what there is; a later call goes on.

    Raises:
        CheckpointError: the folder holds a run of another plan.
        ConfigError: the batch does not divide by the number of processes.
        InputError: the loss is not finite.
    """
    accelerator = _accelerator()
    if plan.batch % accelerator.num_processes:
        raise ConfigError(f"batch {plan.batch} does not divide by {accelerator.num_processes} processes")
    run = _begin(plan, sources, accelerator.device)
    _resume(run_folder, plan, run)
    scheduler = build_scheduler()
    wrapped = accelerator.prepare_model(run.network)
    wrapped.train()
    started, before = time.process_time(), run.seconds
    bar = tqdm(total=plan.steps, initial=run.step, desc="pretrain", unit="step", disable=not accelerator.is_main_process)
    while run.step < min(plan.steps, stop_after or plan.steps):
        images, conditions, noise, sigmas = _batch(plan, run, accelerator)
        with accelerator.autocast():
            loss = denoising_loss(wrapped, scheduler, images, conditions, noise, sigmas).mean()
        accelerator.backward(loss)
        value = float(accelerator.reduce(loss.detach(), reduction="mean"))
        if not np.isfinite(value):
            raise InputError(f"the loss is not finite at step {run.step}; nothing was saved since the last checkpoint. Lower the learning rate")
        _update(plan, run)
        run.losses.append(round(value, 6))
        run.seconds = before + time.process_time() - started
        bar.update()
        if accelerator.is_main_process and run.step % save_every == 0:
            _checkpoint(run_folder, plan, run)
        if log is not None and run.step % 50 == 0 and accelerator.is_main_process:
            log(run.step, {"loss": float(np.mean(run.losses[-200:])), "images": float(run.step * plan.batch)})
        bar.set_postfix(loss=f"{np.mean(run.losses[-200:]):.4f}", refresh=False)
    bar.close()
    if accelerator.is_main_process:
        _checkpoint(run_folder, plan, run)
    accelerator.wait_for_everyone()
    return _finish(run)


def _accelerator() -> Accelerator:
    low = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else torch.cpu._is_avx512_bf16_supported()
    return Accelerator(mixed_precision="bf16" if low else "no", cpu=not torch.cuda.is_available())


def _begin(plan: TrainingPlan, sources: Sequence[Path], device: torch.device) -> _Run:
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        network = build_network(plan.shape, plan.devices).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, weight_decay=0.01)
    average = EMAModel(network.parameters(), decay=plan.ema_decay, use_ema_warmup=True, power=0.75)
    return _Run(network, optimizer, average, Mixture(sources, plan))


def _batch(plan: TrainingPlan, run: _Run, accelerator: Accelerator) -> tuple[Tensor, Encoded, Tensor, Tensor]:
    """This process's rows of the step's batch: images, conditions, noise, noise levels, on its device."""
    rng = np.random.default_rng((plan.seed, run.step))
    draws = torch.Generator().manual_seed(int(rng.integers(2**62)))
    mine = np.arange(plan.batch) % accelerator.num_processes == accelerator.process_index
    rows = torch.from_numpy(np.flatnonzero(mine))
    images, encoded = load_batch(run.mixture.draw(rng, plan.batch, keep=mine), plan)
    mirrored = (torch.rand(plan.batch, generator=draws) < 0.5)[rows]
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    planes = torch.where(mirrored[:, None, None, None], encoded.planes.flip(3), encoded.planes)
    encoded = Encoded(encoded.labels, planes)
    encoded = drop(encoded, sizes=run.network.tables, rates=plan.dropout, all_rate=plan.drop_all, draws=draws, rows=rows, batch=plan.batch)
    noise = torch.randn(plan.batch, plan.shape.fold**2, plan.shape.side, plan.shape.side, generator=draws)[rows]
    sigmas = training_sigmas(torch.randn(plan.batch, generator=draws))[rows]
    device = accelerator.device
    return images.to(device), encoded.to(device), noise.to(device), sigmas.to(device)


def load_batch(examples: Sequence[Example], plan: TrainingPlan) -> tuple[Tensor, Encoded]:
    """Images float32 [n, 1, px, px] in [-1, 1] and their conditions; devices outside the plan's list become "not given"."""
    known = set(plan.devices)
    conditions = [e.condition if e.condition.device in known else e.condition.without_device() for e in examples]
    return to_unit(np.stack([e.image for e in examples])), encode(conditions, devices=plan.devices, side=plan.shape.side)


def _update(plan: TrainingPlan, run: _Run) -> None:
    torch.nn.utils.clip_grad_norm_(run.network.parameters(), plan.clip_norm)
    for group in run.optimizer.param_groups:
        group["lr"] = plan.learning_rate * _pace(run.step, plan)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.average.step(run.network.parameters())
    run.step += 1


def _pace(step: int, plan: TrainingPlan) -> float:
    """Learning rate factor: a straight rise, then half a cosine to 5 %."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    done = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return 0.05 + 0.95 * float(np.cos(np.pi * done) + 1) / 2


def _finish(run: _Run) -> Trained:
    run.average.copy_to(run.network.parameters())
    return Trained(network=run.network.cpu().eval(), steps=run.step, processor_seconds=run.seconds, losses=run.losses)


def _checkpoint(folder: Path, plan: TrainingPlan, run: _Run) -> None:
    """Write tensors as safetensors, then the state file that makes them valid; each file is replaced whole."""
    named = list(run.network.named_parameters())
    tensors = {f"net.{name}": p.detach() for name, p in named}
    tensors |= {f"ema.{name}": shadow for (name, _), shadow in zip(named, run.average.shadow_params, strict=True)}
    tensors |= {f"{key}.{name}": run.optimizer.state[p][key] for name, p in named for key in ("exp_avg", "exp_avg_sq", "step")}
    file = folder / f"state-{run.step:07d}.safetensors"
    write_whole(file, to_bytes({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}))
    state = {"plan": asdict(plan), "step": run.step, "seconds": run.seconds, "losses": run.losses, "places": run.mixture.places}
    state |= {"file": file.name, "ema_step": run.average.optimization_step}
    write_whole(folder / "state.json", json.dumps(state).encode())
    for old in folder.glob("state-*.safetensors"):
        if old.name != file.name:
            old.unlink()


def _resume(folder: Path, plan: TrainingPlan, run: _Run) -> None:
    """Put the last checkpoint in place, where there is one."""
    if not (folder / "state.json").exists():
        return
    try:
        state = json.loads((folder / "state.json").read_bytes())
        if state["plan"] != json.loads(json.dumps(asdict(plan))):
            raise CheckpointError(f"{folder.name} holds a run of another plan; move it away or give its plan")
        tensors = load_file(folder / state["file"])
        for (name, parameter), shadow in zip(run.network.named_parameters(), run.average.shadow_params, strict=True):
            parameter.data.copy_(tensors[f"net.{name}"])
            shadow.copy_(tensors[f"ema.{name}"])
            slots = {key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq", "step")}
            run.optimizer.state[parameter] = {key: t.to("cpu" if key == "step" else parameter.device) for key, t in slots.items()}
        run.average.optimization_step = int(state["ema_step"])
        run.step, run.seconds, run.losses = int(state["step"]), float(state["seconds"]), list(state["losses"])
        run.mixture.places = [int(p) for p in state["places"]]
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder.name}: its checkpoint cannot be read ({type(error).__name__}); move the folder away") from error
