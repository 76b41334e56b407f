"""GAN-Leaks: how near is the nearest released image, for an image that is this unusual?

score(x) = min_j d(x, r_j) - min_i d(x, g_i), g the released and r the reference images: the full black-box attack, whose distance is
calibrated by that of the nearest reference image, since a common-looking image is near to everything.

Source: Chen et al. 2020, arXiv:1909.03935, the full black-box attack R(x | G_v) = argmin_i L(x, G_v(.)_i) and the attack
calibration L_cal = L(x, R(x | G_v)) - L(x, R(x | G_r)); the reference model's samples are here public images.
"""

from busgen_privacy.attacks.base import BlackBoxAttack, Features, Scores, every_pair
from busgen_privacy.attacks.neighbours import checked, nearest


def score(released: Features, reference: Features, attacked: Features) -> Scores:
    """Distance to the nearest reference image minus that to the nearest released one, float64 [n].

    Args:
        released: float32 [m, d].
        reference: float32 [r, d].
        attacked: float32 [n, d].

    Raises:
        InputError: features that cannot be compared.
    """
    checked(released, reference, attacked)
    return nearest(attacked, reference) - nearest(attacked, released)


ATTACK = BlackBoxAttack(
    name="gan-leaks",
    what="Is the nearest released image nearer to members than to patients never seen, allowing for how common each image looks?",
    source="Chen et al. 2020, arXiv:1909.03935, full black-box attack with calibration",
    score=score,
    pairs=every_pair,
)
