"""What the engineer at 3 a.m. wants to know: each check says what it looked at and what to do."""

import shutil
import socket
import ssl
from pathlib import Path

from busgen_client.cohort import CohortStore, open_cohort
from busgen_client.database import is_open_to_others, open_store
from busgen_client.jobs import JobStore
from busgen_client.keys import flower_key_file
from busgen_client.settings import NodeSettings
from busgen_core.errors import BusgenError
from busgen_privacy.folders import read_people
from busgen_privacy.ledger import Ledger


def examine(settings: NodeSettings, *, hub: bool = True) -> list[dict[str, object]]:
    """All checks, in order; none raises. Without ``hub``, those that need no network."""
    rows: list[dict[str, object]] = []

    def note(check: str, ok: bool, say: str) -> None:
        rows.append({"check": check, "ok": ok, "say": say})

    keys = all((settings.data / "keys" / name).exists() for name in ("node.pem", "officer.pem")) and flower_key_file(settings.data).exists()
    note("keys", keys, "all three are there" if keys else "run 'busgen-node join'")
    free_mb = shutil.disk_usage(settings.data.parent).free // 2**20
    note("disk", free_mb > 500, f"{free_mb} MB free")
    engine = open_store(settings.data)
    is_open = is_open_to_others(settings.data)
    note("folder", not is_open, "other users can enter the data folder; set its mode to 0700" if is_open else "closed to other users")
    cohort = open_cohort(settings, engine)
    note("storage", *_sealed(cohort))
    members, holdout = cohort.count_patients("member"), cohort.count_patients("holdout")
    enough = members >= settings.policy.smallest_cohort and holdout >= settings.policy.gate.smallest_holdout
    note("cohort", enough, "enough patients" if enough else "too few patients for the policy; take images in with 'busgen-node intake'")
    if settings.audit.public is not None:
        note("public images", *_public(settings.audit.public))
    age = JobStore(engine).worker_age_seconds()
    note("worker", age < 60, "alive" if age < 60 else "silent; is 'busgen-node start' running?")
    try:
        ledger = Ledger(settings.data / "ledger.jsonl", site=settings.site)
        ledger.verify()
        spent = ledger.spent("members", settings.policy.lifetime_delta)
        note("ledger", True, f"whole; members have spent epsilon {spent:.3f} of {settings.policy.lifetime_epsilon:g}")
    except BusgenError as error:
        note("ledger", False, f"{error.code}: {error}")
    if hub:
        note("hub", *_reach(settings))
    return rows


def _sealed(cohort: CohortStore) -> tuple[bool, str]:
    try:
        cohort.vault.check()
    except BusgenError as error:
        return False, f"{error.code}: {error}"
    return True, "the key opens the stored images" if cohort.vault.seals else "images are not sealed; keep the data folder on an encrypted disk"


def _public(folder: Path) -> tuple[bool, str]:
    try:
        people = read_people(str(folder), one_image_each=True)
    except BusgenError as error:
        return False, f"{error.code}: {error}"
    return True, f"{len(people)} of {len(people.patient_rows())} patients, for the audit"


def _reach(settings: NodeSettings) -> tuple[bool, str]:
    host, _, port = settings.hub.address.rpartition(":")
    try:
        context = ssl.create_default_context(cafile=str(settings.hub.ca_file))
        with socket.create_connection((host, int(port)), timeout=5) as plain, context.wrap_socket(plain, server_hostname=host) as secure:
            return True, f"reached over {secure.version()}"
    except (OSError, ValueError) as error:
        return False, f"cannot be reached ({type(error).__name__}); check hub.address, the network and hub.ca_file"
