"""The hub's store."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from busgen_core.errors import ConfigError, StateError
from busgen_core.wire import BinnedCounts, HelloReply, JobState, JobStatus, ScoreReply
from busgen_server.database import ModelRow, ReleaseRow, ResultRow, open_store
from busgen_server.settings import load_settings
from busgen_server.store import HubStore
from tests.server.samples import CAMPAIGN, COUNTS


@pytest.fixture
def store(tmp_path: Path) -> HubStore:
    store = HubStore(open_store(tmp_path))
    store.add_site("cairo", node_key="a" * 64, officer_key="b" * 64, flower_key="ssh-a")
    store.add_campaign(CAMPAIGN)
    return store


def hello(site: str) -> HelloReply:
    return HelloReply(site=site, software="0.1.0", worker_alive=True, disk_free_mb=100, problems=("disk-low",))


def test_site_survives_reopening(store: HubStore, tmp_path: Path) -> None:
    """What was stored is there for another engine on the same folder, times in UTC."""
    store.record_hello("42", hello("cairo"))
    site = HubStore(open_store(tmp_path)).site("cairo")
    assert site.health["problems"] == ["disk-low"]
    assert site.last_seen is not None
    assert site.last_seen.tzinfo is not None


def test_enrolment_is_idempotent_and_never_replaces_keys(store: HubStore) -> None:
    """The same site again is no error; the same name with another key is one, and so is a key used twice."""
    store.add_site("cairo", node_key="a" * 64, officer_key="b" * 64, flower_key="ssh-a")
    with pytest.raises(StateError, match="other keys"):
        store.add_site("cairo", node_key="c" * 64, officer_key="b" * 64, flower_key="ssh-a")
    with pytest.raises(StateError, match="one of these keys"):
        store.add_site("rio", node_key="d" * 64, officer_key="a" * 64, flower_key="ssh-d")
    assert [site.name for site in store.sites()] == ["cairo"]


def test_node_cannot_speak_for_another_site(store: HubStore) -> None:
    """Once bound, a site's hello is taken from its own node only, and one node speaks for one site."""
    store.add_site("rio", node_key="d" * 64, officer_key="e" * 64, flower_key="ssh-d")
    store.record_hello("42", hello("cairo"))
    with pytest.raises(StateError, match="not cairo's"):
        store.record_hello("43", hello("cairo"))
    with pytest.raises(StateError, match="another site"):
        store.record_hello("42", hello("rio"))
    with pytest.raises(StateError, match="not known"):
        store.record_hello("44", hello("lima"))
    found = store.site_of_node("42")
    assert found is not None
    assert found.name == "cairo"
    assert store.site_of_node("43") is None


def test_campaign_round_trips_and_keeps_its_content(store: HubStore) -> None:
    """A campaign reads back equal; another campaign under the same id is refused."""
    store.add_campaign(CAMPAIGN)
    assert store.campaign("c1") == CAMPAIGN
    with pytest.raises(StateError, match="other content"):
        store.add_campaign(CAMPAIGN.model_copy(update={"epsilon": 9.0}))


def test_campaign_takes_only_allowed_steps(store: HubStore) -> None:
    """A campaign that is done stays done."""
    for state in ("scoring", "scoring", "done"):
        store.set_campaign_state("c1", state)
    with pytest.raises(StateError, match="is done"):
        store.set_campaign_state("c1", "open")
    assert [row.campaign_id for row in store.campaigns(state="done")] == ["c1"]
    assert store.campaigns(state="open") == []


def test_job_is_overwritten_and_changes_are_journalled(store: HubStore) -> None:
    """The last status counts; the journal has one line a change of state, not one a status."""
    for progress in (0.1, 0.2, 0.3):
        store.upsert_job("cairo", JobStatus(campaign_id="c1", state=JobState.ADAPTING, progress=progress))
    store.upsert_job("cairo", JobStatus(campaign_id="c1", state=JobState.REVIEW, progress=1))
    (job,) = store.jobs("c1")
    assert (job.state, job.progress) == ("review", 1)
    assert [row.fields["state"] for row in store.journal() if row.event == "job.moved"] == ["review", "adapting"]


def test_lost_job_is_forgotten_and_may_come_again(store: HubStore) -> None:
    """A job that the node lost is dropped, once or twice, and the site's next answer makes a new one."""
    store.upsert_job("cairo", JobStatus(campaign_id="c1", state=JobState.ADAPTING))
    store.forget_job("c1", "cairo")
    store.forget_job("c1", "cairo")
    assert store.jobs("c1") == []
    store.upsert_job("cairo", JobStatus(campaign_id="c1", state=JobState.OFFERED))
    assert [row.event for row in store.journal()].count("job.forgotten") == 1


