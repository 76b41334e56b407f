"""The report that travels: complete, self-contained, no real pixel and no exact figure in it; and what both reports share."""

import io
import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from busgen_core.errors import ConfigError
from busgen_core.images import encode_png
from busgen_core.release import GateVerdict
from busgen_privacy.attacked import Release
from busgen_privacy.audit import TravellingAudit, travelling
from busgen_privacy.cohort import Cohort
from busgen_privacy.dp.noise import SeededGaussian
from busgen_privacy.findings import Findings, Hits, PatientScores
from busgen_privacy.findings_report import render_findings
from busgen_privacy.folders import read_people
from busgen_privacy.gate import decide
from busgen_privacy.page import promise_in_words
from busgen_privacy.policy import GatePolicy, Policy
from busgen_privacy.report import caught_noised, render
from busgen_privacy.statistics import auc_deviation
from busgen_privacy.suite import run
from busgen_privacy.texts import sources, texts
from tests.privacy.found import attack, findings
from tests.privacy.pages import Outline, carried, colours, contrast, numbers
from tests.privacy.test_gate import TRAVELS
from tests.releases import PRIVACY
from tests.shared import shared_data

__all__ = ["Outline"]

GOOD = GateVerdict(verdict="release", reasons=("Attacks stayed below the ceiling.",))
BAD = GateVerdict(verdict="refuse", reasons=("Three images are near copies.", "The holdout is too small."))
FACTS = {"Hospital": "cairo", "Images": "200"}
SCHEMA = Path(__file__).parents[2] / "docs" / "audit-travelling.schema.json"
POLICY = Policy(
    lifetime_epsilon=8, campaign_epsilon=8, public_cohort=500, smallest_cohort=30, gate=GatePolicy(near_copies=999, registered_copies=999)
)


def travels(**changes: object) -> str:
    """The report that travels."""
    return render(TRAVELS.model_copy(update=changes), verdict=GOOD, statement=PRIVACY, facts=FACTS)


def test_verdict_and_reasons_come_first() -> None:
    """A reader meets the verdict and its reasons, then what the audit would have caught, before anything else of the audit."""
    words = Outline(travels()).words
    places = [words.index(text) for text in ("Release", *GOOD.reasons, "would have caught", "cairo", PRIVACY.words, "was measured", "not tested")]
    assert places == sorted(places)
    assert "Refuse" in Outline(render(TRAVELS, verdict=BAD, statement=PRIVACY, facts={})).words


def test_promise_and_noised_figures_stand_in_numbers() -> None:
    """Epsilon, delta, unit, the noised AUC with its interval against the ceiling, the noise, every mechanism, and the attacks' sources."""
    named = TRAVELS.attacks[0].model_copy(update={"what": "Largest AUC of the attacks pia, gan-leaks, with noise."})
    words = Outline(travels(attacks=(named,))).words
    wanted = (
        "1e-05",
        "1 in 100,000",
        "33.1 times",
        "patient; add or remove one",
        "0.550",
        "0.400 – 0.700",
        "0.694",
        "0.1000",
        "dp-sgd",
        "7.04",
        "400",
    )
    for text in (*wanted, "max(PLD, PRV)", *(sources()[name] for name in ("pia", "gan-leaks", "noised"))):
        assert text in words
    assert sources()["secmi"] not in words


def test_copies_are_told_as_the_hospital_told_them() -> None:
    """Within the limit, or not: never more than the audit says."""
    assert "says that it is within" in Outline(travels()).words
    assert "does not say that it is within" in Outline(travels(near_copies_within=False)).words


def test_a_figure_that_could_show_nothing_says_so() -> None:
    """With loud noise the first page says that the figure could not show a leak; with little it names the smallest that it shows."""
    before = "At a glance"
    assert "could not show a leak of any size" in Outline(travels(noise_std=0.2)).words.split(before)[0]
    assert re.search(
        r"only a leak of \d\d of 100", Outline(travels(noise_std=0.01, smallest_cohort=300, smallest_holdout=200)).words.split(before)[0]
    )


