"""The command ``busgen-audit``: attack a release before it leaves, whoever made it. Exit status: 0 release, 1 refused or invalid, 2 wrong usage."""

import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Never

import numpy as np
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from busgen_core.console import run_command
from busgen_core.errors import GateRefusedError, InputError
from busgen_core.files import write_whole
from busgen_core.images import encode_png

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Images = NDArray[np.uint8]
REFERENCE = 400  # images of the shipped foundation, where no public ones are given
SHOWN = 8  # nearest pairs in the report

Real = Annotated[str, typer.Option(help="Real images: FOLDER, or FOLDER:ROLE to pick rows of its images.csv.")]


class Bars:
    """A progress bar for each part of the work."""

    def __init__(self) -> None:
        self.bar: tqdm[Never] | None = None

    def __call__(self, what: str, done: int, of: int) -> None:
        """Show that ``done`` of ``of`` are done."""
        if self.bar is None or self.bar.desc.removesuffix(": ") != what:
            self.close()
            self.bar = tqdm(total=of, desc=what)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        """Finish the last bar."""
        if self.bar is not None:
            self.bar.close()


@app.command()
def audit(
    release: Annotated[Path, typer.Argument(help="A release's folder, a Parquet file, or a folder of images.")],
    members: Real,
    holdout: Real,
    out: Annotated[Path, typer.Option(help="Folder for audit.json and audit.html; both are exact and must not leave.")] = Path("audit"),
    public: Annotated[str | None, typer.Option(help="Public images to calibrate on; not given, the shipped foundation's are drawn.")] = None,
    more: Annotated[Path | None, typer.Option(help="Further images of the same generator, for extraction; ten times the release is usual.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Claim, where the release has no manifest; of composed Gaussian mechanisms.")] = None,
    delta: Annotated[float | None, typer.Option(help="Delta of that claim.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 1,
) -> None:
    """Attack a release and let the gate judge what was found.

    Exit status: 0 the gate would release, 1 it refuses or the input is invalid, 2 wrong usage.
    """
    from busgen_privacy.findings_report import render_findings
    from busgen_privacy.folders import read_people, read_release
    from busgen_privacy.gate import decide
    from busgen_privacy.policy import GatePolicy
    from busgen_privacy.suite import Release, run

    if (epsilon is None) != (delta is None):
        raise typer.BadParameter("a claim has both --epsilon and --delta")
    found, inside, outside, policy, bars = read_release(release), read_people(members), read_people(holdout), GatePolicy(), Bars()
    known, groups = _public(public, bars)
    subject = Release(
        images=found.images,
        more=None if more is None else read_release(more).images,
        epsilon=found.epsilon if epsilon is None else epsilon,
        delta=found.delta if delta is None else delta,
    )
    findings = run(subject, inside, outside, known, groups=groups, policy=policy, draws=1, seed=seed, progress=bars)
    bars.close()
    verdict = decide(findings, policy)
    closest = findings.registered_copies.closest if more is None else findings.near_copies.closest
    pairs = [(encode_png(inside.images[pair.member]), encode_png(found.images[pair.released])) for pair in closest[:SHOWN]]
    facts = {
        "Release": found.name,
        "Date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "Synthetic images": str(len(found.images)),
        "Real patients": f"{findings.members} members, {findings.holdout} in the holdout",
        "Calibrated on": f"{len(known)} {'images of the shipped foundation' if public is None else 'public images'}",
    }
    write_whole(out / "audit.json", findings.model_dump_json(indent=1).encode())
    write_whole(out / "audit.html", render_findings(findings, verdict=verdict, facts=facts, pairs=pairs).encode())
    typer.echo(f"{verdict.verdict}: {out / 'audit.html'}")
    if verdict.verdict != "release":
        raise GateRefusedError(" ".join(verdict.reasons))


def _public(where: str | None, bars: Bars) -> tuple[Images, tuple[str, ...]]:
    """Images of nobody here, and their patients where they have some."""
    from busgen_privacy.folders import read_people

    if where is not None:
        people = read_people(where)
        return people.images, people.patients
    from busgen_core.cli import SHIPPED
    from busgen_core.foundation import load_foundation
    from busgen_core.labels import Pathology
    from busgen_core.sampling import SamplePlan, plan_images

    foundation, lesions = load_foundation(SHIPPED), (Pathology.BENIGN, Pathology.MALIGNANT)
    if foundation.image_px != 64:
        raise InputError("the shipped foundation does not draw images of 64 px; give public images")
    plan = SamplePlan(seed=20_262, counts=dict.fromkeys(lesions, REFERENCE // 2))
    return plan_images(foundation, plan, progress=partial(bars, "drawing reference images")), ()


def main() -> None:
    """Run the command line."""
    run_command("busgen-audit", app)
