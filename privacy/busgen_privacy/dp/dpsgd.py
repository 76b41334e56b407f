"""DP-SGD over patients: adapt a small part of the foundation to a hospital's images.

One step: every patient enters on its own with chance q; a patient who entered gives one gradient, the mean over at most
four of its images and K diffusion draws of each, from one plain backward pass; Opacus's optimizer clips it, sums, adds
Gaussian noise, divides by a public constant and lets Adam step. No hooks, so nothing depends on how layers are captured.

Guarantees: given what the steps before released, adding or removing one patient changes the summed gradient of a step by at
most C in L2: a patient's gradient, its choice of images and its diffusion draws depend on that patient's rows, the step and
the weights alone, never on who else is present. Each step is thus a Poisson-sampled Gaussian mechanism with noise
multiplier sigma, and the run is ``plan.events()``. Steps lost to a crash are run again with fresh noise; what they held was
never written, so nothing is spent twice.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import EDMDPMSolverMultistepScheduler
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed
from torch import Tensor
from torch.nn import Parameter

from busgen_core.digests import canonical_json, sha256_bytes
from busgen_core.errors import InputError, WatchdogError
from busgen_core.files import write_whole
from busgen_core.foundation import Foundation
from busgen_core.generator import Generator
from busgen_core.labels import NULL_INDEX
from busgen_privacy.cohort import Cohort
from busgen_privacy.denoising import patient_losses, sigmas_at
from busgen_privacy.dp import checkpoints
from busgen_privacy.dp.noise import UNITS, NoiseSource, SecureGaussian, noised, poisson_sample
from busgen_privacy.dp.plan import DpSgdPlan
from busgen_privacy.dp.subsets import CLASS_TABLE, merged, trainable
from busgen_privacy.dp.watchdog import GAMMA, Watchdog, check_unwrapped

__all__ = ["DpSgdPlan", "adapt", "load_adapted", "trainable"]

EMA_DECAY = 0.98
SAVE_EVERY = 10  # steps between checkpoints
MOST_AT_ONCE = 8  # patients whose activations are in memory together

Patient = tuple[str, list[int]]  # key and rows


def contiguous(network: Generator) -> Generator:
    """A copy in float32, every parameter contiguous, in eval mode: Opacus and torch's CPU backward are wrong or crash with channels_last."""
    copy = deepcopy(network).float().eval()
    for parameter in copy.parameters():
        parameter.data = parameter.data.contiguous()
    return copy


def patient_gradient(
    network: Generator, scheduler: EDMDPMSolverMultistepScheduler, cohort: Cohort, rows: list[int], plan: DpSgdPlan, *, patient: str, step: int
) -> list[Tensor]:
    """Gradient of one patient's mean denoising loss by every trained parameter, from one backward pass.

    All randomness is seeded by (patient key, step): another patient's presence cannot change it. It is not secret.
    """
    seed = hashlib.sha256(f"{step}/{patient}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(seed[:16], "big"))
    rows = drawn(cohort, rows, rng, most=plan.max_images_per_patient)
    repeated = [row for row in rows for _ in range(plan.draws)]
    noise = torch.from_numpy(rng.standard_normal((len(repeated), network.fold**2, network.side, network.side), dtype=np.float32))
    sigmas = sigmas_at(rng.random(len(repeated)))
    loss = patient_losses([network], scheduler, cohort, repeated, noise=noise, sigmas=sigmas)[0].mean()
    return list(torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad]))


def drawn(cohort: Cohort, rows: list[int], rng: np.random.Generator, *, most: int) -> list[int]:
    """At most ``most`` rows of a patient: one of each view, since copies of one view are no more to learn from than one of them."""
    views = cohort.views(rows)
    if len(views) > most:
        views = [views[place] for place in sorted(rng.choice(len(views), size=most, replace=False).tolist())]
    return [view[int(rng.integers(len(view)))] if len(view) > 1 else view[0] for view in views]


