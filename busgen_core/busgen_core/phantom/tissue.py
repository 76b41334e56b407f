"""Maps of breast tissue: skin, fat with lobules and Cooper's ligaments, gland with ducts, retromammary fat, muscle, at times a rib.

Echogenicity is in dB against gland; attenuation in dB/cm/MHz, one way (Duck, "Physical Properties of Tissue", 1990, chapter 4: fat .5,
breast .75, muscle 1.0, skin 2, bone 5 and more, fluid .02; brought closer together, since a broad pulse loses its high frequencies first).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from busgen_core.phantom.anatomy import Anatomy
from busgen_core.phantom.fields import Field, Getter, gather, ridge, smooth, step

SKIN_DB, FAT_DB, GLAND_DB, MUSCLE_DB = 5.0, -8.0, 0.0, -9.0
SKIN_LOSS, FAT_LOSS, GLAND_LOSS, MUSCLE_LOSS, BONE_LOSS = 1.2, 0.55, 0.7, 0.9, 8.0
MEAN_LOSS = 0.65  # what time gain compensation takes for granted


@dataclass(frozen=True, kw_only=True, slots=True)
class Tissue:
    """Maps of a batch, each float32 [batch, rows, columns].

    Attributes:
        echo_db: Scatterers' echogenicity, dB against gland.
        mirror: Amplitude of smooth reflectors, gland's scatterers = 1.
        loss: Attenuation, dB/cm/MHz, one way.
        blob: The coarse texture's field, unit variance, for lesions to use.
    """

    echo_db: Field
    mirror: Field
    loss: Field
    blob: Field


@dataclass(frozen=True, kw_only=True, slots=True)
class Layers:
    """Where each tissue is, float32 [batch, rows, columns].

    Attributes:
        level: Depth in cm along the bent layers.
        coarse, streak, fibre, blob, ducts: Random fields of unit variance, bent with the layers.
        facing: How far a mirror faces the probe, 0 to 1.
        below_skin, gland, muscle: Shares of the tissue; what is neither skin, gland nor muscle is fat.
        septa: Cooper's ligaments and the walls of lobules.
    """

    level: Field
    coarse: Field
    streak: Field
    fibre: Field
    blob: Field
    ducts: Field
    facing: Field
    below_skin: Field
    gland: Field
    muscle: Field
    septa: Field


def build_tissue(anatomies: Sequence[Anatomy], *, z_cm: Field, x_cm: Field) -> Tissue:
    """Maps of the tissue.

    Args:
        anatomies: One a frame.
        z_cm: float32 [batch, rows, 1], depth of the rows.
        x_cm: float32 [batch, 1, columns], place of the columns; 0 is the frame's left edge.
    """
    get = gather(anatomies)
    layers = _layers(anatomies, get, z_cm, x_cm)
    rib, rib_top = _rib(get, z_cm, x_cm)
    columns = smooth(_stack(anatomies, "columns"), 1, x_cm.shape[2])
    loss = _tissue_loss(layers) + (get(lambda a: a.streak_loss) * columns + (BONE_LOSS - MUSCLE_LOSS) * rib)
    return Tissue(echo_db=_echo_db(layers, get), mirror=_mirror(layers, get, rib_top, z_cm), loss=loss, blob=layers.blob)


def _layers(anatomies: Sequence[Anatomy], get: Getter[Anatomy], z_cm: Field, x_cm: Field) -> Layers:
    shape = (z_cm.shape[1], x_cm.shape[2])
    level = z_cm + get(lambda a: a.bend_cm) * smooth(_stack(anatomies, "bend"), *shape) * np.minimum(z_cm, 1)
    named = ("coarse", "streak", "fibre", "blob", "ducts")
    coarse, streak, fibre, blob, ducts = _bent([smooth(_stack(anatomies, name), *shape) for name in named], level, z_cm)
    below_skin = step(level - get(lambda a: a.skin_cm), 0.04)
    below_fat = step(level - get(lambda a: a.fat_cm) + 0.1 * coarse, 0.08)
    below_gland = step(level - get(lambda a: a.gland_cm) + 0.05 * coarse, 0.08)
    muscle = step(level - get(lambda a: a.muscle_cm), 0.06)
    fatty = get(lambda a: a.fatty)
    lobules = step(coarse - 2.2 + 3.4 * fatty, 0.35) * fatty
    return Layers(
        level=level,
        coarse=coarse,
        streak=streak,
        fibre=fibre,
        blob=blob,
        ducts=ducts,
        facing=_facing(level, x_cm) * step(blob + 0.7 * streak, 2.5),  # mirrors are broken by texture
        below_skin=below_skin,
        gland=below_fat * (1 - below_gland) * (1 - lobules),
        muscle=muscle,
        septa=ridge(coarse + 0.15 * blob, get(lambda a: a.ligament_width)) * step(blob + 0.6, 2.0) * below_skin * (1 - muscle),
    )


def _facing(level: Field, x_cm: Field) -> Field:
    """1 where a layer lies flat, less the steeper it is: a mirror is bright where it faces the probe."""
    slope = np.gradient(level, axis=2) / (x_cm[:, :, 1:2] - x_cm[:, :, 0:1])
    return np.asarray(1 / (1 + np.square(slope / np.float32(0.3))), dtype=np.float32)


def _echo_db(layers: Layers, get: Getter[Anatomy]) -> Field:
    """Echogenicity: the tissue's mean, strands and texture in it, ducts and ligaments."""
    gland = layers.gland
    crest = np.float32(1.66) * (np.float32(0.8) - np.minimum(np.abs(layers.fibre), 2))  # thin bright fibres; mean 0, variance 1
    strands = get(lambda a: a.fibre_db) * (np.float32(0.8) * layers.streak + np.float32(0.9) * crest)
    echo: Field = SKIN_DB + (FAT_DB - SKIN_DB) * layers.below_skin
    echo += (GLAND_DB - FAT_DB) * gland + (MUSCLE_DB - FAT_DB) * layers.muscle
    echo += gland * (strands + get(lambda a: a.lobule_db) * layers.blob) + (1 - gland) * (np.float32(0.55) * strands + layers.blob)
    echo -= gland * get(lambda a: a.duct_db) * ridge(layers.ducts, 0.1)
    echo += layers.septa * get(lambda a: a.ligament_db)
    return echo


