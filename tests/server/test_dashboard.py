"""The dashboard, on a real store."""

import asyncio
import html
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import update

from busgen_core.errors import StateError
from busgen_core.wire import HelloReply, JobState, JobStatus
from busgen_server.catalogue import admit, load_images
from busgen_server.dashboard import create_app
from busgen_server.database import ReleaseRow, ResultRow, SiteRow, now, open_store
from busgen_server.foundations import Version
from busgen_server.settings import HubSettings
from busgen_server.store import POOL, HubStore
from tests.releases import TRUSTED
from tests.server.hospital import CAMPAIGN, enrol, packed

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Client:
    """Asks the application itself, without a network; a fault in it becomes its answer, not a traceback."""

    def __init__(self, app: FastAPI) -> None:
        self.transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    def get(self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=self.transport, base_url="http://localhost:8080") as client:
                return await client.request(method, path, headers=headers)

        return asyncio.run(ask())


@pytest.fixture
def store(tmp_path: Path) -> HubStore:
    return HubStore(open_store(tmp_path))


@pytest.fixture
def client(store: HubStore, tmp_path: Path) -> Client:
    settings = HubSettings(data=tmp_path)
    return Client(create_app(settings))


@pytest.fixture
def busy(store: HubStore, tmp_path: Path) -> HubStore:
    """A campaign in the middle: one release in, one job at work, one result."""
    enrol(store)
    store.add_site("rio", node_key="1" * 64, officer_key="2" * 64, flower_key="ssh-rio")
    store.record_hello("7", HelloReply(site="cairo", software="0.1.0", worker_alive=True, disk_free_mb=2500, problems=()))
    store.upsert_job("rio", JobStatus(campaign_id="spring", state=JobState.ADAPTING, progress=0.4))
    admit(store, tmp_path, TRUSTED, CAMPAIGN, packed(report=b"<!doctype html><p>report of cairo"))
    store.upsert_results(
        [
            ResultRow(
                campaign_id="spring", name=POOL, site="cairo", auc=0.8312, low=0.75, high=0.9, details={"sensitivity": [0.7, 0.6, 0.8], "model": "m"}
            ),
            ResultRow(campaign_id="spring", name="foundation", site="cairo", auc=0.74, low=0.35, high=0.81, details={"baseline": True}),
        ]
    )
    return store


def test_empty_hub_says_what_to_do(client: Client) -> None:
    """With nothing there, the page names the commands that come next; the JSON is empty and valid."""
    page = client.get("/").text
    for words in ("No hospital has joined yet", "busgen-hub invite", "No campaign yet", "Nothing has happened yet"):
        assert words in page
    assert client.get("/api/state").json() == {"sites": [], "campaigns": [], "events": []}


def test_page_shows_the_state(client: Client, busy: HubStore) -> None:
    """Hospitals, jobs with progress, releases with epsilon, delta and gate, and AUCs are on the page."""
    page = client.get("/").text
    for words in ("healthy", "never seen", "2.5 GB", 'value="0.400"', "adapting the generator", "3.5", "1e-5", ".831", ".750 to .900", "foundation"):
        assert words in page, words
    assert page.count("<img ") == 12
    assert page.count('class="row base"') == 1


def test_state_for_programs_has_the_figures(client: Client, busy: HubStore) -> None:
    """The JSON holds the same figures with their intervals."""
    state = client.get("/api/state").json()
    (campaign,) = state["campaigns"]
    assert campaign["foundation"] == {"name": "", "digest": "f" * 64}
    assert [(job["site"], job["state"]) for job in campaign["jobs"]] == [("cairo", "waiting"), ("rio", "adapting")]
    assert (campaign["releases"][0]["epsilon"], campaign["releases"][0]["gate"]) == (3.5, "release")
    assert campaign["results"][0]["sensitivity"] == {"value": 0.7, "low": 0.6, "high": 0.8}
    assert [result["baseline"] for result in campaign["results"]] == [False, True]


def test_a_campaign_shows_its_foundation(client: Client, busy: HubStore, tmp_path: Path) -> None:
    """Name and first digits of the foundation that a campaign hands out are on the page; the whole digest is in the JSON."""
    folder = tmp_path / "foundations" / CAMPAIGN.foundation
    folder.mkdir(parents=True)
    (folder / "version.json").write_text(Version(digest=CAMPAIGN.foundation, name="cpu-64", chosen=1).model_dump_json())
    assert f"cpu-64 <code>{'f' * 12}</code>" in client.get("/").text
    assert client.get("/api/state").json()["campaigns"][0]["foundation"] == {"name": "cpu-64", "digest": "f" * 64}


def test_silent_and_troubled_nodes_stand_out(client: Client, busy: HubStore) -> None:
    """A node that says its worker is down, has problems, or has not been heard of, is not called healthy."""

    def status() -> str:
        return str(client.get("/api/state").json()["sites"][0]["status"])

    hello = HelloReply(site="cairo", software="0.1.0", worker_alive=True, disk_free_mb=1, problems=("disk-low",))
    busy.record_hello("7", hello)
    assert status() == "problems"
    busy.record_hello("7", hello.model_copy(update={"worker_alive": False}))
    assert status() == "worker down"
    with busy._write.begin() as session:
        session.execute(update(SiteRow).values(last_seen=now() - timedelta(minutes=20)))
    assert status() == "silent"


