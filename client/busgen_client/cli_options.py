"""Options that the commands of ``busgen-node`` share."""

from pathlib import Path
from typing import Annotated

import typer

from busgen_client.settings import CONFIG_VARIABLE

Config = Annotated[Path, typer.Option("--config", "-c", envvar=CONFIG_VARIABLE, help="The node's settings, node.toml.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NODE_TOML = Path("node.toml")
