"""Admission of releases."""

from pathlib import Path

import numpy as np
import pytest

from busgen_core.keys import SigningKey
from busgen_core.labels import Pathology
from busgen_core.release import GateVerdict, TrustedKeys, verify_release
from busgen_core.transfer import folder_files, pack
from busgen_privacy.admission import pixels
from busgen_privacy.policy import GatePolicy
from busgen_server.catalogue import admit, load_images
from busgen_server.database import open_store
from busgen_server.store import HubStore
from tests.releases import EVENTS, NODE, PRIVACY, STRANGER, TRUSTED
from tests.server.hospital import AUDIT, CAMPAIGN, enrol, frames, packed, release

GOOD = packed()
OTHER_NODE, OTHER_OFFICER = SigningKey.generate(), SigningKey.generate()
RIO = TrustedKeys(site="rio", node=OTHER_NODE.public, officer=OTHER_OFFICER.public)


@pytest.fixture
def store(tmp_path: Path) -> HubStore:
    store = HubStore(open_store(tmp_path))
    enrol(store)
    enrol(store, RIO)
    return store


def test_sound_release_is_kept_whole(store: HubStore, tmp_path: Path) -> None:
    """An admitted release lies in its folder byte for byte, still verifies, and its row tells epsilon, gate and images."""
    row = admit(store, tmp_path, TRUSTED, CAMPAIGN, GOOD)
    assert (row.state, row.code, row.message) == ("admitted", "", "")
    assert (row.epsilon, row.delta, row.gate, row.images) == (3.5, 1e-5, "release", 20)
    files = folder_files(tmp_path / row.folder)
    assert pack(files) == GOOD
    verify_release(files, TRUSTED)
    assert np.array_equal(pixels(load_images(tmp_path, row)), np.stack(frames(1)))


def test_same_release_twice_is_one_row(store: HubStore, tmp_path: Path) -> None:
    """Sending again changes nothing and is no error."""
    first = admit(store, tmp_path, TRUSTED, CAMPAIGN, GOOD)
    again = admit(store, tmp_path, TRUSTED, CAMPAIGN, GOOD)
    assert (again.release_id, again.created) == (first.release_id, first.created)
    assert len(store.releases()) == 1


@pytest.mark.parametrize("torn", ["row without folder", "folder without row", "half a folder without row"])
def test_crash_between_folder_and_row_heals(store: HubStore, tmp_path: Path, torn: str) -> None:
    """Whatever half was kept when the hub died, the same release sent again ends whole."""
    folder = tmp_path / "releases" / "cairo-1"
    if torn == "row without folder":
        admit(store, tmp_path, TRUSTED, CAMPAIGN, GOOD)
        folder.rename(tmp_path / "lost")
    else:
        folder.mkdir(parents=True)
        (folder / "README.md").write_text("old")
    row = admit(store, tmp_path, TRUSTED, CAMPAIGN, GOOD)
    assert row.state == "admitted"
    assert pack(folder_files(folder)) == GOOD
    assert [path.name for path in (tmp_path / "releases").iterdir()] == ["cairo-1"]


def audit_with(**changes: object) -> bytes:
    return AUDIT.model_copy(update=changes).model_dump_json().encode()


def beaten(**changes: object) -> bytes:
    """An audit whose attack is changed."""
    return audit_with(attacks=(AUDIT.attacks[0].model_copy(update=changes),))


def constant(count: int) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    return [np.full((64, 64), 90, np.uint8) + (np.arange(64) % 2).astype(np.uint8) for _ in range(count)]


