"""Each claim of a release is checked by itself, and a planted fault is found under its own name."""

from collections.abc import Mapping

import numpy as np
import pytest

from busgen_core.release import MANIFEST, TrustedKeys
from busgen_privacy import claims
from busgen_privacy.audit import TravellingAttack, travelling
from busgen_privacy.claims import check_claims
from busgen_privacy.dp.noise import SeededGaussian
from busgen_privacy.policy import GatePolicy, Policy
from tests.privacy.found import attack, findings
from tests.releases import PRIVACY, STRANGER, TRUSTED
from tests.server.hospital import AUDIT, CAMPAIGN, frames, release

POLICY = Policy(lifetime_epsilon=8, campaign_epsilon=8, public_cohort=100, smallest_cohort=30, audit_noise=4.0, gate=GatePolicy(smallest_holdout=20))
GRAY = np.full((64, 64), 90, np.uint8)


def audit_with(**changes: object) -> bytes:
    return AUDIT.model_copy(update=changes).model_dump_json().encode()


def figure(**changes: object) -> bytes:
    attack: TravellingAttack = AUDIT.attacks[0].model_copy(update=changes)
    return audit_with(attacks=(attack,))


def broken(files: Mapping[str, bytes], *, trusted: TrustedKeys = TRUSTED) -> dict[str, str]:
    """Claims that do not hold, with what was found."""
    return {claim.what: claim.found for claim in check_claims(files, trusted, CAMPAIGN) if not claim.good}


def test_sound_release_keeps_every_claim() -> None:
    """Six claims, all good, each with what was found: counts, epsilon computed again, figures in their intervals."""
    found = check_claims(release(), TRUSTED, CAMPAIGN)
    assert [claim.what for claim in found if not claim.good] == []
    said = {claim.what: claim.found for claim in found}
    assert "20 images, 10 benign, 10 malignant" in said[claims.BYTES]
    assert "stated 3.5000" in said[claims.EPSILON]
    assert "compose to 3." in said[claims.EPSILON]
    assert said[claims.FIGURES].startswith("strongest 0.550 (0.120 to 0.980)")
    assert said[claims.PIXELS] == "20 different of 20"


TOO_LITTLE = PRIVACY.model_copy(update={"epsilon": 3.0, "lifetime_epsilon": 3.0})
FAULTS = {
    "another campaign": (release(campaign_id="autumn"), claims.CAMPAIGN, "campaign autumn"),
    "epsilon stated too low": (
        release(privacy=TOO_LITTLE, audit=audit_with(epsilon=3.0)),
        claims.EPSILON,
        "compose",
    ),
    "audit of other images": (release(audit=audit_with(released=7)), claims.GATE, "another number of images"),
    "no audit": (release(audit=b"{}"), claims.FIGURES, "does not parse"),
    "audit of no promise": (release(audit=audit_with(epsilon=-1.0)), claims.FIGURES, "promises nothing"),
    "noise stated too high": (release(audit=audit_with(noise_std=0.4)), claims.FIGURES, "multiplier and floors"),
    "interval too narrow": (release(audit=figure(low=0.5, high=0.6)), claims.FIGURES, "narrower"),
    "AUC outside its interval": (release(audit=figure(low=0.6, high=0.98)), claims.FIGURES, "not in its interval"),
    "ceiling too high": (release(audit=figure(ceiling=0.9)), claims.FIGURES, "held against a ceiling"),
    "images repeat": (release(pictures=frames(1)[:10] * 2), claims.PIXELS, "repeat"),
    "empty images": (release(pictures=frames(1)[:10] + [GRAY] * 10), claims.PIXELS, "constant"),
}


@pytest.mark.parametrize(("files", "what", "found"), FAULTS.values(), ids=FAULTS)
def test_planted_fault_is_found_under_its_claim(files: Mapping[str, bytes], what: str, found: str) -> None:
    """The claim that a fault breaks is named, with the figures."""
    assert found in broken(files)[what]


def test_nothing_is_believed_of_bytes_that_nobody_signed() -> None:
    """A changed manifest, or other keys enrolled since, end the list at the first claim."""
    changed = release() | {MANIFEST: release()[MANIFEST].replace(b'"images":20', b'"images":21')}
    other = TrustedKeys(site="cairo", node=STRANGER.public, officer=TRUSTED.officer)
    for files, trusted in ((changed, TRUSTED), (release(), other)):
        (claim,) = check_claims(files, trusted, CAMPAIGN)
        assert (claim.what, claim.good) == (claims.BYTES, False)


def test_figures_of_travelling_audits_hold() -> None:
    """Noise, interval and ceiling of what ``audit.travelling`` writes are what is computed here, at the ends of [0, 1] too."""
    for seed in range(20):
        audit = travelling(findings(attack(auc=0.97)), POLICY, SeededGaussian(seed))
        said = {claim.what: claim for claim in check_claims(release(audit=audit.model_dump_json().encode()), TRUSTED, CAMPAIGN)}
        assert said[claims.FIGURES].good, said[claims.FIGURES].found
