"""Versions of the foundation: folders that are whole or not there, and MLflow's real registry on SQLite beside them."""

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from flwr.supercore.task_identity import TaskIdentity
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from safetensors.numpy import load_file, save_file

from busgen_core.digests import sha256_bytes
from busgen_core.errors import CheckpointError, ConfigError, InputError, StateError, StorageFullError, UnavailableError
from busgen_core.files import write_whole
from busgen_core.foundation import foundation_digest
from busgen_core.transfer import folder_files, pack, unpack
from busgen_core.wire import FOUNDATION_FILES, Campaign, JobState, JobStatus
from busgen_server import foundations, tracking
from busgen_server.cli import main as hub_command
from busgen_server.database import open_store
from busgen_server.flower_app.conductor import Conductor, Memory
from busgen_server.foundations import Packages, Version, add, current, find, is_whole, read_files, sync, use, versions
from busgen_server.settings import HubSettings, load_settings
from busgen_server.store import HubStore
from tests.claims.test_command_line import ends_with
from tests.journeys.world import tiny_foundation

TENSORS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_foundation(tmp_path_factory.mktemp("made") / "cpu-tiny")


@pytest.fixture(scope="module")
def other(tiny: Path) -> Path:
    """Another foundation: the same tensors under another card."""
    folder = shutil.copytree(tiny, tiny.with_name("cpu-other"))
    (folder / "README.md").write_text("# Another card\n" + "x" * 6000)
    return folder


@pytest.fixture(scope="module")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without entries; making its tables takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    sync(HubSettings(data=folder))
    return folder / "mlflow.sqlite"


@pytest.fixture
def hub(tmp_path: Path, empty_registry: Path) -> HubSettings:
    settings = HubSettings(data=tmp_path / "data")
    settings.data.mkdir()
    shutil.copy(empty_registry, settings.data)
    return settings


def client(settings: HubSettings) -> MlflowClient:
    uri = f"sqlite:///{settings.data / 'mlflow.sqlite'}"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def registered(settings: HubSettings) -> dict[str, ModelVersion]:
    """The registry's versions by digest, read back with MLflow's own client; one for each digest."""
    found = client(settings).search_model_versions("name='foundation'")
    by_digest = {version.tags["digest"]: version for version in found}
    assert len(by_digest) == len(found)
    return by_digest


def alias(settings: HubSettings) -> str:
    return str(client(settings).get_model_version_by_alias("foundation", "current").tags["digest"])


def on_disk(settings: HubSettings) -> dict[str, tuple[int, int]]:
    """Every file in the folder of versions, with inode and time of its last change."""
    root = settings.data / "foundations"
    return {p.relative_to(root).as_posix(): (p.stat().st_ino, p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file() and p.name != ".lock"}


def test_add_keeps_the_very_bytes_and_registers_them(hub: HubSettings, tiny: Path) -> None:
    """The copy is byte for byte what was given, under the digest that torch's reader finds; MLflow has its source, size, card and alias."""
    version = add(hub, tiny)
    kept = hub.data / "foundations" / version.digest
    assert version.digest == foundation_digest(tiny) == foundation_digest(kept)
    assert folder_files(kept, FOUNDATION_FILES) == folder_files(tiny, FOUNDATION_FILES) == read_files(hub.data, version.digest)
    assert {p.relative_to(kept).as_posix() for p in kept.rglob("*") if p.is_file()} == {*FOUNDATION_FILES, "version.json"}
    counted = sum(math.prod(t.shape) for part in ("unet", "labels") for t in load_file(tiny / part / Path(TENSORS).name).values())
    assert (version.name, version.parameters, version.image_px) == ("cpu-tiny", counted, 64)
    (entry,) = registered(hub).values()
    assert (entry.source, entry.description) == (kept.as_uri(), (tiny / "README.md").read_text())
    assert entry.tags == {"digest": version.digest, "name": "cpu-tiny", "parameters": str(counted), "image_px": "64", "state": "whole"}
    assert alias(hub) == version.digest


def test_the_same_foundation_twice_is_one_version(hub: HubSettings, tiny: Path, tmp_path: Path) -> None:
    """Adding it again, from wherever, writes no foundation file and makes no second version; only a name that is given changes."""
    first = add(hub, tiny)
    before = on_disk(hub)
    again = add(hub, shutil.copytree(tiny, tmp_path / "elsewhere"))
    assert (again.digest, again.name, again.added) == (first.digest, "cpu-tiny", first.added)
    changed = {name for name, state in on_disk(hub).items() if before.get(name) != state}
    assert changed == {f"{first.digest}/version.json"}
    add(hub, tiny, name="renamed")
    assert [v.name for v in versions(hub.data)] == ["renamed"]
    assert registered(hub)[first.digest].tags["name"] == "renamed"


def test_current_is_the_newest_added_or_chosen(hub: HubSettings, tiny: Path, other: Path) -> None:
    """Each add and each use moves ``current``, here and in MLflow; nothing else does."""
    first, second = add(hub, tiny), add(hub, other)
    assert [v.digest for v in versions(hub.data)] == [first.digest, second.digest]
    assert alias(hub) == find(hub.data).digest == second.digest
    use(hub, first.digest[:8].upper())
    sync(hub)
    assert alias(hub) == find(hub.data).digest == first.digest
    add(hub, other)
    assert alias(hub) == find(hub.data).digest == second.digest
    assert len(registered(hub)[second.digest].description) == tracking.DESCRIPTION_LENGTH


def without_a_file(folder: Path) -> None:
    (folder / "boxes.json").unlink()


def cut(folder: Path) -> None:
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-1])


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / TENSORS)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / TENSORS, {"format": "pt"})


