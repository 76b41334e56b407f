"""DP-SGD over patients: exact gradients, bounded contributions, public constants, resuming."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler
from safetensors.torch import load_file

from busgen_core.conditions import Condition, encode
from busgen_core.errors import CheckpointError, ConfigError, InputError
from busgen_core.generator import Generator, Shape, build_network, denoising_loss
from busgen_core.labels import NULL_INDEX
from busgen_core.tensors import to_unit
from busgen_privacy.cohort import Cohort
from busgen_privacy.dp.dpsgd import (
    CLASS_TABLE,
    DpSgdPlan,
    PatientOptimizer,
    adapt,
    contiguous,
    gradients_of,
    load_adapted,
    patient_gradient,
    trainable,
)
from busgen_privacy.dp.noise import SeededGaussian
from busgen_privacy.dp.plan import SUBSET_SIZE
from busgen_privacy.dp.subsets import merged
from busgen_privacy.dp.watchdog import Watchdog
from tests.privacy.small import cohort, small_foundation, small_plan

MEMBERS = cohort([1, 2, 1, 1, 3, 1, 1, 1])


def quiet(done: int, steps: int) -> None:
    """No progress shown."""


def plain_backward(
    network: Generator, scheduler: EDMDPMSolverMultistepScheduler, people: Cohort, rows: list[int], *, draws: int, patient: str, step: int
) -> None:
    """The slow twin: one loss over the patient's images and draws, one ``backward``; leaves ``.grad`` on every parameter."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{step}/{patient}".encode()).digest()[:16], "big"))
    side, many = people.images.shape[1] // 2, len(rows) * draws
    noise = torch.from_numpy(rng.standard_normal((many, 4, side, side), dtype=np.float32))
    sigmas = torch.from_numpy((0.05 * 400 ** rng.random(many)).astype(np.float32))
    repeated = np.repeat(rows, draws)
    conditions = encode([Condition(pathology=people.classes[r], box=people.boxes[r]) for r in repeated], devices=(), side=side)
    losses = denoising_loss(network, scheduler, to_unit(people.images[repeated]), conditions, noise, sigmas)
    torch.autograd.backward(losses.sum() / many)


def summed(people: Cohort, plan: DpSgdPlan, *, times: float = 1.0, step: int = 0) -> torch.Tensor:
    """Clipped, summed gradient of all patients of ``people`` in one step, through the real optimizer; before noise."""
    foundation = small_foundation()
    parameters = trainable(foundation.network, plan.subset)
    gradients = [
        [times * g for g in patient_gradient(foundation.network, foundation.scheduler, people, rows, plan, patient=key, step=step)]
        for key, rows in people.patient_rows().items()
    ]
    optimizer = PatientOptimizer(parameters, plan, Watchdog(plan=plan, patients=len(gradients)), SeededGaussian(0))
    optimizer.take(gradients)
    optimizer.clip_and_accumulate()
    return torch.cat([p.summed_grad.flatten() for p in optimizer.params]).double()


def without(people: Cohort, patient: str) -> Cohort:
    """The neighbouring cohort: one patient removed."""
    rows = [i for i, key in enumerate(people.patients) if key != patient]
    return Cohort(
        people.images[rows], tuple(people.classes[i] for i in rows), tuple(people.boxes[i] for i in rows), tuple(people.patients[i] for i in rows)
    )