@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_what_a_noised_figure_shows_is_shown_four_times_of_five(noise: float) -> None:
    """Drawn with its stated deviation, a figure of the stated true AUC lies wholly above its ceiling in 80 % of cases; a smaller one less."""
    audit = TRAVELS.model_copy(update={"noise_std": noise, "smallest_cohort": 300, "smallest_holdout": 200})
    ceiling, rng = 0.6, np.random.default_rng(0)
    caught = caught_noised(audit, ceiling=ceiling)
    assert caught is not None

    def deviation(value: float) -> float:
        return float(np.hypot(auc_deviation(value, positives=300, negatives=200), noise))

    for true, low, high in ((caught, 0.77, 0.83), (caught - 0.05, 0.0, 0.7)):
        drawn = rng.normal(true, deviation(true), 4000)
        assert low < np.mean([value - 1.96 * deviation(value) > ceiling for value in drawn.tolist()]) < high


# Real pixels and exact figures: the hospital's version must show them, or nothing is shown by their absence here.


def rows_of(cohort: Cohort, rows: list[int]) -> Cohort:
    """These rows alone."""
    columns = ((column[row] for row in rows) for column in (cohort.classes, cohort.boxes, cohort.patients))
    return Cohort(cohort.images[rows], *(tuple(column) for column in columns))  # type: ignore[arg-type]


@cache
def real_people() -> tuple[Cohort, Cohort]:
    """24 members and 20 holdout patients of a real hospital, one image each."""
    everyone = read_people(str(shared_data() / "warsaw"))
    rows = [rows[0] for rows in everyone.patient_rows().values()][:44]
    assert len(rows) == 44
    return rows_of(everyone, rows[:24]), rows_of(everyone, rows[24:])


@cache
def simulated_people() -> tuple[Cohort, Cohort]:
    """The same of phantoms."""
    from tests.privacy.test_suite import people, phantoms

    images = phantoms(44, first=9_000)
    return people(images[:24], "m"), people(images[24:], "h")


def reports(members: Cohort, holdout: Cohort) -> tuple[str, str]:
    """Hospital's and travelling report of a release that is half members' own images, by the real suite, gate and noise."""
    public = np.flip(holdout.images, axis=2)
    released = np.concatenate([members.images[:12], public[:12]])
    found = run(
        Release(images=released, epsilon=3.0, delta=1e-5),
        members,
        holdout,
        public,
        most_read=4,
        policy=POLICY.gate,
        draws=1,
        seed=1,
        progress=lambda *_: None,
    )
    pairs = [(encode_png(members.images[p.member]), encode_png(released[p.released])) for p in found.registered_copies.closest[:8]]
    hospital = render_findings(found, verdict=decide(found, POLICY.gate), facts=FACTS, statement=PRIVACY, pairs=pairs)
    small = POLICY.model_copy(update={"smallest_cohort": 20})
    audit = travelling(found, small, SeededGaussian(1))
    return hospital, render(audit, verdict=decide(audit, POLICY.gate), statement=PRIVACY, facts=FACTS)


@pytest.mark.parametrize("sides", [simulated_people, real_people], ids=["phantoms", "real"])
def test_no_pixel_of_a_member_travels(sides: object) -> None:
    """Claim: the travelling version carries no picture and no bytes at all; the hospital's carries the nearest pairs, pixel for pixel."""
    assert callable(sides)
    members, holdout = sides()
    hospital, away = reports(members, holdout)
    pictures = [np.array(Image.open(io.BytesIO(png))) for png in carried(hospital)]
    assert len(pictures) == 16
    known = {image.tobytes() for image in members.images}
    assert all(picture.tobytes() in known for picture in pictures[0::2])
    assert carried(away) == []
    assert "<img" not in away
    assert "<image" not in away


