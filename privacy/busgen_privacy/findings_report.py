"""The hospital's own report of a suite's findings, exact and with the nearest pairs: it must not leave. What travels is ``report``."""

from collections.abc import Mapping, Sequence

import numpy as np

from busgen_core.release import GateVerdict, PrivacyStatement
from busgen_privacy.charts import Estimate, Histograms, Rocs, bars, forest, histograms, log_rocs
from busgen_privacy.dp.accounting import gdp_mu
from busgen_privacy.findings import AttackFinding, Findings
from busgen_privacy.page import Method, data_url, figures, group, promise_in_words, render_page

RATES = (0.05, 0.01, 0.001)  # of false alarms, in the table
FIGURES = (
    "auc",
    "interval",
    "exact",
    "chance",
    "hits",
    "outright",
    "together",
    "ceiling",
    "epsilon_low",
    "epsilon_any",
    "epsilon_coin",
    "caught",
    "copies",
    "registered",
    "disclosure",
)


def render_findings(
    findings: Findings,
    *,
    verdict: GateVerdict,
    facts: Mapping[str, str],
    statement: PrivacyStatement | None = None,
    pairs: Sequence[tuple[bytes, bytes]] = (),
    language: str = "en",
) -> str:
    """The findings as one HTML file, with exact figures: it must not leave the hospital.

    Args:
        findings: Of a suite.
        verdict: The gate's.
        facts: What the reader should know of the release, label to text, in this order.
        statement: The privacy statement, where the release has one.
        pairs: Nearest (real, synthetic) PNGs.
        language: Of the sentences (``texts``); reasons stay as the gate gave them.

    Raises:
        ConfigError: a language that is not there.
    """
    attacks = ranked(findings.attacks)
    deciding = [attack for attack in attacks if not attack.diagnostic]
    seen = [attack.caught for attack in deciding if attack.caught is not None]
    claim, coins = findings.epsilon, any(attack.epsilon_coin is not None for attack in deciding)
    computed = [name for name in FIGURES if name != "epsilon_coin" or coins]
    return render_page(
        "findings.html",
        language=language,
        found=findings,
        attacks=attacks,
        strongest=deciding[0] if deciding else None,
        caught=min(seen, default=None),
        blind=[attack.name for attack in deciding if attack.caught is None],
        verdict=verdict,
        facts=facts,
        statement=statement,
        factor=None if claim is None else promise_in_words(claim, language),
        forest=forest([_estimate(attack) for attack in attacks]),
        rates=RATES,
        rocs=_rocs(findings, deciding),
        coins=coins,
        epsilons=bars({attack.name: attack.epsilon_low for attack in deciding}, held=claim),
        distances=_distances(findings, language),
        pairs=[tuple(data_url(png) for png in pair) for pair in pairs],
        methods=_methods(attacks, language),
        figures=figures(computed if statement is None else [*computed, "accountant"], language),
    )


def ranked(attacks: Sequence[AttackFinding]) -> list[AttackFinding]:
    """Strongest first, diagnostic ones last."""
    return sorted(attacks, key=lambda attack: (attack.diagnostic, -attack.auc))


def _estimate(attack: AttackFinding) -> Estimate:
    return Estimate(
        name=attack.name,
        auc=attack.auc,
        low=attack.low,
        high=attack.high,
        ceiling=attack.ceiling,
        caught=attack.caught,
        diagnostic=attack.diagnostic,
    )


def _rocs(findings: Findings, attacks: Sequence[AttackFinding]) -> Rocs:
    scores = {attack.name: (np.array(attack.scores.members), np.array(attack.scores.holdout)) for attack in attacks}
    promised = None if findings.epsilon is None or findings.delta is None else gdp_mu(findings.epsilon, findings.delta)
    return log_rocs(scores, mu=promised)


def _distances(findings: Findings, language: str) -> Histograms:
    names = group("groups", language)
    return histograms({names[name]: np.array(values) for name, values in findings.distances.model_dump().items()})


def _methods(attacks: Sequence[AttackFinding], language: str) -> list[Method]:
    """How each attack works; an attack that the texts do not know is told by its own question."""
    words, units = group("methods", language), group("costs", language)
    return [Method(name=a.name, words=words.get(a.name, a.what), source=a.source, cost=units[a.kind].format(count=f"{a.cost:,.0f}")) for a in attacks]
