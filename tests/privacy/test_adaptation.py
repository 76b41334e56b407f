"""All mechanisms of a plan: each runs once, goes on after a kill, is bound to its run, and only secure noise can be released."""

from pathlib import Path

import numpy as np
import pytest

from busgen_core.errors import CheckpointError, ConfigError, InputError
from busgen_core.labels import Pathology
from busgen_core.styles import PLAIN, STYLES
from busgen_privacy.cohort import Cohort
from busgen_privacy.dp import adaptation
from busgen_privacy.dp.accounting import epsilon_of
from busgen_privacy.dp.adaptation import MEAN, VOTE, load, run
from busgen_privacy.dp.noise import NoiseSource, SeededGaussian
from busgen_privacy.dp.plan import AdaptationPlan, DpSgdPlan
from busgen_privacy.dp.reference import Reference, build, reference_of
from tests.privacy.small import cohort, small_foundation, small_plan

FOUNDATION = small_foundation()
PEOPLE = cohort([1, 2, 1, 1, 3, 1], size=32)


@pytest.fixture(scope="module")
def reference() -> Reference:
    """A reference of phantoms; the small foundation draws nothing but noise."""
    people = cohort([1] * 60, size=32, seed=900)
    return build(people.images, np.array([p.class_index for p in people.classes]))


def plan_of(*, dpsgd: bool = True, **changes: float | None) -> AdaptationPlan:
    """A plan of all mechanisms that keeps its own promise."""
    values: dict[str, float | None] = {"vote_noise": 3.0, "mean_noise": 2.0} | changes
    draft = small_plan(steps=4)
    bare = AdaptationPlan(public_cohort=20, epsilon=50.0, delta=1e-5, audit_noise=4.0, dpsgd=None, **values)  # type: ignore[arg-type]
    epsilon = epsilon_of([*bare.events(), *(draft.events() if dpsgd else ())], delta=1e-5).epsilon + 1e-3
    run_plan = DpSgdPlan(**{name: getattr(draft, name) for name in draft.__slots__} | {"epsilon": epsilon}) if dpsgd else None
    return AdaptationPlan(public_cohort=20, epsilon=epsilon, delta=1e-5, audit_noise=4.0, dpsgd=run_plan, **values)  # type: ignore[arg-type]


def go(
    folder: Path, plan: AdaptationPlan, reference: Reference, *, source: NoiseSource | None = None, people: Cohort = PEOPLE
) -> list[tuple[int, int]]:
    """Run a plan; returns the progress that was shown."""
    seen: list[tuple[int, int]] = []
    run(FOUNDATION, people, plan, folder=folder, reference=lambda: reference, progress=lambda a, b: seen.append((a, b)), source=source)
    return seen


def test_every_mechanism_runs_once_and_its_outputs_load(tmp_path: Path, reference: Reference) -> None:
    """A finished run has shares of styles, class means and a moved network; running it again changes no byte."""
    plan = plan_of()
    assert go(tmp_path, plan, reference)[-1] == (6, 6)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    go(tmp_path, plan, reference)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    found = load(FOUNDATION, plan, tmp_path)
    assert found.styles.sum() == pytest.approx(1)
    assert found.means is not None
    assert found.means.counts.shape == (len(Pathology),)
    moved = [not np.array_equal(a.detach(), b.detach()) for a, b in zip(found.network.parameters(), FOUNDATION.network.parameters(), strict=True)]
    assert any(moved)


def test_a_plan_without_mechanisms_is_the_foundation(tmp_path: Path, reference: Reference) -> None:
    """Nothing runs, nothing is written, and what is drawn from is the foundation in its plain style."""
    plan = plan_of(dpsgd=False, vote_noise=None, mean_noise=None)
    go(tmp_path, plan, reference)
    assert list(tmp_path.iterdir()) == []
    found = load(FOUNDATION, plan, tmp_path)
    assert found.network is FOUNDATION.network
    assert found.styles[PLAIN] == 1
    assert found.means is None


