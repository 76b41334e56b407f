"""The commands ``busgen-node console``: serve it, and who may use it."""

import sys
from typing import Annotated

import typer

from busgen_client.cli_options import NODE_TOML, AsJson, Config
from busgen_client.cohort import open_cohort
from busgen_client.console.roles import Role
from busgen_client.settings import load_settings
from busgen_core.console import print_rows
from busgen_core.errors import InputError

console_app = typer.Typer(no_args_is_help=True, help="The node's console, for a browser on this machine.")

AccountName = Annotated[str, typer.Argument(help="2 to 32 of a-z, 0-9, '.', '_' and '-'.")]


@console_app.command("serve")
def serve(
    port: Annotated[int | None, typer.Option(help="Port on 127.0.0.1; 0 takes a free one; not given, console.port.", min=0, max=65535)] = None,
    config: Config = NODE_TOML,
) -> None:
    """Serve the console on 127.0.0.1 until told to stop; prints its address.

    Exit status: 0 stopped, 1 refused or invalid, 2 wrong usage.
    """
    from busgen_client.console.serve import serve_console

    settings = load_settings(config)
    serve_console(settings, port=settings.console.port if port is None else port)


@console_app.command("add-user")
def add_user(
    name: AccountName,
    role: Annotated[Role, typer.Option(help="steward: decides on the quarantine. officer: sees it all, answers for releases.")],
    qr: Annotated[bool, typer.Option("--qr", help="Draw the code's secret for an authenticator to photograph.")] = False,
    config: Config = NODE_TOML,
) -> None:
    """Make an account. The password is asked for, or is the first line of standard input. Prints the secret of its one-time codes, once.

    Exit status: 0 done, 1 refused or invalid, 2 wrong usage.
    """
    from busgen_client.console.accounts import Accounts, enrolment

    settings = load_settings(config)
    store = open_cohort(settings)
    secret = Accounts(store).add(name, role, _password())
    store.note("account.added", {"account": name, "role": role.value})
    address = enrolment(name, secret, site=settings.site)
    if qr:
        import segno

        segno.make(address).terminal(out=sys.stderr, compact=True)
    typer.echo(f"secret: {secret}\naddress: {address}")
    typer.echo("Put it into an authenticator now; it is not shown again.", err=True)


@console_app.command("users")
def users(config: Config = NODE_TOML, as_json: AsJson = False) -> None:
    """All accounts.

    Exit status: 0 done, 1 invalid settings, 2 wrong usage.
    """
    from busgen_client.console.accounts import Accounts

    found = Accounts(open_cohort(load_settings(config))).all()
    print_rows([{"name": each.name, "role": each.role.value} for each in found], as_json=as_json)


@console_app.command("remove-user")
def remove_user(name: AccountName, config: Config = NODE_TOML) -> None:
    """Take an account away; who is signed in with it is out at once.

    Exit status: 0 done, 1 there is none of that name, 2 wrong usage.
    """
    from busgen_client.console.accounts import Accounts

    store = open_cohort(load_settings(config))
    Accounts(store).remove(name)
    store.note("account.removed", {"account": name})


def _password() -> str:
    if sys.stdin.isatty():
        return str(typer.prompt("password", hide_input=True, confirmation_prompt=True))
    if not (line := sys.stdin.readline().removesuffix("\n")):
        raise InputError("standard input holds no password")
    return line
