"""The phantom: its frames, their labels, and what the labels say against what the frames show."""

from collections import Counter
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest

from busgen_core.errors import ConfigError, LabelError
from busgen_core.labels import Birads, Pathology
from busgen_core.phantom import (
    SCANNERS,
    Calcifications,
    Descriptors,
    EchoPattern,
    Margin,
    Orientation,
    Phantom,
    Posterior,
    Shape,
    category,
    category_shares,
    simulate,
    simulate_batch,
)
from busgen_core.phantom.descriptors import draw_descriptors, joint
from busgen_core.phantom.outlines import ANGLE, draw_outline

PLAIN = Descriptors(
    shape=Shape.OVAL,
    orientation=Orientation.PARALLEL,
    margin=Margin.CIRCUMSCRIBED,
    echo_pattern=EchoPattern.HYPOECHOIC,
    posterior=Posterior.NONE,
    calcifications=Calcifications.NONE,
)
ROUND = replace(PLAIN, shape=Shape.ROUND, orientation=Orientation.NOT_PARALLEL)
MIXED = [list(Pathology)[i % 3] for i in range(12)]
GOLDEN_MEANS = [75.749, 102.655, 70.925, 126.448, 86.827, 53.691]  # of MIXED[:6], seeds 0 to 5, 64 px


def same(one: Phantom, other: Phantom) -> bool:
    labels = (one.pathology, one.birads, one.descriptors, one.box, one.scanner) == (
        other.pathology,
        other.birads,
        other.descriptors,
        other.box,
        other.scanner,
    )
    return labels and np.array_equal(one.image, other.image) and ((one.mask is None) == (other.mask is None))


def pixels(phantom: Phantom) -> tuple[int, int, int, int]:
    assert phantom.box is not None
    x0, y0, x1, y1 = (round(edge * len(phantom.image)) for edge in phantom.box)
    return x0, y0, x1, y1


def test_the_same_seed_gives_the_same_bytes() -> None:
    """A phantom is a function of its arguments; another seed or scanner gives another."""
    one, two, other = (simulate(Pathology.MALIGNANT, seed=s) for s in (1, 1, 2))
    assert same(one, two)
    assert not np.array_equal(one.image, other.image)
    looks = {simulate(Pathology.MALIGNANT, seed=1, scanner=name).image.tobytes() for name in SCANNERS}
    assert len(looks) == len(SCANNERS)


@pytest.mark.parametrize("size", [32, 33, 64, 100])
def test_a_batch_gives_the_bytes_of_single_frames(size: int) -> None:
    """A frame's bytes do not depend on what else is in its batch, nor on its place in it."""
    names = [None, *SCANNERS, None, None, None]
    batch = simulate_batch(MIXED, size=size, seeds=range(12), scanners=names)
    turned = simulate_batch(MIXED[::-1], size=size, seeds=range(11, -1, -1), scanners=names[::-1])[::-1]
    single = [simulate(p, size=size, seed=i, scanner=n) for i, (p, n) in enumerate(zip(MIXED, names, strict=True))]
    assert all(same(a, b) and same(a, c) for a, b, c in zip(batch, turned, single, strict=True))
    assert batch[0].image.shape == (size, size)


def test_bytes_are_those_that_the_shipped_foundation_was_trained_on() -> None:
    """Known answers, from this module on the day it was released; one gray level of slack for another processor's rounding."""
    found = [float(p.image.astype(float).mean()) for p in simulate_batch(MIXED[:6], seeds=range(6))]
    assert found == pytest.approx(GOLDEN_MEANS, abs=0.01)


