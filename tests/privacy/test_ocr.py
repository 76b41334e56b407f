"""Text in frames is read as it stands there, speckle alone gives none, and the network is never asked."""

import socket

import numpy as np
import pytest

from busgen_core.errors import InputError, UnavailableError
from busgen_privacy.ocr import Piece, View, find_text, rapid, standard_engine
from busgen_privacy.pixel_text import SURE
from tests.privacy.lettering import burned_in, phantoms

PLANTED = [("DOE JANE", 6, 255), ("02.11.1961", 6, 255), ("4711023", 8, 255), ("MRN 12345", 5, 255), ("KOWALSKA", 8, 0), ("7 NOV 58", 6, 250)]


def test_planted_text_is_read_where_it_stands() -> None:
    """Of text 5 to 8 px high on 64 px phantoms at least nine characters in ten are read, in boxes that cover it."""
    frames, boxes = zip(
        *(burned_in(image, text, height=h, at=(4, 8), gray=g) for image, (text, h, g) in zip(phantoms(6, seed=11), PLANTED, strict=True)),
        strict=True,
    )
    read = wanted = 0
    for (text, _, _), box, pieces in zip(PLANTED, boxes, find_text(frames), strict=True):
        here = [piece for piece in pieces if piece.confidence >= SURE and piece.box[1] < box[3] and piece.box[3] > box[1]]
        assert min(piece.box[0] for piece in here) <= box[0] + 2
        assert max(piece.box[2] for piece in here) >= box[2] - 2
        letters = "".join(c for piece in here for c in piece.text if c.isalnum())
        read += sum(min(letters.count(c), text.count(c)) for c in set(text) if c.isalnum())
        wanted += sum(c.isalnum() for c in text)
    assert read >= 0.9 * wanted


def test_large_frames_are_read_in_both_polarities() -> None:
    """On a 512 px phantom a light and a dark line, 12 px high, are both read whole."""
    frame, _ = burned_in(phantoms(1, seed=5, size=512)[0], "MUELLER UTE", height=12, at=(20, 30))
    frame[300:340, 200:420] = 230
    frame, _ = burned_in(frame, "12.03.1948", height=12, at=(220, 312), gray=0)
    assert {piece.text for piece in find_text([frame])[0] if piece.confidence >= SURE} == {"MUELLER UTE", "12.03.1948"}


def test_speckle_alone_gives_no_text() -> None:
    """Sixteen phantoms without text, and noise, give no piece that counts as read."""
    noise = np.random.default_rng(3).integers(0, 256, (64, 64), np.uint8)
    found = find_text([*phantoms(16, seed=60), noise])
    assert [piece for pieces in found for piece in pieces if piece.confidence >= SURE and len(piece.text) > 1] == []


def test_same_frame_same_pieces() -> None:
    """Reading twice gives the same boxes, texts and confidences."""
    frame, _ = burned_in(phantoms(1, seed=2)[0], "DOE JANE", height=6, at=(4, 8))
    assert find_text([frame]) == find_text([frame, frame])[1:]


def test_engine_asks_nothing_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading the models and reading work where every connection and every look-up fails."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    frame, _ = burned_in(phantoms(1, seed=2)[0], "DOE JANE", height=6, at=(4, 8))
    assert find_text([frame], engine=rapid.Rapid(threads=1))[0]


def test_missing_model_is_an_error_and_no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its model file the engine refuses by name; it would otherwise fetch it."""
    monkeypatch.setattr(rapid, "DETECTOR", "absent.onnx")
    with pytest.raises(UnavailableError, match="without its models"):
        rapid.Rapid()


class Corner:
    """An engine that sees one piece, in the last quarter of the view."""

    name = "corner"

    def __init__(self) -> None:
        self.seen: list[tuple[tuple[int, ...], int]] = []

    def read(self, view: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> list[Piece]:
        self.seen.append((view.shape, int(view[0, 0])))
        rows, columns = view.shape
        return [Piece((columns / 2, rows / 2, columns, rows), "AB", 0.9)]


def test_boxes_come_back_in_the_frame_s_own_pixels() -> None:
    """Whatever the view's size, a box is in the frame's pixels; views are enlarged and inverted as asked, and one place is one piece."""
    engine, frame = Corner(), np.full((20, 40), 10, np.uint8)
    (pieces,) = find_text([frame], views=(View(1), View(3), View(2.5, inverted=True)), engine=engine)
    assert engine.seen == [((20, 40), 10), ((60, 120), 10), ((50, 100), 245)]
    assert pieces == [Piece((20, 10, 40, 20), "AB", 0.9)]


def test_bad_frames_are_named() -> None:
    """Colour, another type or a frame too small for a letter is refused."""
    for frame in (np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20), np.float32), np.zeros((7, 20), np.uint8)):
        with pytest.raises(InputError, match="uint8"):
            find_text([frame], engine=standard_engine())
