"""Shadow networks for the reference-model attack: the foundation, adapted as the attacked network was, to patients who are on neither side of it.

They come from the holdout: half of its patients, drawn at random, teach the shadows and are not attacked by this attack, since they look like
non-members to a shadow whatever the adapted network knows; the other half stand against the members. All other attacks use the whole holdout.
Source: Zarifzadeh et al. 2024, arXiv:2312.03262, offline attack (``attacks.reference_model``); Carlini et al. 2022, arXiv:2112.03570 (shadows).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from busgen_core.errors import ConfigError, InputError
from busgen_core.foundation import Foundation
from busgen_core.generator import Generator
from busgen_privacy.cohort import Cohort
from busgen_privacy.dp.dpsgd import adapt, load_adapted
from busgen_privacy.dp.noise import NoiseSource
from busgen_privacy.dp.plan import DpSgdPlan


@dataclass(frozen=True, kw_only=True)
class Shadows:
    """Networks adapted to patients of nobody's side.

    Attributes:
        networks: At least one, of the adapted network's shape.
        patients: Holdout patients whom they were adapted to, and who are not attacked with them; none where they came from elsewhere.
    """

    networks: tuple[Generator, ...]
    patients: frozenset[str] = frozenset()


def set_aside(holdout: Cohort, *, seed: int) -> frozenset[str]:
    """Half of the holdout's patients, drawn at random, to teach shadows; the smaller half of an odd number.

    Raises:
        InputError: fewer than four patients.
    """
    patients = list(holdout.patient_rows())
    if len(patients) < 4:
        raise InputError("shadow networks need four holdout patients: two to teach them, two to attack")
    return frozenset(np.random.default_rng(seed).permutation(patients)[: len(patients) // 2].tolist())


def train(
    foundation: Foundation,
    holdout: Cohort,
    plan: DpSgdPlan,
    *,
    count: int,
    folder: Path,
    seed: int,
    progress: Callable[[int, int], None],
    source: NoiseSource | None = None,
) -> Shadows:
    """Adapt ``count`` shadows by the very plan of the attacked network, its noise included; each costs what that DP-SGD run costs. Resumable.

    Args:
        foundation: Left unchanged.
        holdout: Of the audit; ``set_aside`` draws who teaches the shadows.
        plan: Of the attacked network.
        count: Shadows; the source shows most of the power with one to four.
        folder: Of these shadows alone. They stay in the hospital: nothing pays for what leaves of them.
        seed: Of the split of the holdout; the same after a kill.
        progress: Called with (steps done, steps of all shadows).
        source: Randomness of each; None is the operating system's. Seeded sources are for tests.

    Raises:
        ConfigError: no shadow is asked for.
        InputError: fewer than four holdout patients.
        CheckpointError: the folder holds a run of another plan, foundation or cohort.
    """
    if count < 1:
        raise ConfigError("the reference-model attack needs at least one shadow network")
    patients, networks = set_aside(holdout, seed=seed), []
    people = holdout.only(patients)
    for number in range(count):
        where = folder / str(number)
        where.mkdir(parents=True, exist_ok=True)
        adapt(foundation, people, plan, checkpoint=where, progress=partial(_overall, progress, number, count), source=source)
        networks.append(load_adapted(foundation, where / "adapted.safetensors", allow_seeded=source is not None))
    return Shadows(networks=tuple(networks), patients=patients)


def _overall(progress: Callable[[int, int], None], number: int, count: int, step: int, steps: int) -> None:
    progress(number * steps + step, count * steps)
