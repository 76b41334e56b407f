"""Compressed frames are decoded apart: the same frames, and a decoder that dies, hangs or grows takes no node with it."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import JPEG2000, JPEGBaseline8Bit, JPEGLosslessSV1, RLELossless

from busgen_client.intake.decoder import Decoder, DecoderError, DecoderTimeError

SOON = 20.0  # seconds, on a loaded machine

SPECKLE = np.random.default_rng(5).integers(0, 256, (96, 128), dtype=np.uint8)


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    ours = Decoder()
    yield ours
    ours.close()


def described(frame: np.ndarray, syntax: str) -> Dataset:
    header = Dataset()
    header.Rows, header.Columns, header.SamplesPerPixel = *frame.shape[:2], 3 if frame.ndim == 3 else 1
    header.BitsAllocated = header.BitsStored = 8
    header.HighBit, header.PhotometricInterpretation = 7, "RGB" if frame.ndim == 3 else "MONOCHROME2"
    if frame.ndim == 3:
        header.PlanarConfiguration = 0
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    return header


def jpeg2000(frame: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "JPEG2000", no_jp2=True, mct=0)
    return out.getvalue()


def rle(frame: np.ndarray) -> bytes:
    from pydicom.pixels.encoders import RLELosslessEncoder

    return RLELosslessEncoder.encode(
        frame.tobytes(),
        rows=frame.shape[0],
        columns=frame.shape[1],
        samples_per_pixel=1,
        bits_allocated=8,
        bits_stored=8,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
        number_of_frames=1,
    )


LOSSLESS: dict[str, tuple[str, Callable[[np.ndarray], bytes], np.ndarray]] = {
    "JPEG 2000": (JPEG2000, jpeg2000, SPECKLE),
    "JPEG 2000, colour": (JPEG2000, jpeg2000, np.dstack([SPECKLE, SPECKLE // 2, 255 - SPECKLE])),
    "RLE": (RLELossless, rle, SPECKLE),
}


@pytest.mark.parametrize(("syntax", "encode", "frame"), LOSSLESS.values(), ids=LOSSLESS)
def test_what_comes_back_is_the_frame(decoder: Decoder, syntax: str, encode: Callable[[np.ndarray], bytes], frame: np.ndarray) -> None:
    """A frame without loss comes back bit for bit, in its shape."""
    assert np.array_equal(decoder.decoded(described(frame, syntax), encode(frame), seconds=SOON), frame)


def child(decoder: Decoder) -> psutil.Process:
    assert decoder._process is not None
    return psutil.Process(decoder._process.pid)


def test_a_stream_that_ends_the_decoder_ends_nothing_else(decoder: Decoder) -> None:
    """A depth for which GDCM calls terminate costs one frame; the next is decoded, by another child."""
    good, frame = described(SPECKLE, JPEG2000), jpeg2000(SPECKLE)
    decoder.decoded(good, frame, seconds=SOON)
    first = child(decoder)
    bad = described(SPECKLE, JPEGLosslessSV1)
    bad.BitsStored, bad.HighBit = 7, 6
    with pytest.raises(DecoderError, match="limits") as caught:
        decoder.decoded(bad, lossless_jpeg(), seconds=SOON)
    assert not isinstance(caught.value, DecoderTimeError)
    assert np.array_equal(decoder.decoded(good, frame, seconds=SOON), SPECKLE)
    assert child(decoder) != first
    assert not first.is_running()


def lossless_jpeg() -> bytes:
    """A JPEG Lossless stream of 96 x 128 mid-gray pixels (ITU-T T.81, annexes B and H): every difference is 0, and 0 is one bit."""
    frame_header = bytes.fromhex("ffc3 000b 08 0060 0080 01 011100")
    table = bytes.fromhex("ffc4 0014 00 01") + bytes(15) + b"\0"
    scan = bytes.fromhex("ffda 0008 01 0100 01 0000")
    return b"\xff\xd8" + frame_header + table + scan + bytes(96 * 128 // 8) + b"\xff\xd9"


def test_lossless_jpeg_decodes_in_its_own_depth(decoder: Decoder) -> None:
    """The stream of the test above is a good one: only the depth that is said of it is wrong."""
    assert (decoder.decoded(described(SPECKLE, JPEGLosslessSV1), lossless_jpeg(), seconds=SOON) == 128).all()


def test_a_child_that_takes_too_long_ends_by_itself() -> None:
    """The alarm ends it inside the decoder, and a frame that needs less is decoded afterwards."""
    big = np.random.default_rng(1).integers(0, 256, (2048, 2048), dtype=np.uint8)
    quick = Decoder()
    try:
        began = time.monotonic()
        with pytest.raises(DecoderTimeError):
            quick.decoded(described(big, JPEG2000), jpeg2000(big), seconds=0.15)
        assert time.monotonic() - began < 15
        assert np.array_equal(quick.decoded(described(SPECKLE, JPEG2000), jpeg2000(SPECKLE), seconds=SOON), SPECKLE)
    finally:
        quick.close()


def test_a_child_that_stands_still_is_ended() -> None:
    """Stopped, so that no alarm reaches it: the parent waits a second longer than the child may take, and ends it."""
    decoder = Decoder()
    try:
        decoder.decoded(described(SPECKLE, JPEG2000), jpeg2000(SPECKLE), seconds=SOON)
        still = child(decoder)
        still.send_signal(signal.SIGSTOP)
        with pytest.raises(DecoderTimeError):
            decoder.decoded(described(SPECKLE, JPEG2000), jpeg2000(SPECKLE), seconds=0.5)
        assert not still.is_running()
    finally:
        decoder.close()


def test_the_size_is_the_header_s_or_nothing_comes_back(decoder: Decoder) -> None:
    """A stream of other rows and columns than the header says, but of the same total, is refused too where its shape is told by the decoder."""
    for shape in ((96, 127), (100, 128)):
        with pytest.raises(DecoderError, match=r"does not decode|limits"):
            decoder.decoded(described(np.zeros(shape, np.uint8), JPEG2000), jpeg2000(SPECKLE), seconds=SOON)


def test_the_child_may_not_write_grow_or_leave_a_core_image(decoder: Decoder) -> None:
    """Its limits, as the kernel has them."""
    decoder.decoded(described(SPECKLE, JPEG2000), jpeg2000(SPECKLE), seconds=SOON)
    limits = child(decoder)
    assert limits.rlimit(psutil.RLIMIT_CORE) == limits.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
    most, _ = limits.rlimit(psutil.RLIMIT_AS)
    assert limits.memory_info().vms < most < limits.memory_info().vms + 2**30 + 2**26


def test_the_child_ends_with_its_parent() -> None:
    """A node that is killed leaves no decoder behind."""
    script = (
        "import os, time, numpy as np; from tests.client import test_intake_decoder as t; d = t.Decoder(); "
        "d.decoded(t.described(t.SPECKLE, t.JPEG2000), t.jpeg2000(t.SPECKLE), seconds=20); print(d._process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2], env=dict(os.environ))
    assert parent.stdout is not None
    with parent.stdout:
        left = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    assert left.wait(timeout=20) is None


def test_damaged_streams_cost_their_own_frame_only(decoder: Decoder) -> None:
    """Sixty damaged streams of three kinds: each is a frame of the right shape or our own error."""
    rng, lossy = np.random.default_rng(8), io.BytesIO()
    Image.fromarray(SPECKLE).save(lossy, "JPEG")
    for number in range(60):
        syntax, stream = ((JPEG2000, jpeg2000(SPECKLE)), (JPEGBaseline8Bit, lossy.getvalue()), (RLELossless, rle(SPECKLE)))[number % 3]
        damaged = bytearray(stream)
        for at in rng.integers(0, len(damaged), 6):
            damaged[at] = rng.integers(256)
        with suppress(DecoderError):
            assert decoder.decoded(described(SPECKLE, syntax), bytes(damaged), seconds=SOON).shape == SPECKLE.shape
