"""White-box attacks: each finds a planted leak, is silent without one, equals its paper's formula, and scores a patient by that patient alone."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from math import sqrt

import numpy as np
import pytest
import torch
from torch import Tensor

from busgen_core.conditions import Condition, encode
from busgen_core.errors import ConfigError
from busgen_core.generator import SIGMA_DATA, Generator, Shape, build_scheduler, fold
from busgen_core.labels import Pathology
from busgen_core.tensors import to_unit
from busgen_privacy.attacks import gradient, loss
from busgen_privacy.attacks.base import Access, Draws, MemberScores, WhiteBoxAttack, randomness
from busgen_privacy.attacks.batches import batches_keep_apart
from busgen_privacy.attacks.reference_model import attack as reference_model
from busgen_privacy.attacks.whitebox import STANDARD, cost, run_all
from busgen_privacy.cohort import Cohort
from busgen_privacy.denoising import patient_losses, sigmas_at
from busgen_privacy.statistics import auc
from tests.privacy.small import cohort, small_foundation

MEMBERS, HOLDOUT = cohort([1, 2, 1, 1], prefix="m"), cohort([1, 1, 2, 1], prefix="h", seed=900)
SHADOWS = (small_foundation(seed=5).network, small_foundation(seed=6).network)
ATTACKS = {a.name: a for a in (*STANDARD, reference_model(SHADOWS))}
DRAWS, SEED = 3, 1
QUIET = [0.05 * (1.24 / 0.05) ** place for place in (1 / 6, 3 / 6, 5 / 6)]  # the middles of three equal parts in the logarithm
every_attack = pytest.mark.parametrize("name", ATTACKS)


def quiet(done: int, total: int) -> None:
    """No progress shown."""


def access_to(adapted: Generator) -> Access:
    return Access(adapted=adapted, reference=small_foundation().network, scheduler=build_scheduler())


def run(attack: WhiteBoxAttack, adapted: Generator, members: Cohort = MEMBERS, holdout: Cohort = HOLDOUT, *, seed: int = SEED) -> MemberScores:
    return attack.run(access_to(adapted), members, holdout, draws=DRAWS, seed=seed, progress=quiet)


def drawn(images: int, rng: np.random.Generator) -> Draws:
    return Draws.of(small_foundation().network, images, DRAWS, rng)


def rows_of(people: Cohort, rows: list[int]) -> Cohort:
    columns = [tuple(column[row] for row in rows) for column in (people.classes, people.boxes, people.patients)]
    return Cohort(people.images[rows], *columns)  # type: ignore[arg-type]


class Parrot(Generator):
    """The un-adapted network, but for what lies near a member's image and comes with a label: that it knows by heart.

    As if the member were one of all images: the chance that x is a member's image with noise, against that of any image .1 away.
    """

    def __init__(self, people: Cohort) -> None:
        plain = small_foundation().network
        super().__init__(plain.unet, plain.labels)
        self.register_buffer("known", fold(to_unit(people.images), self.fold).flatten(1))

    def forward(self, scaled: Tensor, c_noise: Tensor, labels: Tensor, planes: Tensor) -> Tensor:
        sigma = (4 * c_noise).exp()[:, None]
        total = (sigma**2 + SIGMA_DATA**2).sqrt()
        noisy = scaled.flatten(1) * total
        miss = (noisy[:, None] - self.known).square().sum(2)
        chance = torch.cat([miss, self.known.shape[1] * (sigma**2 + 0.01)], dim=1).div(-2 * sigma**2).softmax(1)
        memory = (-miss / (2 * sigma**2)).softmax(1) @ self.known
        by_heart = (memory - SIGMA_DATA**2 / total**2 * noisy) * total / (sigma * SIGMA_DATA)
        share = torch.where(labels[:, :1] == len(Pathology), 0.0, 1 - chance[:, -1:])[:, :, None, None]
        return share * by_heart.view_as(scaled) + (1 - share) * super().forward(scaled, c_noise, labels, planes)


@every_attack
def test_each_attack_finds_a_planted_leak(name: str) -> None:
    """A network that knows the members' images by heart is found out by every attack: AUC 1."""
    scores = run(ATTACKS[name], Parrot(MEMBERS))
    assert auc(scores.members, scores.holdout) == 1.0


