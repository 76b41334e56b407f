"""The published network: its names and sums, reading untrusted weights, conditions, sampling, import."""

import io
import os
import pickle
import random
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from busgen_core.conditions import Condition
from busgen_core.digests import sha256_file
from busgen_core.errors import BusgenError, CheckpointError, ConfigError, LabelError, StorageFullError
from busgen_core.labels import Birads, Pathology
from busgen_core.official import (
    PUBLISHED_DEVICES,
    OfficialGenerator,
    OfficialLabels,
    OfficialSizes,
    OfficialUNet,
    Solver,
    import_official,
    load_official,
    sample_official,
)
from busgen_core.official.labels import box_plane, encode_official
from busgen_core.official.network import sinusoid
from busgen_core.official.sampling import build_official_scheduler, guided_noise, solver_of
from busgen_core.official.weights import build_official, check_shapes, infer_sizes, read_state

PX = 16
TINY = OfficialSizes(steps=20, width=32, channels=(32, 64, 32), blocks=2, classes=3, devices=4)
DEVICES = ("A", "B", "C")
BENIGN = Condition(pathology=Pathology.BENIGN, device="B", box=(0.25, 0.25, 0.75, 0.5))
MALIGNANT = Condition(pathology=Pathology.MALIGNANT)
State = dict[str, Tensor]


def tiny_state(sizes: OfficialSizes = TINY, *, seed: int = 0) -> State:
    """Weights that no initialisation would give: none is 0 or 1, every tensor matters."""
    draws = torch.Generator().manual_seed(seed)
    return {name: 0.15 * torch.randn(t.shape, generator=draws) for name, t in OfficialUNet(sizes).state_dict().items()}


STATE = tiny_state()


def saved(content: object, *, zipped: bool = True) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "ckpt.pt"
    path.write_bytes(saved({"model": STATE}))
    return path


@pytest.fixture
def generator(weights: Path) -> OfficialGenerator:
    return load_official(weights, image_px=PX, devices=DEVICES)


# --- names, shapes, sums ---------------------------------------------------------------------------------------------


def full_size() -> OfficialUNet:
    with torch.device("meta"):
        return OfficialUNet(OfficialSizes())


def test_the_full_network_has_the_published_number_of_parameters() -> None:
    """47.8 M parameters, as the paper says; one more block, level or attention would be seen."""
    assert sum(p.numel() for p in full_size().parameters()) == 47_768_835


def test_the_full_network_has_the_published_tensors() -> None:
    """Counts and shapes worked out by hand from the published description (docs/adr/0010-official-network.md)."""
    shapes = {name: tuple(t.shape) for name, t in full_size().state_dict().items()}
    residual, attention, shortcut, sampler = 12, 10, 2, 4  # tensors of each
    down = 8 * (residual + attention) + shortcut + 3 * sampler
    up = 12 * (residual + shortcut) + 3 * sampler
    assert len(shapes) == 5 + 6 + 2 + down + (2 * residual + attention) + up + 4 == 421
    assert sum(name.endswith("attn.proj_q.weight") for name in shapes) == 9
    assert not any("attn" in name for name in shapes if name.startswith(("upblocks", "middleblocks.1")))
    assert {name.split(".")[1] for name in shapes if name.startswith("downblocks") and ".c1." in name} == {"2", "5", "8"}
    assert {name.split(".")[1] for name in shapes if name.startswith("upblocks") and ".t." in name} == {"3", "7", "11"}
    assert shapes.items() >= FULL_SIZE.items()


FULL_SIZE = {
    "time_embedding.timembedding.0.weight": (500, 128),
    "time_embedding.timembedding.1.weight": (512, 128),
    "time_embedding.timembedding.3.weight": (512, 512),
    "cond_embedding.cls_condEmbedding.weight": (3, 128),
    "cond_embedding.dev_condEmbedding.weight": (20, 128),
    "cond_embedding.condEmbedding.0.weight": (512, 256),
    "cond_embedding.condEmbedding.2.bias": (512,),
    "head.weight": (128, 4, 3, 3),
    "downblocks.0.block1.0.weight": (128,),
    "downblocks.0.block1.2.weight": (128, 128, 3, 3),
    "downblocks.0.temb_proj.1.weight": (128, 512),
    "downblocks.0.attn.group_norm.bias": (128,),
    "downblocks.0.attn.proj.weight": (128, 128, 1, 1),
    "downblocks.2.c1.weight": (128, 128, 3, 3),
    "downblocks.2.c2.weight": (128, 128, 5, 5),
    "downblocks.3.shortcut.weight": (256, 128, 1, 1),
    "downblocks.3.cond_proj.1.weight": (256, 512),
    "downblocks.10.block2.3.weight": (256, 256, 3, 3),
    "middleblocks.0.attn.proj_v.weight": (256, 256, 1, 1),
    "upblocks.0.block1.2.weight": (256, 512, 3, 3),
    "upblocks.3.t.weight": (256, 256, 5, 5),
    "upblocks.3.c.weight": (256, 256, 3, 3),
    "upblocks.10.block1.0.weight": (384,),
    "upblocks.12.shortcut.weight": (128, 384, 1, 1),
    "upblocks.14.block1.2.weight": (128, 256, 3, 3),
    "tail.0.weight": (128,),
    "tail.2.weight": (3, 128, 3, 3),
}


