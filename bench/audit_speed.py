"""Minutes of the standard suite on 500 members, 300 holdout images and 10,000 released ones at 64 px, on this machine.

Members and holdout are images of the three public hospitals, a patient an image; the release is 2,000 images of the foundation in five styles each.
The network is the shipped one with a slight change, so that white-box attacks have work to do. Beside it: processor time of the adaptation that
such an audit follows (the planner's choice at epsilon 8 for 500 patients, with its pool).

Expected before measuring: six to eight minutes, four fifths of it white-box.
"""

import os
import sys
import time
from copy import deepcopy

import numpy as np
import torch
from tqdm import tqdm

from bench.adaptation import LESIONS, shipped
from bench.audit_power import DRAWS, GATE, WORK, everybody
from bench.foundation import HOSPITALS, generated
from bench.rows import SHARED, row, write
from busgen_core.labels import Pathology
from busgen_core.styles import STYLES, restyle
from busgen_privacy.attacks.base import Access
from busgen_privacy.cohort import Cohort
from busgen_privacy.folders import read_people
from busgen_privacy.suite import Release, run

MEMBERS, HOLDOUT, RELEASED, SHOWN_IN = 500, 300, 10_000, 5


def released() -> np.ndarray:
    """10,000 images of the foundation, drawn once."""
    file = WORK / "speed-images.npy"
    if not file.exists():
        np.save(file, generated(shipped(), per_class=RELEASED // SHOWN_IN // 2, seed=5, classes=LESIONS)[0])
    images = np.load(file)
    return np.concatenate([restyle(images, style) for style in STYLES[:SHOWN_IN]])


def people(images: np.ndarray, prefix: str) -> Cohort:
    """A patient an image."""
    count = len(images)
    return Cohort(images, (Pathology.BENIGN,) * count, (None,) * count, tuple(f"{prefix}{i:04d}" for i in range(count)))


def main() -> None:
    """Measure and write ``bench/results/audit_speed.json``."""
    WORK.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(os.cpu_count() or 1)
    images = np.concatenate([everybody(hospital).images for hospital in HOSPITALS])
    images = np.unique(images, axis=0)[np.random.default_rng(0).permutation(len(np.unique(images, axis=0)))[: MEMBERS + HOLDOUT]]
    adapted = deepcopy(shipped().network)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.mul_(1.001)
    release = Release(
        images=released(), epsilon=8.0, delta=1e-5, access=Access(adapted=adapted, reference=shipped().network, scheduler=shipped().scheduler)
    )
    public, spent = read_people(str(SHARED / "public")), {}
    started, bar = time.perf_counter(), tqdm(desc="suite")
    marks = [("start", started)]

    def progress(what: str, done: int, of: int) -> None:
        if marks[-1][0] != what:
            marks.append((what, time.perf_counter()))
        bar.set_postfix_str(f"{what} {done}/{of}")

    run(
        release,
        people(images[:MEMBERS], "m"),
        people(images[MEMBERS:], "h"),
        public.images,
        groups=public.patients,
        policy=GATE,
        draws=DRAWS,
        seed=0,
        progress=progress,
    )
    ended = time.perf_counter()
    bar.close()
    for (what, begun), (_, until) in zip(marks, [*marks[1:], ("end", ended)], strict=True):
        spent[what] = spent.get(what, 0.0) + until - begun
    minutes = (ended - started) / 60
    rows = [row("standard suite, 500 members, 300 holdout, 10,000 released, 64 px", minutes, "minutes", goal="<= 10", met=minutes <= 10)]
    rows += [row(f"of it from the start of: {what}", seconds / 60, "minutes") for what, seconds in spent.items() if what != "start"]
    write("audit_speed", rows)


if __name__ == "__main__":
    sys.exit(main())