def peculiar() -> Findings:
    """Findings whose every figure is a number that nothing else has."""
    scores = PatientScores(members=(0.7713, 0.2291), holdout=(0.3319, 0.6617))
    hits = (Hits(fpr=0.05, tpr=0.08643, low=0.01297, high=0.27183, bootstrap_low=0.02361, bootstrap_high=0.18457, ceiling=0.17729),)
    one = attack(
        "loss",
        auc=0.61372,
        low=0.50918,
        high=0.70493,
        exact_low=0.48127,
        exact_high=0.73961,
        chance=0.03719,
        outright=0.06359,
        hits=hits,
        epsilon_low=1.23457,
        epsilon_any=0.87193,
        caught=0.71936,
        cost=7919.0,
        scores=scores,
    )
    found = findings(one, members=283, holdout=147, duplicates=331, reference=617)
    copies = found.near_copies.model_copy(update={"count": 311, "holdout_count": 127, "threshold": 0.11893})
    more = found.registered_copies.model_copy(update={"count": 313, "holdout_count": 173, "threshold": 0.25371})
    told = found.disclosure.model_copy(update={"share": 0.53217, "chance_low": 0.41139, "chance_high": 0.59371, "chance": 0.19731})
    return found.model_copy(update={"near_copies": copies, "registered_copies": more, "disclosure": told})


def written(found: Findings) -> set[str]:
    """The exact figures as a page could write them."""
    (one,), told = found.attacks, found.disclosure
    shares = (
        one.auc,
        one.low,
        one.high,
        one.exact_low,
        one.exact_high,
        one.chance,
        one.outright,
        one.hits[0].tpr,
        one.hits[0].low,
        one.hits[0].high,
        told.share,
        told.chance_low,
        told.chance_high,
        told.chance,
    )
    counts = (found.members, found.holdout, found.duplicates, found.reference)
    counts += tuple(number for copies in (found.near_copies, found.registered_copies) for number in (copies.count, copies.holdout_count))
    thresholds = (found.near_copies.threshold, found.registered_copies.threshold)
    bounds = (one.epsilon_low, one.epsilon_any)
    digits = {f"{bound:.{n}f}" for bound in bounds for n in (2, 3, 4)} | {f"{value:.{n}f}" for value in (*shares, *thresholds) for n in (3, 4)}
    return digits | {f"{100 * share:.{n}f}" for share in shares for n in (1, 2)} | {str(count) for count in counts}


def test_no_exact_figure_travels() -> None:
    """Claim: of the findings' AUCs, intervals, rates, bounds and counts none is in the travelling version; the hospital's holds them."""
    found = peculiar()
    audit = travelling(found, POLICY, SeededGaussian(2))
    away = render(audit, verdict=decide(audit, POLICY.gate), statement=PRIVACY, facts=FACTS)
    here = render_findings(found, verdict=decide(found, POLICY.gate), statement=PRIVACY, facts=FACTS)
    assert written(found) & numbers(away) == set()
    shown = {
        "0.614",
        "0.509",
        "0.705",
        "0.037",
        "0.481",
        "0.740",
        "6.4",
        "0.197",
        "0.87",
        "8.6",
        "1.3",
        "27.2",
        "53.2",
        "41.1",
        "59.4",
        "1.23",
        "0.119",
        "283",
        "147",
        "331",
        "617",
        "311",
        "313",
    }
    assert shown <= written(found) & numbers(here)


def test_the_travelling_audit_follows_its_published_schema() -> None:
    """docs/audit-travelling.schema.json is the schema of the audit.json that travels."""
    assert json.loads(SCHEMA.read_text()) == TravellingAudit.model_json_schema()


# What both reports share.


def pages() -> dict[str, str]:
    """Both reports, with everything in them."""
    here = render_findings(
        findings(attack(), attack("domias", auc=0.75)), verdict=BAD, statement=PRIVACY, facts=FACTS, pairs=[(b"\x89PNG", b"\x89PNG")]
    )
    return {"hospital": here, "travelling": travels()}


@pytest.mark.parametrize("name", ["hospital", "travelling"])
def test_a_page_needs_nothing_else(name: str) -> None:
    """Well-formed, no script, every address inside the file, and a policy that holds a browser to that; light, dark and print."""
    text = pages()[name]
    outline = Outline(text)
    assert outline.open == []
    assert all(address.startswith("data:image/png;base64,") for address in outline.addresses)
    assert not re.search(r"<script|@import|url\(|https?://| on\w+=", text)
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


