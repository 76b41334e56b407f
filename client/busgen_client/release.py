"""From an audited job to a signed release: written once unsigned, shown to the officer, then signed and packed."""

import datetime
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from busgen_client import __version__
from busgen_client.audited import TABLE, check_audited, keep_reviewed
from busgen_client.jobs import AGAIN, JobStore, check_consent
from busgen_client.keys import node_key, officer_key, public_keys
from busgen_client.papers import Paper, write_paper
from busgen_client.protocol import job_folder, release_file
from busgen_client.settings import NodeSettings
from busgen_client.storage import Vault
from busgen_core.digests import canonical_json, sha256_bytes
from busgen_core.dsse import add_signature, sign
from busgen_core.errors import ContentMismatchError, StateError
from busgen_core.files import write_whole
from busgen_core.images import encode_png
from busgen_core.labels import Pathology
from busgen_core.release import (
    ATTESTATION,
    MANIFEST,
    PAYLOAD_TYPE,
    Event,
    GateVerdict,
    Manifest,
    PrivacyStatement,
    build_manifest,
    statement_payload,
)
from busgen_core.repository import SyntheticImage, croissant, dataset_card, write_parquet
from busgen_core.transfer import folder_files, pack
from busgen_core.wire import Campaign, JobState
from busgen_privacy.admission import check
from busgen_privacy.audit import TravellingAudit
from busgen_privacy.cohort import Cohort
from busgen_privacy.dp.accounting import GaussianEvent, epsilon_of
from busgen_privacy.dp.plan import AdaptationPlan
from busgen_privacy.findings import Findings
from busgen_privacy.findings_report import render_findings
from busgen_privacy.gate import decide
from busgen_privacy.ledger import Ledger
from busgen_privacy.report import render

Frames = NDArray[np.uint8]

HEURISTICS = (
    "The gate's verdict is one bit that the exact audit decides; it is outside epsilon.",
    "Near-copy search compares released images with real ones inside the hospital; only its pass is implied here.",
    "Lesion boxes for sampling come from the public fit of the foundation.",
)


def spent_before(ledger: Ledger, reference: str) -> list[GaussianEvent]:
    """What all other jobs are charged for in the members' account."""
    return [GaussianEvent(*event.numbers) for event in ledger.charged("members", without=reference)]


def statement_for(plan: AdaptationPlan, campaign: Campaign, earlier: Sequence[GaussianEvent]) -> PrivacyStatement:
    """The promise to every patient of this release, computed from its events and from what was spent before."""
    audit = plan.audit_event()
    adaptation = list(plan.events())
    spent = epsilon_of([*adaptation, audit], delta=campaign.delta).epsilon
    before = epsilon_of(earlier, delta=campaign.delta).epsilon
    lifetime = epsilon_of([*earlier, *adaptation, audit], delta=campaign.delta).epsilon
    events = [
        *(
            Event(mechanism=name, account="members", noise_multiplier=e.noise_multiplier, sample_rate=e.sample_rate, count=e.count)
            for name, e in plan.mechanisms()
        ),
        Event(mechanism="audit figures", account="members", noise_multiplier=audit.noise_multiplier, sample_rate=1.0, count=1),
        Event(mechanism="audit figures", account="holdout", noise_multiplier=audit.noise_multiplier, sample_rate=1.0, count=1),
    ]
    words = (
        f"Whether or not any one patient's images were used, the chance of any outcome of this release changes by at most a factor of "
        f"exp({spent:.3f}), except with probability {campaign.delta:g}. This holds for every patient of the hospital with all their images, "
        f"against anyone who sees the release, whatever else they know. With all earlier releases the epsilon is {lifetime:.3f}."
    )
    return PrivacyStatement(
        epsilon=spent,
        delta=campaign.delta,
        events=tuple(events),
        earlier_epsilon=before,
        lifetime_epsilon=lifetime,
        heuristics=HEURISTICS,
        words=words,
    )


