"""The watchdog: every planted bug stops the run through the real code path, and sound runs pass."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from opacus import GradSampleModule

from busgen_core.errors import InputError, WatchdogError
from busgen_privacy.dp import dpsgd
from busgen_privacy.dp.dpsgd import PatientOptimizer, adapt, patient_gradient
from busgen_privacy.dp.noise import NoiseSource, SeededGaussian
from busgen_privacy.dp.watchdog import check_energy, check_poisson, check_unwrapped
from tests.privacy.rehearsal import BUGS, rehearse
from tests.privacy.small import cohort, small_foundation, small_plan

MEMBERS = cohort([1] * 12)


class Planted(SeededGaussian):
    """A source with one bug: noise scaled, the same noise every step, or batches of fixed size or doubled rate."""

    def __init__(self, *, scale: float = 1.0, frozen: bool = False, batches: str = "poisson", step: int = 0) -> None:
        super().__init__(1, step)
        self._bug = (scale, frozen, batches)

    def integers(self, count: int, *, scale: float) -> NDArray[np.int64]:
        return np.rint(super().integers(count, scale=scale) * self._bug[0]).astype(np.int64)

    def uniform(self, count: int) -> NDArray[np.uint64]:
        numbers = super().uniform(count)
        if self._bug[2] == "fixed":
            return np.asarray(numbers.argsort().argsort().astype(np.uint64) * np.uint64(2**63 // count))  # exactly q x count lie below q
        return numbers // np.uint64(2) if self._bug[2] == "doubled" else numbers

    def at_step(self, step: int) -> "Planted":
        scale, frozen, batches = self._bug
        return Planted(scale=scale, frozen=frozen, batches=batches, step=0 if frozen else step + 1)


def run(tmp_path: Path, source: NoiseSource | None = None, **changes: object) -> None:
    adapt(small_foundation(), MEMBERS, small_plan(**changes), checkpoint=tmp_path, progress=lambda done, steps: None, source=source)


def test_a_sound_run_passes(tmp_path: Path) -> None:
    """The source that the bugs are planted in, without a bug, runs to its end."""
    run(tmp_path, Planted(), steps=25)
    assert (tmp_path / "adapted.safetensors").exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Planted(scale=0.0), "noise of one step is .*e-0"),
        (Planted(scale=0.78), "noise of one step is 0.7"),
        (Planted(scale=1.25), "noise of one step is 1.2"),
        (Planted(scale=0.93), "noise of the run is 0.9"),
        (Planted(frozen=True), "correlated"),
        (Planted(batches="fixed"), "never vary"),
        (Planted(batches="doubled"), "of patients were sampled"),
    ],
    ids=["no noise", "too quiet", "too loud", "a little too quiet", "same noise twice", "fixed batches", "rate doubled"],
)
def test_planted_randomness_stops_the_run(tmp_path: Path, source: NoiseSource, words: str) -> None:
    """Wrong noise or wrong sampling ends in WatchdogError, and nothing is written that could be released."""
    with pytest.raises(WatchdogError, match=words):
        run(tmp_path, source, steps=40, patient_rate=0.5)
    assert not (tmp_path / "adapted.safetensors").exists()


def test_noise_divided_by_the_wrong_number_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is not divided by the public constant is caught: what is measured is the gradient that Adam uses."""
    monkeypatch.setattr(PatientOptimizer, "scale_grad", lambda self: None)
    with pytest.raises(WatchdogError, match="noise of one step"):
        run(tmp_path)