def test_a_killed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between two mechanisms, a seeded run goes on to the same figures and weights."""
    plan = plan_of()
    go(tmp_path / "whole", plan, reference, source=SeededGaussian(5))
    with monkeypatch.context() as patched:
        patched.setattr(adaptation, "class_sums", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "killed", plan, reference, source=SeededGaussian(5))
    assert sorted(f.name for f in (tmp_path / "killed").iterdir()) == [VOTE]
    go(tmp_path / "killed", plan, reference, source=SeededGaussian(5))
    whole, killed = (load(FOUNDATION, plan, tmp_path / name, allow_seeded=True) for name in ("whole", "killed"))
    assert np.array_equal(whole.styles, killed.styles)
    assert whole.means is not None
    assert killed.means is not None
    assert np.array_equal(whole.means.means, killed.means.means, equal_nan=True)
    for a, b in zip(whole.network.parameters(), killed.network.parameters(), strict=True):
        assert np.array_equal(a.detach(), b.detach())


def test_seeded_noise_makes_no_release(tmp_path: Path, reference: Reference) -> None:
    """Figures of a seeded run are marked and refused, one mechanism at a time."""
    alone = plan_of(dpsgd=False, mean_noise=None), plan_of(dpsgd=False, vote_noise=None), plan_of(vote_noise=None, mean_noise=None)
    for number, plan in enumerate(alone):
        folder = tmp_path / str(number)
        go(folder, plan, reference, source=SeededGaussian(1))
        load(FOUNDATION, plan, folder, allow_seeded=True)
        with pytest.raises(CheckpointError, match="secure noise"):
            load(FOUNDATION, plan, folder)


def test_another_runs_figures_are_refused(tmp_path: Path, reference: Reference) -> None:
    """Another plan or another cohort in the same folder is refused by name; nothing is overwritten."""
    plan = plan_of(dpsgd=False)
    go(tmp_path, plan, reference)
    before = (tmp_path / VOTE).read_bytes()
    for other, people in ((plan_of(dpsgd=False, vote_noise=4.0), PEOPLE), (plan, cohort([1, 1], size=32, seed=7))):
        with pytest.raises(CheckpointError, match="another plan"):
            go(tmp_path, other, reference, people=people)
    assert (tmp_path / VOTE).read_bytes() == before


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"run":"r","noise":"secure","figures":[1]}', b'{"run":"r","noise":"secure","figures":["x"]}'])
@pytest.mark.parametrize("name", [VOTE, MEAN])
def test_damaged_figures_are_refused(tmp_path: Path, reference: Reference, name: str, damage: bytes) -> None:
    """Empty, incomplete, misshapen or non-numeric figures are a named error."""
    plan = plan_of(dpsgd=False)
    go(tmp_path, plan, reference)
    (tmp_path / name).write_bytes(damage)
    with pytest.raises(CheckpointError):
        load(FOUNDATION, plan, tmp_path)


def test_bad_input_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    """An empty cohort, images of another size, or noise below the promise: named, and the reference is never asked for."""
    nobody = Cohort(np.zeros((0, 32, 32), np.uint8), (), (), ())
    plan = plan_of(dpsgd=False)

    def never() -> Reference:
        raise AssertionError

    for people in (nobody, cohort([1], size=64)):
        with pytest.raises(InputError):
            run(FOUNDATION, people, plan, folder=tmp_path, reference=never, progress=lambda *_: None)
    quiet = AdaptationPlan(public_cohort=20, epsilon=1.0, delta=1e-5, audit_noise=4.0, vote_noise=0.5)
    with pytest.raises(ConfigError, match="promised"):
        run(FOUNDATION, PEOPLE, quiet, folder=tmp_path, reference=never, progress=lambda *_: None)


def test_patients_of_one_label_give_one_mean(tmp_path: Path, reference: Reference) -> None:
    """A cohort without malignant patients has no malignant mean; the plan runs and loads."""
    count = 40
    people = cohort([1] * count, size=32, seed=300)
    people = Cohort(people.images, (Pathology.BENIGN,) * count, people.boxes, people.patients)
    plan = plan_of(dpsgd=False, mean_noise=0.5)
    go(tmp_path, plan, reference, people=people)
    found = load(FOUNDATION, plan, tmp_path)
    assert found.means is not None
    assert np.isfinite(found.means.means[Pathology.BENIGN.class_index]).all()
    assert np.isnan(found.means.means[Pathology.MALIGNANT.class_index]).all()


def test_the_reference_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The foundation's reference is kept, is the same when read back, and a damaged file is named."""
    monkeypatch.setattr("busgen_privacy.dp.reference.PER_CLASS", 20)
    seen: list[int] = []
    first = reference_of(FOUNDATION, tmp_path, progress=lambda done, _: seen.append(done))
    assert seen[-1] == 60
    again = reference_of(FOUNDATION, tmp_path, progress=lambda *_: seen.append(-1))
    assert -1 not in seen
    assert np.array_equal(first.phi, again.phi)
    assert first.phi.shape[0] == len(STYLES)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="damaged"):
        reference_of(FOUNDATION, tmp_path, progress=lambda *_: None)
