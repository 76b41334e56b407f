"""Pixels inside the scan region: text and furniture found and filled, other modes set aside."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from busgen_client.intake import masking
from busgen_client.intake.decode import frames
from busgen_client.intake.dicom import clean_scans
from busgen_client.intake.findings import Code, QuarantineError
from busgen_client.intake.frames import SMALLEST_SIDE, Gray, Rectangle, chroma
from busgen_client.intake.furniture import filled, overlays
from busgen_client.intake.header import read_clean
from busgen_client.intake.masking import clean, covered, find, sharp_windows
from busgen_client.intake.modes import check_modes
from busgen_client.intake.regions import scan_regions
from busgen_privacy.deidentify import deny_words
from busgen_privacy.ocr import find_text
from busgen_privacy.pixel_text import SURE, Reads
from tests.client.headers import PROFILE
from tests.privacy.lettering import burned_in, phantoms
from tests.shared import shared_data

SIZE = 320  # px, the side of a scan here
WRITTEN = [("DOE JANE", 8, 255, 20), ("02.11.1961", 6, 235, 120), ("KOWALSKA", 14, 255, 180), ("MRN 4711023", 10, 220, 250)]


@pytest.fixture(scope="module")
def scan() -> Gray:
    return phantoms(1, seed=41, size=SIZE)[0]


@pytest.fixture(scope="module")
def named(scan: Gray) -> tuple[Gray, list[tuple[int, int, int, int]]]:
    """The scan with four lines over it, and their boxes."""
    boxes = []
    for text, height, gray, y in WRITTEN:
        scan, box = burned_in(scan, text, height=height, at=(30, y), gray=gray)
        boxes.append(box)
    return scan, boxes


def surely_read(gray: Gray) -> list[str]:
    return [p.text for p in find_text([gray])[0] if p.confidence >= SURE and sum(c.isalnum() for c in p.text) > 1]


def code_of(call: Callable[[], object]) -> Code:
    with pytest.raises(QuarantineError) as held:
        call()
    return held.value.finding


def test_text_over_tissue_is_gone(named: tuple[Gray, list[tuple[int, int, int, int]]]) -> None:
    """Names, a date and a number, 6 to 14 px high, are read before and not after; every pixel that they were drawn with is masked."""
    gray, boxes = named
    assert len(surely_read(gray)) >= len(WRITTEN)
    found = find(gray)
    assert all(found.mask[y0:y1, x0:x1].all() for x0, y0, x1, y1 in boxes)
    assert found.judged.count(Reads.IDENTIFYING) == len(WRITTEN)
    (after,) = clean([gray], chroma=[None])
    assert surely_read(after) == []
    assert np.array_equal(after[~found.mask], gray[~found.mask])


def test_dark_text_on_light_is_gone(scan: Gray) -> None:
    """Dark letters on a light box go like light ones on dark."""
    gray = scan.copy()
    gray[200:232, 100:260] = 210
    gray, (x0, y0, x1, y1) = burned_in(gray, "12.03.1948", height=10, at=(120, 210), gray=10)
    assert find(gray).mask[y0:y1, x0:x1].all()


def test_scan_without_text_stays_as_it_is() -> None:
    """Of eight phantoms, less than two in a hundred pixels are touched; most lose none."""
    lost = [find(gray).mask.mean() for gray in phantoms(8, seed=500, size=SIZE)]
    assert max(lost) < 0.02
    assert sorted(lost)[4] == 0


def test_calipers_ticks_and_arrows_are_found_without_reading(scan: Gray) -> None:
    """Crosses, dotted lines and ticks on tissue are masked whole, with less than one scan pixel in twenty beside them."""
    soft = np.asarray(Image.fromarray(scan).resize((2 * SIZE, 2 * SIZE), Image.Resampling.BICUBIC))
    drawn = np.zeros(soft.shape, bool)
    for y, x in ((200, 150), (420, 510)):
        drawn[y - 7 : y + 8, x] = drawn[y, x - 7 : x + 8] = True
    drawn[100:600:20, 635:640] = True
    drawn[300:302, 180:480:12] = drawn[300:302, 181:480:12] = True
    mask = overlays(np.where(drawn, np.uint8(255), soft))
    assert not overlays(soft).any()
    assert mask[drawn].all()
    assert mask.mean() < 0.05


def test_gray_bar_is_found(scan: Gray) -> None:
    """A wedge of grays, whose rows are flat, is masked down to where it is all but black."""
    gray = scan.copy()
    gray[40:200, :14] = np.linspace(255, 0, 160).astype(np.uint8)[:, None]
    assert overlays(gray)[42:185, :14].all()


def test_coloured_marks_are_found(scan: Gray) -> None:
    """A green mark too small to be colour Doppler is masked by its colour alone."""
    frame = np.repeat((scan // 2 + 60)[..., None], 3, axis=2)
    frame[100:106, 100:130] = (90, 130, 80)
    mask = overlays(frame[..., 1], chroma(frame))
    assert mask[100:106, 100:130].all()


def test_nothing_of_a_masked_pixel_is_in_the_fill(scan: Gray) -> None:
    """Whatever stands under the mask, the same picture comes out, in gray and in colour."""
    mask = np.zeros(scan.shape, bool)
    mask[50:80, 40:200] = True
    other = np.where(mask, np.uint8(255) - scan, scan)
    assert not np.array_equal(scan, other)
    assert np.array_equal(filled(scan, mask), filled(other, mask))
    assert np.array_equal(filled(np.dstack([scan] * 3), mask), filled(np.dstack([other] * 3), mask))


def test_what_one_frame_of_a_clip_shows_is_masked_in_all(scan: Gray) -> None:
    """A name that stands in the first frame is filled in the second, where it is too faint to be found."""
    first, (x0, y0, x1, y1) = burned_in(scan, "DOE JANE", height=10, at=(30, 100))
    faint, _ = burned_in(scan, "DOE JANE", height=10, at=(30, 100), gray=int(scan[100:112, 30:110].mean()))
    _, alone = clean([first, faint], chroma=[None, None])
    mask = find(first).mask
    assert mask[y0:y1, x0:x1].all()
    assert np.array_equal(alone, filled(faint, mask | find(faint).mask))


def test_scan_covered_with_text_waits(scan: Gray) -> None:
    """Where more than a quarter would have to be filled, a person looks."""
    gray = scan
    for n in range(9):
        gray, _ = burned_in(gray, "MUSTERFRAU ERIKA", height=18, at=(10, 4 + 34 * n))
    assert code_of(lambda: clean([gray], chroma=[None])) is Code.TEXT_OVER_SCAN


def test_text_that_masking_missed_waits(named: tuple[Gray, list[tuple[int, int, int, int]]], monkeypatch: pytest.MonkeyPatch) -> None:
    """If the mask were wrong, the second look would see it: an auditor that is tested against a blind finder."""

    def blind(gray: Gray, **_: object) -> masking.Found:
        return replace(seen, mask=np.zeros(gray.shape, bool))

    seen = find(named[0])
    monkeypatch.setattr(masking, "find", blind)
    assert code_of(lambda: clean([named[0]], chroma=[None])) is Code.TEXT_LEFT


def test_names_that_are_scanner_words_are_judged_by_the_header(scan: Gray) -> None:
    """A name that scanners write too is furniture, unless the header says that it is a name; it is masked either way."""
    gray, (x0, y0, x1, y1) = burned_in(scan, "LONG", height=12, at=(60, 60))
    plain, denied = find(gray), find(gray, deny=deny_words(["Long^Ada"]))
    assert (plain.judged, denied.judged) == ((Reads.FURNITURE,), (Reads.IDENTIFYING,))
    assert plain.mask[y0:y1, x0:x1].all()


def test_nothing_that_was_read_is_in_what_is_returned(named: tuple[Gray, list[tuple[int, int, int, int]]]) -> None:
    """The finding holds boxes and kinds, no word."""
    assert not any(word in repr(find(named[0])) for text, *_ in WRITTEN for word in text.split())


def test_small_text_gets_a_closer_look(scan: Gray) -> None:
    """A window that is looked at closely covers small text on smooth tissue, and smooth tissue has none."""
    soft = np.asarray(Image.fromarray(scan).resize((3 * SIZE, 3 * SIZE), Image.Resampling.BICUBIC))
    gray, (x0, y0, x1, y1) = burned_in(soft, "02.11.1961", height=6, at=(400, 500))
    nothing = np.zeros(gray.shape, bool)
    assert not list(sharp_windows(soft, nothing))
    (window,) = sharp_windows(gray, nothing)
    assert window.x0 <= x0 < x1 <= window.x1
    assert window.y0 <= y0 < y1 <= window.y1


def test_picture_for_a_person_is_masked_too(named: tuple[Gray, list[tuple[int, int, int, int]]]) -> None:
    """What waits is shown as it would be stored, in its colours; a frame too small to be read is black."""
    (shown,) = covered([np.dstack([named[0]] * 3)])
    assert shown.shape == (SIZE, SIZE, 3)
    assert surely_read(shown[..., 0]) == []
    assert not covered([np.full((SMALLEST_SIDE - 1, 64), 200, np.uint8)])[0].any()


def stored_as(pixels: np.ndarray, *, bits: int, kind: str = "MONOCHROME2", count: int = 1) -> Dataset:
    """A cleaned header around frames whose values have so many bits, and one region that is the whole frame."""
    header = regions((1, 1, (0, 0, SIZE - 1, SIZE - 1)))
    header.Rows = header.Columns = SIZE
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PixelRepresentation, header.NumberOfFrames = 1, kind, 0, count
    header.BitsAllocated, header.BitsStored, header.HighBit = 8 * pixels.itemsize, bits, bits - 1
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.PixelData = pixels.tobytes()
    header["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    return header


def wide(gray: Gray, brightest: int) -> np.ndarray:
    return np.ceil(gray.astype(float) * brightest / gray.max()).astype("<u2")


@pytest.mark.parametrize(("bits", "brightest"), [(16, 1023), (16, 4095), (16, 65535), (12, 600), (10, 1023)])
def test_values_of_more_than_8_bits_are_looked_at_in_their_own_range(named: tuple[Gray, object], bits: int, brightest: int) -> None:
    """Claim: whatever part of 16 bits a scanner fills, the finders see the frame that they would see in 8 bits, and mask its text."""
    gray, _ = named
    header = stored_as(wide(gray, brightest), bits=bits)
    ((_, frame),) = frames(header)
    assert np.abs(frame.astype(int) - gray).max() <= 1
    assert surely_read(clean_scans(header)[1][0]) == []


def test_ordinary_values_of_8_bits_come_as_they_are(scan: Gray) -> None:
    """Of at most 8 stored bits nothing is changed, in 8 or 16 allocated; MONOCHROME1 is turned."""
    dim = scan // 2
    assert np.array_equal(next(frames(stored_as(dim, bits=8)))[1], dim)
    assert np.array_equal(next(frames(stored_as(dim.astype("<u2"), bits=8)))[1], dim)
    assert np.array_equal(next(frames(stored_as(dim, bits=8, kind="MONOCHROME1")))[1], 255 - dim)


def test_frames_of_one_object_have_one_scale(scan: Gray) -> None:
    """A dark frame of a clip stays as dark beside its neighbour as it was."""
    bright, dark = wide(scan, 1020), wide(scan, 510)
    (_, one), (_, two) = frames(stored_as(np.stack([bright, dark]), bits=16, count=2))
    assert (one.max(), two.max()) == (255, 127)


def hot(gray: Gray) -> np.ndarray:
    pixels = wide(gray, 1023)
    pixels[5, 5] = 65535
    return pixels


FEW = {
    "8 bits, 16 levels": lambda gray: stored_as(gray // 16, bits=8),
    "8 bits, 32 levels, inverted": lambda gray: stored_as(gray // 8, bits=8, kind="MONOCHROME1"),
    "4 bits of 8": lambda gray: stored_as(gray // 16, bits=4),
    "one hot pixel of 16 bits": lambda gray: stored_as(hot(gray), bits=16),
    "all near the top of 16 bits": lambda gray: stored_as(wide(gray, 1023) + 64000, bits=16),
}


@pytest.mark.parametrize("make", FEW.values(), ids=FEW)
def test_scan_of_few_levels_waits(named: tuple[Gray, object], make: Callable[[Gray], Dataset]) -> None:
    """Claim: where text cannot be seen for want of levels, and could be after a stretch, the object waits by name."""
    assert code_of(lambda: clean_scans(make(named[0]))) is Code.FEW_LEVELS


@pytest.mark.parametrize("step", [1, 256, 257], ids=["8-bit values in 16-bit entries", "shifted", "full"])
def test_palette_of_16_bits_shows_its_frame(scan: Gray, step: int) -> None:
    """Entries of 16 bits (PS3.3 C.7.6.3.1.6) give the same gray however a scanner filled them."""
    header, entries = stored_as(scan, bits=8, kind="PALETTE COLOR"), (np.arange(256) * step).astype("<u2")
    for colour in ("Red", "Green", "Blue"):
        setattr(header, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(header, f"{colour}PaletteColorLookupTableData", entries.tobytes())
    ((_, frame),) = frames(header)
    assert np.array_equal(frame[..., 1], scan.astype(int) * 255 // scan.max())


def regions(*items: tuple[int, int, tuple[int, int, int, int]]) -> Dataset:
    header = Dataset()
    header.Rows, header.Columns, header.SequenceOfUltrasoundRegions = 400, 600, []
    for spatial, data, corners in items:
        item = Dataset()
        item.RegionSpatialFormat, item.RegionDataType = spatial, data
        item.RegionLocationMinX0, item.RegionLocationMinY0, item.RegionLocationMaxX1, item.RegionLocationMaxY1 = corners
        header.SequenceOfUltrasoundRegions.append(item)
    return header


LEFT, RIGHT = (0, 0, 299, 399), (300, 0, 599, 399)
MODES = {
    "two scans side by side": ([(1, 1, LEFT), (1, 1, RIGHT)], Code.SPLIT_SCREEN),
    "colour flow beside a scan": ([(1, 1, LEFT), (1, 2, RIGHT)], Code.COLOUR),
    "pulsed-wave Doppler": ([(1, 1, LEFT), (3, 3, RIGHT)], Code.OTHER_MODE),
    "continuous-wave Doppler": ([(1, 1, LEFT), (3, 4, RIGHT)], Code.OTHER_MODE),
    "M-mode": ([(1, 1, LEFT), (2, 1, RIGHT)], Code.OTHER_MODE),
}


@pytest.mark.parametrize(("items", "code"), MODES.values(), ids=MODES)
def test_other_mode_in_the_header_is_set_aside(items: list[tuple[int, int, tuple[int, int, int, int]]], code: Code) -> None:
    """What the regions call something else than one B-mode scan waits by name."""
    assert code_of(lambda: scan_regions(regions(*items))) is code


def test_one_scan_told_twice_and_graphics_beside_it_are_taken() -> None:
    """Two regions that are one, and a trace beside the scan, keep nothing out; the trace is hidden."""
    keep, hide = scan_regions(regions((1, 1, LEFT), (1, 1, (2, 0, 299, 399)), (4, 9, RIGHT)))
    assert (len(keep), hide) == (2, [Rectangle(300, 0, 600, 400)])


def test_halves_with_a_gutter_are_set_aside(scan: Gray) -> None:
    """Two scans side by side are seen although the header tells of one region; one scan, and one with a deep shadow, pass."""
    split = np.concatenate([scan, np.zeros((SIZE, 6), np.uint8), scan], axis=1)
    shadow = scan.copy()
    shadow[30:, 150:170] = 0
    assert code_of(lambda: check_modes(split, split)) is Code.SPLIT_SCREEN
    check_modes(scan, scan)
    check_modes(shadow, shadow)


def test_pale_colour_map_is_set_aside_and_a_tint_is_not(scan: Gray) -> None:
    """An elastogram of pale colours waits; a sepia frame does not."""
    ramp = np.linspace(-18, 18, SIZE)[:, None]
    base = (scan // 2 + 60).astype(float)
    pale = np.dstack([base + ramp, base, base - ramp]).astype(np.uint8)
    sepia = np.dstack([base + 15, base, base - 15]).astype(np.uint8)
    assert code_of(lambda: check_modes(pale, scan)) is Code.COLOUR
    check_modes(sepia, scan)


def test_every_real_file_decodes() -> None:
    """All transfer syntaxes and kinds of pixel among the real files give frames; a clip gives a stride of them."""
    counts = {}
    for file in sorted((shared_data() / "dicom").glob("*.dcm")):
        found = list(frames(read_clean(file.read_bytes(), PROFILE).header))
        assert all(frame.dtype == np.uint8 and frame.std() > 1 for _, frame in found)
        counts[file.name] = len(found)
    assert len(counts) == 7
    assert counts.pop("examples_ybr_color.dcm") == 8
    assert set(counts.values()) == {1}


def test_real_frame_loses_its_text_and_keeps_its_scan() -> None:
    """Claim: of RGB_IMAGE.dcm no text is left, outside the scan region or written into it, and the scan between is untouched but for one tip."""
    read = read_clean((shared_data() / "dicom" / "RGB_IMAGE.dcm").read_bytes(), PROFILE)
    ((_, frame),) = frames(read.header)
    before = np.asarray(Image.fromarray(frame).convert("L"))[60:765, :1009]
    crop, (after,), _ = clean_scans(read.header, deny=read.deny)
    assert crop == Rectangle(0, 60, 1009, 765)
    assert len(surely_read(before)) >= 10
    assert surely_read(after) == []
    fan = np.s_[:640, 300:850]
    changed = after[fan] != before[fan]
    assert before[fan].std() > 5
    assert not changed[24:].any()
    assert changed[:24].sum() < 200  # the tip of the probe's arc is as thin and sharp as a stroke
