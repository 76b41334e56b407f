"""The hospital's own report: everything exact, every attack with its power, formula and source."""

import re

import pytest

from busgen_privacy.attacks import blackbox, reference_model, reidentify, whitebox
from busgen_privacy.findings_report import render_findings
from busgen_privacy.suite import REGISTRATION
from busgen_privacy.texts import sources, texts
from tests.privacy.found import attack, findings
from tests.privacy.pages import Outline
from tests.privacy.test_report import BAD, FACTS, GOOD
from tests.releases import PRIVACY, synthetic_images

PNGS = [image.png for image in synthetic_images()]


def hospital(**changes: object) -> str:
    """The officer's version with everything in it."""
    found = findings(attack(), attack("domias", auc=0.75, kind="black-box")).model_copy(update=changes)
    return render_findings(found, verdict=BAD, statement=PRIVACY, facts=FACTS, pairs=[(PNGS[0], PNGS[1]), (PNGS[2], PNGS[3])])


def first_page(text: str) -> str:
    """Words up to what was promised."""
    return Outline(text).words.split("What was promised")[0]


def test_verdict_and_reasons_come_first() -> None:
    """A reader meets the verdict and its reasons, then what the audit would have caught, before anything else of the audit."""
    words = Outline(hospital()).words
    wanted = (
        "Refuse",
        *BAD.reasons,
        "would have caught",
        "At a glance",
        "cairo",
        PRIVACY.words,
        "What was measured",
        "What was not tested",
        "Appendix",
    )
    places = [words.index(text) for text in wanted]
    assert places == sorted(places)
    assert "Release" in first_page(render_findings(findings(), verdict=GOOD, facts=FACTS))


def test_promise_and_measurement_stand_in_numbers() -> None:
    """Epsilon, delta, what they mean, each attack's AUC with interval and ceiling, and every mechanism are there."""
    words = Outline(hospital()).words
    for text in ("1e-05", "1 in 100,000", "20.1 times", "0.550", "0.480 – 0.620", "0.694", "dp-sgd", "7.04", "400", "0.72", "max(PLD, PRV)"):
        assert text in words


def test_exact_version_says_that_it_stays() -> None:
    """The hospital's version warns on the first page, and at the foot of each printed one, that it must not leave."""
    text = hospital()
    assert "must not leave" in first_page(text)
    assert re.search(r"@bottom-left \{ content: \"[^\"]*must not leave", text)
    assert "0 of 200 images" in Outline(text).words


def test_the_first_page_says_what_would_have_been_caught() -> None:
    """One sentence names the smallest leak of any deciding attack, rounded up, beside guessing and the promise."""
    told = first_page(
        hospital(attacks=(attack(caught=0.7612), attack("domias", caught=0.7201), attack("closest-record", caught=0.51, diagnostic=True)))
    )
    assert "in 73 of 100 pairs or more, where guessing gives 50 and the promise allows up to 70" in told


def test_the_silence_of_a_blind_attack_is_told() -> None:
    """Attacks with too few patients are named on the first page; where all are blind it says that the audit says nothing."""
    told = first_page(hospital(attacks=(attack(caught=0.8), attack("domias", caught=None))))
    assert "their silence says nothing: domias" in told
    blind = hospital(attacks=(attack(caught=None), attack("closest-record", caught=0.6, diagnostic=True)))
    assert "could not be relied on to catch any leak" in first_page(blind)


def test_without_a_promise_nothing_is_drawn_of_one() -> None:
    """No ceiling, no curve and no claimed epsilon where nothing was promised, and it says that no mathematics bounds a leak."""
    text = render_findings(findings(attack(ceiling=None), epsilon=None), verdict=GOOD, facts=FACTS)
    assert "Nothing: no privacy promise" in Outline(text).words
    body = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    assert 'class="allowed dashed"' not in body
    assert ">claimed<" not in body
    assert ">claimed<" in hospital()