@pytest.mark.parametrize("name", [a.name for a in STANDARD])
def test_each_attack_is_silent_without_adaptation(name: str) -> None:
    """Nothing adapted, nothing found: every score is exactly 0 and the AUC exactly 1/2."""
    scores = run(ATTACKS[name], small_foundation().network)
    assert not scores.members.any()
    assert not scores.holdout.any()
    assert auc(scores.members, scores.holdout) == 0.5


@every_attack
def test_a_patients_score_depends_on_that_patient_alone(name: str) -> None:
    """Removing a member leaves every other score bit for bit the same: the sensitivity of what travels rests on it."""
    network = small_foundation(seed=1).network
    whole = run(ATTACKS[name], network)
    part = run(ATTACKS[name], network, members=rows_of(MEMBERS, [i for i, key in enumerate(MEMBERS.patients) if key != "m001"]))
    assert np.array_equal(np.delete(whole.members, 1), part.members)
    assert np.array_equal(whole.holdout, part.holdout)


@every_attack
def test_the_seed_repeats(name: str) -> None:
    """The same seed gives the same scores; another seed changes those of attacks that draw noise, and no others."""
    network, few = small_foundation(seed=1).network, rows_of(MEMBERS, [0, 1])
    first, again, other = (run(ATTACKS[name], network, few, few, seed=seed).members for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert np.array_equal(first, other) == (name in {"secmi", "pia", "sima"})


@every_attack
def test_passes_are_counted_honestly(name: str) -> None:
    """The network passes that an attack states for an image are those that hooks count; a backward counts 2."""
    access = access_to(small_foundation(seed=1).network)
    passes = 0

    def count(_module: object, _inputs: object, output: Tensor) -> None:
        nonlocal passes
        passes += len(output)
        if output.requires_grad:
            output.register_hook(lambda _gradient: count_backward(len(output)))

    def count_backward(images: int) -> None:
        nonlocal passes
        passes += 2 * images

    hooks = [network.register_forward_hook(count) for network in (access.adapted, access.reference, *SHADOWS)]
    ATTACKS[name].score(access, MEMBERS, [1, 2], drawn(2, np.random.default_rng(0)))
    for hook in hooks:
        hook.remove()
    assert passes == 2 * ATTACKS[name].passes(DRAWS)


# --- Slow twins: one image and one level at a time, in the papers' own coordinates x_t = sqrt(a) x_0 + sqrt(1 - a) n. ---

Slow = Callable[[Generator, int, np.random.Generator], float]


def image_of(row: int) -> np.ndarray:
    return fold(to_unit(MEMBERS.images[[row]]), 2)[0].double().numpy()


def eps(network: Generator, x_t: np.ndarray, a: float, row: int, *, labelled: bool = True) -> np.ndarray:
    """eps_theta(x_t, t) of a DDPM whose signal rate at t is ``a``, from the network's F."""
    sigma = sqrt((1 - a) / a)
    x, total = x_t / sqrt(a), sqrt(sigma**2 + SIGMA_DATA**2)
    asked = Condition(pathology=MEMBERS.classes[row], box=MEMBERS.boxes[row]) if labelled else Condition()
    condition = encode([asked], devices=network.devices, side=network.side)
    with torch.no_grad():
        f = network(torch.from_numpy(x / total)[None].float(), torch.tensor([np.log(sigma) / 4]).float(), condition.labels, condition.planes)
    denoised = SIGMA_DATA**2 / total**2 * x + sigma * SIGMA_DATA / total * f[0].double().numpy()
    return (x - denoised) / sigma


def rate(sigma: float) -> float:
    """The signal rate a at which the noise level is ``sigma``."""
    return 1 / (1 + sigma**2)


def draws_of(rng: np.random.Generator, levels: list[float]) -> list[tuple[np.ndarray, float]]:
    """The noise and level of each draw, for one image; ``levels`` are the lowest and the highest."""
    places = (np.arange(DRAWS) + rng.random(DRAWS)) / DRAWS
    noise = rng.standard_normal((DRAWS, 4, 16, 16), dtype=np.float32)
    return [(n.astype(float), levels[0] * (levels[1] / levels[0]) ** place) for n, place in zip(noise, places, strict=True)]


def slow_secmi(network: Generator, row: int, _rng: np.random.Generator) -> float:
    """DDIM steps up and one back; members have a small miss, so minus its logarithm."""
    levels = [0.05 * (1.24 / 0.05) ** (i / DRAWS) for i in range(DRAWS + 1)]

    def ddim(x: np.ndarray, here: float, there: float) -> np.ndarray:
        noise = eps(network, x, here, row)
        return sqrt(there) * (x - sqrt(1 - here) * noise) / sqrt(here) + sqrt(1 - there) * noise

    x, found = sqrt(rate(levels[0])) * image_of(row), []
    for low, high in pairwise(levels):
        up = ddim(x, rate(low), rate(high))
        found.append(-np.log(np.mean((ddim(up, rate(high), rate(low)) - x) ** 2)))
        x = up
    return float(np.mean(found))


def slow_pia(network: Generator, row: int, _rng: np.random.Generator) -> float:
    image, found = image_of(row), []
    first = eps(network, sqrt(rate(0.05)) * image, rate(0.05), row)
    for sigma in QUIET:
        a = rate(sigma)
        again = eps(network, sqrt(a) * image + sqrt(1 - a) * first, a, row)
        found.append(-np.log(np.mean((first - again) ** 4) ** 0.25))
    return float(np.mean(found))


def slow_sima(network: Generator, row: int, _rng: np.random.Generator) -> float:
    norms = [np.mean(eps(network, sqrt(rate(s)) * image_of(row), rate(s), row) ** 4) ** 0.25 for s in QUIET]
    return float(np.mean([-np.log(norm) for norm in norms]))


def slow_clid(network: Generator, row: int, rng: np.random.Generator) -> float:
    found = []
    for noise, sigma in draws_of(rng, [0.05, 20]):
        a = rate(sigma)
        x_t = sqrt(a) * image_of(row) + sqrt(1 - a) * noise
        without, given = (np.mean((eps(network, x_t, a, row, labelled=labelled) - noise) ** 2) for labelled in (False, True))
        found.append((1 + (sigma / SIGMA_DATA) ** 2) * (without - given))
    return float(np.mean(found))


def slow_loss(network: Generator, row: int, rng: np.random.Generator) -> float:
    found = []
    for noise, sigma in draws_of(rng, [0.05, 20]):
        a = rate(sigma)
        miss = eps(network, sqrt(a) * image_of(row) + sqrt(1 - a) * noise, a, row) - noise
        found.append(-(1 + (sigma / SIGMA_DATA) ** 2) * np.mean(miss**2))
    return float(np.mean(found))


def slow_gradient(network: Generator, row: int, rng: np.random.Generator) -> float:
    """One plain backward on a copy, the gradients added up draw by draw."""
    copy = deepcopy(network)
    for noise, sigma in draws_of(rng, [0.05, 1.24]):
        n, s = torch.from_numpy(noise)[None].float(), torch.tensor([sigma]).float()
        (patient_losses([copy], build_scheduler(), MEMBERS, [row], noise=n, sigmas=s)[0].mean() / DRAWS).backward()
    norms = [0.0 if p.grad is None else float(p.grad.double().square().sum().sqrt()) for p in copy.parameters()]
    return float(np.mean([-np.log(max(norm, 1e-6)) for norm in norms]))


@pytest.mark.parametrize(
    ("name", "slow"),
    [("loss", slow_loss), ("secmi", slow_secmi), ("pia", slow_pia), ("sima", slow_sima), ("gradient", slow_gradient), ("clid", slow_clid)],
)
def test_scores_are_those_of_the_slow_twin(name: str, slow: Slow) -> None:
    """Each score is the paper's statistic of the adapted network less that of the reference, computed image by image from the paper's equation."""
    network = small_foundation(seed=1).network
    access = access_to(network)
    fast = ATTACKS[name].score(access, MEMBERS, [3], drawn(1, randomness(SEED, "m002")))
    twin = slow(network, 3, randomness(SEED, "m002")) - slow(access.reference, 3, randomness(SEED, "m002"))
    assert fast == pytest.approx([twin], rel=5e-5)


def test_the_likelihood_ratio_is_that_of_the_slow_twin() -> None:
    """Pr(x | adapted) over the mean of Pr(x | shadow), Pr being exp(-loss)."""
    network = small_foundation(seed=1).network
    fast = ATTACKS["reference-model"].score(access_to(network), MEMBERS, [3], drawn(1, randomness(SEED, "m002")))
    likelihoods = [np.exp(slow_loss(n, 3, randomness(SEED, "m002"))) for n in (network, *SHADOWS)]
    assert fast == pytest.approx([np.log(likelihoods[0] / np.mean(likelihoods[1:]))], rel=2e-4)


def test_one_shadow_is_a_calibrated_loss() -> None:
    """With one shadow the ratio is the loss attack with that shadow for a reference."""
    network = small_foundation(seed=1).network
    ratio = run(reference_model(SHADOWS[:1]), network)
    plain = loss.ATTACK.run(replace(access_to(network), reference=SHADOWS[0]), MEMBERS, HOLDOUT, draws=DRAWS, seed=SEED, progress=quiet)
    assert ratio.members == pytest.approx(plain.members, abs=1e-5)


def test_networks_that_do_not_fit_are_refused() -> None:
    """No shadow, a shadow or a reference of another shape, or no draws: an error that says so, never a score."""
    network = small_foundation(seed=1).network
    other = small_foundation(Shape(image_px=32, channels=(8, 8), groups=4, heads=8)).network
    with pytest.raises(ConfigError):
        reference_model([])
    with pytest.raises(ConfigError):
        run(reference_model([other]), network)
    with pytest.raises(ConfigError):
        run(ATTACKS["sima"], other)
    with pytest.raises(ConfigError):
        run_all(access_to(network), MEMBERS, HOLDOUT, draws=0, seed=SEED, progress=quiet)


def test_the_gradient_attack_leaves_the_network_as_it_was() -> None:
    """Flags, tensors and their memory are the same afterwards, also after an error, and no gradient is left behind."""
    network = small_foundation(seed=1).network.to(memory_format=torch.channels_last)
    for parameter in list(network.parameters())[::2]:
        parameter.requires_grad_(False)
    before = [(p.data_ptr(), p.stride(), p.requires_grad, p.grad) for p in network.parameters()]
    few, others = rows_of(MEMBERS, [0, 3]), rows_of(HOLDOUT, [0])
    scores = run(ATTACKS["gradient"], network, few, others)
    assert [(p.data_ptr(), p.stride(), p.requires_grad, p.grad) for p in network.parameters()] == before
    with pytest.raises(RuntimeError, match="planned"), gradient.differentiable(network):
        raise RuntimeError("planned")
    assert [(p.data_ptr(), p.stride(), p.requires_grad, p.grad) for p in network.parameters()] == before
    assert scores.members == pytest.approx(run(ATTACKS["gradient"], small_foundation(seed=1).network, few, others).members, rel=1e-5)


def test_all_run_in_order_with_one_progress() -> None:
    """The standard attacks run as one piece of work, each with the scores that it has alone; the progress counts to the end, never back."""
    network, seen, few, others = small_foundation(seed=1).network, [], rows_of(MEMBERS, [0, 3]), rows_of(HOLDOUT, [0])
    found = run_all(access_to(network), few, others, draws=DRAWS, seed=SEED, progress=lambda done, total: seen.append((done, total)))
    assert list(found) == ["loss", "secmi", "pia", "sima", "gradient", "clid"] == list(cost(DRAWS))
    assert seen == [(done, 18) for done in (2, 3, 5, 6, 8, 9, 11, 12, 13, 14, 15, 17, 18)]  # in batches, one by one in the gradient attack
    assert np.array_equal(found["pia"].members, run(ATTACKS["pia"], network, few, others).members)
    assert cost(DRAWS)["gradient"] == 6 * DRAWS


MANY = cohort([1, 2, 1, 2, 1, 2, 2], prefix="m")  # 11 images: a whole batch and one that is filled up


@every_attack
def test_a_batch_gives_the_scores_that_patients_have_alone(name: str) -> None:
    """Each patient's images asked alone, with that patient's draws: the mean of their scores is the batch's, to float noise."""
    access, attack = access_to(small_foundation(seed=1).network), ATTACKS[name]
    alone = [attack.score(access, MANY, rows, drawn(len(rows), randomness(SEED, key))).mean() for key, rows in MANY.patient_rows().items()]
    assert run(attack, access.adapted, MANY).members == pytest.approx(alone, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "gradient"])