def _tissue_loss(layers: Layers) -> Field:
    loss: Field = SKIN_LOSS + (FAT_LOSS - SKIN_LOSS) * layers.below_skin
    loss = loss + (GLAND_LOSS - FAT_LOSS) * layers.gland
    loss += (MUSCLE_LOSS - FAT_LOSS) * layers.muscle
    return loss


def _mirror(layers: Layers, get: Getter[Anatomy], rib_top: Field, z_cm: Field) -> Field:
    """Smooth reflectors: the probe's own face, skin, fascia, ligaments, a rib's surface."""
    level, coarse = layers.level, layers.coarse
    edges = 1.1 * ridge(level - get(lambda a: a.gland_cm) + 0.05 * coarse, 0.04) + 1.6 * ridge(level - get(lambda a: a.muscle_cm), 0.035)
    edges += 0.8 * ridge(level - get(lambda a: a.fat_cm) + 0.1 * coarse, 0.04) + 1.5 * ridge(level - get(lambda a: a.skin_cm), 0.03)
    mirror: Field = layers.facing * (edges + layers.septa * np.float32(0.7)) + 4 * rib_top
    mirror += 2.5 * ridge(z_cm - np.float32(0.02), 0.03)
    return mirror


def _stack(anatomies: Sequence[Anatomy], name: str) -> Field:
    """One field's coefficients of every frame, float32 [batch, down, across]."""
    return np.asarray(np.stack([a.fields[name] for a in anatomies]), dtype=np.float32)


def _bent(fields: Sequence[Field], level: Field, z_cm: Field) -> list[Field]:
    """The fields looked up along the bent layers: at the row of ``level`` instead of the row of depth."""
    frames, rows, columns = level.shape
    row = np.clip((level * (rows / (z_cm[:, -1:, :] + z_cm[:, :1, :]))).astype(np.int32), 0, rows - 1).astype(np.intp)
    first = (rows * columns * np.arange(frames))[:, None, None] + np.arange(columns)
    where = row * columns + first
    return [np.take(field.reshape(-1), where) for field in fields]


def _rib(get: Getter[Anatomy], z_cm: Field, x_cm: Field) -> tuple[Field, Field]:
    """Inside of the rib and its bright upper edge; an ellipse 1.8 cm wide and 0.8 cm deep."""
    away = np.sqrt(np.square((x_cm - get(lambda a: a.rib_x_cm)) / 0.9) + np.square((z_cm - get(lambda a: a.rib_z_cm) - 0.4) / 0.4))
    inside = step(1 - away, 0.1)
    return inside, ridge(away - 1, 0.05) * step(get(lambda a: a.rib_z_cm) + 0.3 - z_cm, 0.1)