def test_the_network_is_its_slow_twin() -> None:
    """A forward pass equals one that is written out by name: sums, loops and softmax, no module of ours."""
    network = build_official(STATE)
    images, steps = torch.randn(2, 4, PX, PX), torch.tensor([3, 19])
    classes, devices = torch.tensor([1, 2]), torch.tensor([0, 3])
    with torch.no_grad():
        assert torch.allclose(network(images, steps, classes, devices), twin(STATE, images, steps, classes, devices), rtol=1e-3, atol=1e-4)


def twin(w: State, images: Tensor, steps: Tensor, classes: Tensor, devices: Tensor) -> Tensor:
    """The published network with TINY's sizes, from its description; blocks in the order of their numbers."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def swish(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    def norm(name: str, x: Tensor) -> Tensor:
        groups = x.reshape(len(x), 32, -1)
        scaled = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return scaled.reshape(x.shape) * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    def conv(name: str, x: Tensor, *, stride: int = 1) -> Tensor:
        kernel = w[f"{name}.weight"]
        side = kernel.shape[2]
        patches = functional.unfold(x, side, padding=side // 2, stride=stride)
        summed = kernel.reshape(len(kernel), -1) @ patches + w[f"{name}.bias"][:, None]
        return summed.reshape(len(x), len(kernel), x.shape[2] // stride, x.shape[3] // stride)

    def transposed(name: str, x: Tensor) -> Tensor:
        n, channels, rows, columns = x.shape
        out = torch.zeros(n, channels, 2 * rows + 4, 2 * columns + 4)
        for r in range(rows):
            for c in range(columns):
                out[:, :, 2 * r : 2 * r + 5, 2 * c : 2 * c + 5] += torch.einsum("ni,ioab->noab", x[:, :, r, c], w[f"{name}.weight"])
        return out[:, :, 2:-2, 2:-2] + w[f"{name}.bias"][:, None, None]

    def attention(name: str, x: Tensor) -> Tensor:
        normed = norm(f"{name}.group_norm", x)
        q, k, v = (conv(f"{name}.proj_{letter}", normed).flatten(2) for letter in "qkv")
        out = torch.empty_like(v)
        for image in range(len(x)):
            for place in range(q.shape[2]):
                scores = (q[image, :, place, None] * k[image]).sum(0) / q.shape[1] ** 0.5
                share = scores.exp() / scores.exp().sum()
                out[image, :, place] = (v[image] * share).sum(1)
        return x + conv(f"{name}.proj", out.reshape(x.shape))

    def residual(name: str, x: Tensor) -> Tensor:
        h = conv(f"{name}.block1.2", swish(norm(f"{name}.block1.0", x)))
        h = h + linear(f"{name}.temb_proj.1", swish(time))[:, :, None, None] + linear(f"{name}.cond_proj.1", swish(condition))[:, :, None, None]
        h = conv(f"{name}.block2.3", swish(norm(f"{name}.block2.0", h)))
        h = h + (conv(f"{name}.shortcut", x) if f"{name}.shortcut.weight" in w else x)
        return attention(f"{name}.attn", h) if f"{name}.attn.proj.weight" in w else h

    t, c = "time_embedding.timembedding", "cond_embedding"
    time = linear(f"{t}.3", swish(linear(f"{t}.1", w[f"{t}.0.weight"][steps])))
    rows = torch.cat([w[f"{c}.cls_condEmbedding.weight"][classes], w[f"{c}.dev_condEmbedding.weight"][devices]], dim=1)
    condition = linear(f"{c}.condEmbedding.2", swish(linear(f"{c}.condEmbedding.0", rows)))
    kept = [h := conv("head", images)]
    for number in range(8):  # two blocks, down, two blocks, down, two blocks
        name = f"downblocks.{number}"
        h = conv(f"{name}.c1", h, stride=2) + conv(f"{name}.c2", h, stride=2) if number in (2, 5) else residual(name, h)
        kept.append(h)
    h = residual("middleblocks.1", residual("middleblocks.0", h))
    for number in range(11):  # three blocks, up, three blocks, up, three blocks
        name = f"upblocks.{number}"
        h = conv(f"{name}.c", transposed(f"{name}.t", h)) if number in (3, 7) else residual(name, torch.cat([h, kept.pop()], dim=1))
    assert not kept
    return conv("tail.2", swish(norm("tail.0", h)))


def test_the_table_of_time_steps_starts_as_a_sinusoid() -> None:
    """Entry 2k of step t is sin(t / 10000^(2k / width)), entry 2k + 1 its cosine, as loops give it."""
    slow = [[f(t / 10_000 ** (k / 8)) for k in range(0, 8, 2) for f in (np.sin, np.cos)] for t in range(5)]
    assert np.allclose(sinusoid(5, 8).numpy(), slow, atol=1e-6)
    assert torch.equal(OfficialUNet(TINY).time_embedding.timembedding[0].weight, sinusoid(20, 32))


def test_null_rows_start_at_zero_and_stay_there() -> None:
    """Whoever trains the network on keeps the published null: row 0 of both label tables is zero and gets no gradient."""
    network = OfficialUNet(TINY)
    network(torch.randn(1, 4, PX, PX), torch.tensor([3]), torch.tensor([0]), torch.tensor([0])).sum().backward()
    for table in (network.cond_embedding.cls_condEmbedding, network.cond_embedding.dev_condEmbedding):
        assert not table.weight[0].any()
        assert table.weight.grad is not None
        assert not table.weight.grad.any()


# --- sizes from tensors ----------------------------------------------------------------------------------------------

OTHER = OfficialSizes(steps=7, width=64, channels=(32, 96), blocks=1, classes=5, devices=2)


@pytest.mark.parametrize("sizes", [TINY, OTHER, OfficialSizes(), OfficialSizes(channels=(64,), blocks=3)], ids=["tiny", "other", "full", "one level"])
def test_sizes_follow_from_the_tensors(sizes: OfficialSizes) -> None:
    """Any network of the layout is recognised by its shapes alone."""
    with torch.device("meta"):
        network = OfficialUNet(sizes)
    assert infer_sizes({name: tuple(t.shape) for name, t in network.state_dict().items()}) == sizes


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 1}, {"steps": 10**9}, {"width": 33}, {"channels": ()}, {"channels": (32,) * 9}, {"blocks": 0}, {"classes": 1}, {"devices": 0}],
)
def test_absurd_sizes_are_refused(wrong: dict[str, int]) -> None:
    """Sizes out of bounds never become a network."""
    with pytest.raises(ConfigError):
        replace(TINY, **wrong)


# --- reading weights -------------------------------------------------------------------------------------------------


def as_module(state: Mapping[str, Tensor]) -> State:
    return {f"module.{name}": tensor for name, tensor in state.items()}


FORMS: dict[str, Callable[[], bytes]] = {
    "bare": lambda: saved(STATE),
    "old torch.save": lambda: saved(STATE, zipped=False),
    "published": lambda: saved({"model": STATE, "optimizer": {"state": {}}, "epoch": 69}),
    "state_dict": lambda: saved({"state_dict": STATE}),
    "ema": lambda: saved({"ema": as_module(STATE), "step": 3}),
    "module.": lambda: saved(as_module(STATE)),
    "parameters": lambda: saved({name: nn.Parameter(tensor) for name, tensor in STATE.items()}),
    "safetensors": lambda: safetensors.torch.save(STATE),
    "another order": lambda: saved(dict(reversed(STATE.items()))),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_way_of_saving_gives_the_same_network(form: Callable[[], bytes], tmp_path: Path) -> None:
    """Bare or wrapped, old or new, torch or safetensors: the tensors arrive unchanged, in a network in eval mode."""
    path = tmp_path / "weights"
    path.write_bytes(form())
    loaded = load_official(path, expected_sha256=sha256_file(path), image_px=PX).network
    assert not loaded.training
    assert loaded.state_dict().keys() == STATE.keys()
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in loaded.state_dict().items())


def test_half_precision_becomes_float32() -> None:
    """Weights that were saved in bfloat16 load as float32 of the same values."""
    loaded = build_official({name: tensor.bfloat16() for name, tensor in STATE.items()}).state_dict()
    assert all(tensor.dtype == torch.float32 and torch.equal(tensor, STATE[name].bfloat16().float()) for name, tensor in loaded.items())


class Planted:
    """Pickles to a call of ``os.mkdir``: what an attacker would put in."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("place", ["beside", "inside", "plain pickle", "old torch.save"])
