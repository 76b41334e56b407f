"""The commands ``busgen-node cohort``: what the cohort holds, whether it is whole, and its encryption at rest."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import tomli_w
import typer
from pydantic import ValidationError

from busgen_client.cli_options import NODE_TOML, AsJson, Config
from busgen_client.cohort import open_cohort
from busgen_client.cohort_counts import SMALLEST_CELL, shown_count
from busgen_client.cohort_rows import ROLES
from busgen_client.settings import load_settings
from busgen_client.storage_keys import StorageSettings
from busgen_core.console import print_rows
from busgen_core.errors import ConfigError
from busgen_core.labels import Pathology

cohort_app = typer.Typer(no_args_is_help=True, help="The patients' images that this node holds.")


@cohort_app.command("summary")
def summary(config: Config = NODE_TOML, as_json: AsJson = False) -> None:
    """Patients and images by role and pathology, and objects in quarantine: small cells suppressed, others rounded to the nearest five.

    Exit status: 0 done, 1 refused or invalid, 2 wrong usage.
    """
    counted = open_cohort(load_settings(config)).summary()
    shown = f"<{SMALLEST_CELL}"
    rows: list[dict[str, object]] = [
        {"role": role, "pathology": kind.value, "patients": counted.patients[role][kind] or shown, "images": counted.images[role][kind] or shown}
        for role in ROLES
        for kind in Pathology
    ]
    held = {code: shown_count(count) or shown for code, count in counted.quarantined.items()}
    if as_json:
        typer.echo(json.dumps({"cells": rows, "quarantined": held}))
        return
    print_rows(rows, as_json=False)
    print_rows([{"quarantined": code, "objects": count} for code, count in held.items()], as_json=False)


@cohort_app.command("verify")
def verify(config: Config = NODE_TOML, as_json: AsJson = False) -> None:
    """Open every stored image: each decrypts, has its digest and its patient's role; none is missing, none too many. Changes nothing.

    Exit status: 0 whole (some may not be sealed yet), 1 not whole, or refused, 2 wrong usage.
    """
    from busgen_client.cohort_files import verify as examine

    state = examine(open_cohort(load_settings(config)), progress=not as_json)
    if as_json:
        typer.echo(json.dumps({"images": state.images, "sealed": state.sealed, "whole": state.whole, "found": state.found}))
    else:
        print_rows([{"problem": problem.value, "what": what} for problem, what in state.found], as_json=False)
        typer.echo(f"{state.images} images, {state.sealed} sealed, {'whole' if state.whole else 'NOT whole'}")
    if not state.whole:
        sys.exit(1)


@cohort_app.command("doubles")
def doubles(config: Config = NODE_TOML, as_json: AsJson = False) -> None:
    """List pictures that lie under two patients, also saved again: one woman known by two names, or a wrong file. Changes nothing.

    An audit whose members and holdout share a picture measures nothing, so no job begins while one lies on both sides. To withdraw one of the
    patients ('busgen-node consent withdraw' with the key that is listed) ends that, and is for ever: nothing of that patient is taken in again.

    Exit status: 0 none, 1 some, or refused, 2 wrong usage.
    """
    from busgen_client.cohort_files import pictures_twice

    found = pictures_twice(open_cohort(load_settings(config)), progress=not as_json)
    rows: list[dict[str, object]] = [
        {side + what: value for side, row in (("", one), ("other_", other)) for what, value in row.items()} for one, other in found
    ]
    print_rows(rows, as_json=as_json)
    if found:
        sys.exit(1)


@cohort_app.command("encrypt")
def encrypt(
    rotate: Annotated[bool, typer.Option("--rotate", help="With a new data key; the old one goes once no file needs it.")] = False,
    config: Config = NODE_TOML,
    as_json: AsJson = False,
) -> None:
    """Seal images, and pictures and objects that wait, from before sealing was switched on.

    Stopped half-way, the same command (without --rotate) goes on from there. Other processes of the node may run meanwhile, except intake.

    Exit status: 0 all are sealed, 1 refused or invalid, 2 wrong usage.
    """
    from busgen_client.cohort_files import encrypt as seal

    settings = load_settings(config)
    done = seal(open_cohort(settings), settings.data, rotate=rotate, progress=not as_json)
    typer.echo(json.dumps({"sealed": done}) if as_json else f"{done} files sealed")


@cohort_app.command("rekey")
def rekey(
    key: Annotated[Literal["file", "passphrase", "keyring"], typer.Option(help="Where the new key comes from.")],
    key_file: Annotated[Path | None, typer.Option(help="With --key file: where it is, or shall be made.")] = None,
    passphrase_file: Annotated[Path | None, typer.Option(help="With --key passphrase: holds the new passphrase.")] = None,
    config: Config = NODE_TOML,
) -> None:
    """Change the site's key, with the node stopped: node.toml still names the old one. Prints what to put there instead. No image is rewritten.

    Exit status: 0 done, 1 refused or invalid, and nothing was changed, 2 wrong usage.
    """
    from busgen_client.cohort_files import rekey as change

    here = {name: path.absolute() for name, path in (("key_file", key_file), ("passphrase_file", passphrase_file)) if path}
    try:
        new = StorageSettings.model_validate({"key": key} | here)
    except ValidationError as error:
        raise ConfigError(f"--key {key}: {error.errors()[0]['msg']}") from None
    changed = change(open_cohort(load_settings(config)), new)
    said = "The site's key is changed." if changed else "That is the site's key already; nothing was changed."
    typer.echo(f"{said} In node.toml, have this instead of [storage], then run 'busgen-node doctor' and start the node:", err=True)
    typer.echo(tomli_w.dumps({"storage": new.model_dump(mode="json", exclude_none=True)}), nl=False)


@cohort_app.command("card")
def card(
    out: Annotated[Path, typer.Argument(help="Folder to write card.md and card.png to.")], config: Config = NODE_TOML, as_json: AsJson = False
) -> None:
    """Write a data card of the cohort, for people at the hospital. It is never sent.

    Exit status: 0 written, 1 refused or invalid, 2 wrong usage.
    """
    from busgen_client.data_card import write_card  # imports torch

    settings = load_settings(config)
    file = write_card(open_cohort(settings), out, site=settings.site)
    typer.echo(json.dumps({"card": str(file)}) if as_json else str(file))
