"""Masses put into the tissue: echoes, mirrors and loss of sound change where the mass is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from busgen_core.phantom.fields import Field, Getter, gather, ridge, step
from busgen_core.phantom.lesions import Lesion
from busgen_core.phantom.outlines import ANGLES, TURN
from busgen_core.phantom.tissue import FAT_DB, MEAN_LOSS, Tissue

FLUID_DB = FAT_DB - 24  # in the cystic part of a complex mass
LEAST_LOSS, MOST_LOSS = 0.02, 6.0  # dB/cm/MHz


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Every fine pixel seen from its frame's mass, each float32 [batch, rows, columns] or broadcast to it.

    Attributes:
        across, down: From the centre, in half widths and half depths.
        beyond: Radius beyond the edge at that angle, in the outline's frame.
        spicules: Echo of spicules at that angle, dB.
        inside_cm: Distance inside the edge, negative outside.
        weight: Share of the mass, 0 to 1, soft at the edge.
    """

    across: Field
    down: Field
    beyond: Field
    spicules: Field
    inside_cm: Field
    weight: Field


def paint(lesions: Sequence[Lesion | None], tissue: Tissue, *, z_cm: Field, x_cm: Field) -> Field:
    """Put each mass into its frame's tissue, in place; a frame without one stays as it is.

    Returns:
        float32 [batch, rows, columns]: distance inside the edge in cm, negative outside; -1e3 where there is no mass.
    """
    inside = np.full(tissue.echo_db.shape, -1e3, np.float32)
    at = [i for i, lesion in enumerate(lesions) if lesion is not None]
    present = [lesion for lesion in lesions if lesion is not None]
    if present:
        get, blob = gather(present), tissue.blob[at]
        place = _place(present, get, z_cm[at], x_cm[at])
        tissue.echo_db[at] += _echo_change(tissue.echo_db[at], blob, place, get)
        tissue.mirror[at] = tissue.mirror[at] * (1 - place.weight) + _wall(place, get)
        tissue.loss[at] += place.weight * (_loss(blob, place, get) - tissue.loss[at])
        tissue.loss[at] += get(lambda m: m.edge_shadow) * _flanks(place)
        inside[at] = place.inside_cm
    return inside


def _place(lesions: Sequence[Lesion], get: Getter[Lesion], z_cm: Field, x_cm: Field) -> Place:
    across, down = (x_cm - get(lambda m: m.x_cm)) / get(lambda m: m.half_width), (z_cm - get(lambda m: m.z_cm)) / get(lambda m: m.half_depth)
    radius = np.sqrt(across**2 + down**2)
    angle = np.arctan2(down, across) + np.float32(np.pi)
    own = ANGLES * np.arange(len(lesions), dtype=np.int32)[:, None, None]  # where the frame's own outline starts
    where = (angle * np.float32(ANGLES / TURN)).astype(np.int32) % ANGLES + own
    edge = np.take(np.stack([m.outline for m in lesions]), where)
    inside = (edge - radius) * np.sqrt(get(lambda m: m.half_width * m.half_depth))
    return Place(
        across=across,
        down=down,
        beyond=radius - edge,
        spicules=np.take(np.stack([m.spicules for m in lesions]), where),
        inside_cm=inside,
        weight=step(inside, get(lambda m: m.soft_cm)),
    )


def _echo_change(echo_db: Field, blob: Field, place: Place, get: Getter[Lesion]) -> Field:
    """What to add to the echogenicity: the mass in place of the tissue, its rim and its spicules."""
    solid = get(lambda m: m.echo_db) + get(lambda m: m.texture_db) * blob
    cystic = get(lambda m: m.cystic)
    fluid = step(blob - 1 + 2 * (1 - cystic), 0.3) * (cystic > 0)
    near_wall = get(lambda m: m.near_wall_db) * np.exp(-np.maximum(place.down + 1, 0) * 3)
    own = solid + fluid * (FLUID_DB - solid) + near_wall
    rays = place.spicules * step(-place.inside_cm, 0.05) * np.exp(-np.maximum(place.beyond, 0) * 1.6)
    change: Field = place.weight * (own - echo_db) + get(lambda m: m.rim_db) * _rim(place, get) + rays
    return change


def _rim(place: Place, get: Getter[Lesion]) -> Field:
    """1 just outside the edge."""
    width = get(lambda m: m.rim_cm)
    return ridge(place.inside_cm + 0.5 * width, width)


def _wall(place: Place, get: Getter[Lesion]) -> Field:
    """Front and back wall as mirrors, where they face the probe."""
    bright = get(lambda m: 0.35 * m.rim_db) * _rim(place, get)
    return np.asarray(bright * np.square(place.down) / (1 + np.square(place.across)), dtype=np.float32)


def _loss(blob: Field, place: Place, get: Getter[Lesion]) -> Field:
    """Attenuation inside: that of the left half, then that of the right, uneven as the texture is."""
    left = get(lambda m: m.loss_left)
    change = left + (get(lambda m: m.loss_right) - left) * step(place.across, 0.5)
    return np.asarray(np.clip(MEAN_LOSS + change * (1 + np.float32(0.25) * blob), LEAST_LOSS, MOST_LOSS), dtype=np.float32)


def _flanks(place: Place) -> Field:
    """The sides of the mass, where refraction casts thin shadows."""
    return np.asarray(ridge(np.abs(place.across) - 1, 0.07) * (np.abs(place.down) < 0.5), dtype=np.float32)