def test_code_in_a_checkpoint_does_not_run(place: str, tmp_path: Path) -> None:
    """A planted call is refused by name and never made, wherever it stands; an ordinary loader would have made it."""
    planted = Planted(tmp_path / "ran")
    content = {"model": STATE | {"tail.0.bias": planted}} if place == "inside" else {"model": STATE, "scheduler": planted}
    data = pickle.dumps(content) if place == "plain pickle" else saved(content, zipped=place != "old torch.save")
    with pytest.raises(CheckpointError, match="nothing of it was run"):
        read_state(data)
    assert not (tmp_path / "ran").exists()
    if place == "beside":
        torch.load(io.BytesIO(data), weights_only=False)
        assert (tmp_path / "ran").exists()  # the test has teeth


def changed(**tensors: Tensor) -> bytes:
    return saved(STATE | {name.replace("__", "."): tensor for name, tensor in tensors.items()})


def compressed() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(STATE))) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    return out.getvalue()


def renumbered(state: State, old: str, new: str) -> bytes:
    return saved({name.replace(old, new): tensor for name, tensor in state.items()})


BLOCKLESS = {name: tensor for name, tensor in STATE.items() if not name.startswith("downblocks.4.")}
DEFECTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "does not read|no checkpoint"),
    "text": (lambda: b"<html>not found</html>", "no checkpoint|does not read"),
    "empty dict": (lambda: saved({}), "no named tensors"),
    "one tensor": (lambda: saved(torch.zeros(3)), "no named tensors"),
    "another network": (lambda: saved(nn.Linear(2, 2).state_dict()), "lacks time_embedding.timembedding.0.weight"),
    "two networks": (lambda: saved({"model": STATE, "ema": STATE}), r"several networks, \['model', 'ema'\]"),
    "number for a tensor": (lambda: saved(STATE | {"tail.0.bias": 3}), "tail.0.bias is not an array of floating-point"),
    "whole numbers": (lambda: changed(tail__0__bias=torch.zeros(32, dtype=torch.int64)), "tail.0.bias is not an array of floating-point"),
    "sparse": (lambda: changed(tail__0__bias=torch.zeros(32).to_sparse()), "tail.0.bias is not an array of floating-point"),
    "no numbers": (lambda: changed(tail__0__bias=torch.zeros(32, device="meta")), "tail.0.bias is not an array of floating-point"),
    "not a number": (lambda: changed(head__bias=torch.full((32,), torch.nan)), "head.bias holds numbers that are not finite"),
    "beyond float32": (lambda: changed(head__bias=torch.full((32,), 1e300, dtype=torch.float64)), "head.bias holds numbers that are not finite"),
    "without box channel": (lambda: changed(head__weight=torch.zeros(32, 3, 3, 3)), r"head.weight is \[32, 3, 3, 3\], not \[32, 4, 3, 3\]"),
    "wrong axes": (lambda: changed(tail__0__bias=torch.zeros(32, 1)), r"tail.0.bias is \[32, 1\]"),
    "class table of one axis": (lambda: changed(cond_embedding__cls_condEmbedding__weight=torch.zeros(3)), "cls_condEmbedding.weight is"),
    "one tensor more": (lambda: changed(upblocks__0__attn__proj__bias=torch.zeros(64)), "holds upblocks.0.attn.proj.bias, and 0 more"),
    "a block missing": (lambda: saved(BLOCKLESS), "lacks downblocks.4.block1.2.weight"),
    "uneven levels": (lambda: renumbered(STATE, "downblocks.7.", "other."), r"\[2, 2, 1\] residual blocks"),
    "block far out": (lambda: renumbered(STATE, "downblocks.7.", "downblocks.9999."), "more than 72"),
    "claims more than it holds": (lambda: changed(head__weight=torch.zeros(1).expand(10**9)), "more numbers than it has bytes"),
    "compressed": (compressed, "compressed or overlap"),
}


