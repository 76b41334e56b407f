"""The page of one release: what the hub found when it looked again, what it did not look at, and how far it is. On a real store."""

import json
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from busgen_core.labels import Pathology
from busgen_privacy.claims import Claim
from busgen_privacy.pixel_text import PixelText, Reads, TextBox
from busgen_privacy.reaudit_findings import Reaudit, Telling
from busgen_server.catalogue import admit, load_images
from busgen_server.dashboard import app, create_app
from busgen_server.dashboard.plot import Told, told_plot
from busgen_server.database import ReleaseRow, open_store
from busgen_server.settings import HubSettings
from busgen_server.store import HubStore
from tests.releases import TRUSTED
from tests.server.hospital import CAMPAIGN, enrol, packed, run
from tests.server.test_dashboard import EVIL, Client

LESIONS = (Pathology.BENIGN, Pathology.MALIGNANT)
BARE = Reaudit(
    images=20,
    labels=dict.fromkeys(LESIONS, 10),
    asked=dict.fromkeys(LESIONS, 10),
    near_inside=0,
    near_others={},
    site=None,
    label=None,
    label_public=None,
    scanners=None,
    scanner_sure=None,
    kid=None,
    kid_low=None,
    kid_high=None,
    kid_public=None,
    kid_public_low=None,
    kid_public_high=None,
    text=None,
    seed=1,
    claims=(),
    remarks=(),
    not_run=("Telling sites apart: no other release was admitted.", "Quality: no public images were given."),
)
EXAMPLES = (
    TextBox(image=3, box=(4, 2, 30, 9), reads=Reads.IDENTIFYING),
    TextBox(image=3, box=(34, 40, 60, 47), reads=Reads.WORDS),
    TextBox(image=7, box=(1, 50, 20, 60), reads=Reads.FURNITURE),
)
WHOLE = BARE.model_copy(
    update={
        "labels": {Pathology.BENIGN: 9, Pathology.MALIGNANT: 11},
        "near_inside": 4,
        "near_others": {"rio-1": 3},
        "site": Telling(accuracy=0.62, chance_low=0.46, chance_high=0.54, chance=0.001),
        "label": Telling(accuracy=0.51, chance_low=0.44, chance_high=0.56, chance=0.4),
        "label_public": Telling(accuracy=0.74, chance_low=0.45, chance_high=0.55, chance=0.001),
        "scanners": {"scanner a": 0.75, "scanner b": 0.25},
        "scanner_sure": 0.004,
        "kid": 0.107,
        "kid_low": -0.02,
        "kid_high": 0.138,
        "kid_public": 0.001,
        "kid_public_low": -0.014,
        "kid_public_high": 0.055,
        "text": PixelText(images=20, looked=18, identifying=1, words=2, furniture=5, examples=EXAMPLES, engine="an engine 1.0"),
        "claims": (Claim(what="The epsilon", good=True, found="stated 3.5000"), Claim(what="The gate", good=False, found="another verdict")),
        "remarks": ("4 images have a near duplicate.", "A claim does not hold."),
        "not_run": (),
    }
)
SECTIONS = ("What the images give away", "Likeness to public images", "Text in the pixels", "What the release says of itself")


@pytest.fixture
def store(tmp_path: Path) -> HubStore:
    """A hub with one admitted release."""
    store = HubStore(open_store(tmp_path / "data"))
    enrol(store)
    assert admit(store, tmp_path / "data", TRUSTED, CAMPAIGN, packed()).state == "admitted"
    return store


@pytest.fixture
def client(store: HubStore, tmp_path: Path) -> Client:
    return Client(create_app(HubSettings(data=tmp_path / "data")))


def keep(store: HubStore, found: Reaudit) -> None:
    store.keep_reaudit("cairo-1", found=found.model_dump(mode="json"))


def words(page: str) -> str:
    """What a reader sees of a page, as one line."""
    return " ".join(re.sub(r"<[^>]*>", " ", page[page.index("<main>") : page.index("</main>")]).replace("&#39;", "'").split())


