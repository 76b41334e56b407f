"""A hospital that answers a campaign: releases that a hub admits, and spoilt ones; and a hub's commands. Frames are noise."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from busgen_core.images import encode_png
from busgen_core.keys import SigningKey
from busgen_core.labels import Pathology
from busgen_core.release import GateVerdict, PrivacyStatement, TrustedKeys, build_manifest
from busgen_core.repository import SyntheticImage
from busgen_core.transfer import pack
from busgen_core.wire import Campaign
from busgen_privacy.audit import TravellingAttack, TravellingAudit
from busgen_privacy.statistics import ceiling_auc
from busgen_server.cli import main as hub_command
from busgen_server.store import HubStore
from tests.releases import NODE, OFFICER, PLAN, PRIVACY, TRUSTED, documents, signed

EACH = 10  # images of a label
CAMPAIGN = Campaign(
    campaign_id="spring",
    images={Pathology.BENIGN: EACH, Pathology.MALIGNANT: EACH},
    epsilon=4,
    delta=1e-5,
    foundation="f" * 64,
    foundation_bytes=10,
    foundation_package="e" * 64,
    deadline="2030-01-01",
)
AUDIT = TravellingAudit(
    epsilon=PRIVACY.epsilon,
    delta=PRIVACY.delta,
    attacks=(TravellingAttack(name="strongest", kind="white-box", auc=0.55, low=0.12, high=0.98, ceiling=ceiling_auc(3.5, 1e-5), what="Largest."),),
    noise_multiplier=4.0,
    noise_std=0.2,
    public_cohort=100,
    smallest_cohort=30,
    smallest_holdout=20,
    near_copies_within=True,
    released=2 * EACH,
)


def frames(seed: int, count: int = 2 * EACH) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 64, 64), np.uint8))


def release(
    *,
    seed: int = 1,
    pictures: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] | None = None,
    release_id: str = "cairo-1",
    site: str = "cairo",
    campaign_id: str = "spring",
    foundation: str = "f" * 64,
    privacy: PrivacyStatement = PRIVACY,
    audit: bytes | None = None,
    verdict: GateVerdict | None = None,
    report: bytes = b"<!doctype html><title>audit</title>",
    keys: Sequence[SigningKey] = (NODE, OFFICER),
) -> dict[str, bytes]:
    """Files of a release that is right in every way but those that the arguments change."""
    images = [
        SyntheticImage(
            sample_id=f"{site}-{number:06d}",
            png=encode_png(frame),
            pathology=(Pathology.BENIGN, Pathology.MALIGNANT)[number % 2],
            box=(0.2, 0.2, 0.6, 0.6),
        )
        for number, frame in enumerate(frames(seed) if pictures is None else pictures)
    ]
    files = documents(images) | {"audit.json": AUDIT.model_dump_json().encode() if audit is None else audit, "audit.html": report}
    manifest = build_manifest(
        files,
        release_id=release_id,
        campaign_id=campaign_id,
        site=site,
        created="2026-02-28",
        software="busgen 0.1.0",
        foundation=foundation,
        plan=PLAN,
        privacy=privacy,
        ledger_head="a" * 64,
        gate=verdict or GateVerdict(verdict="release", reasons=("Nothing was found.",)),
    )
    return signed(files, manifest, keys=keys)


def packed(**changes: object) -> bytes:
    return pack(release(**changes))  # type: ignore[arg-type]


def enrol(store: HubStore, trusted: TrustedKeys = TRUSTED) -> None:
    """Make site and campaign known to a store."""
    store.add_site(trusted.site, node_key=trusted.node.hex, officer_key=trusted.officer.hex, flower_key=f"ssh-{trusted.site}")
    store.add_campaign(CAMPAIGN)


def run(folder: Path, *arguments: str) -> str | int | None:
    """Run a command of the hub in this process; what sys.exit was given (text means status 1)."""
    (folder / "hub.toml").write_text('data = "data"\n')
    sys.argv = ["busgen-hub", *arguments, "--config", str(folder / "hub.toml")]
    with pytest.raises(SystemExit) as ended:
        hub_command()
    return ended.value.code