def test_patient_gradients_are_exact_on_the_shipped_network() -> None:
    """Every trained parameter's per-patient gradient, as the optimizer holds it, is that of a plain backward pass."""
    foundation = small_foundation(Shape())
    people = cohort([1, 2], size=64)
    plan = small_plan(subset="bias-norm", draws=2)
    parameters: dict[str, Any] = dict(trainable(foundation.network, plan.subset))
    gradients = [
        patient_gradient(foundation.network, foundation.scheduler, people, rows, plan, patient=key, step=3)
        for key, rows in people.patient_rows().items()
    ]
    PatientOptimizer(parameters, plan, Watchdog(plan=plan, patients=2), SeededGaussian(0)).take(gradients)
    foundation.network.requires_grad_(True).train()  # nothing in it behaves otherwise in train mode
    for place, (key, rows) in enumerate(people.patient_rows().items()):
        foundation.network.zero_grad()
        plain_backward(foundation.network, foundation.scheduler, people, rows, draws=2, patient=key, step=3)
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            difference = float((parameter.grad_sample[place] - parameter.grad).norm())
            assert difference <= 1e-5 * float(parameter.grad.norm()) + 1e-7, name
    assert sum(float(p.grad_sample.norm()) > 0 for p in parameters.values()) > 0.9 * len(parameters)


@pytest.mark.parametrize("subset", SUBSET_SIZE)
def test_only_the_subset_is_trained(subset: str) -> None:
    """The shipped network's subset has the size that the rule counts with, and everything else is frozen."""
    network = build_network(Shape())
    parameters = trainable(network, subset)  # type: ignore[arg-type]
    null_row = parameters[CLASS_TABLE].shape[1]
    assert sum(p.numel() for p in parameters.values()) - null_row == SUBSET_SIZE[subset]  # type: ignore[index]
    assert {n for n, p in network.named_parameters() if p.requires_grad} == set(parameters)


@pytest.mark.parametrize("clipping", ["auto-s", "flat"])
@pytest.mark.parametrize("times", [1.0, 1e6], ids=["as is", "huge gradients"])
def test_removing_a_patient_moves_the_sum_by_at_most_c(clipping: str, times: float) -> None:
    """The sensitivity that the accountants assume: any one patient removed, the sum moves by at most C."""
    plan = small_plan(clip_norm=0.3, clipping=clipping)
    whole = summed(MEMBERS, plan, times=times)
    moved = [float((whole - summed(without(MEMBERS, key), plan, times=times)).norm()) for key in MEMBERS.patient_rows()]
    assert max(moved) <= 0.3 * (1 + 1e-4)
    if times > 1:
        assert min(moved) > 0.29  # the bound is met, so the test could have failed


def test_replacing_a_patients_images_moves_the_sum_by_at_most_two_c() -> None:
    """Replacing is removing and adding: whatever the new images are, twice C bounds it."""
    plan = small_plan(clip_norm=0.3)
    images = MEMBERS.images.copy()
    images[0] = np.where(np.indices(images[0].shape).sum(0) % 2, 255, 0)
    assert float((summed(MEMBERS, plan) - summed(replace(MEMBERS, images=images), plan)).norm()) <= 0.6 * (1 + 1e-4)


def test_a_patient_does_not_change_anothers_gradient() -> None:
    """A patient's images, draws and gradient are bit for bit the same whoever else is in the cohort."""
    foundation, plan = small_foundation(), small_plan()
    trainable(foundation.network, plan.subset)
    alone = without(MEMBERS, "m000")
    for key in ("m001", "m004"):
        first, second = (
            patient_gradient(foundation.network, foundation.scheduler, people, people.patient_rows()[key], plan, patient=key, step=2)
            for people in (MEMBERS, alone)
        )
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit_of_a_gradient(threads: int) -> None:
    """Patients' gradients are the same bits with one thread and with several, in the patients' order; the number of threads is put back."""
    foundation, people, plan = small_foundation(), MEMBERS, replace(small_plan(), subset="full")
    network = contiguous(foundation.network)
    trainable(network, "full")
    patients, before = list(people.patient_rows().items()), torch.get_num_threads()
    found = []
    try:
        for number in (1, threads):
            torch.set_num_threads(number)
            found.append(gradients_of(network, foundation.scheduler, people, patients, plan, step=1))
            assert torch.get_num_threads() == number
        with pytest.raises(IndexError):
            gradients_of(network, foundation.scheduler, people, [("nobody", [10**6])], plan, step=1)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert len(found[0]) == len(patients) > 1
    assert all(torch.equal(a, b) for one, several in zip(*found, strict=True) for a, b in zip(one, several, strict=True))
    assert not torch.equal(found[0][0][0], found[0][1][0])


