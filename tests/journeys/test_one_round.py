"""One round through real processes: hub, three nodes, Flower over TLS, and all the bad luck that the round must survive.

The nodes: ``north`` is recorded byte by byte; ``south`` is killed in every phase; ``east`` has a policy that declines. Text is looked for in
some scans of ``north`` alone: that takes longest, and is not what they are here for.
The hub is killed while the nodes work, and stays away for two minutes.
"""

import io
import json
import re
import shutil
import ssl
import subprocess
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import pydicom
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright
from safetensors.numpy import load_file

from busgen_client.cohort import open_cohort
from busgen_client.settings import load_settings
from busgen_core.repository import arrays, read_parquet
from busgen_core.supervise import environment
from busgen_privacy.ledger import Ledger
from busgen_server.flower_app.launcher import flower_home
from busgen_server.settings import load_settings as load_hub
from deploy.local.consortium import BIN, Consortium, change_settings, free_ports, run
from tests.journeys.recorder import Recorder
from tests.journeys.world import (
    CAMPAIGN,
    approve,
    create_campaign,
    hub,
    job,
    site,
    take_in_phantoms,
    tiny_foundation,
    until,
    wait_for_state,
)

pytestmark = pytest.mark.journey
PHASES = ("accepted", "adapting", "generating", "auditing", "review")
READ = {"north": 60}  # looks for text
PATIENTS = {"north": 100, "south": 100, "east": 25}  # four in ten are holdout; fewer than the audit's 20 of 100 happen once in 100,000 rounds
HUB_AWAY_SECONDS = 120
IDENTIFIERS = ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "StudyInstanceUID", "SOPInstanceUID", "InstitutionName")
POLL_SECONDS = 15.0  # each poll starts a process at every node, which costs two seconds of a core
CHUNK_BYTES = 200 * 1024  # so that foundation and release take several messages
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
QUIET_BROWSER = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
EVIL_CLIENT = """
import os
from pathlib import Path
if "BUSGEN_NODE_CONFIG" in os.environ:  # in a node's process; the hub that ships this may import it itself
    Path({marker!r}).write_text("imported")
from flwr.clientapp import ClientApp
app = ClientApp()
"""


@dataclass
class Round:
    """What is left of the round when it is over."""

    consortium: Consortium
    recorded: bytes
    studies: dict[str, Path]
    killed_in: list[str]
    hub_was_away: float


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Round]:
    folder = tmp_path_factory.mktemp("consortium")
    foundation = tiny_foundation(folder / "foundation")
    sites = [site("north"), site("south", steps=25), site("east", campaign_epsilon=1.0, smallest_cohort=10)]
    consortium = Consortium(folder=folder, foundation=foundation, sites=sites, poll_seconds=POLL_SECONDS)
    family: list[psutil.Process] = []
    try:
        consortium.lay_out()
        change_settings(consortium.hub_config, {"": {"chunk_bytes": CHUNK_BYTES}})
        studies = {
            s.name: take_in_phantoms(consortium, s.name, seed=i, patients=PATIENTS[s.name], read=READ.get(s.name, 0)) for i, s in enumerate(sites)
        }
        consortium.start_hub()
        consortium.enrol()
        (port,) = free_ports(1)
        recorder = Recorder(port=port, hub_port=consortium.ports["public"], pki=consortium.hub_config.parent / "data" / "pki")
        with recorder:
            change_settings(consortium.node_config("north"), {"hub": {"address": f"127.0.0.1:{port}"}})
            for each in sites:
                consortium.start_node(each.name)
            create_campaign(consortium)
            killed_in = _kill_in(consortium, "accepted")
            wait_for_state(consortium, "south", {"adapting"}, seconds=400)
            consortium.kill("hub")
            away_since = time.monotonic()
            for phase in ("adapting", "generating", "auditing", "review"):  # the worker goes on without a hub
                killed_in += _kill_in(consortium, phase)
            approve(consortium, "south")
            consortium.kill("south")  # signed, not yet delivered
            killed_in.append("released")
            consortium.start_node("south")
            time.sleep(max(0.0, away_since + HUB_AWAY_SECONDS - time.monotonic()))
            away = time.monotonic() - away_since
            consortium.start_hub()
            approve(consortium, "north")
            until(lambda: hub(consortium).campaign_row(CAMPAIGN).state == "done", seconds=420, what="the campaign to be done")
            family = [p for s in consortium.processes.values() for p in psutil.Process(s.pid).children(recursive=True)]
            yield Round(consortium, bytes(recorder.sent), studies, killed_in, away)
    finally:
        consortium.stop()
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family), seconds=20, what="all processes to be gone")


