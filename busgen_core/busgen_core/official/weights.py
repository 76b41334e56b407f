"""Reading a state dict of the published network: nothing in the file runs, and what does not fit is named.

The sizes are inferred from the tensors, so that any network of this layout loads. The file is untrusted: its length, the
numbers it claims to hold and the sizes that follow from them are all bounded before memory is asked for.
"""

import io
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from busgen_core.errors import CheckpointError, ConfigError
from busgen_core.official.network import MAX_DEPTH, OfficialSizes, OfficialUNet

WRAPPERS = ("model", "state_dict", "ema")  # keys under which training code keeps a state dict; the published code: "model"
PREFIX = "module."  # of a network that was saved inside DistributedDataParallel
MAX_DOWN_BLOCKS = MAX_DEPTH * (MAX_DEPTH + 1)
MAX_BYTES = 4 * 2**30  # the published network, its EMA and its optimizer together take 0.8 GB
NOT_OURS = "this is not a whole state dict of the published layout; ask for it again"


def read_state(data: bytes) -> dict[str, Tensor]:
    """Tensors of a state dict, from safetensors or from what ``torch.save`` writes; no code in it is run.

    A dict that holds the state dict under "model", "state_dict" or "ema" is opened, and a "module." before every name taken off.

    Returns:
        CPU tensors of floating-point numbers, by name.

    Raises:
        CheckpointError: not such a file, cut short, code or objects in it, several networks, or other things than tensors.
    """
    loaded = _read_safetensors(data) if _is_safetensors(data) else _read_torch(data)
    state = _named_tensors(_unwrap(loaded))
    if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > len(data):
        raise CheckpointError("the checkpoint claims more numbers than it has bytes for; it was not read. Ask for it again")
    return state


def _is_safetensors(data: bytes) -> bool:
    """The header's length in 8 bytes, then JSON (format of safetensors 0.x, README)."""
    return len(data) > 8 and data[8:9] == b"{" and struct.unpack("<Q", data[:8])[0] <= len(data) - 8


def _read_safetensors(data: bytes) -> object:
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the safetensors file does not read ({type(error).__name__}); it was cut or changed. Ask for it again") from error


def _read_torch(data: bytes) -> object:
    _check_zip(data)
    try:
        with warnings.catch_warnings(action="ignore"):  # of old pickle protocols; the errors say enough
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever its last opcode meets; none of it may leave
        if type(error).__name__ == "UnpicklingError":
            raise CheckpointError(
                "the checkpoint does not hold tensors alone, or is no checkpoint; nothing of it was run. Where it was made, save the network by "
                "itself: torch.save({'model': network.state_dict()}, FILE). Checkpoints from the middle of published training hold a scheduler too"
            ) from error
        raise CheckpointError(f"the checkpoint does not read ({type(error).__name__}); it was cut or changed. Ask for it again") from error


def _check_zip(data: bytes) -> None:
    """``torch.save`` stores without compression; compressed entries could grow beyond memory."""
    if not data.startswith(b"PK"):
        return
    try:
        entries = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        raise CheckpointError("the checkpoint ends too early or is damaged; ask for it again") from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(entry.file_size for entry in entries) > len(data):
        raise CheckpointError("the checkpoint's entries are compressed or overlap, as torch.save never writes; it was not read. Ask for it again")


def _unwrap(loaded: object) -> object:
    inside = [key for key in WRAPPERS if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping)]
    if len(inside) > 1:
        raise CheckpointError(f"the checkpoint holds several networks, {inside}; save the one that is meant by itself")
    return loaded[inside[0]] if inside and isinstance(loaded, Mapping) else loaded


def _named_tensors(loaded: object) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(f"the checkpoint holds no named tensors; {NOT_OURS}")
    named: dict[str, Tensor] = {}
    wrapped = all(isinstance(name, str) and name.startswith(PREFIX) for name in loaded)
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not _is_plain(tensor):
            raise CheckpointError(f"{name!s:.80} is not an array of floating-point numbers; {NOT_OURS}")
        named[name.removeprefix(PREFIX) if wrapped else name] = tensor
    return named


