"""The commands ``busgen-node quarantine``: what waits, and what people do with it, without a browser."""

import dataclasses
import json
import os
import pwd
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from busgen_client.cli_options import NODE_TOML, AsJson, Config
from busgen_client.cohort import open_cohort
from busgen_client.database import MOST_SKIPPED
from busgen_client.quarantine import Item, Quarantine
from busgen_client.settings import load_settings
from busgen_core.console import print_rows
from busgen_core.errors import InputError, StateError
from busgen_core.files import write_whole
from busgen_core.labels import Pathology

quarantine_app = typer.Typer(no_args_is_help=True, help="What waits for a person.")

Name = Annotated[str, typer.Argument(help="The object, as 'quarantine list' names it.")]


@quarantine_app.command("list")
def list_items(
    code: Annotated[str, typer.Option(help="Only what waits for this reason.")] = "",
    most: Annotated[int, typer.Option(help="At most so many.", min=1)] = 50,
    skip: Annotated[int, typer.Option(help="Leave out so many first.", min=0, max=MOST_SKIPPED)] = 0,
    config: Config = NODE_TOML,
    as_json: AsJson = False,
) -> None:
    """What waits, oldest first.

    Exit status: 0 done, 1 invalid settings, 2 wrong usage.
    """
    found = _quarantine(config).items(code=code, most=most, skip=skip)
    rows = [{"object": i.name, "code": i.code, "pictures": i.frames, "boxes": len(i.masks), "device": i.device, "label": _label(i)} for i in found]
    print_rows(rows, as_json=as_json)


@quarantine_app.command("show")
def show(
    name: Name,
    out: Annotated[
        Path | None, typer.Option(help="New folder to write its pictures to, boxes blacked out. They show a patient: delete them after.")
    ] = None,
    config: Config = NODE_TOML,
    as_json: AsJson = False,
) -> None:
    """Why one object waits, and what can be done with it.

    Exit status: 0 done, 1 nothing of that name waits, or the folder is there already, 2 wrong usage.
    """
    quarantine = _quarantine(config)
    item = quarantine.item(name)
    if out is not None:
        _write_pictures(quarantine, item, out)
    _say(_shown(item), as_json)


@quarantine_app.command("mask")
def mask(
    name: Name,
    box: Annotated[list[str] | None, typer.Option(help="left,top,right,bottom in pixels; may be given several times.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Black out all but the box.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Take all boxes off first.")] = False,
    config: Config = NODE_TOML,
    as_json: AsJson = False,
) -> None:
    """Black out boxes in every picture of an object; it waits on, until it is released.

    Exit status: 0 done, 1 refused or invalid, 2 wrong usage.
    """
    boxes, quarantine = [_corners(text) for text in box or ()], _quarantine(config)
    if not boxes and not clear:
        raise InputError("give a --box, or --clear")
    _say(_shown(quarantine.draw(name, boxes, who=_who(), keep=keep, clear=clear)), as_json)


@quarantine_app.command("release")
def release(
    name: Name,
    pathology: Annotated[Pathology | None, typer.Option(help="For an object without a label that can be used.")] = None,
    config: Config = NODE_TOML,
    as_json: AsJson = False,
) -> None:
    """Let an object into the cohort, as its boxes leave it.

    Exit status: 0 done, 1 refused or invalid, 2 wrong usage.
    """
    _say({"object": name, "added": _quarantine(config).release(name, who=_who(), pathology=pathology)}, as_json)


@quarantine_app.command("delete")
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: Config = NODE_TOML,
    as_json: AsJson = False,
) -> None:
    """Delete an object; it is passed over when it comes again.

    Exit status: 0 done, 1 refused, 2 wrong usage.
    """
    quarantine = _quarantine(config)
    item = quarantine.item(name)
    if not yes and not typer.confirm(f"delete {item.name}, which waits for {item.code}?", err=True):
        raise StateError("nothing was deleted")
    quarantine.delete(name, who=_who(), seen=item.stamp)
    _say({"object": name, "deleted": True}, as_json)


@quarantine_app.command("allow")
def allow(name: Name, config: Config = NODE_TOML) -> None:
    """Take a deletion back: the same object is looked at anew when it comes again.

    Exit status: 0 done, 1 no object of that name was deleted here, 2 wrong usage.
    """
    _quarantine(config).allow(name, who=_who())


@quarantine_app.command("trust")
def trust(
    device: Annotated[str | None, typer.Argument(help="A scanner, as 'quarantine list' has it; not given, say which are vouched for.")] = None,
    of: Annotated[str, typer.Option("--of", help="Instead, the scanner of this object: needed where several models are shown by one name.")] = "",
    config: Config = NODE_TOML,
    as_json: AsJson = False,
) -> None:
    """Vouch that scanners of a model write no name, number or date into the scan. What waits for nothing else is released.

    Exit status: 0 done, 1 refused, 2 wrong usage.
    """
    quarantine = _quarantine(config)
    if of:
        _say({"object": of, "released": quarantine.trust_scanner_of(of, who=_who())}, as_json)
    elif device is None:
        print_rows([{"device": name} for name in quarantine.trusted()], as_json=as_json)
    else:
        _say({"device": device, "released": quarantine.trust(device, who=_who())}, as_json)


def _quarantine(config: Path) -> Quarantine:
    return Quarantine(open_cohort(load_settings(config)))


def _who() -> str:
    """Who sits at the command line, for the journal: as the system knows the process, since anybody can set LOGNAME."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container, a user without a name
        name = f"user {os.getuid()}"
    return f"{name} (command line)"


def _corners(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError("a box is four whole numbers: left,top,right,bottom") from None


def _write_pictures(quarantine: Quarantine, item: Item, out: Path) -> None:
    try:
        out.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        raise StateError("the folder to write to is there already") from None
    for number in range(item.frames):
        write_whole(out / f"{item.name}-{number}.png", quarantine.picture(item.name, number))


def _label(item: Item) -> str:
    return item.pathology.value if item.pathology else ""


def _shown(item: Item) -> dict[str, object]:
    ways = {"release": item.releasable and not item.must_mask, "mask": item.releasable, "trust": item.trustable, "delete": True}
    return {
        "object": item.name,
        "code": item.code,
        "reason": item.reason,
        "since": item.created,
        "device": item.device,
        "label": _label(item),
        "pictures": item.frames,
        "columns": item.columns,
        "rows": item.rows,
        "boxes": [list(dataclasses.astuple(each)) for each in item.masks],
        "ways": [way for way, open_ in ways.items() if open_],
    }


def _say(pairs: Mapping[str, object], as_json: bool) -> None:
    typer.echo(json.dumps(pairs) if as_json else "\n".join(f"{key}: {value}" for key, value in pairs.items()))