def gradients_of(
    network: Generator, scheduler: EDMDPMSolverMultistepScheduler, cohort: Cohort, patients: Iterable[Patient], plan: DpSgdPlan, *, step: int
) -> list[list[Tensor]]:
    """:func:`patient_gradient` of each patient, in their order; on CPU as many at once as torch has threads, at most 8.

    Guarantees: on CPU each is computed by one thread, so the number of threads changes no bit of it. One patient's images are too few
    to keep several threads busy: two cores take about half the time so (``bench/dp_step.py``).
    """

    def take(patient: Patient) -> list[Tensor]:
        return patient_gradient(network, scheduler, cohort, patient[1], plan, patient=patient[0], step=step)

    threads, on_cpu = torch.get_num_threads(), next(network.parameters()).device.type == "cpu"
    torch.set_num_threads(1)  # counts for threads that begin from here on
    try:
        with ThreadPoolExecutor(min(threads, MOST_AT_ONCE) if on_cpu else 1) as pool:
            return list(pool.map(take, patients))
    finally:
        torch.set_num_threads(threads)


class PatientOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus has no type hints
    """Opacus's optimizer with patients as samples, normalisation before the cut, and discrete noise on a grid.

    Guarantees: whatever ``grad_sample`` holds, each patient's share is a whole number of grid steps C 2^-30 in every coordinate, of
    L2 norm at most C, exactly: Opacus cuts its norm in float64 a millionth below C, rounding goes towards zero, and what came out is
    measured again. Shares are summed as whole numbers, so their order, and who else is there, changes nothing; noise is added by
    ``noise.noised``. A share is made parameter by parameter: each fits into a processor's cache, a whole gradient does not.
    """

    def __init__(self, parameters: Mapping[str, Parameter], plan: DpSgdPlan, watchdog: Watchdog, source: NoiseSource) -> None:
        super().__init__(
            torch.optim.Adam(list(parameters.values()), lr=plan.learning_rate),
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.clip_norm,
            expected_batch_size=plan.expected_patients,
            loss_reduction="mean",
        )
        self.plan, self.watchdog, self.source = plan, watchdog, source
        # Opacus's cut sees one patient at a time, as its norm in grid steps: a vector is cut by the factor by which its norm is.
        stand_in = torch.optim.SGD([Parameter(torch.zeros(1, dtype=torch.float64))])
        self.cut = DPOptimizer(stand_in, noise_multiplier=0.0, max_grad_norm=UNITS * (1 - 1e-6), expected_batch_size=None, loss_reduction="sum")
        self.table = parameters[CLASS_TABLE]
        largest = max(parameters.values(), key=Parameter.numel)
        self.scratch = torch.empty_like(largest).detach().flatten(), torch.empty_like(largest).detach().flatten()
        self.attach_step_hook(PatientOptimizer.watch)

    def step_patients(self, gradients: list[list[Tensor]], source: NoiseSource) -> None:
        """One noised step; ``gradients`` holds a list of tensors for each sampled patient, and may be empty."""
        self.source = source
        self.take(gradients)
        self.step()

    def take(self, gradients: list[list[Tensor]]) -> None:
        """Forget the step before and hold these gradients, one list of tensors for each patient."""
        self.zero_grad(set_to_none=True)
        for place, parameter in enumerate(self.params):
            stacked = [patient[place] for patient in gradients]
            parameter.grad_sample = torch.stack(stacked) if stacked else parameter.new_zeros((0, *parameter.shape))

    def clip_and_accumulate(self) -> None:
        """Sum the patients' shares; leaves ``summed_grad``, float64, in gradient units."""
        patients: list[tuple[Tensor, ...]] = list(zip(*(p.grad_sample for p in self.params), strict=True))
        norms = [self.patient_norm(gradient) for gradient in patients]
        self.watchdog.gradients(torch.tensor(norms, dtype=torch.float64))
        for parameter in self.params:
            _check_processed_flag(parameter.grad_sample)
        sums = [torch.zeros_like(p, dtype=torch.float64) for p in self.params]
        for gradient, norm in zip(patients, norms, strict=True):
            self.add_share(sums, gradient, norm)  # whole numbers below 2^53: exact in any order
        for parameter, part in zip(self.params, sums, strict=True):
            part.mul_(self.max_grad_norm / UNITS)
            parameter.summed_grad = part if parameter.summed_grad is None else parameter.summed_grad + part
            _mark_as_processed(parameter.grad_sample)

    def add_share(self, sums: list[Tensor], gradient: tuple[Tensor, ...], norm: float) -> None:
        """Add one patient's share to ``sums``, in grid steps of C 2^-30: whole float64 numbers, L2 norm at most 2^30.

        Normalised first (auto-s), then cut by Opacus whatever came before, then rounded towards zero.

        Raises:
            WatchdogError: the share is not finite or longer than C; ``sums`` must not be used.
        """
        scale = (1 / (norm + GAMMA) if self.plan.clipping == "auto-s" else 1 / self.max_grad_norm) * UNITS
        factor, norms = scale * self.cut_factor(scale * norm), []
        for total, part in zip(sums, gradient, strict=True):
            scaled, rest = (room[: part.numel()].view_as(part) for room in self.scratch)
            torch.mul(part, factor, out=scaled)  # in float32: at most 2^-24 longer
            whole = scaled.sub_(torch.frac(scaled, out=rest))  # exact; torch's own trunc takes four times as long
            norms.append(torch.linalg.vector_norm(whole, dtype=torch.float64))
            total.add_(whole)
        if not float(torch.linalg.vector_norm(torch.stack(norms))) <= UNITS:  # NaN too
            raise WatchdogError("a patient's share of the sum is not finite or above the bound; the run stopped before it was used")

    def cut_factor(self, norm: float) -> float:
        """What a vector of this norm, in grid steps, is multiplied by so that it is at most C long; Opacus's rule."""
        (stand_in,) = self.cut.params
        stand_in.grad_sample, stand_in.summed_grad = torch.tensor([[norm]], dtype=torch.float64), None
        self.cut.clip_and_accumulate()
        return float(stand_in.summed_grad) / norm if norm else 1.0

    def parts(self, flat: Tensor) -> list[Tensor]:
        """A flat tensor, cut into the shapes of the parameters."""
        return [part.view_as(p) for part, p in zip(flat.split([p.numel() for p in self.params]), self.params, strict=True)]

    def patient_norm(self, gradient: tuple[Tensor, ...]) -> float:
        """L2 norm of one patient's whole gradient, in float64."""
        each = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in gradient]
        return float(torch.linalg.vector_norm(torch.stack(each)))

    def add_noise(self) -> None:
        """Add discrete noise of standard deviation sigma C to the clipped sum, as whole numbers on its grid."""
        for parameter in self.params:
            _check_processed_flag(parameter.summed_grad)
        flat = torch.cat([p.summed_grad.flatten() for p in self.params])
        loud = noised(flat.cpu().numpy(), bound=self.max_grad_norm, noise_multiplier=self.noise_multiplier, source=self.source)
        for parameter, part in zip(self.params, self.parts(torch.from_numpy(loud)), strict=True):
            parameter.grad = part.to(parameter.device, parameter.dtype)
            _mark_as_processed(parameter.summed_grad)

    def watch(self) -> None:
        """Measure the noise from the gradient that Adam is about to use; then hold the null label still (post-processing)."""
        noise = [(p.grad.double() * self.plan.expected_patients - p.summed_grad.double()).flatten() for p in self.params]
        self.watchdog.noise(torch.cat(noise))
        assert self.table.grad is not None
        self.table.grad[NULL_INDEX] = 0