def test_any_answer_counts_as_seen(store: HubStore) -> None:
    """A site is seen when its node answers anything; an unknown site is named."""
    assert store.site("cairo").last_seen is None
    store.seen("cairo")
    assert store.site("cairo").last_seen is not None
    with pytest.raises(StateError, match="not known"):
        store.seen("lima")


def test_job_of_unknown_site_is_refused(store: HubStore) -> None:
    """Foreign keys are enforced: no job without an enrolled site."""
    with pytest.raises(IntegrityError):
        store.upsert_job("lima", JobStatus(campaign_id="c1", state=JobState.OFFERED))


def test_release_arriving_twice_is_one_row(store: HubStore) -> None:
    """The first row of a release id stays; the second is not an error."""
    store.add_release(ReleaseRow(release_id="r1", campaign_id="c1", site="cairo", state="admitted", images=5))
    again = store.add_release(ReleaseRow(release_id="r1", campaign_id="c1", site="cairo", state="rejected", images=7))
    assert (again.state, again.images) == ("admitted", 5)
    assert len(store.releases(campaign_id="c1", state="admitted")) == 1
    assert store.releases(state="rejected") == []


def test_counts_are_final_until_the_weights_change(store: HubStore) -> None:
    """A refusal may become counts, counts stay, and new weights under the same id drop them."""
    model = {"model_id": "m1", "campaign_id": "c1", "name": "pool", "trained_on": "pool", "weights": "m1.safetensors", "edges": [0.5]}
    store.upsert_model(ModelRow(**model, sha256="0" * 64))
    store.upsert_score("cairo", ScoreReply(campaign_id="c1", model_id="m1", code="budget-exceeded"))
    store.upsert_score("cairo", ScoreReply(campaign_id="c1", model_id="m1", counts=COUNTS))
    store.upsert_score("cairo", ScoreReply(campaign_id="c1", model_id="m1", counts=COUNTS.model_copy(update={"noise": 3.0})))
    (score,) = store.scores("m1")
    assert BinnedCounts.model_validate(score.counts) == COUNTS
    store.upsert_model(ModelRow(**model, sha256="1" * 64))
    assert store.scores("m1") == []
    assert store.models("c1")[0].edges == [0.5]
    with pytest.raises(StateError, match="model m2"):
        store.upsert_score("cairo", ScoreReply(campaign_id="c1", model_id="m2", counts=COUNTS))


def test_result_lines_are_replaced(store: HubStore) -> None:
    """One line for each campaign, name and site, the newest."""
    for auc in (0.7, 0.8):
        store.upsert_results([ResultRow(campaign_id="c1", name="pooled", site="pool", auc=auc, low=0.6, high=0.9, details={"n": 1})])
    assert [row.auc for row in store.results("c1")] == [0.8]


WRITER = """
import sys
from pathlib import Path
from busgen_core.wire import JobState, JobStatus
from busgen_server.database import open_store
from busgen_server.store import HubStore
store = HubStore(open_store(Path(sys.argv[1])))
for step in range(40):
    store.upsert_job("cairo", JobStatus(campaign_id="c1", state=list(JobState)[step % 2], progress=step / 40))
"""


def test_two_processes_write_at_once(store: HubStore, tmp_path: Path) -> None:
    """Writers in two processes wait for each other: every transaction of both arrives, none fails as locked."""
    other = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stderr=subprocess.PIPE, text=True)
    store.note("test.start")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda step: store.note("test.tick", step=step), range(80)))
    _, problems = other.communicate(timeout=60)
    assert (other.returncode, problems) == (0, "")
    events = [row.event for row in store.journal(limit=1000)]
    assert events.count("test.tick") == 80
    assert events.count("job.moved") == 40


def test_settings_come_from_toml_then_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths start at the file, the environment wins, and a wrong value names its setting."""
    file = tmp_path / "hub.toml"
    file.write_text('data = "d"\npublic_port = 9000\n')
    monkeypatch.setenv("BUSGEN_HUB__POLL_SECONDS", "2.5")
    settings = load_settings(file)
    assert (settings.data, settings.tracking_uri, settings.public_port, settings.poll_seconds) == (tmp_path / "d", None, 9000, 2.5)
    file.write_text('data = "d"\ntracking_uri = "no address"\npublic_port = 80\ntypo = 1\n')
    with pytest.raises(ConfigError) as said:
        load_settings(file)
    assert all(name in str(said.value) for name in ("public_port", "tracking_uri", "typo"))
