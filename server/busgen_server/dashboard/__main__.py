"""``python -m busgen_server.dashboard``; the configuration's path is in the environment."""

import os
from pathlib import Path

import uvicorn

from busgen_server.dashboard.app import create_app
from busgen_server.settings import CONFIG_VARIABLE, load_settings


def main() -> None:
    """Serve the dashboard until a signal ends the process."""
    settings = load_settings(Path(os.environ[CONFIG_VARIABLE]))
    uvicorn.run(create_app(settings), host=settings.dashboard_host, port=settings.dashboard_port, ws="none", server_header=False, log_level="warning")


if __name__ == "__main__":
    main()
