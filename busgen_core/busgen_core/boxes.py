"""Where lesions lie: one Gaussian for each class over (centre x, centre y, log width, log height), stored as JSON.

The shipped fit comes from public images. A hospital never fits its own here: that would be a private statistic.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from busgen_core.images import Box
from busgen_core.labels import Pathology


class BoxDensity(BaseModel):
    """Mean [4] and covariance [4][4] for each pathology that has lesions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: Mapping[Pathology, tuple[float, ...]]
    covariance: Mapping[Pathology, tuple[tuple[float, ...], ...]]

    def draw(self, pathology: Pathology, rng: np.random.Generator) -> Box | None:
        """One box inside the frame, at least 5 % wide and high; None for a class without lesions."""
        if pathology not in self.mean:
            return None
        cx, cy, log_width, log_height = rng.multivariate_normal(self.mean[pathology], self.covariance[pathology])
        width, height = float(np.clip(np.exp(log_width), 0.05, 0.95)), float(np.clip(np.exp(log_height), 0.05, 0.95))
        x0, y0 = float(np.clip(cx - width / 2, 0, 1 - width)), float(np.clip(cy - height / 2, 0, 1 - height))
        return (x0, y0, x0 + width, y0 + height)


def fit_boxes(boxes: Mapping[Pathology, Sequence[Box]]) -> BoxDensity:
    """Fit a density to *public* boxes, at least 8 a class."""
    means, covariances = {}, {}
    for pathology, found in boxes.items():
        corners = np.asarray(found)
        size = np.maximum(corners[:, 2:] - corners[:, :2], 1e-3)
        features = np.column_stack([(corners[:, :2] + corners[:, 2:]) / 2, np.log(size)])
        means[pathology] = tuple(features.mean(0).tolist())
        covariances[pathology] = tuple(tuple(row) for row in np.cov(features.T).tolist())
    return BoxDensity(mean=means, covariance=covariances)