def look(client: Client) -> Mapping[str, object]:
    (release,) = client.get("/api/state").json()["campaigns"][0]["releases"]
    assert release["look"] == client.get("/api/releases/cairo-1").json()["release"]["look"]
    return dict(release["look"])


def begun(store: HubStore) -> None:
    store.start_reaudit("cairo-1")


def failed(store: HubStore) -> None:
    store.start_reaudit("cairo-1")
    store.fail_reaudit("cairo-1", code="input-invalid")


STATES = {
    "before the hub looks": (lambda store: None, "waiting", "not looked at yet", "Not looked at yet: nothing is known here, good or bad"),
    "while it looks": (begun, "looking", "being looked at", "Being looked at; nothing is known here yet, good or bad"),
    "when it could not": (failed, "failed", "failed", "could not: input-invalid . Nothing is known here, good or bad"),
    "with nothing to say": (lambda store: keep(store, BARE), "clear", "no remarks 2 parts not looked at", "Nothing stood out in what was looked at."),
    "with remarks": (lambda store: keep(store, WHOLE), "remarks", "2 remarks", "4 images have a near duplicate."),
}


@pytest.mark.parametrize(("change", "state", "mark", "sentence"), STATES.values(), ids=STATES)
def test_list_page_and_json_say_how_far_the_hub_is(client: Client, store: HubStore, change, state: str, mark: str, sentence: str) -> None:
    """Each state has a mark of its own in the list of releases and a sentence on the release's page; only one of them is without findings."""
    change(store)
    assert look(client)["state"] == state
    assert f"hub's own look {mark} details" in words(client.get("/").text)
    page = words(client.get("/releases/cairo-1").text)
    assert f"What the hub found {mark}" in page
    assert sentence in page
    assert ("Classes, asked for and received" in page) == (state in {"clear", "remarks"})


