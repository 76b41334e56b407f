"""Starts a Flower run when a campaign is open, or the roll is to be called, and no conductor is at work; and what we say to Flower's CLI."""

import json
import logging
import os
import subprocess
import time
from pathlib import Path

import tomli_w
from flwr.cli.build import build_fab_from_disk

from busgen_core.digests import sha256_bytes
from busgen_core.errors import UnavailableError
from busgen_core.supervise import environment
from busgen_server.database import open_store
from busgen_server.flower_app.conductor import hold_lock
from busgen_server.settings import CONFIG_VARIABLE, HubSettings, load_settings
from busgen_server.store import HubStore

log = logging.getLogger("busgen.launcher")
CHECK_SECONDS = 2.0
ROLL_CALL_EVERY_SECONDS = 600.0  # how long a node may be away before the dashboard knows, with no campaign open
START_SECONDS = 60.0  # a run that has no conductor after so long is given up


def bundle_folder() -> Path:
    """The folder of the code-less bundle: inside the installed package, or deploy/flower in a source tree."""
    installed = Path(__file__).parents[1] / "bundle"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "deploy" / "flower"


def bundle_digest() -> str:
    """SHA-256 of the bundle as Flower builds it; nodes pin it."""
    return sha256_bytes(build_fab_from_disk(bundle_folder()))


def flower_home(settings: HubSettings) -> Path:
    """Folder of Flower's own configuration for this hub, written on each call."""
    home = settings.data / "flower"
    home.mkdir(parents=True, exist_ok=True)
    connection = {"address": f"127.0.0.1:{settings.superlink_port}", "root-certificates": str((settings.data / "pki" / "ca.crt").absolute())}
    (home / "config.toml").write_text(tomli_w.dumps({"superlink": {"default": "hub", "hub": connection}}))
    return home


def flower_environment(settings: HubSettings, config: Path) -> dict[str, str]:
    """Environment of every Flower process of this hub."""
    return environment({"FLWR_HOME": str(flower_home(settings).absolute()), CONFIG_VARIABLE: str(config.absolute())})


def flwr(settings: HubSettings, config: Path, *arguments: str, timeout_seconds: float = 120) -> str:
    """Run one command of Flower's CLI against this hub's SuperLink and return what it printed.

    Raises:
        UnavailableError: it failed; the SuperLink may not be up.
    """
    env = flower_environment(settings, config)
    done = subprocess.run(["flwr", *arguments], env=env, capture_output=True, text=True, timeout=timeout_seconds, check=False, cwd=settings.data)
    if done.returncode:
        raise UnavailableError(f"'flwr {arguments[0]}' failed with status {done.returncode}; is 'busgen-hub start' running? {done.stderr[-300:]}")
    return done.stdout


def register_node(settings: HubSettings, config: Path, key_file: Path) -> str:
    """Register a SuperNode's public key; return Flower's id of the node."""
    printed = flwr(settings, config, "supernode", "register", str(key_file), "hub", "--format", "json")
    found: dict[str, object] = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])
    return str(found["node-id"])


def run_forever(config: Path) -> None:
    """Launch runs until the process ends: while a campaign is open, and every ten minutes to call the roll."""
    settings = load_settings(config)
    store = HubStore(open_store(settings.data))
    last_start = time.monotonic()
    while True:
        due = any(c.state in ("open", "scoring") for c in store.campaigns()) or time.monotonic() - last_start > ROLL_CALL_EVERY_SECONDS
        if due and _nobody_conducts(settings):
            last_start = time.monotonic()
            try:
                flwr(settings, config, "run", str(bundle_folder()), "hub")
                log.info("run.started")
                _wait_for_conductor(settings)
            except (UnavailableError, subprocess.TimeoutExpired) as error:
                log.warning("run.failed %s", error)
        time.sleep(CHECK_SECONDS)


def _nobody_conducts(settings: HubSettings) -> bool:
    lock = hold_lock(settings.data)
    if lock is None:
        return False
    lock.close()
    return True


def _wait_for_conductor(settings: HubSettings) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and _nobody_conducts(settings):
        time.sleep(CHECK_SECONDS)


def main() -> None:
    """``python -m busgen_server.flower_app.launcher``; the configuration's path is in the environment."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)
    run_forever(Path(os.environ[CONFIG_VARIABLE]))


if __name__ == "__main__":
    main()
