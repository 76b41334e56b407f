"""The published BUSGen network: its weights, once somebody holds them, as a foundation.

The weights were not published with the paper (H. Yu et al. 2026, doi:10.1038/s41551-026-01639-1) or its code
(github.com/HaojunYu1998/BUSGen, MIT). A consortium that is given them reads them with :func:`load_official`, which runs
nothing that stands in the file, or turns them into a folder without any pickle with :func:`import_official`, and samples with
:func:`sample_official`. Layout, conventions and what was left out: docs/adr/0010-official-network.md.
"""

from busgen_core.official.folder import import_official, load_official
from busgen_core.official.labels import PUBLISHED_DEVICES, OfficialLabels
from busgen_core.official.network import OfficialSizes, OfficialUNet
from busgen_core.official.sampling import OfficialGenerator, Solver, sample_official

__all__ = [
    "PUBLISHED_DEVICES",
    "OfficialGenerator",
    "OfficialLabels",
    "OfficialSizes",
    "OfficialUNet",
    "Solver",
    "import_official",
    "load_official",
    "sample_official",
]
