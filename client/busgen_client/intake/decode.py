"""From an allow-listed header to frames. pydicom decodes, compressed frames in a process of their own (``decoder``); which decoders exist is
the installation's matter.

Guarantees:
    - Values of at most 8 bits come as they are stored. Wider ones, a palette's too, are scaled so that the brightest pixel of an object's chosen
      frames is 255: scanners fill 16 bits as they like, and a window (PS3.3 C.11.2) says what a person wished to see, not what is there.
    - One scale for all frames of an object, a function of its pixels alone.
    - What still spans too few levels for text to be seen waits: ``frames.check_scan``.
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import RLELossless

from busgen_client.intake.codestream import stated_size
from busgen_client.intake.decoder import DecoderTimeError, decoded
from busgen_client.intake.findings import Code, QuarantineError
from busgen_client.intake.frames import MAX_PIXELS
from busgen_client.intake.header import quietly

FRAMES = 8  # at most so many of a clip; neighbours look alike
SECONDS = 4.5  # of wall time to decode the frames of one object; eight of a million pixels each take half a second
MOST_FRAMES = 10_000  # a header that states more is not believed
SAMPLES = {"MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1, "RGB": 3, "YBR_FULL": 3, "YBR_FULL_422": 3, "YBR_RCT": 3, "YBR_ICT": 3}


def chosen_frames(count: int) -> list[int]:
    """At most ``FRAMES`` indices, evenly spread, the first among them.

    >>> chosen_frames(3), chosen_frames(30)
    ([0, 1, 2], [0, 4, 8, 12, 16, 20, 24, 28])
    """
    return list(range(0, count, max(1, -(-count // FRAMES))))


def frames(header: Dataset) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Chosen frames with their index: uint8 [rows, columns], or [rows, columns, 3] as RGB.

    Raises:
        QuarantineError: dicom-invalid, file-too-large, pixels-lie, pixels-slow or pixels-undecodable.
    """
    count = check_described(header)
    wanted = chosen_frames(count)
    with quietly():
        try:
            stored = [_values(_checked(frame, header), header) for frame in _decoded(header, wanted, count)]
            brightest = max(int(values.max()) for values in stored)
            ready = [_to_uint8(values, header, brightest=brightest) for values in stored]
        except QuarantineError:
            raise
        except DecoderTimeError:
            raise QuarantineError(Code.PIXELS_SLOW) from None
        except Exception:  # plugins raise whatever they like, or are not there; the object waits either way
            raise QuarantineError(Code.PIXELS_UNDECODABLE) from None
    yield from zip(wanted, ready, strict=True)


def check_described(header: Dataset) -> int:
    """Number of frames, if the header describes a frame that we take and has pixel data of just that size.

    Raises:
        QuarantineError: dicom-invalid, file-too-large, pixels-lie or pixels-undecodable.
    """
    rows, columns, samples, bits = (header.get(name) for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated"))
    kind, count = header.get("PhotometricInterpretation"), header.get("NumberOfFrames") or 1
    if not all(isinstance(value, int) and value > 0 for value in (rows, columns, samples, bits, count)) or "PixelData" not in header:
        raise QuarantineError(Code.DICOM_INVALID)
    if rows * columns > MAX_PIXELS or count > MOST_FRAMES:
        raise QuarantineError(Code.FILE_TOO_LARGE)
    if SAMPLES.get(kind) != samples or bits not in (8, 16) or header.get("PixelRepresentation", 0) != 0:
        raise QuarantineError(Code.PIXELS_UNDECODABLE)
    stored, compressed = header.get("BitsStored"), header.file_meta.TransferSyntaxUID.is_compressed
    if not isinstance(stored, int) or not 0 < stored <= bits or (compressed and stored != bits):  # GDCM ends the process at the last
        raise QuarantineError(Code.PIXELS_UNDECODABLE)
    if not compressed:
        halves = 4 if kind == "YBR_FULL_422" else 2 * samples  # two pixels share their chroma: two samples a pixel
        expected = rows * columns * count * (bits // 8) * halves // 2
        if len(header.PixelData) not in (expected, expected + expected % 2):
            raise QuarantineError(Code.PIXELS_LIE)
    return int(count)


def _decoded(header: Dataset, wanted: Sequence[int], count: int) -> Iterator[NDArray[np.integer]]:
    """Frames as they are stored. Raw ones have just the size that the header states; compressed ones are decoded apart."""
    syntax = header.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        yield from (np.asarray(frame) for frame in iter_pixels(header, indices=list(wanted)))
        return
    end = time.monotonic() + SECONDS
    for index in wanted:
        stream = get_frame(header.PixelData, index, number_of_frames=count)
        if syntax != RLELossless and stated_size(stream) != (header.Rows, header.Columns):  # RLE, like raw pixels, states none
            raise QuarantineError(Code.PIXELS_LIE)
        if (left := end - time.monotonic()) <= 0:
            raise QuarantineError(Code.PIXELS_SLOW)
        yield decoded(header, stream, seconds=left)


def _checked(frame: NDArray[np.integer], header: Dataset) -> NDArray[np.integer]:
    if frame.shape[:2] != (header.Rows, header.Columns):
        raise QuarantineError(Code.PIXELS_LIE)
    return frame


def _values(frame: NDArray[np.integer], header: Dataset) -> NDArray[np.integer]:
    """The bits that are stored; of a palette, its colours. uint8 where they have at most 8 bits, else uint16."""
    if header.PhotometricInterpretation == "PALETTE COLOR":
        return np.asarray(apply_color_lut(frame, header))
    if frame.dtype == np.uint8:
        return frame
    bits = int(header.BitsStored)
    return (frame & ((1 << bits) - 1)).astype(np.uint8 if bits <= 8 else np.uint16)


def _to_uint8(values: NDArray[np.integer], header: Dataset, *, brightest: int) -> NDArray[np.uint8]:
    """8-bit gray or RGB, black as 0; ``brightest`` is the largest value of the object."""
    if values.dtype != np.uint8:
        values = values.astype(np.uint32) * 255 // max(1, brightest)
    gray = values.astype(np.uint8)
    return 255 - gray if header.PhotometricInterpretation == "MONOCHROME1" else gray
