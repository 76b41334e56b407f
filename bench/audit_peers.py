"""What mostlyai-qa, SDMetrics and Anonymeter say of the releases that ``bench.audit_power`` attacks, beside our gate.

Releases: what the memoriser of 60 patients of ``warsaw`` draws; copies of their images among as many images of the foundation, as they are, and
with crop, mirror and gray map; images of the foundation alone, which learnt nothing of ``warsaw``, so that each alarm is a false one; ours at
epsilon 8 for each hospital. The peers are for tables: they get the suite's embedding, a column a feature, and Anonymeter the label too. They
live in a Python of their own, in ``bench/work/peers`` (``requirements-audit_peers.txt``; Python 3.11 or 3.12), and ask for no network there.
What counts as an alarm, and whose threshold it is: ``bench.peer_metrics``. No goal: the figures stand side by side. The polars frames of
Anonymeter's one-column attack follow no seed, so its figures move a little.

Where they do not apply: Anonymeter's linkability supposes two parties who each hold some columns of a patient, which halves of an embedding
only imitate; its inference of a device has nothing to guess, as no release names one; mostlyai-qa's report refuses the memoriser's
60 training rows and its text and sequence metrics have nothing to look at; none has a word for pixels, registration, or the patient as unit.

Expected before measuring: all see verbatim copies, but not all by a threshold of their own; DCR shares see the memoriser, new rows and identical
matches neither it nor changed copies, which are not equal to the last bit; ours raise one alarm in twenty, and more by mostlyai-qa's DCR
share, which is the largest of seven.

Found: the memoriser, whose members our attacks name without error, passes every search for equal rows, both ways of singling out and SDMetrics:
its overfitting protection is .99 and its baseline protection .55, better than of images that learnt nothing (.83 and .51, on the hospital's own
split), so that who ranks releases by either picks the memoriser. mostlyai-qa's DCR share and Anonymeter's linkability and inference do see it,
and changed copies in part. Where nothing was learnt SDMetrics' share raises an alarm in two draws of three: a hundred real rows of a side differ
by chance more than a sign test over released rows knows. Ours pass in most draws but for that share in warsaw, as there where nothing was learnt.
"""

import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from bench.adaptation import members, pool
from bench.audit_power import GATE, MEMBERS, PER_CLASS, WORK, attacked, changed, ours, sides
from bench.foundation import HOSPITALS, LESIONS
from bench.rows import RESULTS, row, write
from busgen_core.labels import Pathology
from busgen_core.sampling import SamplePlan
from busgen_privacy.attacked import Release
from busgen_privacy.cohort import Cohort
from busgen_privacy.findings import Findings
from busgen_privacy.gate import decide
from busgen_privacy.suite import Embedded

DRAWS = int(os.environ.get("BUSGEN_BENCH_DRAWS", "3"))
PEERS = WORK.parent / "peers"
REQUIREMENTS = Path(__file__).with_name("requirements-audit_peers.txt")
READING = {
    "mostlyai-qa": "'significantly' as a sign test",
    "SDMetrics": "our sign test, it has no threshold",
    "Anonymeter": "its interval above 0, it has no threshold",
}
QUIET = {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}

Images = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """A release, its two sides, and what our suite found."""

    name: str
    images: Images
    labels: Sequence[Pathology]
    inside: Cohort
    outside: Cohort
    findings: Findings


@dataclass(frozen=True, kw_only=True)
class Said:
    """One metric of a peer on one release, over the draws of equal sides.

    Attributes:
        peer: Who.
        metric: What.
        values: Of each draw.
        holdout: The same against people never seen, mean; None where the metric has no such twin.
        alarms: Share of draws with an alarm; None where nothing says what would be one.
        untrusted: Draws in which the peer says that its result cannot be trusted.
    """

    peer: str
    metric: str
    values: tuple[float, ...]
    holdout: float | None
    alarms: float | None
    untrusted: int

    @property
    def silent(self) -> bool:
        """Whether most draws pass without an alarm."""
        return self.alarms is None or self.alarms <= 0.5


