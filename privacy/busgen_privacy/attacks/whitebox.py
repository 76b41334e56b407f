"""The standard attacks on an adapted network, in one run.

No attack uses what another one asked the networks, so that each can be read, tested and priced alone. A patient's draws follow from the seed and the
patient's key, the same for every attack.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from busgen_core.errors import ConfigError
from busgen_privacy.attacks import clid, gradient, loss, pia, secmi, sima
from busgen_privacy.attacks.base import Access, MemberScores, WhiteBoxAttack
from busgen_privacy.cohort import Cohort

STANDARD: tuple[WhiteBoxAttack, ...] = (loss.ATTACK, secmi.ATTACK, pia.ATTACK, sima.ATTACK, gradient.ATTACK, clid.ATTACK)


def run_all(
    access: Access, members: Cohort, holdout: Cohort, *, draws: int, seed: int, progress: Callable[[int, int], None]
) -> Mapping[str, MemberScores]:
    """Scores of every standard attack by its name, in the order of ``STANDARD``.

    Args:
        access: What the attacker holds.
        members: Patients of the adaptation.
        holdout: Patients it never saw.
        draws: Noise draws, or levels, for each image and attack; at least 1.
        seed: Of the draws.
        progress: Called with (images attacked so far by all attacks, images times attacks).

    Raises:
        ConfigError: ``draws`` below 1.

    Guarantees: given the networks, a patient's scores depend on that patient's rows and key alone, never on who else is attacked.
    """
    if draws < 1:
        raise ConfigError(f"an attack needs at least one draw: {draws=}")
    found = {}
    for place, attack in enumerate(STANDARD):
        share = partial(_overall, progress, place)
        found[attack.name] = attack.run(access, members, holdout, draws=draws, seed=seed, progress=share)
    return MappingProxyType(found)


def cost(draws: int) -> Mapping[str, float]:
    """Network passes of each attack for one image; a forward is 1, a backward 2.

    >>> dict(cost(4))
    {'loss': 8.0, 'secmi': 10.0, 'pia': 10.0, 'sima': 8.0, 'gradient': 24.0, 'clid': 16.0}
    """
    return MappingProxyType({attack.name: attack.passes(draws) for attack in STANDARD})


def _overall(progress: Callable[[int, int], None], place: int, done: int, total: int) -> None:
    """Report one attack's progress as part of all attacks'."""
    progress(place * total + done, len(STANDARD) * total)