def _is_plain(tensor: object) -> bool:
    """Whether this is a dense CPU tensor of floating-point numbers."""
    return isinstance(tensor, Tensor) and tensor.layout is torch.strided and tensor.device.type == "cpu" and tensor.is_floating_point()


def infer_sizes(shapes: Mapping[str, tuple[int, ...]]) -> OfficialSizes:
    """Sizes of the network whose state dict has these shapes.

    Raises:
        CheckpointError: a tensor that fixes them is missing, or they are out of bounds.
    """
    steps, width = _shape(shapes, "time_embedding.timembedding.0.weight", 2)
    levels = _levels(shapes)
    try:
        return OfficialSizes(
            steps=steps,
            width=width,
            channels=tuple(level[0] for level in levels),
            blocks=len(levels[0]),
            classes=_shape(shapes, "cond_embedding.cls_condEmbedding.weight", 2)[0],
            devices=_shape(shapes, "cond_embedding.dev_condEmbedding.weight", 2)[0],
        )
    except ConfigError as error:
        raise CheckpointError(f"{error}; {NOT_OURS}") from error


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str, axes: int) -> tuple[int, ...]:
    if name not in shapes:
        raise CheckpointError(f"the checkpoint lacks {name}; {NOT_OURS}")
    if len(shapes[name]) != axes:
        raise CheckpointError(f"{name} is {list(shapes[name])}, not an array of {axes} axes; {NOT_OURS}")
    return shapes[name]


def _levels(shapes: Mapping[str, tuple[int, ...]]) -> list[list[int]]:
    """Output channels of the residual blocks of each level on the way down."""
    found = {int(match[1]): bool(match[2]) for name in sorted(shapes) if (match := re.match(r"downblocks\.(\d{1,4})\.(c[12]\.)?", name))}
    if not found or max(found) >= MAX_DOWN_BLOCKS:
        raise CheckpointError(f"the checkpoint has no downblocks, or more than {MAX_DOWN_BLOCKS}; {NOT_OURS}")
    levels: list[list[int]] = [[]]
    for number in range(max(found) + 1):
        if found.get(number):
            levels.append([])
        else:
            levels[-1].append(_shape(shapes, f"downblocks.{number}.block1.2.weight", 4)[0])
    if len({len(level) for level in levels}) > 1 or not levels[0]:
        raise CheckpointError(f"the levels have {[len(level) for level in levels]} residual blocks, not as many each; {NOT_OURS}")
    return levels


def build_official(state: Mapping[str, Tensor]) -> OfficialUNet:
    """The network that these tensors fill, in eval mode and float32.

    Raises:
        CheckpointError: the first tensor that is missing, has another shape, is too many or holds something not finite.
    """
    shapes = _shapes(state)
    with torch.device("meta"):
        network = OfficialUNet(infer_sizes(shapes))
    check_shapes(shapes, wanted=_shapes(network.state_dict()))
    network.load_state_dict({name: _finite(name, tensor) for name, tensor in state.items()}, assign=True)
    return network.eval()


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def check_shapes(shapes: Mapping[str, tuple[int, ...]], *, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Compare names and shapes.

    Raises:
        CheckpointError: the first that is missing, has another shape, or is too many.

    >>> check_shapes({"a": (1, 2)}, wanted={"a": (1, 2)})
    """
    for name, shape in wanted.items():
        if _shape(shapes, name, len(shape)) != shape:
            raise CheckpointError(f"{name} is {list(shapes[name])}, not {list(shape)}; {NOT_OURS}")
    if extra := [name for name in shapes if name not in wanted]:
        raise CheckpointError(f"the checkpoint holds {extra[0]:.80}, and {len(extra) - 1} more, which the published layout does not have; {NOT_OURS}")


def _finite(name: str, tensor: Tensor) -> Tensor:
    copied = tensor.detach().to(torch.float32, copy=True).contiguous()
    if not copied.isfinite().all():
        raise CheckpointError(f"{name} holds numbers that are not finite; the training diverged or the file was changed. Ask for another")
    return copied