def test_fixing_the_scanner_leaves_the_mass_and_fixing_the_mass_leaves_the_tissue() -> None:
    """Settings, tissue, mass and scatterers draw from their own streams: the scanner that the seed would have drawn gives the same bytes."""
    free = simulate(Pathology.BENIGN, seed=4)
    assert same(free, simulate(Pathology.BENIGN, seed=4, scanner=free.scanner))
    assert simulate(Pathology.BENIGN, seed=4, scanner="phantom-d 8-18 MHz").descriptors == free.descriptors
    one, other = (
        simulate(Pathology.BENIGN, seed=4, descriptors=d, scanner=free.scanner) for d in (PLAIN, replace(PLAIN, posterior=Posterior.SHADOWING))
    )
    x0, _, x1, _ = pixels(one)
    beside = (other.image.astype(int) - one.image)[:, np.r_[0 : x0 // 2, (x1 + 64) // 2 : 64]]
    assert beside.std() < 0.2 * one.image.std()  # automatic gain alone lifts what lies beside, evenly


@pytest.mark.parametrize("pathology", list(Pathology))
def test_lesions_are_darker_than_their_surroundings(pathology: Pathology) -> None:
    """Over 30 seeds, the middle of a lesion's box is darker than the tissue beside it; normal tissue is BI-RADS 1 and has no box, mask or mass."""
    inside, beside = [], []
    for phantom in simulate_batch([pathology] * 30, seeds=range(30)):
        if pathology is Pathology.NORMAL:
            assert (phantom.birads, phantom.box, phantom.mask, phantom.descriptors) == (Birads.ONE, None, None, None)
            continue
        x0, y0, x1, y1 = pixels(phantom)
        middle = phantom.image[(y0 + y1) // 2 - 1 : (y0 + y1) // 2 + 2]
        inside.append(middle[:, (x0 + x1) // 2 - 1 : (x0 + x1) // 2 + 2].mean())
        beside.append(np.delete(middle, slice(x0, x1), axis=1).mean())
    if inside:
        assert np.mean(inside) < 0.7 * np.mean(beside)


def test_box_is_the_masks_tight_box() -> None:
    """The mask touches all four sides of its box and lies within it, and holds most of it."""
    for phantom in simulate_batch([Pathology.BENIGN, Pathology.MALIGNANT] * 40, seeds=range(80)):
        x0, y0, x1, y1 = pixels(phantom)
        assert phantom.mask is not None
        within = phantom.mask[y0:y1, x0:x1]
        assert within.sum() == phantom.mask.sum()
        assert all(side.any() for side in (within[0], within[-1], within[:, 0], within[:, -1]))
        assert within.mean() > 0.35


def test_taller_than_wide_if_and_only_if_not_parallel() -> None:
    """In centimetres of its scanner, a mass is deeper than wide exactly when its label says so; a pixel of slack at 128 px."""
    for phantom in simulate_batch([Pathology.BENIGN, Pathology.MALIGNANT] * 40, size=128, seeds=range(80)):
        x0, y0, x1, y1 = pixels(phantom)
        assert phantom.descriptors is not None
        scanner = SCANNERS[phantom.scanner]
        width, depth, slack = (x1 - x0) * scanner.width_cm, (y1 - y0) * scanner.depth_cm, 2 * scanner.width_cm
        tall = phantom.descriptors.orientation is Orientation.NOT_PARALLEL
        assert depth > width - slack if tall else depth < width


@pytest.mark.parametrize("shape", list(Shape))
@pytest.mark.parametrize("margin", list(Margin))
def test_outline_fills_its_box(shape: Shape, margin: Margin) -> None:
    """Whatever the shape and margin, the outline reaches each side of [-1, 1] x [-1, 1] within two percent."""
    for seed in range(10):
        outline = draw_outline(shape, Orientation.NOT_PARALLEL, margin, np.random.default_rng(seed))
        x, z = outline * np.cos(ANGLE), outline * np.sin(ANGLE)
        assert np.allclose([x.min(), x.max(), z.min(), z.max()], [-1, 1, -1, 1], atol=0.02)


def _roughness(shape: Shape, margin: Margin) -> float:
    """Mean over seeds of the perimeter against that of the smoothed outline."""
    found = []
    for seed in range(20):
        radius = draw_outline(shape, Orientation.PARALLEL, margin, np.random.default_rng(seed))
        spectrum = np.fft.rfft(radius)
        found.append(float(np.abs(spectrum[5:40]).sum() / np.abs(spectrum[0])))
    return float(np.mean(found))


def test_margins_and_shapes_differ_in_roughness() -> None:
    """High harmonics of the outline: round below oval below irregular, and circumscribed below microlobulated and angular."""
    assert (
        _roughness(Shape.ROUND, Margin.CIRCUMSCRIBED)
        < _roughness(Shape.OVAL, Margin.CIRCUMSCRIBED)
        < _roughness(Shape.IRREGULAR, Margin.CIRCUMSCRIBED)
    )
    smooth = _roughness(Shape.OVAL, Margin.CIRCUMSCRIBED)
    assert min(_roughness(Shape.OVAL, m) for m in (Margin.MICROLOBULATED, Margin.ANGULAR, Margin.SPICULATED)) > 1.5 * smooth


def _behind_against(descriptors: Descriptors, seeds: int = 40) -> float:
    """Mean gray behind the mass less that behind the same mass without posterior features, same seeds, one scanner."""
    differences = []
    for seed in range(seeds):
        one, plain = (simulate(Pathology.BENIGN, seed=seed, scanner="phantom-a 5-12 MHz", descriptors=d) for d in (descriptors, PLAIN))
        x0, _, x1, y1 = pixels(one)
        behind = np.s_[y1 + 1 : y1 + 10, x0 + (x1 - x0) // 4 : x1 - (x1 - x0) // 4]
        differences.append(float(one.image[behind].mean()) - float(plain.image[behind].mean()))
    return float(np.mean(differences))


def test_posterior_features_show_behind_the_mass() -> None:
    """Behind a shadowing mass it is darker, behind an enhancing one brighter than behind the same mass without."""
    assert _behind_against(replace(PLAIN, posterior=Posterior.SHADOWING)) < -20
    assert _behind_against(replace(PLAIN, posterior=Posterior.ENHANCEMENT)) > 10


def test_a_shadow_is_darker_behind_than_beside() -> None:
    """In the same rows: over 40 seeds, columns behind a shadowing mass are darker than those beside it, behind an enhancing one brighter."""
    for posterior, sign in ((Posterior.SHADOWING, -1), (Posterior.ENHANCEMENT, 1)):
        gaps = []
        for seed in range(40):
            phantom = simulate(Pathology.BENIGN, seed=seed, descriptors=replace(PLAIN, posterior=posterior))
            x0, _, x1, y1 = pixels(phantom)
            rows = phantom.image[y1 + 1 : y1 + 10]
            gaps.append(rows[:, x0 + (x1 - x0) // 4 : x1 - (x1 - x0) // 4].mean() - np.delete(rows, slice(max(x0 - 3, 0), x1 + 3), axis=1).mean())
        assert sign * np.mean(gaps) > 10
        assert np.mean(sign * np.array(gaps) > 0) > 0.85


def test_a_combined_mass_shadows_on_one_side_and_enhances_on_the_other() -> None:
    """Behind its two halves the gray differs, by far more than behind a mass without posterior features."""

    def halves(posterior: Posterior) -> float:
        found = []
        for seed in range(30):
            phantom = simulate(Pathology.BENIGN, seed=seed, descriptors=replace(PLAIN, posterior=posterior))
            x0, _, x1, y1 = pixels(phantom)
            middle, reach = (x0 + x1) // 2, (x1 - x0) // 3
            rows = phantom.image[y1 + 1 : y1 + 10]
            found.append(abs(float(rows[:, middle - reach : middle].mean()) - float(rows[:, middle : middle + reach].mean())))
        return float(np.mean(found))

    assert halves(Posterior.COMBINED) > 2 * halves(Posterior.NONE)


def test_echo_patterns_are_in_order() -> None:
    """Mean gray inside: anechoic < complex < hypoechoic < isoechoic < hyperechoic, and anechoic is nearly black."""
    order = (EchoPattern.ANECHOIC, EchoPattern.COMPLEX, EchoPattern.HYPOECHOIC, EchoPattern.ISOECHOIC, EchoPattern.HYPERECHOIC)
    grays = []
    for pattern in order:
        frames = [simulate(Pathology.BENIGN, seed=s, descriptors=replace(PLAIN, echo_pattern=pattern)) for s in range(25)]
        grays.append(np.mean([f.image[f.mask].mean() for f in frames]))
    assert all(a < b for a, b in pairwise(grays))
    assert grays[0] < 25


def test_a_heterogeneous_mass_varies_more_inside() -> None:
    """Gray blurred over speckle varies more inside a heterogeneous mass than inside a hypoechoic one."""

    def spread(pattern: EchoPattern) -> float:
        frames = [simulate(Pathology.MALIGNANT, size=128, seed=s, descriptors=replace(PLAIN, echo_pattern=pattern)) for s in range(15)]
        blocks = []
        for frame in frames:
            x0, y0, x1, y1 = pixels(frame)
            core = frame.image[y0 + (y1 - y0) // 4 : y1 - (y1 - y0) // 4, x0 + (x1 - x0) // 4 : x1 - (x1 - x0) // 4].astype(float)
            rows, columns = core.shape[0] // 4 * 4, core.shape[1] // 4 * 4
            blocks.append(core[:rows, :columns].reshape(rows // 4, 4, columns // 4, 4).mean((1, 3)).std())
        return float(np.mean(blocks))

    assert spread(EchoPattern.HETEROGENEOUS) > 1.3 * spread(EchoPattern.HYPOECHOIC)


def test_calcifications_are_bright_points_where_the_label_says() -> None:
    """In the mass, its brightest hundredth is brighter with calcifications than without; outside, the ring around it changes instead."""
    for where in (Calcifications.IN_MASS, Calcifications.OUTSIDE):
        inside, ring = [], []
        for seed in range(20):
            with_, without = (
                simulate(Pathology.MALIGNANT, size=128, seed=seed, descriptors=replace(PLAIN, calcifications=c)) for c in (where, Calcifications.NONE)
            )
            change = with_.image.astype(int) - without.image
            inside.append(change[with_.mask].max())
            ring.append(change[~with_.mask].max())
        assert (np.mean(inside) > 60) == (where is Calcifications.IN_MASS)
        assert (np.mean(ring) > 60) == (where is Calcifications.OUTSIDE)


def test_a_spiculated_mass_reaches_beyond_its_mask() -> None:
    """Spicules change the tissue around the edge, an angular margin of the same outline does not."""
    changes = []
    for seed in range(10):
        one, other = (
            simulate(Pathology.MALIGNANT, size=128, seed=seed, descriptors=replace(PLAIN, margin=m)) for m in (Margin.SPICULATED, Margin.ANGULAR)
        )
        x0, y0, x1, y1 = pixels(one)
        ring = np.zeros_like(one.mask)
        ring[max(y0 - 8, 0) : y1 + 8, max(x0 - 8, 0) : x1 + 8] = True
        ring &= ~(one.mask | other.mask)
        far = np.abs(one.image.astype(int) - other.image)[:8].mean()
        changes.append(np.abs(one.image.astype(int) - other.image)[ring].mean() - far)
    assert np.mean(changes) > 5


@pytest.mark.parametrize("pathology", [Pathology.BENIGN, Pathology.MALIGNANT])
def test_joint_table_is_what_is_drawn(pathology: Pathology) -> None:
    """Shares over 4,000 draws agree with the exact joint table, category by category, within five standard errors; it sums to one."""
    assert sum(chance for _, chance in joint(pathology)) == pytest.approx(1)
    rng = np.random.default_rng(0)
    drawn = Counter(category(draw_descriptors(pathology, rng)) for _ in range(4000))
    for birads, share in category_shares(pathology).items():
        assert abs(drawn[birads] / 4000 - share) <= 5 * np.sqrt(share * (1 - share) / 4000) + 1e-9


@pytest.mark.parametrize("prevalence", [0.25, 0.3, 0.4])
def test_categories_keep_the_atlas_likelihoods(prevalence: float) -> None:
    """Likelihood of malignancy by category: 2 none, 3 to 2 %, 4a to 10 %, 4b to 50 %, 4c to 95 %, 5 above (ACR BI-RADS Atlas 2013)."""
    benign, malignant = category_shares(Pathology.BENIGN), category_shares(Pathology.MALIGNANT)
    limits = {"2": (0, 0.001), "3": (0, 0.02), "4a": (0.02, 0.1), "4b": (0.1, 0.5), "4c": (0.5, 0.95), "5": (0.95, 1)}
    for text, (low, high) in limits.items():
        ill, well = prevalence * malignant.get(Birads(text), 0), (1 - prevalence) * benign.get(Birads(text), 0)
        assert low <= ill / (ill + well) <= high


def test_most_benign_masses_are_low_and_most_malignant_ones_high() -> None:
    """Four fifths of benign masses are 2, 3 or 4a, nine tenths of malignant ones 4b, 4c or 5."""
    benign, malignant = category_shares(Pathology.BENIGN), category_shares(Pathology.MALIGNANT)
    assert sum(benign[b] for b in (Birads.TWO, Birads.THREE, Birads.FOUR_A)) > 0.8
    assert sum(malignant[b] for b in (Birads.FOUR_B, Birads.FOUR_C, Birads.FIVE)) > 0.9


def test_category_rises_with_suspicion() -> None:
    """A simple cyst is 2, a plain oval mass 3, a round one 4a, a spiculated, irregular, shadowing one 5."""
    assert category(replace(PLAIN, echo_pattern=EchoPattern.ANECHOIC)) is Birads.TWO
    assert category(PLAIN) is Birads.THREE
    assert category(ROUND) is Birads.FOUR_A
    assert category(replace(PLAIN, shape=Shape.IRREGULAR, margin=Margin.SPICULATED, posterior=Posterior.SHADOWING)) is Birads.FIVE


def _features(scanner: str) -> np.ndarray:
    """Mean, contrast, axial and lateral roughness and depth fall-off of 16 normal frames, [16, 5]."""
    frames = simulate_batch([Pathology.NORMAL] * 16, seeds=range(16), scanners=[scanner] * 16)
    rows = []
    for frame in frames:
        gray = frame.image.astype(float)
        rough = [np.abs(np.diff(gray, axis=axis)).mean() / gray.std() for axis in (0, 1)]
        rows.append([gray.mean(), gray.std(), *rough, gray[:32].mean() / (gray[32:].mean() + 1)])
    return np.array(rows)


def test_every_two_presets_look_different() -> None:
    """On the same tissue, every two presets differ in at least one statistic by more than four standard errors of the paired difference."""
    features = {name: _features(name) for name in SCANNERS}
    assert len(features) >= 6
    for one, other in combinations(features.values(), 2):
        gap = one - other
        assert (np.abs(gap.mean(0)) > 4 * gap.std(0) / np.sqrt(len(gap))).any()


def test_what_cannot_be_drawn_is_refused() -> None:
    """Too small a frame, lengths that differ, a negative seed, a scanner that is not there, a mass in normal tissue, a round parallel mass."""
    with pytest.raises(ConfigError):
        simulate(Pathology.NORMAL, size=16, seed=0)
    with pytest.raises(ConfigError):
        simulate(Pathology.NORMAL, seed=-1)
    with pytest.raises(ConfigError):
        simulate_batch([Pathology.NORMAL], seeds=[1, 2])
    with pytest.raises(ConfigError):
        simulate_batch([Pathology.NORMAL], seeds=[1], scanners=[None, None])
    with pytest.raises(LabelError):
        simulate(Pathology.NORMAL, seed=0, scanner="Vivid")
    with pytest.raises(LabelError):
        simulate(Pathology.NORMAL, seed=0, descriptors=PLAIN)
    with pytest.raises(ConfigError):
        replace(PLAIN, shape=Shape.ROUND)


def test_an_empty_batch_is_empty() -> None:
    """No pathologies, no frames."""
    assert simulate_batch([], seeds=[]) == []
