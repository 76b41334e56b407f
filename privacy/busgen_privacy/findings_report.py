"""The hospital's own report of a suite's findings: one HTML file that needs nothing else, the verdict and its reasons first.

No script, no font, no picture from elsewhere; a content security policy in the file holds a browser to that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from busgen_core.release import GateVerdict, PrivacyStatement
from busgen_privacy.charts import histograms, log_roc, roc
from busgen_privacy.dp.accounting import gdp_mu
from busgen_privacy.findings import Findings
from busgen_privacy.report import data_url, promise_in_words
from busgen_privacy.texts import texts

WIDEST = 360.0  # of a bar, SVG units


@dataclass(frozen=True, slots=True)
class Bar:
    """One epsilon."""

    name: str
    value: float
    width: float
    claim: bool
    above: bool  # a measured bound above the claim


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
    environment = Environment(
        loader=PackageLoader("busgen_privacy"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    claim = None if findings.epsilon is None or findings.delta is None else (findings.epsilon, findings.delta)
    sentences = texts(language)
    groups = {str(sentences[name]): np.array(values) for name, values in findings.distances.model_dump().items()}
    curves = {a.name: roc(np.array(a.scores.members), np.array(a.scores.holdout)) for a in findings.attacks if not a.diagnostic}
    return environment.get_template("findings.html").render(
        found=findings,
        verdict=verdict,
        facts=facts,
        statement=statement,
        factor=None if claim is None else promise_in_words(claim[0]),
        roc=log_roc(curves, mu=None if claim is None else gdp_mu(*claim)),
        bars=_bars(findings, str(sentences["claimed"])),
        distances=histograms(groups),
        pairs=[tuple(data_url(png) for png in pair) for pair in pairs],
        t=sentences,
        language=language,
    )


def _bars(findings: Findings, claimed: str) -> list[Bar]:
    claim = findings.epsilon
    largest = max([attack.epsilon_low for attack in findings.attacks] + [claim or 0.0, 1.0])
    bars = [] if claim is None else [Bar(claimed, claim, round(WIDEST * claim / largest, 1), claim=True, above=False)]
    for attack in findings.attacks:
        bound = attack.epsilon_low
        bars.append(Bar(attack.name, bound, round(WIDEST * bound / largest, 1), claim=False, above=claim is not None and bound > claim))
    return bars
