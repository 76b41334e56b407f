"""Minutes of the standard suite on 500 members, 300 holdout images and 10,000 released ones at 64 px, on this machine.

Members and holdout are images of the three public hospitals, a patient an image; the release is 2,000 images of the foundation in five styles each.
Copies are looked for among ten times as many: the release, and 90,000 like it, a few pixels moved. The network is the shipped one with a slight
change, so that white-box attacks have work to do. Beside it, the adaptations that such an audit follows, at epsilon 8, on the same members and in the
same run: DP-SGD as the node runs it (after which white-box attacks apply), and the planner's own choice of votes and means (after which they do not:
nothing was trained). Their drawing is timed on a part of the images. A node looks for copies among what its adaptation drew, so each audit is
counted with as many images as its own adaptation draws.

Expected before measuring: seven to eight minutes, of which copies among 100,000 images four; each node's own audit less than its adaptation.
"""

import os
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from bench.adaptation import LESIONS, reference, shipped
from bench.audit_power import GATE, WORK, everybody
from bench.foundation import HOSPITALS, generated
from bench.rows import SHARED, row, write
from busgen_core.labels import Pathology
from busgen_core.styles import STYLES, restyle
from busgen_privacy.attacked import Release
from busgen_privacy.attacks.base import Access
from busgen_privacy.cohort import Cohort
from busgen_privacy.dp.adaptation import run as adapt
from busgen_privacy.dp.planner import EFFORTS, Mechanics, recommend, split
from busgen_privacy.folders import read_people
from busgen_privacy.lookalikes import doubles
from busgen_privacy.policy import Policy
from busgen_privacy.scored import USUAL
from busgen_privacy.suite import DRAWS, run

MEMBERS, HOLDOUT, RELEASED, SHOWN_IN = 500, 300, 10_000, 5
DRAWN = 1_000  # images that the drawing is timed on
WHITE_BOX, COPIES = "white-box attacks", "looking for copies"


def released() -> np.ndarray:
    """10,000 images of the foundation, drawn once."""
    file = WORK / "speed-images.npy"
    if not file.exists():
        np.save(file, generated(shipped(), per_class=RELEASED // SHOWN_IN // 2, seed=5, classes=LESIONS)[0])
    images = np.load(file)
    return np.concatenate([restyle(images, style) for style in STYLES[:SHOWN_IN]])


def further(images: np.ndarray) -> np.ndarray:
    """Nine times as many: each moved by 1 to 9 pixels to the side."""
    return np.concatenate([np.roll(images, by, axis=2) for by in range(1, USUAL)])


def people(images: np.ndarray, prefix: str) -> Cohort:
    """A patient an image."""
    count = len(images)
    return Cohort(images, (Pathology.BENIGN,) * count, (None,) * count, tuple(f"{prefix}{i:04d}" for i in range(count)))


def different(images: np.ndarray) -> np.ndarray:
    """One of each group of images that an audit would take for one picture under two patients."""
    twice = {later for _, later in doubles(people(images, "i"), lambda *_: None)}
    return images[[row for row in range(len(images)) if row not in twice]]


def adaptation(members: Cohort, *, trained: bool) -> tuple[float, int]:
    """Minutes of a node's adaptation to these members and of drawing 10,000 images' candidates, timed on DRAWN; and candidates of an image."""
    effort = EFFORTS[0]
    mechanics = Mechanics(steps=effort.steps, patient_rate=effort.patient_rate, draws=1)
    policy = Policy(lifetime_epsilon=100, campaign_epsilon=100, public_cohort=MEMBERS)
    common = {"policy": policy, "epsilon": 8.0, "delta": 1e-5}
    plan = split({"dp-sgd": 1.0}, **common, mechanics=mechanics) if trained else recommend(**common)  # type: ignore[arg-type]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        adapt(shipped(), members, plan, folder=Path(folder), reference=reference, progress=lambda *_: None)
    learnt = time.perf_counter() - started
    started = time.perf_counter()
    generated(shipped(), per_class=DRAWN // 2, seed=6, classes=LESIONS)
    return (learnt + (time.perf_counter() - started) * plan.candidates * RELEASED / DRAWN) / 60, plan.candidates


def main() -> None:
    """Measure and write ``bench/results/audit_speed.json``."""
    WORK.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(os.cpu_count() or 1)
    images = different(np.concatenate([everybody(hospital).images for hospital in HOSPITALS]))
    images = images[np.random.default_rng(0).permutation(len(images))[: MEMBERS + HOLDOUT]]
    adapted = deepcopy(shipped().network)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.mul_(1.001)
    access = Access(adapted=adapted, reference=shipped().network, scheduler=shipped().scheduler)
    shown = released()
    release = Release(images=shown, more=further(shown), epsilon=8.0, delta=1e-5, access=access)
    public, spent, searched = read_people(str(SHARED / "public")), {}, {}
    started, bar = time.perf_counter(), tqdm(desc="suite")
    marks = [("start", started)]

    def progress(what: str, done: int, of: int) -> None:
        now = time.perf_counter()
        if marks[-1][0] != what:
            marks.append((what, now))
        if what == COPIES:
            searched[done] = now
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
    told = f"standard suite, 500 members, 300 holdout, 10,000 released, 64 px, copies among {USUAL * RELEASED:,}"
    rows = [row(told, minutes, "minutes", goal="<= 10", met=minutes <= 10)]
    rows += [row(f"of it from the start of: {what}", seconds / 60, "minutes") for what, seconds in spent.items() if what != "start"]
    for what, trained in (("DP-SGD", True), ("votes and means, audited without white-box attacks", False)):
        took, times = adaptation(people(images[:MEMBERS], "m"), trained=trained)
        beyond = (searched[USUAL * RELEASED] - searched[times * RELEASED]) / 60
        audit = minutes - beyond - (0 if trained else spent[WHITE_BOX] / 60)
        name = f"adaptation by {what}, drawing {times * RELEASED:,} images included (timed on {DRAWN:,}), beside its audit"
        beside = {"peer": f"its audit, copies among {times * RELEASED:,}, minutes", "peer_value": round(audit, 2)}
        rows.append(row(name, took, "minutes", goal="more than its audit", met=audit < took, **beside))  # type: ignore[arg-type]
    write("audit_speed", rows)


if __name__ == "__main__":
    sys.exit(main())
