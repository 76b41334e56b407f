"""What a source says, before it is put together with what others say."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from busgen_client.intake.findings import Code
from busgen_client.intake.frames import Box
from busgen_client.intake.mapping import Side, Weight
from busgen_core.labels import Pathology


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """One row, or one finding; empty where it says nothing.

    Attributes:
        pathology: Class of the histology.
        birads: BI-RADS category 0 to 6, 4a to 4c.
        side: L or R, if it is about one breast only.
        box: Lesion box in pixels of the whole frame.
        mask: Folder of the table, and the mask that it names.
        device: Scanner's model, as written.
        weight: ``stated`` labels; a BI-RADS category that is ``mentioned`` does not stand in for a histology; the ``doubted`` only contradicts.
    """

    pathology: Pathology | None = None
    birads: str = ""
    side: Side = ""
    box: Box | None = None
    mask: tuple[Path, str] | None = None
    device: str = ""
    weight: Weight = "stated"


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """Something said of something.

    Attributes:
        kind: What it is said of.
        key: SOP Instance UID, Study Instance UID or Accession Number.
        said: What, or why it cannot be used.
    """

    kind: Literal["object", "study", "accession"]
    key: str = field(repr=False)
    said: Said | Code
