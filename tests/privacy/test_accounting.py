"""Epsilon: known answers, monotonicity, agreement, and the noise that keeps a promise."""

import math
from collections.abc import Iterator

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from busgen_core.errors import ConfigError, WatchdogError
from busgen_privacy.dp import accounting
from busgen_privacy.dp.accounting import SAMPLER_SLACK, GaussianEvent, epsilon_of, gdp_delta, gdp_epsilon, gdp_mu, noise_for

DELTA = 1e-5


def closed_form(sigma: float, delta: float) -> float:
    """Balle & Wang 2018, theorem 8, written again from the paper: the slow twin of what the accountants compute."""

    def excess(epsilon: float) -> float:
        left = norm.cdf(1 / (2 * sigma) - epsilon * sigma)
        return float(left - math.exp(epsilon) * norm.cdf(-1 / (2 * sigma) - epsilon * sigma) - delta)

    return float(brentq(excess, 0, 200))


@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0, 20.0])
def test_one_gaussian_has_its_closed_form(sigma: float) -> None:
    """Both accountants bound the analytic Gaussian mechanism from above, to 0.5 % or 0.003."""
    exact = closed_form(sigma, DELTA)
    spent = epsilon_of([GaussianEvent(sigma, 1.0, 1)], delta=DELTA)
    for value in (spent.pld, spent.prv):
        assert exact - 1e-4 <= value <= exact + max(0.003, 0.005 * exact)


def test_repeating_a_gaussian_is_one_with_less_noise() -> None:
    """k releases at noise sigma spend what one at sigma / sqrt(k) spends."""
    many = epsilon_of([GaussianEvent(6.0, 1.0, 9)], delta=DELTA)
    one = epsilon_of([GaussianEvent(2.0, 1.0, 1)], delta=DELTA)
    assert many.epsilon == pytest.approx(one.epsilon, abs=0.005)


def test_known_answer_of_a_sampled_run() -> None:
    """sigma 3.12, q .25, 400 steps at delta 1e-5 spend 8.0, as measured with both libraries before this code was written."""
    spent = epsilon_of([GaussianEvent(3.12, 0.25, 400)], delta=DELTA)
    assert spent.pld == pytest.approx(7.993, abs=0.002)
    assert spent.prv == pytest.approx(8.004, abs=0.01)
    assert spent.epsilon == max(spent.pld, spent.prv) + SAMPLER_SLACK


@pytest.mark.parametrize(
    "more",
    [GaussianEvent(1.9, 0.2, 50), GaussianEvent(2.0, 0.25, 50), GaussianEvent(2.0, 0.2, 60)],
    ids=["less noise", "higher rate", "more steps"],
)
def test_epsilon_grows_with_what_is_revealed(more: GaussianEvent) -> None:
    """Less noise, more sampling and more steps each cost epsilon, by both accountants."""
    base, after = epsilon_of([GaussianEvent(2.0, 0.2, 50)], delta=DELTA), epsilon_of([more], delta=DELTA)
    assert after.pld > base.pld
    assert after.prv > base.prv


def test_another_event_costs_and_order_does_not_matter() -> None:
    """Composing adds epsilon; the same events in any order or split give the same figure."""
    run, audit = GaussianEvent(3.0, 0.25, 100), GaussianEvent(4.0, 1.0, 1)
    alone, both = epsilon_of([run], delta=DELTA), epsilon_of([run, audit], delta=DELTA)
    assert both.epsilon > alone.epsilon + 0.05
    split = [audit, GaussianEvent(3.0, 0.25, 60), GaussianEvent(3.0, 0.25, 40)]
    assert epsilon_of(split, delta=DELTA) == both


def test_a_smaller_delta_costs_epsilon() -> None:
    """The same run states a larger epsilon at a smaller delta."""
    run = [GaussianEvent(3.0, 0.25, 100)]
    assert epsilon_of(run, delta=1e-6).epsilon > epsilon_of(run, delta=1e-5).epsilon


def test_hopeless_noise_is_infinite() -> None:
    """A composition far above epsilon 100 is stated as infinite, so no cap admits it."""
    assert epsilon_of([GaussianEvent(0.06, 1.0, 50)], delta=DELTA).epsilon == math.inf


