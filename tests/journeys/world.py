"""A small consortium for journeys: a tiny foundation, few steps, few images; everything else is real."""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from unittest.mock import patch

from sqlalchemy.exc import OperationalError

from busgen_client.cohort import open_cohort
from busgen_client.database import open_store as open_node
from busgen_client.intake import masking
from busgen_client.intake.dicom import intake_dicom
from busgen_client.intake.phantom_dicom import write_phantom_study
from busgen_client.jobs import JobRow, JobStore
from busgen_client.settings import load_settings
from busgen_core.corpus import pack_phantoms
from busgen_core.generator import Shape
from busgen_core.pretrain import pretrain
from busgen_core.training import TrainingPlan
from busgen_privacy.ocr import Frame, Piece, View, find_text
from busgen_server.database import open_store as open_hub
from busgen_server.store import HubStore
from deploy.local.consortium import Consortium, Site, run, wait_for

CAMPAIGN = "journey-1"
SHAPE = Shape(channels=(16, 32), groups=8, heads=16)


def tiny_foundation(folder: Path) -> Path:
    """A foundation of the shipped frame size that trains in seconds."""
    shards = folder.with_name("phantoms")
    pack_phantoms(shards, count=60, size=SHAPE.image_px, seed=1)
    pretrain(TrainingPlan(seed=1, steps=30, shares=(1.0,), batch=8, warmup=5, shape=SHAPE), [shards], folder, name="tiny")
    return folder


def site(name: str, *, steps: int = 4, **policy: object) -> Site:
    """A site whose adaptation takes seconds; ``policy`` changes its limits."""
    adapt = {"mechanisms": ["vote", "mean", "dp-sgd"], "steps": steps, "draws": 1, "threads": 1}
    settings = {"adapt": adapt, "policy": {"smallest_cohort": 30, "score_noise": 1.0, **policy}}
    return Site(name=name, public_cohort=60, settings=settings)


def take_in_phantoms(consortium: Consortium, name: str, *, seed: int, patients: int, read: int) -> Path:
    """Write a phantom study as DICOM files and take it in, looking for text ``read`` times, which is once or a few times a scan; its folder."""
    pacs = consortium.folder / f"{name}-pacs"
    write_phantom_study(pacs, site=name, patients=patients, seed=seed)
    looks = count(1)

    def find_some(images: Sequence[Frame], *, views: Sequence[View] | None = None) -> list[list[Piece]]:
        return find_text(images, views=views) if next(looks) <= read else [[] for _ in images]

    with patch.object(masking, "find_text", find_some):
        result = intake_dicom(open_cohort(load_settings(consortium.node_config(name))), pacs, pacs / "labels.csv", progress=False)
    assert next(looks) > patients  # each scan was to be looked at
    assert result.added >= patients
    assert set(result.codes) <= {"text-over-scan"}  # speckle that looks like a letter waits for a person, now and then
    assert result.quarantined <= max(2, patients // 20)
    return pacs


def job(consortium: Consortium, name: str) -> JobRow | None:
    """A node's job of the campaign, as the node has it."""
    try:
        return _jobs(consortium.node_config(name).parent / "data").get(CAMPAIGN)
    except OperationalError:
        return None


def hub(consortium: Consortium) -> HubStore:
    """The hub's store."""
    return _hub(consortium.hub_config.parent / "data")


@cache
def _jobs(data: Path) -> JobStore:  # opened once: they are asked many times a second
    return JobStore(open_node(data))


@cache
def _hub(data: Path) -> HubStore:
    return HubStore(open_hub(data))


def wait_for_state(consortium: Consortium, name: str, states: set[str], *, seconds: float) -> None:
    """Wait until a node's job is in one of these states."""

    def there() -> bool:
        row = job(consortium, name)
        return row is not None and row.state in states

    wait_for(there, seconds=seconds, what=f"{name} to be {states}", every=0.1)


def approve(consortium: Consortium, name: str) -> None:
    """The officer signs, through the command."""
    wait_for_state(consortium, name, {"review"}, seconds=400)
    run(
        *("busgen-node", "review", "approve", CAMPAIGN, "--passphrase-file", consortium.passphrase_file),
        *("--config", consortium.node_config(name)),
    )


def create_campaign(consortium: Consortium, *, images: int = 24, epsilon: float = 8.0) -> None:
    """The coordinator publishes the campaign, through the command."""
    run(
        *("busgen-hub", "campaign", "create", CAMPAIGN, "--images", images, "--normal", 8, "--epsilon", epsilon),
        *("--config", consortium.hub_config),
    )


def until(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Wait, patiently and often."""
    wait_for(condition, seconds=seconds, what=what, every=0.2)
