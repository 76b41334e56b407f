"""The report that travels with a release: what its ``audit.json`` holds, for people. Noised figures and public constants; no image can enter it."""

from collections.abc import Mapping

from scipy.optimize import brentq
from scipy.special import ndtri

from busgen_core.release import GateVerdict, PrivacyStatement
from busgen_privacy.audit import TravellingAttack, TravellingAudit
from busgen_privacy.charts import Estimate, bars, forest
from busgen_privacy.dp.accounting import gdp_epsilon
from busgen_privacy.leak import mu_of
from busgen_privacy.page import figures, methods_named, promise_in_words, render_page
from busgen_privacy.policy import CONSORTIUM_GATE
from busgen_privacy.power import OFTEN
from busgen_privacy.statistics import auc_deviation

FIGURES = ("auc", "noised", "ceiling", "epsilon_noised", "caught_noised", "accountant")
WIDTH = float(ndtri(0.975))  # of a 95 % interval, in standard deviations


def render(
    audit: TravellingAudit,
    *,
    verdict: GateVerdict,
    statement: PrivacyStatement,
    facts: Mapping[str, str],
    language: str = "en",
) -> str:
    """The audit that travels as one HTML file; the hospital's own, with exact figures, is ``findings_report``.

    Guarantees: post-processing of its arguments, none of which holds an image or an exact figure of the audit.

    Args:
        audit: Noised figures and public constants.
        verdict: The gate's, on these figures.
        statement: What is promised.
        facts: What the reader should know of the release, label to text, in this order; public.
        language: Of the sentences (``texts``); reasons and statement stay as they were given.

    Raises:
        ConfigError: a language that is not there.
    """
    return render_page(
        "report.html",
        language=language,
        audit=audit,
        verdict=verdict,
        statement=statement,
        facts=facts,
        factor=promise_in_words(statement.epsilon, language),
        strongest=max(audit.attacks, key=lambda attack: attack.auc),
        caught=caught_noised(audit, ceiling=max(attack.ceiling for attack in audit.attacks)),
        must_catch=CONSORTIUM_GATE.must_catch_auc,
        forest=forest([Estimate(name=a.name, auc=a.auc, low=a.low, high=a.high, ceiling=a.ceiling) for a in audit.attacks]),
        epsilons=bars({attack.name: _epsilon_low(attack, audit.delta) for attack in audit.attacks}, held=audit.epsilon),
        methods=methods_named(" ".join(attack.what for attack in audit.attacks), language),
        figures=figures(FIGURES, language),
    )


def caught_noised(audit: TravellingAudit, *, ceiling: float, often: float = OFTEN) -> float | None:
    """Smallest true AUC whose noised figure lies, interval and all, above ``ceiling`` with chance ``often``; None where none does.

    A figure of true value A is drawn with deviation s(A): that of an AUC on the public floors of patients (Hanley & McNeil 1982,
    equation 2) and of the noise together. It is called from k = ceiling + 1.96 s(k) on, and A = k + z(often) s(A).

    >>> loud, quiet = (TravellingAudit.model_construct(smallest_cohort=300, smallest_holdout=200, noise_std=std) for std in (0.2, 0.02))
    >>> print(caught_noised(loud, ceiling=0.694), round(caught_noised(quiet, ceiling=0.694) or 0, 2))
    None 0.78
    """

    def deviation(value: float) -> float:
        sampling = auc_deviation(value, positives=audit.smallest_cohort, negatives=audit.smallest_holdout)
        return float((sampling**2 + audit.noise_std**2) ** 0.5)

    def called(value: float) -> float:
        return value - ceiling - WIDTH * deviation(value)

    if called(1.0) <= 0:
        return None
    threshold = brentq(called, ceiling, 1.0)

    def excess(value: float) -> float:
        return float(value - threshold - ndtri(often) * deviation(value))

    return float(brentq(excess, threshold, 1.0)) if excess(1.0) > 0 else None


def _epsilon_low(attack: TravellingAttack, delta: float) -> float:
    """Epsilon of the Gaussian leak whose AUC is the lower end of the interval."""
    return gdp_epsilon(mu_of(attack.low), delta)
