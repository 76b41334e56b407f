"""What the audit sees: a generator that memorised sixty patients, planted copies, and our own releases at epsilon 8.

The memoriser is the foundation, all weights fine-tuned without privacy on 60 patients of ``warsaw`` drawn from all its patients; the others are
the holdout, so members and holdout are exchangeable but for the training. The reference-model attack has one shadow, taught by half of the
holdout. Copies of members' images are planted among images of the foundation, as they are, and with crop, mirror and gray map. Our releases are
the planner's choice at epsilon 8 on each ``train``, attacked with ``holdout`` set aside.

Expected before measuring: loss, SecMI, PIA, SimA and the reference model above .9 on the memoriser, black-box attacks .8 to .95; every verbatim
copy and nine of ten changed ones found; our releases at .5 to .6 and released. Networks and releases are kept in ``bench/work/audit_power``.
"""

import os
import sys
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from bench.adaptation import CANDIDATES, DELTA, LESIONS, looked, members, policy, pool, reference, shipped
from bench.foundation import HOSPITALS, generated
from bench.rows import RESULTS, ROOT, SHARED, row, write
from busgen_core.generator import Generator
from busgen_core.styles import STYLES, restyle
from busgen_privacy.attacked import Release
from busgen_privacy.attacks.base import Access
from busgen_privacy.attacks.extraction import extract
from busgen_privacy.cohort import Cohort
from busgen_privacy.denoising import patient_losses, sigmas_at
from busgen_privacy.dp import adaptation
from busgen_privacy.dp.dpsgd import contiguous
from busgen_privacy.dp.noise import SeededGaussian
from busgen_privacy.dp.planner import recommend
from busgen_privacy.findings import Findings
from busgen_privacy.findings_report import render_findings
from busgen_privacy.folders import read_people
from busgen_privacy.gate import decide
from busgen_privacy.policy import GatePolicy
from busgen_privacy.selection import choose, pool_weights
from busgen_privacy.shadows import Shadows, set_aside
from busgen_privacy.statistics import share_bounds
from busgen_privacy.suite import DRAWS, run

WORK = Path(os.environ.get("BUSGEN_BENCH_WORK", ROOT / "bench" / "work")) / "audit_power"
MEMBERS, STEPS, BATCH, LEARNING_RATE, DECAY = 60, int(os.environ.get("BUSGEN_BENCH_STEPS", "2500")), 16, 5e-4, 0.99
SHADOW_STEPS = 500  # a fifth of the memoriser's: a shadow must know the people's kind, not each of them
PER_CLASS = 200
GATE = GatePolicy()

Images = NDArray[np.uint8]


@cache
def everybody(hospital: str) -> Cohort:
    """All patients of a hospital, of both roles."""
    sides = [members(hospital), members(hospital, "holdout")]
    columns = [sum((tuple(getattr(side, name)) for side in sides), ()) for name in ("classes", "boxes", "patients")]
    return Cohort(np.concatenate([side.images for side in sides]), *columns)


@cache
def sides() -> tuple[Cohort, Cohort]:
    """The memoriser's members, and everybody else of the hospital."""
    people = everybody("warsaw")
    keys = np.random.default_rng(0).permutation(list(people.patient_rows())).tolist()
    return people.only(keys[:MEMBERS]), people.only(keys[MEMBERS:])


def memoriser() -> Generator:
    """The foundation after STEPS of Adam on the members' images, no privacy; averaged weights. Made once."""
    return overfitted(sides()[0], STEPS, WORK / f"memoriser-{STEPS}.safetensors")


def shadows() -> Shadows:
    """One network taught as the memoriser was, but SHADOW_STEPS long and by half of the holdout. Made once."""
    holdout = sides()[1]
    patients = set_aside(holdout, seed=0)
    return Shadows(networks=(overfitted(holdout.only(patients), SHADOW_STEPS, WORK / f"shadow-{SHADOW_STEPS}.safetensors"),), patients=patients)


