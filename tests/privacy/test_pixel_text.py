"""Text in released images is counted and judged; what it says is nowhere in the findings."""

import numpy as np
import pytest

from busgen_core.errors import InputError
from busgen_privacy.ocr import Piece
from busgen_privacy.pixel_text import EXAMPLES, PixelText, Reads, look_for_text, reads
from tests.privacy.lettering import burned_in, phantoms

IDENTIFYING = (
    "DOE JANE",
    "DOE^JANE",
    "02.11.1961",
    "O2.11.l961",
    "1961-11-02",
    "4711023",
    "ID 47 11 023",
    "jane@example.org",
    "Patient: X",
    "7 NOV 1958",
)
WORDS = ("BLORVEN", "MAMA JANE", "47110", "王小明")
SCANNER = (
    "LT BREAST",
    "MAMA DIREITA",
    "MAMA.ESQUERDA",
    "HAMA DIREITA",
    "12.3 mm",
    "D1 12.3mm D2 9.8mm",
    "GE",
    "LOGIQ E9",
    "MI 0.9",
    "10H",
    "72",
    "FN",
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [*((t, Reads.IDENTIFYING) for t in IDENTIFYING), *((t, Reads.WORDS) for t in WORDS), *((t, Reads.FURNITURE) for t in SCANNER)],
)
def test_text_reads_like_what_it_is(text: str, wanted: Reads) -> None:
    """Names, numbers and dates identify, letters read for digits too; a strange word is a word; what scanners write is furniture."""
    assert reads(text) is wanted


def test_denied_word_identifies() -> None:
    """A word of the deny-list identifies even where it looks like a scanner's."""
    assert reads("LT BREAST") is Reads.FURNITURE
    assert reads("LT BREAST", deny={"breast"}) is Reads.IDENTIFYING


@pytest.fixture(scope="module")
def planted() -> PixelText:
    """Findings on eight phantoms: a name, a date in two pieces, a strange word, a scanner's words; four without text."""
    images = phantoms(8, seed=31)
    for row, text in enumerate(("DOE JANE", "02.11. 1961", "BLORVEN", "LT BREAST")):
        images[row], _ = burned_in(images[row], text, height=6, at=(2, 8))
    return look_for_text(images, seed=1)


def test_planted_text_is_counted_by_what_it_reads_like(planted: PixelText) -> None:
    """Each image counts once, by the worst in it; boxes name image and place, the worst first."""
    assert (planted.images, planted.looked, planted.identifying, planted.words, planted.furniture) == (8, 8, 2, 1, 1)
    assert [box.reads for box in planted.examples] == [Reads.IDENTIFYING, Reads.IDENTIFYING, Reads.WORDS, Reads.FURNITURE]
    assert {box.image for box in planted.examples} == {0, 1, 2, 3}
    assert all(box.box[1] < 14 and box.box[3] > 8 for box in planted.examples)


def test_findings_hold_no_word_of_the_text(planted: PixelText) -> None:
    """Neither the findings as JSON nor any sentence about them holds a part of what was read."""
    said = planted.model_dump_json() + " ".join(planted.remarks()) + planted.judged()[1]
    for part in ("DOE", "JANE", "02.11", "1961", "BLORVEN", "BREAST"):
        assert part.casefold() not in said.casefold()


def test_identifying_text_refuses_and_other_text_is_remarked(planted: PixelText) -> None:
    """The gate refuses for identifying text alone; words and furniture are remarks."""
    assert planted.judged()[0] is False
    assert len(planted.remarks()) == 3
    milder = planted.model_copy(update={"identifying": 0})
    assert milder.judged()[0] is True
    assert len(milder.remarks()) == 2


def test_images_without_text_have_no_remarks() -> None:
    """Phantoms pass without a remark, and a sample says how little it can promise of the rest."""
    found = look_for_text(phantoms(12, seed=90), seed=1, most=6)
    assert (found.looked, found.examples, found.remarks()) == (6, (), ())
    assert found.judged() == (
        True,
        "No text that reads like a name, a number or a date was found in 6 of 12 images; "
        "at most 39.3% of all hold text that is as easy to read (95 %).",
    )


class Writes:
    """An engine that reads an image's first pixel as text."""

    name = "writes"

    def read(self, view: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> list[Piece]:
        return [Piece((0, 0, 9, 9), "JANE DOE", min(int(view[0, 0]), 255 - int(view[0, 0])) / 100)]


def test_sample_is_seeded_and_bounded() -> None:
    """Same seed, same rows; another seed, others; examples stay few, and what is not surely read does not count."""
    images = [np.full((16, 16), 90, np.uint8)] * 40
    first, again, other = (look_for_text(images, seed=seed, most=EXAMPLES + 8, engine=Writes()) for seed in (1, 1, 2))
    assert first == again
    assert {box.image for box in first.examples} != {box.image for box in other.examples}
    assert (first.identifying, len(first.examples)) == (20, EXAMPLES)
    assert look_for_text([np.full((16, 16), 50, np.uint8)], seed=1, engine=Writes()).identifying == 0


def test_nothing_to_look_at_is_named() -> None:
    """No image, or none to look at, is refused."""
    for images, most in (([], 5), ([np.zeros((16, 16), np.uint8)], 0)):
        with pytest.raises(InputError):
            look_for_text(images, seed=1, most=most)