def test_another_place_in_the_batches_changes_no_bit(name: str) -> None:
    """Without the first patient everybody moves to another place of another batch; all scores stay the same bit for bit."""
    network = small_foundation(seed=1).network
    whole, fewer = (run(ATTACKS[name], network, people, HOLDOUT).members for people in (MANY, rows_of(MANY, list(range(1, len(MANY))))))
    assert np.array_equal(whole[1:], fewer)


def test_a_machine_that_mixes_batches_is_noticed() -> None:
    """Where an answer depends on its place in the last digit, the attack goes on one image at a time, and no score knows of another."""
    sizes = []

    def score(access: Access, people: Cohort, rows: list[int], draws: Draws) -> np.ndarray:
        sizes.append(len(rows))
        return ATTACKS["sima"].score(access, people, rows, draws) * (1 + 1e-15 * np.arange(len(rows)))

    mixing, network = replace(ATTACKS["sima"], score=score), small_foundation(seed=1).network
    assert not batches_keep_apart(mixing, access_to(network), draws=DRAWS)
    found = run(mixing, network).members
    assert set(sizes[2:]) == {8, 1}
    assert np.array_equal(found[1:], run(mixing, network, rows_of(MEMBERS, [1, 2, 3, 4])).members)


@pytest.mark.parametrize("name", ["loss", "gradient"])
def test_cores_change_nothing(name: str) -> None:
    """On two cores the scores are those of one, bit for bit, and torch has its threads back afterwards, also after an error."""
    network, before = small_foundation(seed=1).network, torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(ATTACKS[name], network, MANY)
        torch.set_num_threads(2)
        two = run(ATTACKS[name], network, MANY)
        with pytest.raises(ConfigError):
            run(ATTACKS["sima"], small_foundation(Shape(image_px=32, channels=(8, 8), groups=4, heads=8)).network)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(one.members, two.members)


