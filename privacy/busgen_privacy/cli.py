"""The command ``busgen-audit``: attack a release before it leaves, whoever made it. Exit status: 0 release, 1 refused or invalid, 2 wrong usage."""

import datetime
import secrets
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Never, TypedDict

import numpy as np
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from busgen_core.console import run_command
from busgen_core.errors import GateRefusedError, InputError
from busgen_core.files import write_whole
from busgen_core.images import encode_png

if TYPE_CHECKING:
    from busgen_core.foundation import Foundation
    from busgen_privacy.attacks.base import Access
    from busgen_privacy.shadows import Shadows

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Images = NDArray[np.uint8]
PX = 64  # what is attacked (``folders.PX``)
REFERENCE = 400  # images of the foundation, where no public ones are given
SHOWN = 8  # nearest pairs in the report
EACH = "; where no table names patients, each image counts as one"

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
    public: Annotated[str | None, typer.Option(help="Public images to calibrate on; not given, the foundation's are drawn.")] = None,
    more: Annotated[Path | None, typer.Option(help="Further images of the same generator, for extraction; ten times the release is usual.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Claim, where the release has no manifest; of composed Gaussian mechanisms.")] = None,
    delta: Annotated[float | None, typer.Option(help="Delta of that claim.")] = None,
    one_image_per_patient: Annotated[
        bool, typer.Option("--one-image-per-patient", help="Where no table names patients: each real image is of another one.")
    ] = False,
    member_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Chance with which each patient became a member, each by a draw of its own; for a bound of ε.")
    ] = None,
    network: Annotated[Path | None, typer.Option(help="Adapted network, for white-box attacks: safetensors of the foundation's parameters.")] = None,
    shadow: Annotated[list[Path] | None, typer.Option(help="Like --network, adapted to patients of neither side; may be repeated.")] = None,
    foundation: Annotated[Path | None, typer.Option(help="Folder of the foundation that was adapted; not given, the shipped one.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of everything random; not given, it is drawn, and stands in both files.")] = None,
) -> None:
    """Attack a release and let the gate judge what was found. Signatures are not checked here: 'busgen-hub verify' does that.

    With --network, the adapted network is attacked as well; with --shadow too, the reference-model attack is among these.

    Exit status: 0 the gate would release, 1 it refuses or the input is invalid, 2 wrong usage.
    """
    from busgen_privacy.attacked import Release
    from busgen_privacy.findings_report import render_findings
    from busgen_privacy.folders import check_claim, read_people, read_release
    from busgen_privacy.gate import decide
    from busgen_privacy.policy import GatePolicy
    from busgen_privacy.suite import DRAWS, run

    if shadow and network is None:
        raise typer.BadParameter("--shadow is for attacks on a network: give --network too")
    if member_share is not None and not 0 < member_share < 1:
        raise typer.BadParameter("--member-share lies between 0 and 1")
    if (epsilon is None) != (delta is None):
        raise typer.BadParameter("a claim has both --epsilon and --delta")
    if epsilon is not None and delta is not None:
        check_claim(epsilon, delta)
    _check_out(out, release, [where for where in (members, holdout, public) if where is not None], more)
    found, policy, bars = read_release(release), GatePolicy(), Bars()
    inside, outside = (read_people(where, one_image_each=one_image_per_patient) for where in (members, holdout))
    seed = secrets.randbits(32) if seed is None else seed
    known, groups, scanners = _public(public, foundation, bars)
    subject = Release(
        images=found.images,
        more=None if more is None else read_release(more).images,
        epsilon=found.epsilon if epsilon is None else epsilon,
        delta=found.delta if delta is None else delta,
        member_share=member_share,
        **_networks(network, shadow or (), foundation),
    )
    findings = run(subject, inside, outside, known, groups=groups, scanners=scanners, policy=policy, draws=DRAWS, seed=seed, progress=bars)
    bars.close()
    verdict = decide(findings, policy)
    generated = found.images if subject.more is None else np.concatenate([found.images, subject.more])
    closest = findings.registered_copies.closest[:SHOWN]
    pairs = [(encode_png(inside.images[pair.member]), encode_png(generated[pair.released])) for pair in closest]
    facts = {
        "Release": found.name,
        "Date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "Synthetic images": str(len(found.images)),
        "Searched for copies": f"{len(generated)} images: the released ones and {len(generated) - len(found.images)} more",
        "Claim": _claimed(subject.epsilon, subject.delta, by="the command line" if epsilon is not None else "the release's manifest"),
        "Real patients": f"{findings.members} members, {findings.holdout} in the holdout{EACH if one_image_per_patient else ''}",
        "Calibrated on": f"{len(known)} {'images of the foundation' if public is None else 'public images'}",
        "Adapted network": _told(network, shadow or ()),
        "Seed": str(seed),
    }
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(out / "audit.json", findings.model_dump_json(indent=1).encode(), mode=0o600)
    write_whole(out / "audit.html", render_findings(findings, verdict=verdict, facts=facts, pairs=pairs).encode(), mode=0o600)
    typer.echo(f"{verdict.verdict}: {out / 'audit.html'} (seed {seed})")
    if verdict.verdict != "release":
        raise GateRefusedError(" ".join(verdict.reasons))


