"""All that is random about a frame but its scatterers: settings of the scanner, tissue, mass."""

from dataclasses import dataclass

import numpy as np

from busgen_core.errors import ConfigError, LabelError
from busgen_core.labels import Pathology
from busgen_core.phantom.anatomy import Anatomy, draw_anatomy
from busgen_core.phantom.descriptors import Descriptors, draw_descriptors
from busgen_core.phantom.lesions import Lesion, draw_lesion
from busgen_core.phantom.scanners import SCANNERS, Scanner, scanner_named

BAND = 0.7  # of the centre frequency: where a broad pulse's attenuation is felt, since its high frequencies die first


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One frame to be.

    Attributes:
        pathology, descriptors: What it shows; no descriptors for normal tissue.
        name, scanner: The preset.
        depth_cm, width_cm, gain_db, tgc_db_per_cm, focus_cm: The preset's settings as a sonographer moved them.
        echo_interval_cm: Distance of the near field's repeated lines.
        anatomy, lesion: Tissue, and the mass in it.
        rng: Draws scatterers' phases, look by look.
    """

    pathology: Pathology
    descriptors: Descriptors | None
    name: str
    scanner: Scanner
    depth_cm: float
    width_cm: float
    gain_db: float
    tgc_db_per_cm: float
    focus_cm: float
    echo_interval_cm: float
    anatomy: Anatomy
    lesion: Lesion | None
    rng: np.random.Generator


def draw_scene(pathology: Pathology, seed: int, scanner: str | None, descriptors: Descriptors | None) -> Scene:
    """Draw a scene. Settings, tissue, mass and scatterers each take their own share of the seed: fixing one leaves the others as they were.

    Raises:
        ConfigError: a seed below 0.
        LabelError: a scanner that is not there, or descriptors of normal tissue.
    """
    if seed < 0:
        raise ConfigError(f"seed={seed} is below 0")
    if pathology is Pathology.NORMAL and descriptors is not None:
        raise LabelError("normal tissue has no mass to describe; give benign or malignant with the descriptors")
    knobs, tissue, mass, scatterers = np.random.default_rng(seed).spawn(4)
    turned, drawn = [float(knob) for knob in knobs.random(6)], list(SCANNERS)[int(knobs.integers(len(SCANNERS)))]
    name = drawn if scanner is None else scanner
    preset = scanner_named(name)
    zoom = 0.88 + 0.24 * turned[0]
    depth, width = preset.depth_cm * zoom, preset.width_cm * zoom
    if pathology is not Pathology.NORMAL and descriptors is None:
        descriptors = draw_descriptors(pathology, mass)
    lesion = None
    if descriptors is not None:
        lesion = draw_lesion(descriptors, pathology, mass, depth_cm=depth, width_cm=width, mhz=BAND * preset.centre_mhz)
    return Scene(
        pathology=pathology,
        descriptors=descriptors,
        name=name,
        scanner=preset,
        depth_cm=depth,
        width_cm=width,
        gain_db=preset.gain_db + 6 * (turned[1] - 0.5),
        tgc_db_per_cm=preset.tgc_db_per_cm + 2 * (turned[2] - 0.5),
        focus_cm=preset.focus_cm * (0.8 + 0.4 * turned[3]),
        echo_interval_cm=0.12 + 0.18 * turned[4],
        anatomy=draw_anatomy(tissue, depth_cm=depth, width_cm=width),
        lesion=lesion,
        rng=scatterers,
    )
