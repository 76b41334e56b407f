"""Where the scan lies in a frame, by the header's Sequence of Ultrasound Regions (0018,6011)."""

from collections.abc import Sequence

from pydicom import Dataset

from busgen_client.intake.findings import Code, QuarantineError
from busgen_client.intake.frames import Rectangle

# PS3.3 C.8.5.5.1.1 (spatial format) and C.8.5.5.1.2 (data type)
FORMAT_2D, FORMAT_M_MODE = 1, 2
DATA_TISSUE, DATA_COLOUR_FLOW, DATA_SPECTRAL = 1, 2, (3, 4)  # spectral: pulsed-wave and continuous-wave Doppler
SAME = 0.5  # of the smaller region: two tissue regions that share more are one, told twice


def scan_regions(header: Dataset) -> tuple[list[Rectangle], list[Rectangle]]:
    """B-mode tissue regions, and the regions that are something else; of a header that passed ``check_described``.

    Raises:
        QuarantineError: burned-in-text or no-scan-region without a tissue region; scan-region-invalid; colour for a colour flow region;
            other-mode for M-mode or spectral Doppler in the frame; split-screen for two scans side by side.
    """
    keep: list[Rectangle] = []
    hide: list[Rectangle] = []
    for item in header.get("SequenceOfUltrasoundRegions", ()):
        _check_mode(item)
        (keep if is_tissue(item) else hide).append(_rectangle(item, rows=header.Rows, columns=header.Columns))
    if not keep:
        raise QuarantineError(Code.BURNED_IN_TEXT if header.get("BurnedInAnnotation") == "YES" else Code.NO_SCAN_REGION)
    if _apart(keep):
        raise QuarantineError(Code.SPLIT_SCREEN)
    return keep, hide


def is_tissue(region: Dataset) -> bool:
    """Whether an item of the Sequence of Ultrasound Regions is B-mode tissue."""
    return bool(region.get("RegionSpatialFormat") == FORMAT_2D and region.get("RegionDataType") == DATA_TISSUE)


def _check_mode(region: Dataset) -> None:
    if region.get("RegionDataType") == DATA_COLOUR_FLOW:
        raise QuarantineError(Code.COLOUR)
    if region.get("RegionDataType") in DATA_SPECTRAL or region.get("RegionSpatialFormat") == FORMAT_M_MODE:
        raise QuarantineError(Code.OTHER_MODE)


def _apart(parts: Sequence[Rectangle]) -> bool:
    """Whether any two regions are two scans, not one told twice."""
    return any(_shared(one, other) <= SAME for n, one in enumerate(parts) for other in parts[:n])


def _shared(one: Rectangle, other: Rectangle) -> float:
    """Area in common over the smaller of the two areas."""
    wide, high = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(wide, 0) * max(high, 0) / min((r.x1 - r.x0) * (r.y1 - r.y0) for r in (one, other))


def _rectangle(item: Dataset, *, rows: int, columns: int) -> Rectangle:
    """The standard's corners are pixels inside the region; some scanners give the edge after, which is accepted at the frame's end."""
    corners = [item.get(f"RegionLocation{name}") for name in ("MinX0", "MinY0", "MaxX1", "MaxY1")]
    if not all(isinstance(corner, int) for corner in corners):
        raise QuarantineError(Code.SCAN_REGION_INVALID)
    x0, y0, x1, y1 = corners
    if not (0 <= x0 < x1 <= columns and 0 <= y0 < y1 <= rows):
        raise QuarantineError(Code.SCAN_REGION_INVALID)
    return Rectangle(x0, y0, min(x1 + 1, columns), min(y1 + 1, rows))