@pytest.mark.parametrize("name", ["hospital", "travelling"])
def test_a_page_can_be_heard(name: str) -> None:
    """Headings never skip a level, every chart and picture is named in words, and tables say what their rows and columns are."""
    text = pages()[name]
    outline = Outline(text)
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(outline.headings, outline.headings[1:], strict=False))
    assert outline.nameless == []
    assert text.count("<svg") == text.count('role="img"') + text.count('aria-hidden="true"')
    assert not re.search(r"<th(?! scope)", text.replace("<thead", ""))


@pytest.mark.parametrize("name", ["hospital", "travelling"])
def test_every_chart_says_how_to_read_it(name: str) -> None:
    """One sentence beside each kind of chart."""
    text = pages()[name]
    kinds = {"hospital": 4, "travelling": 2}[name]
    assert text.count("How to read it:") == kinds


def test_colours_can_be_told_apart_by_everybody() -> None:
    """Text has a contrast of at least 4.5 on page and band, marks at least 3, in light, dark and print (WCAG 2.2, 1.4.3 and 1.4.11)."""
    palettes = colours(travels())
    assert len(palettes) == 3
    for palette in palettes:
        for ground in ("page", "band"):
            assert all(contrast(palette[name], palette[ground]) >= 4.5 for name in ("ink", "soft", "good", "bad"))
        assert all(contrast(palette[name], palette["page"]) >= 3 for name in ("mark", "guess"))
    assert contrast("888888", "ffffff") < 4.5  # the test has teeth


def test_texts_cannot_become_markup() -> None:
    """Facts, reasons and names are escaped in both reports."""
    evil = "<img src=x onerror=alert(1)>"
    verdict = GateVerdict(verdict="release", reasons=(evil,))
    named = attack(evil, what=evil, source=evil)
    statement = PRIVACY.model_copy(update={"words": evil, "heuristics": (evil,)})
    text = render_findings(findings(named, not_run=(evil,)), verdict=verdict, statement=statement, facts={evil: evil})
    travelling_evil = TRAVELS.model_copy(update={"attacks": (TRAVELS.attacks[0].model_copy(update={"name": evil, "what": evil}),)})
    text += render(travelling_evil, verdict=verdict, statement=statement, facts={evil: evil})
    assert "<img" not in text


def test_an_untranslated_language_is_refused_by_name() -> None:
    """A language that is not there, or no language at all, is a ConfigError, never a file's path."""
    for language in ("tlh", "../en", "sources", ""):
        with pytest.raises(ConfigError, match="not translated"):
            render(TRAVELS, verdict=GOOD, statement=PRIVACY, facts=FACTS, language=language)


def test_no_sentence_is_written_in_a_template() -> None:
    """All words of both pages come from ``texts``, every one of them is used, and every language has the same keys."""
    here = Path(__file__).parents[2] / "privacy" / "busgen_privacy"
    layout = "".join(file.read_text() for file in sorted((here / "templates").glob("*.html")))
    bare = re.sub(r"\{%.*?%\}|\{\{.*?\}\}|\{#.*?#\}|<style>.*?</style>|<[^>]*>|&nbsp;", " ", layout, flags=re.DOTALL)
    assert not re.findall(r"[A-Za-z]{3,}", bare)
    used = set(re.findall(r"\bt\.(\w+)", layout)) | set(re.findall(r'(?:group|texts)\("(\w+)"', "".join(f.read_text() for f in here.glob("*.py"))))
    assert set(texts()) - used == {"release", "refuse", "white-box", "black-box"}  # looked up by a variable
    for file in (here / "texts").glob("*.json"):
        if file.stem != "sources":
            assert set(texts(file.stem)) == set(texts())


FACTORS = [(0.0, "1.0"), (3.0, "20.1"), (14.0, "1.2 million"), (25.0, "more than a billion"), (1e6, "more than a billion")]


@pytest.mark.parametrize(("epsilon", "words"), FACTORS)
def test_factor_is_in_words(epsilon: float, words: str) -> None:
    """e to the epsilon is written so that people can read it, however large."""
    assert promise_in_words(epsilon) == words
