"""Admission of releases: everything is checked again, without trusting the sender, and then kept.

``busgen_privacy.admission.check`` is pure; ``admit`` reads and writes. A release that fails is kept as a row with the error's stable code, no files.
"""

import shutil
import tempfile
from collections.abc import Mapping, Set
from pathlib import Path

from busgen_core.digests import sha256_bytes
from busgen_core.errors import BusgenError, ManifestError, ReauditError
from busgen_core.release import MANIFEST, Manifest, TrustedKeys
from busgen_core.repository import SyntheticImage, read_parquet
from busgen_core.transfer import unpack
from busgen_core.wire import Campaign
from busgen_privacy.admission import DUPLICATE_SHARE, HUB_GATE, Digests, check, image_digests
from busgen_privacy.policy import GatePolicy
from busgen_server.database import ReleaseRow
from busgen_server.store import HubStore

MESSAGE_LENGTH = 500


def rejected_id(package_sha256: str) -> str:
    """Id of the row of a rejected package; the id that it claims is unproven."""
    return f"rejected-{package_sha256[:24]}"


def admit(store: HubStore, data: Path, trusted: TrustedKeys, campaign: Campaign, packed: bytes, *, policy: GatePolicy = HUB_GATE) -> ReleaseRow:
    """Check a packed release and keep it, or keep why it was rejected. The same bytes twice are one row.

    Args:
        data: The hub's data folder; files go to ``releases/<release_id>``.
        trusted: The keys of the site whose node sent these bytes.
        campaign: The campaign that the site was asked for.
        packed: ``busgen_core.transfer.pack`` of the release folder.
        policy: The hub's own thresholds of the gate.

    Returns:
        The row, ``admitted`` or ``rejected``. A rejected one is named after its bytes: what it claims to be is unproven.
    """
    try:
        files = unpack(packed)
        manifest, digests = check(files, trusted, campaign, policy=policy)
        held = _admitted_before(store, manifest, trusted.site)
        if held is not None and (stored := data / held.folder / MANIFEST).is_file():
            if stored.read_bytes() != files[MANIFEST]:
                raise ManifestError(f"release id {manifest.release_id} is taken by another release of {trusted.site}")
            return held
        others = [row for row in store.releases() if row.state != "rejected" and row.release_id != manifest.release_id]
        _check_against_others(digests, [_digests(data, row) for row in others], images=manifest.images)
    except BusgenError as error:
        return store.add_release(
            ReleaseRow(
                release_id=rejected_id(sha256_bytes(packed)),
                campaign_id=campaign.campaign_id,
                site=trusted.site,
                state="rejected",
                code=error.code,
                message=str(error)[:MESSAGE_LENGTH],
            )
        )
    folder = Path("releases") / manifest.release_id
    _write_folder(data / folder, files)
    _digest_file(data, manifest.release_id).write_bytes(b"".join(sorted(digests)))
    return store.add_release(
        ReleaseRow(
            release_id=manifest.release_id,
            campaign_id=manifest.campaign_id,
            site=manifest.site,
            state="admitted",
            epsilon=manifest.privacy.epsilon,
            delta=manifest.privacy.delta,
            gate=manifest.gate.verdict,
            images=manifest.images,
            folder=folder.as_posix(),
        )
    )


def load_images(data: Path, release: ReleaseRow) -> list[SyntheticImage]:
    """All images of an admitted release, in the order of its tables."""
    tables = sorted((data / release.folder / "data").glob("*.parquet"))
    return [image for table in tables for image in read_parquet(table.read_bytes())]


def _check_against_others(digests: Digests, others: list[Set[bytes]], *, images: int) -> None:
    copies = len(digests & frozenset().union(*others))
    if copies > DUPLICATE_SHARE * images:
        raise ReauditError(f"{copies} of {images} images are in releases that were admitted before")


def _admitted_before(store: HubStore, manifest: Manifest, site: str) -> ReleaseRow | None:
    """The row of this very release, if it was admitted already.

    Raises:
        ManifestError: its id is taken, or the site has another release in this campaign: that would spend twice.
    """
    held = store.release(manifest.release_id)
    if held is not None and held.site != site:
        raise ManifestError(f"release id {manifest.release_id} is taken by another site")
    for row in store.releases(campaign_id=manifest.campaign_id):
        if row.state != "rejected" and row.site == site and row.release_id != manifest.release_id:
            raise ManifestError(f"{site} already has release {row.release_id} in campaign {manifest.campaign_id}")
    return held


def _digest_file(data: Path, release_id: str) -> Path:
    folder = data / "digests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{release_id}.sha256"


def _digests(data: Path, release: ReleaseRow) -> Digests:
    """Pixel digests of an admitted release; computed again if their file is lost."""
    file = _digest_file(data, release.release_id)
    if not file.exists():
        return image_digests(load_images(data, release))
    content = file.read_bytes()
    return frozenset(content[start : start + 32] for start in range(0, len(content), 32))


def _write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """All files at once, or none: a folder that is there is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".incoming-") as name:
        fresh = Path(name) / "release"
        for path, content in files.items():
            (fresh / path).parent.mkdir(parents=True, exist_ok=True)
            (fresh / path).write_bytes(content)
        if target.exists():  # of a crash between folder and row
            shutil.rmtree(target)
        fresh.replace(target)
