"""Two accountants for the same mechanisms; they must agree, and the larger epsilon is the one stated.

PLD: dp_accounting, privacy loss distributions (Koskela et al. 2020, arXiv:1906.03049; Doroshenko et al. 2022,
arXiv:2207.04380), pessimistic discretisation, the worse of adding and of removing a patient.
PRV: Opacus, privacy random variables (Gopi, Lee, Wutschitz 2021, arXiv:2106.02848), upper bound of its error interval.

Noise is drawn from a discrete Gaussian, whose epsilon is that of the real one up to SAMPLER_SLACK (derived in dp/noise.py). So both
accountants are asked at delta (1 - SAMPLER_SLACK), and what is stated is SAMPLER_SLACK above the larger answer.

Heavy libraries are imported inside the functions: whoever only names an event waits neither for torch nor for scipy.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import exp, inf, isfinite, log, sqrt

from busgen_core.errors import ConfigError, WatchdogError

PLD_INTERVAL = 1e-4  # width of a bin of the privacy loss
PRV_ERROR, PRV_SHARE = 2e-3, 1e-3  # error bound that PRV adds: absolute, or this share of epsilon if that is more
DISAGREE_SHARE, DISAGREE_GAP = 0.01, 0.01  # relative and absolute; both exceeded means disagreement
NO_PROMISE = 100.0  # from here on epsilon is reported as infinite: no policy may allow it
QUIETEST, MOST = 0.05, 20_000  # smallest noise multiplier and largest number of compositions that are computed
SAMPLER_SLACK = 1e-5  # epsilon, and share of delta, between the discrete noise that is drawn and the real Gaussian
NOISE_STEP = 1e-5  # relative accuracy of the smallest noise


@dataclass(frozen=True, slots=True)
class GaussianEvent:
    """A Gaussian mechanism, Poisson-sampled by patient and repeated. The relation is to add or remove one patient.

    Attributes:
        noise_multiplier: Noise standard deviation / L2 sensitivity to one patient.
        sample_rate: Chance that a given patient enters one repetition, in (0, 1].
        count: Repetitions.

    Raises:
        ConfigError: a value outside its range; noise below 0.05 is no protection and is not computed.
    """

    noise_multiplier: float
    sample_rate: float
    count: int

    def __post_init__(self) -> None:
        if not (isfinite(self.noise_multiplier) and self.noise_multiplier >= QUIETEST):
            raise ConfigError(f"noise_multiplier={self.noise_multiplier} is not a finite number of at least {QUIETEST}")
        if not 0 < self.sample_rate <= 1:
            raise ConfigError(f"sample_rate={self.sample_rate} is not in (0, 1]")
        if not 1 <= self.count <= MOST:
            raise ConfigError(f"count={self.count} is not in 1 to {MOST}")


@dataclass(frozen=True, slots=True)
class Spent:
    """Epsilon of a composition at one delta: what is stated, and both accountants' figures."""

    epsilon: float
    pld: float
    prv: float


def epsilon_of(events: Sequence[GaussianEvent], *, delta: float) -> Spent:
    """Epsilon of all events composed, adaptively and in any order.

    Guarantees: the epsilon stated is the larger of two upper bounds, plus SAMPLER_SLACK for the noise as it is drawn (at most
    2^23 numbers a repetition). It does not depend on the order of ``events``.

    Returns:
        Zero for no events; infinite where epsilon is far above 100 and therefore no promise.

    Raises:
        ConfigError: delta outside [1e-10, 0.1], or more than 20,000 compositions.
        WatchdogError: the accountants differ by more than 1 % and 0.01, or one of them failed.

    >>> epsilon_of([], delta=1e-5).epsilon
    0.0
    """
    if not 1e-10 <= delta <= 0.1:
        raise ConfigError(f"delta={delta} is not in [1e-10, 0.1]")
    return _composed(_merged(events), delta)


Merged = tuple[tuple[float, float, int], ...]  # noise multiplier, sample rate, count; sorted


