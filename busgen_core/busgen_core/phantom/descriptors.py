"""What a radiologist says of a mass: BI-RADS ultrasound descriptors, how often each occurs, and the category that follows.

Terms: ACR BI-RADS Atlas, 5th edition (2013), ultrasound lexicon. Which descriptors are suspicious, and in what order: Stavros et al.
1995, doi:10.1148/radiology.196.1.7784555 (625 benign and 125 malignant solid nodules). The frequencies themselves are ours, rounded
numbers that agree with those two and give every category the likelihood of malignancy that the atlas asks of it (4a 2 to 10 %, 4b to 50 %,
4c to 95 %, 5 above) where 25 to 40 % of masses are malignant; they are no statistic of patients. Descriptors depend on each other as far
as the tables say so (margin on shape, posterior features on echo pattern) and are otherwise independent given the pathology.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from typing import TypeVar

import numpy as np

from busgen_core.errors import ConfigError
from busgen_core.labels import Birads, Pathology


class Shape(StrEnum):
    """Shape of a mass; "round" is as deep as it is wide."""

    OVAL = "oval"
    ROUND = "round"
    IRREGULAR = "irregular"


class Orientation(StrEnum):
    """Long axis against the skin; a round mass counts as not parallel (ACR atlas)."""

    PARALLEL = "parallel"
    NOT_PARALLEL = "not parallel"


class Margin(StrEnum):
    """Edge of a mass."""

    CIRCUMSCRIBED = "circumscribed"
    INDISTINCT = "indistinct"
    ANGULAR = "angular"
    MICROLOBULATED = "microlobulated"
    SPICULATED = "spiculated"


class EchoPattern(StrEnum):
    """Echoes inside a mass, against fat."""

    ANECHOIC = "anechoic"
    HYPERECHOIC = "hyperechoic"
    COMPLEX = "complex cystic and solid"
    HYPOECHOIC = "hypoechoic"
    ISOECHOIC = "isoechoic"
    HETEROGENEOUS = "heterogeneous"


class Posterior(StrEnum):
    """What the mass does to the echoes behind it."""

    NONE = "none"
    ENHANCEMENT = "enhancement"
    SHADOWING = "shadowing"
    COMBINED = "combined"


class Calcifications(StrEnum):
    """Where calcifications lie."""

    NONE = "none"
    IN_MASS = "in mass"
    OUTSIDE = "outside mass"


@dataclass(frozen=True, kw_only=True, slots=True)
class Descriptors:
    """The BI-RADS descriptors of one mass.

    Raises:
        ConfigError: round and parallel at once.
    """

    shape: Shape
    orientation: Orientation
    margin: Margin
    echo_pattern: EchoPattern
    posterior: Posterior
    calcifications: Calcifications

    def __post_init__(self) -> None:
        if self.shape is Shape.ROUND and self.orientation is Orientation.PARALLEL:
            raise ConfigError("a round mass is not parallel (ACR BI-RADS Atlas); choose one of the two")


BENIGN, MALIGNANT = Pathology.BENIGN, Pathology.MALIGNANT
T = TypeVar("T", bound=StrEnum)
Table = Mapping[T, float]

SHAPES: Mapping[Pathology, Table[Shape]] = {
    BENIGN: {Shape.OVAL: 0.82, Shape.ROUND: 0.06, Shape.IRREGULAR: 0.12},
    MALIGNANT: {Shape.OVAL: 0.12, Shape.ROUND: 0.06, Shape.IRREGULAR: 0.82},
}
NOT_PARALLEL: Mapping[Pathology, float] = {BENIGN: 0.04, MALIGNANT: 0.42}  # of the masses that are not round
MARGINS: Mapping[Pathology, Mapping[bool, Table[Margin]]] = {  # key: the shape is irregular
    BENIGN: {
        False: {Margin.CIRCUMSCRIBED: 0.93, Margin.INDISTINCT: 0.04, Margin.MICROLOBULATED: 0.03, Margin.ANGULAR: 0.0, Margin.SPICULATED: 0.0},
        True: {Margin.CIRCUMSCRIBED: 0.15, Margin.INDISTINCT: 0.45, Margin.MICROLOBULATED: 0.25, Margin.ANGULAR: 0.13, Margin.SPICULATED: 0.02},
    },
    MALIGNANT: {
        False: {Margin.CIRCUMSCRIBED: 0.15, Margin.INDISTINCT: 0.35, Margin.MICROLOBULATED: 0.35, Margin.ANGULAR: 0.15, Margin.SPICULATED: 0.0},
        True: {Margin.CIRCUMSCRIBED: 0.0, Margin.INDISTINCT: 0.18, Margin.MICROLOBULATED: 0.17, Margin.ANGULAR: 0.31, Margin.SPICULATED: 0.34},
    },
}
ECHO_PATTERNS: Mapping[Pathology, Table[EchoPattern]] = {
    BENIGN: {
        EchoPattern.ANECHOIC: 0.20,
        EchoPattern.HYPERECHOIC: 0.05,
        EchoPattern.COMPLEX: 0.05,
        EchoPattern.HYPOECHOIC: 0.50,
        EchoPattern.ISOECHOIC: 0.13,
        EchoPattern.HETEROGENEOUS: 0.07,
    },
    MALIGNANT: {
        EchoPattern.ANECHOIC: 0.0,
        EchoPattern.HYPERECHOIC: 0.01,
        EchoPattern.COMPLEX: 0.09,
        EchoPattern.HYPOECHOIC: 0.64,
        EchoPattern.ISOECHOIC: 0.03,
        EchoPattern.HETEROGENEOUS: 0.23,
    },
}
CYST_POSTERIOR: Table[Posterior] = {Posterior.NONE: 0.1, Posterior.ENHANCEMENT: 0.9, Posterior.SHADOWING: 0.0, Posterior.COMBINED: 0.0}
POSTERIORS: Mapping[Pathology, Table[Posterior]] = {  # of masses that are not anechoic
    BENIGN: {Posterior.NONE: 0.66, Posterior.ENHANCEMENT: 0.26, Posterior.SHADOWING: 0.05, Posterior.COMBINED: 0.03},
    MALIGNANT: {Posterior.NONE: 0.25, Posterior.ENHANCEMENT: 0.12, Posterior.SHADOWING: 0.49, Posterior.COMBINED: 0.14},
}
CALCIFICATIONS: Mapping[Pathology, Table[Calcifications]] = {
    BENIGN: {Calcifications.NONE: 0.95, Calcifications.IN_MASS: 0.03, Calcifications.OUTSIDE: 0.02},
    MALIGNANT: {Calcifications.NONE: 0.68, Calcifications.IN_MASS: 0.27, Calcifications.OUTSIDE: 0.05},
}

# Points of suspicion, ours: most for what Stavros et al. 1995 found most predictive, spiculation; none for the benign findings.
POINTS: Mapping[StrEnum, int] = {
    Shape.ROUND: 1,
    Shape.IRREGULAR: 2,
    Margin.INDISTINCT: 2,
    Margin.MICROLOBULATED: 2,
    Margin.ANGULAR: 3,
    Margin.SPICULATED: 5,
    EchoPattern.COMPLEX: 2,
    EchoPattern.HETEROGENEOUS: 1,
    Posterior.SHADOWING: 2,
    Posterior.COMBINED: 1,
    Calcifications.IN_MASS: 2,
    Calcifications.OUTSIDE: 1,
}
NOT_PARALLEL_POINTS = 2  # of a mass that is not round
CATEGORY_FROM = ((9, Birads.FIVE), (6, Birads.FOUR_C), (3, Birads.FOUR_B), (1, Birads.FOUR_A))  # lowest points of each
BENIGN_PATTERNS = (EchoPattern.ANECHOIC, EchoPattern.HYPERECHOIC)  # without any point: a simple cyst, or Stavros' hyperechoic nodule


def points(found: Descriptors) -> int:
    """Points of suspicion, 0 to 16.

    >>> points(next(of for of, _ in joint(Pathology.BENIGN)))
    0
    """
    tilted = found.orientation is Orientation.NOT_PARALLEL and found.shape is not Shape.ROUND
    named = (found.shape, found.margin, found.echo_pattern, found.posterior, found.calcifications)
    return sum(POINTS.get(term, 0) for term in named) + NOT_PARALLEL_POINTS * tilted


def category(found: Descriptors) -> Birads:
    """BI-RADS category of a mass, by its points of suspicion: 2 or 3 without any, 4a to 5 by the thresholds of ``CATEGORY_FROM``."""
    total = points(found)
    for lowest, birads in CATEGORY_FROM:
        if total >= lowest:
            return birads
    return Birads.TWO if found.echo_pattern in BENIGN_PATTERNS else Birads.THREE


def draw_descriptors(pathology: Pathology, rng: np.random.Generator) -> Descriptors:
    """Descriptors of a benign or malignant mass, drawn from the tables of this module."""
    shape = _draw(SHAPES[pathology], rng)
    tilted = bool(rng.random() < NOT_PARALLEL[pathology]) or shape is Shape.ROUND
    echo_pattern = _draw(ECHO_PATTERNS[pathology], rng)
    return Descriptors(
        shape=shape,
        orientation=Orientation.NOT_PARALLEL if tilted else Orientation.PARALLEL,
        margin=_draw(MARGINS[pathology][shape is Shape.IRREGULAR], rng),
        echo_pattern=echo_pattern,
        posterior=_draw(_posterior(pathology, echo_pattern), rng),
        calcifications=_draw(CALCIFICATIONS[pathology], rng),
    )


def joint(pathology: Pathology) -> Iterator[tuple[Descriptors, float]]:
    """Every combination of descriptors that has a chance above 0 given the pathology, with that chance; the chances sum to 1."""
    for shape, orientation, margin, echo, posterior, calcs in product(Shape, Orientation, Margin, EchoPattern, Posterior, Calcifications):
        tilted = orientation is Orientation.NOT_PARALLEL
        chance = float(tilted) if shape is Shape.ROUND else NOT_PARALLEL[pathology] if tilted else 1 - NOT_PARALLEL[pathology]
        chance *= SHAPES[pathology][shape] * MARGINS[pathology][shape is Shape.IRREGULAR][margin] * ECHO_PATTERNS[pathology][echo]
        chance *= _posterior(pathology, echo)[posterior] * CALCIFICATIONS[pathology][calcs]
        if chance > 0:
            found = Descriptors(shape=shape, orientation=orientation, margin=margin, echo_pattern=echo, posterior=posterior, calcifications=calcs)
            yield found, chance


def category_shares(pathology: Pathology) -> dict[Birads, float]:
    """Share of each BI-RADS category among masses of a pathology, exactly, by summing ``joint``.

    >>> round(sum(category_shares(Pathology.MALIGNANT).values()), 9)
    1.0
    """
    shares: dict[Birads, float] = {}
    for found, chance in joint(pathology):
        birads = category(found)
        shares[birads] = shares.get(birads, 0.0) + chance
    return shares


def _posterior(pathology: Pathology, echo_pattern: EchoPattern) -> Table[Posterior]:
    return CYST_POSTERIOR if echo_pattern is EchoPattern.ANECHOIC else POSTERIORS[pathology]


def _draw(table: Table[T], rng: np.random.Generator) -> T:
    """One term, by its share."""
    left = float(rng.random())
    for term, share in table.items():
        left -= share
        if left < 0:
            return term
    return max(table, key=lambda term: table[term])
