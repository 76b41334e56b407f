"""The peer of ``bench/foundation.py``: a plain diffusers DDPM on pixels, trained on the same shards for the same processor seconds.

U-Net of the same widths as cpu-64 at 64 x 64 pixels, class label alone, epsilon loss, linear schedule of 1,000 steps, float32, AdamW, EMA: what
diffusers' own training example does, at a width that two cores can train. Sampled by diffusers' DPM-Solver++. Resumable.
"""

import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch.nn import functional
from tqdm import tqdm

from busgen_core.labels import Pathology
from busgen_core.tensors import to_bytes, to_unit
from busgen_core.training import Mixture, TrainingPlan

SAVE_EVERY = 50


def network() -> UNet2DModel:
    """The peer's U-Net."""
    return UNet2DModel(
        sample_size=64,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
        num_class_embeds=len(Pathology),
    )


def train(sources: list[Path], shares: tuple[float, ...], run: Path, *, seconds: float, batch: int = 16, learning_rate: float = 4e-4) -> UNet2DModel:
    """Train for ``seconds`` of processor time, over all processes of this run, and return the averaged network."""
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model, schedule = network(), DDPMScheduler()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    average = EMAModel(model.parameters(), decay=0.9995, use_ema_warmup=True, power=0.75)
    mixture = Mixture(sources, TrainingPlan(seed=1, steps=1, shares=shares))
    step, before, losses = _resume(run, model, optimizer, average, mixture)
    started = time.process_time()
    bar = tqdm(desc="plain DDPM", unit="step", initial=step)
    while (spent := before + time.process_time() - started) < seconds:
        rng = np.random.default_rng((1, step))
        examples = mixture.draw(rng, batch, keep=np.ones(batch, bool))
        images = to_unit(np.stack([e.image for e in examples]))
        images = torch.where(torch.from_numpy(rng.random(batch) < 0.5)[:, None, None, None], images.flip(3), images)
        labels = torch.tensor([(e.condition.pathology or Pathology.NORMAL).class_index for e in examples])
        noise, times = torch.randn_like(images), torch.randint(0, 1000, (batch,))
        loss = functional.mse_loss(model(schedule.add_noise(images, noise, times), times, class_labels=labels).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 200) * (0.05 + 0.95 * (1 + np.cos(np.pi * spent / seconds)) / 2)
        optimizer.step()
        optimizer.zero_grad()
        average.step(model.parameters())
        losses.append(loss.item())
        step += 1
        bar.update()
        bar.set_postfix(loss=f"{np.mean(losses[-100:]):.4f}", minutes=f"{spent / 60:.1f}", refresh=False)
        if step % SAVE_EVERY == 0:
            _save(run, model, optimizer, average, mixture, step, before + time.process_time() - started, losses)
    _save(run, model, optimizer, average, mixture, step, spent, losses)
    average.copy_to(model.parameters())
    return model.eval()


def _save(
    run: Path,
    model: UNet2DModel,
    optimizer: torch.optim.Optimizer,
    average: EMAModel,
    mixture: Mixture,
    step: int,
    seconds: float,
    losses: list[float],
) -> None:
    tensors = {f"net.{n}": p.detach() for n, p in model.named_parameters()}
    tensors |= {f"ema.{n}": s.clone() for (n, _), s in zip(model.named_parameters(), average.shadow_params, strict=True)}
    tensors |= {f"{k}.{n}": optimizer.state[p][k] for n, p in model.named_parameters() for k in ("exp_avg", "exp_avg_sq", "step")}
    save_file(tensors, run / "new.safetensors", {"step": str(step)})
    (run / "new.safetensors").replace(run / "state.safetensors")
    state = {"step": step, "seconds": seconds, "places": mixture.places, "losses": losses, "ema_step": average.optimization_step}
    (run / "new.json").write_text(json.dumps(state))
    (run / "new.json").replace(run / "state.json")


def _resume(run: Path, model: UNet2DModel, optimizer: torch.optim.Optimizer, average: EMAModel, mixture: Mixture) -> tuple[int, float, list[float]]:
    if not (run / "state.json").exists():
        return 0, 0.0, []
    state, tensors = json.loads((run / "state.json").read_text()), load_file(run / "state.safetensors")
    for (name, parameter), shadow in zip(model.named_parameters(), average.shadow_params, strict=True):
        parameter.data.copy_(tensors[f"net.{name}"])
        shadow.copy_(tensors[f"ema.{name}"])
        optimizer.state[parameter] = {key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq", "step")}
    average.optimization_step, mixture.places = state["ema_step"], state["places"]
    return state["step"], state["seconds"], state["losses"]


@torch.no_grad()
def sample(model: UNet2DModel, labels: list[Pathology], *, steps: int = 25, seed: int = 0) -> NDArray[np.uint8]:
    """Images by diffusers' DPM-Solver++ of order 2, uint8 [n, 64, 64]; 25 steps, where DDIM would need several times as many."""
    draws, found = torch.Generator().manual_seed(seed), []
    for start in tqdm(range(0, len(labels), 32), desc="peer's samples", unit="batch"):
        schedule = DPMSolverMultistepScheduler.from_config(DDPMScheduler().config)
        schedule.set_timesteps(steps)
        classes = torch.tensor([p.class_index for p in labels[start : start + 32]])
        images = torch.randn(len(classes), 1, 64, 64, generator=draws)
        for t in schedule.timesteps:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
                output = model(images, t, class_labels=classes).sample
            images = schedule.step(output.float(), t, images).prev_sample
        found.append(to_bytes(images))
    return np.concatenate(found)


if __name__ == "__main__":
    import sys

    folder, minutes = Path(sys.argv[1]), float(sys.argv[2])
    torch.set_num_threads(1)
    train([folder / "public", folder / "phantoms"], (0.85, 0.15), folder / "peer.run", seconds=60 * minutes)