def releases() -> Iterator[Attacked]:
    """The memoriser's, copies, nothing learnt, and ours."""
    inside, outside = sides()
    labels = SamplePlan(seed=77, counts=dict.fromkeys(LESIONS, PER_CLASS)).pathologies  # as bench.audit_power draws them
    images = np.load(made("memoriser-images.npy"))
    yield Attacked(name="memoriser", images=images, labels=labels, inside=inside, outside=outside, findings=found("memoriser"))
    rng = np.random.default_rng(5)
    yield copies("verbatim copies", inside.images, inside, outside)
    yield copies("changed copies", np.stack([changed(image, rng) for image in inside.images]), inside, outside)
    yield copies("nothing learnt", members("warsaw").images[:0], members("warsaw"), members("warsaw", "holdout"), clean=2 * PER_CLASS)
    for hospital in HOSPITALS:
        findings = found(f"ours-{hospital}")
        release, inside, outside = ours(hospital)
        labels = [pathology for pathology in LESIONS for _ in range(PER_CLASS)]
        yield Attacked(name=f"ours, {hospital}", images=release.images, labels=labels, inside=inside, outside=outside, findings=findings)


def copies(name: str, copied: Images, inside: Cohort, outside: Cohort, *, clean: int = MEMBERS) -> Attacked:
    """Copies of the members' images in their order, or none, among ``clean`` images of the foundation."""
    by_index = {pathology.class_index: pathology for pathology in Pathology}
    images, classes = (column[:clean] for column in pool(0))
    labels = [*inside.classes[: len(copied)], *(by_index[int(c)] for c in classes)]
    release = Release(images=np.concatenate([copied, images]), no_access="it is a list of images")
    findings = attacked(f"peers-{name.replace(' ', '-')}", release, inside, outside)
    return Attacked(name=name, images=release.images, labels=labels, inside=inside, outside=outside, findings=findings)


def made(name: str) -> Path:
    """A file of ``bench.audit_power``."""
    if not (WORK / name).exists():
        sys.exit(f"{name} is not there yet: run make bench NAME=audit_power first")
    return WORK / name


def found(name: str) -> Findings:
    """What the suite found on a release of ``bench.audit_power``."""
    return Findings.model_validate_json(made(f"{name}.json").read_text())