def adapt(
    foundation: Foundation,
    cohort: Cohort,
    plan: DpSgdPlan,
    *,
    checkpoint: Path,
    progress: Callable[[int, int], None],
    source: NoiseSource | None = None,
) -> None:
    """Adapt the foundation; writes ``checkpoint/adapted.safetensors`` and ``checkpoint/watchdog.json``. Resumable.

    Guarantees: the tensors written, all of them, are (epsilon, delta)-DP for one patient added or removed, with the epsilon of
    ``plan.events()``. ``watchdog.json`` and the checkpoint are exact and stay in the hospital. The network runs in eval mode
    (it has no dropout or batch statistics, so no patient's gradient depends on another's), float32, contiguous.

    Args:
        foundation: Network and schedule; left unchanged.
        cohort: Members only.
        plan: The promise.
        checkpoint: Folder of this run alone; a killed run goes on from its last multiple of 10 steps.
        progress: Called with (steps done, steps).
        source: Randomness; None is the operating system's. Seeded sources are for tests: the result is marked.

    Raises:
        ConfigError: the plan's noise does not keep its epsilon.
        InputError: an empty cohort, or images of another size than the foundation's.
        CheckpointError: the folder holds a run of another plan, foundation or cohort.
        WatchdogError: a privacy invariant broke; nothing is written and the budget stays spent.
    """
    plan.check()
    source = source or SecureGaussian()
    side = foundation.network.image_px
    if not len(cohort) or cohort.images.shape[1] != side:
        raise InputError(f"the cohort is empty, or its images are not {side} px as the foundation's")
    run = identity(foundation, cohort, plan.digest(), source)
    target = checkpoint / checkpoints.ADAPTED
    if target.exists():
        checkpoints.check_run(target, run)
        progress(plan.steps, plan.steps)
        return
    check_unwrapped(foundation.network)
    network = contiguous(foundation.network)
    parameters = trainable(network, plan.subset, rank=plan.rank)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    average = {name: p.detach().clone() for name, p in parameters.items()}
    patients = list(cohort.patient_rows().items())
    watchdog = Watchdog(plan=plan, patients=len(patients))
    optimizer = PatientOptimizer(parameters, plan, watchdog, source)
    done = checkpoints.resume(checkpoint, run, parameters, average, optimizer.original_optimizer, watchdog)
    for step in range(done, plan.steps):
        stream = source.at_step(step)
        chosen = poisson_sample(len(patients), plan.patient_rate, stream)
        watchdog.sampled(chosen)
        gradients = gradients_of(network, foundation.scheduler, cohort, (patients[i] for i in chosen), plan, step=step)
        optimizer.step_patients(gradients, stream)
        _average(average, parameters, step)
        if (step + 1) % SAVE_EVERY == 0 and step + 1 < plan.steps:
            checkpoints.save(checkpoint, run, parameters, average, optimizer.original_optimizer, watchdog)
        progress(step + 1, plan.steps)
    findings = watchdog.finish(before, average)
    write_whole(checkpoint / "watchdog.json", json.dumps(asdict(findings), indent=1).encode())
    checkpoints.save_adapted(target, run, merged(network, average), plan=plan, secure=source.secure)