def _kill_in(consortium: Consortium, phase: str) -> list[str]:
    """Kill the node ``south`` in a phase (or in a later one, if it was quicker than we are) and start it again; where it was."""
    wait_for_state(consortium, "south", {*PHASES[PHASES.index(phase) :], "refused", "failed"}, seconds=400)
    row = job(consortium, "south")
    consortium.kill("south")
    consortium.start_node("south")
    return [row.state if row else ""]


def _data(finished: Round, name: str) -> Path:
    return finished.consortium.node_config(name).parent / "data"


def test_the_round_ends_despite_kills_and_an_absent_hub(finished: Round) -> None:
    """Killed in each phase, with the hub away for two minutes, both willing nodes release and the round ends."""
    assert {"accepted", "adapting", "review", "released"} <= set(finished.killed_in)
    assert finished.hub_was_away >= HUB_AWAY_SECONDS
    states = {j.site: j.state for j in hub(finished.consortium).jobs(CAMPAIGN)}
    assert states == {"north": "released", "south": "released", "east": "declined"}


def test_each_release_arrived_once_and_was_admitted(finished: Round) -> None:
    """One row, one folder and one verdict for each release, however often the pieces were sent."""
    rows = hub(finished.consortium).releases(campaign_id=CAMPAIGN)
    assert sorted((r.site, r.state) for r in rows) == [("north", "admitted"), ("south", "admitted")]
    folders = list((finished.consortium.hub_config.parent / "data" / "releases").iterdir())
    assert len(folders) == 2
    for row in rows:
        keys = finished.consortium.folder / f"{row.site}.join.json"
        assert "valid" in run("busgen-hub", "verify", finished.consortium.hub_config.parent / "data" / row.folder, "--keys", keys)


def test_budget_is_reserved_once(finished: Round) -> None:
    """However often a node was killed, its ledger holds one reservation for the adaptation, and the chain is whole."""
    for name in ("north", "south"):
        ledger = Ledger(_data(finished, name) / "ledger.jsonl", site=name)
        ledger.verify()
        reserved = [e for e in ledger.entries() if e.kind == "reserve" and e.account == "members"]
        assert [e.reference for e in reserved] == [CAMPAIGN]
        assert 7.5 < ledger.spent("members", 1e-5) <= 8.0


def test_a_campaign_above_the_policy_is_declined(finished: Round) -> None:
    """A node whose policy allows epsilon 1 declines a campaign of epsilon 8 by name; its ledger stays empty."""
    row = job(finished.consortium, "east")
    assert row is not None
    assert (row.state, row.code) == ("declined", "policy-declined")
    assert Ledger(_data(finished, "east") / "ledger.jsonl", site="east").entries() == ()


def test_models_were_scored_on_holdout_patients(finished: Round) -> None:
    """Each model has noised counts from both sites, paid for from the holdout account, and results with intervals."""
    store = hub(finished.consortium)
    models = store.models(CAMPAIGN)
    assert {m.name for m in models} == {"north", "south", "pool"}
    for model in models:
        counts = {s.site: s.counts for s in store.scores(model.model_id)}
        assert counts.keys() == {"north", "south"}
        assert all(c is not None for c in counts.values())
    assert {(r.name, r.site) for r in store.results(CAMPAIGN)} >= {("pool", "pool"), ("north", "south")}
    assert all(r.low <= r.auc <= r.high for r in store.results(CAMPAIGN))
    ledger = Ledger(_data(finished, "north") / "ledger.jsonl", site="north")
    paid = [e.reference for e in ledger.entries() if e.kind == "reserve" and e.account == "holdout"]
    assert sorted(paid) == sorted([CAMPAIGN, *(f"score-{m.model_id}" for m in models)])