def build_unsigned(
    folder: Path,
    *,
    settings: NodeSettings,
    campaign: Campaign,
    plan: AdaptationPlan,
    images: Sequence[SyntheticImage],
    more: Frames,
    audit: Findings,
    travels: TravellingAudit,
    ledger: Ledger,
    members: Cohort,
    vault: Vault,
) -> GateVerdict:
    """Write ``folder/release`` (all but the attestation), the hospital's own report and the digest for the officer's signature, both sealed.

    Replaces an earlier try whole. The exact audit decides; what travels repeats the verdict on the noised figures, with reasons made of them alone.
    ``more`` are the images of the pool that the audit looked at beside the released ones.

    Returns:
        The verdict: *release* only if both the exact and the travelling audit pass.

    Raises:
        ContentMismatchError: the audit is of other images.
    """
    table = write_parquet(images)
    if audit.table_sha256 != sha256_bytes(table):
        raise ContentMismatchError(f"campaign {campaign.campaign_id}: the audit is of other images; nothing was laid out for review")
    earlier = spent_before(ledger, campaign.campaign_id)
    privacy = statement_for(plan, campaign, earlier)
    created = datetime.datetime.now(datetime.UTC).date().isoformat()
    release_id = f"{settings.site}-{campaign.campaign_id}"[:63]
    facts = {
        "Hospital": settings.site,
        "Campaign": campaign.campaign_id,
        "Release": release_id,
        "Foundation": campaign.foundation[:16],
        "Date": created,
        "Software": f"busgen-client {__version__}",
        "Synthetic images": str(len(images)),
        "Learnt from members": " ".join(plan.words()),
    }
    verdict, public_verdict = decide(audit, settings.policy.gate), decide(travels, settings.policy.gate)
    pairs = [(encode_png(members.images[p.member]), _generated(images, more, p.released)) for p in audit.registered_copies.closest[:8]]
    looked = {"Searched for copies": f"{len(images) + len(more)} images: the released ones and {len(more)} more of the pool"}
    local = render_findings(audit, verdict=verdict, statement=privacy, facts=facts | looked, pairs=pairs)
    write_paper(vault, settings.data, campaign.campaign_id, Paper.REPORT, local.encode())
    labels = {p: sum(image.pathology is p for image in images) for p in Pathology}
    site, name = settings.site, campaign.campaign_id
    files = {
        TABLE: table,
        "README.md": dataset_card(
            release_id=release_id,
            site=site,
            campaign_id=name,
            foundation=campaign.foundation,
            labels=labels,
            adaptation=plan.words(),
            privacy=privacy,
        ).encode(),
        "croissant.json": croissant(release_id=release_id, site=site, created=created, labels=labels, privacy=privacy, tables={TABLE: table}),
        "audit.json": canonical_json(travels.model_dump(mode="json")),
        "audit.html": render(travels, verdict=public_verdict, statement=privacy, facts=facts).encode(),
    }
    manifest = build_manifest(
        files,
        release_id=release_id,
        campaign_id=name,
        site=site,
        created=created,
        software=f"busgen-client {__version__}",
        foundation=campaign.foundation,
        plan=plan.to_dict(),
        privacy=privacy,
        ledger_head=ledger.head,
        gate=public_verdict,
    )
    fresh, target = folder / "release.new", folder / "release"
    for stale in (fresh, target):
        shutil.rmtree(stale, ignore_errors=True)
    for path, data in {**files, MANIFEST: manifest.to_bytes()}.items():
        write_whole(fresh / path, data)
    fresh.replace(target)
    keep_reviewed(vault, settings.data, campaign.campaign_id, manifest.to_bytes())
    return verdict if verdict.verdict == "refuse" else public_verdict


def _generated(images: Sequence[SyntheticImage], more: Frames, row: int) -> bytes:
    """PNG of an image that was searched for copies: the released ones come first."""
    return images[row].png if row < len(images) else encode_png(more[row - len(images)])


def approve(settings: NodeSettings, jobs: JobStore, campaign_id: str, passphrase: bytes) -> Manifest:
    """Sign a reviewed release with the node's and the officer's key, pack it, and move the job to released.

    Raises:
        StateError: the job is not in review, or was audited by a version that kept no digests.
        ConsentWithdrawnError: a patient of its cohort withdrew consent.
        ContentMismatchError, SealError: what lies there is not what was audited and laid out for review.
        StorageKeyError: the site's key is missing or another.
        SignatureError: the passphrase does not open the officer's key, or the release on disk is not whole.
        StatementError: the privacy statement does not follow from its events.
    """
    row = jobs.need(campaign_id)
    check_consent(row)
    if row.state != JobState.REVIEW:
        raise StateError(f"job of campaign {campaign_id} is {row.state}, not in review; nothing was signed")
    officer = officer_key(settings.data, passphrase)
    folder = job_folder(settings.data, campaign_id) / "release"
    files = {name: data for name, data in folder_files(folder).items() if name != ATTESTATION}
    check_audited(Vault(settings.data, settings.storage), settings.data, campaign_id, files)
    manifest = Manifest.from_bytes(files[MANIFEST])
    envelope = add_signature(sign(PAYLOAD_TYPE, statement_payload(files[MANIFEST], manifest), [node_key(settings.data)]), officer)
    files[ATTESTATION] = envelope.to_bytes()
    check(files, public_keys(settings), Campaign.model_validate_json(row.campaign))  # what the hub would reject does not leave
    write_whole(folder / ATTESTATION, files[ATTESTATION])
    packed = pack(files)
    write_whole(release_file(settings.data, campaign_id), packed)
    jobs.set_release(campaign_id, release_id=manifest.release_id, release_bytes=len(packed), release_sha256=sha256_bytes(packed))
    return manifest


def lay_out_again(jobs: JobStore, campaign_id: str) -> None:
    """Send a job from review back to the worker: what was drawn is audited, where its audit is not of it, judged, and laid out anew.

    Raises:
        StateError: the job is not in review.
        ConsentWithdrawnError: a patient of its cohort withdrew consent.
    """
    if jobs.need(campaign_id).state != JobState.REVIEW:
        raise StateError(f"job of campaign {campaign_id} is not in review")
    jobs.move(campaign_id, JobState.AUDITING, code=AGAIN)


def refuse(jobs: JobStore, campaign_id: str, reason: str) -> None:
    """The officer says no; the reason stays in the hospital, the hub learns only the state."""
    jobs.move(campaign_id, JobState.REFUSED, code="officer-refused", message=reason)
