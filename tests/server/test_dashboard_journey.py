"""From the list of releases to what the hub found in one: the real dashboard process, the real re-audit, a real browser and its keyboard."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from playwright.sync_api import Page, expect

from busgen_core.keys import SigningKey
from busgen_core.release import TrustedKeys
from busgen_core.supervise import environment
from busgen_server.catalogue import admit
from busgen_server.database import open_store
from busgen_server.settings import CONFIG_VARIABLE
from busgen_server.store import HubStore
from deploy.local.consortium import free_ports, wait_for
from tests.browser import watched_page
from tests.releases import TRUSTED
from tests.server.hospital import CAMPAIGN, enrol, frames, packed, run

pytestmark = pytest.mark.journey
RIO_KEYS = (SigningKey.generate(), SigningKey.generate())
RIO = TrustedKeys(site="rio", node=RIO_KEYS[0].public, officer=RIO_KEYS[1].public)
INSIDE, BETWEEN = 4, 3  # near copies that are planted in a release, and between the two
OLD = "the hub does not answer; this page is old"
MORE_TABS_THAN_LINKS = 60


@dataclass
class Hub:
    """A hub with two releases, and its running dashboard."""

    folder: Path
    store: HubStore
    port: int
    process: subprocess.Popen[bytes]

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Releases of cairo and rio with planted near copies; the dashboard as its own process."""
    store = HubStore(open_store(tmp_path / "data"))
    enrol(store)
    enrol(store, RIO)
    cairo, rio = frames(1), frames(2)
    for number in range(INSIDE):
        cairo[-1 - number] = nearly(cairo[number])
    for number in range(BETWEEN):
        rio[number] = nearly(cairo[INSIDE + number])
    assert admit(store, tmp_path / "data", TRUSTED, CAMPAIGN, packed(pictures=cairo)).state == "admitted"
    assert admit(store, tmp_path / "data", RIO, CAMPAIGN, packed(pictures=rio, release_id="rio-1", site="rio", keys=RIO_KEYS)).state == "admitted"
    (port,) = free_ports(1)
    (tmp_path / "served.toml").write_text(f'data = "data"\ndashboard_port = {port}\n')
    command = [sys.executable, "-m", "busgen_server.dashboard"]
    process = subprocess.Popen(command, env=environment({CONFIG_VARIABLE: str(tmp_path / "served.toml")}))
    try:
        wait_for(lambda: answers(port), seconds=60, what="the dashboard to answer")
        yield Hub(tmp_path, store, port, process)
    finally:
        process.kill()
        process.wait(20)


def nearly(frame: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The same image to the eye, another one to a digest."""
    return np.clip(frame.astype(int) + np.random.default_rng(3).integers(-2, 3, frame.shape), 0, 255).astype(np.uint8)


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/api/state").status_code == 200
    except httpx.TransportError:
        return False


def tab_to(page: Page, name: str) -> None:
    """Press Tab until the element of that name has the focus."""
    for _ in range(MORE_TABS_THAN_LINKS):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('aria-label')") == name:
            return
    raise AssertionError(f"{name!r} is not reached by keyboard")


def test_the_coordinator_sees_what_the_hub_found(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """By keyboard alone from the list to a release's page, which fills itself when the re-audit ends, finds the planted copies, fits a phone,
    keeps its reader's place, asks nothing of other hosts, shows a failure as one, and says so when its hub is gone."""
    with watched_page(host=hub.host) as (page, complaints):
        page.goto(f"http://{hub.host}/")
        expect(page.get_by_text("not looked at yet")).to_have_count(2)
        tab_to(page, "what the hub found in cairo-1")
        page.keyboard.press("Enter")
        page.wait_for_url("**/releases/cairo-1")
        expect(page.get_by_text("Not looked at yet: nothing is known here")).to_be_visible()

        page.evaluate("window.same = true")
        page.get_by_role("link", name="the hospital's audit of cairo-1").focus()
        assert run(hub.folder, "release", "reaudit", "cairo-1", "--json") == 0
        expect(page.get_by_role("heading", name="Repeats")).to_be_visible(timeout=20_000)
        assert page.evaluate("window.same")  # it was not loaded again
        assert page.evaluate("document.activeElement.getAttribute('href')") == "/releases/cairo-1/audit.html"
        text = page.inner_text("main")
        for expected in (
            f"{2 * INSIDE} of 20",
            f"{BETWEEN} of 20",
            f"{2 * INSIDE} images have a near duplicate in the release",
            "10 of 10 asked for",
        ):
            assert expected in text, expected
        assert "by the worst that was read in each" in text or "Text in the pixels:" in text

        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            for path in ("/", "/releases/cairo-1"):
                page.set_viewport_size({"width": 320, "height": 700})
                page.goto(f"http://{hub.host}{path}")
                assert page.evaluate("document.documentElement.scrollWidth") <= 320, (scheme, path)
                page.screenshot(path=hub.folder / f"{scheme}-{path.rpartition('/')[2] or 'all'}.png", full_page=True)

        (hub.folder / "data" / "releases" / "rio-1" / "data" / "train-00000.parquet").write_bytes(b"rotten")
        assert run(hub.folder, "release", "reaudit", "rio-1") != 0
        page.goto(f"http://{hub.host}/releases/rio-1")
        expect(page.get_by_text("Nothing is known here, good or bad")).to_be_visible()
        assert complaints == []

        hub.process.terminate()
        hub.process.wait(20)
        expect(page.get_by_role("status")).to_have_text(OLD, timeout=20_000)
