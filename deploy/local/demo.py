"""``make demo``: one round of the consortium on this machine, from DICOM files to scores, with a report at the end."""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import busgen_core
from busgen_client.cohort import CohortStore, open_cohort
from busgen_client.database import open_store as open_node
from busgen_client.jobs import JobStore
from busgen_client.papers import Paper, read_paper
from busgen_client.protocol import job_folder
from busgen_client.settings import load_settings
from busgen_core.errors import BusgenError, UnavailableError
from busgen_core.wire import JobState
from busgen_privacy.cohort import Cohort
from busgen_privacy.findings import Findings
from busgen_server.database import ResultRow
from busgen_server.database import open_store as open_hub
from busgen_server.store import POOL, HubStore
from deploy.local.baselines import Score, baselines
from deploy.local.consortium import Consortium, Site, run, running

ROOT = Path(__file__).parents[2]
FOUNDATION = Path(busgen_core.__file__).parent / "foundations" / "cpu-64"
CAMPAIGN = "demo-1"
LONGEST_SECONDS = 3600
STEPS = {state: i for i, state in enumerate(["", "offered", "accepted", "adapting", "generating", "auditing", "review", "released"])}


@dataclass(frozen=True, kw_only=True)
class SiteReport:
    """One line of the demo's report; numbers of patients are stated because the demo's data are public."""

    name: str
    members: int
    holdout: int
    epsilon: float | None
    delta: float
    job_state: str
    gate: str
    attack_auc: float | None
    release_images: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much work a demo is."""

    images: int
    normal: int


PHANTOM_PATIENTS = 160
PHANTOM_SITES = {"alpha": 100, "beta": 100, "gamma": 100}
REAL_SITES = {"cairo": 350, "rio": 300, "warsaw": 150}  # public, round statements of the cohorts
PHANTOM_SCALE = Scale(images=120, normal=60)
REAL_SCALE = Scale(images=300, normal=100)


def main() -> int:
    """Run the demo; 0 when every site released."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--images", type=Path, help="folder with cairo/, rio/, warsaw/ (images.csv each); phantoms without it")
    parser.add_argument("--stay", action="store_true", help="leave the consortium and its dashboard running until Ctrl-C")
    parser.add_argument("--folder", type=Path, default=ROOT / "demo", help="where hub and nodes keep their data; emptied first")
    parser.add_argument("--report", type=Path, default=ROOT / "demo-report.json")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a stopped demo stops its processes
    started = time.monotonic()
    names = REAL_SITES if options.images else PHANTOM_SITES
    scale = REAL_SCALE if options.images else PHANTOM_SCALE
    shutil.rmtree(options.folder, ignore_errors=True)
    threads = max(1, (os.cpu_count() or 2) // len(names))
    sites = [Site(name=name, public_cohort=size, settings={"adapt": {"threads": threads}}) for name, size in names.items()]
    consortium = Consortium(folder=options.folder.absolute(), foundation=FOUNDATION, sites=sites)
    try:
        with running(consortium):
            _say(f"hub and {len(sites)} nodes are running; dashboard: http://127.0.0.1:{consortium.ports['dashboard']}/")
            _take_in(consortium, options.images)
            run(
                *("busgen-hub", "campaign", "create", CAMPAIGN, "--images", scale.images, "--normal", scale.normal),
                *("--config", consortium.hub_config),
            )
            _conduct(consortium)
            lines, cohorts = _site_lines(consortium)
            report = _report(consortium, lines, cohorts, scale, started)
            options.report.write_text(json.dumps(report, indent=1) + "\n")
            _print(report)
            released = sum(line.job_state == "released" for line in lines)
            if options.stay:
                _say(f"dashboard: http://127.0.0.1:{consortium.ports['dashboard']}/  (Ctrl-C ends the consortium)")
                _stay()
    except BusgenError as error:
        _say(f"demo: {error.code}: {error}\nlogs: {options.folder}")
        return 1
    return 0 if released == len(sites) else 1


def _take_in(consortium: Consortium, images: Path | None) -> None:
    """Intake at every node, through its command; phantoms are written as DICOM files first."""
    for number, site in enumerate(consortium.sites):
        config = consortium.node_config(site.name)
        if images:
            said = run("busgen-node", "intake", "table", images.absolute() / site.name, "--config", config)
        else:
            from busgen_client.intake.phantom_dicom import write_phantom_study

            pacs = consortium.folder / f"{site.name}-pacs"
            write_phantom_study(pacs, site=site.name, patients=PHANTOM_PATIENTS, seed=number)
            said = run("busgen-node", "intake", "folder", pacs, "--labels", pacs / "labels.csv", "--config", config)
        _say(f"{site.name}: intake: {said.strip()}")


def _conduct(consortium: Consortium) -> None:
    """Wait for the campaign's end; sign for each privacy officer when a release waits for review."""
    store = _hub(consortium)
    jobs = {s.name: JobStore(open_node(consortium.node_config(s.name).parent / "data")) for s in consortium.sites}
    end = time.monotonic() + LONGEST_SECONDS
    bars = {name: tqdm(total=len(STEPS), desc=f"{name:>8}", position=i, bar_format="{desc} {bar:24} {postfix}") for i, name in enumerate(jobs)}
    signed: set[str] = set()
    while store.campaign_row(CAMPAIGN).state in ("open", "scoring"):
        for name, job_store in jobs.items():
            row = job_store.get(CAMPAIGN)
            state = row.state if row else ""
            bars[name].n = STEPS.get(state, 0) + (row.progress if row else 0)
            bars[name].set_postfix_str(f"{state} {row.progress:.0%}" if row else "waiting for the offer")
            if state == JobState.REVIEW and name not in signed:
                signed.add(name)
                config = consortium.node_config(name)
                run("busgen-node", "review", "approve", CAMPAIGN, "--passphrase-file", consortium.passphrase_file, "--config", config)
        if time.monotonic() > end:
            raise UnavailableError(f"the campaign did not end within {LONGEST_SECONDS} s; see the logs")
        time.sleep(1)
    for bar in bars.values():
        bar.close()


def _audit_of(cohort: CohortStore) -> Findings | None:
    """A node's exact audit; None where its job came to none."""
    if not (job_folder(cohort.data, CAMPAIGN) / Paper.AUDIT).exists():
        return None
    return Findings.model_validate_json(read_paper(cohort.vault, cohort.data, CAMPAIGN, Paper.AUDIT))


def _site_lines(consortium: Consortium) -> tuple[list[SiteReport], dict[str, tuple[Cohort, Cohort]]]:
    """One line for each site, read from the nodes' own stores, and every site's members and holdout."""
    store = _hub(consortium)
    campaign = store.campaign(CAMPAIGN)
    releases = {r.site: r for r in store.releases(campaign_id=CAMPAIGN)}
    lines: list[SiteReport] = []
    cohorts: dict[str, tuple[Cohort, Cohort]] = {}
    for site in consortium.sites:
        settings = load_settings(consortium.node_config(site.name))
        cohort = open_cohort(settings)
        cohorts[site.name] = (cohort.load("member"), cohort.load("holdout"))
        job = JobStore(cohort.engine).need(CAMPAIGN)
        audit = _audit_of(cohort)
        release = releases.get(site.name)
        lines.append(
            SiteReport(
                name=site.name,
                members=cohort.count_patients("member"),
                holdout=cohort.count_patients("holdout"),
                epsilon=release.epsilon if release else None,
                delta=campaign.delta,
                job_state=job.state,
                gate=release.gate if release else "",
                attack_auc=round(max(a.auc for a in audit.attacks if not a.diagnostic), 4) if audit else None,
                release_images=release.images if release and release.state == "admitted" else 0,
                seconds=round(job.updated - job.created, 1),
            )
        )
    return lines, cohorts


def _hub(consortium: Consortium) -> HubStore:
    return HubStore(open_hub(consortium.hub_config.parent / "data"))


def _report(
    consortium: Consortium, lines: list[SiteReport], cohorts: dict[str, tuple[Cohort, Cohort]], scale: Scale, started: float
) -> dict[str, Any]:
    """The demo's report; its baselines go to the hub's result table too, marked as such."""
    store = _hub(consortium)
    scores = baselines(FOUNDATION, cohorts, images=scale.images * len(lines))
    rows = [
        ResultRow(campaign_id=CAMPAIGN, name=f"baseline: {name}", site=POOL, auc=s.auc, low=s.low, high=s.high, details={"baseline": True})
        for name, s in scores.items()
    ]
    store.upsert_results(rows)
    results = {r.name: r for r in store.results(CAMPAIGN) if r.site == POOL}
    pool = results.get(POOL)
    return {
        "sites": [asdict(line) for line in lines],
        "pool": {
            "tstr_auc": pool.auc if pool else None,
            "low": pool.low if pool else None,
            "high": pool.high if pool else None,
            "baselines": {name: _rounded(score) for name, score in scores.items()},
        },
        "wall_seconds": round(time.monotonic() - started, 1),
    }


def _rounded(score: Score) -> dict[str, float]:
    return {key: round(value, 4) for key, value in asdict(score).items()}


def _print(report: dict[str, Any]) -> None:
    table = Table(*report["sites"][0], title="One round of the consortium")
    for line in report["sites"]:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) and v > 1e-3 else str(v) for v in line.values()))
    pool = report["pool"]
    scores = Table("trained on", "AUC on all holdouts", "95 % interval", title="Benign against malignant")
    entries = {"pool of the releases": {"auc": pool["tstr_auc"], "low": pool["low"], "high": pool["high"]}, **pool["baselines"]}
    for name, score in entries.items():
        if score["auc"] is not None:
            scores.add_row(name, f"{score['auc']:.3f}", f"{score['low']:.3f} to {score['high']:.3f}")
    Console(width=118).print(table, scores, f"wall time {report['wall_seconds']:.0f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _stay() -> None:
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        _say("stopping")


if __name__ == "__main__":
    sys.exit(main())