def test_a_patient_with_500_images_counts_once() -> None:
    """500 images of one patient enter as at most four, and their contribution is bounded by C like any other's."""
    plan = small_plan(clip_norm=0.3, clipping="flat")
    many = replace(cohort([500]), patients=("m000",) * 500)
    foundation = small_foundation()
    trainable(foundation.network, plan.subset)
    batches: list[int] = []
    foundation.network.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))
    patient_gradient(foundation.network, foundation.scheduler, many, list(range(500)), plan, patient="m000", step=0)
    assert batches == [4 * plan.draws]
    assert 0.29 < float(summed(many, plan, times=1e6).norm()) <= 0.3 * (1 + 1e-4)


def test_steps_are_divided_by_the_public_constant() -> None:
    """Denominators come from the policy's public cohort, never from the patients present."""
    plan = small_plan(public_cohort=50, patient_rate=0.4)
    parameters = trainable(small_foundation().network, plan.subset)
    optimizers = [PatientOptimizer(parameters, plan, Watchdog(plan=plan, patients=n), SeededGaussian(0)) for n in (3, 300)]
    assert [o.expected_batch_size for o in optimizers] == [20.0, 20.0]


def test_a_killed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    """Killed before and after a checkpoint and resumed, a seeded run gives the same tensors and the same findings."""
    foundation, plan = small_foundation(), small_plan(steps=13)
    adapt(foundation, MEMBERS, plan, checkpoint=tmp_path / "whole", progress=quiet, source=SeededGaussian(5))
    started: list[int] = []
    for kill_at in (4, 11, 12):

        def kill(done: int, steps: int, at: int = kill_at) -> None:
            started.append(done)
            if done == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            adapt(foundation, MEMBERS, plan, checkpoint=tmp_path / "killed", progress=kill, source=SeededGaussian(5))
    (tmp_path / "killed" / "state.safetensors.new").write_bytes(b"torn")
    adapt(foundation, MEMBERS, plan, checkpoint=tmp_path / "killed", progress=quiet, source=SeededGaussian(5))
    assert started == [*range(1, 5), *range(1, 12), 11, 12]  # the third try went on at step 10
    whole, killed = (load_file(tmp_path / name / "adapted.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    first, second = (json.loads((tmp_path / name / "watchdog.json").read_text()) for name in ("whole", "killed"))
    assert first == second


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    """A finished or half-done folder of another plan, cohort or noise is never continued."""
    foundation, plan = small_foundation(), small_plan(steps=11)

    def stop(done: int, steps: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(foundation, MEMBERS, plan, checkpoint=tmp_path, progress=stop, source=SeededGaussian(5))
    for people, other in ((MEMBERS, replace(plan, noise_multiplier=2.5)), (without(MEMBERS, "m000"), plan)):
        with pytest.raises(CheckpointError, match="another"):
            adapt(foundation, people, other, checkpoint=tmp_path, progress=quiet, source=SeededGaussian(5))
    with pytest.raises(CheckpointError, match="another"):
        adapt(foundation, MEMBERS, plan, checkpoint=tmp_path, progress=quiet)
    adapt(foundation, MEMBERS, plan, checkpoint=tmp_path, progress=quiet, source=SeededGaussian(5))
    with pytest.raises(CheckpointError, match="another"):
        adapt(foundation, MEMBERS, replace(plan, noise_multiplier=2.5), checkpoint=tmp_path, progress=quiet, source=SeededGaussian(5))


def test_a_release_needs_secure_noise(tmp_path: Path) -> None:
    """Tensors adapted with seeded noise do not load for a release; with secure noise they do, and differ between runs."""
    foundation, plan = small_foundation(), small_plan(steps=3)
    adapt(foundation, MEMBERS, plan, checkpoint=tmp_path / "seeded", progress=quiet, source=SeededGaussian(5))
    with pytest.raises(CheckpointError, match="secure"):
        load_adapted(foundation, tmp_path / "seeded" / "adapted.safetensors")
    tables = []
    for name in ("a", "b"):
        adapt(foundation, MEMBERS, plan, checkpoint=tmp_path / name, progress=quiet)
        network = load_adapted(foundation, tmp_path / name / "adapted.safetensors")
        tables.append(network.labels.pathology.weight)
    assert not torch.equal(tables[0], tables[1])
    original = foundation.network.labels.pathology.weight
    assert not torch.equal(tables[0][:NULL_INDEX], original[:NULL_INDEX])
    assert torch.equal(tables[0][NULL_INDEX], original[NULL_INDEX])  # the null label is the foundation's


def test_damaged_adaptations_do_not_load(tmp_path: Path) -> None:
    """A torn file, or tensors of another foundation, end in CheckpointError."""
    foundation = small_foundation()
    adapt(foundation, MEMBERS, small_plan(steps=2), checkpoint=tmp_path, progress=quiet)
    file = tmp_path / "adapted.safetensors"
    with pytest.raises(CheckpointError, match="fit"):
        load_adapted(small_foundation(Shape(image_px=32, channels=(16, 16), groups=4, heads=8)), file)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="readable"):
        load_adapted(foundation, file)


def test_empty_steps_still_add_noise_and_count(tmp_path: Path) -> None:
    """With one patient at q = .02 nearly every Poisson sample is empty; the run steps, moves and ends all the same."""
    adapt(small_foundation(), cohort([1]), small_plan(patient_rate=0.02, steps=6), checkpoint=tmp_path, progress=quiet, source=SeededGaussian(1))
    findings = json.loads((tmp_path / "watchdog.json").read_text())
    assert findings["steps"] == 6
    assert findings["moved"] > 0
    assert 0.9 < findings["noise_ratio"] < 1.1


def test_a_plan_that_breaks_its_own_promise_does_not_run(tmp_path: Path) -> None:
    """An epsilon smaller than what the noise spends is refused before any image is read."""
    with pytest.raises(ConfigError, match="promised"):
        adapt(small_foundation(), MEMBERS, small_plan(epsilon=0.5), checkpoint=tmp_path, progress=quiet)
    assert not list(tmp_path.iterdir())


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    """Frames that are not the foundation's size are an input error."""
    with pytest.raises(InputError):
        adapt(small_foundation(), cohort([1, 1], size=64), small_plan(), checkpoint=tmp_path, progress=quiet)


@pytest.mark.parametrize(
    "change",
    [
        {"patient_rate": 0.0},
        {"patient_rate": 1.5},
        {"clip_norm": 0.0},
        {"clip_norm": float("nan")},
        {"noise_multiplier": 0.0},
        {"steps": 0},
        {"draws": 0},
        {"delta": 1.0},
        {"subset": "everything"},
        {"clipping": "none"},
    ],
    ids=str,
)
def test_plans_outside_their_range_are_refused(change: dict[str, object]) -> None:
    """No plan exists whose guarantee could not be stated."""
    with pytest.raises(ConfigError):
        replace(small_plan(), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("subset", ["film", "lora", "full"])
def test_every_subset_adapts_and_loads(tmp_path: Path, subset: str) -> None:
    """A run moves its subset and nothing else; LoRA's factors come out as weights of the plain network."""
    foundation = small_foundation()
    adapt(foundation, MEMBERS, small_plan(subset=subset, steps=3, rank=2), checkpoint=tmp_path, progress=quiet)
    adapted = dict(load_adapted(foundation, tmp_path / "adapted.safetensors").named_parameters())
    moved = {name for name, p in foundation.network.named_parameters() if not torch.equal(p, adapted[name])}
    assert CLASS_TABLE in moved
    parts = {"film": "time_emb_proj.bias", "lora": ".to_", "full": ""}[subset]
    assert all(parts in name for name in moved - {CLASS_TABLE})
    assert len(moved) > 4
    assert set(adapted) == set(dict(foundation.network.named_parameters()))


@pytest.mark.parametrize("subset", ["film", "lora", "full"])
def test_patient_gradients_of_every_subset_are_exact(subset: str) -> None:
    """On the shipped shape, each trained tensor's patient gradient is that of a plain backward through the same network."""
    foundation, people = small_foundation(Shape()), cohort([2], size=64)
    plan = small_plan(subset=subset, draws=1)
    parameters = trainable(foundation.network, plan.subset, rank=plan.rank)
    if subset == "lora":
        with torch.no_grad():
            for name, p in parameters.items():
                if "lora_B" in name:
                    p.normal_(std=0.1)
    gradient = patient_gradient(foundation.network, foundation.scheduler, people, [0, 1], plan, patient="m000", step=1)
    plain_backward(foundation.network, foundation.scheduler, people, [0, 1], draws=1, patient="m000", step=1)
    for found, (name, p) in zip(gradient, parameters.items(), strict=True):
        assert p.grad is not None
        assert float((found - p.grad).norm()) <= 1e-5 * float(p.grad.norm()) + 1e-7, name
        assert float(p.grad.norm()) > 0 or name == CLASS_TABLE or subset == "full"


def test_lora_multiplied_in_answers_as_beside(tmp_path: Path) -> None:
    """The plain network with LoRA's factors multiplied into its weights gives the same output as the one that carries them."""
    foundation = small_foundation()
    carrying = contiguous(foundation.network)
    parameters = trainable(carrying, "lora", rank=2)
    with torch.no_grad():
        for p in parameters.values():
            p.add_(0.05 * torch.randn_like(p))
    plain = contiguous(foundation.network)
    missing = plain.load_state_dict(merged(carrying, {n: p.detach() for n, p in parameters.items()}), strict=False)
    assert not missing.unexpected_keys
    conditions = encode([Condition()] * 2, devices=(), side=16)
    arguments = (torch.randn(2, 4, 16, 16), torch.zeros(2), conditions.labels, conditions.planes)
    assert torch.allclose(plain(*arguments), carrying(*arguments), atol=1e-5)
    assert not torch.allclose(plain(*arguments), foundation.network(*arguments), atol=1e-3)


FULL_DISK = """
import resource, sys
from pathlib import Path
from busgen_core.errors import StorageFullError
from busgen_privacy.dp.dpsgd import adapt
from busgen_privacy.dp.noise import SeededGaussian
from tests.privacy.small import cohort, small_foundation, small_plan
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    go = {"checkpoint": Path(sys.argv[1]), "progress": lambda *_: None, "source": SeededGaussian(3)}
    adapt(small_foundation(), cohort([1, 2, 1]), small_plan(steps=12), **go)
except StorageFullError as error:
    print(error.code)
"""


def test_a_disk_full_during_a_checkpoint_loses_nothing(tmp_path: Path) -> None:
    """With a real limit on file sizes the run stops by name with no torn file; with room it ends where an uninterrupted one does."""
    ended = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path / "full")], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "storage-full"
    assert not [f for f in (tmp_path / "full").glob("*") if f.suffix == ".safetensors"]
    for name in ("full", "whole"):
        adapt(small_foundation(), cohort([1, 2, 1]), small_plan(steps=12), checkpoint=tmp_path / name, progress=quiet, source=SeededGaussian(3))
    first, second = (load_file(tmp_path / name / "adapted.safetensors") for name in ("full", "whole"))
    assert all(torch.equal(first[name], second[name]) for name in first)