def overfitted(people: Cohort, steps: int, file: Path) -> Generator:
    """The foundation after so many steps of Adam on these people's images, kept."""
    network = contiguous(shipped().network)
    if not file.exists():
        rng = np.random.default_rng(1)
        optimizer, average = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE), deepcopy(network)
        for step in tqdm(range(steps), desc=file.stem, unit="step"):
            rows = rng.integers(len(people), size=BATCH).tolist()
            noise = torch.from_numpy(rng.standard_normal((BATCH, network.fold**2, network.side, network.side), dtype=np.float32))
            (losses,) = patient_losses([network], shipped().scheduler, people, rows, noise=noise, sigmas=sigmas_at(rng.random(BATCH)))
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
            with torch.no_grad():
                for mean, now in zip(average.parameters(), network.parameters(), strict=True):
                    mean.lerp_(now, 1 - min(DECAY, (1 + step) / (10 + step)))
        save_file({name: value.contiguous() for name, value in average.state_dict().items()}, file)
    network.load_state_dict(load_file(file))
    return network.eval().requires_grad_(False)


def attacked(name: str, release: Release, inside: Cohort, outside: Cohort) -> Findings:
    """The suite's findings, kept; a report beside them to look at (never committed: it holds real images)."""
    file = WORK / f"{name}.json"
    if not file.exists():
        public = read_people(str(SHARED / "public"))
        bar = tqdm(desc=name)
        found = run(
            release,
            inside,
            outside,
            public.images,
            groups=public.patients,
            policy=GATE,
            draws=DRAWS,
            seed=0,
            progress=lambda what, done, of: bar.set_postfix_str(f"{what} {done}/{of}"),
        )
        bar.close()
        file.write_text(found.model_dump_json())
        (WORK / f"{name}.html").write_text(render_findings(found, verdict=decide(found, GATE), facts={"Release": name}))
    return Findings.model_validate_json(file.read_text())


def attack_rows(name: str, found: Findings, *, goal: bool) -> Iterator[dict[str, object]]:
    """AUC of each attack, the strongest of each kind held against .8 where ``goal``; and the gate's verdict."""
    for kind in ("white-box", "black-box"):
        deciding = [attack for attack in found.attacks if attack.kind == kind and not attack.diagnostic]
        best = max(deciding, key=lambda attack: attack.auc, default=None)
        for attack in (a for a in found.attacks if a.kind == kind):
            judged = {"goal": ">= .8, interval above .7", "met": attack.auc >= 0.8 and attack.low > 0.7} if goal and attack is best else {}
            shown = f"AUC, {name}, {attack.name} ({kind}{', diagnostic' if attack.diagnostic else ''})"
            beside = {"peer": "would have caught", "peer_value": attack.caught}
            yield row(shown, attack.auc, "AUC", low=attack.low, high=attack.high, **beside, **judged)  # type: ignore[arg-type]
    verdict = decide(found, GATE)
    wanted = "refuse" if goal else "release"
    yield row(f"gate, {name}: 1 is {wanted}", float(verdict.verdict == wanted), "verdict", goal=wanted, met=verdict.verdict == wanted)
    for label, copies in (("as they are", found.near_copies), ("after registration", found.registered_copies)):
        yield row(
            f"copies, {name}, {label}, of {copies.compared}", copies.count, "images", peer="of holdout patients", peer_value=copies.holdout_count
        )
    print(f"{name}: {verdict.verdict}", *verdict.reasons, sep="\n  ")


def changed(image: Images, rng: np.random.Generator) -> Images:
    """A copy with crop, mirror and gray map."""
    from PIL import Image

    px = image.shape[0]
    size = int(rng.uniform(0.78, 0.95) * px)
    x, y = rng.integers(0, px - size + 1, 2)
    part = Image.fromarray(image[y : y + size, x : x + size]).resize((px, px), Image.Resampling.LANCZOS)
    found = np.asarray(part)[:, ::-1] / 255
    return np.round(255 * np.clip(rng.uniform(0.85, 1.15) * found ** rng.uniform(0.6, 1.6), 0, 1)).astype(np.uint8)


def planted() -> Iterator[dict[str, object]]:
    """Share of planted copies that are found, and false alarms among images that are nobody's."""
    inside, outside = sides()
    clean, rng = pool(0)[0][: 4 * PER_CLASS], np.random.default_rng(5)
    rows = [rows[0] for rows in inside.patient_rows().values()]
    kinds = {"verbatim": (inside.images[rows], 0.9), "crop, mirror and gray map": (np.stack([changed(inside.images[r], rng) for r in rows]), 0.8)}
    for kind, (copies, least) in kinds.items():
        found = extract(np.concatenate([clean, copies]), inside, outside)
        caught = int((found.members.distance[len(clean) :] < found.threshold).sum())
        low, high = map(float, share_bounds(caught, len(copies), alarm=0.025))
        share = caught / len(copies)
        yield row(f"planted copies found, {kind}, of {len(copies)}", share, "share", low=low, high=high, goal=f">= {least:g}", met=share >= least)
        alarms = int((found.members.distance[: len(clean)] < found.threshold).sum())
        yield row(f"false alarms among {len(clean)} images of the foundation, beside {kind}", alarms, "images", goal="0", met=alarms == 0)


