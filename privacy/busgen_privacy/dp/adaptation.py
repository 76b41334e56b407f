"""All mechanisms of a plan, one after the other, and what came of them.

The folder of a run holds, once each is finished, ``vote.json`` (noised histogram), ``mean.json`` (noised class sums) and
``adapted.safetensors`` (DP-SGD); beside them the exact checkpoint and findings of the watchdog, which stay in the hospital.

Guarantees: the three are (epsilon, delta)-DP together, for one patient added or removed, with the epsilon of ``plan.events()``. A
mechanism that was killed before its file was whole is run again with fresh noise; what it held was never written.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from busgen_core.digests import canonical_json
from busgen_core.errors import CheckpointError, InputError
from busgen_core.files import write_whole
from busgen_core.foundation import Foundation
from busgen_core.generator import Generator
from busgen_core.styles import PLAIN, STYLES
from busgen_privacy.cohort import Cohort
from busgen_privacy.dp.checkpoints import ADAPTED
from busgen_privacy.dp.dpsgd import adapt, identity, load_adapted
from busgen_privacy.dp.means import ClassMeans, class_sums, from_sums
from busgen_privacy.dp.noise import NoiseSource, SecureGaussian
from busgen_privacy.dp.plan import AdaptationPlan
from busgen_privacy.dp.reference import Reference
from busgen_privacy.dp.votes import mixture, vote

VOTE, MEAN = "vote.json", "mean.json"
VOTE_STREAM, MEAN_STREAM = 1_000_000, 1_000_001  # steps of a seeded source that no DP-SGD run reaches

Progress = Callable[[int, int], None]


class Figures(Protocol):
    """A mechanism of one Gaussian event: noised figures of a cohort."""

    def __call__(self, reference: Reference, cohort: Cohort, *, noise_multiplier: float, source: NoiseSource) -> NDArray[np.float64]:
        """See ``votes.vote`` and ``means.class_sums``."""
        ...


Vectors = NDArray[np.float64]


@dataclass(frozen=True)
class Adapted:
    """What the mechanisms of a plan left: everything in it is differentially private.

    Attributes:
        network: The generator to draw from; the foundation's where the plan has no DP-SGD.
        styles: Shares of the styles, float64 [styles]; equal where there are means but no vote, all of the plain one where there is neither.
        means: Noised class means, or None.
    """

    network: Generator
    styles: Vectors
    means: ClassMeans | None


def run(
    foundation: Foundation,
    cohort: Cohort,
    plan: AdaptationPlan,
    *,
    folder: Path,
    reference: Callable[[], Reference],
    progress: Progress,
    source: NoiseSource | None = None,
) -> None:
    """Run what has not been run yet; resumable after a kill at any moment.

    Args:
        foundation: Left unchanged.
        cohort: Members only.
        plan: The promise.
        folder: Of this run alone.
        reference: Gives the foundation's reference; asked only where a mechanism needs it.
        progress: Called with (parts done, parts); DP-SGD counts its steps, every other mechanism as one.
        source: Randomness; None is the operating system's. Seeded sources are for tests: the result is marked.

    Raises:
        ConfigError: the plan's noise does not keep its epsilon.
        InputError: an empty cohort, or images of another size than the foundation's.
        CheckpointError: the folder holds a run of another plan, foundation or cohort.
        WatchdogError: a privacy invariant broke; the budget stays spent.
    """
    plan.check()
    source = source or SecureGaussian()
    if not len(cohort) or cohort.images.shape[1] != foundation.image_px:
        raise InputError(f"the cohort is empty, or its images are not {foundation.image_px} px as the foundation's")
    run_id = identity(foundation, cohort, plan.digest(), source)
    steps = plan.dpsgd.steps if plan.dpsgd else 0
    parts = len(plan.mechanisms()) - bool(plan.dpsgd) + steps
    done = 0
    single = ((VOTE, vote, plan.vote_noise, VOTE_STREAM), (MEAN, class_sums, plan.mean_noise, MEAN_STREAM))
    for name, mechanism, noise, stream in single:
        if noise is not None:
            _once(folder / name, run_id, source, partial(_figures, mechanism, reference, cohort, noise, source.at_step(stream)))
            progress(done := done + 1, parts)
    if plan.dpsgd:
        adapt(foundation, cohort, plan.dpsgd, checkpoint=folder, progress=lambda step, _: progress(done + step, parts), source=source)


def _figures(mechanism: Figures, reference: Callable[[], Reference], cohort: Cohort, noise: float, source: NoiseSource) -> Vectors:
    return mechanism(reference(), cohort, noise_multiplier=noise, source=source)


def _once(file: Path, run_id: str, source: NoiseSource, figures: Callable[[], Vectors]) -> None:
    """Write a mechanism's noised figures, unless they are there; then they must be this run's."""
    if file.exists():
        if _read(file)["run"] != run_id:
            raise CheckpointError(f"{file.name} belongs to another plan, foundation or cohort; move its folder away")
        return
    write_whole(file, canonical_json({"run": run_id, "noise": "secure" if source.secure else "seeded", "figures": figures().tolist()}))


def _read(file: Path, *, allow_seeded: bool = True) -> dict[str, object]:
    try:
        found = json.loads(file.read_bytes())
        if not np.isfinite(np.asarray(found["figures"], np.float64)).all() or not {"run", "noise"} <= found.keys():
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file.name} is missing or damaged ({type(error).__name__})") from None
    if found["noise"] != "secure" and not allow_seeded:
        raise CheckpointError(f"{file.name} was not made with secure noise; it cannot make a release")
    return dict(found)


def load(foundation: Foundation, plan: AdaptationPlan, folder: Path, *, allow_seeded: bool = False) -> Adapted:
    """What a finished run left.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit, or seeded noise without ``allow_seeded`` (tests).
    """

    def figures(name: str, shape: tuple[int, ...]) -> Vectors:
        found = np.asarray(_read(folder / name, allow_seeded=allow_seeded)["figures"], np.float64)
        if found.shape[: len(shape)] != shape:
            raise CheckpointError(f"{name} does not fit this version")
        return found

    styles, means = (np.eye(len(STYLES))[PLAIN] if plan.mean_noise is None else np.full(len(STYLES), 1 / len(STYLES))), None
    if plan.vote_noise is not None:
        styles = mixture(figures(VOTE, (len(STYLES),)), noise_multiplier=plan.vote_noise)
    if plan.mean_noise is not None:
        means = from_sums(figures(MEAN, (3,)), noise_multiplier=plan.mean_noise)
    network = load_adapted(foundation, folder / ADAPTED, allow_seeded=allow_seeded) if plan.dpsgd else foundation.network
    return Adapted(network, styles, means)