def train(network: Generator, people: Cohort, *, steps: int, rng: np.random.Generator) -> None:
    """Plain training without any privacy."""
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = rng.integers(0, len(people), 14).tolist()
        noise = torch.from_numpy(rng.standard_normal((len(rows), 4, 16, 16), dtype=np.float32))
        losses = patient_losses([network], build_scheduler(), people, rows, noise=noise, sigmas=sigmas_at(rng.random(len(rows))))[0]
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()


@pytest.mark.slow
def test_an_overfitted_network_is_found() -> None:
    """A foundation trained on others, then for long on eight members: each attack sees it (AUC above .65), most see it clearly (above .8)."""
    members, holdout, public = cohort([1] * 8, prefix="m"), cohort([1] * 8, prefix="h", seed=900), cohort([1] * 64, prefix="p", seed=3000)
    reference, rng = small_foundation().network, np.random.default_rng(0)
    train(reference, public, steps=300, rng=rng)
    adapted = deepcopy(reference)
    train(adapted, members, steps=400, rng=rng)
    access = Access(adapted=adapted, reference=reference, scheduler=build_scheduler())
    found = run_all(access, members, holdout, draws=4, seed=SEED, progress=quiet)
    seen = {name: auc(scores.members, scores.holdout) for name, scores in found.items()}
    assert min(seen.values()) > 0.65, seen
    assert sum(value > 0.8 for value in seen.values()) >= 4, seen