def _merged(events: Iterable[GaussianEvent]) -> Merged:
    counts: Counter[tuple[float, float]] = Counter()
    for event in events:
        counts[float(event.noise_multiplier), float(event.sample_rate)] += event.count
    if counts.total() > MOST:
        raise ConfigError(f"{counts.total()} compositions; at most {MOST} are computed")
    return tuple(sorted((sigma, rate, count) for (sigma, rate), count in counts.items()))


@contextmanager
def _accountant() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's log(0) at sample_rate = 1; RDP orders that only size the grid
        try:
            yield
        except (ValueError, RuntimeError, FloatingPointError, MemoryError) as error:
            raise WatchdogError(f"an accountant failed ({type(error).__name__}: {error}); no epsilon can be stated") from error


@lru_cache(maxsize=256)
def _composed(events: Merged, delta: float) -> Spent:
    if not events:
        return Spent(0.0, 0.0, 0.0)
    prv = _quick(events, delta)
    if prv is None:
        return Spent(inf, inf, inf)
    with _accountant():
        pld = _pld(events, delta * (1 - SAMPLER_SLACK))
    gap = abs(pld - prv)
    if not gap <= max(DISAGREE_GAP, DISAGREE_SHARE * max(pld, prv)):  # NaN disagrees too
        raise WatchdogError(f"accountants disagree: PLD {pld:.4f}, PRV {prv:.4f} at delta {delta:g}; no epsilon can be stated")
    return Spent(max(pld, prv) + SAMPLER_SLACK, pld, prv)


@lru_cache(maxsize=256)
def _quick(events: Merged, delta: float) -> float | None:
    """The second accountant's figure, up to a hundred times sooner there than the first's; None where epsilon is far above any promise."""
    with _accountant():
        loose = _rdp(events, delta)
        if loose > 2 * NO_PROMISE:
            return None
        return _prv(events, delta * (1 - SAMPLER_SLACK), error=max(PRV_ERROR, PRV_SHARE * loose))


def _pld(events: Sequence[tuple[float, float, int]], delta: float) -> float:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=PLD_INTERVAL)
    for sigma, rate, count in events:
        gaussian = GaussianDpEvent(sigma)
        accountant.compose(SelfComposedDpEvent(gaussian if rate == 1 else PoissonSampledDpEvent(rate, gaussian), count))
    return float(accountant.get_epsilon(delta))


def _prv(events: Sequence[tuple[float, float, int]], delta: float, *, error: float) -> float:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = list(events)
    return float(accountant.get_epsilon(delta, eps_error=error))


def _rdp(events: Sequence[tuple[float, float, int]], delta: float) -> float:
    """A loose upper bound that costs nothing: it only tells what is not worth computing."""
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = list(events)
    return float(accountant.get_epsilon(delta))


def noise_for(*, epsilon: float, delta: float, sample_rate: float, steps: int, beside: Sequence[GaussianEvent]) -> float:
    """Smallest noise multiplier of ``steps`` DP-SGD steps that keeps them and ``beside`` within ``epsilon``.

    The quicker accountant leads the search; what it finds is judged by both, and where that does not hold both search on from there.

    Guarantees: ``epsilon_of([GaussianEvent(returned, sample_rate, steps), *beside], delta=delta).epsilon <= epsilon``;
    that is checked on the value returned. The smallest noise is met from above, to 0.01 %.

    Raises:
        ConfigError: ``beside`` alone leaves nothing of epsilon, or an argument is outside its range.
    """
    if not 0 < epsilon <= NO_PROMISE:
        raise ConfigError(f"epsilon={epsilon} is not in (0, {NO_PROMISE:g}]")
    if epsilon_of(beside, delta=delta).epsilon >= epsilon:
        raise ConfigError(f"the figures beside the adaptation use all of epsilon {epsilon:g}; ask for more or raise their noise")

    def events(sigma: float) -> list[GaussianEvent]:
        return [GaussianEvent(sigma, sample_rate, steps), *beside]

    def at_least(sigma: float) -> float:  # no more than what both state
        found = _quick(_merged(events(sigma)), delta)
        return inf if found is None else found + SAMPLER_SLACK

    def stated(sigma: float) -> float:
        return epsilon_of(events(sigma), delta=delta).epsilon

    start = max(2 * QUIETEST, sample_rate * sqrt(steps) / gdp_mu(epsilon, delta))  # central limit: Dong, Roth, Su 2022
    sigma = _least_noise(at_least, epsilon, start)
    return sigma if stated(sigma) <= epsilon else _least_noise(stated, epsilon, sigma)