def load_adapted(foundation: Foundation, file: Path, *, allow_seeded: bool = False) -> Generator:
    """The foundation's network with the adapted parameters in place, in eval mode; the foundation is left unchanged.

    Raises:
        CheckpointError: not a file of ``adapt``, tensors that do not fit, or seeded noise without ``allow_seeded`` (tests).
    """
    return checkpoints.load_adapted(foundation, file, allow_seeded=allow_seeded)


def _average(average: dict[str, Tensor], parameters: Mapping[str, Parameter], step: int) -> None:
    """Exponential mean of the weights, decay .98 after a short warm-up; post-processing of noised steps."""
    decay = min(EMA_DECAY, (1 + step) / (10 + step))
    for name, parameter in parameters.items():
        average[name].lerp_(parameter.detach(), 1 - decay)


def identity(foundation: Foundation, cohort: Cohort, plan_digest: str, source: NoiseSource) -> str:
    """What a run's files are bound to: plan, foundation, the very cohort, and the kind of noise. Never leaves the hospital."""
    content = hashlib.sha256(np.ascontiguousarray(cohort.images).tobytes())
    content.update(canonical_json([cohort.patients, [c.value for c in cohort.classes], cohort.boxes]))
    facts: dict[str, Any] = {"plan": plan_digest, "foundation": foundation.digest, "cohort": content.hexdigest(), "secure": source.secure}
    return sha256_bytes(canonical_json(facts))
