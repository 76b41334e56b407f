"""Sampling: DPM-Solver++ with few evaluations, guidance, a seed for each image, and folders of samples that can be gone on with."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Never

import numpy as np
import torch
from diffusers import EDMDPMSolverMultistepScheduler
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from busgen_core.boxes import BoxDensity
from busgen_core.conditions import Condition, Encoded, encode
from busgen_core.errors import ConfigError, LabelError, StateError
from busgen_core.files import write_whole
from busgen_core.foundation import Foundation
from busgen_core.generator import Generator, unfold
from busgen_core.labels import Birads, Pathology
from busgen_core.official import OfficialGenerator, sample_official
from busgen_core.shards import Example, shard_bytes
from busgen_core.tensors import to_bytes

EVALUATIONS = 7  # the fewest whose KID lies in the interval of DDIM with 50: bench/sampling.py, docs/adr/0019
OFFICIAL_EVALUATIONS, OFFICIAL_GUIDANCE = 50, 1.8  # as published: docs/adr/0010-official-network.md
AT_ONCE = 32  # images in a batch: more are no faster on two cores

Progress = Callable[[int, int], None]


@torch.no_grad()
def sample(
    network: Generator,
    scheduler: EDMDPMSolverMultistepScheduler,
    conditions: Encoded,
    *,
    seeds: Sequence[int],
    evaluations: int = EVALUATIONS,
    guidance: float = 0.0,
) -> Tensor:
    """Draw one image for each condition; image i depends on ``seeds[i]`` and its condition alone.

    Args:
        network: In eval mode.
        scheduler: Its configuration is used, not its state.
        seeds: One seed for each image.
        evaluations: Denoising steps; each is one evaluation of the network, with guidance two.
        guidance: w of (1 + w) F(conditions) - w F(nulls) (J. Ho, T. Salimans 2022, arXiv:2207.12598, equation 6); 0 is none.

    Returns:
        float32 [n, 1, px, px] in [-1, 1].

    Raises:
        ConfigError: lengths differ, ``evaluations < 1``, or guidance below 0.
    """
    if len(seeds) != len(conditions) or evaluations < 1 or guidance < 0:
        raise ConfigError(f"need a seed for each condition, evaluations >= 1, guidance >= 0: {len(seeds)=}, {len(conditions)=}, {evaluations=}")
    device = next(network.parameters()).device
    size = (network.fold**2, network.side, network.side)
    start = [torch.randn(size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    solver = EDMDPMSolverMultistepScheduler.from_config(scheduler.config)
    solver.set_timesteps(evaluations)
    patches = (torch.stack(start) * solver.init_noise_sigma + network.image_mean).to(device)
    asked = _with_nulls(conditions, network) if guidance else conditions
    asked = asked.to(device)
    low_precision = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    for c_noise in solver.timesteps:
        scaled = solver.scale_model_input(patches, c_noise)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low_precision):
            output = _answer(network, scaled, c_noise.to(device), asked, guidance)
        patches = solver.step(output.float(), c_noise, patches).prev_sample
    return unfold(patches, network.fold).clamp(-1, 1).cpu()


def _with_nulls(conditions: Encoded, network: Generator) -> Encoded:
    """The conditions, and as many without any."""
    nulls = (torch.tensor(network.tables) - 1).expand_as(conditions.labels)
    return Encoded(torch.cat([conditions.labels, nulls]), torch.cat([conditions.planes, torch.full_like(conditions.planes, -1.0)]))


def _answer(network: Generator, scaled: Tensor, c_noise: Tensor, asked: Encoded, guidance: float) -> Tensor:
    """F for the batch, guided where ``asked`` holds the nulls too."""
    twice = scaled.repeat(len(asked) // len(scaled), 1, 1, 1)
    output: Tensor = network(twice, c_noise.expand(len(twice)), asked.labels, asked.planes)
    if not guidance:
        return output
    with_conditions, without = output.float().chunk(2)
    return (1 + guidance) * with_conditions - guidance * without


@dataclass(frozen=True, slots=True)
class OfficialFoundation:
    """The published network as something to sample from; the boxes are another foundation's, since it comes with none."""

    generator: OfficialGenerator
    boxes: BoxDensity

    @property
    def digest(self) -> str:
        """Of the folder or file that the network was read from."""
        return self.generator.digest

    @property
    def image_px(self) -> int:
        """Rows and columns of an image."""
        return self.generator.image_px

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of devices that can be asked for."""
        return self.generator.devices


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplePlan:
    """What a folder of samples holds; it is written into the folder first.

    Attributes:
        seed: Together with an image's number it fixes the image's own seed.
        counts: Images of each pathology.
        birads: Asked of every lesion image, or None.
        device: Asked of every image, or None.
        evaluations: See :func:`sample`.
        guidance: See :func:`sample`.
        shard_images: Images of a file.
    """

    seed: int
    counts: Mapping[Pathology, int]
    birads: Birads | None = None
    device: str | None = None
    evaluations: int = EVALUATIONS
    guidance: float = 0.0
    shard_images: int = 512

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts.values()) < 0 or not sum(self.counts.values()) or self.shard_images < 1:
            raise ConfigError(f"ask for at least one image, and for no fewer than 0 of a class: {dict(self.counts)}")

    @property
    def pathologies(self) -> list[Pathology]:
        """Pathology of each image, mixed, so that every shard is about as balanced as the whole."""
        wanted = [p for p in Pathology for _ in range(self.counts.get(p, 0))]
        return [wanted[int(i)] for i in np.random.default_rng(self.seed).permutation(len(wanted))]


@dataclass(frozen=True, slots=True)
class Request:
    """One image to draw: its own seed and its condition."""

    seed: int
    condition: Condition


def requests(plan: SamplePlan, source: Foundation | OfficialFoundation) -> list[Request]:
    """Seeds and conditions of a plan's images; boxes come from the foundation's density.

    Raises:
        LabelError: a device that the foundation does not know.
    """
    if plan.device is not None and plan.device not in source.devices:
        raise LabelError(f"the foundation does not know this device; it knows {list(source.devices)}")
    found = []
    for number, pathology in enumerate(plan.pathologies):
        seed = int(np.random.default_rng((plan.seed, number, 1)).integers(2**62))
        box = source.boxes.draw(pathology, np.random.default_rng(seed))
        birads = None if pathology is Pathology.NORMAL else plan.birads
        found.append(Request(seed, Condition(pathology=pathology, birads=birads, device=plan.device, box=box)))
    return found


def draw(
    foundation: Foundation,
    wanted: Sequence[Request],
    *,
    network: Generator | None = None,
    evaluations: int = EVALUATIONS,
    guidance: float = 0.0,
    progress: Progress | None = None,
) -> list[Example]:
    """Draw the images of some requests, by the foundation's network or an adapted one; uint8 [px, px] each, with its condition and seed.

    ``progress`` is called after each batch with (images drawn, images).
    """
    network = network or foundation.network

    def batch(conditions: list[Condition], seeds: list[int]) -> Tensor:
        encoded = encode(conditions, devices=network.devices, side=network.side)
        return sample(network, foundation.scheduler, encoded, seeds=seeds, evaluations=evaluations, guidance=guidance)

    return _in_batches(wanted, batch, progress)


def draw_official(
    source: OfficialFoundation, wanted: Sequence[Request], *, evaluations: int, guidance: float, progress: Progress | None = None
) -> list[Example]:
    """:func:`draw` for the published network."""

    def batch(conditions: list[Condition], seeds: list[int]) -> Tensor:
        return sample_official(source.generator, conditions, seeds=seeds, evaluations=evaluations, guidance=guidance)

    return _in_batches(wanted, batch, progress)


def _in_batches(wanted: Sequence[Request], batch: Callable[[list[Condition], list[int]], Tensor], progress: Progress | None) -> list[Example]:
    found: list[Example] = []
    for start in range(0, len(wanted), AT_ONCE):
        part = wanted[start : start + AT_ONCE]
        pixels = to_bytes(batch([r.condition for r in part], [r.seed for r in part]))
        found += [Example(image, r.condition, r.seed) for image, r in zip(pixels, part, strict=True)]
        if progress is not None:
            progress(len(found), len(wanted))
    return found


def plan_images(foundation: Foundation, plan: SamplePlan, *, network: Generator | None = None, progress: Progress | None = None) -> NDArray[np.uint8]:
    """All images of a plan in memory, uint8 [n, px, px], in the order of ``plan.pathologies``; arguments as for :func:`draw`.

    Raises:
        LabelError: a device that the foundation does not know.
    """
    wanted = requests(plan, foundation)
    drawn = draw(foundation, wanted, network=network, evaluations=plan.evaluations, guidance=plan.guidance, progress=progress)
    return np.stack([example.image for example in drawn])


def sample_folder(source: Foundation | OfficialFoundation, plan: SamplePlan, out: Path) -> int:
    """Write a plan's images to Parquet shards below ``out``; shards that are there are kept, so a stopped run goes on.

    Returns:
        Images in the folder.

    Raises:
        StateError: the folder holds samples of another plan or foundation; nothing is overwritten.
        LabelError: a device that the foundation does not know.
        StorageFullError: no room; shards written before are whole.
    """
    wanted = requests(plan, source)
    _claim(out, plan, source.digest)
    with tqdm(total=len(wanted), desc="samples", unit="image") as bar:
        for target, part in _shards(out, wanted, plan.shard_images):
            if not target.exists():
                write_whole(target, shard_bytes(_drawn(source, part, plan, progress_of(bar)), size=source.image_px))
            else:
                bar.update(len(part))
    return len(wanted)


def _drawn(source: Foundation | OfficialFoundation, part: Sequence[Request], plan: SamplePlan, progress: Progress) -> list[Example]:
    if isinstance(source, OfficialFoundation):
        return draw_official(source, part, evaluations=plan.evaluations, guidance=plan.guidance, progress=progress)
    return draw(source, part, evaluations=plan.evaluations, guidance=plan.guidance, progress=progress)


def progress_of(bar: "tqdm[Never]") -> Progress:
    """Progress of one piece of work as steps of a bar that may hold more."""
    begun = bar.n

    def show(done: int, _of: int) -> None:
        bar.update(begun + done - bar.n)

    return show


def _shards(out: Path, wanted: Sequence[Request], size: int) -> Iterator[tuple[Path, Sequence[Request]]]:
    for number, start in enumerate(range(0, len(wanted), size)):
        yield out / f"{number:05d}.parquet", wanted[start : start + size]


def _claim(out: Path, plan: SamplePlan, digest: str) -> None:
    """Bind the folder to this plan and foundation, or refuse it."""
    facts = {"foundation": digest, "seed": plan.seed, "counts": dict(plan.counts), "birads": plan.birads, "device": plan.device}
    facts |= {"evaluations": plan.evaluations, "guidance": plan.guidance, "shard_images": plan.shard_images}
    text = json.dumps(facts, indent=1, sort_keys=True)
    file = out / "samples.json"
    if file.exists() and file.read_text() != text:
        raise StateError(f"{out.name} holds samples of another plan or foundation; nothing was written. Give an empty folder")
    if not file.exists() and out.exists() and any(out.iterdir()):
        raise StateError(f"{out.name} is not empty and holds no samples of ours; nothing was written. Give an empty folder")
    write_whole(file, text.encode())
