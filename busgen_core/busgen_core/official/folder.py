"""The published network as a foundation: loaded from a bare file of weights, or from a folder that holds no pickle.

```
config.json                       sizes, devices, class rows, licence, digest of the file it came from
network.safetensors               the weights, float32
scheduler/scheduler_config.json   noise schedule and solver, for diffusers
README.md                         model card
DIGEST                            SHA-256 over the four; written last, so that an import that was cut is noticed
```
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import safetensors.torch
from diffusers import DPMSolverSinglestepScheduler
from pydantic import BaseModel, ConfigDict, ValidationError

from busgen_core.digests import canonical_json, sha256_bytes
from busgen_core.errors import BusgenError, CheckpointError, ConfigError
from busgen_core.files import write_whole
from busgen_core.official.labels import PUBLISHED_DEVICES, OfficialLabels
from busgen_core.official.network import OfficialSizes
from busgen_core.official.sampling import BETA_FIRST, BETA_LAST, OfficialGenerator, build_official_scheduler
from busgen_core.official.weights import MAX_BYTES, build_official, read_state

IMAGE_PX = 160  # published
CONFIG, NETWORK, SCHEDULER, CARD, DIGEST = "config.json", "network.safetensors", "scheduler/scheduler_config.json", "README.md", "DIGEST"
OFFICIAL_FILES = (CONFIG, NETWORK, SCHEDULER, CARD)  # what the digest covers, and what is handed out

CARD_TEXT = """---
library_name: busgen-core
tags: [ultrasound, breast, diffusion, foundation]
---
# BUSGen, the published network

Weights of the diffusion model of H. Yu et al. 2026, "A foundation generative model for breast ultrasound image analysis", Nature Biomedical
Engineering, doi:10.1038/s41551-026-01639-1, or of a network of its layout, imported by the BUSGen Consortium's software.

- Licence, as stated by whoever imported it: {license}
- File it came from: SHA-256 {source}
- {parameters:,} parameters; {px} x {px} px; {sizes.steps} time steps, betas {first:g} to {last:g}; channels {channels}
- Conditions: benign, malignant or any{normal}; lesion box; devices: {devices}
- Use: `load_official(FOLDER)`, `sample_official(...)` of `busgen_core.official`; no pickle is read

Not for diagnosis. The original was trained on images of patients without differential privacy: what it remembers of them has not been audited here.
"""


class OfficialConfig(BaseModel):
    """What ``config.json`` states; the sizes are those of the tensors, written out for readers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal["busgen-official-1"] = "busgen-official-1"
    sizes: OfficialSizes
    image_px: int
    devices: tuple[str, ...]
    labels: OfficialLabels
    license: str
    source_sha256: str


def load_official(
    path: Path,
    *,
    expected_sha256: str | None = None,
    image_px: int | None = None,
    devices: Sequence[str] | None = None,
    labels: OfficialLabels | None = None,
) -> OfficialGenerator:
    """Load the published network from a file of weights, or from a folder of :func:`import_official`. Nothing in either is run.

    Args:
        path: A state dict, as safetensors or from ``torch.save``, bare or under "model", "state_dict" or "ema"; or a folder.
        expected_sha256: SHA-256 of the file, or the folder's digest; without it whatever lies there is loaded.
        image_px: Rows and columns of an image, which no tensor fixes; 160 if not given. Not for a folder, which states it.
        devices: Names of rows 1 and up of the device table; the published ones if not given and the table has their number,
            else none, and no device can be asked for. Not for a folder.
        labels: Rows of the class table; the published ones if not given. Not for a folder.

    Raises:
        CheckpointError: unreadable, another digest, code or objects in it, or a tensor missing, mis-shaped, too many or not finite.
        ConfigError: names, rows or sides that do not fit the network; or given for a folder.
    """
    if path.is_dir():
        if (image_px, devices, labels) != (None, None, None):
            raise ConfigError("image_px, devices and labels are stated by the folder; import the weights again to change them")
        return _load_folder(path, expected_sha256)
    return _load_file(path, expected_sha256, IMAGE_PX if image_px is None else image_px, devices, labels or OfficialLabels())


def _load_file(path: Path, expected: str | None, image_px: int, devices: Sequence[str] | None, labels: OfficialLabels) -> OfficialGenerator:
    data = _read(path)
    digest = _expect(sha256_bytes(data), expected, name=path.name)
    network = build_official(read_state(data))
    published = PUBLISHED_DEVICES if network.sizes.devices == len(PUBLISHED_DEVICES) + 1 else ()
    return OfficialGenerator(
        network=network,
        sizes=network.sizes,
        scheduler=build_official_scheduler(network.sizes.steps),
        image_px=image_px,
        devices=published if devices is None else tuple(devices),
        labels=labels,
        digest=digest,
    )