def test_signs_do_not_rest_on_colour() -> None:
    """An interval beyond its ceiling ends in a square, and a bound above the claim carries a sign and words; elsewhere neither is there."""
    broken = attack(auc=0.9, low=0.85, high=0.95, epsilon_low=4.2)
    calm, loud = (
        re.sub(r"<style>.*?</style>", "", render_findings(findings(one), verdict=BAD, facts=FACTS), flags=re.DOTALL) for one in (attack(), broken)
    )
    assert "above the claim" in loud
    assert "4.20 ▲" in loud
    assert '<rect class="above dot"' in loud
    assert "above the claim" not in calm
    assert "0.40 ▲" not in calm
    assert '<rect class="above dot"' not in calm


def test_the_strongest_attack_comes_first_and_diagnostics_last() -> None:
    """Rows are in order of AUC; a diagnostic one never leads, however high it is."""
    text = hospital(attacks=(attack("loss", auc=0.5), attack("closest-record", auc=0.99, diagnostic=True), attack("pia", auc=0.6)))
    rows = re.findall(r'<th scope="row"><b>([\w-]+)</b>', text)
    assert rows == ["pia", "loss", "closest-record"]


def test_every_attack_has_a_formula_and_its_source() -> None:
    """The appendix knows each attack of the suite, and says the same source as the attack itself; so does every figure."""
    made = [reidentify.attack(None), reference_model.attack([None])]  # type: ignore[arg-type, list-item]
    known = {one.name: one.source for one in (*whitebox.STANDARD, *blackbox.STANDARD, REGISTRATION, *made)}
    methods, figures = texts()["methods"], texts()["figure_words"]
    assert set(methods) == set(known)
    assert set(texts()["figure_names"]) == set(figures)
    assert {name: sources()[name] for name in known} == known
    assert set(sources()) == set(known) | set(figures)
    words = Outline(hospital(attacks=tuple(attack(name, source=source) for name, source in known.items()))).words
    assert isinstance(methods, dict)
    for name, source in known.items():
        assert f"{methods[name]} Source: {source}" in words


def test_an_attack_that_nobody_described_is_told_by_its_question() -> None:
    """The appendix of another tool's attack falls back on what the findings say."""
    assert "Compares losses? Source: Nobody 2000" in Outline(hospital(attacks=(attack("new-one"),))).words


@pytest.mark.parametrize("fpr", ["5 %", "1 %", "0.1 %"])
def test_rates_that_nobody_could_measure_are_named(fpr: str) -> None:
    """All three rates of false alarms have a column; where patients are too few it says so instead of leaving a gap."""
    words = Outline(hospital()).words
    assert f"At {fpr} false alarms" in words
    assert words.count("too few patients") >= 4


@pytest.mark.parametrize("epsilon", [3.0, None])
def test_a_bound_of_epsilon_says_what_it_rests_on(epsilon: float | None) -> None:
    """Beside the bound that holds for Gaussian noise stands the one for any mechanism; the caption says which is which, claim or not."""
    text = render_findings(findings(attack(epsilon_low=2.34, epsilon_any=1.27), epsilon=epsilon), verdict=GOOD, facts=FACTS)
    words = Outline(text).words
    caption = words[words.index("How to read it", words.index("Claimed and measured")) :]
    assert "Gaussian" in caption[: caption.index("Bars of length 0")]
    assert '2.34</td><td class="n">1.27' in text
    assert ("no promise was made" in caption) == (epsilon is None)


def test_an_interval_of_one_point_has_an_exact_one_beside_it() -> None:
    """Where the bootstrap's interval is 1 to 1, the exact one stands in the same row; so does what was found before the first false alarm."""
    text = hospital(attacks=(attack(auc=1.0, low=1.0, high=1.0, exact_low=0.832, outright=0.423),))
    assert '1.000 – 1.000</td><td class="n">0.832 – 1.000' in text
    assert "42.3" in Outline(text).words


def test_disclosure_is_told_with_its_chance_and_as_diagnostic() -> None:
    """The reader learns how rare the share is by chance, and that it never decides."""
    told = findings().disclosure.model_copy(update={"share": 0.883, "chance": 0.002})
    words = Outline(hospital(disclosure=told)).words
    assert "Diagnostic, and never a reason to release or to refuse: for 88.3" in words
    assert "by chance with 0.002" in words
