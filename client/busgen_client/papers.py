"""What a job leaves for the hospital alone: the report, which shows real images, the exact audit, and what was laid out for review.

Sealed as the images are, each for its job.

Guarantees: none lies in the data folder in clear where the site seals its files; none opens in another job's place.
"""

from enum import StrEnum
from pathlib import Path

from busgen_client.protocol import LOCAL_REPORT, job_folder
from busgen_client.storage import MAGIC, Vault
from busgen_core.errors import SealError, StateError
from busgen_core.files import create_once

ROLE = "job"  # that papers are sealed for


class Paper(StrEnum):
    """A paper, by its file's name in the job's folder."""

    REPORT = LOCAL_REPORT
    AUDIT = "audit-local.json"
    REVIEWED = "reviewed.sha256"  # digest of the manifest that waits for the officer


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
    return vault.opened(_stored(file), role=ROLE, name=sealed_name(file))


def read_sealed_paper(vault: Vault, data: Path, campaign_id: str, paper: Paper) -> bytes:
    """As ``read_paper``, for what a signature rests on: where the site seals its files, a paper in clear is nobody's word.

    Raises:
        StateError, StorageKeyError: as ``read_paper``.
        SealError: as ``read_paper``, or it is not sealed.
    """
    file = job_folder(data, campaign_id) / paper
    stored = _stored(file)
    if vault.seals and not stored.startswith(MAGIC):
        raise SealError(f"campaign {campaign_id}: {paper} is not sealed, so anybody may have written it; 'busgen-node review again {campaign_id}'")
    return vault.opened(stored, role=ROLE, name=sealed_name(file))


def copy_paper(vault: Vault, data: Path, campaign_id: str, paper: Paper, out: Path) -> None:
    """Write a readable copy, mode 0600. It is not the node's any more: no withdrawal deletes it.

    Raises:
        StateError: as ``read_paper``, or there is a file of that name.
    """
    content = read_paper(vault, data, campaign_id, paper)
    if out.exists():
        raise StateError(f"there is a file {out.name} already; name another")
    create_once(out, content)


def _stored(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise StateError(f"campaign {file.parent.name} has no {file.name} yet, or a withdrawal has deleted it") from None


def sealed_name(file: Path) -> str:
    """The name that a paper is sealed for: its campaign's, and its own."""
    return f"{file.parent.name}/{file.name}"