def not_finite(folder: Path) -> None:
    tensors = load_file(folder / TENSORS)
    tensors[sorted(tensors)[0]].flat[0] = np.nan
    save_file(tensors, folder / TENSORS, {"format": "pt"})


@pytest.mark.parametrize("spoil", [without_a_file, cut, without_a_tensor, not_finite, shutil.rmtree], ids=lambda f: f.__name__)
def test_what_is_no_foundation_is_not_added(hub: HubSettings, tiny: Path, tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    """A folder that lacks a file or a tensor, is cut, or holds a NaN is refused by its code; nothing is kept, nothing registered."""
    folder = shutil.copytree(tiny, tmp_path / "bad")
    spoil(folder)
    with pytest.raises(CheckpointError) as refused:
        add(hub, folder)
    assert str(tmp_path) not in str(refused.value)
    assert versions(hub.data) == []
    assert registered(hub) == {}


def test_names_are_simple(hub: HubSettings, tiny: Path) -> None:
    """A name with anything but lower-case letters, digits and hyphens is refused before anything is read."""
    for name in ("", "CPU", "a b", "../up", "a" * 64):
        with pytest.raises(ConfigError):
            add(hub, tiny, name=name)
    assert versions(hub.data) == []


def test_an_edit_after_registration_is_noticed(hub: HubSettings, tiny: Path) -> None:
    """One bit changed in any file: it is handed out no more, not chosen, not written over. MLflow has it marked until it is undone."""
    version = add(hub, tiny)
    for name in FOUNDATION_FILES:
        file = hub.data / "foundations" / version.digest / name
        good = file.read_bytes()
        edited = bytes([good[0] ^ 1]) + good[1:]
        file.write_bytes(edited)
        for refused in (lambda: read_files(hub.data, version.digest), lambda: use(hub, version.digest), lambda: add(hub, tiny)):
            with pytest.raises(CheckpointError, match=version.digest[:12]):
                refused()
        assert file.read_bytes() == edited
        sync(hub)
        assert registered(hub)[version.digest].tags["state"] == "damaged"
        file.write_bytes(good)
    add(hub, tiny)
    assert registered(hub)[version.digest].tags["state"] == "whole"
    assert registered(hub)[version.digest].description == (tiny / "README.md").read_text()


class Killed(BaseException):
    """Ends the process, as far as our code can tell: nothing catches it."""


def test_killed_between_folder_and_registry(hub: HubSettings, tiny: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is the truth: a kill before MLflow is told leaves a version that is kept and current, and the next list registers it, once."""
    first = add(hub, tiny)

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(foundations, "sync_registry", killed)
        with pytest.raises(Killed):
            add(hub, other)
    second = foundation_digest(other)
    assert find(hub.data).digest == second
    assert registered(hub).keys() == {first.digest}
    assert alias(hub) == first.digest
    numbers = sync(hub)
    assert alias(hub) == second
    settled = {digest: entry.last_updated_timestamp for digest, entry in registered(hub).items()}
    assert settled.keys() == {first.digest, second}
    assert sync(hub) == numbers
    assert {digest: entry.last_updated_timestamp for digest, entry in registered(hub).items()} == settled


@pytest.mark.parametrize("files", [0, 3, len(FOUNDATION_FILES)])
def test_killed_while_copying(hub: HubSettings, tiny: Path, monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    """Killed after some files, a half-copied folder stays that is no version; the next add clears it away and is whole."""
    written: list[Path] = []

    def dies(target: Path, data: bytes) -> None:
        if len(written) == files:
            raise Killed
        written.append(target)
        write_whole(target, data)

    with monkeypatch.context() as patch:
        patch.setattr(foundations, "write_whole", dies)
        with pytest.raises(Killed):
            add(hub, tiny)
    left = list((hub.data / "foundations").glob("*.new"))
    assert len(left) == (files > 0)
    for folder in left:
        (folder / "unet").mkdir(exist_ok=True)
        (folder / "unet" / "torn.new").write_text("what was being written")
    assert versions(hub.data) == []
    assert sync(hub) == {}
    version = add(hub, tiny)
    assert is_whole(hub.data, version.digest)
    assert on_disk(hub).keys() == {f"{version.digest}/{name}" for name in (*FOUNDATION_FILES, "version.json")}


def test_a_full_disk_leaves_nothing(hub: HubSettings, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for the last file the copy is taken back, and the error says why."""

    def full(target: Path, data: bytes) -> None:
        if target.name == "version.json":
            raise StorageFullError("no room")
        write_whole(target, data)

    monkeypatch.setattr(foundations, "write_whole", full)
    with pytest.raises(StorageFullError):
        add(hub, tiny)
    assert on_disk(hub) == {}


def test_registry_follows_folders_that_move_or_go(hub: HubSettings, tiny: Path, other: Path, empty_registry: Path) -> None:
    """A hub that was moved has its new place registered, one that lost MLflow's file all versions; a folder that is gone is marked so."""
    first, second = add(hub, tiny), add(hub, other)
    moved = HubSettings(data=hub.data.rename(hub.data.with_name("moved")))
    sync(moved)
    assert {entry.source for entry in registered(moved).values()} == {
        (moved.data / "foundations" / d).as_uri() for d in (first.digest, second.digest)
    }
    assert alias(moved) == second.digest
    shutil.move(moved.data / "foundations" / second.digest, moved.data / "aside")
    sync(moved)
    assert {digest: entry.tags["state"] for digest, entry in registered(moved).items()} == {first.digest: "whole", second.digest: "gone"}
    assert alias(moved) == find(moved.data).digest == first.digest
    lost = HubSettings(data=moved.data.rename(hub.data.with_name("lost")))
    shutil.copy(empty_registry, lost.data)
    (lost.data / "aside").rename(lost.data / "foundations" / second.digest)
    sync(lost)
    assert registered(lost).keys() == {first.digest, second.digest}
    assert alias(lost) == second.digest


def test_a_lost_record_costs_the_name_alone(hub: HubSettings, tiny: Path) -> None:
    """Without a readable ``version.json`` the files are still handed out; adding the foundation again restores it."""
    version = add(hub, tiny)
    (hub.data / "foundations" / version.digest / "version.json").write_text("{")
    assert versions(hub.data) == [Version(digest=version.digest)]
    assert set(read_files(hub.data, find(hub.data).digest)) == set(FOUNDATION_FILES)
    assert add(hub, tiny).name == "cpu-tiny"


def test_without_mlflow_a_version_is_kept(hub: HubSettings, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With MLflow's server away, adding ends in ``unavailable`` without its address, and the version is kept and current all the same."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = hub.model_copy(update={"tracking_uri": "http://user:secret@127.0.0.1:1"})
    with pytest.raises(UnavailableError) as said:
        add(away, tiny)
    assert "secret" not in str(said.value)
    assert find(hub.data).digest == foundation_digest(tiny)
    assert registered(hub) == {}
    sync(hub)
    assert alias(hub) == foundation_digest(tiny)


def test_runs_of_one_name_are_one_run(hub: HubSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A downstream model and the scores that come later are one run in the same MLflow, also from a relative data folder."""
    monkeypatch.chdir(hub.data.parent)
    tracking.track_model(Path("data"), name="m1", parameters={"epochs": 2}, metrics={"train_seconds": 1.5})
    named = f"sqlite:///{hub.data / 'mlflow.sqlite'}"
    tracking.track_model(Path("elsewhere"), name="m1", parameters={}, metrics={"auc_cairo": 0.75}, tracking_uri=named)
    experiment = client(hub).get_experiment_by_name(tracking.EXPERIMENT)
    (run,) = client(hub).search_runs([experiment.experiment_id])
    assert (run.data.params, run.data.metrics) == ({"epochs": "2"}, {"train_seconds": 1.5, "auc_cairo": 0.75})
    assert experiment.artifact_location == (hub.data / "mlflow").as_uri()


def test_versions_are_named_by_first_digits(tmp_path: Path) -> None:
    """Four digits or more name one version; none, too few, several or unknown ones end in their error."""
    with pytest.raises(StateError):
        find(tmp_path)
    for digest in ("abcd0" + "0" * 59, "abcd1" + "0" * 59):
        (tmp_path / "foundations" / digest).mkdir(parents=True)
    (tmp_path / "foundations" / ("a" * 64 + ".new")).mkdir()
    assert find(tmp_path, "abcd1").digest == "abcd1" + "0" * 59
    for prefix, error in {
        "": InputError,
        "abc": InputError,
        "ABCD": InputError,
        "wxyz": InputError,
        "aaaa": StateError,
        "a" * 65: InputError,
    }.items():
        with pytest.raises(error):
            find(tmp_path, prefix)


# Campaigns


@pytest.fixture
def flower_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Flower sets before it starts a ServerApp; a message carries it."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Post:
    """Flower's grid, as far as the conductor needs it: one node, and every message that was sent to it."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []

    def get_node_ids(self) -> list[int]:
        return [7]

    def push_messages(self, messages: list[object]) -> Iterator[str]:
        for message in messages:
            content = message.content  # type: ignore[attr-defined]
            data = content.array_records["data"]["bytes"].numpy().tobytes() if "data" in content.array_records else b""
            self.sent.append((str(content.config_records["payload"]["json"]), data))
            yield f"message-{len(self.sent)}"

    def pull_messages(self, _: list[str]) -> list[object]:
        return []


def conductor_of(settings: HubSettings) -> tuple[Conductor, Post, HubStore]:
    """A conductor with one enrolled site, which was just heard of."""
    store = HubStore(open_store(settings.data))
    store.add_site("cairo", node_key="1" * 64, officer_key="2" * 64, flower_key="ssh-cairo")
    store.bind_node("cairo", "7")
    post = Post()
    conductor = Conductor(post, settings)  # type: ignore[arg-type]
    conductor.memory["cairo"] = Memory(hello_at=time.monotonic())
    return conductor, post, store


def campaign_of(settings: HubSettings, campaign_id: str, digest: str) -> Campaign:
    packed = pack(read_files(settings.data, digest))
    return Campaign(
        campaign_id=campaign_id,
        images={},
        epsilon=8,
        delta=1e-5,
        foundation=digest,
        foundation_bytes=len(packed),
        foundation_package=sha256_bytes(packed),
        deadline="2999-01-01",
    )


def accepted(campaign: Campaign, have: int) -> JobStatus:
    return JobStatus(campaign_id=campaign.campaign_id, state=JobState.ACCEPTED, foundation_have=have)


def received(conductor: Conductor, post: Post, store: HubStore, campaign: Campaign) -> bytes:
    """All pieces that a node gets which answers each with what it has."""
    have = b""
    while len(have) < campaign.foundation_bytes:
        store.upsert_job("cairo", accepted(campaign, len(have)))
        conductor.sent.clear()
        conductor.turn()
        said, piece = post.sent[-1]
        assert json.loads(said) == {
            "version": 1,
            "kind": "foundation",
            "campaign_id": campaign.campaign_id,
            "offset": len(have),
            "total": campaign.foundation_bytes,
        }
        assert 0 < len(piece) <= conductor.settings.chunk_bytes
        have += piece
    return have


@pytest.mark.usefixtures("flower_task")
def test_a_campaign_hands_out_its_own_foundation(hub: HubSettings, tiny: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that is added while a campaign runs changes no byte of what its nodes get, and each foundation is packed once for all pieces."""
    packed: list[int] = []
    hub = hub.model_copy(update={"chunk_bytes": 128 * 1024})
    first = add(hub, tiny)
    campaign = campaign_of(hub, "spring", first.digest)
    conductor, post, store = conductor_of(hub)
    store.add_campaign(campaign)
    store.upsert_job("cairo", accepted(campaign, 0))
    monkeypatch.setattr(foundations, "pack", lambda files: (packed.append(1), pack(files))[1])
    conductor.turn()
    assert add(hub, other).digest == find(hub.data).digest != first.digest
    whole = received(conductor, post, store, campaign)
    assert len(post.sent) > 3
    assert unpack(whole) == folder_files(tiny, FOUNDATION_FILES)
    assert sha256_bytes(whole) == campaign.foundation_package
    assert len(packed) == 1
    assert Packages(hub.data).package(campaign) == whole  # nor after the conductor was started anew


@pytest.mark.usefixtures("flower_task")
def test_a_damaged_foundation_stops_its_own_campaign_alone(hub: HubSettings, tiny: Path, other: Path) -> None:
    """The campaign whose foundation was edited gets no piece and a line in the journal; another campaign goes on, and the first does when undone."""
    first, second = add(hub, tiny), add(hub, other)
    spring, summer = campaign_of(hub, "spring", first.digest), campaign_of(hub, "summer", second.digest)
    conductor, post, store = conductor_of(hub)
    for campaign in (summer, spring):  # the newest is served first
        store.add_campaign(campaign)
        store.upsert_job("cairo", accepted(campaign, 0))
    card = hub.data / "foundations" / first.digest / "README.md"
    good = card.read_bytes()
    card.write_bytes(b"edited")
    for _ in range(3):
        conductor.sent.clear()
        conductor.memory["cairo"].not_before = 0
        conductor.turn()
    assert {json.loads(said)["campaign_id"] for said, _ in post.sent} == {"summer"}
    failed = [row.fields for row in store.journal() if row.event == "message.failed"]
    assert {(f["site"], f["code"]) for f in failed} == {("cairo", "checkpoint-invalid")}
    card.write_bytes(good)
    store.set_campaign_state("summer", "cancelled")
    conductor.memory["cairo"].not_before = 0
    assert unpack(received(conductor, post, store, spring)) == folder_files(tiny, FOUNDATION_FILES)


def test_packages_are_forgotten_with_their_campaigns(hub: HubSettings, tiny: Path) -> None:
    """What no open campaign names is read again from disk, and checked again."""
    version = add(hub, tiny)
    campaign = campaign_of(hub, "spring", version.digest)
    packages = Packages(hub.data)
    packages.package(campaign)
    card = hub.data / "foundations" / version.digest / "README.md"
    card.write_text("edited")
    assert sha256_bytes(packages.package(campaign)) == campaign.foundation_package
    packages.keep_only(set())
    with pytest.raises(CheckpointError):
        packages.package(campaign)


def test_a_package_of_other_bytes_is_not_sent(hub: HubSettings, tiny: Path) -> None:
    """A campaign that announced another package than its foundation packs to is refused, not sent what its nodes would throw away."""
    version = add(hub, tiny)
    campaign = campaign_of(hub, "spring", version.digest).model_copy(update={"foundation_package": "0" * 64})
    with pytest.raises(CheckpointError, match="spring"):
        Packages(hub.data).package(campaign)


# Commands


@pytest.fixture
def config(hub: HubSettings) -> Path:
    file = hub.data.with_name("hub.toml")
    file.write_text(tomli_w.dumps({"data": "data"}))
    return file


def listed(config: Path, capsys: pytest.CaptureFixture[str]) -> list[Mapping[str, object]]:
    capsys.readouterr()
    assert ends_with(hub_command, "foundation", "list", "--json", "--config", config) == 0
    found: list[Mapping[str, object]] = json.loads(capsys.readouterr().out)
    return found


def test_commands_add_list_and_choose(config: Path, tiny: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``foundation add``, ``list`` and ``use`` end with 0, what is unknown, damaged or no folder with 1 and a code, wrong usage with 2."""
    assert listed(config, capsys) == []
    assert ends_with(hub_command, "foundation", "add", tiny, "--name", "cpu-64", "--config", config) == 0
    assert ends_with(hub_command, "foundation", "add", other, "--config", config) == 0
    first, second = listed(config, capsys)
    assert (first["name"], first["current"], first["state"], first["registered"], first["image_px"]) == ("cpu-64", False, "whole", "1", 64)
    assert (second["name"], second["current"], second["digest"]) == ("cpu-other", True, foundation_digest(other))
    assert ends_with(hub_command, "foundation", "use", str(first["digest"])[:10], "--config", config) == 0
    assert [row["current"] for row in listed(config, capsys)] == [True, False]
    (config.parent / "data" / "foundations" / str(second["digest"]) / "boxes.json").unlink()
    assert [row["state"] for row in listed(config, capsys)] == ["whole", "damaged"]
    said = {
        "checkpoint-invalid": [("use", second["digest"]), ("add", other), ("add", config.parent / "nowhere")],
        "wrong-state": [("use", "0" * 64)],
        "input-invalid": [("use", "xyz")],
        "config-invalid": [("add", tiny, "--name", "No")],
    }
    for code, commands in said.items():
        for command in commands:
            assert str(ends_with(hub_command, "foundation", *command, "--config", config)).startswith(f"busgen-hub: {code}: "), command
    assert ends_with(hub_command, "foundation", "use") == 2
    assert ends_with(hub_command, "foundation", "list", "--no-such-option") == 2
    assert ends_with(hub_command, "foundation", "list", "--config", config) == 0
    assert str(first["digest"])[:12] in capsys.readouterr().out


def test_campaigns_name_their_foundation(config: Path, tiny: Path, other: Path) -> None:
    """A campaign takes the current foundation or the one that is named, and does not start on one that was edited."""
    settings = load_settings(config)
    first, second = add(settings, tiny), add(settings, other)

    def create(name: str, *options: str) -> str | int | None:
        return ends_with(hub_command, "campaign", "create", name, *options, "--config", config)

    assert create("one") == 0
    assert create("two", "--foundation", first.digest[:8]) == 0
    store = HubStore(open_store(settings.data))
    for name, version, folder in (("one", second, other), ("two", first, tiny)):
        campaign = store.campaign(name)
        package = pack(folder_files(folder, FOUNDATION_FILES))
        assert (campaign.foundation, campaign.foundation_package) == (version.digest, sha256_bytes(package))
        assert campaign.foundation_bytes == len(package)
    (settings.data / "foundations" / second.digest / "README.md").write_text("edited")
    assert str(create("three")).startswith("busgen-hub: checkpoint-invalid: ")
    assert str(create("three", "--foundation", "0000")).startswith("busgen-hub: wrong-state: ")
    assert create("three", "--foundation", first.digest) == 0


def test_a_campaign_is_closed_before_its_deadline(config: Path, tiny: Path) -> None:
    """``campaign close`` goes on to scoring with what is there; a cancelled or unknown campaign stays as it is."""
    settings = load_settings(config)
    add(settings, tiny)

    def campaign(verb: str, name: str) -> str | int | None:
        return ends_with(hub_command, "campaign", verb, name, "--config", config)

    assert [campaign(verb, "one") for verb in ("create", "close")] == [0, 0]
    assert HubStore(open_store(settings.data)).campaign_row("one").state == "scoring"
    assert [campaign(verb, "two") for verb in ("create", "cancel")] == [0, 0]
    assert all(str(campaign("close", name)).startswith("busgen-hub: wrong-state: ") for name in ("two", "three"))


def test_init_keeps_a_first_foundation(hub: HubSettings, tiny: Path, other: Path) -> None:
    """``init`` adds its foundation as the first version; again, it keeps what is there and only tells MLflow."""
    config = hub.data.with_name("hub.toml")
    assert ends_with(hub_command, "init", "--foundation", tiny, "--config", config) == 0
    assert "foundation" not in config.read_text()
    settings = load_settings(config)
    assert alias(settings) == foundation_digest(tiny)
    add(settings, other)
    assert ends_with(hub_command, "init", "--foundation", tiny, "--config", config) == 0
    assert alias(settings) == find(settings.data).digest == foundation_digest(other)
    assert [row.fields["name"] for row in HubStore(open_store(settings.data)).journal() if row.event == "foundation.added"] == ["cpu-tiny"]


def test_list_speaks_without_mlflow(config: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With MLflow away the list is printed from the folders, and the exit status says that the registry was not reached."""
    settings = load_settings(config)
    add(settings, tiny)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config.write_text(tomli_w.dumps({"data": "data", "tracking_uri": "http://127.0.0.1:1"}))
    capsys.readouterr()
    assert str(ends_with(hub_command, "foundation", "list", "--json", "--config", config)).startswith("busgen-hub: unavailable: ")
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["registered"]) == ("cpu-tiny", "")


def test_reading_versions_needs_neither_torch_nor_mlflow() -> None:
    """Conductor and dashboard read versions in a process that imports neither library."""
    code = "import sys, busgen_server.foundations; sys.exit(bool({'torch', 'mlflow', 'diffusers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_current_survives_ties(tmp_path: Path) -> None:
    """Two versions without a readable record still have one current among them, always the same."""
    for digest in ("a" * 64, "b" * 64):
        (tmp_path / "foundations" / digest).mkdir(parents=True)
    found = current(tmp_path)
    assert found is not None
    assert found.digest == "b" * 64
