"""What is attacked, and what would make every figure about it meaningless."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from busgen_core.errors import InputError
from busgen_privacy.attacks.base import Access, Frames, same_size
from busgen_privacy.cohort import Cohort
from busgen_privacy.leak import like_a_draw
from busgen_privacy.lookalikes import in_both

if TYPE_CHECKING:  # attacks on images alone need neither torch nor diffusers
    from busgen_core.generator import Generator
    from busgen_privacy.shadows import Shadows


@dataclass(frozen=True, kw_only=True)
class Release:
    """What is attacked.

    Attributes:
        images: Released images, uint8 [m, px, px].
        more: Further images of the same generator, up to ten times the release, for extraction; none: the release alone.
        epsilon: Claim of composed Gaussian mechanisms; None for another or no claim.
        delta: Claim.
        access: The adapted network, where the attacker is given it; None where only images leave, or nothing was trained.
        no_access: Why there is none, for the report.
        member_share: Chance with which each patient became a member, by a draw of its own; None: roles came about in another way.
        shadows: Networks for the reference-model attack, where there are some; asked only beside ``access``.
    """

    images: Frames
    more: Frames | None = None
    epsilon: float | None = None
    delta: float | None = None
    access: Access | None = None
    no_access: str = "no adapted network was given"
    member_share: float | None = None
    shadows: "Shadows | None" = None


def check(release: Release, members: Cohort, holdout: Cohort, public: Frames, groups: Sequence[str] = ()) -> None:
    """Raise InputError for what would make every figure meaningless; see ``suite.run``."""
    check_people(members, holdout, public, groups)
    same_size(release.images, members.images, holdout.images, public, *([] if release.more is None else [release.more]))
    if release.access is not None:
        _check_networks(release.access, release.shadows)
    taught = frozenset() if release.shadows is None else release.shadows.patients
    if taught & set(members.patients) or len(set(holdout.patients) - taught) < 2:
        raise InputError("shadow networks were adapted to members, or leave fewer than two holdout patients to attack")
    sizes, share = (len(members.patient_rows()), len(holdout.patient_rows())), release.member_share
    if share is not None and not (0 < share < 1 and like_a_draw(*sizes, share=share)):
        raise InputError(
            f"{sizes[0]} members and {sizes[1]} holdout patients do not come from a draw of each with chance {share:g} of being a member"
        )


def _check_networks(access: Access, shadows: "Shadows | None") -> None:
    """Raise InputError for networks that are one network under two names: attacks that compare them could see nothing."""
    named = [("the adapted network", access.adapted), ("the reference", access.reference)]
    named += [(f"shadow {number}", network) for number, network in enumerate(() if shadows is None else shadows.networks, 1)]
    for place, (name, network) in enumerate(named):
        for other, known in named[:place]:
            if _same(network, known):
                raise InputError(f"{other} and {name} are one network, number for number: no attack that compares them could see anything")


def check_people(members: Cohort, holdout: Cohort, public: Frames, groups: Sequence[str] = ()) -> None:
    """What ``check`` asks of the real images alone, so that a node can ask before it spends; ``public`` may be empty. Raises InputError."""
    inside, outside = set(members.patients), set(holdout.patients)
    if both := inside & outside:
        raise InputError(f"{len(both)} patients are members and holdout at once; the audit would measure nothing")
    if min(len(inside), len(outside)) < 2:
        raise InputError("an audit needs at least two members and two holdout patients")
    same_size(members.images, holdout.images, *([public] if len(public) else []))
    if same := in_both(members.images, holdout.images):
        raise InputError(f"{same} images are of members and of holdout patients at once, or as good as the same; the split is not by patient")
    if known := set(groups) & (inside | outside):
        raise InputError(f"{len(known)} patients of the public images are members or holdout patients too; if they are not, give them other keys")
    if same := in_both(public, members.images) + in_both(public, holdout.images):
        raise InputError(
            f"{same} images that attacks are calibrated on (public ones, or the foundation's) are of members or holdout patients, or as good as the "
            "same; attacks would be turned round"
        )


def _same(one: "Generator", other: "Generator") -> bool:
    """Whether two networks hold the same numbers under the same names."""
    own, known = one.state_dict(), other.state_dict()
    return own.keys() == known.keys() and all(np.array_equal(own[name].cpu().numpy(), known[name].cpu().numpy()) for name in own)
