"""A physics-based breast ultrasound phantom: tissue, a mass by its BI-RADS descriptors, and the scanner that looks at them.

``simulate`` gives one frame, ``simulate_batch`` many. numpy and scipy alone. No image enters it and no frame shows a person. What it leaves
out, and what its numbers were chosen by: docs/adr/0009-phantom.md.
"""

from busgen_core.phantom.descriptors import (
    Calcifications,
    Descriptors,
    EchoPattern,
    Margin,
    Orientation,
    Posterior,
    Shape,
    category,
    category_shares,
)
from busgen_core.phantom.scanners import SCANNERS, Scanner
from busgen_core.phantom.simulate import Phantom, simulate, simulate_batch

__all__ = [
    "SCANNERS",
    "Calcifications",
    "Descriptors",
    "EchoPattern",
    "Margin",
    "Orientation",
    "Phantom",
    "Posterior",
    "Scanner",
    "Shape",
    "category",
    "category_shares",
    "simulate",
    "simulate_batch",
]
