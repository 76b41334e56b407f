"""Admission of releases: everything is checked again, without trusting the sender, and then kept.

``check`` is pure; ``admit`` reads and writes. A release that fails is kept as a row with the error's stable code, no files.
"""

import io
import shutil
import tempfile
from collections.abc import Mapping, Set
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from pydantic import ValidationError

from busgen_core.digests import sha256_bytes
from busgen_core.errors import BusgenError, GateRefusedError, ManifestError, ReauditError, StatementError
from busgen_core.labels import Pathology
from busgen_core.release import MANIFEST, Manifest, TrustedKeys, verify_release
from busgen_core.repository import SyntheticImage, read_parquet
from busgen_core.transfer import unpack
from busgen_core.wire import Campaign
from busgen_privacy.audit import TravellingAudit
from busgen_privacy.gate import decide
from busgen_privacy.policy import GatePolicy
from busgen_privacy.statement import check_statement
from busgen_server.database import ReleaseRow
from busgen_server.store import HubStore

DUPLICATE_SHARE = 0.01  # of a release's images that may repeat one another or images admitted before
EMPTY_SHARE = 0.01  # of a release's images that may be all but constant
EMPTY_DEVIATION = 2.0  # gray levels of 255; below it a frame shows nothing
MESSAGE_LENGTH = 500
HUB_GATE = GatePolicy()

Digests = frozenset[bytes]  # SHA-256 of decoded pixels


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
        others = [row for row in store.releases(state="admitted") if row.release_id != manifest.release_id]
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


def check(files: Mapping[str, bytes], trusted: TrustedKeys, campaign: Campaign, *, policy: GatePolicy = HUB_GATE) -> tuple[Manifest, Digests]:
    """Return manifest and pixel digests of a release that may be admitted to ``campaign``. Pure.

    Raises:
        VerificationError: one of its subclasses, for the first thing that is wrong.
        GateRefusedError: the gate refuses, there or here.
        TableError: a table cannot be read, though it is the one that was signed.
    """
    # 1  Signatures, names, bytes, counts.
    manifest = verify_release(files, trusted)

    # 2  It answers this campaign, and spent no more than the campaign asked for.
    _check_campaign(manifest, campaign)

    # 3  The privacy statement follows from its mechanisms.
    check_statement(manifest)

    # 4  The audit is about this release, and the gate says the same here as it did there.
    _check_audit(files["audit.json"], manifest, policy)

    # 5  What can be seen in the images alone.
    images = [image for name in sorted(manifest.files) if name.endswith(".parquet") for image in read_parquet(files[name])]
    return manifest, _check_images(images)


def load_images(data: Path, release: ReleaseRow) -> list[SyntheticImage]:
    """All images of an admitted release, in the order of its tables."""
    tables = sorted((data / release.folder / "data").glob("*.parquet"))
    return [image for table in tables for image in read_parquet(table.read_bytes())]


def pixels(images: list[SyntheticImage]) -> NDArray[np.uint8]:
    """uint8 [n, 64, 64], without torch; ``read_parquet`` has checked that they are plain 64 px PNGs."""
    return np.stack([np.asarray(PillowImage.open(io.BytesIO(image.png)).convert("L")) for image in images])


def _check_campaign(manifest: Manifest, campaign: Campaign) -> None:
    if manifest.campaign_id != campaign.campaign_id:
        raise ManifestError(f"the release is for campaign {manifest.campaign_id}, not {campaign.campaign_id}")
    if manifest.foundation != campaign.foundation:
        raise ManifestError("the release was adapted from another foundation than the campaign's")
    if manifest.privacy.epsilon > campaign.epsilon or manifest.privacy.delta > campaign.delta:
        raise StatementError(
            f"the release states epsilon {manifest.privacy.epsilon:.4g} at delta {manifest.privacy.delta:.2g}; "
            f"the campaign asked for at most {campaign.epsilon:g} at {campaign.delta:.2g}"
        )
    wanted = {label: campaign.images.get(label, 0) for label in Pathology}
    if wanted != {label: manifest.labels.get(label, 0) for label in Pathology}:
        raise ManifestError("the release does not hold as many images of each label as the campaign asked for")


def _check_audit(content: bytes, manifest: Manifest, policy: GatePolicy) -> None:
    try:
        audit = TravellingAudit.model_validate_json(content)
    except ValidationError as error:
        raise ManifestError(f"audit.json is not an audit of version 1 ({error.error_count()} faults)") from None
    stated = manifest.privacy
    if audit.released != manifest.images or audit.delta != stated.delta or audit.epsilon > stated.epsilon + 1e-3:
        raise ManifestError("audit.json was made for another number of images, delta, or a larger epsilon than this release's")
    for account in ("members", "holdout"):
        if not any((e.account, e.noise_multiplier, e.sample_rate) == (account, audit.noise_multiplier, 1) for e in stated.events):
            raise StatementError(f"the privacy statement leaves out the audit's own figures, of {account}")
    verdict = decide(audit, policy)
    if verdict.verdict != manifest.gate.verdict:
        raise GateRefusedError(f"the gate refuses this audit here: {'; '.join(verdict.reasons)}")


def _check_images(images: list[SyntheticImage]) -> Digests:
    frames = pixels(images)
    empty = int((frames.std(axis=(1, 2)) < EMPTY_DEVIATION).sum())
    if empty > EMPTY_SHARE * len(frames):
        raise ReauditError(f"{empty} of {len(frames)} images are all but constant: the generator failed")
    digests = frozenset(sha256(frame.tobytes()).digest() for frame in frames)
    if len(frames) - len(digests) > DUPLICATE_SHARE * len(frames):
        raise ReauditError(f"{len(frames) - len(digests)} of {len(frames)} images repeat another one of this release")
    return digests


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
    for row in store.releases(campaign_id=manifest.campaign_id, state="admitted"):
        if row.site == site and row.release_id != manifest.release_id:
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
        return _check_images(load_images(data, release))
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
