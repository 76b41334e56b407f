"""What leak an attack would have caught on this cohort, so that a pass of a blind attack is not read as safety.

The gate calls an AUC significant above c. With n members and m holdout patients an estimate has standard deviation s(c) (Hanley & McNeil
1982, doi:10.1148/radiology.143.1.7063747, equation 2), so it is called from k = c + z(1 - level) s(c) on, and the true AUC that is called
in four cases of five solves A = k + z(0.8) s(A). Holm's first step is the level shared by all tests; its later steps only catch more.
The true AUC is that of this attack: a leak that another attack would use is not in it.
"""

from dataclasses import dataclass
from math import ceil

from scipy.optimize import brentq
from scipy.special import ndtri

from busgen_core.errors import InputError
from busgen_privacy.dp.accounting import gdp_epsilon
from busgen_privacy.leak import mu_of
from busgen_privacy.statistics import auc_deviation

OFTEN = 0.8  # "four times out of five"
HIGHEST = 1 - 1e-6  # from here on an AUC counts as perfect


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """What an attack would have caught.

    Attributes:
        members: Member patients attacked.
        holdout: Holdout patients attacked.
        auc: Smallest true AUC that is refused with chance 0.8; None where no AUC would be.
        mu: The same as a Gaussian leak.
        epsilon: Epsilon of that leak at ``delta``.
        delta: Where epsilon is stated.
    """

    members: int
    holdout: int
    auc: float | None
    mu: float | None
    epsilon: float | None
    delta: float


def critical_auc(*, members: int, holdout: int, level: float, null: float = 0.5) -> float:
    """AUC from which an attack is called significantly above ``null``; above 1 where none is.

    >>> round(critical_auc(members=60, holdout=40, level=0.05), 3)
    0.597

    Raises:
        InputError: fewer than two patients on a side, or a level or null outside its range.
    """
    if min(members, holdout) < 2 or not (0 < level < 1 and 0.5 <= null < 1):
        raise InputError("power needs two patients on each side, a level in (0, 1) and a null in [0.5, 1)")
    return null - float(ndtri(level)) * auc_deviation(null, positives=members, negatives=holdout)


def caught_auc(*, members: int, holdout: int, level: float, null: float = 0.5, often: float = OFTEN) -> float | None:
    """Smallest true AUC that is called significant with chance ``often``; None where even a perfect attack is not.

    Args:
        members: Member patients attacked.
        holdout: Holdout patients attacked.
        level: Of this one test: the family's level / number of tests.
        null: AUC that is granted.
        often: Chance of being caught, above 1/2.

    >>> round(caught_auc(members=60, holdout=40, level=0.025) or 0, 2)
    0.66
    """
    critical = critical_auc(members=members, holdout=holdout, level=level, null=null)

    def excess(value: float) -> float:
        return value - critical - float(ndtri(often)) * auc_deviation(value, positives=members, negatives=holdout)

    return float(brentq(excess, null, HIGHEST, xtol=1e-9)) if excess(HIGHEST) > 0 else None


def sight(*, members: int, holdout: int, level: float, tests: int, null: float = 0.5, reach: float = 1.0, delta: float = 1e-5) -> Sight:
    """What one of ``tests`` tests, corrected together at the family's ``level``, would have caught.

    Args:
        members: Member patients attacked.
        holdout: Holdout patients attacked.
        level: Of the family.
        tests: How many tests share it.
        null: AUC that is granted (``gate``).
        reach: Largest AUC that the scores allow, however they were split (``statistics.best_auc``): an attack whose scores tie so much
            that it could not come as far as what it would catch catches nothing.
        delta: Where the caught leak's epsilon is stated.
    """
    value = caught_auc(members=members, holdout=holdout, level=level / tests, null=null)
    if value is not None and value > reach:
        value = None
    mu = None if value is None else mu_of(value)
    return Sight(members=members, holdout=holdout, auc=value, mu=mu, epsilon=None if mu is None else gdp_epsilon(mu, delta), delta=delta)


def in_words(seen: Sight) -> str:
    """One or two sentences for people.

    >>> in_words(sight(members=3, holdout=3, level=0.05, tests=24))
    'With 3 members and 3 holdout patients this attack could not be relied on to catch any leak; that it found nothing says nothing.'
    """
    who = f"With {seen.members} members and {seen.holdout} holdout patients this attack"
    if seen.auc is None:
        return f"{who} could not be relied on to catch any leak; that it found nothing says nothing."
    return f"{who} would have caught, four times out of five, a leak of AUC {_two_digits(seen.auc)} or more; a smaller one may be there."


def _two_digits(value: float) -> str:
    """An AUC, rounded up: what is said to be caught is caught."""
    return f"{ceil(value * 100 - 1e-9) / 100:.2f}".removeprefix("0")
