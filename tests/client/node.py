"""A node in a folder: settings, keys, simulated patients, and a campaign that its jobs answer. No patient is in it."""

import json
from collections.abc import Sequence
from pathlib import Path

import tomli_w

from busgen_client.admission import NewImage
from busgen_client.cohort import CohortStore, open_cohort
from busgen_client.cohort_rows import Role
from busgen_client.database import open_store
from busgen_client.jobs import JobStore
from busgen_client.keys import create_keys
from busgen_client.protocol import COHORT_FILE, NodeProtocol, foundation_part, job_folder
from busgen_client.settings import NodeSettings, load_settings
from busgen_core.digests import sha256_bytes
from busgen_core.files import write_whole
from busgen_core.foundation import foundation_digest
from busgen_core.labels import Pathology
from busgen_core.phantom import simulate
from busgen_core.transfer import folder_files, pack
from busgen_core.wire import FOUNDATION_FILES, Campaign, JobState, Offer
from busgen_privacy.dp.plan import AdaptationPlan
from tests.privacy.small import small_plan

PASSPHRASE = b"a passphrase for tests"


def lay_out(folder: Path, **adapt: int) -> NodeSettings:
    """Settings and keys of a node called ``north``; ``folder/node.toml`` is its configuration."""
    (folder / "ca.crt").write_text("")
    content = {
        "site": "north",
        "data": "data",
        "hub": {"address": "127.0.0.1:1", "ca_file": "ca.crt", "bundle_sha256": ["0" * 64]},
        "adapt": {"steps": 3, "draws": 1, "threads": 1} | adapt,
        "policy": {"lifetime_epsilon": 16.0, "campaign_epsilon": 8.0, "public_cohort": 40, "auto_accept": True},
    }
    (folder / "node.toml").write_text(tomli_w.dumps(content))
    settings = load_settings(folder / "node.toml")
    create_keys(settings.data, PASSPHRASE)
    return settings


def cohort(settings: NodeSettings) -> CohortStore:
    return open_cohort(settings)


def new_image(store: CohortStore, patient: str, number: int, *, role: Role | None) -> NewImage:
    """Image ``number`` of a patient; the same arguments give the same image and source."""
    frame = simulate(list(Pathology)[number % 3], seed=1000 * number + sum(patient.encode()))
    source = store.pseudonyms.key("test", patient, str(number))
    key = store.pseudonyms.patient_key(patient)
    return NewImage(gray=frame.image, patient_key=key, pathology=frame.pathology, box=frame.box, device="", source_key=source, role=role)


def take_in(store: CohortStore, patients: Sequence[str], *, role: Role, images: int = 2) -> None:
    for patient in patients:
        for number in range(images):
            store.add(new_image(store, patient, number, role=role))


def campaign(name: str = "c1", foundation: Path | None = None, **changes: object) -> Campaign:
    """A campaign; without a foundation its jobs can be moved about, and not be worked at."""
    packed = pack(folder_files(foundation, FOUNDATION_FILES)) if foundation else b"x"
    values: dict[str, object] = {
        "campaign_id": name,
        "images": {Pathology.NORMAL: 4, Pathology.BENIGN: 8, Pathology.MALIGNANT: 8},
        "epsilon": 8.0,
        "delta": 1e-5,
        "foundation": foundation_digest(foundation) if foundation else "0" * 64,
        "foundation_bytes": len(packed),
        "foundation_package": sha256_bytes(packed),
        "deadline": "2035-01-01",
    }
    return Campaign.model_validate(values | changes)


def accepted(settings: NodeSettings, foundation: Path, name: str = "c1") -> JobStore:
    """A job that waits for the worker, its foundation at hand."""
    protocol = NodeProtocol(settings)
    protocol.respond(Offer(campaign=campaign(name, foundation)).model_dump_json(), b"")
    write_whole(foundation_part(settings.data, name), pack(folder_files(foundation, FOUNDATION_FILES)))
    return protocol.jobs


def quick_plan(settings: NodeSettings, *, steps: int, rate: float, noise: float, name: str = "c1") -> None:
    """Put a plan of DP-SGD alone into a job's folder, so that none is searched for."""
    common = {"public_cohort": settings.policy.public_cohort, "epsilon": 8.0, "delta": 1e-5}
    dpsgd = small_plan(**common, steps=steps, patient_rate=rate, noise_multiplier=noise, draws=1, subset="class-embedding")
    plan = AdaptationPlan(public_cohort=settings.policy.public_cohort, epsilon=8.0, delta=1e-5, audit_noise=4.0, dpsgd=dpsgd)
    write_whole(job_folder(settings.data, name) / "plan.json", json.dumps(plan.to_dict()).encode())


WAY = (JobState.ACCEPTED, JobState.ADAPTING, JobState.GENERATING, JobState.AUDITING, JobState.REVIEW)


def job_in(settings: NodeSettings, name: str, state: JobState, *, frozen: bool = True) -> JobStore:
    """A job brought to a state by hand, bound to the cohort of this moment."""
    jobs, store = JobStore(open_store(settings.data)), cohort(settings)
    jobs.offer(campaign(name))
    if frozen:
        ids = {role: store.ids(role) for role in ("member", "holdout")}
        write_whole(job_folder(settings.data, name) / COHORT_FILE, str(ids).replace("'", '"').encode())
    for step in WAY[: WAY.index(state) + 1] if state in WAY else WAY:
        jobs.move(name, step)
    if state is JobState.RELEASED:
        jobs.set_release(name, release_id=f"north-{name}", release_bytes=1, release_sha256="0" * 64)
    return jobs
