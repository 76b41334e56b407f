"""What every release must satisfy, without trusting its sender. The hub asks it before admission, the node before sending.

Pure: files, keys and the campaign in; manifest and pixel digests out.
"""

import io
from collections.abc import Mapping
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from pydantic import ValidationError

from busgen_core.errors import GateRefusedError, ManifestError, ReauditError, StatementError
from busgen_core.labels import Pathology
from busgen_core.release import Manifest, TrustedKeys, verify_release
from busgen_core.repository import SyntheticImage, read_parquet
from busgen_core.wire import Campaign
from busgen_privacy.audit import TravellingAudit
from busgen_privacy.gate import decide
from busgen_privacy.policy import CONSORTIUM_GATE, GatePolicy
from busgen_privacy.statement import check_statement

DUPLICATE_SHARE = 0.01  # of a release's images that may repeat one another or images admitted before
EMPTY_SHARE = 0.01  # of a release's images that may be all but constant
EMPTY_DEVIATION = 2.0  # gray levels of 255; below it a frame shows nothing
HUB_GATE = CONSORTIUM_GATE

Digests = frozenset[bytes]  # SHA-256 of decoded pixels


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
    check_campaign(manifest, campaign)

    # 3  The privacy statement follows from its mechanisms.
    check_statement(manifest)

    # 4  The audit is about this release, and the gate says the same here as it did there.
    check_audit(files["audit.json"], manifest, policy)

    # 5  What can be seen in the images alone.
    images = [image for name in sorted(manifest.files) if name.endswith(".parquet") for image in read_parquet(files[name])]
    return manifest, image_digests(images)


def pixels(images: list[SyntheticImage]) -> NDArray[np.uint8]:
    """uint8 [n, 64, 64], without torch; ``read_parquet`` has checked that they are plain 64 px PNGs."""
    return np.stack([np.asarray(PillowImage.open(io.BytesIO(image.png)).convert("L")) for image in images])


def check_campaign(manifest: Manifest, campaign: Campaign) -> None:
    """Return only if the release answers this campaign and states no more epsilon and delta than it asked for.

    Raises:
        ManifestError: another campaign, foundation, or number of images of a label.
        StatementError: more epsilon or delta.
    """
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


def check_audit(content: bytes, manifest: Manifest, policy: GatePolicy) -> None:
    """Return only if ``audit.json`` is about this release, its own noise is accounted for, and the gate's verdict is the same here.

    Raises:
        ManifestError: not an audit, or another release's.
        StatementError: the statement leaves the audit's figures out.
        GateRefusedError: the gate refuses it here.
    """
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


def image_digests(images: list[SyntheticImage]) -> Digests:
    """Digests of the decoded pixels of a release's images.

    Raises:
        ReauditError: too many images are all but constant, or repeat another one.
    """
    frames = pixels(images)
    empty = int((frames.std(axis=(1, 2)) < EMPTY_DEVIATION).sum())
    if empty > EMPTY_SHARE * len(frames):
        raise ReauditError(f"{empty} of {len(frames)} images are all but constant: the generator failed")
    digests = frozenset(sha256(frame.tobytes()).digest() for frame in frames)
    if len(frames) - len(digests) > DUPLICATE_SHARE * len(frames):
        raise ReauditError(f"{len(frames) - len(digests)} of {len(frames)} images repeat another one of this release")
    return digests
