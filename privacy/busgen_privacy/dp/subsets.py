"""Which of the network's numbers an adaptation trains, smallest subset first.

Every subset trains the table of pathologies too; its null row never changes. LoRA (E. Hu et al. 2021, arXiv:2106.09685) comes from
peft, on all attention projections, with the first factor fixed at random and only the second trained: with both trained, noise is
multiplied by noise (Y. Sun et al. 2024, "Improving LoRA in privacy-preserving federated learning", arXiv:2403.12313).
"""

from collections.abc import Mapping

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from torch.nn import GroupNorm, Parameter

from busgen_core.generator import Generator
from busgen_privacy.dp.plan import Subset

CLASS_TABLE = "labels.pathology.weight"
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
WRAPPED, LEARNED = ".base_layer", ".lora_B."


def trainable(network: Generator, subset: Subset, *, rank: int = 4) -> dict[str, Parameter]:
    """Parameters of ``subset`` by name, in the network's order; every parameter's ``requires_grad`` is set to match.

    ``class-embedding``: the table of pathologies. ``film``: that, and the shifts and scales that carry labels and noise level into the
    blocks (their biases). ``lora``: rank-``rank`` factors beside the attention projections, which are put into ``network``.
    ``bias-norm``: all biases and GroupNorm scales. ``full``: everything.
    """
    if subset == "lora":
        _add_lora(network, rank)
    norms = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, GroupNorm)}
    found = {}
    for name, parameter in network.named_parameters():
        wanted = name == CLASS_TABLE or _belongs(name, subset, norms)
        parameter.requires_grad_(wanted)
        if wanted:
            found[name] = parameter
    return found


def _belongs(name: str, subset: Subset, norms: set[str]) -> bool:
    return {
        "class-embedding": False,
        "film": name.endswith("time_emb_proj.bias"),
        "lora": LEARNED in name,
        "bias-norm": name in norms or name.endswith(".bias"),
        "full": True,
    }[subset]


def _add_lora(network: Generator, rank: int) -> None:
    """Put factors beside the attention projections, in place; the fixed ones are the same for every hospital and run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # public: nothing secret rests on it
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=ATTENTION), network.unet)
    network.eval()


def merged(network: Generator, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``values`` of trained parameters as tensors of the plain foundation: LoRA's factors are multiplied into what they stand beside.

    Args:
        network: As ``trainable`` left it.
        values: A tensor for each trained name.

    Returns:
        Tensors by the foundation's own names and shapes.
    """
    tensors, found = dict(network.state_dict()), {}
    for name, value in values.items():
        if LEARNED in name:
            base, ending = name.split(LEARNED)
            first = tensors[f"{base}.lora_A.{ending}"]
            found[f"{base}.weight"] = tensors[f"{base}{WRAPPED}.weight"] + value @ first  # lora_alpha = rank: scale 1
        else:
            found[name.replace(WRAPPED, "")] = value
    return found
