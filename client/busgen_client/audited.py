"""What was audited is what is signed: the exact audit names its table's digest, a paper beside it the manifest's, and both hold before a signature.

Guarantees: where the site seals its files, nobody without its key can put another release, or another audit, in the place of the one that the
gate judged and the officer read. Where it seals nothing (``storage.key = none``), this notices accidents, and no forger.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from busgen_client.papers import Paper, read_sealed_paper, write_paper
from busgen_client.protocol import job_folder
from busgen_client.storage import Vault
from busgen_core.digests import sha256_bytes
from busgen_core.errors import ContentMismatchError, SealError, StateError
from busgen_core.release import MANIFEST
from busgen_core.repository import SyntheticImage, write_parquet
from busgen_privacy.findings import Findings

TABLE = "data/train-00000.parquet"  # of a release, the only one that a node writes


def table_digest(images: Sequence[SyntheticImage]) -> str:
    """SHA-256 of the table that a release of these images has."""
    return sha256_bytes(write_parquet(images))


def keep_audit(vault: Vault, data: Path, campaign_id: str, found: Findings) -> None:
    """Seal the exact audit in its job's folder."""
    write_paper(vault, data, campaign_id, Paper.AUDIT, found.model_dump_json(indent=1).encode())


def kept_audit(vault: Vault, data: Path, campaign_id: str, *, table: str, compared: int) -> Findings | None:
    """The job's audit, if it is one of these images.

    Args:
        vault: Of the node.
        data: The node's data folder.
        campaign_id: Whose job.
        table: Digest of the table that will be released.
        compared: Images that copies are looked for among.

    Returns:
        None where there is none, or one of other images, of an earlier version, damaged or not sealed: then the images are to be audited again.

    Raises:
        StorageKeyError: the site's key is missing or another.
    """
    if not (job_folder(data, campaign_id) / Paper.AUDIT).exists():
        return None
    try:
        found = Findings.model_validate_json(read_sealed_paper(vault, data, campaign_id, Paper.AUDIT))
    except (SealError, ValidationError):
        return None
    return found if (found.table_sha256, found.registered_copies.compared) == (table, compared) else None


def keep_reviewed(vault: Vault, data: Path, campaign_id: str, manifest: bytes) -> None:
    """Seal the digest of the manifest that waits for the officer."""
    write_paper(vault, data, campaign_id, Paper.REVIEWED, sha256_bytes(manifest).encode())


def check_audited(vault: Vault, data: Path, campaign_id: str, files: Mapping[str, bytes]) -> None:
    """Return only if these files are the release that was audited and laid before the officer.

    Raises:
        StateError: it was audited by a version of this software that kept no digests, or its papers are gone.
        SealError: a paper was changed, or is not sealed where the site seals.
        StorageKeyError: the site's key is missing or another.
        ContentMismatchError: they are other files.
    """
    again = f"nothing was signed; 'busgen-node review again {campaign_id}' has what was drawn audited and laid out anew"
    if not (job_folder(data, campaign_id) / Paper.REVIEWED).exists():
        raise StateError(f"campaign {campaign_id} was audited by an earlier version, which did not note what it audited; {again}")
    reviewed = read_sealed_paper(vault, data, campaign_id, Paper.REVIEWED)
    if sha256_bytes(files.get(MANIFEST, b"")).encode() != reviewed:
        raise ContentMismatchError(f"campaign {campaign_id}: the manifest is not the one that was laid out for review; {again}")
    try:
        found = Findings.model_validate_json(read_sealed_paper(vault, data, campaign_id, Paper.AUDIT))
    except ValidationError:
        raise StateError(f"campaign {campaign_id}: its audit is not one of this version; {again}") from None
    if found.table_sha256 is None or sha256_bytes(files.get(TABLE, b"")) != found.table_sha256:
        raise ContentMismatchError(f"campaign {campaign_id}: the images are not those that were audited; {again}")
