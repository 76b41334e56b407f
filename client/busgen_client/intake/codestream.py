"""Size of a compressed frame as its own code stream states it. Decoders fold any stream of the right total into the header's rows and
columns, so a header that lies would shear the frame and move burned-in text into the scan region."""

START_J2K = b"\xff\x4f\xff\x51"  # SOC, then SIZ: ITU-T T.800 (JPEG 2000), A.4.1 and A.5.1
START_JPEG = b"\xff\xd8"  # SOI: ITU-T T.81, B.1.1.3, and T.87 (JPEG-LS)
NO_FRAME_HEADER = frozenset({0xC4, 0xC8, 0xCC})  # DHT, JPG, DAC lie among the SOF markers
SOF55 = 0xF7  # frame header of JPEG-LS, T.87 C.2.2


def stated_size(stream: bytes) -> tuple[int, int] | None:
    """Rows and columns of a JPEG, JPEG-LS or JPEG 2000 code stream; None where it states none.

    >>> stated_size(bytes.fromhex("ffd8 ffc0 000b 08 0010 0020 01 011100"))
    (16, 32)
    """
    if stream.startswith(START_J2K) and len(stream) >= 24:
        x1, y1, x0, y0 = (int.from_bytes(stream[at : at + 4], "big") for at in (8, 12, 16, 20))
        return y1 - y0, x1 - x0
    if not stream.startswith(START_JPEG):
        return None
    at = 2
    while at + 9 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # fill byte, T.81 B.1.1.2
            at += 1
            continue
        if marker == SOF55 or (0xC0 <= marker <= 0xCF and marker not in NO_FRAME_HEADER):
            return int.from_bytes(stream[at + 5 : at + 7], "big"), int.from_bytes(stream[at + 7 : at + 9], "big")
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None
