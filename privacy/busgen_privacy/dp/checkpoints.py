"""Files of an adaptation: safetensors with JSON in their metadata, each written beside its place and moved in whole."""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.nn import Parameter

from busgen_core.errors import CheckpointError
from busgen_core.files import write_whole
from busgen_core.foundation import Foundation
from busgen_core.generator import Generator
from busgen_privacy.dp.plan import DpSgdPlan
from busgen_privacy.dp.watchdog import Watchdog

ADAPTED, STATE = "adapted.safetensors", "state.safetensors"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ADAM = ("exp_avg", "exp_avg_sq", "step")


def save(
    folder: Path, run: str, parameters: Mapping[str, Parameter], average: Mapping[str, Tensor], adam: torch.optim.Optimizer, watchdog: Watchdog
) -> None:
    """Write the state after ``len(watchdog.sizes)`` steps."""
    tensors = {f"now.{name}": p.detach() for name, p in parameters.items()} | {f"ema.{name}": t for name, t in average.items()}
    tensors |= {f"{key}.{name}": adam.state[p][key] for name, p in parameters.items() for key in ADAM}
    tensors["watchdog.chosen"] = torch.from_numpy(watchdog.chosen)
    sums = {"sizes": watchdog.sizes, "bound": watchdog.bound, "energy": watchdog.energy, "numbers": watchdog.numbers}
    metadata = {"run": run, "step": str(len(watchdog.sizes)), "watchdog": json.dumps(sums)}
    write_whole(folder / STATE, to_bytes({name: t.cpu().contiguous() for name, t in tensors.items()}, metadata))


def resume(
    folder: Path, run: str, parameters: Mapping[str, Parameter], average: dict[str, Tensor], adam: torch.optim.Optimizer, watchdog: Watchdog
) -> int:
    """Put the last state in place and return its step; 0 where there is none.

    Raises:
        CheckpointError: unreadable, or of another plan, foundation or cohort.
    """
    if not (folder / STATE).exists():
        return 0
    check_run(folder / STATE, run)
    tensors, metadata = _read(folder / STATE)
    try:
        sums = json.loads(metadata["watchdog"])
        watchdog.sizes, watchdog.bound = [int(n) for n in sums["sizes"]], int(sums["bound"])
        watchdog.energy, watchdog.numbers = float(sums["energy"]), int(sums["numbers"])
        watchdog.chosen = np.array(tensors["watchdog.chosen"].numpy())
        for name, parameter in parameters.items():
            parameter.data.copy_(tensors[f"now.{name}"])
            average[name].copy_(tensors[f"ema.{name}"])
            adam.state[parameter] = {key: tensors[f"{key}.{name}"].to("cpu" if key == "step" else parameter.device) for key in ADAM}
        return int(metadata["step"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{STATE} is incomplete ({type(error).__name__}); move the folder away and start again") from error


def check_run(file: Path, run: str) -> None:
    """Raise CheckpointError unless ``file`` was written by the run with this identity."""
    if _read(file)[1].get("run") != run:
        raise CheckpointError(f"{file.name} belongs to another plan, foundation or cohort; move its folder away")


def save_adapted(file: Path, run: str, tensors: Mapping[str, Tensor], *, plan: DpSgdPlan, secure: bool) -> None:
    """Write the adapted parameters, marked with the plan and with the kind of noise."""
    metadata = {"run": run, "plan": plan.digest(), "subset": plan.subset, "noise": "secure" if secure else "seeded"}
    write_whole(file, to_bytes({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata))


def load_adapted(foundation: Foundation, file: Path, *, allow_seeded: bool) -> Generator:
    """See ``dpsgd.load_adapted``."""
    tensors, metadata = _read(file)
    if metadata.get("noise") != "secure" and not (allow_seeded and metadata.get("noise") == "seeded"):
        raise CheckpointError(f"{file.name} was not adapted with secure noise; it cannot make a release")
    return _placed(foundation, tensors, file.name)


def load_weights(foundation: Foundation, file: Path) -> Generator:
    """The foundation's network with a file's tensors in place, whoever trained them: all of its parameters, or those that changed. For audits.

    Raises:
        CheckpointError: not a safetensors file, or tensors that are not the foundation's by name and shape.
    """
    return _placed(foundation, _read(file)[0], file.name)


def _placed(foundation: Foundation, tensors: Mapping[str, Tensor], name: str) -> Generator:
    network: Generator = deepcopy(foundation.network)
    parameters = dict(network.named_parameters())
    for key, tensor in tensors.items():
        if key not in parameters or parameters[key].shape != tensor.shape or tensor.dtype not in FLOATS:
            raise CheckpointError(f"{name} does not fit this foundation: tensors have its names and shapes, and hold floating-point numbers")
        if not bool(torch.isfinite(converted := tensor.to(parameters[key].dtype)).all()):
            raise CheckpointError(f"{name} holds numbers that are not finite")
        parameters[key].data.copy_(converted)
    network.eval()
    return network


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file.name} is not a readable safetensors file ({type(error).__name__})") from error
