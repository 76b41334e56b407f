"""Speed of the phantom beside a plain per-image simulator, and its statistics beside real images. Run: python -m bench.phantom."""

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from bench.rows import SHARED, row, write
from busgen_core.images import resize_gray
from busgen_core.labels import Pathology
from busgen_core.phantom import acoustics, simulate_batch

GOALS = {64: 150.0, 128: 40.0}  # frames a second on one core
COUNT = {64: 96, 128: 48}  # frames a repeat
PEER = "plain scipy script, one look"
Images = NDArray[np.uint8]


def plain(size: int, seed: int) -> Images:
    """The plain way: an elliptic mass in layers with texture, one look, one Gaussian point spread for all depths, scipy's filters on a field
    oversampled twice. What a short script does, one frame at a time."""
    rng, fine = np.random.default_rng(seed), 2 * size
    depth, lateral = np.linspace(0, 1, fine)[:, None], np.linspace(0, 1, fine)[None, :]
    texture = gaussian_filter(rng.standard_normal((fine, fine)), (fine / 40, fine / 12))
    echo = np.where(depth < 0.06, 4.0, np.where(depth < 0.25, -10.0, np.where(depth < 0.75, -2.0, -12.0))) + 4 * texture / texture.std()
    inside = 1 / (1 + np.exp((np.hypot((depth - 0.45) / 0.15, (lateral - 0.5) / 0.2) - 1) / 0.05))
    loss = 15 * depth + 30 * np.cumsum(inside, axis=0) / fine * (1 - inside)
    amplitude = 10 ** ((echo * (1 - inside) - 16 * inside - loss) / 20)
    field = (rng.standard_normal((fine, fine)) + 1j * rng.standard_normal((fine, fine))) * amplitude
    sigma = (0.9 * fine / 128, 2.0 * fine / 128)
    envelope_db = 20 * np.log10(np.abs(gaussian_filter(field.real, sigma) + 1j * gaussian_filter(field.imag, sigma)) + 1e-6)
    gray = np.clip((envelope_db - np.percentile(envelope_db, 99.5)) / 55 + 1, 0, 1).reshape(size, 2, size, 2).mean((1, 3))
    return np.asarray((255 * gray).round(), dtype=np.uint8)


def rates(draws: Sequence[Callable[[], object]], count: int, repeats: int) -> list[list[float]]:
    """Frames a CPU second of each way, in turn, after one repeat that is not counted; sorted. CPU time, since neighbours share the machine."""
    found: list[list[float]] = [[] for _ in draws]
    for repeat in range(repeats + 1):
        for draw, seen in zip(draws, found, strict=True):
            started = time.process_time()
            draw()
            if repeat:
                seen.append(count / (time.process_time() - started))
    return [sorted(seen) for seen in found]


def speed(size: int, repeats: int) -> dict[str, object]:
    """Frames a second of the phantom and of the plain way, which draws one look of far simpler tissue."""
    count = COUNT[size]
    classes = [list(Pathology)[i % 3] for i in range(count)]
    started = time.perf_counter()
    ways = (lambda: simulate_batch(classes, size=size, seeds=range(count)), lambda: [plain(size, seed) for seed in range(count)])
    ours, theirs = rates(ways, count, repeats)
    value, peer = statistics.median(ours), statistics.median(theirs)
    return row(
        f"phantom frames a CPU second, {size} px, one core, range of {repeats} repeats",
        value,
        "1/s",
        low=ours[0],
        high=ours[-1],
        peer=PEER,
        peer_value=round(peer, 1),
        goal=f">= {GOALS[size]:g}",
        met=value >= GOALS[size],
        seconds=time.perf_counter() - started,
    )