def test_accountants_that_disagree_stop_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 1 % (and 0.01) between the accountants, or a NaN, is an error, never the smaller figure."""
    run = [GaussianEvent(3.0, 0.25, 77)]
    for wrong in (1.02, math.nan):
        monkeypatch.setattr(accounting, "_pld", lambda events, delta, wrong=wrong: accounting._prv(events, delta, error=0.002) * wrong)
        with pytest.raises(WatchdogError, match="disagree"):
            epsilon_of(run, delta=DELTA)


@pytest.mark.parametrize(
    "values",
    [(0.0, 0.5, 1), (math.nan, 0.5, 1), (math.inf, 0.5, 1), (-1.0, 0.5, 1), (1.0, 0.0, 1), (1.0, 1.1, 1), (1.0, math.nan, 1), (1.0, 0.5, 0)],
)
def test_events_outside_their_range_are_refused(values: tuple[float, float, int]) -> None:
    """No event exists whose epsilon could not be computed."""
    with pytest.raises(ConfigError):
        GaussianEvent(*values)


@pytest.mark.parametrize("delta", [0.0, 1.0, math.nan, 1e-12])
def test_deltas_outside_their_range_are_refused(delta: float) -> None:
    """A delta that the accountants cannot resolve is an error."""
    with pytest.raises(ConfigError):
        epsilon_of([GaussianEvent(1.0, 1.0, 1)], delta=delta)


@pytest.mark.parametrize(("epsilon", "beside"), [(1.0, ()), (8.0, (GaussianEvent(4.0, 1.0, 1),))])
def test_noise_keeps_the_promise_and_no_more(epsilon: float, beside: tuple[GaussianEvent, ...]) -> None:
    """The noise found keeps epsilon, with what stands beside it; 0.02 % less noise breaks it."""
    sigma = noise_for(epsilon=epsilon, delta=DELTA, sample_rate=0.25, steps=50, beside=beside)
    assert epsilon_of([GaussianEvent(sigma, 0.25, 50), *beside], delta=DELTA).epsilon <= epsilon
    assert epsilon_of([GaussianEvent(0.9998 * sigma, 0.25, 50), *beside], delta=DELTA).epsilon > epsilon


@pytest.fixture
def unremembered(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Patches of the accountants, with nothing remembered from before and nothing left behind."""
    for cached in (accounting._composed, accounting._quick):
        cached.cache_clear()
    yield monkeypatch
    for cached in (accounting._composed, accounting._quick):
        cached.cache_clear()


@pytest.mark.parametrize(("dearer", "asked"), [(0.999, 2), (1.005, 30)])
def test_noise_is_what_both_accountants_allow(unremembered: pytest.MonkeyPatch, dearer: float, asked: int) -> None:
    """The slow accountant judges what the quick one found; where it states more, it joins the search, and noise is still least."""
    unremembered.setattr(accounting, "_pld", lambda events, delta: calls.append(events) or dearer * accounting._prv(events, delta, error=0.002))
    calls: list[object] = []
    sigma = noise_for(epsilon=4.0, delta=DELTA, sample_rate=1.0, steps=1, beside=(GaussianEvent(5.0, 1.0, 1),))
    assert 2 <= len(calls) <= asked
    for share, kept in ((1.0, True), (0.9998, False)):
        spent = epsilon_of([GaussianEvent(share * sigma, 1.0, 1), GaussianEvent(5.0, 1.0, 1)], delta=DELTA)
        assert (spent.epsilon <= 4.0) == kept


def test_noise_beside_figures_that_use_all_is_refused() -> None:
    """When the audit alone spends the campaign's epsilon, no adaptation fits."""
    with pytest.raises(ConfigError, match="use all"):
        noise_for(epsilon=0.5, delta=DELTA, sample_rate=0.25, steps=50, beside=[GaussianEvent(4.0, 1.0, 1)])


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 8.0, 40.0])
def test_mu_inverts_its_curve(epsilon: float) -> None:
    """The mu of (epsilon, delta) has exactly that delta at epsilon, and 1 / mu is the noise of one Gaussian."""
    mu = gdp_mu(epsilon, DELTA)
    assert gdp_delta(mu, epsilon) == pytest.approx(DELTA, rel=1e-5)
    assert closed_form(1 / mu, DELTA) == pytest.approx(epsilon, rel=1e-5)


@pytest.mark.parametrize("mu", [0.3, 0.732, 1.666, 5.0])
def test_epsilon_of_mu_inverts_the_accountants(mu: float) -> None:
    """Epsilon of mu-GDP gives back delta and mu; below the smallest mu that delta forgives, epsilon is 0."""
    epsilon = gdp_epsilon(mu, 1e-5)
    assert gdp_delta(mu, epsilon) == pytest.approx(1e-5, rel=1e-6)
    assert gdp_mu(epsilon, 1e-5) == pytest.approx(mu, rel=1e-6)
    assert gdp_epsilon(1e-6, 1e-5) == 0
