"""A foundation: a versioned folder that diffusers can load, with its digest and card.

```
model_index.json  unet/{config.json, diffusion_pytorch_model.safetensors}  scheduler/scheduler_config.json
boxes.json        README.md (model card)
```
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import diffusers
from diffusers import DDPMScheduler, UNet2DModel
from safetensors import SafetensorError

from busgen_core.boxes import BoxDensity
from busgen_core.digests import canonical_json, sha256_bytes, sha256_file
from busgen_core.errors import CheckpointError
from busgen_core.wire import FOUNDATION_FILES


@dataclass(frozen=True, kw_only=True, slots=True)
class Foundation:
    """A loaded foundation: network in eval mode, schedule, box density, digest of the folder."""

    network: UNet2DModel
    scheduler: DDPMScheduler
    boxes: BoxDensity
    digest: str


def files_digest(digests: Mapping[str, str]) -> str:
    """One digest for a set of files, from the SHA-256 of each.

    >>> files_digest({"a": "00", "b": "11"}) == files_digest({"b": "11", "a": "00"})
    True
    """
    return sha256_bytes(canonical_json(dict(digests)))


def foundation_digest(folder: Path) -> str:
    """Content digest of a foundation folder: names and bytes of the files that a foundation consists of.

    Raises:
        CheckpointError: a file of the foundation is missing.
    """
    missing = [name for name in FOUNDATION_FILES if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder.name}: foundation lacks {missing}; fetch it again or run 'busgen-core pretrain'")
    return files_digest({name: sha256_file(folder / name) for name in FOUNDATION_FILES})


def save_foundation(folder: Path, *, network: UNet2DModel, scheduler: DDPMScheduler, boxes: BoxDensity, card: str) -> str:
    """Write a foundation and return its digest."""
    folder.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": diffusers.__version__,
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "boxes.json").write_text(boxes.model_dump_json(indent=1) + "\n")
    (folder / "README.md").write_text(card)
    return foundation_digest(folder)


def load_foundation(folder: Path, *, expected_digest: str | None = None) -> Foundation:
    """Load a foundation after checking its digest; safetensors only, no pickle.

    Raises:
        CheckpointError: files are missing, the digest differs, or the tensors do not fit the configuration.
    """
    digest = foundation_digest(folder)
    if expected_digest is not None and digest != expected_digest:
        raise CheckpointError(f"{folder.name}: digest is {digest[:12]}…, the campaign names {expected_digest[:12]}…; fetch it again")
    try:
        network = UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False)
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
        boxes = BoxDensity.model_validate_json((folder / "boxes.json").read_text())
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder.name}: foundation does not load ({type(error).__name__}); fetch it again") from error
    return Foundation(network=network.eval(), scheduler=scheduler, boxes=boxes, digest=digest)


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
