"""The audit as a file for people: complete, self-contained, and silent about patients when it travels."""

import re
from html.parser import HTMLParser

import pytest

from busgen_core.release import GateVerdict
from busgen_privacy.findings_report import render_findings
from busgen_privacy.report import promise_in_words, render
from tests.privacy.found import attack, findings
from tests.privacy.test_gate import TRAVELS
from tests.releases import PRIVACY, synthetic_images

GOOD = GateVerdict(verdict="release", reasons=("Attacks stayed below the ceiling.",))
BAD = GateVerdict(verdict="refuse", reasons=("Three images are near copies.", "The holdout is too small."))
FACTS = {"Hospital": "cairo", "Images": "200"}
PNGS = [image.png for image in synthetic_images()]


class Outline(HTMLParser):
    """Tags that were opened and never closed, addresses, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "data", "action", "xlink:href"}]
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def hospital() -> str:
    """The officer's version with everything in it."""
    return render_findings(findings(), verdict=BAD, statement=PRIVACY, facts=FACTS, pairs=[(PNGS[0], PNGS[1]), (PNGS[2], PNGS[3])])


def test_verdict_and_reasons_come_first() -> None:
    """A reader meets the verdict and all its reasons before anything else of the audit."""
    words = Outline(hospital()).words
    places = [words.index(text) for text in ("Refuse", *BAD.reasons, "cairo", PRIVACY.words, "What was measured", "What was not tested", "Appendix")]
    assert places == sorted(places)
    assert "Release" in Outline(render_findings(findings(), verdict=GOOD, facts=FACTS)).words


def test_the_file_needs_nothing_else() -> None:
    """Well-formed, no script, and every address is inside the file."""
    text = hospital()
    outline = Outline(text)
    assert outline.open == []
    assert len(outline.addresses) == 4
    assert all(address.startswith("data:image/png;base64,") for address in outline.addresses)
    assert not re.search(r"<script|@import|url\(|https?://", text)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_promise_and_measurement_stand_in_numbers() -> None:
    """Epsilon, delta, unit, each attack's AUC with interval and ceiling, and every mechanism are there."""
    words = Outline(hospital()).words
    for text in ("1e-05", "20.1 times", "0.550", "0.480 – 0.620", "0.694", "dp-sgd", "7.04", "400", "0.72", "Accountant: max(PLD, PRV)"):
        assert text in words


def test_what_travels_tells_nothing_exact() -> None:
    """The travelling version has no pictures and no numbers of patients: it cannot even be given any."""
    text = render(TRAVELS, verdict=GOOD, statement=PRIVACY, facts=FACTS)
    assert Outline(text).addresses == []
    assert "For the hospital alone" not in text
    assert "members," not in text
    assert "noise" in text


def test_exact_version_says_that_it_stays() -> None:
    """The hospital's version warns that it must not leave, and shows the exact numbers."""
    words = Outline(hospital()).words
    assert "must not leave" in words
    assert "0 of 200 images" in words


def test_texts_cannot_become_markup() -> None:
    """Facts, reasons and names are escaped."""
    evil = "<img src=x onerror=alert(1)>"
    verdict = GateVerdict(verdict="release", reasons=(evil,))
    named = attack(evil, what=evil, source=evil)
    text = render_findings(findings(named, not_run=(evil,)), verdict=verdict, statement=PRIVACY, facts={evil: evil})
    travelling = TRAVELS.model_copy(update={"attacks": (TRAVELS.attacks[0].model_copy(update={"name": evil, "what": evil}),)})
    text += render(travelling, verdict=verdict, statement=PRIVACY, facts={evil: evil}, not_tested=[evil])
    assert "<img" not in text


FACTORS = [(0.0, "1.0"), (3.0, "20.1"), (14.0, "1.2 million"), (25.0, "more than a billion"), (1e6, "more than a billion")]


@pytest.mark.parametrize(("epsilon", "words"), FACTORS)
def test_factor_is_in_words(epsilon: float, words: str) -> None:
    """e to the epsilon is written so that people can read it, however large."""
    assert promise_in_words(epsilon) == words
