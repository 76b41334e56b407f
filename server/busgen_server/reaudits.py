"""The hub's own look at each admitted release: what was found is in the store. ``python -m busgen_server.reaudits`` makes the looks that are due.

Each look is a process of its own at low priority, so that one that fails, hangs or runs out of memory takes nothing else of the hub with it.
"""

import logging
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from busgen_core.errors import BusgenError, StateError, UnavailableError
from busgen_core.keys import PublicKey
from busgen_core.release import TrustedKeys
from busgen_core.repository import arrays
from busgen_core.transfer import folder_files
from busgen_privacy.claims import check_claims
from busgen_privacy.folders import read_people, read_scanners
from busgen_privacy.reaudit_findings import Reaudit
from busgen_server.catalogue import load_images
from busgen_server.database import ReauditRow, ReleaseRow, open_store
from busgen_server.settings import CONFIG_VARIABLE, HubSettings, load_settings
from busgen_server.store import HubStore

log = logging.getLogger("busgen.reaudits")
CHECK_SECONDS = 5.0
LONGEST_SECONDS = 3600.0
MOST_ATTEMPTS = 3  # since the last success; the command ``busgen-hub release reaudit`` always tries again
NICENESS = 10


def latest(store: HubStore, release_id: str) -> Reaudit | None:
    """What the hub found when it last looked at a release; None if it has not, or an older version of this software did."""
    row = store.reaudit(release_id)
    try:
        return None if row is None or row.found is None else Reaudit.model_validate(row.found)
    except ValidationError:
        return None


def due(store: HubStore) -> list[str]:
    """Admitted releases that nothing is known of and that were not tried too often, oldest first."""
    rows = sorted(store.releases(state="admitted"), key=lambda row: row.created)
    return [row.release_id for row in rows if latest(store, row.release_id) is None and _tried(store, row.release_id).attempts < MOST_ATTEMPTS]


def reaudit_release(store: HubStore, data: Path, release_id: str, *, public: str | None) -> Reaudit:
    """Look at a release again and keep what was found, or why it failed, in the store.

    Args:
        store: The hub's.
        data: Its data folder.
        release_id: Of an admitted release.
        public: Folder of public images, or None.

    Raises:
        StateError: no such release was admitted.
        InputError: images that cannot be compared.
    """
    admitted = {row.release_id: row for row in store.releases(state="admitted")}
    if release_id not in admitted:
        raise StateError(f"no admitted release is called {release_id[:80]!r}; 'busgen-hub catalogue list' shows all")
    try:
        found = _look(store, data, admitted.pop(release_id), list(admitted.values()), public=public)
    except BusgenError as error:
        store.fail_reaudit(release_id, code=error.code)
        raise
    store.keep_reaudit(release_id, found=found.model_dump(mode="json"))
    return found


def _look(store: HubStore, data: Path, row: ReleaseRow, others: list[ReleaseRow], *, public: str | None) -> Reaudit:
    site, campaign = store.site(row.site), store.campaign(row.campaign_id)
    trusted = TrustedKeys(site=site.name, node=PublicKey.from_hex(site.node_key), officer=PublicKey.from_hex(site.officer_key))
    images, labels = arrays(load_images(data, row))
    claims = check_claims(folder_files(data / row.folder), trusted, campaign)
    elsewhere, unread = _elsewhere(data, others)

    from busgen_privacy.reaudit import Public, reaudit  # torch: seconds

    known = None
    if public is not None:
        people = read_people(public, one_image_each=True)
        known = Public(images=people.images, labels=people.classes, patients=people.patients, scanners=read_scanners(public))
    seed = secrets.randbits(32)  # nobody who makes a release knows which of its images will be read
    found = reaudit(images, labels, asked=campaign.images, others=elsewhere, public=known, claims=claims, seed=seed)
    return found.model_copy(update={"not_run": (*found.not_run, *unread)})


def _elsewhere(data: Path, others: list[ReleaseRow]) -> tuple[dict[str, NDArray[np.uint8]], list[str]]:
    """Images of the other releases by id; and a sentence for each that cannot be read, which is no fault of this one."""
    images, unread = {}, []
    for other in others:
        try:
            images[other.release_id] = arrays(load_images(data, other))[0]
        except BusgenError as error:
            unread.append(f"Repeats of release {other.release_id}: its images cannot be read here ({error.code}).")
    return images, unread


def look_at_due(store: HubStore, config: Path) -> None:
    """Look at each release that is due, one after the other, each in a process of its own; what a look does wrong is only noted."""
    for release_id in due(store):
        store.start_reaudit(release_id)
        status = _in_own_process(release_id, config)
        if status != 0 and not _tried(store, release_id).code:  # it died before it could say why
            store.fail_reaudit(release_id, code=UnavailableError.code)
        if status != 0:
            log.warning("reaudit.failed release=%s status=%s", release_id, status)


def _in_own_process(release_id: str, config: Path) -> int | None:
    """Exit status of a look; None if it took too long."""
    threads = str(max(1, (os.cpu_count() or 2) // 2))  # the rest is the machine's
    env = {"OMP_NUM_THREADS": threads, **os.environ, CONFIG_VARIABLE: str(config)}
    try:
        return subprocess.run([sys.executable, "-m", "busgen_server.reaudits", release_id], env=env, timeout=LONGEST_SECONDS, check=False).returncode
    except subprocess.TimeoutExpired:
        return None


def _tried(store: HubStore, release_id: str) -> ReauditRow:
    return store.reaudit(release_id) or ReauditRow(release_id=release_id, code="", attempts=0)


def _look_once(settings: HubSettings, release_id: str) -> None:
    os.nice(NICENESS)
    try:
        reaudit_release(HubStore(open_store(settings.data)), settings.data, release_id, public=settings.public_images)
    except BusgenError as error:
        sys.exit(f"{error.code}: {error}")


def main() -> None:
    """With a release's id: look at it once. Without: look at what is due, for ever. The configuration's path is in the environment."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)
    config = Path(os.environ[CONFIG_VARIABLE])
    settings = load_settings(config)
    if len(sys.argv) > 1:
        _look_once(settings, sys.argv[1])
        return
    store = HubStore(open_store(settings.data))
    while True:
        look_at_due(store, config)
        time.sleep(CHECK_SECONDS)


if __name__ == "__main__":
    main()
