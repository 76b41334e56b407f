"""The command ``busgen-core``. Exit status: 0 done, 1 refused or invalid, 2 wrong usage."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from busgen_core.console import run_command
from busgen_core.labels import Birads, Pathology

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
SHIPPED = Path(__file__).parent / "foundations" / "cpu-64"

Out = Annotated[Path, typer.Argument(help="Folder to write.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Size = Annotated[int, typer.Option(help="Rows and columns of the images, px.")]


@app.callback()
def core() -> None:
    """Phantoms, shards, foundations and samples."""


@app.command("phantoms")
def phantoms_command(
    out: Out, count: Annotated[int, typer.Option(help="Images, the three classes in turn.")] = 9000, size: Size = 64, seed: Seed = 1
) -> None:
    """Simulate phantoms into shards.

    Exit status: 0 done, 1 refused or invalid, 2 wrong usage.
    """
    from busgen_core.corpus import pack_phantoms

    typer.echo(f"{pack_phantoms(out, count=count, size=size, seed=seed)} phantoms")


@app.command("shards")
def shards_command(
    folder: Annotated[Path, typer.Argument(help="Folder with images.csv (columns file, mask_file, pathology; birads and device if known).")],
    out: Out,
    about: Annotated[str, typer.Option(help="Where the images come from and under which licence; model cards repeat it.")],
    size: Size = 64,
    views: Annotated[int, typer.Option(help="Each frame whole, and so many less one random views of it.")] = 4,
    seed: Seed = 1,
) -> None:
    """Pack public images into shards.

    Exit status: 0 done, 1 refused or invalid, 2 wrong usage.
    """
    from busgen_core.corpus import pack_public

    typer.echo(f"{pack_public(folder, out, size=size, views=views, seed=seed, about=about)} images")


@app.command("pretrain")
def pretrain_command(
    out: Annotated[Path, typer.Argument(help="Folder of the foundation; its run state lies beside it in OUT.run.")],
    source: Annotated[list[str], typer.Option(help="FOLDER=SHARE of shards, for example public=0.85; may be given again. The first fits the boxes.")],
    steps: Annotated[int, typer.Option(help="Training steps.")],
    preset: Annotated[str, typer.Option(help="cpu-64 or gpu-160.")] = "cpu-64",
    seed: Seed = 1,
    batch: Annotated[int, typer.Option(help="Images a step, over all processes.")] = 16,
    device: Annotated[list[str] | None, typer.Option(help="A device that can be asked for later; may be given again.")] = None,
    stop_after: Annotated[int | None, typer.Option(help="Stop after this step and write what there is; started again, it goes on.")] = None,
    track: Annotated[str | None, typer.Option(help="MLflow tracking address, for example sqlite:///mlflow.sqlite.")] = None,
) -> None:
    """Pretrain a foundation; started again, it goes on where it was. Several GPUs: accelerate launch -m busgen_core.cli pretrain ….

    Exit status: 0 done, 1 refused or invalid, 2 wrong usage.
    """
    from busgen_core.generator import PRESETS
    from busgen_core.pretrain import pretrain
    from busgen_core.tracking import track as begin_run
    from busgen_core.training import TrainingPlan

    if preset not in PRESETS:
        raise typer.BadParameter(f"{preset} is none of {list(PRESETS)}", param_hint="--preset")
    folders, shares = zip(*(_source(text) for text in source), strict=True)
    plan = TrainingPlan(seed=seed, steps=steps, shares=shares, batch=batch, shape=PRESETS[preset], devices=tuple(device or ()))
    log = begin_run(track, experiment="pretrain", run=out.name, parameters=asdict(plan)) if track else None
    typer.echo(f"foundation {pretrain(plan, folders, out, name=preset, log=log, stop_after=stop_after)}")


def _source(text: str) -> tuple[Path, float]:
    folder, _, share = text.rpartition("=")
    try:
        return Path(folder), float(share)
    except ValueError:
        raise typer.BadParameter(f"{text} is not FOLDER=SHARE", param_hint="--source") from None


@app.command("sample")
def sample_command(
    out: Out,
    count: Annotated[list[str], typer.Option(help="LABEL=NUMBER, for example benign=2000; may be given again.")],
    foundation: Annotated[Path, typer.Option(help="Folder of the foundation, or of import-busgen; the shipped one without it.")] = SHIPPED,
    seed: Seed = 1,
    birads: Annotated[Birads | None, typer.Option(help="Asked of lesion images.")] = None,
    device: Annotated[str | None, typer.Option(help="Asked of every image: a name from the foundation's card.")] = None,
    evaluations: Annotated[int | None, typer.Option(help="Denoising steps of an image; the measured default without it.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance w; 0, the default of ours, is none.")] = None,
) -> None:
    """Sample labelled images into Parquet shards; started again, it goes on where it was.

    Exit status: 0 done, 1 refused or invalid, 2 wrong usage.
    """
    from busgen_core.boxes import BoxDensity
    from busgen_core.foundation import load_foundation
    from busgen_core.official import load_official
    from busgen_core.sampling import EVALUATIONS, OFFICIAL_EVALUATIONS, OFFICIAL_GUIDANCE, OfficialFoundation, SamplePlan, sample_folder

    official = (foundation / "network.safetensors").is_file()
    steps, strength = (OFFICIAL_EVALUATIONS, OFFICIAL_GUIDANCE) if official else (EVALUATIONS, 0.0)
    plan = SamplePlan(
        seed=seed,
        counts=dict(_count(text) for text in count),
        birads=birads,
        device=device,
        evaluations=evaluations or steps,
        guidance=strength if guidance is None else guidance,
    )
    boxes = BoxDensity.model_validate_json((SHIPPED / "boxes.json").read_text())
    source = OfficialFoundation(load_official(foundation), boxes) if official else load_foundation(foundation)
    typer.echo(f"{sample_folder(source, plan, out)} images")


@app.command("train-encoder")
def encoder_command(
    out: Annotated[Path, typer.Argument(help="Folder of the encoder; its run state lies beside it in OUT.run.")],
    steps: Annotated[int, typer.Option(help="Training steps.")] = 2000,
    seed: Seed = 1,
    phantoms: Annotated[int, typer.Option(help="Distinct phantom frames.")] = 6000,
    public: Annotated[Path | None, typer.Option(help="Folder of public images with images.csv; phantoms alone without it.")] = None,
) -> None:
    """Train the encoder whose features measure image quality; started again, it goes on where it was.

    Exit status: 0 done, 1 refused or invalid, 2 wrong usage.
    """
    from busgen_core.quality.train_encoder import EncoderPlan, train_encoder

    digest = train_encoder(EncoderPlan(seed=seed, steps=steps, phantoms=phantoms), public=public, out=out)
    typer.echo(f"encoder {digest}")


@app.command("quality")
def quality_command(
    real: Annotated[Path, typer.Argument(help="Folder of real images with images.csv.")],
    samples: Annotated[Path, typer.Argument(help="Folder of Parquet shards, as 'busgen-core sample' writes them.")],
    plot: Annotated[Path | None, typer.Option(help="Picture to write, .png or .svg.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
    seed: Seed = 0,
) -> None:
    """Measure generated images against real ones: KID, coverage, Vendi score, speckle, each beside the floor of two real halves.

    Exit status: 0 done, 1 refused or invalid, 2 wrong usage.
    """
    from busgen_core.corpus import public_examples, read_table
    from busgen_core.quality.compare import compare
    from busgen_core.quality.encoder import load_encoder
    from busgen_core.quality.plot import draw
    from busgen_core.shards import ShardStream

    encoder = load_encoder()
    size = encoder.config.image_px
    stream = ShardStream(samples, size=size, seed=seed)
    pixels = np.stack([e.image for e in stream.read(0, len(stream))])
    groups = [row.get("group") or row["file"] for row in read_table(real)]
    originals = np.stack([e.image for e in public_examples(real, size=size)])
    report = compare(originals, pixels, encoder=encoder, groups=groups, seed=seed)
    if plot is not None:
        draw(report, plot)
    typer.echo(report.model_dump_json(indent=1) if as_json else report.table())


@app.command("import-busgen")
def import_command(
    weights: Annotated[Path, typer.Argument(help="The published network's state dict: safetensors, or a file of torch.save without objects.")],
    out: Out,
    license_note: Annotated[str, typer.Option("--license", help="Under which licence you were given the weights; the card repeats it.")],
    digest: Annotated[str | None, typer.Option(help="SHA-256 that the file must have.")] = None,
) -> None:
    """Turn weights of the published BUSGen network into a folder without pickles that can be sampled from.

    Exit status: 0 done, 1 refused or invalid, 2 wrong usage.
    """
    from busgen_core.official import PUBLISHED_DEVICES, import_official

    typer.echo(f"foundation {import_official(weights, out, devices=PUBLISHED_DEVICES, license_note=license_note, expected_sha256=digest)}")


def _count(text: str) -> tuple[Pathology, int]:
    from busgen_core.labels import parse_pathology

    label, _, number = text.rpartition("=")
    if not number.isdigit():
        raise typer.BadParameter(f"{text} is not LABEL=NUMBER", param_hint="--count")
    return parse_pathology(label), int(number)


def main() -> None:
    """Entry point of ``busgen-core``."""
    run_command("busgen-core", app)


if __name__ == "__main__":
    main()
