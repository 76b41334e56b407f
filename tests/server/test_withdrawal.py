"""At the hub: a release that holds a withdrawn patient is shown as such, can be retired, and is then in no later pool."""

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from busgen_core.errors import StateError
from busgen_core.keys import SigningKey
from busgen_core.release import TrustedKeys
from busgen_core.wire import HelloReply, JobState, JobStatus
from busgen_privacy.dp.accounting import GaussianEvent, epsilon_of
from busgen_server.catalogue import admit
from busgen_server.dashboard import create_app
from busgen_server.database import ModelRow, ReleaseRow, ResultRow, open_store
from busgen_server.settings import HubSettings
from busgen_server.store import POOL, RETIRED, HubStore
from busgen_server.trainer import Trainer, pool_promise
from tests.releases import EVENTS, TRUSTED
from tests.server.hospital import CAMPAIGN, enrol, packed, run

RIO_KEYS = (SigningKey.generate(), SigningKey.generate())
RIO = TrustedKeys(site="rio", node=RIO_KEYS[0].public, officer=RIO_KEYS[1].public)


@pytest.fixture
def store(tmp_path: Path) -> HubStore:
    """Two hospitals, each with an admitted release of one campaign."""
    store = HubStore(open_store(tmp_path / "data"))
    enrol(store)
    enrol(store, RIO)
    assert admit(store, tmp_path / "data", TRUSTED, CAMPAIGN, packed()).state == "admitted"
    rio = packed(seed=2, release_id="rio-1", site="rio", keys=RIO_KEYS)
    assert admit(store, tmp_path / "data", RIO, CAMPAIGN, rio).state == "admitted"
    return store


def get(folder: Path, path: str) -> httpx.Response:
    """Ask the dashboard of this hub, without a network."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(HubSettings(data=folder / "data")))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path)

    return asyncio.run(ask())


def notify(store: HubStore) -> None:
    store.upsert_job("cairo", JobStatus(campaign_id="spring", state=JobState.RELEASED, release_id="cairo-1", withdrawal_notice=True))


def test_the_release_says_so_in_list_page_and_json(store: HubStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """List, page and JSON carry the notice, with the epsilon that protects the patient, at the one release and at no other."""
    words = "contains a withdrawn patient (protected by epsilon 3.5); retire?"
    assert words not in get(tmp_path, "/").text
    notify(store)
    assert get(tmp_path, "/").text.count(words) == 1
    assert "busgen-hub release retire cairo-1" in get(tmp_path, "/").text
    (campaign,) = get(tmp_path, "/api/state").json()["campaigns"]
    assert {r["release_id"]: r["notice"] for r in campaign["releases"]} == {"cairo-1": words, "rio-1": ""}
    assert run(tmp_path, "catalogue", "list", "--json") == 0
    assert {r["release"]: r["notice"] for r in json.loads(capsys.readouterr().out)} == {"cairo-1": words, "rio-1": ""}


def test_a_notice_is_kept_for_good_and_noted_once(store: HubStore) -> None:
    """Whatever the node says later, and however often, there is one notice and one event; unknown campaigns are passed over."""
    for _ in range(2):
        notify(store)
    store.upsert_job("cairo", JobStatus(campaign_id="spring", state=JobState.RELEASED, release_id="cairo-1"))
    hello = HelloReply(site="cairo", software="0", worker_alive=True, disk_free_mb=1, withdrawal_notices=("spring", "unknown"))
    store.record_hello("7", hello)
    assert store.withdrawals() == {("spring", "cairo")}
    assert [row.event for row in store.journal()].count("release.withdrawal") == 1


def test_a_retired_release_is_in_no_later_pool(
    store: HubStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, both hospitals and their pool are trained on; after ``release retire``, the other hospital alone."""
    wanted: dict[str, list[str]] = {}

    def note(self: Trainer, campaign_id: str, name: str, releases: list[ReleaseRow]) -> None:
        wanted[name] = [row.release_id for row in releases]
        model = {"model_id": f"m-{name}", "campaign_id": campaign_id, "name": name, "trained_on": "", "weights": "w", "sha256": "0", "edges": []}
        store.upsert_model(ModelRow(**model))

    monkeypatch.setattr(Trainer, "_train_one", note)
    trainer = Trainer(HubSettings(data=tmp_path / "data"))
    while trainer._train("spring"):
        pass
    assert wanted == {"cairo": ["cairo-1"], "rio": ["rio-1"], POOL: ["cairo-1", "rio-1"]}
    assert run(tmp_path, "release", "retire", "cairo-1") == 0
    assert "retired: cairo-1" in capsys.readouterr().out
    wanted.clear()
    monkeypatch.setattr(HubStore, "models", lambda *_: [])
    assert trainer._train("spring")
    assert wanted == {"rio": ["rio-1"]}


def test_retiring_is_for_admitted_releases_and_happens_once(store: HubStore, tmp_path: Path) -> None:
    """An unknown or rejected release is named; a second time changes nothing."""
    assert "wrong-state" in str(run(tmp_path, "release", "retire", "cairo-9"))
    rejected = admit(store, tmp_path / "data", TRUSTED, CAMPAIGN, b"junk")
    with pytest.raises(StateError):
        store.retire_release(rejected.release_id)
    first = store.retire_release("cairo-1")
    assert (first.state, first.code) == ("retired", RETIRED)
    store.retire_release("cairo-1")
    assert [row.event for row in store.journal()].count("release.retired") == 1


def test_a_retired_release_still_holds_its_place(store: HubStore, tmp_path: Path) -> None:
    """It cannot come again as a fresh one, nor as another site's copy; nor can its site send a second one: that would spend twice."""
    store.retire_release("cairo-1")
    assert admit(store, tmp_path / "data", TRUSTED, CAMPAIGN, packed()).state == "retired"
    second = admit(store, tmp_path / "data", TRUSTED, CAMPAIGN, packed(seed=3, release_id="cairo-2"))
    assert (second.state, second.code) == ("rejected", "release-manifest")
    keys = (SigningKey.generate(), SigningKey.generate())
    lima = TrustedKeys(site="lima", node=keys[0].public, officer=keys[1].public)
    enrol(store, lima)
    copied = admit(store, tmp_path / "data", lima, CAMPAIGN, packed(release_id="lima-1", site="lima", keys=keys))
    assert (copied.state, copied.code) == ("rejected", "release-reaudit")


def test_a_pool_states_the_epsilon_of_a_patient_who_is_in_all_of_it(store: HubStore, tmp_path: Path) -> None:
    """Two releases compose; one alone needs no words; the page shows what the trainer wrote."""
    rows = store.releases(state="admitted")
    events = [GaussianEvent(e.noise_multiplier, e.sample_rate, e.count) for e in EVENTS if e.account == "members"] * 2
    twin = epsilon_of(events, delta=1e-5).epsilon
    words = pool_promise(tmp_path / "data", rows)
    assert words == f"; a patient who is in all of them: epsilon {twin:.3g} at delta 1e-05"
    assert pool_promise(tmp_path / "data", rows[:1]) == ""
    model = {"model_id": "m", "campaign_id": "spring", "name": POOL, "trained_on": f"40 synthetic images{words}", "weights": "w", "sha256": "0"}
    store.upsert_model(ModelRow(**model, edges=[]))
    store.upsert_results([ResultRow(campaign_id="spring", name=POOL, site=POOL, auc=0.8, low=0.7, high=0.9)])
    (campaign,) = get(tmp_path, "/api/state").json()["campaigns"]
    assert campaign["pooled"] == f"40 synthetic images{words}"
    assert f"The pool: 40 synthetic images{words}." in get(tmp_path, "/").text