def test_nothing_of_a_patient_is_in_what_a_node_sent(finished: Round) -> None:
    """In every byte that ``north`` sent there is no pixel run of a real image, no name, identifier or path, no weight."""
    sent = finished.recorded
    release = (_data(finished, "north") / "jobs" / CAMPAIGN / "release.tar").read_bytes()
    assert release[-4096:-2048] in sent or release[2048:4096] in sent  # the record is real: it holds the release
    assert len(sent) > len(release)
    looked_for = set()
    for what, needle in _private_needles(finished):
        assert needle not in sent, f"{what} crossed the wire"
        looked_for.add(what)
    assert looked_for > {*IDENTIFIERS, "a DICOM file name", "a path", "an image id", "a stored image", "a sealed image"}
    table = _data(finished, "north") / "jobs" / CAMPAIGN / "release" / "data" / "train-00000.parquet"
    released = arrays(read_parquet(table.read_bytes()))[0].tobytes()
    for what, needle in _pixel_needles(finished):
        assert needle not in sent, f"{what} crossed the wire"
        assert needle not in released, f"{what} is in a released image"


def _private_needles(finished: Round) -> Iterator[tuple[str, bytes]]:
    """Names, identifiers, paths, files and weights of ``north``, as bytes that must not be found."""
    data = _data(finished, "north")
    for file in sorted(finished.studies["north"].glob("IM*")):
        header = pydicom.dcmread(file, stop_before_pixels=True)
        for keyword in IDENTIFIERS:
            value = str(header.get(keyword, ""))
            if len(value) >= 4:
                yield keyword, value.encode()
                yield from ((keyword, part.encode()) for part in re.split(r"[\^ ]", value) if len(part) >= 5)  # four letters may come by chance
        yield "a DICOM file name", file.name.encode()
    yield "a path", str(data).encode()
    yield "the data folder's name", str(finished.studies["north"]).encode()
    store = open_cohort(load_settings(finished.consortium.node_config("north")))
    for row in store.rows():
        sealed, png = (data / "images" / row.file).read_bytes(), store.png(row.image_id)
        yield "an image id", row.image_id.encode()
        yield "a stored image", png[60:124]
        yield "a sealed image", sealed[60:124]
    adapted = load_file(data / "jobs" / CAMPAIGN / "adapt" / "adapted.safetensors")
    for name, tensor in adapted.items():
        raw = np.ascontiguousarray(tensor).tobytes()
        yield from ((f"adapted weights {name}", raw[i : i + 16]) for i in range(0, len(raw) - 15, 16) if len(set(raw[i : i + 16])) > 4)


def _pixel_needles(finished: Round) -> Iterator[tuple[str, bytes]]:
    """Runs of 12 pixels of every real image, members and holdout, wherever they are not flat."""
    store = open_cohort(load_settings(finished.consortium.node_config("north")))
    for row in store.rows():
        picture = Image.open(io.BytesIO(store.png(row.image_id))).convert("L")
        for pixels in (np.asarray(picture), np.asarray(picture.resize((64, 64), Image.Resampling.LANCZOS))):
            for row in pixels[8:-8:8]:
                run_of_pixels = row[20:32].tobytes()
                if len(set(run_of_pixels)) >= 8:
                    yield "a run of real pixels", run_of_pixels


def test_the_public_port_refuses_flowers_control_api(finished: Round) -> None:
    """Whoever has only the public port cannot list, register or start anything; the fleet's own paths do pass."""
    settings = load_hub(finished.consortium.hub_config)
    base = f"https://127.0.0.1:{settings.public_port}"
    with httpx.Client(verify=_trust(settings.data / "pki" / "ca.crt")) as client:
        for path in ("/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/pull-messages", "/", "/v1/fleet/../control/list-runs"):
            answer = client.post(base + path, content=b"")
            assert answer.status_code == 403, path
            assert answer.json()["code"] == "control-api-refused"
    home = finished.consortium.folder / "stranger"
    home.mkdir()
    config = flower_home(settings) / "config.toml"
    (home / "config.toml").write_text(config.read_text().replace(f":{settings.superlink_port}", f":{settings.public_port}"))
    done = subprocess.run([BIN / "flwr", "ls", "hub"], env=environment({"FLWR_HOME": str(home)}), capture_output=True, timeout=60, check=False)
    assert done.returncode != 0