@pytest.mark.parametrize(("make", "message"), DEFECTS.values(), ids=DEFECTS)
def test_every_defect_has_its_name(make: Callable[[], bytes], message: str) -> None:
    """What is wrong with a file of weights is said, with the first tensor that it concerns."""
    with pytest.raises(CheckpointError, match=message):
        build_official(read_state(make()))


def test_any_missing_tensor_is_named() -> None:
    """Each of the tensors, left out by itself, is the one that the error names."""
    shapes = {name: tuple(tensor.shape) for name, tensor in STATE.items()}
    for name in shapes:
        left = {other: shape for other, shape in shapes.items() if other != name}
        with pytest.raises(CheckpointError, match=re.escape(f"lacks {name};")):
            check_shapes(left, wanted=shapes if infer_sizes(left) == TINY else {})


@pytest.mark.parametrize("form", ["bare", "old torch.save", "safetensors"])
def test_a_file_that_was_cut_is_refused(form: str) -> None:
    """Cut anywhere, a file ends in our error and no other, without a warning."""
    whole = FORMS[form]()
    for share in (0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999):
        with pytest.raises(CheckpointError):
            build_official(read_state(whole[: int(share * len(whole))]))


def test_damage_raises_no_other_error() -> None:
    """450 files with bytes changed at random in the parts that are parsed, head and tail: each loads or ends in our error, without a warning."""
    small = {name: tensor[:1].clone() for name, tensor in list(STATE.items())[:4]}
    rng, refused = random.Random(1), 0
    for whole in (saved(small), saved(small, zipped=False), safetensors.torch.save(small)):
        for _ in range(150):
            data = bytearray(whole)
            for _ in range(4):
                data[rng.randrange(-800, 1200) % len(data)] = rng.randrange(256)
            try:
                read_state(bytes(data))
            except CheckpointError:
                refused += 1
    assert refused > 200


def test_errors_name_no_folder(weights: Path, tmp_path: Path) -> None:
    """Wrong digest, missing file, unreadable folder: the message has the file's name, not its place."""
    (tmp_path / "empty").mkdir()
    tries: Sequence[tuple[Path, str | None]] = [(weights, "0" * 64), (tmp_path / "nowhere.pt", None), (tmp_path / "empty", None)]
    for path, digest in tries:
        with pytest.raises(CheckpointError) as refused:
            load_official(path, expected_sha256=digest)
        assert str(tmp_path) not in str(refused.value)


def test_a_wrong_digest_is_noticed_before_parsing(tmp_path: Path) -> None:
    """Bytes that are not those announced are not parsed at all."""
    path = tmp_path / "ckpt.pt"
    path.write_bytes(b"no checkpoint at all")
    with pytest.raises(CheckpointError, match="is expected; it was not read"):
        load_official(path, expected_sha256="0" * 64)


