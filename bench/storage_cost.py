"""What sealing costs: microseconds an image, one core, beside writing it unsealed. Prints and writes JSON.

    OMP_NUM_THREADS=1 python bench/storage_cost.py --images 300

Images are phantoms as PNG, 608 x 392, the size of a cropped scan. Disk times hold two fsyncs each; the medians are stated.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from busgen_client.storage import OVERHEAD, StorageSettings, Vault
from busgen_core.files import write_durably
from busgen_core.images import encode_png
from busgen_core.labels import Pathology
from busgen_core.phantom import simulate

RESULTS = Path(__file__).parent / "results" / "storage_cost.json"


def median_us(work: Callable[[int], object], count: int) -> float:
    """Median time of ``work(0) … work(count - 1)``, microseconds."""
    times = []
    for number in range(count):
        started = time.perf_counter()
        work(number)
        times.append(time.perf_counter() - started)
    return round(statistics.median(times) * 1e6, 1)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300)
    count = parser.parse_args().images
    import numpy as np
    from PIL import Image

    small = simulate(Pathology.BENIGN, seed=1).image
    png = encode_png(np.asarray(Image.fromarray(small).resize((608, 392), Image.Resampling.BICUBIC)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vault = Vault(folder, StorageSettings())
        started = time.perf_counter()
        vault.check()
        opened = time.perf_counter() - started
        sealed = [vault.seal(png, role="image", name=str(number)) for number in range(count)]
        found = {
            "images": count,
            "png_bytes": len(png),
            "overhead_bytes": OVERHEAD,
            "first_key_ms": round(opened * 1e3, 1),
            "seal_us": median_us(lambda n: vault.seal(png, role="image", name=str(n)), count),
            "open_us": median_us(lambda n: vault.open(sealed[n], role="image", name=str(n)), count),
            "write_plain_us": median_us(lambda n: write_durably(folder / f"{n}.png", png), count),
            "write_sealed_us": median_us(lambda n: vault.write(folder / f"{n}.sealed", png, role="image"), count),
            "read_plain_us": median_us(lambda n: (folder / f"{n}.png").read_bytes(), count),
            "read_sealed_us": median_us(lambda n: vault.read(folder / f"{n}.sealed", role="image"), count),
        }
        (folder / "p").write_text("a passphrase for a benchmark")
        slow = Vault(folder / "other", StorageSettings(key="passphrase", passphrase_file=folder / "p"))
        started = time.perf_counter()
        slow.check()
        found["argon2id_ms"] = round((time.perf_counter() - started) * 1e3, 1)
    print(json.dumps(found, indent=1))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
