"""Text recognition in frames, offline: ``find_text`` looks at each frame in several sizes and both polarities; ``rapid`` is the engine's door."""

from busgen_privacy.ocr.find import Engine, View, find_text, standard_engine
from busgen_privacy.ocr.pieces import Box, Frame, Piece, lines

__all__ = ["Box", "Engine", "Frame", "Piece", "View", "find_text", "lines", "standard_engine"]
