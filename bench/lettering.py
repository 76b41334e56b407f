"""Scan frames with text burned in as scanners and sonographers leave it, and where every letter of it stands. No person is behind any of it.

Names, numbers and dates are those of ``header_texts``. Five looks stand for five vendors; none of the fonts is a vendor's own, each is a free
one drawn alike. Which of them are installed is printed by ``fonts``; where one is not, DejaVu (in matplotlib's wheel) takes its place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from bench.header_texts import Text, texts
from bench.rows import SHARED
from busgen_core.labels import Pathology
from busgen_core.phantom import simulate

Frame = NDArray[np.uint8]
OWN = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
DEBIAN = Path("/usr/share/fonts/truetype")
SIZES = (256, 320, 384)  # px of a phantom's scan
HEIGHTS = tuple(range(6, 25))  # px of a capital
LEAST_CONTRAST = 60  # gray levels between text and the mean of what it stands on; overlays of scanners have more
FAINT = (25, LEAST_CONTRAST)  # what can still be read, and no scanner writes; for rows of its own
INK = 0.4  # coverage from which a pixel counts as ink
WAYS = ("over tissue", "over tissue with a shadow", "light on dark", "dark on light")
REAL = ("cairo/busi_benign_0020", "cairo/busi_benign_0051", "cairo/busi_benign_0111", "cairo/busi_benign_0272", "cairo/busi_benign_0385")
REAL_PLAIN = (*REAL, "rio/busbra_0165-r", *(f"warsaw/breast_case{n:03d}" for n in (9, 27, 34, 45, 50, 56)))  # looked at: no text, no caliper


@dataclass(frozen=True, slots=True)
class Look:
    """How one vendor writes."""

    vendor: str
    fonts: tuple[Path, ...]  # the first that is installed
    smooth: bool  # gray edges, or one bit a pixel
    grays: tuple[int, ...]


LOOKS = (
    Look("GE", (DEBIAN / "liberation/LiberationSans-Regular.ttf", OWN / "DejaVuSans.ttf"), True, (255, 235)),
    Look("Philips", (DEBIAN / "liberation/LiberationSans-Bold.ttf", OWN / "DejaVuSans-Bold.ttf"), True, (255, 240)),
    Look("Siemens", (DEBIAN / "roboto/unhinted/RobotoTTF/Roboto-Regular.ttf", OWN / "DejaVuSans.ttf"), True, (230, 205)),
    Look("Canon", (DEBIAN / "open-sans/OpenSans-Regular.ttf", OWN / "DejaVuSansDisplay.ttf"), True, (255, 220)),
    Look("Hitachi", (DEBIAN / "freefont/FreeMonoBold.ttf", OWN / "DejaVuSansMono.ttf"), False, (255, 210)),
)


@dataclass(frozen=True, slots=True)
class Letter:
    """One identifying character.

    Attributes:
        ink: bool [rows, columns] at ``at``, the pixels that it is drawn with.
        at: Row and column of that window.
        line: Which of the sample's lines it belongs to.
    """

    ink: NDArray[np.bool_]
    at: tuple[int, int]
    line: int


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text: how it was written."""

    text: Text
    look: str
    way: str
    height: int
    contrast: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One scan with text in it."""

    scan: Frame
    lines: tuple[Line, ...]
    letters: tuple[Letter, ...]
    background: str


def fonts() -> list[str]:
    """Names of the fonts in use, one a vendor."""
    return [_file(look).stem for look in LOOKS]


def samples(count: int, seed: int, *, faint: bool = False) -> Iterator[Sample]:
    """``count`` scans, nine in ten phantoms, one a real image where they are at hand, each with one to three lines, ``faint`` ones over tissue."""
    rng, written = np.random.default_rng(seed), texts(4 * count + 8, seed)
    for index in range(count):
        scan, background = _background(rng, index, seed)
        sample = Sample(scan, (), (), background)
        for _ in range(int(rng.integers(1, 4))):
            sample = _with_line(sample, next(written), rng, faint=faint)
        if sample.lines:
            yield sample


def plain_scans(count: int, seed: int) -> Iterator[tuple[str, Frame]]:
    """Scans without any text: phantoms, and real images that a person looked at."""
    rng = np.random.default_rng([seed, 1])
    for index in range(count):
        yield "phantom", _phantom(rng, seed + 100_000 + index)
    for name in REAL_PLAIN:
        if (file := SHARED / "full" / f"{name}.png").is_file():
            yield "real image", np.asarray(Image.open(file).convert("L"))


def _background(rng: np.random.Generator, index: int, seed: int) -> tuple[Frame, str]:
    file = SHARED / "full" / f"{REAL_PLAIN[int(rng.integers(len(REAL_PLAIN)))]}.png"
    if index % 10 == 9 and file.is_file():
        gray = np.asarray(Image.open(file).convert("L"))
        return np.ascontiguousarray(gray[:, ::-1] if rng.random() < 0.5 else gray), "real image"
    return _phantom(rng, seed + index), "phantom"


def _phantom(rng: np.random.Generator, seed: int) -> Frame:
    return simulate(list(Pathology)[int(rng.integers(3))], size=int(rng.choice(SIZES)), seed=seed).image


def _with_line(sample: Sample, text: Text, rng: np.random.Generator, *, faint: bool) -> Sample:
    """The sample with one line more, or as it was where the line does not fit or could not be read."""
    look, way, height = LOOKS[int(rng.integers(len(LOOKS)))], WAYS[int(rng.integers(len(WAYS)))], int(rng.choice(HEIGHTS))
    font, words = _font(look, height), text.identifier
    left, top, right, bottom = (round(edge) for edge in font.getbbox(words))
    wide, high = right - left + 6, bottom - top + 6
    rows, columns = sample.scan.shape
    if wide >= columns or high >= rows:
        return sample
    for _ in range(20):
        y, x = int(rng.integers(rows - high)), int(rng.integers(columns - wide))
        if not any(_overlap((y, x, high, wide), letter) for letter in sample.letters):
            break
    else:
        return sample
    gray = int(rng.choice(look.grays))
    scan, paper = sample.scan.copy(), sample.scan[y : y + high, x : x + wide]
    if faint:
        way, gray = WAYS[0], _faint(float(paper.mean()), rng)
    if way in ("light on dark", "dark on light"):
        box, gray = (int(rng.integers(0, 25)), gray) if way == "light on dark" else (int(rng.integers(170, 240)), int(rng.integers(0, 40)))
        paper = np.full((high, wide), box, np.uint8)
    coverage = _drawn(words, font, look, (high, wide), (3 - left, 3 - top))
    contrast = abs(gray - float(paper.mean()))
    if (contrast < LEAST_CONTRAST) != faint:
        return sample
    if way == "over tissue with a shadow":
        shade = np.roll(coverage, (1, 1), axis=(0, 1))
        paper = (paper * (1 - shade)).astype(np.uint8)
    scan[y : y + high, x : x + wide] = np.round(paper * (1 - coverage) + gray * coverage).astype(np.uint8)
    index = len(sample.lines)
    letters = tuple(Letter(ink, (y + at[0], x + at[1]), index) for ink, at in _letters(words, font, look, (high, wide), (3 - left, 3 - top)))
    return Sample(scan, (*sample.lines, Line(text, look.vendor, way, height, contrast)), (*sample.letters, *letters), sample.background)


def _faint(mean: float, rng: np.random.Generator) -> int:
    """A gray that differs from ``mean`` by a contrast of ``FAINT``, lighter or darker as it fits."""
    far = float(rng.uniform(*FAINT))
    lighter = mean < FAINT[1] or (mean < 255 - FAINT[1] and rng.random() < 0.5)
    return int(mean + far if lighter else mean - far + 1)


def _letters(
    words: str, font: ImageFont.FreeTypeFont, look: Look, shape: tuple[int, int], at: tuple[int, int]
) -> Iterator[tuple[NDArray[np.bool_], tuple[int, int]]]:
    """Ink of each character but spaces, by drawing it where it stands in the line."""
    for n, letter in enumerate(words):
        if letter.isspace():
            continue
        ink = _drawn(letter, font, look, shape, (at[0] + font.getlength(words[:n]), at[1])) >= INK
        if ink.any():
            down, across = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
            window = np.s_[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
            yield ink[window], (int(down[0]), int(across[0]))


def _drawn(words: str, font: ImageFont.FreeTypeFont, look: Look, shape: tuple[int, int], at: Sequence[float]) -> NDArray[np.float64]:
    """Coverage 0 to 1, [rows, columns]."""
    picture = Image.new("L", (shape[1], shape[0]))
    pen = ImageDraw.Draw(picture)
    pen.fontmode = "L" if look.smooth else "1"
    pen.text((at[0], at[1]), words, font=font, fill=255)
    return np.asarray(picture) / 255


def _overlap(place: tuple[int, int, int, int], letter: Letter) -> bool:
    y, x, high, wide = place
    (top, left), (tall, broad) = letter.at, letter.ink.shape
    return y - 4 < top + tall and top < y + high + 4 and x - 4 < left + broad and left < x + wide + 4


def _file(look: Look) -> Path:
    return next(file for file in look.fonts if file.is_file())


@lru_cache(maxsize=256)
def _font(look: Look, height: int) -> ImageFont.FreeTypeFont:
    """The font at the size at which a capital is ``height`` px high."""
    sizes = (ImageFont.truetype(str(_file(look)), size) for size in range(height, 4 * height))
    return next(font for font in sizes if font.getbbox("H")[3] - font.getbbox("H")[1] >= height)
