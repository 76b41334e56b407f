"""The node's console: the real process, a real browser, and what a hostile page or person may try."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pyotp
import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select, update
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from busgen_client.cli import app
from busgen_client.cohort import CohortStore, open_cohort
from busgen_client.cohort_rows import ImageRow, JournalRow, QuarantineRow
from busgen_client.console.accounts import Accounts
from busgen_client.console.app import create_app
from busgen_client.console.roles import Role
from busgen_client.intake.findings import Code
from busgen_client.intake.table import intake_table
from busgen_client.quarantine import Quarantine
from busgen_client.quarantine_rows import HeldRow
from busgen_client.settings import load_settings
from busgen_core.supervise import environment
from tests.browser import watched_page
from tests.client.node import lay_out
from tests.client.waiting import COLUMNS, TEXT, table_to_look_at

pytestmark = pytest.mark.journey
PASSWORD = "a sentence for tests"
HTML = {"accept": "text/html"}
HOSTILE = "\"><img src=x onerror=alert(1)><script>alert(2)</script>'{{7*7}}"


@dataclass
class Console:
    """A node with two waiting objects, and its running console."""

    folder: Path
    store: CohortStore
    host: str
    made: int = 0

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def account(self, role: Role = Role.STEWARD) -> tuple[str, str]:
        """A new account's name and a code of its."""
        self.made += 1
        name = f"person{self.made}"
        return name, pyotp.TOTP(Accounts(self.store).add(name, role, PASSWORD)).now()

    def waiting(self, code: Code) -> str:
        """Name of the object that waits for a code; taken in anew where a test before has decided on it."""
        quarantine = Quarantine(self.store)
        if not quarantine.items(code=code):
            again = self.folder / f"again{self.made}"
            table_to_look_at(again, seed=self.made)
            intake_table(self.store, again, progress=False)
        return quarantine.items(code=code)[0].name

    def actions(self, who: str) -> list[str]:
        """What the journal says that a person did in the quarantine."""
        with Session(self.store.engine) as session:
            rows = session.scalars(select(JournalRow).where(JournalRow.event.startswith("quarantine.")).order_by(JournalRow.id)).all()
        return [row.event.partition(".")[2] for row in rows if json.loads(row.detail)["who"] == who]


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    folder = tmp_path_factory.mktemp("node")
    store = open_cohort(lay_out(folder))
    table_to_look_at(folder / "table")
    intake_table(store, folder / "table", progress=False)
    command = [sys.executable, "-c", "from busgen_client.cli import main; main()", "console", "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=folder, env=environment({}), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Console(folder, store, process.stdout.readline().strip().removeprefix("http://").removesuffix("/"))
        finally:
            process.terminate()
    store.engine.dispose()


@pytest.fixture
def visitor(console: Console) -> Iterator[httpx.Client]:
    """A client that nobody knows, with the console's own page as origin."""
    with httpx.Client(base_url=console.url, headers={"origin": console.url}, timeout=60) as client:
        yield client


def enter(console: Console, client: httpx.Client, role: Role = Role.STEWARD) -> tuple[str, str]:
    """Sign a client in; its name, and the token of its forms."""
    name, code = console.account(role)
    assert client.post("/sign-in", data={"name": name, "password": PASSWORD, "code": code}).headers["location"] == "/"
    found = re.search('name="token" value="([^"]+)"', client.get("/").text)
    assert found
    return name, found[1]


def sign_in(console: Console, page: Page) -> str:
    name, code = console.account()
    page.goto(console.url)
    expect(page).to_have_url(f"{console.url}/sign-in")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_label("Six-digit code").fill(code)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Cohort")).to_be_visible()
    return name


def drag(page: Page, corners: tuple[int, int, int, int]) -> None:
    """Draw a box on the picture, in its pixels."""
    place = page.locator("#picture").bounding_box()
    assert place
    scale = place["width"] / COLUMNS
    x0, y0, x1, y1 = (place[axis] + scale * value for axis, value in zip(("x", "y", "x", "y"), corners, strict=True))
    page.mouse.move(x0, y0)
    page.mouse.down()
    page.mouse.move(x1, y1, steps=4)
    page.mouse.up()


def fields(page: Page) -> list[int]:
    return [int(page.locator(f"[name={name}]").input_value()) for name in ("x0", "y0", "x1", "y1")]


def test_a_steward_looks_blacks_out_and_releases(console: Console) -> None:
    """In a browser: sign in, see the object and its reason, draw a box with the mouse, look again, confirm; the image is in the cohort with the
    box black and the journal has every step. Light and dark, on a phone too, nothing is asked of other hosts and nothing is complained of."""
    name = console.waiting(Code.COLOUR)
    with watched_page(host=console.host) as (page, complaints):
        who = sign_in(console, page)
        page.get_by_role("link", name="Quarantine", exact=True).click()
        page.get_by_role("link", name="colour").last.click()
        expect(page.get_by_text("the generator learns gray B-mode only")).to_be_visible()
        drag(page, TEXT)
        assert all(abs(got - wanted) <= 1 for got, wanted in zip(fields(page), TEXT, strict=True))
        page.get_by_label("left").fill(str(TEXT[0] - 1))
        page.get_by_label("bottom").fill(str(TEXT[3] + 1))
        page.get_by_role("button", name="Black out the box").click()
        expect(page.get_by_role("status")).to_contain_text("Blacked out")

        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            for path in ("", "quarantine", f"quarantine/{name}", f"quarantine/{name}/confirm/release", "journal"):
                page.set_viewport_size({"width": 320, "height": 700})
                page.goto(f"{console.url}/{path}")
                assert page.evaluate("document.documentElement.scrollWidth") <= 320, (scheme, path)
        page.set_viewport_size({"width": 1200, "height": 900})

        page.goto(f"{console.url}/quarantine/{name}")
        page.get_by_role("link", name="Release…").click()
        page.get_by_role("button", name="Release").click()
        expect(page.get_by_role("status")).to_have_text("Released into the cohort.")
        page.get_by_role("link", name="Journal").click()
        expect(page.get_by_role("cell", name="released").first).to_be_visible()
        expect(page.get_by_role("cell", name=re.compile(f"item {name}.*who {who}")).first).to_be_visible()
        assert complaints == []
    assert console.actions(who) == ["masked", "released"]
    with Session(console.store.engine) as session:
        assert session.scalar(select(ImageRow.image_id).limit(1))


def test_a_box_is_drawn_without_a_mouse(console: Console) -> None:
    """By keyboard: arrow keys move a box, with Shift they size it, and the number fields say it to the pixel."""
    name = console.waiting(Code.LABEL_UNKNOWN)
    with watched_page(host=console.host) as (page, complaints):
        sign_in(console, page)
        page.goto(f"{console.url}/quarantine/{name}")
        page.locator("#picture").focus()
        page.keyboard.press("ArrowRight")
        before = fields(page)
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Shift+ArrowRight")
        after = fields(page)
        assert after[1] > before[1]
        assert (after[0], after[2] > before[2]) == (before[0], True)
        page.get_by_label("right").fill("300")
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_contain_text("Blacked out")
        assert complaints == []
    (box,) = Quarantine(console.store).item(name).masks
    assert (box.x0, box.x1) == (after[0], 300)


def test_without_scripts_the_number_fields_do(console: Console, visitor: httpx.Client) -> None:
    """Forms alone, as a browser without scripts sends them: black out, take off, delete; a label is given at the release."""
    who, token = enter(console, visitor)
    name = console.waiting(Code.LABEL_UNKNOWN)

    def post(what: str, **data: object) -> httpx.Response:
        seen = Quarantine(console.store).item(name).stamp
        return visitor.post(f"/quarantine/{name}/{what}", data={"token": token, "seen": seen, **data})

    assert post("unmask").status_code == 303
    assert post("mask", x0=0, y0=0, x1=20, y1=10, keep="false").headers["location"].startswith(f"/quarantine/{name}?")
    assert post("mask", x0=0, y0=0, x1="<b>", y1=10).status_code == 422
    assert post("release").status_code == 409
    assert 'value="malignant"' in visitor.get(f"/quarantine/{name}/confirm/release").text
    assert post("release", pathology="malignant").status_code == 303
    assert console.actions(who) == ["unmasked", "masked", "released"]


@pytest.mark.parametrize("path", ["/", "/quarantine", "/quarantine/NAME", "/quarantine/NAME/0.png", "/quarantine/NAME/confirm/delete", "/journal"])
def test_nothing_is_served_to_a_stranger(console: Console, visitor: httpx.Client, path: str) -> None:
    """Without a session, pages lead to the sign-in and pictures are refused; a cookie made up is none."""
    address = path.replace("NAME", console.waiting(Code.COLOUR))
    visitor.cookies.set(f"busgen-console-{console.host.partition(':')[2]}", "made-up")
    assert visitor.get(address).status_code == 401
    page = visitor.get(address, headers=HTML)
    assert (page.status_code, page.headers["location"], page.content) == (303, "/sign-in", b"")


def test_every_form_needs_a_session_its_token_and_our_own_page(console: Console, visitor: httpx.Client) -> None:
    """Every POST route there is: 401 to a stranger, 403 without the session's token, with another's, from another origin or from none."""
    name = console.waiting(Code.COLOUR)
    paths = create_app(load_settings(console.folder / "node.toml"), console.store).openapi()["paths"]
    posts = [path.replace("{name}", name) for path, methods in paths.items() if "post" in methods and path != "/sign-in"]
    assert len(posts) == 6
    stamp = Quarantine(console.store).item(name).stamp
    data = {"seen": stamp, "x0": "0", "y0": "0", "x1": "9", "y1": "9"}
    assert {visitor.post(path, data=data).status_code for path in posts} == {401}
    _, token = enter(console, visitor)
    with httpx.Client(base_url=console.url, headers={"origin": console.url}, timeout=60) as other:
        _, theirs = enter(console, other)
    for path in posts:
        assert visitor.post(path, data=data).status_code == 403, path
        assert visitor.post(path, data={**data, "token": theirs}).status_code == 403, path
        for origin in ("http://evil.example", f"https://{console.host}", "null", "http://127.0.0.1:1"):
            assert visitor.post(path, data={**data, "token": token}, headers={"origin": origin}).status_code == 403, (path, origin)
        bare = {key: value for key, value in visitor.headers.items() if key != "origin"}
        assert httpx.post(console.url + path, data={**data, "token": token}, headers=bare, cookies=dict(visitor.cookies)).status_code == 403
    assert Quarantine(console.store).item(name).stamp == stamp
    assert visitor.get("/").status_code == 200  # nor was anybody signed out


def test_an_officer_sees_and_does_not_decide(console: Console, visitor: httpx.Client) -> None:
    """Every page, no form and no confirmation of the quarantine."""
    _, token = enter(console, visitor, Role.OFFICER)
    name = console.waiting(Code.COLOUR)
    item = Quarantine(console.store).item(name)
    page = visitor.get(f"/quarantine/{name}", headers=HTML).text
    assert "A steward decides" in page
    assert "/confirm/" not in page
    assert visitor.get(f"/quarantine/{name}/0.png").headers["content-type"] == "image/png"
    assert visitor.get(f"/quarantine/{name}/confirm/delete").status_code == 403
    assert visitor.post(f"/quarantine/{name}/delete", data={"token": token, "seen": item.stamp}).status_code == 403
    assert Quarantine(console.store).item(name) == item


def test_sign_in_is_limited(console: Console, visitor: httpx.Client) -> None:
    """Five tries of a name in a quarter of an hour; then even the right one is turned away, others are not, and the journal says so."""
    name, code = console.account()
    wrong = [visitor.post("/sign-in", data={"name": name, "password": PASSWORD, "code": "000000"}).status_code for _ in range(6)]
    assert wrong == [401] * 5 + [429]
    assert visitor.post("/sign-in", data={"name": name, "password": PASSWORD, "code": code}).status_code == 429
    enter(console, visitor)
    with Session(console.store.engine) as session:
        details = session.scalars(select(JournalRow.detail).where(JournalRow.event == "console.locked")).all()
    assert json.dumps({"who": name}) in details


def test_signing_out_ends_the_session(console: Console, visitor: httpx.Client) -> None:
    """The cookie is worthless afterwards, also for who kept a copy; a removed account is out at once."""
    _, token = enter(console, visitor)
    copy = dict(visitor.cookies)
    assert visitor.post("/sign-out", data={"token": token}).status_code == 303
    assert httpx.get(console.url, cookies=copy).status_code == 401
    name, _ = enter(console, visitor)
    Accounts(console.store).remove(name)
    assert visitor.get("/").status_code == 401


def test_every_answer_is_guarded(console: Console, visitor: httpx.Client) -> None:
    """Pages, pictures, refusals and errors alike: never cached or framed, a policy that runs nothing but the page's own nonce, a cookie that
    scripts and other sites do not get; other host names and large forms are refused."""
    enter(console, visitor)
    answers = [
        visitor.get(path, headers=HTML) for path in ("/", "/quarantine", "/nowhere", f"/quarantine/{'0' * 12}", "/sign-in", "/quarantine?skip=x")
    ]
    answers.append(visitor.get(f"/quarantine/{console.waiting(Code.COLOUR)}/0.png"))
    answers.append(visitor.get("/", headers={"host": "rebound.example"}))
    answers.append(visitor.post("/sign-in", content=b"name=" + b"x" * 100_000, headers={"content-type": "application/x-www-form-urlencoded"}))
    assert [answer.status_code for answer in answers] == [200, 200, 404, 409, 200, 422, 200, 400, 413]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert policy.startswith("default-src 'none'")
        assert (answer.headers["cache-control"], answer.headers["x-frame-options"]) == ("no-store", "DENY")
    nonces = {re.search("'nonce-([^']+)'", answer.headers["content-security-policy"])[1] for answer in answers[:2]}
    assert len(nonces) == 2
    _, code = console.account()
    cookie = visitor.post("/sign-in", data={"name": f"person{console.made}", "password": PASSWORD, "code": code}).headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))