def interpreter() -> Path:
    """The peers' Python, made once for these pins. Text models are left out: columns of numbers need none."""
    marker, python = PEERS / "installed.txt", PEERS / "venv" / "bin" / "python"
    if not marker.exists() or marker.read_text() != REQUIREMENTS.read_text():
        venv.create(PEERS / "venv", clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", REQUIREMENTS], check=True)
        marker.write_text(REQUIREMENTS.read_text())
    return python


def features(release: Attacked) -> dict[str, NDArray[np.float32]]:
    """The suite's embedding of the three sets; equal images get equal rows to the last bit, which batches alone do not promise."""
    looked = Embedded.of(release.images, release.inside, release.outside, release.images[:1], lambda *_: None)
    rows = {"released": (release.images, looked.released)} | {
        side: (cohort.images, values) for side, (cohort, values) in (("members", looked.members), ("holdout", looked.holdout))
    }
    everything, values = (np.concatenate([pair[place] for pair in rows.values()]) for place in (0, 1))
    _, first, inverse = np.unique(everything.reshape(len(everything), -1), axis=0, return_index=True, return_inverse=True)
    parts = np.split(values[first[inverse.ravel()]], np.cumsum([len(pair[0]) for pair in rows.values()])[:-1])
    return dict(zip(rows, parts, strict=True))


def asked(release: Attacked, python: Path) -> list[Said]:
    """What the peers say of a release."""
    labels = {"released": release.labels, "members": release.inside.classes, "holdout": release.outside.classes}
    with TemporaryDirectory() as folder:
        given, answer = Path(folder) / "figures.npz", Path(folder) / "found.json"
        words = {f"{side}_labels": np.array([label.value for label in column]) for side, column in labels.items()}
        np.savez(given, draws=DRAWS, **features(release), **words)
        script = Path(__file__).with_name("peer_metrics.py")
        subprocess.run([python, "-I", script, given, answer], check=True, env={**os.environ, **QUIET})
        told = json.loads(answer.read_text())
    metrics = dict.fromkeys((one["peer"], one["metric"]) for one in told)
    return [said(peer, metric, [one for one in told if (one["peer"], one["metric"]) == (peer, metric)]) for peer, metric in metrics]


def said(peer: str, metric: str, told: Sequence[Mapping[str, object]]) -> Said:
    """The draws of one metric together."""
    values, alarms = tuple(float(str(one["value"])) for one in told), [one["alarm"] for one in told]
    holdout = None if told[0]["holdout"] is None else mean(float(str(one["holdout"])) for one in told)
    share = None if None in alarms else mean(map(bool, alarms))
    return Said(peer=peer, metric=metric, values=values, holdout=holdout, alarms=share, untrusted=sum(not one["trusted"] for one in told))


def rows_of(release: Attacked, answers: Sequence[Said]) -> Iterator[dict[str, object]]:
    """The gate's verdict beside the strongest attack, then each metric beside its alarms."""
    verdict = decide(release.findings, GATE).verdict
    best = max((attack for attack in release.findings.attacks if not attack.diagnostic), key=lambda attack: attack.auc)
    attack = {"peer": f"AUC of the strongest attack, {best.name}", "peer_value": best.auc}
    yield row(f"our gate, {release.name}: 1 is refuse", float(verdict == "refuse"), "verdict", **attack)  # type: ignore[arg-type]
    for one in answers:
        doubt = f"; not to be trusted in {one.untrusted} by its own word" if one.untrusted else ""
        draws = f"range of {len(one.values)} draws" if len(one.values) > 1 else "one draw"
        name = f"{one.peer}, {one.metric}, {release.name} ({draws}{doubt})"
        alarms = "nothing to judge by" if one.alarms is None else f"share of draws with an alarm ({READING[one.peer]})"
        twin = "" if one.holdout is None else f"; against holdout {one.holdout:.3g}"
        beside = {"peer": alarms + twin, "peer_value": None if one.alarms is None else round(one.alarms, 2)}
        yield row(name, mean(one.values), "figure", low=min(one.values), high=max(one.values), seeds=len(one.values), **beside)  # type: ignore[arg-type]


def in_words(release: Attacked, answers: Sequence[Said]) -> str:
    """Who missed what our gate refused, or who raised an alarm where it released."""
    refused = decide(release.findings, GATE).verdict == "refuse"
    named = "; ".join(f"{one.peer}, {one.metric}" for one in answers if one.alarms is not None and one.silent == refused) or "none"
    mute = "; ".join(f"{one.peer}, {one.metric}" for one in answers if one.alarms is None)
    what = "our gate refuses it; these passed it" if refused else "our gate releases it; these raised an alarm"
    return f"{release.name}: {what}: {named}. No threshold to judge by: {mute}."


def plot(table: Mapping[str, Sequence[Said]], verdicts: Mapping[str, str]) -> None:
    """A row a metric, a column a release: the mean figure, coloured by its alarms."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    first = next(iter(table.values()))
    shares = np.array([[np.nan if one.alarms is None else one.alarms for one in column] for column in table.values()]).T
    figure, axis = plt.subplots(figsize=(12, 0.4 * len(first) + 1.6), layout="constrained")
    axis.imshow(np.ma.masked_invalid(shares), cmap=mpl.colormaps["Reds"].with_extremes(bad="0.9"), vmin=0, vmax=2, aspect="auto")
    for x, column in enumerate(table.values()):
        for y, one in enumerate(column):
            axis.text(x, y, f"{mean(one.values):.3g}", ha="center", va="center", fontsize=9)
    axis.set(
        xticks=range(len(table)),
        xticklabels=[f"{name}\ngate: {verdicts[name]}" for name in table],
        yticks=range(len(first)),
        yticklabels=[f"{one.peer}: {one.metric}" for one in first],
        title="red: alarms, darker in more draws; white: none; gray: no threshold",
    )
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figure.savefig(RESULTS / "audit_peers.png", dpi=110)


def main() -> None:
    """Measure and write ``bench/results/audit_peers{.json,.png}``."""
    python, rows, table, verdicts, words = interpreter(), [], {}, {}, []
    for release in releases():
        table[release.name] = asked(release, python)
        verdicts[release.name] = decide(release.findings, GATE).verdict
        rows += rows_of(release, table[release.name])
        words.append(in_words(release, table[release.name]))
    plot(table, verdicts)
    write("audit_peers", rows)
    print(*words, sep="\n")


if __name__ == "__main__":
    sys.exit(main())
