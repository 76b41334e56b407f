"""Serving the console on the loopback address, and nowhere else."""

import logging
import socket
import traceback

import typer
import uvicorn

from busgen_client.cohort import open_cohort
from busgen_client.console.app import create_app
from busgen_client.settings import NodeSettings
from busgen_core.errors import UnavailableError

ADDRESS = "127.0.0.1"


def serve_console(settings: NodeSettings, *, port: int) -> None:
    """Serve until a signal ends it; the address is printed once it can be reached.

    Args:
        settings: The node's.
        port: To listen on; 0 takes a free one.

    Raises:
        UnavailableError: the port is taken.
    """
    logging.getLogger("uvicorn.error").addFilter(_without_values)
    app = create_app(settings, open_cohort(settings))
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((ADDRESS, port))
        except OSError:
            raise UnavailableError(f"port {port} of {ADDRESS} is taken; name another with --port, or 0 for a free one") from None
        listener.listen()
        typer.echo(f"http://{ADDRESS}:{listener.getsockname()[1]}/")
        config = uvicorn.Config(app, ws="none", server_header=False, log_level="warning", access_log=False, proxy_headers=False)
        uvicorn.Server(config).run(sockets=[listener])


def _without_values(record: logging.LogRecord) -> bool:
    """Tracebacks keep their places and lose the message of the error, which may quote what was read."""
    if record.exc_info and (error := record.exc_info[1]) is not None:
        places = "".join(traceback.format_tb(error.__traceback__))
        record.msg, record.args = f"{record.getMessage()}\n{places}{type(error).__name__}", ()
        record.exc_info = record.exc_text = None
    return True
