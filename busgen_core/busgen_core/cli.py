"""The command ``busgen-core``. Exit status: 0 done, 1 refused or invalid, 2 wrong usage."""

from pathlib import Path
from typing import Annotated

import typer

from busgen_core.console import run_command

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def core() -> None:
    """Generator, release format and signatures."""


@app.command("pretrain")
def pretrain_command(
    out: Annotated[Path, typer.Argument(help="Folder of the foundation; its run state lies beside it.")],
    steps: Annotated[int, typer.Option(help="Training steps.")] = 12_000,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 1,
    public: Annotated[Path | None, typer.Option(help="Folder of public images with images.csv; phantoms alone without it.")] = None,
    phantoms: Annotated[int, typer.Option(help="Distinct phantom frames.")] = 6000,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 32,
    minutes: Annotated[float | None, typer.Option(help="Stop after this wall time and write what there is.")] = None,
) -> None:
    """Pretrain a foundation; started again, it goes on where it was.

    Exit status: 0 done, 1 refused or invalid, 2 wrong usage.
    """
    from busgen_core.pretrain import PretrainPlan, pretrain

    plan = PretrainPlan(seed=seed, steps=steps, phantoms=phantoms, batch=batch)
    typer.echo(f"foundation {pretrain(plan, public=public, out=out, minutes=minutes)}")


def main() -> None:
    """Entry point of ``busgen-core``."""
    run_command("busgen-core", app)