WRONG = {
    "not a package": (b"\x00" * 4096 + b"x", "transfer-mismatch|release-signature"),
    "half a package": (GOOD[: len(GOOD) // 2], "transfer-mismatch|release-signature|release-content"),
    "signed by a stranger": (packed(keys=(NODE, STRANGER)), "release-signature"),
    "officer has not signed": (packed(keys=(NODE,)), "release-signature"),
    "another site's": (packed(site="rio"), "release-manifest"),
    "file added": (pack(release() | {"extra.txt": b"x"}), "release-content"),
    "image changed": (pack(release() | {"data/train-00000.parquet": release(seed=2)["data/train-00000.parquet"]}), "release-content"),
    "audit edited after signing": (pack(release() | {"audit.json": audit_with(epsilon=1.0)}), "release-content"),
    "report edited after signing": (pack(release(report=b"refused") | {"audit.html": b"passed"}), "release-content"),
    "another campaign": (packed(campaign_id="autumn"), "release-manifest"),
    "another foundation": (packed(foundation="0" * 64), "release-manifest"),
    "fewer images than asked for": (packed(pictures=frames(1)[:-2], audit=audit_with(released=18)), "release-manifest"),
    "more epsilon than asked for": (packed(privacy=PRIVACY.model_copy(update={"epsilon": 4.1, "lifetime_epsilon": 4.1})), "release-statement"),
    "epsilon stated too low": (packed(privacy=PRIVACY.model_copy(update={"epsilon": 2.0}), audit=audit_with(epsilon=2.0)), "release-statement"),
    "audit left out of the statement": (
        packed(privacy=PRIVACY.model_copy(update={"events": (EVENTS[0], EVENTS[2])})),
        "release-statement",
    ),
    "audit with less noise than stated": (packed(audit=audit_with(noise_multiplier=1.0)), "release-statement"),
    "audit of a larger promise": (packed(audit=audit_with(epsilon=8.0)), "release-manifest"),
    "audit of fewer images": (packed(audit=audit_with(released=5)), "release-manifest"),
    "audit unreadable": (packed(audit=b"{}"), "release-manifest"),
    "attack above the ceiling": (packed(audit=beaten(auc=0.95, low=0.9, high=1.0)), "gate-refused"),
    "ceiling raised": (packed(audit=beaten(auc=0.95, low=0.9, high=1.0, ceiling=0.99)), "gate-refused"),
    "near copies": (packed(audit=audit_with(near_copies_within=False)), "gate-refused"),
    "refused at home": (packed(verdict=GateVerdict(verdict="refuse", reasons=("A reason.",))), "gate-refused"),
    "images repeat": (packed(pictures=frames(1)[:19] + frames(1)[:1]), "release-reaudit"),
    "empty images": (packed(pictures=frames(1)[:18] + constant(2)), "release-reaudit"),
}


@pytest.mark.parametrize(("sent", "codes"), WRONG.values(), ids=WRONG)
def test_unsound_release_is_rejected_by_name(store: HubStore, tmp_path: Path, sent: bytes, codes: str) -> None:
    """Every fault ends in a rejected row with its stable code and a sentence, and no file is kept."""
    row = admit(store, tmp_path, TRUSTED, CAMPAIGN, sent)
    assert (row.state, row.folder) == ("rejected", "")
    assert row.code in codes.split("|")
    assert row.message
    assert not list(tmp_path.glob("releases/*"))
    assert [other.release_id for other in store.releases()] == [row.release_id]


def test_rejected_release_does_not_block_the_sound_one(store: HubStore, tmp_path: Path) -> None:
    """What is rejected takes no name: the sound release of the same id is admitted afterwards."""
    admit(store, tmp_path, TRUSTED, CAMPAIGN, packed(audit=audit_with(near_copies_within=False)))
    assert admit(store, tmp_path, TRUSTED, CAMPAIGN, GOOD).state == "admitted"


def test_images_of_another_release_are_noticed(store: HubStore, tmp_path: Path) -> None:
    """A site that sends images which were admitted before, from whomever, is rejected; also when their digests were lost."""
    admit(store, tmp_path, TRUSTED, CAMPAIGN, GOOD)
    keys = (OTHER_NODE, OTHER_OFFICER)
    stolen = frames(1)[:1] + frames(7)[:19]
    row = admit(store, tmp_path, RIO, CAMPAIGN, packed(site="rio", release_id="rio-1", keys=keys, pictures=stolen))
    assert (row.state, row.code) == ("rejected", "release-reaudit")
    for file in (tmp_path / "digests").iterdir():
        file.unlink()
    row = admit(store, tmp_path, RIO, CAMPAIGN, packed(site="rio", release_id="rio-2", keys=keys, pictures=stolen))
    assert (row.state, row.code) == ("rejected", "release-reaudit")
    assert admit(store, tmp_path, RIO, CAMPAIGN, packed(site="rio", release_id="rio-1", keys=keys, seed=7)).state == "admitted"


def test_release_id_is_taken_once(store: HubStore, tmp_path: Path) -> None:
    """Neither another site nor the same site can put other content under an admitted id, nor send a second release."""
    first = admit(store, tmp_path, TRUSTED, CAMPAIGN, GOOD)
    other_site = packed(site="rio", release_id="cairo-1", keys=(OTHER_NODE, OTHER_OFFICER), seed=7)
    for trusted, sent in ((RIO, other_site), (TRUSTED, packed(seed=7)), (TRUSTED, packed(seed=7, release_id="cairo-2"))):
        row = admit(store, tmp_path, trusted, CAMPAIGN, sent)
        assert (row.state, row.code) == ("rejected", "release-manifest")
    assert pack(folder_files(tmp_path / first.folder)) == GOOD


def test_hub_has_thresholds_of_its_own(store: HubStore, tmp_path: Path) -> None:
    """A hospital's floor below the hub's is not enough, though the hospital's own gate let it go."""
    row = admit(store, tmp_path, TRUSTED, CAMPAIGN, GOOD, policy=GatePolicy(smallest_holdout=50))
    assert (row.state, row.code) == ("rejected", "gate-refused")


def test_labels_must_be_those_asked_for(store: HubStore, tmp_path: Path) -> None:
    """The right number of images with other labels is rejected."""
    uneven = CAMPAIGN.model_copy(update={"images": {Pathology.BENIGN: 12, Pathology.MALIGNANT: 8}})
    row = admit(store, tmp_path, TRUSTED, uneven, GOOD)
    assert (row.state, row.code) == ("rejected", "release-manifest")