def test_a_sampler_that_shuffles_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Going through the patients in turn gives everybody equal shares; that is not Poisson sampling."""
    turns = iter(np.array_split(np.tile(np.arange(12), 10), 40))
    monkeypatch.setattr(dpsgd, "poisson_sample", lambda count, rate, source: next(turns))
    with pytest.raises(WatchdogError, match="never vary"):
        run(tmp_path, patient_rate=0.25, steps=40)


def test_not_a_number_stops_the_run(tmp_path: Path) -> None:
    """A gradient that is not finite stops the run before it is used."""
    foundation = small_foundation()
    foundation.network.unet.conv_in.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(WatchdogError, match="not finite"):
        adapt(foundation, MEMBERS, small_plan(), checkpoint=tmp_path, progress=lambda done, steps: None)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_in_one_gradient_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    """A single number of a single patient's gradient, after ten sound steps: the run stops, and nothing of that step is written."""

    def spoiled(*args: Any, patient: str, step: int) -> list[torch.Tensor]:
        gradient = patient_gradient(*args, patient=patient, step=step)
        if step >= 10 and patient == "m003":
            gradient[-1].view(-1)[0] = wrong
        return gradient

    monkeypatch.setattr(dpsgd, "patient_gradient", spoiled)
    with pytest.raises(WatchdogError, match="not finite"):
        run(tmp_path, SeededGaussian(1), steps=25)
    assert {file.name for file in tmp_path.iterdir()} == {"state.safetensors"}  # of step 10


def test_an_image_that_is_not_a_number_is_refused() -> None:
    """Images of a cohort are whole numbers: one with NaN in it is no cohort."""
    images = MEMBERS.images.astype(np.float32)
    images[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="float32"):
        replace(MEMBERS, images=images)  # type: ignore[arg-type]


def test_weights_that_stand_still_stop_the_run(tmp_path: Path) -> None:
    """A step size too small to move float32 weights is an error, not a silent copy of the foundation."""
    with pytest.raises(WatchdogError, match="did not move"):
        run(tmp_path, learning_rate=1e-30)


def test_a_wrapped_network_is_refused(tmp_path: Path) -> None:
    """A network that Opacus already hooked would be counted twice."""
    foundation = small_foundation()
    GradSampleModule(foundation.network, strict=False)
    with pytest.raises(WatchdogError, match="wrapped"):
        adapt(foundation, MEMBERS, small_plan(), checkpoint=tmp_path, progress=lambda done, steps: None)


@pytest.mark.parametrize("how", ["forward hook", "backward hook", "gradients of samples"])
def test_what_a_wrapper_leaves_on_a_part_is_refused(how: str) -> None:
    """One hook on one layer, or one tensor with per-sample gradients, is enough; the plain network passes, also after a run."""
    network = small_foundation().network
    check_unwrapped(network)
    layer = network.unet.conv_in
    if how == "forward hook":
        layer.register_forward_hook(lambda module, inputs, output: None)
    elif how == "backward hook":
        layer.register_full_backward_hook(lambda module, before, after: None)
    else:
        layer.weight.grad_sample = torch.zeros(1)
    with pytest.raises(WatchdogError, match="wrapped"):
        check_unwrapped(network)


@pytest.mark.parametrize("subset", ["bias-norm", "lora"])
def test_a_run_leaves_the_foundation_unwrapped(tmp_path: Path, subset: str) -> None:
    """Adapting one foundation twice wraps nothing twice: no adapter, hook or per-sample gradient stays behind."""
    foundation = small_foundation()
    names = [name for name, _ in foundation.network.named_parameters()]
    for name in ("first", "second"):
        adapt(foundation, MEMBERS, small_plan(steps=2, subset=subset), checkpoint=tmp_path / name, progress=lambda done, steps: None)
        check_unwrapped(foundation.network)
        assert [name for name, _ in foundation.network.named_parameters()] == names


@pytest.mark.parametrize(
    ("clip_norm", "clipping", "words"),
    [(1e6, "flat", "no patient"), (1e-9, "flat", "every patient")],
    ids=["never", "always"],
)
def test_clipping_that_binds_never_or_always_stops_the_run(tmp_path: Path, clip_norm: float, clipping: str, words: str) -> None:
    """Over more than 20 steps it is an error; a shorter run says so in its findings."""
    with pytest.raises(WatchdogError, match=words):
        run(tmp_path / "long", steps=25, clip_norm=clip_norm, clipping=clipping)
    run(tmp_path / "short", steps=5, clip_norm=clip_norm, clipping=clipping)
    assert words in (tmp_path / "short" / "watchdog.json").read_text()