def _load_folder(folder: Path, expected: str | None) -> OfficialGenerator:
    files = {name: _read(folder / name) for name in OFFICIAL_FILES}
    digest = _expect(_digest(files), _read(folder / DIGEST).decode("ascii", "replace").strip(), name=folder.name)
    _expect(digest, expected, name=folder.name)
    config = _config(files[CONFIG], name=folder.name)
    network = build_official(read_state(files[NETWORK]))
    if network.sizes != config.sizes:
        raise CheckpointError(f"{folder.name}: the tensors have other sizes than {CONFIG} states; import the weights again")
    return OfficialGenerator(
        network=network,
        sizes=network.sizes,
        scheduler=_scheduler(files[SCHEDULER], steps=network.sizes.steps, name=folder.name),
        image_px=config.image_px,
        devices=config.devices,
        labels=config.labels,
        digest=digest,
        license_note=config.license,
    )


def _read(path: Path) -> bytes:
    """The whole file: what is hashed is what is parsed."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{path.name} has more than {MAX_BYTES} bytes; save the network by itself, without optimizer and copies")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read ({type(error).__name__}); fetch or import it again") from error


def _expect(digest: str, expected: str | None, *, name: str) -> str:
    if expected is not None and digest != expected.lower():
        raise CheckpointError(f"{name}: digest is {digest[:12]}…, {expected[:12]}… is expected; it was not read. Fetch or import it again")
    return digest


def _digest(files: Mapping[str, bytes]) -> str:
    """Digest of the folder: names and bytes of its files, as of other foundations (``busgen_core.digests.files_digest``)."""
    return sha256_bytes(canonical_json({name: sha256_bytes(files[name]) for name in OFFICIAL_FILES}))


def _config(data: bytes, *, name: str) -> OfficialConfig:
    try:
        return OfficialConfig.model_validate_json(data)
    except (ValidationError, BusgenError) as error:
        raise CheckpointError(f"{name}: {CONFIG} is not of this format ({type(error).__name__}); import the weights again") from error


def _scheduler(data: bytes, *, steps: int, name: str) -> DPMSolverSinglestepScheduler:
    try:
        stated = json.loads(data)
        if (stated["num_train_timesteps"], stated["prediction_type"]) != (steps, "epsilon"):
            raise CheckpointError(f"{name}: {SCHEDULER} is not for {steps} steps and epsilon, as the network is; import the weights again")
        return DPMSolverSinglestepScheduler.from_config(stated)
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise CheckpointError(f"{name}: {SCHEDULER} does not load ({type(error).__name__}); import the weights again") from error


def import_official(
    weights: Path,
    out: Path,
    *,
    devices: Sequence[str],
    license_note: str,
    expected_sha256: str | None = None,
    image_px: int = IMAGE_PX,
    labels: OfficialLabels | None = None,
) -> str:
    """Turn a file of weights into a folder that :func:`load_official` reads and the hub can hand out: safetensors, no pickle.

    Args:
        weights: As ``path`` of :func:`load_official`.
        out: Folder to write; must not hold a network yet. A cut import leaves no ``DIGEST`` and may be started again.
        devices: Names of rows 1 and up of the device table, in order; ``PUBLISHED_DEVICES`` for the published weights.
        license_note: On whose terms the weights may be used; stands in the card.
        expected_sha256: Of ``weights``, as stated by whoever gave them.
        image_px: Rows and columns of an image, which no tensor fixes.
        labels: Rows of the class table; the published ones if not given.

    Returns:
        The folder's digest.

    Raises:
        CheckpointError: as :func:`load_official`.
        ConfigError: no licence, a network in ``out``, or names, rows or sides that do not fit the network.
        StorageFullError: no room; there is no ``DIGEST`` then.
    """
    if not license_note.strip():
        raise ConfigError("state on whose terms the weights may be used (license_note); they are not this project's")
    if (out / DIGEST).exists():
        raise ConfigError(f"{out.name} already holds a network; name another folder")
    loaded = _load_file(weights, expected_sha256, image_px, devices, labels or OfficialLabels())
    files = _folder_files(loaded, license_note=license_note.strip())
    for name, data in files.items():
        write_whole(out / name, data)
    write_whole(out / DIGEST, _digest(files).encode() + b"\n")
    return _digest(files)


def _folder_files(loaded: OfficialGenerator, *, license_note: str) -> dict[str, bytes]:
    config = OfficialConfig(
        sizes=loaded.sizes,
        image_px=loaded.image_px,
        devices=loaded.devices,
        labels=loaded.labels,
        license=license_note,
        source_sha256=loaded.digest,
    )
    return {
        CONFIG: config.model_dump_json(indent=1).encode() + b"\n",
        NETWORK: safetensors.torch.save(loaded.network.state_dict()),
        SCHEDULER: loaded.scheduler.to_json_string().encode(),
        CARD: _card(loaded, config).encode(),
    }


def _card(loaded: OfficialGenerator, config: OfficialConfig) -> str:
    return CARD_TEXT.format(
        license=config.license,
        source=config.source_sha256,
        parameters=sum(parameter.numel() for parameter in loaded.network.parameters()),
        px=config.image_px,
        sizes=config.sizes,
        first=BETA_FIRST,
        last=BETA_LAST,
        channels=", ".join(map(str, config.sizes.channels)),
        normal="" if config.labels.normal is None else ", and normal",
        devices=", ".join(config.devices) or "none named",
    )
