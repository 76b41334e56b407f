"""Phantoms with seeded text burned in, as scanners and sonographers leave it."""

from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from busgen_core.labels import Pathology
from busgen_core.phantom import simulate_batch

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def phantoms(count: int, *, seed: int, size: int = 64) -> list[NDArray[np.uint8]]:
    labels = [list(Pathology)[i % 3] for i in range(count)]
    return [phantom.image for phantom in simulate_batch(labels, size=size, seeds=list(range(seed, seed + count)))]


def burned_in(
    image: NDArray[np.uint8], text: str, *, height: int, at: tuple[int, int], gray: int = 255
) -> tuple[NDArray[np.uint8], tuple[int, int, int, int]]:
    """The image with ``text`` in capitals ``height`` px high, its box beginning ``at`` (x, y); and that box."""
    font = next(
        font
        for size in range(height, 4 * height)
        if (font := ImageFont.truetype(str(FONTS / "DejaVuSans.ttf"), size)).getbbox("H")[3] - font.getbbox("H")[1] >= height
    )
    left, top, right, bottom = font.getbbox(text)
    picture = Image.fromarray(image.copy())
    ImageDraw.Draw(picture).text((at[0] - left, at[1] - top), text, font=font, fill=gray)
    return np.array(picture), (at[0], at[1], round(at[0] + right - left), round(at[1] + bottom - top))
