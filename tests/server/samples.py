"""A campaign and counts that the hub's tests share."""

from busgen_core.labels import Pathology
from busgen_core.wire import BinnedCounts, Campaign

CAMPAIGN = Campaign(
    campaign_id="c1",
    images={Pathology.BENIGN: 30, Pathology.MALIGNANT: 30},
    epsilon=8,
    delta=1e-5,
    foundation="0" * 64,
    foundation_bytes=10,
    foundation_package="1" * 64,
    deadline="2030-01-01",
)
COUNTS = BinnedCounts(benign=(None, 7.5), malignant=(9.0, 6.0), benign_total=10, malignant_total=15, noise=2, suppressed_below=5)