def ours(hospital: str) -> tuple[Release, Cohort, Cohort]:
    """The planner's choice at epsilon 8: what is released, members and holdout."""
    inside = members(hospital)
    plan = recommend(policy=policy(hospital), epsilon=8.0, delta=DELTA)
    folder = WORK / f"ours-{hospital}"
    adaptation.run(shipped(), inside, plan, folder=folder, reference=reference, progress=lambda *_: None, source=SeededGaussian(7))
    found = adaptation.load(shipped(), plan, folder, allow_seeded=True)
    images, classes = pool(0)
    weights = pool_weights(looked(0), classes, found.styles, found.means, {p.class_index: PER_CLASS for p in LESIONS})
    rng, out = np.random.default_rng(3), []
    for pathology in LESIONS:
        own = np.flatnonzero(classes == pathology.class_index)
        picked, styles = choose(weights[:, own], PER_CLASS, rng)
        out += [restyle(images[own[r]][None], STYLES[s])[0] for r, s in zip(picked, styles, strict=True)]
    trained = "nothing was trained, so the network is the public foundation as it was"
    return Release(images=np.stack(out), epsilon=8.0, delta=DELTA, no_access=trained), inside, members(hospital, "holdout")


def plot(found: dict[str, Findings]) -> None:
    """AUC of every attack with its interval, a colour a release; what it would have caught as a stroke."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = [attack.name for attack in found["memoriser"].attacks]
    figure, axis = plt.subplots(figsize=(9, 0.55 * len(names) + 1.6), layout="constrained")
    for number, (name, findings) in enumerate(found.items()):
        for attack in findings.attacks:
            y = names.index(attack.name) + 0.16 * (number - (len(found) - 1) / 2)
            bar = [[max(attack.auc - attack.low, 0)], [max(attack.high - attack.auc, 0)]]
            axis.errorbar(
                attack.auc, y, xerr=bar, fmt="o", ms=5, capsize=2, color=f"C{number}", label=name if attack is findings.attacks[0] else None
            )
            if attack.caught is not None:
                axis.plot([attack.caught] * 2, [y - 0.07, y + 0.07], color=f"C{number}", lw=1.2)
    axis.axvline(0.5, color="0.6", ls="--", lw=1)
    axis.set(
        xlabel="attack AUC by patient, 95 %; stroke: the leak it would have caught four times out of five",
        yticks=range(len(names)),
        yticklabels=names,
    )
    axis.invert_yaxis()
    axis.legend(loc="center left")
    figure.savefig(RESULTS / "audit_power.png", dpi=110)


def main() -> None:
    """Measure and write ``bench/results/audit_power{.json,.png}``."""
    WORK.mkdir(parents=True, exist_ok=True)
    (ROOT / "bench" / "work" / "adaptation" / "runs").mkdir(parents=True, exist_ok=True)
    assert CANDIDATES == 4
    rows, found = list(planted()), {}
    network = memoriser()
    released = WORK / "memoriser-images.npy"
    if not released.exists():
        np.save(released, generated(shipped(), per_class=PER_CLASS, network=network, seed=77, classes=LESIONS)[0])
    access = Access(adapted=network, reference=shipped().network, scheduler=shipped().scheduler)
    found["memoriser"] = attacked("memoriser", Release(images=np.load(released), access=access, shadows=shadows()), *sides())
    rows += attack_rows("memoriser", found["memoriser"], goal=True)
    for hospital in HOSPITALS:
        found[f"ours, {hospital}"] = attacked(f"ours-{hospital}", *ours(hospital))
        rows += attack_rows(f"ours, epsilon 8, {hospital}", found[f"ours, {hospital}"], goal=False)
    plot(found)
    write("audit_power", rows)


if __name__ == "__main__":
    sys.exit(main())
