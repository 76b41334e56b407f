"""The tasks that the encoder learns, the damage done to its frames, and the losses.

Labels (pathology, BI-RADS, device or scanner, BI-RADS descriptors of phantoms), the lesion mask on a coarse grid, and the
strength of damage done to half of the frames: features that must tell all of these apart see both what an image shows and how
good it is. A penalty on the covariance of the features keeps them from repeating one another (A. Bardes, J. Ponce, Y. LeCun
2022, VICReg, arXiv:2105.04906).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from busgen_core.quality import degrade
from busgen_core.quality.encoder import EncoderConfig, EncoderNetwork

SHIFT_PX = 4
DAMAGE = {"despeckled": (0.0, 1.0), "blurred": (0.0, 1.5), "stretched": (-0.5, 0.4), "brightened": (-0.25, 0.25), "noisy": (0.0, 0.25)}
DAMAGED_SHARE = 0.5  # of a batch
EACH_DAMAGE = 0.5  # chance of each kind in a damaged frame
MASK_SIDE = 8
WEIGHT = {"labels": 1.0, "mask": 1.0, "damage": 10.0, "variance": 1.0, "covariance": 0.2}
LABEL_WEIGHT = {"pathology": 2.0, "birads": 1.0}  # all others OTHER_LABEL: devices would drown the rest
OTHER_LABEL = 0.5


class Tasks(nn.Module):
    """The encoder with a linear head for each task; the heads are not shipped."""

    def __init__(self, config: EncoderConfig, words: Mapping[str, tuple[str, ...]], *, dropout: float) -> None:
        super().__init__()
        self.encoder = EncoderNetwork(config)
        self.heads = nn.ModuleList([nn.Linear(config.features, len(values)) for values in words.values()])
        self.damage = nn.Linear(config.features, len(DAMAGE))
        self.mask = nn.Conv2d(config.widths[2], 1, 1)
        self.dropout = dropout

    def forward(self, images: Tensor, *, draws: torch.Generator | None = None) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
        """Features, logits of every task, damage strengths, and mask logits [n, MASK_SIDE, MASK_SIDE]."""
        features, maps = self.encoder(images)
        kept = features
        if draws is not None and self.dropout:
            kept = features * (torch.rand(features.shape, generator=draws) >= self.dropout) / (1 - self.dropout)
        mask = functional.adaptive_avg_pool2d(self.mask(functional.relu(maps[2])), MASK_SIDE).squeeze(1)
        return features, [head(kept) for head in self.heads], self.damage(kept), mask


def moved(planes: Tensor, *, draws: torch.Generator) -> Tensor:
    """Each image's planes [n, c, rows, columns] mirrored with chance one half and shifted by up to SHIFT_PX, edges repeated."""
    count, _, rows, columns = planes.shape
    down, across = torch.randint(-SHIFT_PX, SHIFT_PX + 1, (2, count, 1), generator=draws)
    r, c = (torch.arange(rows) + down).clamp(0, rows - 1), (torch.arange(columns) + across).clamp(0, columns - 1)
    c = torch.where(torch.rand(count, 1, generator=draws) < 0.5, c.flip(1), c)
    return planes.transpose(0, 1)[:, torch.arange(count)[:, None, None], r[:, :, None], c[:, None, :]].transpose(0, 1)


def damaged(images: Tensor, *, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Some of the images damaged, and how much, float [n, kinds of DAMAGE], as a share of the largest.

    Blur, noise and despeckling are drawn as the square of a uniform share, which is what is to be found: slight damage is the
    usual one and the harder to see.

    Args:
        images: float [n, 1, px, px] in [-1, 1].
    """
    low, high = torch.tensor(list(DAMAGE.values())).T
    chosen = (torch.rand(len(images), 1, generator=draws) < DAMAGED_SHARE) & (torch.rand(len(images), len(DAMAGE), generator=draws) < EACH_DAMAGE)
    uniform = torch.rand(chosen.shape, generator=draws)
    both_ways = low < 0
    strength = torch.where(both_ways, low + (high - low) * uniform, high * uniform.square()) * chosen
    by_kind = dict(zip(DAMAGE, strength.T, strict=True))
    images = degrade.blurred(degrade.despeckled(images, by_kind["despeckled"]), by_kind["blurred"])
    images = degrade.brightened(degrade.stretched(images, by_kind["stretched"]), by_kind["brightened"])
    return degrade.noisy(images, by_kind["noisy"], draws=draws), torch.where(both_ways, strength / torch.maximum(high, -low), uniform * chosen)


def total_loss(
    found: tuple[Tensor, list[Tensor], Tensor, Tensor], masks: Tensor, masked: Tensor, labels: Tensor, damage: Tensor, *, tasks: Sequence[str]
) -> Tensor:
    """Weighted sum of all tasks' losses; what is not known of an image adds nothing.

    Args:
        found: Output of ``Tasks``.
        masks: float [n, MASK_SIDE, MASK_SIDE], share of each cell that is lesion.
        masked: bool [n], whether the mask is known.
        labels: int64 [n, tasks], -1 where not known.
        damage: float [n, kinds of DAMAGE].
        tasks: Names of the columns of ``labels``.
    """
    features, logits, damage_found, mask_logits = found[0].float(), [part.float() for part in found[1]], found[2].float(), found[3].float()
    weights = [LABEL_WEIGHT.get(task, OTHER_LABEL) for task in tasks]
    of_labels = torch.stack([weight * _cross_entropy(part, column) for weight, part, column in zip(weights, logits, labels.T, strict=True)]).sum()
    of_mask = functional.binary_cross_entropy_with_logits(mask_logits, masks, reduction="none").mean(dim=(1, 2))
    of_mask = (of_mask * masked).sum() / masked.sum().clamp(min=1)
    of_damage = functional.smooth_l1_loss(damage_found, damage, beta=0.1)
    variance, covariance = spread_penalties(features)
    parts = {"labels": of_labels, "mask": of_mask, "damage": of_damage, "variance": variance, "covariance": covariance}
    return torch.stack([WEIGHT[name] * part for name, part in parts.items()]).sum()


def spread_penalties(features: Tensor) -> tuple[Tensor, Tensor]:
    """VICReg's terms: mean of max(0, 1 - deviation) over features (VICReg, equation 1), and squared covariances over d (equation 4)."""
    centred = features - features.mean(dim=0)
    covariance = centred.T @ centred / (len(features) - 1)
    variance = functional.relu(1 - (covariance.diagonal() + 1e-4).sqrt()).mean()
    off = covariance - torch.diag(covariance.diagonal())
    return variance, off.square().sum() / features.shape[1]


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    total = functional.cross_entropy(logits, labels, ignore_index=-1, reduction="sum", label_smoothing=0.05)
    return total / (labels >= 0).sum().clamp(min=1)
