"""What a job leaves for the hospital alone: the report, which shows real images, and the exact audit. Sealed as the images are, each for its job.

Guarantees: neither lies in the data folder in clear where the site seals its files; neither opens in another job's place.
"""

from enum import StrEnum
from pathlib import Path

from busgen_client.protocol import LOCAL_REPORT, job_folder
from busgen_client.storage import Vault
from busgen_core.errors import StateError
from busgen_core.files import create_once

ROLE = "job"  # that papers are sealed for


class Paper(StrEnum):
    """A paper, by its file's name in the job's folder."""

    REPORT = LOCAL_REPORT
    AUDIT = "audit-local.json"


def write_paper(vault: Vault, data: Path, campaign_id: str, paper: Paper, content: bytes) -> None:
    """Put a paper into its job's folder, in one step.

    Raises:
        StorageKeyError: the site's key is missing or another; nothing was written.
        StorageFullError: no room.
    """
    folder = job_folder(data, campaign_id)
    vault.write(folder / paper, content, role=ROLE, name=sealed_name(folder / paper))


def read_paper(vault: Vault, data: Path, campaign_id: str, paper: Paper) -> bytes:
    """A paper in clear; one from before sealing was switched on is as it is.

    Raises:
        StateError: the job has none, or none any more.
        StorageKeyError: the site's key is missing or another.
        SealError: it was changed, or is another job's.
    """
    file = job_folder(data, campaign_id) / paper
    try:
        return vault.read(file, role=ROLE, name=sealed_name(file))
    except FileNotFoundError:
        raise StateError(f"campaign {campaign_id} has no {paper} yet, or a withdrawal has deleted it") from None


def copy_paper(vault: Vault, data: Path, campaign_id: str, paper: Paper, out: Path) -> None:
    """Write a readable copy, mode 0600. It is not the node's any more: no withdrawal deletes it.

    Raises:
        StateError: as ``read_paper``, or there is a file of that name.
    """
    content = read_paper(vault, data, campaign_id, paper)
    if out.exists():
        raise StateError(f"there is a file {out.name} already; name another")
    create_once(out, content)


def sealed_name(file: Path) -> str:
    """The name that a paper is sealed for: its campaign's, and its own."""
    return f"{file.parent.name}/{file.name}"
