"""Text in the pixels of images that leave: is there any, and does it read like a name, a number or a date?

What was read is judged and forgotten: it may be a patient's name. Findings are counts and boxes, so that they may travel, and whoever
wants the words looks at the released image itself. All of it follows from released images alone: looking costs no budget, and a refusal
for it tells nothing that the images do not.

An auditor, no guard: speckle hides small text from every engine, so *none was found* is no proof that there is none (docs/adr/0022).
"""

import re
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from busgen_core.errors import InputError, UnavailableError
from busgen_privacy.ocr import Engine, Piece, find_text, lines, standard_engine
from busgen_privacy.text import scrub
from busgen_privacy.vocabulary import fold, read_words

Frame = NDArray[np.uint8]
Progress = Callable[[int, int], None]
MOST_LOOKED = 200  # images looked at; none with text among 200 means that at most 1.5 % of all have some (95 %)
EXAMPLES = 12
SHORTEST = 2  # letters and digits of a piece that counts as read
SURE = 0.6  # confidence from which a piece counts as read; below it speckle reads like letters
ALIKE = 0.75  # likeness (difflib) from which a word counts as a scanner's read wrongly: a letter in four
MEASURE = re.compile(r"\d{1,3}([.,]\d{1,2})?\s?(cm/s|m/s|cm|mm|mhz|khz|hz|db|fps|kpa|ml|%)(?!\w)", re.IGNORECASE)
DOTTED = re.compile(r"(?<=[^\W\d_])\.(?=[^\W\d_])")  # "MAMA.DIR" is two words and no link
NUMBER = re.compile(r"\d{4}")  # longer than any scale or setting; six digits, even apart, count as identifying (``scrub``)
LOOK_ALIKE = str.maketrans("OoQDIl|!ZzSsBG", "00001111225586")  # letters that engines read for digits
VOWELS = frozenset("aeiouy")


class Reads(StrEnum):
    """What a piece of text reads like."""

    IDENTIFYING = "identifying"  # a name, a number or a date; or nobody can tell
    WORDS = "words"  # a word or a number that no scanner writes
    FURNITURE = "furniture"  # what a scanner writes on every image: sides, units, settings, scales


def reads(text: str, *, deny: Collection[str] = ()) -> Reads:
    """Judge a piece of text, by ``text.scrub`` (Presidio's patterns) and the words that scanners write.

    Args:
        text: What was read.
        deny: Words that identify for sure, as ``deidentify.deny_words`` gives them.

    Guarantees: text that ``scrub`` would shorten is *identifying*, and so are two words side by side that no scanner writes, as first and
    last name stand.

    >>> [reads(text).value for text in ("DOE JANE", "02.11.1961", "O2.l1.1961", "Klinikum", "LT BREAST 10 cm", "MI 0.9")]
    ['identifying', 'identifying', 'identifying', 'words', 'furniture', 'furniture']
    """
    plain = " ".join(MEASURE.sub(" ", text if "@" in text else DOTTED.sub(" ", text)).split())
    if any(scrub(version, deny=deny) != version for version in {plain, _with_digits(plain)} if version):
        return Reads.IDENTIFYING
    strange = [_strange(word) for word in re.findall(r"[^\W\d_]+", fold(plain).casefold())]
    if any(first and second for first, second in pairwise(strange)):
        return Reads.IDENTIFYING
    return Reads.WORDS if any(strange) or NUMBER.search(plain) else Reads.FURNITURE


class TextBox(BaseModel):
    """Where text stands; never what it says.

    Attributes:
        image: Row in the release.
        box: x0, y0, x1, y1 in pixels of that image.
        reads: What it reads like.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    image: int = Field(ge=0)
    box: tuple[float, float, float, float]
    reads: Reads


class PixelText(BaseModel):
    """Text in a sample of a release's images. Holds no word of it, so it may travel.

    Attributes:
        images: Images of the release.
        looked: Images that were looked at: all, or a seeded sample.
        identifying: Of these, images with text that reads like a name, a number or a date.
        words: Images with other words or longer numbers than scanners write.
        furniture: Images with nothing but what scanners write.
        examples: Boxes, identifying ones first.
        engine: What read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    images: int = Field(ge=1)
    looked: int = Field(ge=1)
    identifying: int = Field(ge=0)
    words: int = Field(ge=0)
    furniture: int = Field(ge=0)
    examples: tuple[TextBox, ...] = Field(max_length=EXAMPLES)
    engine: str

    def judged(self) -> tuple[bool, str]:
        """For the gate: False, and so *refuse*, if identifying text was found; and the reason in words."""
        if self.identifying:
            return False, (
                f"{self.identifying} of {self.looked} images looked at hold text that reads like a name, a number or a date. "
                "Look at them: if it is one, the images that were learnt from still hold it too."
            )
        return True, f"No text that reads like a name, a number or a date was found in {self.looked} of {self.images} images; {self._unseen()}."

    def remarks(self) -> tuple[str, ...]:
        """What someone should look at, in words; nothing if no text was found."""
        good, why = self.judged()
        found = (
            (self.words, "hold words or numbers that no scanner writes: look whether they identify someone."),
            (self.furniture, "hold what scanners write (sides, units, scales): the generator has learnt it."),
        )
        said = tuple(f"{count} of {self.looked} images looked at {rest}" for count, rest in found if count)
        return said if good else (why, *said)

    def _unseen(self) -> str:
        if self.looked == self.images:
            return "small text in speckle can be missed"
        return f"at most {1 - 0.05 ** (1 / self.looked):.1%} of all hold text that is as easy to read (95 %)"


