"""How fast one core takes DICOM objects in, and whether memory grows with their number. Run: python -m bench.intake_speed.

CPU seconds, since neighbours share the machine. Frames are phantoms of 1024 x 768 pixels with text around the scan region, as scanners write
them. BUSGEN_BENCH_COUNT objects (2,000) tell whether memory stays flat; a hospital's 100,000 take as much, if it does.
"""

import gc
import io
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
from pydicom import Dataset, dcmread
from tqdm import tqdm

from bench.rows import row, write
from busgen_client.intake.decode import check_described, frames
from busgen_client.intake.dicom import clean_scans
from busgen_client.intake.frames import only_scan, to_gray
from busgen_client.intake.header import read_clean
from busgen_client.intake.phantom_dicom import write_phantom_study
from busgen_client.intake.profile import Profile
from busgen_client.intake.regions import scan_regions
from busgen_core import images
from busgen_core.labels import Pathology
from busgen_core.phantom import simulate

COUNT = int(os.environ.get("BUSGEN_BENCH_COUNT", "2000"))
ROWS, COLUMNS = 768, 1024
LEFT, TOP, WIDE, HIGH = 12, 60, 1000, 688  # px; the scan region
OCR_FRAMES = 10
SEED = 9_000


def key(kind: str, *parts: bytes | str) -> str:
    """A keyed digest; the key is everybody's."""
    import hmac

    return hmac.digest(b"benchmark", repr((kind, parts)).encode(), "sha256").hex()


PROFILE = Profile(key=key)


def objects(count: int) -> Iterator[bytes]:
    """Objects of 1024 x 768 pixels: the headers of a phantom study, and a scan of their own."""
    with tempfile.TemporaryDirectory() as folder:
        write_phantom_study(Path(folder), site="bench", patients=1, seed=SEED)
        header = dcmread(next(iter(sorted(Path(folder).glob("IM*")))))
    half = images.resize_gray(simulate(Pathology.BENIGN, size=384, seed=SEED).image, size=HIGH)
    scan = np.concatenate([half, half[:, ::-1]], axis=1)[:, :WIDE]
    for index in range(count):
        yield _object(header, np.roll(scan, index, axis=1), index)


def _object(header: Dataset, scan: np.ndarray, index: int) -> bytes:
    small = header.pixel_array
    frame = np.zeros((ROWS, COLUMNS), np.uint8)
    frame[: small.shape[0] // 5, : small.shape[1]] = small[: small.shape[0] // 5]
    frame[TOP : TOP + scan.shape[0], LEFT : LEFT + scan.shape[1]] = scan
    region = header.SequenceOfUltrasoundRegions[0]
    region.RegionLocationMinX0, region.RegionLocationMinY0 = LEFT, TOP
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = LEFT + scan.shape[1] - 1, TOP + scan.shape[0] - 1
    header.Rows, header.Columns, header.PixelData = ROWS, COLUMNS, frame.tobytes()
    header.SOPInstanceUID = f"2.25.{SEED + index}"
    out = io.BytesIO()
    header.save_as(out)
    return out.getvalue()


def without_ocr(data: bytes, folder: Path) -> None:
    """Header, region and store: everything but looking for text."""
    from PIL import Image

    header = read_clean(data, PROFILE).header
    check_described(header)
    keep, hide = scan_regions(header)
    for index, frame in frames(header):
        gray = to_gray(only_scan(frame, keep=keep, hide=hide))
        Image.fromarray(images.resize_gray(gray, size=128)).save(folder / f"{index}.png")


def rate(step: Callable[[bytes], object], data: list[bytes]) -> float:
    """Objects a CPU second, after one that is not counted."""
    step(data[0])
    began = time.process_time()
    for each in data:
        step(each)
    return len(data) / (time.process_time() - began)


def measure() -> Iterator[dict[str, object]]:
    """Every row."""
    data, folder = list(objects(40)), Path(tempfile.mkdtemp())
    plain = rate(lambda each: without_ocr(each, folder), data)
    yield row(f"header, region, store: objects of {COLUMNS} x {ROWS} px a CPU second", plain, "1/s", goal=">= 20", met=plain >= 20)
    read = rate(lambda each: clean_scans(read_clean(each, PROFILE).header), data[:OCR_FRAMES])
    yield row(f"the same with text looked for, scan region of {WIDE} x {HIGH} px", read, "1/s", goal=">= 2", met=read >= 2)
    process, used = psutil.Process(), list[float]()
    for n, each in enumerate(tqdm(objects(COUNT), total=COUNT, desc="memory", unit="object", mininterval=20)):
        without_ocr(each, folder)
        if n % (COUNT // 10) == COUNT // 10 - 1:
            gc.collect()
            used.append(process.memory_info().rss / 2**20)
    grown = used[-1] - used[1]
    yield row(
        f"resident memory, growth from object {COUNT // 5} to object {COUNT}",
        grown,
        "MiB",
        low=min(used),
        high=max(used),
        goal="< 20",
        met=grown < 20,
    )


def main() -> None:
    """Measure and write bench/results/intake_speed.json."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write("intake_speed", list(measure()))


if __name__ == "__main__":
    main()
