"""What a hub sees in a release without patients, beside the others it holds: at a command, and by itself once a release is admitted."""

import json
import sys
from pathlib import Path

import pytest

from busgen_core.keys import SigningKey
from busgen_core.release import TrustedKeys
from busgen_privacy import pixel_text
from busgen_server.catalogue import admit
from busgen_server.database import open_store
from busgen_server.reaudits import MOST_ATTEMPTS, due, latest, look_at_due
from busgen_server.settings import load_settings
from busgen_server.store import HubStore
from tests.releases import TRUSTED
from tests.server.hospital import CAMPAIGN, enrol, packed, run
from tests.server.test_dashboard_release import BARE

RIO_KEYS = (SigningKey.generate(), SigningKey.generate())
RIO = TrustedKeys(site="rio", node=RIO_KEYS[0].public, officer=RIO_KEYS[1].public)


@pytest.fixture
def store(tmp_path: Path) -> HubStore:
    """A hub with a release of cairo, then one of rio."""
    store = HubStore(open_store(tmp_path / "data"))
    enrol(store)
    enrol(store, RIO)
    (tmp_path / "hub.toml").write_text('data = "data"\n')
    assert admit(store, tmp_path / "data", TRUSTED, CAMPAIGN, packed()).state == "admitted"
    assert admit(store, tmp_path / "data", RIO, CAMPAIGN, packed(seed=2, release_id="rio-1", site="rio", keys=RIO_KEYS)).state == "admitted"
    return store


def rot(folder: Path, release_id: str) -> None:
    (folder / "data" / "releases" / release_id / "data" / "train-00000.parquet").write_bytes(b"rotten")


def test_a_release_is_looked_at_beside_the_others(store: HubStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Findings are printed and kept; they count what was asked for, read the images, check the claims; an unknown release is a named error."""
    assert run(tmp_path, "release", "reaudit", "cairo-1", "--json") == 0
    found = latest(store, "cairo-1")
    assert found is not None
    assert json.loads(capsys.readouterr().out) == found.model_dump(mode="json")
    assert set(found.near_others) == {"rio-1"}
    assert dict(found.asked) == {label: CAMPAIGN.images.get(label, 0) for label in found.asked}
    assert found.images == sum(found.labels.values())
    assert found.text is not None
    assert (found.text.looked, found.text.identifying) == (20, 0)
    assert len(found.claims) == 6
    assert all(claim.good for claim in found.claims)
    assert "wrong-state" in str(run(tmp_path, "release", "reaudit", "cairo-9"))


def test_nobody_knows_before_which_images_are_read(store: HubStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim: each look draws its own seed, so a release cannot keep text out of the images that the hub's sample will hold; findings keep it."""
    seeds = iter((11, 12, 13))
    monkeypatch.setattr("busgen_server.reaudits.secrets.randbits", lambda bits: (next(seeds), bits)[0] if bits >= 32 else 0)
    looked = []
    whole = pixel_text.text_or_why
    monkeypatch.setattr("busgen_privacy.reaudit.text_or_why", lambda images, **kw: (looked.append(kw["seed"]), whole(images[:1], **kw))[1])
    kept = []
    for _ in range(3):
        assert run(tmp_path, "release", "reaudit", "cairo-1") == 0
        found = latest(store, "cairo-1")
        assert found is not None
        kept.append(found.seed)
    assert looked == kept == [11, 12, 13]


def test_findings_of_a_known_seed_are_due_again(store: HubStore) -> None:
    """What an earlier version found, by a sample that everybody could foresee, counts as not looked at."""
    store.keep_reaudit("cairo-1", found=BARE.model_dump(mode="json"))
    assert latest(store, "cairo-1") == BARE
    old = BARE.model_dump(mode="json") | {"version": 2}
    del old["seed"]
    store.keep_reaudit("cairo-1", found=old)
    assert latest(store, "cairo-1") is None
    assert due(store) == ["cairo-1", "rio-1"]


def test_another_release_that_rots_is_no_fault_of_this_one(store: HubStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images of another release that cannot be read are named as not looked at; the release that rots fails by name, and stays unknown."""
    rot(tmp_path, "rio-1")
    assert run(tmp_path, "release", "reaudit", "cairo-1", "--json") == 0
    assert any("rio-1" in text for text in json.loads(capsys.readouterr().out)["not_run"])
    assert "table-unreadable" in str(run(tmp_path, "release", "reaudit", "rio-1"))
    assert latest(store, "rio-1") is None


def test_what_is_due(store: HubStore) -> None:
    """Admitted releases that nothing is known of, oldest first; not those found out, retired, or tried too often; old findings are due again."""
    assert due(store) == ["cairo-1", "rio-1"]
    for _ in range(MOST_ATTEMPTS):
        store.start_reaudit("cairo-1")
    assert due(store) == ["rio-1"]
    store.keep_reaudit("cairo-1", found={"version": 1})
    assert due(store) == ["cairo-1", "rio-1"]
    store.retire_release("rio-1")
    assert due(store) == ["cairo-1"]


@pytest.mark.slow  # the journey goes the same way
def test_the_hub_looks_by_itself_and_a_look_that_fails_stops_nothing(store: HubStore, tmp_path: Path) -> None:
    """In processes of their own: a release that rots fails by name and is tried again; the other is looked at and not due any more."""
    rot(tmp_path, "cairo-1")
    look_at_due(store, tmp_path / "hub.toml")
    assert latest(store, "rio-1") is not None
    assert due(store) == ["cairo-1"]
    failed = store.reaudit("cairo-1")
    assert failed is not None
    assert (failed.code, failed.attempts, failed.found) == ("table-unreadable", 1, None)
    assert {"release.reaudited", "release.reaudit-failed"} <= {row.event for row in store.journal()}


def test_a_look_that_dies_is_noted(store: HubStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends without a word counts as an attempt with a code; after the last attempt it is left alone."""
    monkeypatch.setattr(sys, "executable", "false")
    for _ in range(MOST_ATTEMPTS + 1):
        look_at_due(store, tmp_path / "hub.toml")
    died = store.reaudit("cairo-1")
    assert died is not None
    assert (died.code, died.attempts) == ("unavailable", MOST_ATTEMPTS)
    assert due(store) == []


def test_public_images_are_found_beside_the_settings(tmp_path: Path) -> None:
    """A relative folder of public images counts from hub.toml, with its role; without one there are none."""
    (tmp_path / "hub.toml").write_text('data = "data"\npublic_images = "open:pretrain"\n')
    assert load_settings(tmp_path / "hub.toml").public_images == str(tmp_path / "open:pretrain")
    (tmp_path / "hub.toml").write_text('data = "data"\n')
    assert load_settings(tmp_path / "hub.toml").public_images is None