def beam(repeats: int) -> dict[str, object]:
    """One look's blur with a width of its own at every depth, 128 px: one FFT a row beside scipy's Gaussian filter row by row."""
    rng, rows, columns, count = np.random.default_rng(0), 384, 288, 5
    echo = (rng.standard_normal((1, rows, columns)) + 1j * rng.standard_normal((1, rows, columns))).astype(np.complex64)
    sigma = np.linspace(1, 8, rows, dtype=np.float32)[None, :, None]
    transfer, _ = acoustics.lateral_transfer(sigma, columns)
    taps = acoustics.axial_taps(np.full((1, 1), 1.0, np.float32), radius=5)

    def row_by_row() -> NDArray[np.complex64]:
        across = np.stack([gaussian_filter1d(line, width, mode="wrap") for line, width in zip(echo[0], sigma[0, :, 0], strict=True)])
        return np.asarray(gaussian_filter1d(across, 1.0, axis=0, mode="mirror", radius=5))

    ways = (lambda: [acoustics.blur(echo.copy(), transfer, taps) for _ in range(count)], lambda: [row_by_row() for _ in range(count)])
    ours, theirs = rates(ways, count, repeats)
    name = f"depth-dependent blurs of one look a CPU second, 128 px, range of {repeats} repeats"
    peer = round(statistics.median(theirs), 1)
    return row(name, statistics.median(ours), "1/s", low=ours[0], high=ours[-1], peer="scipy row by row", peer_value=peer)


def real_images(size: int) -> list[Images]:
    """The public images (benign and malignant)."""
    with (SHARED / "public" / "images.csv").open(newline="", encoding="utf-8") as stream:
        files = [row["file"] for row in csv.DictReader(stream)]
    return [resize_gray(np.asarray(PillowImage.open(SHARED / "public" / file).convert("L")), size=size) for file in files]


def look(images: list[Images]) -> dict[str, NDArray[np.float64]]:
    """Statistics of each image: [n] each."""
    gray = np.stack(images).astype(float)
    centred = gray - gray.mean((1, 2), keepdims=True)
    power = centred.var((1, 2))
    return {
        "mean gray": gray.mean((1, 2)),
        "standard deviation of gray": gray.std((1, 2)),
        "axial correlation at one pixel": (centred[:, 1:] * centred[:, :-1]).mean((1, 2)) / power,
        "lateral correlation at one pixel": (centred[:, :, 1:] * centred[:, :, :-1]).mean((1, 2)) / power,
        "upper half over lower half": gray[:, : gray.shape[1] // 2].mean((1, 2)) / (gray[:, gray.shape[1] // 2 :].mean((1, 2)) + 1),
    }


def histogram_distance(one: list[Images], other: list[Images]) -> float:
    """Total variation distance of the pooled gray histograms in 32 bins, 0 to 1."""
    shares = [np.histogram(np.stack(images), bins=32, range=(0, 256))[0] / np.stack(images).size for images in (one, other)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def likeness(count: int) -> list[dict[str, object]]:
    """Medians (and middle halves) of the phantoms' statistics beside the public images'."""
    real = real_images(64)
    drawn = [p.image for p in simulate_batch([Pathology.BENIGN, Pathology.MALIGNANT] * (count // 2), seeds=range(count))]
    plainly = [plain(64, seed) for seed in range(count)]
    ours, theirs = look(drawn), look(real)
    rows = [
        row(
            f"{name}, median and quartiles, 64 px",
            float(np.median(ours[name])),
            "",
            low=float(np.quantile(ours[name], 0.25)),
            high=float(np.quantile(ours[name], 0.75)),
            peer="public images",
            peer_value=round(float(np.median(theirs[name])), 3),
            seeds=count,
        )
        for name in ours
    ]
    distance = histogram_distance(drawn, real)
    beside = round(histogram_distance(plainly, real), 3)
    return [*rows, row("gray histogram's distance from public images", distance, "share", peer=PEER, peer_value=beside, seeds=count)]


def main() -> None:
    """Write bench/results/phantom.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--frames", type=int, default=600, help="phantoms whose statistics are compared")
    options = parser.parse_args()
    write("phantom", [*(speed(size, options.repeats) for size in GOALS), beam(options.repeats), *likeness(options.frames)])


if __name__ == "__main__":
    main()