# --- conditions ------------------------------------------------------------------------------------------------------


def test_conditions_become_published_rows_and_planes() -> None:
    """Benign is row 1, malignant 2, nothing 0; the first device is row 1; the box is 1 inside, 0 outside, 0 where there is none."""
    encoded = encode_official([BENIGN, MALIGNANT, Condition()], labels=OfficialLabels(), devices=DEVICES, px=8)
    assert encoded.classes.tolist() == [1, 2, 0]
    assert encoded.devices.tolist() == [2, 0, 0]
    slow = [[float(2 <= r < 4 and 2 <= c < 6) for c in range(8)] for r in range(8)]
    assert encoded.planes[0, 0].tolist() == slow
    assert not encoded.planes[1:].any()


def test_there_are_nineteen_published_devices() -> None:
    """Names of all rows but the null, none twice."""
    assert len(set(PUBLISHED_DEVICES)) == 19 == OfficialSizes().devices - 1


ASKED: dict[str, tuple[Condition, type[BusgenError], str]] = {
    "normal": (Condition(pathology=Pathology.NORMAL), LabelError, "no class for a normal breast"),
    "BI-RADS": (Condition(birads=Birads.FOUR), LabelError, "no BI-RADS"),
    "unknown device": (Condition(device="Z"), LabelError, "does not know the device"),
    "mask": (Condition(mask=np.ones((8, 8), bool)), ConfigError, "not on masks"),
    "box outside": (Condition(box=(0.5, 0.5, 1.5, 0.9)), ConfigError, "fractions from 0 to 1"),
    "box not a number": (Condition(box=(0.5, 0.5, float("nan"), 0.9)), ConfigError, "fractions from 0 to 1"),
    "box of no pixel": (Condition(box=(0.51, 0.5, 0.55, 0.9)), ConfigError, "holds no pixel"),
    "box turned round": (Condition(box=(0.9, 0.5, 0.1, 0.9)), ConfigError, "holds no pixel"),
}


@pytest.mark.parametrize(("condition", "error", "message"), ASKED.values(), ids=ASKED)
def test_what_the_network_does_not_know_is_refused(
    condition: Condition, error: type[BusgenError], message: str, generator: OfficialGenerator
) -> None:
    """A condition that would be ignored or mean something else is refused before anything is drawn."""
    with pytest.raises(error, match=message):
        sample_official(generator, [condition], seeds=[0], evaluations=2)


def test_normal_has_a_row_once_one_is_named() -> None:
    """A network trained on with a row for normal can be asked for it; rows are used once and lie in the table."""
    assert OfficialLabels(normal=3).row(Pathology.NORMAL) == 3
    for wrong in ({"normal": 0}, {"benign": -1}, {"malignant": 1}):
        with pytest.raises(ConfigError):
            OfficialLabels(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"image_px": 18}, {"image_px": 0}, {"devices": ("A", "B")}, {"devices": ("A", "A", "B")}, {"labels": OfficialLabels(normal=3)}]
)
def test_names_rows_and_sides_must_fit(wrong: dict[str, object], weights: Path) -> None:
    """Sides that do not halve, names that are not one a row, class rows beyond the table."""
    with pytest.raises(ConfigError):
        load_official(weights, **({"image_px": PX} | wrong))


def test_device_names_are_only_assumed_where_the_number_is_published(tmp_path: Path) -> None:
    """A table of 20 rows gets the published names; another gets none, and then no device can be asked for."""
    sizes, path = replace(TINY, channels=(32,), blocks=1), tmp_path / "ckpt.pt"
    path.write_bytes(saved(tiny_state(replace(sizes, devices=20))))
    assert load_official(path).devices == PUBLISHED_DEVICES
    path.write_bytes(saved(tiny_state(sizes)))
    assert load_official(path).devices == ()


# --- sampling --------------------------------------------------------------------------------------------------------


def test_an_image_depends_on_its_seed_and_condition_alone(generator: OfficialGenerator) -> None:
    """The same image comes back alone and inside a batch; another seed or condition gives another image."""
    ask = {"evaluations": 5, "guidance": 1.0}
    both = sample_official(generator, [BENIGN, MALIGNANT], seeds=[5, 6], **ask)
    alone = sample_official(generator, [MALIGNANT], seeds=[6], **ask)
    assert both.shape == (2, 1, PX, PX)
    assert both.isfinite().all()
    assert both.abs().max() <= 1
    assert torch.allclose(both[1], alone[0], atol=1e-4)
    for conditions, seed in (([BENIGN], 6), ([MALIGNANT], 7)):
        assert not torch.allclose(sample_official(generator, conditions, seeds=[seed], **ask)[0], alone[0], atol=1e-2)


@pytest.mark.parametrize("part", ["pathology", "device", "box"])
def test_each_condition_reaches_the_image(part: str, generator: OfficialGenerator) -> None:
    """Leaving out class, device or box changes what is drawn from the same seed."""
    images = sample_official(generator, [BENIGN, replace(BENIGN, **{part: None})], seeds=[1, 1], evaluations=3)
    assert not torch.allclose(images[0], images[1], atol=1e-3)


