"""The one door of rapidocr: PP-OCRv6's detector and recogniser on ONNX Runtime, with the models that its wheel carries. CPU, offline.

rapidocr fetches what it lacks from the network, so every model is named by its file here; one that is not there is an error instead.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from busgen_core.errors import UnavailableError
from busgen_privacy.ocr.pieces import Frame, Piece

if TYPE_CHECKING:
    from rapidocr import RapidOCR

DETECTOR, RECOGNISER = "PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx"  # Apache-2.0, PaddleOCR
LONGEST_PX = 4096  # a side of a view; beyond it rapidocr shrinks the view
MULTIPLE_PX = 32  # the detector's grid; a smaller view is enlarged to it


class Rapid:
    """Reads horizontal text in Latin letters, digits, and Chinese. Deterministic for one number of threads."""

    name = "rapidocr 3 with PP-OCRv6 small"

    def __init__(self, *, threads: int | None = None) -> None:
        """Load the models: about a second.

        Args:
            threads: Of ONNX Runtime; None for OMP_NUM_THREADS, and without it all cores, as torch has it.

        Raises:
            UnavailableError: rapidocr, ONNX Runtime or a model file is not installed.
        """
        self._engine = _engine(threads or int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count() or 1)

    def read(self, view: Frame) -> list[Piece]:
        """Text in one gray view, uint8 [h, w], at the size that it has; confidence is the mean of the characters' chances."""
        from rapidocr.utils.output import RapidOCROutput

        found, pieces = self._engine(np.repeat(view[:, :, None], 3, axis=2)), []
        if not isinstance(found, RapidOCROutput) or found.boxes is None or found.txts is None or found.scores is None:
            return []
        for corners, text, confidence in zip(found.boxes, found.txts, found.scores, strict=True):
            (x0, y0), (x1, y1) = np.min(corners, axis=0), np.max(corners, axis=0)
            pieces.append(Piece((float(x0), float(y0), float(x1), float(y1)), text, float(confidence)))
        return pieces


def _engine(threads: int) -> "RapidOCR":
    spec = find_spec("rapidocr")
    if spec is None or spec.origin is None or find_spec("onnxruntime") is None:
        raise UnavailableError("no text recognition is installed; pip install rapidocr onnxruntime")
    models = [Path(spec.origin).parent / "models" / name for name in (DETECTOR, RECOGNISER)]
    if not all(model.is_file() for model in models):
        raise UnavailableError("rapidocr is installed without its models; install its wheel again")
    from rapidocr import RapidOCR

    return RapidOCR(
        params={
            "Global.log_level": "critical",  # it logs each view without text
            "Global.use_cls": False,  # no text stands on its head
            "Global.text_score": 0.0,  # how sure is sure enough is the caller's business
            "Global.max_side_len": LONGEST_PX,
            "Global.use_vertical_padding": False,
            "Det.model_path": str(models[0]),
            "Det.limit_side_len": MULTIPLE_PX,
            "Rec.model_path": str(models[1]),
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
        }
    )