def test_samples_are_the_release_images(client: Client, busy: HubStore, tmp_path: Path) -> None:
    """Each sample is one of the release's PNGs, byte for byte, served as PNG and nothing else."""
    row = busy.release("cairo-1")
    assert row is not None
    images = {image.png for image in load_images(tmp_path, row)}
    served = [client.get(f"/releases/cairo-1/samples/{number}.png") for number in range(12)]
    assert len({reply.content for reply in served}) == 12
    for reply in served:
        assert reply.content in images
        assert reply.headers["content-type"] == "image/png"
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_report_runs_nothing(client: Client, busy: HubStore) -> None:
    """The hospital's report is served as signed, in a sandbox without scripts or outside loads."""
    reply = client.get("/releases/cairo-1/audit.html")
    assert reply.content == b"<!doctype html><p>report of cairo"
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "; sandbox;" in policy
    assert "script-src" not in policy


MISSING = {
    "unknown release": "/releases/nobody/audit.html",
    "unknown sample": "/releases/cairo-1/samples/12.png",
    "negative sample": "/releases/cairo-1/samples/-1.png",
    "path as id": "/releases/..%2f..%2fhub.sqlite/audit.html",
    "no such page": "/nowhere",
    "documentation": "/docs",
    "schema": "/openapi.json",
}


@pytest.mark.parametrize("path", MISSING.values(), ids=MISSING)
def test_what_is_not_there_is_a_problem(client: Client, busy: HubStore, path: str) -> None:
    """Whatever is missing is RFC 9457 problem+json with status 404."""
    reply = client.get(path)
    assert (reply.status_code, reply.headers["content-type"]) == (404, "application/problem+json")
    assert reply.json()["status"] == 404
    assert reply.json()["code"]


def test_odd_requests_are_problems_too(client: Client, busy: HubStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong types, writing methods and faults of our own end in a problem that repeats nothing of the request."""
    assert client.get("/releases/cairo-1/samples/x.png").json()["code"] == "request-invalid"
    assert client.get("/", method="POST").json()["code"] == "http-405"

    def fails(*_: object) -> None:
        raise RuntimeError("secret path")

    monkeypatch.setattr("busgen_server.dashboard.app.hub_state", fails)
    reply = client.get("/")
    assert (reply.status_code, reply.json()["code"]) == (500, "internal")
    assert "secret" not in reply.text


def test_rejected_release_shows_its_reason_and_no_files(client: Client, store: HubStore) -> None:
    """A rejected release is listed with code and sentence; no sample and no report of it is served."""
    enrol(store)
    store.add_release(
        ReleaseRow(release_id="rejected-1", campaign_id="spring", site="cairo", state="rejected", code="gate-refused", message="The gate says no.")
    )
    page = client.get("/").text
    assert "gate-refused" in page
    assert "The gate says no." in page
    assert "<img " not in page
    assert client.get("/releases/rejected-1/audit.html").status_code == 404


def test_release_whose_files_are_gone_does_not_break_the_page(client: Client, busy: HubStore, tmp_path: Path) -> None:
    """Files lost from disk are said, on the page and by the routes."""
    (tmp_path / "releases").rename(tmp_path / "lost")
    assert "not on this hub&#39;s disk" in client.get("/").text or "not on this hub's disk" in client.get("/").text
    assert client.get("/releases/cairo-1/audit.html").json()["code"] == StateError.code


def test_text_from_nodes_is_escaped(client: Client, busy: HubStore) -> None:
    """Whatever a node writes appears as text: no tag or attribute of it survives, in any field that comes from outside."""
    hello = HelloReply(site="cairo", software=EVIL, worker_alive=True, disk_free_mb=1, problems=(EVIL,))
    busy.record_hello("7", hello)
    busy.upsert_job("rio", JobStatus(campaign_id="spring", state=JobState.FAILED, code=EVIL))
    busy.add_release(ReleaseRow(release_id=EVIL, campaign_id="spring", site="cairo", state="rejected", code=EVIL, message=EVIL))
    busy.add_release(ReleaseRow(release_id=EVIL + "2", campaign_id="spring", site="cairo", state="admitted", gate=EVIL, folder="none"))
    busy.upsert_results([ResultRow(campaign_id="spring", name=EVIL, site=EVIL, auc=0.5, low=0.4, high=0.6, details={})])
    busy.note("test.event", text=EVIL)
    page = client.get("/").text
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert page.count(str(html.escape("<script>alert(1)</script>"))) >= 8
    assert page.count("<script") == 1


def test_page_may_load_nothing_from_elsewhere(client: Client, busy: HubStore) -> None:
    """The policy allows own images, one script and one style by a nonce that changes; the page names no other host."""
    first, second = client.get("/"), client.get("/")
    policy = first.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy
    assert policy != second.headers["content-security-policy"]
    assert " style=" not in first.text
    assert "http://" not in first.text
    assert "https://" not in first.text


def test_foreign_host_name_is_refused(client: Client, busy: HubStore) -> None:
    """A page elsewhere that points its own name at this address (DNS rebinding) gets nothing."""
    for host in ("evil.example", "localhost.evil.example:8080", "[::", ""):
        reply = client.get("/api/state", headers={"host": host})
        assert reply.status_code == 400, host
        assert "cairo" not in reply.text
    assert client.get("/api/state", headers={"host": "127.0.0.1:8080"}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/api/state", "/nowhere", "/releases/cairo-1/samples/0.png", "/releases/cairo-1/audit.html"])
def test_every_answer_carries_the_security_headers(client: Client, busy: HubStore, path: str) -> None:
    """No answer, error or not, may be framed, sniffed, or leak where the reader came from."""
    headers = client.get(path).headers
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