def test_the_command_line_lists_the_same_mark(store: HubStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``busgen-hub catalogue list`` says of each release what the dashboard's list says; of a rejected one nothing."""
    store.add_release(ReleaseRow(release_id="no-1", campaign_id="spring", site="cairo", state="rejected", code="gate-refused", message="No."))
    for found, mark in ((None, "not looked at yet"), (BARE, "no remarks"), (WHOLE, "2 remarks")):
        if found is not None:
            keep(store, found)
        assert run(tmp_path, "catalogue", "list", "--json") == 0
        assert {row["release"]: row["look"] for row in json.loads(capsys.readouterr().out)} == {"cairo-1": mark, "no-1": ""}


def test_marks_lie_where_the_figures_say(client: Client, store: HubStore) -> None:
    """A bar ends at its share, a bracket spans what guessing gives, a mark stands at what was asked for; what is there to compare is set apart."""
    keep(store, WHOLE)
    page = client.get("/releases/cairo-1").text
    site = page[page.index("the release it is from") :][:1500]
    assert '<line class="bar" x1="0.0%" x2="62.0%"' in site
    assert '<line class="chance" x1="46.0%" x2="54.0%"' in site
    benign = page[page.index(">benign<") :][:900]
    assert '<line class="bar" x1="0.0%" x2="81.8%"' in benign  # 9 of 11, the most of any class
    assert '<line class="goal" x1="90.9%"' in benign
    assert page.count('class="row base"') == 2  # the label and KID of public images


def test_every_finding_is_on_the_page(client: Client, store: HubStore) -> None:
    """Repeats, what images give away beside guessing, scanners, classes, KID, text, claims and remarks: each with its figures."""
    keep(store, WHOLE)
    page = words(client.get("/releases/cairo-1").text)
    for expected in (
        "this release itself 4 of 20 (20 %) rio-1 3 of 20 (15 %)",
        "the release it is from 62 %, above guessing (46 to 54 %)",
        "its label, here 51 %, no better than guessing (44 to 56 %)",
        "its label, in public images 74 %, above guessing (45 to 55 %)",
        "near certainty: under 1 %. scanner a 75 % scanner b 25 %",
        "benign 9 of 10 asked for malignant 11 of 10 asked for",
        "this release 0.107 (-0.020 to 0.138) public images, half against half 0.001 (-0.014 to 0.055)",
        "18 of 20, by the worst",
        "a name, a number or a date 1 of 18 other words 2 of 18 what scanners write 5 of 18 no text that could be read 10 of 18",
        "Read by an engine 1.0",
        "holds The epsilon stated 3.5000 does not hold The gate another verdict",
        "A claim does not hold.",
    ):
        assert expected in page, expected


def test_findings_for_programs_are_those_that_were_kept(client: Client, store: HubStore) -> None:
    """The JSON of a release holds the findings whole."""
    keep(store, WHOLE)
    assert Reaudit.model_validate(client.get("/api/releases/cairo-1").json()["found"]) == WHOLE


def test_what_was_not_looked_at_is_listed_and_looks_like_nothing(client: Client, store: HubStore) -> None:
    """A part that was left out is named with its reason and has no section that could be read as a clean result."""
    keep(store, BARE)
    page = client.get("/releases/cairo-1").text
    assert all(f"<li>{reason}</li>" in page for reason in BARE.not_run)
    assert not [title for title in SECTIONS if f"<h2>{title}</h2>" in page]
    keep(store, WHOLE)
    page = client.get("/releases/cairo-1").text
    assert "Not looked at" not in page
    assert all(f"<h2>{title}</h2>" in page for title in SECTIONS)


def test_a_later_failure_hides_no_earlier_findings(client: Client, store: HubStore) -> None:
    """When the hub looks again and fails, the page says so above what was found before, and no longer when that was."""
    keep(store, WHOLE)
    assert "Looked at just now" in words(client.get("/releases/cairo-1").text)
    failed(store)
    assert (look(client)["state"], look(client)["code"]) == ("remarks", "input-invalid")
    page = words(client.get("/releases/cairo-1").text)
    assert "Looked at" not in page
    assert page.index("could not: input-invalid . What follows was found before.") < page.index("4 images have a near duplicate.")


def test_findings_of_another_version_are_no_clean_result(client: Client, store: HubStore) -> None:
    """What cannot be read is as good as not looked at, in the list, on the page and for programs; nothing breaks."""
    store.keep_reaudit("cairo-1", found={"version": 1, "images": 20})
    assert look(client)["state"] == "waiting"
    assert "not looked at yet" in words(client.get("/").text)
    assert "nothing is known here, good or bad" in words(client.get("/releases/cairo-1").text)


def test_a_rejected_release_has_a_page_and_no_look(client: Client, store: HubStore) -> None:
    """What was not let in is not looked at again, and its page does not promise it; its reason is there."""
    store.add_release(ReleaseRow(release_id="no-1", campaign_id="spring", site="cairo", state="rejected", code="gate-refused", message="No."))
    page = words(client.get("/releases/no-1").text)
    assert "gate-refused No." in page
    assert "What the hub found" not in page
    assert client.get("/api/releases/no-1").json()["release"]["look"] is None


def test_a_retired_release_keeps_its_findings_and_shows_no_image(client: Client, store: HubStore) -> None:
    """Findings outlive retirement; images are no longer served, so none is asked for."""
    keep(store, WHOLE)
    store.retire_release("cairo-1")
    page = client.get("/releases/cairo-1").text
    assert "4 images have a near duplicate." in page
    assert ".png" not in page
    assert client.get("/releases/cairo-1/images/3.png").status_code == 404


def test_images_with_text_are_shown_with_their_boxes(client: Client, store: HubStore, tmp_path: Path) -> None:
    """Each image that has an example is there once, with a box for each; the picture is the released PNG, byte for byte."""
    keep(store, WHOLE)
    page = client.get("/releases/cairo-1").text
    assert re.findall(r"images/(\d+)\.png", page) == ["3", "7"]
    assert page.count("<rect") == 3
    assert '<rect x="4.0" y="2.0" width="26.0" height="7.0"/>' in page
    row = store.release("cairo-1")
    assert row is not None
    for number, image in enumerate(load_images(tmp_path / "data", row)):
        assert client.get(f"/releases/cairo-1/images/{number}.png").content == image.png


@pytest.mark.parametrize("path", ["/releases/cairo-1/images/20.png", "/releases/cairo-1/images/-1.png", "/releases/no-9", "/api/releases/no-9"])
def test_what_is_not_there_is_a_problem(client: Client, path: str) -> None:
    """An image or a release that is not there is a named problem with status 404."""
    assert (client.get(path).status_code, client.get(path).json()["code"]) == (404, "wrong-state")


def test_text_from_outside_is_escaped(client: Client, store: HubStore) -> None:
    """Names of releases and scanners, remarks, claims and engines appear as text, whatever stands in them."""
    claims = (Claim(what=EVIL, good=False, found=EVIL),)
    text = WHOLE.text.model_copy(update={"engine": EVIL}) if WHOLE.text else None
    evil = {"near_others": {EVIL: 1}, "scanners": {EVIL: 1.0}, "remarks": (EVIL,), "not_run": (EVIL,), "claims": claims, "text": text}
    keep(store, WHOLE.model_copy(update=evil))
    store.fail_reaudit("cairo-1", code=EVIL)
    page = client.get("/releases/cairo-1").text
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert page.count("&lt;script&gt;alert") >= 8
    assert page.count("<script") == 1


def test_an_evil_release_id_is_escaped(client: Client, store: HubStore) -> None:
    """An id with markup stays text on its own page, also in the command that the page proposes."""
    store.add_release(
        ReleaseRow(release_id=EVIL.replace("/", ""), campaign_id="spring", site="cairo", state="admitted", gate="release", folder="none")
    )
    page = client.get(f"/releases/{EVIL.replace('/', '')}".replace("?", "%3f").replace("#", "%23")).text
    assert "busgen-hub release reaudit &lt;script&gt;" in page
    assert "<img src=x" not in page


def test_the_page_may_load_nothing_from_elsewhere(client: Client, store: HubStore) -> None:
    """The same policy as the first page: own images, one script and one style by a nonce that changes, no inline style, no other host."""
    keep(store, WHOLE)
    first, second = client.get("/releases/cairo-1"), client.get("/releases/cairo-1")
    policy = first.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy
    assert policy != second.headers["content-security-policy"]
    assert not re.search(r" style=|https?://", first.text)


def test_headings_are_in_order_and_scrolling_parts_are_reached_by_keyboard(client: Client, store: HubStore) -> None:
    """No heading level is skipped; whatever scrolls sideways has a name and a place in the order of the Tab key."""
    keep(store, WHOLE)
    for path in ("/", "/releases/cairo-1"):
        page = client.get(path).text
        levels = [int(level) for level in re.findall(r"<h([1-6])", page)]
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        scrolling = re.findall(r'<\w+ class="[^"]*scroll[^"]*"[^>]*>', page)
        assert scrolling
        assert all('tabindex="0"' in part and 'aria-label="' in part for part in scrolling)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_words_stand_out_from_their_ground(scheme: int) -> None:
    """Every colour that words have is at 4.5 to 1 or more from card and paper (WCAG 2.2, 1.4.3), in light and dark."""
    found = re.findall(r"--([a-z]+): (#[0-9a-f]{6})", (app.TEMPLATES / "style.css").read_text())
    colours = dict(found[: len(found) // 2] if scheme == 0 else found[len(found) // 2 :])
    assert len(colours) == len(found) // 2
    for name in ("ink", "soft", "main", "good", "warn", "bad"):
        for ground in ("card", "paper"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio, 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance."""
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_a_bar_says_more_than_guessing_only_beyond_its_bracket() -> None:
    """The words follow the picture: above, below, or no better than guessing, at the ends of the bracket too."""
    said = [told_plot([Told("it", accuracy, 0.4, 0.6, False)]).rows[0] for accuracy in (0.39, 0.4, 0.6, 0.61)]
    assert [row.text.split(", ")[1].split(" guessing")[0] for row in said] == ["below", "no better than", "no better than", "above"]
    assert all(row.chance == (40, 60) and row.bar is not None for row in said)
