"""A whole consortium on one machine: a hub and its nodes as separate processes with separate data folders.

Everything goes through the commands that a hospital and a coordinator would type; nothing runs inside this process.
"""

import contextlib
import json
import signal
import socket
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import tomli_w

from busgen_core.errors import UnavailableError
from busgen_core.supervise import environment

BIN = Path(sys.executable).parent
PASSPHRASE = "a passphrase of the demonstration only"


@dataclass(kw_only=True)
class Site:
    """One hospital of the local consortium.

    Attributes:
        name: Its name.
        public_cohort: The public statement of its cohort's size, in patients.
        settings: Sections of node.toml to change, such as {"adapt": {"steps": 30}}.
    """

    name: str
    public_cohort: int
    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


@dataclass(kw_only=True)
class Consortium:
    """Folders, ports and processes of one local consortium."""

    folder: Path
    foundation: Path
    sites: Sequence[Site]
    poll_seconds: float = 8.0
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    @property
    def hub_config(self) -> Path:
        """The hub's settings."""
        return self.folder / "hub" / "hub.toml"

    def node_config(self, site: str) -> Path:
        """A node's settings."""
        return self.folder / site / "node.toml"

    @property
    def passphrase_file(self) -> Path:
        """The officers' passphrase; a real officer's lies in no file."""
        return self.folder / "passphrase"

    def lay_out(self) -> None:
        """Create the hub, the invitation, and every node with its keys."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.passphrase_file.write_text(PASSPHRASE)
        self.passphrase_file.chmod(0o600)
        names = ["public", "superlink", "dashboard", *(s.name for s in self.sites)]
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        run(
            *("busgen-hub", "init", "--config", self.hub_config, "--foundation", self.foundation),
            *("--public-port", self.ports["public"], "--superlink-port", self.ports["superlink"]),
            *("--dashboard-port", self.ports["dashboard"], "--poll-seconds", self.poll_seconds),
        )
        invite = self.folder / "invite.json"
        invite.write_text(run("busgen-hub", "invite", "--config", self.hub_config))
        for site in self.sites:
            config = self.node_config(site.name)
            request = run(
                *("busgen-node", "join", invite, "--site", site.name, "--config", config),
                *("--passphrase-file", self.passphrase_file, "--public-cohort", site.public_cohort),
            )
            (self.folder / f"{site.name}.join.json").write_text(request)
            change_settings(config, {"": {"runtime_port": self.ports[site.name]}, "policy": {"auto_accept": True}})
            change_settings(config, site.settings)

    def start_hub(self) -> None:
        """Start the hub and wait until its public port answers."""
        self._start("hub", "busgen-hub", "start", "--config", self.hub_config)
        wait_for(lambda: answers(self.ports["public"]) and answers(self.ports["superlink"]), seconds=120, what="the hub's ports")

    def enrol(self) -> None:
        """Enrol every site at the running hub."""
        for site in self.sites:
            run("busgen-hub", "site", "add", self.folder / f"{site.name}.join.json", "--config", self.hub_config)

    def start_node(self, site: str) -> None:
        """Start one node."""
        self._start(site, "busgen-node", "start", "--config", self.node_config(site))

    def kill(self, name: str) -> None:
        """Kill the hub or a node as a power cut would: every process of it at once, without a word."""
        process = self.processes.pop(name)
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for part in tree:
            with contextlib.suppress(psutil.Error):
                part.send_signal(signal.SIGKILL)
        process.wait()
        psutil.wait_procs(tree, timeout=10)

    def stop(self) -> None:
        """Stop all, nodes first; the demo leaves no process behind."""
        for name in sorted(self.processes, key=lambda n: n == "hub"):
            self.processes[name].terminate()
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=40)
            if process.poll() is None:
                process.kill()
        self.processes.clear()

    def _start(self, name: str, *command: object) -> None:
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            self.processes[name] = subprocess.Popen(
                words(command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment({}), start_new_session=True
            )


@contextlib.contextmanager
def running(consortium: Consortium) -> Iterator[Consortium]:
    """Lay out, start and enrol a consortium with all its nodes; stop everything at the end."""
    try:
        consortium.lay_out()
        consortium.start_hub()
        consortium.enrol()
        for site in consortium.sites:
            consortium.start_node(site.name)
        yield consortium
    finally:
        consortium.stop()


def words(command: Sequence[object]) -> list[str]:
    """A command line from strings, paths and numbers; our commands are those beside this Python."""
    first, *rest = (str(part) for part in command)
    return [str(BIN / first) if (BIN / first).exists() else first, *rest]


def run(*command: object, check: bool = True) -> str:
    """Run one of our commands and return what it printed.

    Raises:
        UnavailableError: it failed; its own words are in the message.
    """
    done = subprocess.run(words(command), capture_output=True, text=True, env=environment({}), timeout=900, check=False)
    if check and done.returncode:
        raise UnavailableError(f"{command[0]} {command[1]} ended with status {done.returncode}: {done.stderr.strip()[-800:]}")
    return done.stdout


def run_json(*command: object) -> list[dict[str, object]]:
    """Run one of our commands with --json and read the answer."""
    found: list[dict[str, object]] = json.loads(run(*command, "--json"))
    return found


def change_settings(config: Path, changes: Mapping[str, Mapping[str, object]]) -> None:
    """Edit a TOML file: section -> values; the section "" is the top level."""
    content = tomllib.loads(config.read_text())
    for section, values in changes.items():
        target = content if section == "" else content.setdefault(section, {})
        target.update(values)
    config.write_text(tomli_w.dumps(content))


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def answers(port: int) -> bool:
    """True when a TLS server answers on a loopback port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # is it up? who it is, its clients check
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as plain, context.wrap_socket(plain):
            return True
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], *, seconds: float, what: str, every: float = 0.5) -> None:
    """Wait until ``condition()`` is true.

    Raises:
        UnavailableError: it was not within ``seconds``.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise UnavailableError(f"waited {seconds:.0f} s for {what} in vain; see the logs")
        time.sleep(every)
