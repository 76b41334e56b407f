"""Claim: the noise that is added is as loud as the plan promises, measured on the gradient that Adam uses."""

import pytest
import torch
from scipy.stats import chi2

from busgen_privacy.dp.dpsgd import PatientOptimizer, trainable
from busgen_privacy.dp.noise import SecureGaussian
from busgen_privacy.dp.watchdog import Watchdog
from tests.privacy.small import small_foundation, small_plan


@pytest.mark.parametrize("clipping", ["auto-s", "flat"])
@pytest.mark.parametrize("present", [0, 3], ids=["empty step", "three patients"])
def test_noise_is_as_loud_as_promised(clipping: str, present: int) -> None:
    """Claim P-3: the summed gradient receives noise of standard deviation clip_norm x noise_multiplier, also when nobody was sampled.

    Its scaled squares sum to chi-square(n). Correct code fails once in a million runs; noise 5 % too quiet is caught.
    """
    network = small_foundation().network
    plan = small_plan(clip_norm=0.5, noise_multiplier=1.1, clipping=clipping, learning_rate=1e-8)
    parameters = trainable(network, plan.subset)
    watchdog = Watchdog(plan=plan, patients=3)
    optimizer = PatientOptimizer(parameters, plan, watchdog, SecureGaussian())
    seen: list[torch.Tensor] = []
    optimizer.attach_step_hook(lambda o: seen.append(torch.cat([(p.grad * 0.4 * 20 - p.summed_grad).flatten() for p in o.params])))
    gradients = [[torch.randn_like(p) * 5 for p in parameters.values()] for _ in range(present)]
    while sum(map(len, seen)) < 20_000:
        optimizer.step_patients(gradients, SecureGaussian())
    noise = torch.cat(seen) / 0.55  # 0.5 x 1.1
    energy, (low, high) = float(noise.double().square().sum()), chi2.interval(1 - 1e-6, df=len(noise))
    assert low < energy < high
    assert energy * 0.95**2 < low  # the test has teeth
