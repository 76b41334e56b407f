"""Renders an audit for people: one HTML file that needs nothing else, with the verdict and its reasons first.

No script, no font, no picture from elsewhere; a content security policy in the file holds a browser to that. Light or
dark as the reader's system is, and printable.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp

from jinja2 import Environment, PackageLoader, StrictUndefined

from busgen_core.release import GateVerdict, PrivacyStatement
from busgen_privacy.audit import TravellingAudit

LEFT, WIDTH, ROW = 150, 420, 30  # of the chart, in SVG units: names, axis, height of one attack
NOT_TESTED = (
    "Attacks stronger than those listed. An attack that fails proves nothing; the promise rests on the mathematics.",
    "Attackers who know more of a patient than their own image, or who hold many of a patient's images.",
    "What this release gives away together with other hospitals' releases of the same patients.",
    "Whether the images are of use: that is measured elsewhere, on real patients.",
)


@dataclass(frozen=True, slots=True)
class _Bar:
    """One attack in the chart, positions in SVG units."""

    name: str
    y: int
    low: float
    high: float
    auc: float
    ceiling: float


def render(
    audit: TravellingAudit,
    *,
    verdict: GateVerdict,
    statement: PrivacyStatement,
    facts: Mapping[str, str],
    not_tested: Sequence[str] = NOT_TESTED,
) -> str:
    """The audit that travels as one HTML file; the hospital's own, with exact figures, is ``findings_report``.

    Args:
        audit: Noised figures and public constants.
        verdict: The gate's, on these figures.
        statement: What is promised.
        facts: What the reader should know of the release, label to text, in this order.
        not_tested: What nobody has tried.
    """
    environment = Environment(
        loader=PackageLoader("busgen_privacy"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html").render(
        audit=audit,
        verdict=verdict,
        statement=statement,
        facts=facts,
        factor=promise_in_words(statement.epsilon),
        chart=_bars(audit),
        ticks=[(value / 10, _x(value / 10)) for value in range(0, 11, 1)],
        left=LEFT,
        width=WIDTH,
        row=ROW,
        not_tested=tuple(not_tested),
    )


def promise_in_words(epsilon: float) -> str:
    """What epsilon means for one patient.

    >>> promise_in_words(1.0)
    '2.7'
    >>> promise_in_words(8.0)
    '3.0 thousand'
    """
    factor = exp(min(epsilon, 300))
    for size, name in ((1e6, "million"), (1e3, "thousand")):
        if factor >= size:
            return f"{factor / size:.1f} {name}" if factor < 1e9 else "more than a billion"
    return f"{factor:.1f}"


def _bars(audit: TravellingAudit) -> list[_Bar]:
    return [
        _Bar(attack.name, ROW * number + ROW // 2, _x(attack.low), _x(attack.high), _x(attack.auc), _x(attack.ceiling))
        for number, attack in enumerate(audit.attacks)
    ]


def _x(auc: float) -> float:
    """Position of an AUC on the chart's axis, 0 to 1."""
    return round(LEFT + WIDTH * auc, 1)


def data_url(png: bytes) -> str:
    """A picture inside the page."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
