"""A mass built from its BI-RADS descriptors: outline, margin, echoes, loss of sound, calcifications.

Lengths in cm, echogenicity in dB against gland, attenuation in dB/cm/MHz one way. The numbers are ours, chosen by eye beside open images
within what the terms mean: echo patterns are against fat, a mass is not parallel if it is taller than wide.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from busgen_core.labels import Pathology
from busgen_core.phantom.descriptors import Calcifications, Descriptors, EchoPattern, Margin, Orientation, Posterior, Shape
from busgen_core.phantom.fields import Field
from busgen_core.phantom.outlines import TURN, draw_outline, draw_spicules
from busgen_core.phantom.tissue import FAT_DB

ECHO_DB: Mapping[EchoPattern, tuple[float, float]] = {  # range of the mean
    EchoPattern.ANECHOIC: (FAT_DB - 28, FAT_DB - 22),
    EchoPattern.HYPERECHOIC: (FAT_DB + 10, FAT_DB + 13),
    EchoPattern.COMPLEX: (FAT_DB - 6, FAT_DB - 1),
    EchoPattern.HYPOECHOIC: (FAT_DB - 9, FAT_DB - 2),
    EchoPattern.ISOECHOIC: (FAT_DB - 1, FAT_DB + 1),
    EchoPattern.HETEROGENEOUS: (FAT_DB - 7, FAT_DB - 2),
}
POSTERIOR_DB: Mapping[Posterior, tuple[float, float]] = {  # change behind the whole mass
    Posterior.NONE: (-0.5, 0.5),
    Posterior.ENHANCEMENT: (6, 13),
    Posterior.SHADOWING: (-20, -6),
    Posterior.COMBINED: (-17, -7),
}
SOFT_CM: Mapping[Margin, tuple[float, float]] = {  # width of the edge
    Margin.CIRCUMSCRIBED: (0.03, 0.08),
    Margin.INDISTINCT: (0.16, 0.3),
    Margin.ANGULAR: (0.05, 0.1),
    Margin.MICROLOBULATED: (0.04, 0.08),
    Margin.SPICULATED: (0.06, 0.14),
}
COMBINED_OTHER_DB = 8.0  # enhancement behind the half that does not shadow
TEXTURE_DB: Mapping[EchoPattern, float] = {EchoPattern.ANECHOIC: 0.5, EchoPattern.HETEROGENEOUS: 5.0}  # standard deviation inside; 2.2 otherwise
RIM_DB: Mapping[Margin, float] = {Margin.CIRCUMSCRIBED: 6.0, Margin.INDISTINCT: 4.0}  # brightest capsule (thin) or halo (wide)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesion:
    """One mass.

    Attributes:
        x_cm, z_cm: Centre of its box; 0 is the frame's left edge and the skin.
        half_width, half_depth: Half of its box, cm.
        outline: float32 [ANGLES], distance of the edge from the centre in a frame in which the box is [-1, 1] x [-1, 1].
        spicules: float32 [ANGLES], echo of spicules by angle, dB; 0 without.
        soft_cm: Width of the edge.
        echo_db, texture_db: Mean echo and standard deviation of the coarse texture inside.
        cystic: Share of the inside that is fluid, beyond the solid part.
        rim_db: Echo of the capsule (thin) or halo (wide) around the edge.
        rim_cm: Its width.
        loss_left, loss_right: Loss in the left and right half beyond the mean tissue's, dB/cm/MHz.
        near_wall_db: Echoes of the near wall repeated inside a cyst, dB.
        edge_shadow: Loss along the lateral edges, dB/cm/MHz.
        specks: float32 [n, 2], calcifications: x and depth in cm.
    """

    x_cm: float
    z_cm: float
    half_width: float
    half_depth: float
    outline: Field
    spicules: Field
    soft_cm: float
    echo_db: float
    texture_db: float
    cystic: float
    rim_db: float
    rim_cm: float
    loss_left: float
    loss_right: float
    near_wall_db: float
    edge_shadow: float
    specks: Field


def draw_lesion(found: Descriptors, pathology: Pathology, rng: np.random.Generator, *, depth_cm: float, width_cm: float, mhz: float) -> Lesion:
    """A mass with these descriptors, placed in the upper two thirds of the frame; ``mhz`` turns dB behind it into dB/cm/MHz."""
    u = rng.random(12)
    outline = draw_outline(found.shape, found.orientation, found.margin, rng)
    half_width, half_depth = _half_sizes(found, pathology, u[0], u[1], depth_cm=depth_cm, width_cm=width_cm)
    x, z = _place(u[2], u[3], half_width, half_depth, depth_cm=depth_cm, width_cm=width_cm)
    left, right = _losses(found.posterior, u[4], flip=bool(u[5] < 0.5), half_depth=half_depth, mhz=mhz)
    anechoic, sharp = found.echo_pattern is EchoPattern.ANECHOIC, found.margin is Margin.CIRCUMSCRIBED
    return Lesion(
        x_cm=x,
        z_cm=z,
        half_width=half_width,
        half_depth=half_depth,
        outline=outline,
        spicules=draw_spicules(found.margin, rng),
        soft_cm=_between(SOFT_CM[found.margin], u[6]),
        echo_db=_between(ECHO_DB[found.echo_pattern], u[7]),
        texture_db=TEXTURE_DB.get(found.echo_pattern, 2.2),
        cystic=0.35 + 0.3 * u[8] if found.echo_pattern is EchoPattern.COMPLEX else 0.0,
        rim_db=RIM_DB.get(found.margin, 0.0) * u[9],
        rim_cm=0.03 if sharp else 0.15,
        loss_left=left,
        loss_right=right,
        near_wall_db=14 * (0.7 * u[10]) if anechoic else 0.0,
        edge_shadow=1.2 * u[11] if sharp and found.shape is not Shape.IRREGULAR else 0.0,
        specks=_specks(found.calcifications, rng, x, z, half_width, half_depth),
    )


def _between(limits: tuple[float, float], share: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * float(share)


def _half_sizes(found: Descriptors, pathology: Pathology, u: float, v: float, *, depth_cm: float, width_cm: float) -> tuple[float, float]:
    """Half width and half depth, cm: a malignant mass is larger on average.

    Over many draws, boxes are a fifth narrower and a quarter deeper than in the public images, as shares of the frame.
    """
    area = depth_cm * width_cm * ((0.012 + 0.11 * v**1.6) if pathology is Pathology.BENIGN else (0.03 + 0.17 * v**1.2))
    ratio = _ratio(found, u)
    half_width = min(float(np.sqrt(area / (np.pi * ratio)) * 1.15), 0.46 * width_cm)
    half_depth = half_width * ratio
    shrink = min(1.0, 0.36 * depth_cm / half_depth)
    return half_width * shrink, half_depth * shrink


def _ratio(found: Descriptors, u: float) -> float:
    """Depth over width, above 1 if and only if the mass is not parallel."""
    if found.shape is Shape.ROUND:
        return 1.02 + 0.08 * u
    if found.orientation is Orientation.NOT_PARALLEL:
        return 1.1 + 0.4 * u
    return 0.42 + 0.38 * u if found.shape is Shape.OVAL else 0.55 + 0.35 * u


def _place(u: float, v: float, half_width: float, half_depth: float, *, depth_cm: float, width_cm: float) -> tuple[float, float]:
    """Centre of the mass, cm: near the middle across, below the skin, whole within the frame."""
    x, z = width_cm * (0.5 + 0.18 * (u - 0.5) * 2), depth_cm * (0.13 + 0.26 * v) + 0.4 * half_depth
    room = half_width + 0.03 * width_cm
    x = float(np.clip(x, room, width_cm - room)) if 2 * room < width_cm else 0.5 * width_cm
    return x, float(np.clip(z, half_depth + 0.25, max(half_depth + 0.26, 0.92 * depth_cm - half_depth)))


def _losses(posterior: Posterior, u: float, *, flip: bool, half_depth: float, mhz: float) -> tuple[float, float]:
    """Loss beyond the mean tissue's in the left and right half, dB/cm/MHz: two ways through the mass give the wanted change behind it."""
    path = 2 * mhz * 2 * half_depth * 0.8  # MHz cm; 0.8 for a chord beside the middle
    change = -_between(POSTERIOR_DB[posterior], u) / path
    if posterior is not Posterior.COMBINED:
        return change, change
    other = -COMBINED_OTHER_DB / path
    return (change, other) if flip else (other, change)


def _specks(where: Calcifications, rng: np.random.Generator, x: float, z: float, half_width: float, half_depth: float) -> Field:
    """Calcifications, float32 [n, 2]: x and depth, cm."""
    if where is Calcifications.NONE:
        return np.zeros((0, 2), np.float32)
    count = int(rng.integers(4, 12))
    angle, share = rng.uniform(0, TURN, count), rng.random(count)
    radius = 0.7 * np.sqrt(share) if where is Calcifications.IN_MASS else 1.25 + 0.4 * share
    return np.stack([x + radius * half_width * np.cos(angle), z + radius * half_depth * np.sin(angle)], axis=1).astype(np.float32)