def test_hostile_text_is_only_text(console: Console) -> None:
    """Markup in a device, a reason, a code and a journal line runs nowhere and is shown as it is."""
    name = console.waiting(Code.COLOUR)
    with Session(console.store.engine) as session:
        key = session.scalar(select(HeldRow.source_key).where(HeldRow.source_key.startswith(name)))
        session.execute(update(HeldRow).where(HeldRow.source_key == key).values(device=HOSTILE))
        session.execute(update(QuarantineRow).where(QuarantineRow.source_key == key).values(reason=HOSTILE))
        session.commit()
    console.store.note(HOSTILE, {HOSTILE: [HOSTILE]})
    with watched_page(host=console.host) as (page, complaints):
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        sign_in(console, page)
        for path in ("quarantine", f"quarantine/{name}", f"quarantine/{name}/confirm/delete", "journal"):
            page.goto(f"{console.url}/{path}")
            if "confirm" not in path:
                assert HOSTILE in page.inner_text("main"), path
        page.goto(f"{console.url}/quarantine?done={HOSTILE}")
        assert page.locator(".done").count() == 0  # only our own sentences are said
        assert page.locator("img[src=x]").count() == 0
        assert complaints == []


def test_the_first_account_is_made_at_the_command_line(console: Console) -> None:
    """The password comes from standard input, the secret is printed once with a code to photograph; the list has name and role, never more."""
    toml = str(console.folder / "node.toml")
    made = CliRunner().invoke(
        app, ["console", "add-user", "first", "--role", "officer", "--qr", "--config", toml], input=PASSWORD + "\n", catch_exceptions=False
    )
    secret = re.search("secret: ([A-Z2-7]{32})\n", made.stdout)
    assert secret
    assert f"otpauth://totp/BUSGen%20node%20north:first?secret={secret[1]}" in made.stdout
    assert "█" in made.stderr
    assert Accounts(console.store).check("first", PASSWORD, pyotp.TOTP(secret[1]).now())
    listed = CliRunner().invoke(app, ["console", "users", "--json", "--config", toml], catch_exceptions=False)
    assert {"name": "first", "role": "officer"} in json.loads(listed.stdout)
    assert secret[1] not in listed.stdout
    CliRunner().invoke(app, ["console", "remove-user", "first", "--config", toml], catch_exceptions=False)
    assert Accounts(console.store).find("first") is None


def test_the_picture_is_the_one_that_waits(console: Console, visitor: httpx.Client) -> None:
    """What the browser gets is the object's own picture, and there is none beyond its last."""
    enter(console, visitor)
    name = console.waiting(Code.LABEL_UNKNOWN)
    assert visitor.get(f"/quarantine/{name}/0.png").content == Quarantine(console.store).picture(name)
    assert visitor.get(f"/quarantine/{name}/1.png").status_code == 409