def look_for_text(
    images: Sequence[Frame],
    *,
    deny: Collection[str] = (),
    seed: int,
    most: int = MOST_LOOKED,
    engine: Engine | None = None,
    progress: Progress = lambda _done, _of: None,
) -> PixelText:
    """Look for text in images that leave, in all of them or in a seeded sample.

    Args:
        images: uint8 [h, w] each, as they are released: of a size of their own, if they have one.
        deny: Words that identify for sure.
        seed: Of the sample.
        most: Images to look at.
        engine: None for the standard one.
        progress: Called with (images done, of).

    Guarantees: nothing that was read is in what is returned, in an error or in a log.

    Raises:
        InputError: no image, or not gray frames.
        UnavailableError: no engine is installed.
    """
    if not len(images) or most < 1:
        raise InputError("text is looked for in at least one image")
    rows = np.sort(np.random.default_rng(seed).permutation(len(images))[:most]).tolist()
    reader = engine or standard_engine()
    found = find_text([images[row] for row in rows], engine=reader, progress=progress)
    boxes = {row: judged for row, pieces in zip(rows, found, strict=True) if (judged := _judged(row, pieces, deny))}
    worst = [min((box.reads for box in each), key=list(Reads).index) for each in boxes.values()]
    examples = sorted((box for each in boxes.values() for box in each), key=lambda box: list(Reads).index(box.reads))
    return PixelText(
        images=len(images),
        looked=len(rows),
        identifying=worst.count(Reads.IDENTIFYING),
        words=worst.count(Reads.WORDS),
        furniture=worst.count(Reads.FURNITURE),
        examples=tuple(examples[:EXAMPLES]),
        engine=reader.name,
    )


def text_or_why(
    images: Sequence[Frame], *, seed: int, most: int = MOST_LOOKED, progress: Progress = lambda _done, _of: None
) -> tuple[PixelText | None, tuple[str, ...]]:
    """``look_for_text``, or where no engine is installed None and the sentence for a list of what was not run."""
    try:
        return look_for_text(images, seed=seed, most=most, progress=progress), ()
    except UnavailableError as error:
        return None, (f"Text in the pixels: {error}.",)


def _judged(row: int, pieces: Sequence[Piece], deny: Collection[str]) -> list[TextBox]:
    """Each line of pieces that were surely read, and what it reads like."""
    sure = [piece for piece in pieces if piece.confidence >= SURE and sum(c.isalnum() for c in piece.text) >= SHORTEST]
    return [TextBox(image=row, box=line.box, reads=reads(line.text, deny=deny)) for line in lines(sure)]


def _with_digits(text: str) -> str:
    """The text with letters that look like digits replaced, in words that are digits by half."""
    return " ".join(word.translate(LOOK_ALIKE) if _numeric(word) else word for word in text.split())


def _numeric(word: str) -> bool:
    return 2 * sum(c.isdigit() for c in word) >= sum(c.isalnum() for c in word) > 0


@lru_cache(maxsize=4096)
def _strange(word: str) -> bool:
    """Whether a word could be a name: three letters or more, one of them a vowel, and neither a scanner's word nor like one or part of one;
    or two letters or more of another script than Latin."""
    if not word.isascii():
        return len(word) >= 2
    known = _scanner_words()
    if len(word) < 3 or word in known or not VOWELS & set(word):
        return False
    return len(word) == 3 or not (any(word in other for other in known) or get_close_matches(word, known, n=1, cutoff=ALIKE))


@lru_cache(maxsize=1)
def _scanner_words() -> frozenset[str]:
    return frozenset[str]().union(*map(read_words, ("breast", "device", "scanner")))
