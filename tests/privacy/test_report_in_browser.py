"""Both reports in a real browser: the first printed page, a narrow screen, and nothing fetched from anywhere."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from busgen_core.release import GateVerdict
from busgen_privacy.findings import Findings
from busgen_privacy.findings_report import render_findings
from busgen_privacy.gate import decide
from busgen_privacy.policy import GatePolicy
from busgen_privacy.report import render
from busgen_privacy.texts import sources, texts
from tests.privacy.found import attack, findings
from tests.privacy.test_gate import TRAVELS
from tests.releases import PRIVACY, synthetic_images

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
MM = 96 / 25.4  # CSS pixels
MARGINS = {"width": 28, "height": 30}  # mm, of the style sheet's @page
PAPERS = {"A4": (210, 297), "Letter": (215.9, 279.4)}  # mm
NAMES = ("Hospital", "Campaign", "Release", "Foundation", "Date", "Software", "Synthetic images", "Learnt from members")
FACTS = dict.fromkeys(NAMES, "of some length, as real ones are")


def everything_wrong() -> tuple[Findings, GateVerdict]:
    """The longest verdict there is: every attack breaks the promise by AUC and by hits, there are copies, and the holdout is too small."""
    methods = texts()["methods"]
    hits = attack().hits[0].model_copy(update={"tpr": 0.99})
    attacks = tuple(
        attack(name, auc=0.99, hits=(hits,), source=sources()[name], what="A question of usual length about members?") for name in methods
    )
    found = findings(*attacks, copies=30)
    return found, decide(found, GatePolicy(smallest_holdout=60))


@pytest.fixture(scope="module")
def browser_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, dict[str, Path], list[str]]]:
    """A browser, both reports as files, and everything that the browser complained of or asked for."""
    folder, noises = tmp_path_factory.mktemp("reports"), []
    found, verdict = everything_wrong()
    pngs = [image.png for image in synthetic_images()]
    good = GateVerdict(verdict="release", reasons=("The attack reached nothing.",) * 4)
    texts_of = {
        "hospital": render_findings(found, verdict=verdict, statement=PRIVACY, facts=FACTS, pairs=[(pngs[0], pngs[1])] * 8),
        "travelling": render(TRAVELS, verdict=good, statement=PRIVACY, facts=FACTS),
    }
    files = {name: folder / f"{name}.html" for name in texts_of}
    for name, text in texts_of.items():
        files[name].write_text(text)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("console", lambda message: noises.append(message.text))
        page.on("pageerror", lambda error: noises.append(str(error)))
        page.on("request", lambda request: noises.append(request.url) if not request.url.startswith(("file:", "data:")) else None)
        yield page, files, noises
        browser.close()


@pytest.mark.parametrize("paper", PAPERS)
@pytest.mark.parametrize("name", ["hospital", "travelling"])
def test_the_first_printed_page_holds_verdict_reasons_and_power(name: str, paper: str, browser_page: tuple[Page, dict[str, Path], list[str]]) -> None:
    """On A4 and Letter the longest verdict and the sentence on what would have been caught end before the first page does."""
    page, files, _ = browser_page
    wide, tall = PAPERS[paper]
    page.emulate_media(media="print")
    page.set_viewport_size({"width": int((wide - MARGINS["width"]) * MM), "height": 900})
    page.goto(files[name].as_uri())
    end = page.evaluate("document.querySelector('.sees').getBoundingClientRect().bottom")
    assert 0 < end <= (tall - MARGINS["height"]) * MM


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["hospital", "travelling"])
def test_a_phone_shows_the_page_without_scrolling_sideways(name: str, scheme: str, browser_page: tuple[Page, dict[str, Path], list[str]]) -> None:
    """At 360 px nothing but wide tables scrolls sideways, and the page has the colours that the reader asked for."""
    page, files, _ = browser_page
    page.emulate_media(media="screen", color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(files[name].as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_printing_is_light_and_carries_the_warning(browser_page: tuple[Page, dict[str, Path], list[str]], tmp_path: Path) -> None:
    """A reader in the dark prints black on white, and a PDF comes out."""
    page, files, _ = browser_page
    page.emulate_media(media="print", color_scheme="dark")
    page.goto(files["hospital"].as_uri())
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert page.pdf(path=tmp_path / "report.pdf", format="A4").startswith(b"%PDF")


def test_the_browser_asks_for_nothing_and_complains_of_nothing(browser_page: tuple[Page, dict[str, Path], list[str]]) -> None:
    """No request leaves the file, no policy is broken, every pair is drawn."""
    page, files, noises = browser_page
    page.emulate_media(media="screen", color_scheme="light")
    for file in files.values():
        page.goto(file.as_uri())
    page.goto(files["hospital"].as_uri())
    assert page.evaluate("[...document.images].filter(i => i.complete && i.naturalWidth === 64).length") == 16
    assert noises == []
