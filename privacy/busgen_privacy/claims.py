"""What a release claims, checked again one claim after the other, so that whoever reads the list knows what holds and what was looked at.

``admission.check`` answers yes or no before a release is let in. This says the same of a release that lies there: its bytes may have rotted,
its site may have other keys by now, the rules may have become stricter. Pure.
"""

from collections.abc import Callable, Mapping
from math import sqrt

from pydantic import BaseModel, ConfigDict

from busgen_core.errors import BusgenError, ConfigError, ManifestError, StatementError
from busgen_core.release import Manifest, TrustedKeys, verify_release
from busgen_core.repository import read_parquet
from busgen_core.wire import Campaign
from busgen_privacy.admission import HUB_GATE, check_audit, check_campaign, image_digests
from busgen_privacy.audit import TravellingAttack, TravellingAudit
from busgen_privacy.policy import GatePolicy
from busgen_privacy.statement import check_statement, pooled_epsilon
from busgen_privacy.statistics import auc_deviation, ceiling_auc

ROUNDING = 1e-6  # of a figure on its way through JSON
NORMAL_95 = 1.96  # two-sided 95 % quantile, as ``audit.travelling`` uses it

BYTES = "Signatures of node and officer, digests of all files, and the manifest's counts against the tables"
CAMPAIGN = "Foundation, epsilon, delta and images of each label against what the campaign asked for"
EPSILON = "Epsilon, computed again from every mechanism that the statement names, by two accountants"
GATE = "The audit is this release's, and the gate judges it here as it did there"
FIGURES = "Audit figures lie in [0, 1], each AUC in its interval; noise, interval and ceiling computed again"
PIXELS = "Images that repeat one another or are empty"


class Claim(BaseModel):
    """One claim and what became of it.

    Attributes:
        what: What was checked, in words.
        good: Whether it holds.
        found: What was found, in words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str
    good: bool
    found: str


def check_claims(files: Mapping[str, bytes], trusted: TrustedKeys, campaign: Campaign, *, policy: GatePolicy = HUB_GATE) -> tuple[Claim, ...]:
    """Every claim of a release, checked; if the first fails, nothing else in the release can be believed and the list ends there. Pure.

    Args:
        files: The whole release by path.
        trusted: Keys of its site as they are enrolled now.
        campaign: What it was an answer to.
        policy: Thresholds of the hub's gate.
    """
    # 1  Bytes, signatures, and what the tables hold.
    try:
        manifest = verify_release(files, trusted)
    except BusgenError as error:
        return (Claim(what=BYTES, good=False, found=str(error)),)
    counted = ", ".join(f"{count} {label.value}" for label, count in manifest.labels.items() if count)
    claims = [Claim(what=BYTES, good=True, found=f"{len(manifest.files)} files; {manifest.images} images, {counted}")]

    # 2  The campaign, the privacy statement, the audit, the gate, the images.
    audit = files["audit.json"]
    return (
        *claims,
        _claim(CAMPAIGN, lambda: _campaign(manifest, campaign)),
        _claim(EPSILON, lambda: _epsilon(manifest)),
        _claim(GATE, lambda: _gate(audit, manifest, policy)),
        _claim(FIGURES, lambda: _figures(audit)),
        _claim(PIXELS, lambda: _pixels(files, manifest)),
    )


def _claim(what: str, check: Callable[[], str]) -> Claim:
    try:
        return Claim(what=what, good=True, found=check())
    except BusgenError as error:
        return Claim(what=what, good=False, found=str(error))


def _campaign(manifest: Manifest, campaign: Campaign) -> str:
    check_campaign(manifest, campaign)
    return f"epsilon {manifest.privacy.epsilon:.4g} of at most {campaign.epsilon:g}"


def _epsilon(manifest: Manifest) -> str:
    check_statement(manifest)
    stated = manifest.privacy
    spent = pooled_epsilon([manifest], stated.delta)
    return (
        f"stated {stated.epsilon:.4f}; {len(stated.events)} mechanisms, those on members compose to {spent:.4f} at delta {stated.delta:g}. "
        f"Over all releases {stated.lifetime_epsilon:.4f}, of which the hospital's word is all there is"
    )


def _gate(audit: bytes, manifest: Manifest, policy: GatePolicy) -> str:
    check_audit(audit, manifest, policy)
    return f"{manifest.gate.verdict}, there and here"


def _figures(content: bytes) -> str:
    """The noise that ``audit.travelling`` adds, the interval that it draws and the ceiling of the promise, from the audit's public constants."""
    try:
        audit = TravellingAudit.model_validate_json(content)
        allowed = ceiling_auc(audit.epsilon, audit.delta)
    except (ValueError, ConfigError) as error:  # pydantic's is a ValueError
        raise ManifestError(f"audit.json does not parse, or promises nothing ({type(error).__name__})") from None
    noise = audit.noise_multiplier / min(audit.smallest_cohort, audit.smallest_holdout)
    if abs(noise - audit.noise_std) > ROUNDING:
        raise StatementError(f"the noise on a figure is stated as {audit.noise_std:.4g}; multiplier and floors give {noise:.4g}")
    for attack in audit.attacks:
        _figure(attack, audit, noise=noise, allowed=allowed)
    return "; ".join(
        f"{attack.name} {attack.auc:.3f} ({attack.low:.3f} to {attack.high:.3f}), ceiling {attack.ceiling:.3f}" for attack in audit.attacks
    )


def _figure(attack: TravellingAttack, audit: TravellingAudit, *, noise: float, allowed: float) -> None:
    name = f"attack '{attack.name[:60]}'"
    if not attack.low <= attack.auc <= attack.high:
        raise StatementError(f"{name}: its AUC {attack.auc:.3f} is not in its interval")
    sampling = auc_deviation(attack.auc, positives=audit.smallest_cohort, negatives=audit.smallest_holdout)
    half = NORMAL_95 * sqrt(sampling**2 + noise**2) - ROUNDING
    if attack.low > max(attack.auc - half, 0) or attack.high < min(attack.auc + half, 1):
        raise StatementError(f"{name}: its interval is narrower than {2 * half:.3f}, what sampling and noise leave open")
    if abs(attack.ceiling - allowed) > ROUNDING:
        raise StatementError(f"{name}: held against a ceiling of {attack.ceiling:.4f}; epsilon and delta give {allowed:.4f}")


def _pixels(files: Mapping[str, bytes], manifest: Manifest) -> str:
    images = [image for name in sorted(manifest.files) if name.endswith(".parquet") for image in read_parquet(files[name])]
    return f"{len(image_digests(images))} different of {len(images)}"