def _least_noise(spent: Callable[[float], float], epsilon: float, start: float) -> float:
    """Smallest noise of which ``spent`` says at most ``epsilon``, met from above; QUIETEST where even that keeps it."""
    from scipy.optimize import brentq

    def excess(log_sigma: float) -> float:
        return log(min(spent(exp(log_sigma)), 10 * NO_PROMISE) / epsilon)

    high = start
    while spent(high) > epsilon:
        high *= 1.3
        if high > 1e6:
            raise ConfigError(f"no noise keeps epsilon within {epsilon:g} beside the other figures")
    low = max(QUIETEST, high / 1.3)
    while spent(low) <= epsilon:
        if low == QUIETEST:
            return QUIETEST
        low, high = max(QUIETEST, low / 1.3), low
    sigma = exp(brentq(excess, log(low), log(high), xtol=NOISE_STEP, rtol=1e-9))
    while spent(sigma) > epsilon:  # the root may lie on the wrong side by the tolerance
        sigma *= 1 + NOISE_STEP
    return sigma


def gdp_delta(mu: float, epsilon: float) -> float:
    """Delta of mu-Gaussian DP at ``epsilon``: Phi(mu/2 - eps/mu) - exp(eps) Phi(-mu/2 - eps/mu).

    Source: Balle & Wang 2018, arXiv:1805.06530, theorem 8; Dong, Roth, Su 2022, arXiv:1905.02383, corollary 1.
    """
    from scipy.special import log_ndtr

    return exp(log_ndtr(mu / 2 - epsilon / mu)) - exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))


def gdp_mu(epsilon: float, delta: float) -> float:
    """The mu of the Gaussian mechanism that is exactly (epsilon, delta)-DP, at most 100: from there on one patient is seen without fail.

    Raises:
        ConfigError: a promise so strict that no mu of 1e-6 or more keeps it, or none: epsilon below 0, infinite, delta not in (0, 1).

    >>> round(gdp_mu(8.0, 1e-5), 3)
    1.666
    >>> gdp_mu(1e6, 1e-5)
    100.0
    """
    from scipy.optimize import brentq

    low, high = 1e-6, 100.0
    if not (0 <= epsilon < inf and 0 < delta < 1) or gdp_delta(low, epsilon) > delta:
        raise ConfigError(f"epsilon={epsilon:g}, delta={delta:g}: not a promise, or a stricter one than can be computed")
    if gdp_delta(high, epsilon) <= delta:
        return high
    return float(brentq(lambda mu: gdp_delta(mu, epsilon) - delta, low, high, xtol=1e-10))


def gdp_epsilon(mu: float, delta: float) -> float:
    """Epsilon of mu-Gaussian DP at ``delta``; the inverse of ``gdp_delta``, 0 at least.

    >>> round(gdp_epsilon(1.666, 1e-5), 2)
    8.0
    """
    from scipy.optimize import brentq
    from scipy.special import ndtri

    if mu <= 0 or gdp_delta(mu, 0.0) <= delta:
        return 0.0
    high = mu**2 / 2 - mu * float(ndtri(delta))  # delta(eps) <= Phi(mu/2 - eps/mu)
    return float(brentq(lambda epsilon: gdp_delta(mu, epsilon) - delta, 0.0, high, xtol=1e-9))
