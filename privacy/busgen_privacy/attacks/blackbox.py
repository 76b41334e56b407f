"""The standard attacks on released images, all in one embedding, and what they cost."""

from collections.abc import Callable, Mapping, Sequence

from busgen_privacy.attacks import closest_record, domias, gan_leaks, monte_carlo
from busgen_privacy.attacks.base import BlackBoxAttack, Features, MemberScores
from busgen_privacy.attacks.neighbours import checked, fitting
from busgen_privacy.cohort import Cohort

STANDARD: tuple[BlackBoxAttack, ...] = (domias.ATTACK, monte_carlo.ATTACK, gan_leaks.ATTACK, closest_record.ATTACK)


def run_all(
    released: Features,
    reference: Features,
    members: tuple[Cohort, Features],
    holdout: tuple[Cohort, Features],
    *,
    attacks: Sequence[BlackBoxAttack] = STANDARD,
    progress: Callable[[int, int], None] | None = None,
) -> Mapping[str, MemberScores]:
    """Scores of every attack by its name; a patient's depend on that patient, the released and the reference images alone.

    Args:
        released: float32 [m, d], features of the released images.
        reference: float32 [r, d], of public images or of images of the foundation before adaptation.
        members: Cohort of the adaptation and its features, float32 [images, d], row for row.
        holdout: The same of patients it never saw.
        attacks: Which ones.
        progress: Called with (attacks done, attacks).

    Raises:
        InputError: features that cannot be compared, or that do not fit their cohort.
    """
    checked(released, reference, members[1], holdout[1])
    fitting(*members)
    fitting(*holdout)
    found = {}
    for done, attack in enumerate(attacks, start=1):
        found[attack.name] = attack.run(released, reference, members, holdout)
        if progress is not None:
            progress(done, len(attacks))
    return found


def cost(released: int, reference: int, attacked: int, *, attacks: Sequence[BlackBoxAttack] = STANDARD) -> Mapping[str, int]:
    """Distances between two images that each attack computes; a distance of 128 numbers took 40 ns on one core.

    >>> cost(10_000, 1_000, 800)["gan-leaks"]
    8800000
    """
    return {attack.name: attack.pairs(released, reference, attacked) for attack in attacks}