def _trust(ca: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca))


def test_a_bundle_with_its_own_client_is_refused_before_import(finished: Round) -> None:
    """A hub that ships a bundle carrying ``busgen_client`` gets a refusal from each node; nothing of it is unpacked or imported."""
    consortium = finished.consortium
    marker = consortium.folder / "evil-was-imported"
    bundle = consortium.folder / "evil"
    (bundle / "busgen_client" / "flower_app").mkdir(parents=True)
    good = tomllib.loads((Path(__file__).parents[2] / "deploy" / "flower" / "pyproject.toml").read_text())
    assert good["tool"]["flwr"]["app"]["components"]["clientapp"] == "busgen_client.flower_app:app"
    text = (Path(__file__).parents[2] / "deploy" / "flower" / "pyproject.toml").read_text()
    (bundle / "pyproject.toml").write_text(
        text.replace("busgen_server.flower_app:app", "evil_server:app").replace('name = "busgen"', 'name = "evil"')
    )
    evil = EVIL_CLIENT.format(marker=str(marker))
    (bundle / "busgen_client" / "__init__.py").write_text(evil)
    (bundle / "busgen_client" / "flower_app" / "__init__.py").write_text(evil)
    (bundle / "evil_server.py").write_text(
        "from pathlib import Path\nfrom flwr.app import ConfigRecord, Message, RecordDict\nfrom flwr.serverapp import ServerApp\napp = ServerApp()\n"
        "@app.main()\ndef main(grid, context):\n"
        "    out = [Message(RecordDict({'c': ConfigRecord({'x': 1})}), dst_node_id=n, message_type='query') for n in grid.get_node_ids()]\n"
        "    replies = list(grid.send_and_receive(out, timeout=60))\n"
        f"    Path({str(consortium.folder / 'evil-replies')!r}).write_text(repr([r.error.code if r.has_error() else 'content' for r in replies]))\n"
    )
    settings = load_hub(consortium.hub_config)
    env = environment({"FLWR_HOME": str(flower_home(settings))})
    subprocess.run([BIN / "flwr", "run", bundle, "hub"], env=env, capture_output=True, timeout=120, check=True)
    answers = consortium.folder / "evil-replies"
    until(answers.exists, seconds=150, what="the hostile run's replies")
    codes = json.loads(answers.read_text().replace("'", '"'))
    assert codes
    assert all(code == 8 or code != "content" for code in codes)
    assert "content" not in codes
    assert not marker.exists()
    refusing = [
        n for n in ("north", "south", "east") if "bundle.refused" in (_data(finished, n) / "logs" / "supernode.log").read_text(errors="replace")
    ]
    assert len(refusing) == len(codes)
    for name in ("north", "south", "east"):
        apps = _data(finished, name) / "flower" / "apps"
        assert not any("evil" in p.name for p in apps.rglob("*")) if apps.exists() else True


def test_the_dashboard_shows_the_round_in_a_browser(finished: Round, tmp_path: Path) -> None:
    """In a real browser the hub's page shows sites, jobs, both releases with epsilon and verdict, sample images, and the AUC."""
    settings = load_hub(finished.consortium.hub_config)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET_BROWSER)
        page = browser.new_page(viewport={"width": 1200, "height": 1600})
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"http://127.0.0.1:{settings.dashboard_port}/")
        text = page.inner_text("body")
        drawn = page.evaluate("[...document.images].filter(i => i.complete && i.naturalWidth > 0).length")
        page.screenshot(path=tmp_path / "dashboard.png", full_page=True)
        browser.close()
    assert not problems
    for expected in ("north", "south", "east", "declined", CAMPAIGN, "pool"):
        assert expected in text
    assert text.lower().count("admitted") >= 2
    assert drawn >= 12
