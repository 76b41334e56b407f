"""Compressed frames are decoded in a process of their own: what a decoder does to untrusted bytes, it does not do to the node.

GDCM ends the process that calls it on some damaged streams, and a stream can be made to take minutes or gigabytes. The child has no more than
``MEMORY``, and the time that it is given for a frame; it writes no file and no core image, says nothing, and ends with its parent. Only bytes
come back, exactly as many as the header promised: nothing of a child that was taken over is parsed or unpickled.

The parent's side is ``decoded``; ``python -m busgen_client.intake.decoder`` is the child's.
"""

import atexit
import io
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import iter_pixels

MORE_SECONDS = 20.0  # for the child to start, on a loaded machine
MEMORY = 2**30  # bytes over what the child has after loading; 16 million RGB pixels, twice, are a tenth
HEAD = struct.Struct(">dQ")  # of a question: seconds, and bytes that follow
ENDING_SECONDS = 0.5  # for a child whose line is closed
NOT_ITS_DOING = (-signal.SIGALRM, -signal.SIGKILL)  # its time was over; the kernel wanted its memory
DESCRIBE = ("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit")


class DecoderError(Exception):
    """The child ended, refused, or answered something else than a frame. Its text is ours, never the decoder's."""


class DecoderTimeError(DecoderError):
    """The child had not the time or was not let live: the machine's doing or the frame's, nobody can tell. Another time it may go well."""


class Decoder:
    """A child process, started at first use and again after each end. One frame at a time; threads wait for each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None

    def decoded(self, header: Dataset, stream: bytes, *, seconds: float) -> NDArray[np.integer]:
        """One frame: uint8 or uint16 [rows, columns], or [rows, columns, 3] as RGB.

        Args:
            header: Describes the frame, as ``decode.check_described`` takes it.
            stream: One compressed frame.
            seconds: Wall time that it may take, above 0.

        Raises:
            DecoderTimeError: not within ``seconds``, or the child did not start, or something else than the frame ended it.
            DecoderError: the frame cannot be decoded, or not within the limits.
        """
        shape = (header.Rows, header.Columns, *([header.SamplesPerPixel] if header.SamplesPerPixel > 1 else []))
        kind = np.dtype(np.uint8 if header.BitsAllocated == 8 else np.uint16)
        with self._lock:
            try:
                answer = self._asked(_question(header, stream), seconds, int(np.prod(shape)) * kind.itemsize)
            except BaseException as error:  # an interrupted line is out of step
                ended = self._stop(ENDING_SECONDS)
                if isinstance(error, OSError) or (isinstance(error, DecoderError) and ended in NOT_ITS_DOING):
                    raise DecoderTimeError("the decoder did not keep to its limits of time") from None
                if isinstance(error, DecoderError):
                    raise DecoderError("the decoder ended, or did not keep to its limits") from None
                raise
        if not answer:
            raise DecoderError("the frame does not decode")
        return np.frombuffer(answer, kind).reshape(shape)

    def _asked(self, question: bytes, seconds: float, size: int) -> bytearray:
        line = self._line or self._start()
        line.settimeout(seconds + 1)  # beyond the child's own alarm
        line.sendall(HEAD.pack(seconds, len(question)) + question)
        if (told := int.from_bytes(_exactly(line, 8), "big")) not in (0, size):
            raise DecoderError("the answer is not of the promised size")
        return _exactly(line, told)

    def _start(self) -> socket.socket:
        self._line, theirs = socket.socketpair()
        command = [sys.executable, "-m", "busgen_client.intake.decoder"]
        with theirs:
            self._process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._line.settimeout(MORE_SECONDS)
        try:
            _exactly(self._line, 1)
        except DecoderError:
            raise ConnectionError("the decoder does not start") from None
        return self._line

    def _stop(self, patience: float = 0.0) -> int | None:
        """End the child, which may take ``patience`` seconds to end by itself; how it did, as ``Popen.returncode``, or None if it was killed."""
        ended = None
        if self._line is not None:
            self._line.close()
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                ended = self._process.wait(patience)
            self._process.kill()
            self._process.wait()
        self._line = self._process = None
        return ended

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._stop()


def _question(header: Dataset, stream: bytes) -> bytes:
    """A file with this frame alone, and of the header only what decoding needs."""
    asked, out = Dataset(), io.BytesIO()
    for keyword in DESCRIBE:
        if keyword in header:
            asked.add(header[keyword])
    asked.PixelRepresentation, asked.file_meta, asked.PixelData = 0, header.file_meta, encapsulate([stream])
    asked["PixelData"].VR = "OB"
    asked.save_as(out, enforce_file_format=False)
    return out.getvalue()


def _exactly(line: socket.socket, size: int) -> bytearray:
    """``size`` bytes of a line.

    Raises:
        DecoderError: it ended before.
        OSError: it broke, or was silent for too long.
    """
    content, at = bytearray(size), 0
    with memoryview(content) as view:
        while at < size:
            if not (count := line.recv_into(view[at:])):
                raise DecoderError("the decoder ended")
            at += count
    return content


_DECODER = Decoder()
atexit.register(_DECODER.close)
decoded = _DECODER.decoded


def _confined() -> None:
    """Limits that only the child has."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core image would hold pixels
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    _, allowed = resource.getrlimit(resource.RLIMIT_AS)
    most = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _serve(line: socket.socket) -> None:
    """Answer until the parent is gone. The alarm is not handled: it ends the process, inside a decoder too."""
    line.sendall(b"+")
    while True:
        seconds, size = HEAD.unpack(_exactly(line, HEAD.size))
        question = _exactly(line, size)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            answer = np.ascontiguousarray(next(iter_pixels(dcmread(io.BytesIO(question), force=True)))).tobytes()
        except Exception:  # decoders raise whatever they like
            answer = b""
        signal.setitimer(signal.ITIMER_REAL, 0)
        line.sendall(len(answer).to_bytes(8, "big") + answer)


def main() -> None:
    """The child: answers on its standard input, which is a socket."""
    from PIL import Image
    from pydicom.pixels.decoders import gdcm  # noqa: F401  (loaded before memory is limited)

    Image.init()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    os.chdir("/")
    _confined()
    with socket.socket(fileno=os.dup(0)) as line, suppress(OSError, DecoderError):
        _serve(line)


if __name__ == "__main__":
    main()