# What the watchdog says of the bugs that a rehearsal catches; clipping it cannot see from inside: it measures norms before the cut.
SEEN = {
    "sigma halved": "noise of one step is 0.5",
    "no clipping": None,
    "clipping per image": None,
    "shuffling": "never vary",
    "batches of one size": "never vary",
    "private denominator": "noise of one step",
    "noise once per accumulation": "noise of one step",
    "noise used twice": "correlated",
}


@pytest.mark.parametrize("name", BUGS)
def test_which_planted_bugs_the_watchdog_stops_alone(tmp_path: Path, name: str) -> None:
    """Six of the rehearsal's eight bugs stop a run by themselves; the two of clipping only a rehearsal catches."""
    if SEEN[name] is None:
        rehearse(tmp_path, seed=1, canaries=48, bug=BUGS[name], watchdog=True)
        assert (tmp_path / "adapted.safetensors").exists()
        return
    with pytest.raises(WatchdogError, match=SEEN[name]):
        rehearse(tmp_path, seed=1, canaries=48, bug=BUGS[name], watchdog=True)
    assert not (tmp_path / "adapted.safetensors").exists()


def test_sampling_that_goes_wrong_across_a_restart_stops_the_run(tmp_path: Path) -> None:
    """The checkpoint carries who was sampled: equal batches are caught though 10 steps before a kill, and 10 after it, are each too few to tell."""

    def stop(done: int, steps: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    source = Planted(batches="fixed")
    check_poisson(np.full(12, 4), np.full(10, 5), rate=0.4)
    with pytest.raises(KeyboardInterrupt):
        adapt(small_foundation(), MEMBERS, small_plan(steps=25), checkpoint=tmp_path, progress=stop, source=source)
    with pytest.raises(WatchdogError, match="never vary"):
        run(tmp_path, source, steps=25)


def test_gradients_that_normalisation_cannot_see_stop_the_run(tmp_path: Path) -> None:
    """Under auto-s, gradients all far below its stabiliser mean that nothing is learned."""
    foundation = small_foundation()
    foundation.network.unet.conv_out.weight.data *= 1e-6
    with pytest.raises(WatchdogError, match="no patient"):
        adapt(foundation, MEMBERS, small_plan(steps=25, subset="class-embedding"), checkpoint=tmp_path, progress=lambda done, steps: None)


@pytest.mark.parametrize(("people", "steps", "rate"), [(5, 30, 0.25), (60, 200, 0.25), (300, 100, 0.05), (40, 150, 0.9), (500, 20, 1.0)])
def test_sound_sampling_is_never_blamed(people: int, steps: int, rate: float) -> None:
    """200 sound runs of each size pass at every step, though the bounds would stop a fixed or shuffled order."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        drawn = rng.random((steps, people)) < rate
        check_poisson(drawn.sum(0), drawn.sum(1), rate=rate)


def test_shuffled_epochs_with_uneven_batches_are_caught() -> None:
    """Even when batch sizes vary like a binomial's, patients who take turns vary too little."""
    rng = np.random.default_rng(0)
    sizes = rng.binomial(200, 0.25, size=100)
    order = np.concatenate([rng.permutation(200) for _ in range(40)])[: sizes.sum()]
    with pytest.raises(WatchdogError, match="patients' turns"):
        check_poisson(np.bincount(order, minlength=200), sizes, rate=0.25)


def test_energy_bounds_hold_both_ways() -> None:
    """Chi-square at its mean passes; 10 % off in scale over 10,000 numbers does not."""
    check_energy(10_000, 10_000, what="a step")
    for scale in (0.9, 1.1):
        with pytest.raises(WatchdogError):
            check_energy(10_000 * scale**2, 10_000, what="a step")