def _check_out(out: Path, release: Path, real: Sequence[str], more: Path | None) -> None:
    """Refuse to write exact figures and real images into a folder that is about to be shared, or among the images that are read."""
    from busgen_privacy.folders import folder_of

    folders = [shared_folder(release), *(folder_of(where) for where in real), *([] if more is None else [shared_folder(more)])]
    if any(out.resolve().is_relative_to(folder.resolve()) for folder in folders):
        raise InputError("--out lies in the release or in a folder of images; its files are exact and must not leave, so name a folder elsewhere")


def shared_folder(release: Path) -> Path:
    """The folder that leaves with a release; for a Parquet file the one that has its manifest, or the file alone."""
    folders = [folder for folder in release.resolve().parents[:2] if (folder / "manifest.json").is_file()]
    return folders[0] if folders and release.suffix == ".parquet" else release


def _claimed(epsilon: float | None, delta: float | None, *, by: str) -> str:
    return "none" if epsilon is None or delta is None else f"epsilon {epsilon:g} at delta {delta:g}, as {by} says: not verified"


def _told(network: Path | None, shadows: Sequence[Path]) -> str:
    beside = f", beside {len(shadows)} adapted to other patients" if shadows else ""
    return "not given" if network is None else f"attacked{beside}"


class _Attacked(TypedDict):
    access: "Access | None"
    shadows: "Shadows | None"


def _networks(network: Path | None, shadows: Sequence[Path], foundation: Path | None) -> _Attacked:
    """What white-box attacks need: the adapted network, the foundation, and networks adapted to others."""
    if network is None:
        return {"access": None, "shadows": None}
    from busgen_privacy.attacks.base import Access
    from busgen_privacy.dp.checkpoints import load_weights
    from busgen_privacy.shadows import Shadows

    base = _foundation(foundation)
    if base.image_px != PX:
        raise InputError(f"networks are attacked at {PX} px; this foundation's images have {base.image_px}")
    access = Access(adapted=load_weights(base, network), reference=base.network, scheduler=base.scheduler)
    others = tuple(load_weights(base, file) for file in shadows)
    return {"access": access, "shadows": Shadows(networks=others) if others else None}


def _foundation(where: Path | None) -> "Foundation":
    from busgen_core.cli import SHIPPED
    from busgen_core.foundation import load_foundation

    return load_foundation(SHIPPED if where is None else where)


def _public(where: str | None, base: Path | None, bars: Bars) -> tuple[Images, tuple[str, ...], tuple[str, ...]]:
    """Images of nobody here, and their patients and scanners where they have some."""
    from busgen_privacy.folders import read_people, read_scanners

    if where is not None:
        people = read_people(where, one_image_each=True)
        return people.images, people.patients, read_scanners(where)
    from busgen_core.labels import Pathology
    from busgen_core.sampling import SamplePlan, plan_images

    foundation, lesions = _foundation(base), (Pathology.BENIGN, Pathology.MALIGNANT)
    if foundation.image_px != PX:
        raise InputError(f"this foundation does not draw images of {PX} px; give public images")
    plan = SamplePlan(seed=20_262, counts=dict.fromkeys(lesions, REFERENCE // 2))
    return plan_images(foundation, plan, progress=partial(bars, "drawing reference images")), (), ()


def main() -> None:
    """Run the command line."""
    run_command("busgen-audit", app)
