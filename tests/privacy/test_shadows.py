"""Shadow networks and the reference-model attack in the suite, with real adaptations of a small foundation to phantoms."""

from pathlib import Path

import numpy as np
import pytest

from busgen_core.errors import ConfigError, InputError
from busgen_core.foundation import Foundation
from busgen_core.generator import Generator, Shape
from busgen_privacy.attacked import Release, check
from busgen_privacy.attacks.base import Access
from busgen_privacy.dp.noise import SeededGaussian
from busgen_privacy.policy import GatePolicy
from busgen_privacy.shadows import Shadows, set_aside, train
from busgen_privacy.suite import run
from tests.privacy.small import cohort, small_foundation, small_plan
from tests.privacy.test_suite import phantoms

SMALL64 = Shape(image_px=64, channels=(8, 16), groups=4, heads=8)
MEMBERS, HOLDOUT = cohort([1] * 12, size=64, prefix="m"), cohort([2, 1] * 6, size=64, seed=500, prefix="h")
PLAN = small_plan(steps=2, draws=1)


def trained(foundation: Foundation, folder: Path, *, count: int = 1, steps: list[int] | None = None) -> Shadows:
    """Shadows of the plan; steps that were worked at are noted."""
    return train(
        foundation,
        HOLDOUT,
        PLAN,
        count=count,
        folder=folder,
        seed=3,
        progress=lambda done, _: None if steps is None else steps.append(done),
        source=SeededGaussian(1),
    )


def same(one: Generator, other: Generator) -> bool:
    """Whether two networks hold the same numbers."""
    return all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_half_of_the_holdout_is_set_aside_by_patient() -> None:
    """Six of twelve patients, the same for a seed and others for another; with three patients nobody would be left."""
    chosen = set_aside(HOLDOUT, seed=3)
    assert len(chosen) == 6
    assert chosen < set(HOLDOUT.patients)
    assert chosen == set_aside(HOLDOUT, seed=3) != set_aside(HOLDOUT, seed=4)
    assert len(set_aside(cohort([1] * 5, size=64), seed=0)) == 2
    with pytest.raises(InputError, match="four holdout patients"):
        set_aside(cohort([1] * 3, size=64), seed=0)


def test_a_finished_shadow_is_not_trained_again(tmp_path: Path) -> None:
    """Two shadows are two DP-SGD runs of the plan; the second call, as after a kill, takes no step and gives the same networks."""
    foundation, first, again = small_foundation(SMALL64), list[int](), list[int]()
    shadows, taken_up = trained(foundation, tmp_path, count=2, steps=first), trained(foundation, tmp_path, count=2, steps=again)
    assert (first, again) == ([1, 2, 3, 4], [2, 4])
    assert shadows.patients == taken_up.patients == set_aside(HOLDOUT, seed=3)
    assert all(same(a, b) for a, b in zip(shadows.networks, taken_up.networks, strict=True))
    assert not any(same(network, foundation.network) for network in shadows.networks)
    with pytest.raises(ConfigError, match="at least one shadow"):
        trained(foundation, tmp_path / "none", count=0)


def test_the_suite_attacks_only_patients_whom_no_shadow_knows(tmp_path: Path) -> None:
    """The reference-model attack is found with half of the holdout, all others with the whole; without shadows it is named as not run."""
    foundation, public = small_foundation(SMALL64), phantoms(24, first=9_000)
    access = Access(adapted=small_foundation(SMALL64, seed=1).network, reference=foundation.network, scheduler=foundation.scheduler)
    release = Release(images=phantoms(20, first=8_000), access=access, member_share=0.5, shadows=trained(foundation, tmp_path))
    found = run(release, MEMBERS, HOLDOUT, public, most_read=2, policy=GatePolicy(), draws=1, seed=0, progress=lambda *_: None)
    sizes = {attack.name: (attack.members, attack.holdout) for attack in found.attacks}
    assert sizes.pop("reference-model") == (12, 6)
    assert set(sizes.values()) == {(12, 12)}
    assert not any("Reference-model" in text for text in found.not_run)
    assert {attack.name for attack in found.attacks if attack.epsilon_coin is None} == {"reference-model"}  # half was set aside: no coins
    bare = Release(images=release.images, access=access)
    without = run(bare, MEMBERS, HOLDOUT, public, most_read=2, policy=GatePolicy(), draws=1, seed=0, progress=lambda *_: None)
    assert "reference-model" not in {attack.name for attack in without.attacks}
    assert all(attack.epsilon_coin is None for attack in without.attacks)  # nobody said how roles came about
    assert any(text.startswith("Reference-model attack: no network") for text in without.not_run)


def test_one_network_under_two_names_is_refused() -> None:
    """A shadow that is the adapted network, the reference, or another shadow compares nothing with anything: an error that names both."""
    reference, adapted, other = (small_foundation(SMALL64, seed=seed) for seed in (0, 1, 2))
    access = Access(adapted=adapted.network, reference=reference.network, scheduler=reference.scheduler)
    images = phantoms(20, first=8_000)

    def asked(*networks: Generator) -> None:
        check(Release(images=images, access=access, shadows=Shadows(networks=networks)), MEMBERS, HOLDOUT, images[:2])

    asked(other.network)
    same = {
        "the adapted network and shadow 1": (adapted.network,),
        "the reference and shadow 1": (reference.network,),
        "shadow 1 and shadow 2": (other.network, other.network),
    }
    for said, networks in same.items():
        with pytest.raises(InputError, match=said):
            asked(*networks)


def test_a_draw_that_the_sides_belie_is_refused() -> None:
    """A share that these sides cannot come from would make a leak out of nothing (60 and 60 at one in ten: epsilon .38): an error beforehand."""
    images = phantoms(20, first=8_000)
    many, others = cohort([1] * 60, size=64, seed=2_000, prefix="m"), cohort([1] * 60, size=64, seed=4_000, prefix="h")
    check(Release(images=images, member_share=0.5), many, others, images[:2])
    for share in (0.1, 0.9, float("nan"), 0.0, 1.0):
        with pytest.raises(InputError, match="do not come from a draw"):
            check(Release(images=images, member_share=share), many, others, images[:2])


def test_shadows_of_the_wrong_patients_are_refused() -> None:
    """A shadow that knows a member, or one for which the whole holdout was used up, would make the figure meaningless: an error."""
    network, images = small_foundation(SMALL64).network, phantoms(20, first=8_000)
    for patients in ({"m003"}, set(HOLDOUT.patients[:-1])):
        with pytest.raises(InputError, match="shadow networks"):
            check(Release(images=images, shadows=Shadows(networks=(network,), patients=frozenset(patients))), MEMBERS, HOLDOUT, images[:2])
