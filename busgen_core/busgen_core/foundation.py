"""A foundation: a versioned folder that diffusers can load, with its digest and card.

```
model_index.json  unet/{config.json, diffusion_pytorch_model.safetensors}  scheduler/scheduler_config.json
labels/{config.json, diffusion_pytorch_model.safetensors}   tables of pathology, BI-RADS and device
boxes.json        README.md (model card)
```

``UNet2DModel.from_pretrained``, the scheduler's and ``DDPMPipeline.from_pretrained`` read the folder without our code; the label
tables and the fold of pixels into patches are ``busgen_core.generator``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import diffusers
import torch
from diffusers import EDMDPMSolverMultistepScheduler, UNet2DModel
from safetensors import SafetensorError
from torch import nn

from busgen_core.boxes import BoxDensity
from busgen_core.digests import files_digest, sha256_bytes, sha256_file
from busgen_core.errors import CheckpointError
from busgen_core.generator import Generator, LabelTables
from busgen_core.wire import FOUNDATION_FILES

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, slots=True)
class Foundation:
    """A loaded foundation: network in eval mode, schedule, box density, digest of the folder."""

    network: Generator
    scheduler: EDMDPMSolverMultistepScheduler
    boxes: BoxDensity
    digest: str

    @property
    def image_px(self) -> int:
        """Rows and columns of an image."""
        return self.network.image_px

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of devices that can be asked for."""
        return self.network.devices


def foundation_digest(folder: Path) -> str:
    """Content digest of a foundation folder: names and bytes of the files that a foundation consists of.

    Raises:
        CheckpointError: a file of the foundation is missing.
    """
    missing = [name for name in FOUNDATION_FILES if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder.name}: foundation lacks {missing}; fetch it again or run 'busgen-core pretrain'")
    return files_digest({name: sha256_file(folder / name) for name in FOUNDATION_FILES})


def save_foundation(folder: Path, *, network: Generator, scheduler: EDMDPMSolverMultistepScheduler, boxes: BoxDensity, card: str) -> str:
    """Write a foundation and return its digest."""
    folder.mkdir(parents=True, exist_ok=True)
    network.unet.save_pretrained(folder / "unet")
    network.labels.save_pretrained(folder / "labels")
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": diffusers.__version__,
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "EDMDPMSolverMultistepScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "boxes.json").write_text(boxes.model_dump_json(indent=1) + "\n")
    (folder / "README.md").write_text(card)
    return foundation_digest(folder)


def load_foundation(folder: Path, *, expected_digest: str | None = None) -> Foundation:
    """Load a foundation after checking its digest; safetensors only, no pickle.

    Raises:
        CheckpointError: files are missing, the digest differs, tensors are missing, do not fit the configuration or are not finite.
    """
    digest = foundation_digest(folder)
    if expected_digest is not None and digest != expected_digest:
        raise CheckpointError(f"{folder.name}: digest is {digest[:12]}…, the campaign names {expected_digest[:12]}…; fetch it again")
    try:
        network = Generator(_read(UNet2DModel, folder / "unet"), _read(LabelTables, folder / "labels"))
        scheduler = EDMDPMSolverMultistepScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
        boxes = BoxDensity.model_validate_json((folder / "boxes.json").read_text())
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder.name}: foundation does not load ({type(error).__name__}); fetch it again") from error
    if network.labels.config["width"] != 4 * network.unet.config["block_out_channels"][0]:
        raise CheckpointError(f"{folder.name}: label tables and network do not fit each other; fetch it again")
    return Foundation(network=network.eval(), scheduler=scheduler, boxes=boxes, digest=digest)


def _read(kind: type[Model], folder: Path) -> Model:
    """A diffusers model of which every tensor came from the file: diffusers itself fills missing ones at random."""
    model, told = kind.from_pretrained(  # type: ignore[attr-defined]
        folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
    )
    wrong = [*told["missing_keys"], *told["unexpected_keys"], *told["mismatched_keys"]]
    if wrong:
        raise CheckpointError(
            f"{folder.name}: {len(wrong)} tensors are missing, unknown or of another shape, the first is {wrong[0]}; fetch it again"
        )
    loaded: Model = model
    if bad := [name for name, tensor in loaded.state_dict().items() if not bool(torch.isfinite(tensor).all())]:
        raise CheckpointError(f"{folder.name}: {bad[0]} holds numbers that are not finite; fetch it again")
    return loaded


def unpack_foundation(files: Mapping[str, bytes], folder: Path, *, expected_digest: str) -> None:
    """Write received foundation files, after checking names and digest.

    Raises:
        CheckpointError: a name outside the foundation's list, or another digest than the campaign's.
    """
    if set(files) != set(FOUNDATION_FILES):
        raise CheckpointError(f"foundation transfer holds {len(files)} files, not the {len(FOUNDATION_FILES)} of a foundation")
    if files_digest({name: sha256_bytes(data) for name, data in files.items()}) != expected_digest:
        raise CheckpointError("foundation transfer does not have the campaign's digest; nothing was written")
    for name, data in files.items():
        target = folder / PurePosixPath(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
