"""A real PACS for tests: Orthanc with its DICOMweb plugin, from Debian's packages, on free ports of the loopback."""

import ctypes
import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import httpx
import pytest

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
BINARY = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
PR_SET_PDEATHSIG = 1  # prctl(2)
LISTEN = "0A"  # proc(5), /proc/net/tcp


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def listens(port: int) -> bool:
    """Whether a socket of this machine accepts connections at a port; looked up, not tried, so that nothing connects."""
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return any(int(row[1].rpartition(":")[2], 16) == port and row[3] == LISTEN for row in rows)


class Orthanc:
    """One archive in a folder; killed and started again, it keeps what it stored.

    Args:
        folder: Its database and log.
        modalities: Peers by name: AE title and port on the loopback.
    """

    def __init__(self, folder: Path, modalities: Mapping[str, tuple[str, int]]) -> None:
        if BINARY is None or not PLUGIN.exists():
            pytest.skip("Orthanc and its DICOMweb plugin are not installed; 'make system-packages' installs them")
        self.http_port, self.dicom_port, self._folder = free_port(), free_port(), folder
        folder.mkdir(parents=True, exist_ok=True)
        peers = {
            name: {"AET": title, "Host": "127.0.0.1", "Port": port, "AllowStorageCommitment": True} for name, (title, port) in modalities.items()
        }
        settings = {
            "Name": "tests",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "HttpPort": self.http_port,
            "DicomAet": "ORTHANC",
            "DicomPort": self.dicom_port,
            "DicomModalities": peers,
            "DicomAlwaysAllowStore": True,
            "DicomCheckModalityHost": False,
            "DicomScuTimeout": 20,
            "SaveJobs": False,
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self._process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.http_port}", timeout=30, trust_env=False)
        self.start()

    @property
    def web(self) -> str:
        """Root of the DICOMweb service."""
        return f"http://127.0.0.1:{self.http_port}/dicom-web"

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(BINARY), str(self._folder / "orthanc.json")],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                preexec_fn=lambda: ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
            )
        for _ in range(200):
            try:
                if self.client.get("/system").is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError("Orthanc did not start")

    def kill(self) -> None:
        """As a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.kill()
        self.client.close()

    def upload(self, files: Iterable[Path]) -> list[str]:
        """Orthanc's own ids of the instances."""
        return [str(self.client.post("/instances", content=file.read_bytes()).raise_for_status().json()["ID"]) for file in files]

    def instances(self) -> list[str]:
        return [str(each) for each in self.client.get("/instances").json()]

    def send(self, modality: str, ids: Iterable[str], *, wait: bool = True) -> str:
        """C-STORE instances to a peer.

        Returns:
            State of the job, or its id when not waited for.
        """
        body = {"Resources": list(ids), "Asynchronous": True}
        job = str(self.client.post(f"/modalities/{modality}/store", json=body).raise_for_status().json()["ID"])
        return self.wait_for(job) if wait else job

    def wait_for(self, job: str) -> str:
        for _ in range(600):
            state = str(self.client.get(f"/jobs/{job}").json()["State"])
            if state in ("Success", "Failure"):
                return state
            time.sleep(0.05)
        raise AssertionError("the job did not end")

    def commitment(self, modality: str, objects: Iterable[tuple[str, str]]) -> dict[str, object]:
        """Ask a peer to commit to (class, instance) pairs, and wait for its answer."""
        body = {"DicomInstances": [{"SOPClassUID": kind, "SOPInstanceUID": uid} for kind, uid in objects]}
        asked = self.client.post(f"/modalities/{modality}/storage-commitment", json=body).raise_for_status().json()
        for _ in range(400):
            answer: dict[str, object] = self.client.get(f"/storage-commitment/{asked['ID']}").json()
            if answer["Status"] != "Pending":
                return answer
            time.sleep(0.05)
        raise AssertionError("no answer came")
