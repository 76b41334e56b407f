"""What lies under the probe in one frame: depths of the layers, texture, ligaments, at times a rib.

Order and look of the layers: Stavros, "Breast Ultrasound", 2004, chapter 4.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from busgen_core.phantom.fields import Field

FIELDS: Mapping[str, tuple[int, int]] = {  # random fields, and their cells over the frame: down, across
    "coarse": (11, 7),  # fat lobules
    "streak": (24, 7),  # bundles of fibres, long across and thin down
    "fibre": (56, 22),  # single fibres
    "blob": (18, 16),  # coarse texture
    "ducts": (12, 6),
    "bend": (5, 6),  # displacement that bends all layers
    "columns": (1, 14),  # what differs from column to column
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Anatomy:
    """Tissue of one frame; depths and widths in cm.

    Attributes:
        skin_cm: Skin's lower edge.
        fat_cm: Subcutaneous fat's lower edge.
        gland_cm: Gland's lower edge.
        muscle_cm: Muscle's upper edge; between gland and muscle lies retromammary fat.
        bend_cm: Standard deviation of the layers' vertical displacement.
        fatty: Share of gland replaced by fat lobules: 0 dense, 1 fatty.
        fibre_db: Standard deviation of the gland's streaks.
        lobule_db: Standard deviation of its coarse texture.
        ligament_db: Brightness of Cooper's ligaments and lobules' septa against gland.
        ligament_width: Their width, as a share of a lobule.
        duct_db: How much darker ducts are than gland.
        streak_loss: Standard deviation of columns' extra loss, dB/cm/MHz: contact, ligaments, refraction.
        rib_x_cm, rib_z_cm: Top of a rib; far below the frame when there is none.
        fields: Unit normal coefficients of the random fields, float32 [down, across] each, by the names of ``FIELDS``.
    """

    skin_cm: float
    fat_cm: float
    gland_cm: float
    muscle_cm: float
    bend_cm: float
    fatty: float
    fibre_db: float
    lobule_db: float
    ligament_db: float
    ligament_width: float
    duct_db: float
    streak_loss: float
    rib_x_cm: float
    rib_z_cm: float
    fields: Mapping[str, Field]


def draw_anatomy(rng: np.random.Generator, *, depth_cm: float, width_cm: float) -> Anatomy:
    """Draw the tissue of one frame; layers scale with the frame's depth as a sonographer would set it."""
    share = rng.random(16)
    skin = 0.12 + 0.12 * share[0]
    fat = skin + depth_cm * (0.04 + 0.22 * share[1] ** 1.5)
    gland = fat + depth_cm * (0.32 + 0.3 * share[2])
    muscle = gland + depth_cm * (0.02 + 0.12 * share[3])
    rib = bool(share[12] < 0.07)
    return Anatomy(
        skin_cm=skin,
        fat_cm=fat,
        gland_cm=gland,
        muscle_cm=muscle,
        bend_cm=0.04 + 0.16 * float(share[4]),
        fatty=float(share[5]) ** 1.5,
        fibre_db=2.5 + 4.0 * float(share[6]),
        lobule_db=1.0 + 2.5 * float(share[7]),
        ligament_db=2.0 + 8.0 * float(share[8]),
        ligament_width=0.05 + 0.1 * float(share[9]),
        duct_db=8.0 * float(share[10]),
        streak_loss=0.16 * float(share[11]) ** 2,
        rib_x_cm=float(share[13]) * width_cm,
        rib_z_cm=max(muscle + 0.1, depth_cm * (0.74 + 0.14 * float(share[14]))) if rib else 1e3,
        fields=_draw_fields(rng),
    )


def _draw_fields(rng: np.random.Generator) -> dict[str, Field]:
    sizes = [down * across for down, across in FIELDS.values()]
    parts = np.split(rng.standard_normal(sum(sizes), dtype=np.float32), np.cumsum(sizes)[:-1])
    return {name: part.reshape(size) for (name, size), part in zip(FIELDS.items(), parts, strict=True)}
