"""Training of the encoder on phantoms and public images, resumable; the tasks are in ``encoder_tasks``."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from busgen_core.errors import CheckpointError, ConfigError, InputError
from busgen_core.files import write_whole
from busgen_core.labels import Pathology
from busgen_core.quality.encoder import EncoderConfig, EncoderNetwork, load_encoder, save_encoder
from busgen_core.quality.encoder_data import Examples, Labelled, hold_out, phantom_labelled, public_labelled, tabulate, vocabulary
from busgen_core.quality.encoder_tasks import MASK_SIDE, Tasks, damaged, moved, total_loss
from busgen_core.scores import auc
from busgen_core.tensors import to_unit


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderPlan:
    """One training run; the card states it."""

    seed: int
    steps: int = 2000
    batch: int = 64  # half of them phantoms where there are public images
    learning_rate: float = 2e-3  # AdamW's, after ``warmup`` steps; then half a cosine to 0
    weight_decay: float = 0.05
    warmup: int = 100
    dropout: float = 0.1  # of the features, before the heads
    phantoms: int = 6000
    held_out: float = 0.15  # share of the public patients kept for checking
    ema_decay: float = 0.995
    config: EncoderConfig = field(default_factory=EncoderConfig)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 4 or not self.learning_rate > 0 or not 0 <= self.dropout < 1 or not 0 < self.ema_decay < 1:
            raise ConfigError(f"steps at least 1, batch at least 4, learning_rate above 0, dropout in [0, 1), ema_decay in (0, 1): {self}")

    def as_json(self) -> str:
        """Canonical text, by which a checkpoint knows its plan."""
        return json.dumps(asdict(self) | {"config": self.config.model_dump()}, sort_keys=True, default=list)


@dataclass
class _Run:
    """What changes while training."""

    model: Tasks
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    tasks: tuple[str, ...]
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def train_encoder(
    plan: EncoderPlan, *, public: Path | None, out: Path, save_every: int = 200, stop_after: int | None = None, quiet: bool = False
) -> str | None:
    """Train an encoder and write its folder; a run that was stopped goes on from its last checkpoint, in ``<out>.run``.

    Args:
        public: Folder of public images with images.csv (file, mask_file, pathology, group; birads, device); None: phantoms alone.
        out: Folder of the encoder.
        save_every: Steps between checkpoints.
        stop_after: Return None after this step; a later call goes on.
        quiet: No progress bars.

    Returns:
        Digest of the encoder. The same plan and images give the same weights on the same kind of machine with the same number of threads.

    Raises:
        CheckpointError: the checkpoint beside ``out`` belongs to another plan or cannot be read.
        TableError, CorruptImageError: the public images cannot be read.
        InputError: the loss is not finite.
    """
    real, checks = hold_out(public_labelled(public, size=plan.config.image_px), share=plan.held_out, seed=plan.seed) if public else ([], [])
    simulated = phantom_labelled(plan.phantoms, size=plan.config.image_px, seed=plan.seed, quiet=quiet)
    words = vocabulary([*real, *simulated])
    sources = [tabulate(items, words) for items in (real, simulated) if items]
    run = _begin(plan, words)
    folder = out.with_name(out.name + ".run")
    _resume(folder, plan, run)
    last = min(plan.steps, stop_after or plan.steps)
    _learn(plan, run, sources, last=last, save_every=save_every, folder=folder, quiet=quiet)
    if run.step < plan.steps:
        return None
    model = cast(Tasks, run.average.module)
    _standardise(model.encoder, [source.images for source in sources])
    card = encoder_card(plan, public=public is not None, seconds=run.seconds, checks=check(model, checks, words))
    digest = save_encoder(out, config=plan.config, network=model.encoder, card=card)
    load_encoder(out, expected_digest=digest)
    return digest


def _begin(plan: EncoderPlan, words: Mapping[str, tuple[str, ...]]) -> _Run:
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        model = Tasks(plan.config, words, dropout=plan.dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
    return _Run(model, AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(plan.ema_decay)), optimizer, tuple(words))


def _learn(plan: EncoderPlan, run: _Run, sources: Sequence[Examples], *, last: int, save_every: int, folder: Path, quiet: bool) -> None:
    before, started = run.seconds, time.process_time()
    bar = tqdm(total=plan.steps, initial=run.step, desc="encoder", unit="step", disable=quiet)
    run.model.train()
    while run.step < last:
        loss = _step(plan, run, sources)
        run.losses.append(round(loss, 5))
        run.seconds = before + time.process_time() - started
        bar.update()
        bar.set_postfix(loss=f"{np.mean(run.losses[-100:]):.3f}", refresh=False)
        if run.step % save_every == 0 or run.step == last:
            _checkpoint(folder, plan, run)
    bar.close()


def _step(plan: EncoderPlan, run: _Run, sources: Sequence[Examples]) -> float:
    """One update. Everything random comes from (seed, step), so a resumed run draws what it would have drawn."""
    rng = np.random.default_rng((plan.seed, run.step))
    draws = torch.Generator().manual_seed(int(rng.integers(2**62)))
    images, masks, masked, labels = _batch(plan, sources, rng, draws)
    images, damage = damaged(images, draws=draws)
    with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
        found = run.model(images, draws=draws)
    loss = total_loss(found, masks, masked, labels, damage, tasks=run.tasks)
    if not torch.isfinite(loss):
        raise InputError(f"the loss is not finite at step {run.step}; lower the learning rate and start from the last checkpoint")
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    for group in run.optimizer.param_groups:
        group["lr"] = plan.learning_rate * _pace(run.step, plan)
    run.optimizer.step()
    run.average.update_parameters(run.model)
    run.step += 1
    return loss.item()


def _batch(plan: EncoderPlan, sources: Sequence[Examples], rng: np.random.Generator, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images [n, 1, px, px], masks [n, MASK_SIDE, MASK_SIDE], whether they are known [n], labels [n, tasks]; moved and mirrored."""
    parts = [(source, rng.integers(len(source), size=plan.batch // len(sources))) for source in sources]
    images = torch.cat([to_unit(source.images[rows]) for source, rows in parts])
    masks = torch.cat([torch.from_numpy(source.masks[rows].astype(np.float32))[:, None] for source, rows in parts])
    images, masks = moved(torch.cat([images, masks], dim=1), draws=draws).split(1, dim=1)
    masked = torch.cat([torch.from_numpy(source.masked[rows]) for source, rows in parts])
    labels = torch.cat([torch.from_numpy(source.labels[rows]) for source, rows in parts])
    return images, functional.adaptive_avg_pool2d(masks, MASK_SIDE).squeeze(1), masked, labels


def _pace(step: int, plan: EncoderPlan) -> float:
    """Learning rate factor: a straight rise, then half a cosine to 0."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    return (1 + math.cos(math.pi * (step - plan.warmup) / max(1, plan.steps - plan.warmup))) / 2


@torch.no_grad()
def _standardise(network: EncoderNetwork, sets: Sequence[NDArray[np.uint8]]) -> None:
    """Store mean and deviation of the features over all sets, each set with the same weight."""
    network.eval()
    features = [torch.cat([network(to_unit(images[i : i + 128]))[0] for i in range(0, len(images), 128)]).double() for images in sets]
    mean = torch.stack([f.mean(dim=0) for f in features]).mean(dim=0)
    square = torch.stack([(f - mean).square().mean(dim=0) for f in features]).mean(dim=0)
    network.get_buffer("mean").copy_(mean)
    network.get_buffer("deviation").copy_(square.sqrt().clamp(min=1e-6))


@torch.no_grad()
def check(model: Tasks, items: Sequence[Labelled], words: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    """On public patients that were held out: AUC of malignant against benign, and the share of devices named right."""
    if not items:
        return {}
    model.eval()
    examples, tasks = tabulate(items, words), list(words)
    logits = model(to_unit(examples.images))[1]
    place = [words["pathology"].index(p.value) for p in (Pathology.BENIGN, Pathology.MALIGNANT)]
    score = (logits[tasks.index("pathology")][:, place[1]] - logits[tasks.index("pathology")][:, place[0]]).numpy()
    labels = examples.labels[:, tasks.index("pathology")]
    found = {"images": float(len(items)), "auc": auc(score[labels == place[1]], score[labels == place[0]])}
    if "device" in tasks:
        right = logits[tasks.index("device")].argmax(dim=1).numpy() == examples.labels[:, tasks.index("device")]
        found["devices right"] = float(right.mean())
    return found


def _checkpoint(folder: Path, plan: EncoderPlan, run: _Run) -> None:
    """Write tensors as safetensors, then the state file that makes them valid; each file is replaced whole."""
    tensors = {f"model.{name}": tensor for name, tensor in run.model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in run.average.state_dict().items()}
    for name, parameter in run.model.named_parameters():
        tensors |= {f"{key}.{name}": run.optimizer.state[parameter][key] for key in ("exp_avg", "exp_avg_sq", "step")}
    file = folder / f"state-{run.step:07d}.safetensors"
    write_whole(file, save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}))
    state = {"plan": plan.as_json(), "step": run.step, "seconds": run.seconds, "losses": run.losses, "file": file.name}
    write_whole(folder / "state.json", json.dumps(state).encode())
    for old in folder.glob("state-*.safetensors"):
        if old.name != file.name:
            old.unlink()


def _resume(folder: Path, plan: EncoderPlan, run: _Run) -> None:
    """Put the last checkpoint in place, where there is one."""
    if not (folder / "state.json").exists():
        return
    try:
        state = json.loads((folder / "state.json").read_bytes())
        if state["plan"] != plan.as_json():
            raise CheckpointError(f"{folder.name} holds a run of another plan; move it away or give its plan")
        tensors = load((folder / str(state["file"])).read_bytes())
        run.model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
        run.average.load_state_dict({name.removeprefix("average."): t for name, t in tensors.items() if name.startswith("average.")})
        for name, parameter in run.model.named_parameters():
            run.optimizer.state[parameter] = {key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq", "step")}
        run.step, run.seconds, run.losses = int(state["step"]), float(state["seconds"]), [float(loss) for loss in state["losses"]]
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder.name}: its checkpoint cannot be read ({type(error).__name__}); move the folder away") from error


def encoder_card(plan: EncoderPlan, *, public: bool, seconds: float, checks: Mapping[str, float]) -> str:
    """Card: data, command, seed, time, checks, and what it is not."""
    data = (
        "BUS-BRA, the 574 patients not scanned with a GE Logiq 5 (1,066 images; Gómez-Flores et al. 2024, doi:10.1002/mp.16812, CC BY 4.0) "
        f"less a random {plan.held_out:.0%} of the patients, and {plan.phantoms} phantoms of `busgen_core.phantom`"
        if public
        else f"{plan.phantoms} phantoms of `busgen_core.phantom`"
    )
    found = "; ".join(f"{name} {value:.3g}" for name, value in checks.items()) or "none"
    px, option = plan.config.image_px, " --public PUBLIC_FOLDER" if public else ""
    return f"""---
license: apache-2.0
tags: [ultrasound, breast, features, quality]
---
# BUSGen Consortium encoder, {plan.config.name}

{plan.config.features} features of a {px} x {px} px gray breast ultrasound frame, for measures of image quality (KID, coverage, Vendi score):
`busgen_core.quality.encoder.load_encoder()`. Feature i has mean 0 and standard deviation 1 over its training images.

- Data: {data}.
- Tasks: pathology, BI-RADS, device, BI-RADS descriptors, coarse lesion mask, strength of blur, noise, contrast, brightness and despeckling.
- Command: `busgen-core train-encoder OUT --steps {plan.steps} --seed {plan.seed} --phantoms {plan.phantoms}{option}`
- Processor time: {seconds / 60:.1f} minutes on one core.
- Checked on public patients that it was not trained on: {found}.

It is no classifier and not for diagnosis. It saw three scanners of one hospital and simulated ones: distances between other scanners count for
less. What is finer than a {px} px frame shows is not seen. Compare features of one encoder only, and always with the real-against-real floor.
"""
