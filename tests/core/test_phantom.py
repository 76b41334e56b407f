"""The phantom."""

import numpy as np
import pytest

from busgen_core.errors import ConfigError
from busgen_core.labels import Pathology
from busgen_core.phantom import simulate


def test_the_same_seed_gives_the_same_bytes() -> None:
    """A phantom is a function of its arguments."""
    one, two, other = (simulate(Pathology.MALIGNANT, seed=s).image for s in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("pathology", list(Pathology))
def test_lesions_are_darker_than_their_surroundings(pathology: Pathology) -> None:
    """Over 30 seeds, the middle of a lesion's box is darker than the tissue beside it; normal tissue has no box."""
    inside, beside = [], []
    for seed in range(30):
        phantom = simulate(pathology, seed=seed)
        if phantom.box is None:
            continue
        x0, y0, x1, y1 = (round(v * 64) for v in phantom.box)
        middle = phantom.image[(y0 + y1) // 2 - 1 : (y0 + y1) // 2 + 2]
        inside.append(middle[:, (x0 + x1) // 2 - 1 : (x0 + x1) // 2 + 2].mean())
        beside.append(np.delete(middle, slice(x0, x1), axis=1).mean())
    assert (not inside) == (pathology is Pathology.NORMAL)
    if inside:
        assert np.mean(inside) < 0.7 * np.mean(beside)


def test_too_small_a_frame_is_refused() -> None:
    """Below 32 px there is nothing to draw."""
    with pytest.raises(ConfigError):
        simulate(Pathology.NORMAL, size=16, seed=0)
