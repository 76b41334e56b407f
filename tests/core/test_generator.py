"""Network, conditions, sampling."""

import numpy as np
import torch

from busgen_core.boxes import fit_boxes
from busgen_core.generator import Conditions, Shape, build_network, build_scheduler, fold, sample, unfold
from busgen_core.labels import CLASS_COUNT, NULL_INDEX, Pathology

TINY = Shape(image_px=32, channels=(8, 16), groups=4, heads=8)


def test_the_shipped_shape_has_one_to_two_million_parameters() -> None:
    """The default network is small enough for two cores."""
    assert 1e6 < sum(p.numel() for p in build_network(Shape()).parameters()) < 2e6


def test_normal_is_not_the_null_label() -> None:
    """ "Normal" and "no label given" are different classes of the network."""
    assert Pathology.NORMAL.class_index != NULL_INDEX < CLASS_COUNT
    assert build_network(TINY).class_embedding.num_embeddings == CLASS_COUNT


def test_folding_loses_nothing() -> None:
    """Patches and pixels are the same numbers."""
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(unfold(fold(images)), images)


def test_an_image_depends_on_its_seed_and_condition_alone() -> None:
    """The same image comes back alone and inside a batch; another seed gives another image."""
    network, scheduler = build_network(TINY).eval(), build_scheduler()
    box = (0.2, 0.2, 0.7, 0.6)
    both = sample(network, scheduler, Conditions(classes=torch.tensor([1, 2]), boxes=[box, None]), seeds=[5, 6], evaluations=3)
    alone = sample(network, scheduler, Conditions(classes=torch.tensor([2]), boxes=[None]), seeds=[6], evaluations=3)
    assert both.shape == (2, 1, 32, 32)
    assert both.isfinite().all()
    assert torch.allclose(both[1], alone[0], atol=2e-2)  # bfloat16 kernels may differ with the batch size
    assert not torch.allclose(both[0], both[1], atol=0.1)


def test_boxes_follow_their_fit_and_stay_inside() -> None:
    """Boxes drawn from a fit lie in the frame; a class without lesions has none."""
    rng = np.random.default_rng(0)
    corners = [(float(x), 0.3, float(x) + 0.2, 0.6) for x in rng.uniform(0.1, 0.6, 50)]
    density = fit_boxes({Pathology.BENIGN: corners})
    drawn = [density.draw(Pathology.BENIGN, rng) for _ in range(200)]
    assert all(b is not None and 0 <= b[0] < b[2] <= 1 and 0 <= b[1] < b[3] <= 1 for b in drawn)
    assert abs(np.mean([b[2] - b[0] for b in drawn if b]) - 0.2) < 0.02
    assert density.draw(Pathology.NORMAL, rng) is None