class Recorder(nn.Module):
    """Answers with a fixed function of its inputs and counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, images: Tensor, steps: Tensor, classes: Tensor, devices: Tensor) -> Tensor:
        self.asked += 1
        return images[:, :3] + images[:, 3:] + (10 * classes + 100 * devices + 1000 * steps)[:, None, None, None]


def test_guidance_is_its_formula() -> None:
    """(1 + w) eps(condition) - w eps(null), worked out by hand; the null has no class, device or box; w = 0 asks once."""
    wanted = encode_official([BENIGN, MALIGNANT], labels=OfficialLabels(), devices=DEVICES, px=8)
    noisy, steps, network = torch.randn(2, 3, 8, 8), torch.tensor([3, 3]), Recorder()
    found = guided_noise(network, noisy, steps, wanted, labels=OfficialLabels(), guidance=1.8)
    for image, (row, device) in enumerate([(1, 2), (2, 0)]):
        box = wanted.planes[image] * 2.8
        assert torch.allclose(found[image], noisy[image] + box + 2.8 * (10 * row + 100 * device) + 3000, atol=2e-3)
    assert network.asked == 2
    guided_noise(network, noisy, steps, wanted, labels=OfficialLabels(), guidance=0)
    assert network.asked == 3


class KnownGaussian(nn.Module):
    """The exact noise for pixels that are independent N(mean, std^2) under the published schedule.

    x_t = a x_0 + s e with a^2 = prod (1 - beta), s^2 = 1 - a^2, so E[e | x_t] = s (x_t - a mean) / (a^2 std^2 + s^2).
    The betas are written out here, not taken from the code under test.
    """

    def __init__(self, mean: float, std: float, *, last_beta: float = 0.028) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        betas = [1e-4 + (last_beta - 1e-4) * i / 499 for i in range(500)]
        self.kept = torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)

    def forward(self, images: Tensor, steps: Tensor, classes: Tensor, devices: Tensor) -> Tensor:
        kept = self.kept[steps].reshape(-1, 1, 1, 1)
        return ((1 - kept).sqrt() * (images[:, :3] - kept.sqrt() * self.mean) / (kept * self.std**2 + 1 - kept)).float()

    def exact(self, seeds: Sequence[int], px: int) -> Tensor:
        """Where the diffusion's equation takes each first noise: a line, since everything is Gaussian; gray of three colours."""
        noise = torch.stack([torch.randn(3, px, px, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).double()
        first, last = ((self.kept[i] * self.std**2 + 1 - self.kept[i]).sqrt() for i in (0, -1))
        colours = self.kept[0].sqrt() * self.mean + first / last * (noise - self.kept[-1].sqrt() * self.mean)
        return colours.clamp(-1, 1).mean(dim=1, keepdim=True)


def gaussian(network: KnownGaussian) -> OfficialGenerator:
    return OfficialGenerator(
        network=network,
        sizes=OfficialSizes(),
        scheduler=build_official_scheduler(500),
        image_px=32,
        devices=PUBLISHED_DEVICES,
        labels=OfficialLabels(),
        digest="",
    )


@pytest.mark.parametrize(
    ("solver", "evaluations", "tolerance"),
    [
        ("dpmsolver++", 50, 0.01),
        ("dpmsolver++", 499, 5e-4),
        ("dpmsolver++2m", 100, 0.02),
        ("dpmsolver++2m", 400, 2e-3),
        ("ddim", 50, 0.05),
        ("ddim", 250, 0.011),
    ],
)
def test_solvers_take_a_known_gaussian_where_its_equation_does(solver: str, evaluations: int, tolerance: float) -> None:
    """With the exact noise of N(0.2, 0.2^2) every pixel ends on the exact solution, the closer the more evaluations.

    Tolerances are 1.2 to 6 times the errors measured; a network that was trained with betas to 0.02 errs beyond each of them.
    """
    seeds, known = range(4), KnownGaussian(0.2, 0.2)

    def error(network: KnownGaussian) -> float:
        images = sample_official(gaussian(network), [BENIGN_PUBLISHED] * 4, seeds=seeds, evaluations=evaluations, solver=solver)
        return float((images - known.exact(seeds, 32)).abs().max())

    assert error(known) < tolerance < error(KnownGaussian(0.2, 0.2, last_beta=0.02))


BENIGN_PUBLISHED = Condition(pathology=Pathology.BENIGN, device="Mindray-M9", box=(0.2, 0.2, 0.6, 0.6))


def test_the_published_solver_recovers_mean_and_spread() -> None:
    """Mean 0.2 and standard deviation 0.2 of each colour come back: 50 evaluations, T = 500, no training.

    Of 12,288 colours the mean lies within 4 standard errors, 4 x 0.0018, the deviation within 4 x 0.0013. To the mean comes
    0.0014 that the first noise still lacks, to the deviation 0.003 of the solver and 0.001 of the noise that is left. Gray of
    three colours has its deviation divided by the root of 3.
    """
    seeds, known = range(4), KnownGaussian(0.2, 0.2)
    images = sample_official(gaussian(known), [Condition()] * 4, seeds=seeds)
    assert abs(float(images.mean()) - 0.2) < 0.0072 + 0.0014
    assert abs(float(images.std()) * 3**0.5 - 0.2) < 0.0051 + 0.003 + 0.001
    other = sample_official(gaussian(KnownGaussian(0.2, 0.2, last_beta=0.02)), [Condition()] * 4, seeds=seeds)
    assert abs(float(other.std()) * 3**0.5 - 0.2) > 0.02  # another schedule is noticed


def test_gray_is_the_mean_of_the_three_colours(generator: OfficialGenerator) -> None:
    """Colours are cut to [-1, 1] first, then averaged: colours of 3, 0 and -1 give (1 + 0 - 1) / 3 = 0."""
    colours = torch.tensor([3.0, 0.0, -1.0]).reshape(1, 3, 1, 1)
    schedule = build_official_scheduler(20)
    last = float(schedule.alphas_cumprod[0])

    class Fixed(nn.Module):
        def forward(self, images: Tensor, steps: Tensor, classes: Tensor, devices: Tensor) -> Tensor:
            kept = schedule.alphas_cumprod[steps].reshape(-1, 1, 1, 1)
            return (images[:, :3] - kept.sqrt() * colours) / (1 - kept).sqrt()

    image = sample_official(replace(generator, network=Fixed()), [MALIGNANT], seeds=[1], evaluations=19, guidance=0)
    assert float(image.mean()) == pytest.approx((1 + 0 - last**0.5) / 3, abs=0.01)


def test_the_published_orders_are_used() -> None:
    """50 evaluations are 16 steps of order 3 and one of order 2, down to the quietest trained level."""
    chosen = solver_of(build_official_scheduler(500), "dpmsolver++", evaluations=50)
    assert chosen.order_list == [1, 2, 3] * 16 + [1, 2]
    assert (int(chosen.timesteps[0]), len(chosen.timesteps)) == (499, 50)
    assert float(chosen.sigmas[-1]) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("solver", list(Solver))
def test_every_solver_starts_from_the_loudest_step(solver: Solver) -> None:
    """The first noise is that of step T - 1, and no step is visited twice."""
    visited = solver_of(build_official_scheduler(500), solver, evaluations=50).timesteps.tolist()
    assert visited[0] == 499
    assert visited == sorted(set(visited), reverse=True)


WRONG_ASK: dict[str, dict[str, object]] = {
    "one seed too few": {"seeds": [1]},
    "negative guidance": {"guidance": -0.1},
    "guidance not a number": {"guidance": float("nan")},
    "too few evaluations": {"evaluations": 1},
    "as many as steps": {"evaluations": 20},
    "unknown solver": {"solver": "euler"},
    "DDIM between the steps": {"solver": "ddim", "evaluations": 7},
}


@pytest.mark.parametrize("wrong", WRONG_ASK.values(), ids=WRONG_ASK)
def test_wrong_numbers_are_refused(wrong: dict[str, object], generator: OfficialGenerator) -> None:
    """Each argument out of its range ends in ConfigError before anything is drawn."""
    with pytest.raises(ConfigError):
        sample_official(generator, [BENIGN, MALIGNANT], **({"seeds": [1, 2], "evaluations": 5} | wrong))


def test_nothing_asked_for_is_nothing_drawn(generator: OfficialGenerator) -> None:
    """No conditions give no images, of the right shape."""
    assert sample_official(generator, [], seeds=[], evaluations=2).shape == (0, 1, PX, PX)


# --- import ----------------------------------------------------------------------------------------------------------

IMPORT = {"devices": DEVICES, "license_note": "CC BY-NC 4.0, by letter of 2026-03-01", "image_px": PX}


def test_an_imported_folder_gives_the_same_images(weights: Path, tmp_path: Path) -> None:
    """Weights go through the folder unchanged, with devices, sides, licence and digest; the folder holds no pickle."""
    digest = import_official(weights, tmp_path / "official", expected_sha256=sha256_file(weights), **IMPORT)
    loaded = load_official(tmp_path / "official", expected_sha256=digest)
    assert (loaded.digest, loaded.devices, loaded.image_px, loaded.license_note) == (digest, DEVICES, PX, IMPORT["license_note"])
    again = sample_official(loaded, [BENIGN], seeds=[1], evaluations=3)
    assert torch.equal(again, sample_official(load_official(weights, image_px=PX, devices=DEVICES), [BENIGN], seeds=[1], evaluations=3))
    held = {p.relative_to(tmp_path / "official").as_posix() for p in (tmp_path / "official").rglob("*") if p.is_file()}
    assert held == {"config.json", "network.safetensors", "scheduler/scheduler_config.json", "README.md", "DIGEST"}


def test_the_card_states_terms_and_origin(weights: Path, tmp_path: Path) -> None:
    """Licence, digest of the source, size, and that the weights are not for diagnosis, stand in the card."""
    import_official(weights, tmp_path / "official", **IMPORT)
    card = (tmp_path / "official" / "README.md").read_text()
    count = sum(tensor.numel() for tensor in STATE.values())
    assert all(text in card for text in (IMPORT["license_note"], sha256_file(weights), f"{count:,} parameters", "A, B, C", "Not for diagnosis"))


def test_the_same_weights_give_the_same_digest(weights: Path, tmp_path: Path) -> None:
    """Two hospitals that import the same file get the same digest."""
    assert import_official(weights, tmp_path / "a", **IMPORT) == import_official(weights, tmp_path / "b", **IMPORT)


@pytest.mark.parametrize("name", ["config.json", "network.safetensors", "scheduler/scheduler_config.json", "README.md", "DIGEST"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_folder_is_refused(name: str, damage: str, weights: Path, tmp_path: Path) -> None:
    """A changed or missing file of the folder is noticed, without a digest from elsewhere."""
    import_official(weights, tmp_path / "official", **IMPORT)
    file = tmp_path / "official" / name
    data = file.read_bytes()
    file.unlink() if damage == "missing" else file.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    with pytest.raises(CheckpointError, match="cannot be read" if damage == "missing" else "is expected"):
        load_official(tmp_path / "official")


def rewrite(folder: Path, name: str, old: str, new: str) -> None:
    """Change a file and state its digest anew, as somebody could who owns the folder."""
    from busgen_core.official.folder import OFFICIAL_FILES, _digest

    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    (folder / "DIGEST").write_text(_digest({file: (folder / file).read_bytes() for file in OFFICIAL_FILES}))


FORGED = {
    "other sizes": ("config.json", '"steps": 20', '"steps": 21', "other sizes"),
    "absurd sizes": ("config.json", '"width": 32', '"width": 31', "config.json is not of this format"),
    "another format": ("config.json", "busgen-official-1", "busgen-official-2", "config.json is not of this format"),
    "extra field": ("config.json", '"format"', '"run": "x", "format"', "config.json is not of this format"),
    "other steps": ("scheduler/scheduler_config.json", '"num_train_timesteps": 20', '"num_train_timesteps": 1000000000', "not for 20 steps"),
    "other target": ("scheduler/scheduler_config.json", '"epsilon"', '"v_prediction"', "not for 20 steps and epsilon"),
    "no schedule": ("scheduler/scheduler_config.json", '"beta_schedule": "linear"', '"beta_schedule": "x"', "does not load"),
    "no JSON": ("scheduler/scheduler_config.json", "{", "[", "does not load"),
}


@pytest.mark.parametrize(("name", "old", "new", "message"), FORGED.values(), ids=FORGED)
def test_a_folder_that_contradicts_itself_is_refused(name: str, old: str, new: str, message: str, weights: Path, tmp_path: Path) -> None:
    """Even with its own digest renewed, a folder whose parts do not fit together does not load; the old digest is missed as well."""
    digest = import_official(weights, tmp_path / "official", **IMPORT)
    rewrite(tmp_path / "official", name, old, new)
    with pytest.raises(CheckpointError, match=message):
        load_official(tmp_path / "official")
    with pytest.raises(CheckpointError, match="is expected"):
        load_official(tmp_path / "official", expected_sha256=digest)


def test_a_folder_states_its_own_names(weights: Path, tmp_path: Path) -> None:
    """Names, rows and sides are not to be overridden where the folder states them."""
    import_official(weights, tmp_path / "official", **IMPORT)
    with pytest.raises(ConfigError, match="stated by the folder"):
        load_official(tmp_path / "official", devices=("X", "Y", "Z"))


def test_nothing_is_overwritten_and_terms_are_asked_for(weights: Path, tmp_path: Path) -> None:
    """A folder that holds a network stays; weights without terms, with a wrong digest or with wrong names are not imported."""
    import_official(weights, tmp_path / "official", **IMPORT)
    for out, wrong in ((tmp_path / "official", {}), (tmp_path / "new", {"license_note": " "}), (tmp_path / "new", {"devices": ("A",)})):
        with pytest.raises(ConfigError):
            import_official(weights, out, **(IMPORT | wrong))
    with pytest.raises(CheckpointError):
        import_official(weights, tmp_path / "new", expected_sha256="0" * 64, **IMPORT)
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_no_network_and_can_be_tried_again(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest is written last: an import that ran out of room does not load, and starting again completes it."""

    def full(_: int) -> None:
        raise OSError(28, "no space")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageFullError):
            import_official(weights, tmp_path / "official", **IMPORT)
    with pytest.raises(CheckpointError):
        load_official(tmp_path / "official")
    digest = import_official(weights, tmp_path / "official", **IMPORT)
    assert load_official(tmp_path / "official").digest == digest


def test_the_box_covers_the_pixels_that_the_published_code_fills() -> None:
    """At 160 px, edges are cut down to whole pixels for any box: compared with a loop over pixels."""
    rng = random.Random(3)
    for _ in range(20):
        x0, y0 = rng.random() / 2, rng.random() / 2
        box = (x0, y0, x0 + 0.3, y0 + 0.2)
        left, top, right, bottom = (int(edge * 160) for edge in box)
        plane = box_plane(box, px=160)[0]
        assert int(plane.sum()) == (right - left) * (bottom - top)
        assert plane[top, left] == plane[bottom - 1, right - 1] == 1
