"""Checks, while an adaptation runs, that the mechanism is the one that was accounted for.

Every bound is exact or conservative for correct code: a sound run fails with chance about 1e-9 a check. What is compared is
measured from the outside (noise = noised gradient - clipped sum; samples = who was chosen), not asked of the code that made it.
"""

from dataclasses import dataclass, field
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom, chi2, norm
from torch import Tensor, nn

from busgen_core.errors import WatchdogError
from busgen_privacy.dp.plan import DpSgdPlan

FALSE_ALARM = 1e-9  # chance, for each check and side, that correct code fails it
DISPERSION_ALARM = 1e-12  # the same for a chi-square that is only approximate
MANY_STEPS, MANY_TERMS = 20, 100  # steps before clipping is judged; terms before a chi-square approximation is
GAMMA = 1e-3  # stabiliser of auto-s: gradients below it are damped. Patient gradients of the shipped network are .002 to .2


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What the watchdog measured over a run. Exact figures of private data: they stay in the hospital.

    Attributes:
        steps: Steps watched.
        sampled_share: Patients sampled / (patients x steps); the plan's patient_rate in expectation.
        bound_share: Share of patient gradients that the bound shaped.
        noise_ratio: Noise measured / noise promised, 1 in expectation.
        moved: L2 distance of the trained numbers from the foundation's.
        warnings: What a person should look at; nothing here breaks the guarantee.
    """

    steps: int
    sampled_share: float
    bound_share: float
    noise_ratio: float
    moved: float
    warnings: tuple[str, ...]


@dataclass(kw_only=True)
class Watchdog:
    """Sums over the steps of one run, and the checks on them."""

    plan: DpSgdPlan
    patients: int
    chosen: NDArray[np.int64] = field(init=False)  # how often each patient was sampled
    sizes: list[int] = field(default_factory=list)  # patients in each step
    bound: int = 0
    energy: float = 0.0  # squared noise in units of its promised variance
    numbers: int = 0  # noise numbers summed in ``energy``
    _last: Tensor | None = None

    def __post_init__(self) -> None:
        self.chosen = np.zeros(self.patients, np.int64)

    def sampled(self, rows: NDArray[np.int64]) -> None:
        """Note who entered a step; raise when that cannot be Poisson sampling with the plan's rate."""
        self.chosen[rows] += 1
        self.sizes.append(len(rows))
        check_poisson(self.chosen, np.asarray(self.sizes), rate=self.plan.patient_rate)

    def gradients(self, norms: Tensor) -> None:
        """Note the norms of a step's patient gradients before clipping.

        Raises:
            WatchdogError: a norm is not finite, or over more than 20 steps the bound shaped none, or (flat) all, of them.
        """
        if not bool(torch.isfinite(norms).all()):
            raise WatchdogError("a patient's gradient is not finite; the run stopped before it was used")
        auto = self.plan.clipping == "auto-s"
        self.bound += int((norms > (GAMMA if auto else self.plan.clip_norm)).sum())
        if len(self.sizes) > MANY_STEPS and (warning := self._clipping_warning()):
            raise WatchdogError(f"{warning} over {len(self.sizes)} steps; the clip norm does not fit the gradients")

    def noise(self, noise: Tensor) -> None:
        """Note the noise that a step's summed gradient received, float [d], in gradient units.

        Raises:
            WatchdogError: it is louder or quieter than promised, or repeats the step before.
        """
        scaled = noise.double().cpu() / (self.plan.noise_multiplier * self.plan.clip_norm)
        energy, count = float(scaled.square().sum()), scaled.numel()
        check_energy(energy, count, what="one step")
        self.energy, self.numbers = self.energy + energy, self.numbers + count
        check_energy(self.energy, self.numbers, what="the run")
        if self._last is not None:
            # Given the last noise, the product is normal with variance |last|^2.
            product = abs(float(scaled @ self._last)) / float(self._last.norm())
            if product > norm.isf(FALSE_ALARM):
                raise WatchdogError("the noise of a step is correlated with that of the step before; noise must be fresh")
        self._last = scaled

    def finish(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> Findings:
        """Findings of the whole run; raise when a trained tensor did not move or is not finite."""
        for name, tensor in after.items():
            if not bool(torch.isfinite(tensor).all()):
                raise WatchdogError(f"{name} is not finite after the run")
            if torch.equal(tensor, before[name]):
                raise WatchdogError(f"{name} did not move; the adapted network would be the foundation")
        moved = sqrt(sum(float((after[name] - before[name]).double().square().sum()) for name in after))
        total = sum(self.sizes)
        warning = self._clipping_warning()
        return Findings(
            steps=len(self.sizes),
            sampled_share=total / (self.patients * len(self.sizes)),
            bound_share=self.bound / max(total, 1),
            noise_ratio=sqrt(self.energy / self.numbers),
            moved=moved,
            warnings=(warning,) if warning else (),
        )

    def _clipping_warning(self) -> str:
        total = sum(self.sizes)
        if total and self.bound == 0:
            return "clipping bound no patient's gradient"
        if self.bound == total and total and self.plan.clipping == "flat":
            return "clipping bound every patient's gradient"
        return ""


def check_unwrapped(network: nn.Module) -> None:
    """Raise when hooks of a wrapper (Opacus's GradSampleModule) would write per-sample gradients beside ours."""
    wrapped = any(hasattr(module, "autograd_grad_sample_hooks") or module._forward_hooks or module._backward_hooks for module in network.modules())
    if wrapped or any(hasattr(p, "grad_sample") for p in network.parameters()):
        raise WatchdogError("the network is wrapped or hooked already; give the plain foundation")


def check_energy(energy: float, count: int, *, what: str) -> None:
    """Raise unless ``energy`` is a likely sum of ``count`` squared standard normals: chi-square(count)."""
    low, high = chi2.ppf(FALSE_ALARM, count), chi2.isf(FALSE_ALARM, count)
    if not low <= energy <= high:
        raise WatchdogError(f"noise of {what} is {sqrt(max(energy, 0) / count):.4g} times what was promised, over {count} numbers")


def check_poisson(chosen: NDArray[np.int64], sizes: NDArray[np.int64], *, rate: float) -> None:
    """Raise unless who was sampled is plausible for independent draws with chance ``rate``.

    Args:
        chosen: How often each patient was sampled, int [patients].
        sizes: Patients in each step, int [steps].
        rate: Chance that a given patient enters a step.
    """
    patients, steps, total = len(chosen), len(sizes), int(sizes.sum())
    tries = patients * steps
    if binom.cdf(total, tries, rate) < FALSE_ALARM or binom.sf(total - 1, tries, rate) < FALSE_ALARM:
        raise WatchdogError(f"{total / tries:.4f} of patients were sampled over {steps} steps, {rate:g} was promised")
    if rate == 1:
        return
    # Shuffling or fixed batches: sizes, or turns of each patient, vary less than independent draws do.
    for counts, size, what in ((sizes, patients, "step sizes"), (chosen, steps, "patients' turns")):
        equal = float((binom.pmf(np.arange(size + 1), size, rate) ** len(counts)).sum())  # chance that all counts are equal
        if np.ptp(counts) == 0 and equal < FALSE_ALARM:
            raise WatchdogError(f"{what} never vary; sampling is not Poisson")
        spread = size * rate * (1 - rate)
        if len(counts) >= MANY_TERMS and spread >= 3:
            dispersion = float(((counts - size * rate) ** 2).sum() / spread)
            if not chi2.ppf(DISPERSION_ALARM, len(counts)) < dispersion < 1.5 * chi2.isf(DISPERSION_ALARM, len(counts)):
                raise WatchdogError(f"{what} vary {dispersion / len(counts):.3g} times as much as Poisson sampling's; it is not Poisson")
