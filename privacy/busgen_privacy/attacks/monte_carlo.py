"""Monte-Carlo membership: how many released images fall close to the attacked one?

score(x) = 1/m sum_i [d(x, g_i) <= epsilon], g_1..g_m the released images. The paper takes epsilon from the attacked images: the median
distance of these to their nearest generated image, half of them being members. Here it is the distance that the nearest 10 % of
the *reference* images have to their nearest released image: no patient's score depends on another's, and since no reference image is a
member, copies lie within a smaller radius than their median. (This epsilon is a distance, not that of a privacy budget.)

Source: Hilprecht, Härterich, Bernau 2019, "Monte Carlo and Reconstruction Membership Inference Attacks against Generative
Models", PoPETs 2019(4), doi:10.2478/popets-2019-0067, the estimator f_MC-epsilon and its heuristics for epsilon.
"""

import numpy as np

from busgen_privacy.attacks.base import BlackBoxAttack, Features, Scores
from busgen_privacy.attacks.neighbours import checked, distances, nearest

WITHIN = 0.1  # share of the reference images that have a released one within the radius; .5 halves what is seen of noisy copies


def reach(released: Features, reference: Features) -> float:
    """The radius: a share WITHIN of the reference images have a released image within it."""
    return float(np.quantile(nearest(reference, released), WITHIN))


def score(released: Features, reference: Features, attacked: Features) -> Scores:
    """Share of the released images within the radius around each attacked image, float64 [n].

    Args:
        released: float32 [m, d].
        reference: float32 [r, d].
        attacked: float32 [n, d].

    Raises:
        InputError: features that cannot be compared.
    """
    checked(released, reference, attacked)
    radius = reach(released, reference)
    return np.concatenate([(block <= radius).mean(1) for block in distances(attacked, released)])


ATTACK = BlackBoxAttack(
    name="monte-carlo",
    what="Do more released images fall close to members than to patients never seen?",
    source="Hilprecht et al. 2019, doi:10.2478/popets-2019-0067, f_MC-epsilon",
    score=score,
    pairs=lambda released, reference, attacked: attacked * released + 2 * reference * released,  # the radius is found for each side
)
