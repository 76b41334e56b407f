"""Versions of the foundation that this hub keeps and hands out.

```
data/foundations/DIGEST/{model_index.json, unet/…, …, README.md}   the files of busgen_core.wire.FOUNDATION_FILES, byte for byte
data/foundations/DIGEST/version.json                               name, size, when it was added, when it was last chosen
```

The folders are the truth. One appears whole or not at all, is named by the digest of its content, and nothing in it is written again but
``version.json``. MLflow's model registry repeats what they say and is put right by :func:`sync`. The current version is the one with the
highest ``chosen``: no crash can leave none, or two.

No torch here, except in :func:`add`, which loads a foundation to try it.
"""

import datetime
import fcntl
import re
import shutil
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from busgen_core.digests import files_digest, sha256_bytes, sha256_file
from busgen_core.errors import CheckpointError, ConfigError, InputError, StateError, StorageFullError
from busgen_core.files import sync_folder, write_whole
from busgen_core.transfer import folder_files, pack
from busgen_core.wire import FOUNDATION_FILES, Campaign, Digest, Name
from busgen_server.settings import HubSettings
from busgen_server.tracking import RegistryEntry, source_uri, sqlite_uri, sync_registry

FOLDER = "foundations"
RECORD = "version.json"
CARD = "README.md"
DIGEST = re.compile(r"[0-9a-f]{64}")
PREFIX = re.compile(r"[0-9a-f]{4,64}")  # first digits of a digest that name a version
SHOWN = 12  # digits of a digest that people are shown


class Version(BaseModel):
    """One version of the foundation.

    Attributes:
        digest: Content digest of its files; the folder's name.
        name: What people call it; several versions may share one.
        parameters: Numbers in its network and label tables.
        image_px: Rows and columns of its images.
        added: When it was first added, ISO 8601, UTC; empty where its record cannot be read.
        chosen: The hub's count of choices when it was last chosen; the highest is current.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: Digest
    name: Name = "unknown"
    parameters: int = 0
    image_px: int = 0
    added: str = ""
    chosen: int = 0


class Packages:
    """Foundations as nodes receive them, each read, checked and packed once."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._packed: dict[str, tuple[bytes, str]] = {}

    def package(self, campaign: Campaign) -> bytes:
        """The packed foundation that a campaign names, whichever is current.

        Raises:
            CheckpointError: its files are missing or no longer those of its digest, or pack to other bytes than the campaign announced.
        """
        if campaign.foundation not in self._packed:
            packed = pack(read_files(self._data, campaign.foundation))
            self._packed[campaign.foundation] = packed, sha256_bytes(packed)
        packed, digest = self._packed[campaign.foundation]
        if digest != campaign.foundation_package:
            raise CheckpointError(f"foundation {campaign.foundation[:SHOWN]} does not pack to what {campaign.campaign_id} announced; create it anew")
        return packed

    def keep_only(self, digests: Set[str]) -> None:
        """Forget all others; a foundation may be hundreds of megabytes."""
        self._packed = {digest: found for digest, found in self._packed.items() if digest in digests}


def versions(data: Path) -> list[Version]:
    """All versions in the hub's data folder, the first added first; damaged ones too."""
    folders = [folder for folder in (data / FOLDER).glob("*") if DIGEST.fullmatch(folder.name) and folder.is_dir()]
    return sorted(map(_record, folders), key=lambda version: (version.added, version.digest))


def current(data: Path) -> Version | None:
    """The version that a campaign hands out when it names none."""
    return max(versions(data), key=lambda version: (version.chosen, version.added, version.digest), default=None)


def find(data: Path, prefix: str | None = None) -> Version:
    """The version whose digest begins with ``prefix``, or the current one.

    Raises:
        InputError: fewer than four hexadecimal digits, or several versions begin with them.
        StateError: there is none.
    """
    if prefix is None:
        if (version := current(data)) is None:
            raise StateError("the hub has no foundation; add one with 'busgen-hub foundation add FOLDER'")
        return version
    if not PREFIX.fullmatch(prefix.lower()):
        raise InputError("a foundation is named by the first 4 to 64 hexadecimal digits of its digest; see 'busgen-hub foundation list'")
    found = [version for version in versions(data) if version.digest.startswith(prefix.lower())]
    if not found:
        raise StateError(f"foundation {prefix[:SHOWN]} is not known to this hub; see 'busgen-hub foundation list'")
    if len(found) > 1:
        raise InputError(f"{len(found)} foundations begin with {prefix}; give more digits")
    return found[0]


def read_files(data: Path, digest: str) -> dict[str, bytes]:
    """The files of a version, by relative path, after checking that they are what its digest says.

    Raises:
        CheckpointError: a file is missing or was edited.
    """
    try:
        files = folder_files(data / FOLDER / digest, FOUNDATION_FILES)
    except OSError as error:
        raise _damaged(digest, f"lacks a file ({type(error).__name__})") from None
    if files_digest({name: sha256_bytes(content) for name, content in files.items()}) != digest:
        raise _damaged(digest, "was edited")
    return files


def is_whole(data: Path, digest: str) -> bool:
    """True when all files of a version are there and are what its digest says; read in constant memory."""
    folder = data / FOLDER / digest
    try:
        return files_digest({name: sha256_file(folder / name) for name in FOUNDATION_FILES}) == digest
    except OSError:
        return False


def add(settings: HubSettings, folder: Path, *, name: str | None = None) -> Version:
    """Check a foundation, keep a copy, make it current and register it. The same one twice is one version.

    Args:
        settings: The hub's.
        folder: The foundation; it is only read.
        name: What people call it; without it the folder's name, or the one that it has here already.

    Raises:
        CheckpointError: it does not load, or the copy that the hub already has is damaged.
        ConfigError: a name that is not lower-case letters, digits and hyphens.
        StorageFullError: no room for the copy; nothing is left of it.
        UnavailableError: MLflow does not answer. The version is kept and current all the same; :func:`sync` registers it.
    """
    fresh, files = _loaded(folder, called=_checked_name(name) if name is not None else _folder_name(folder))
    with _alone(settings.data) as root:
        target = root / fresh.digest
        if target.exists():
            if not is_whole(settings.data, fresh.digest):
                raise _damaged(fresh.digest, "is here with other content")
            before = _record(target)
            if before.added:
                fresh = fresh.model_copy(update={"name": name or before.name, "added": before.added})
        version = _choose(settings.data, fresh)
        if not target.exists():
            _write_folder(target, {**files, RECORD: _record_bytes(version)})
    sync(settings)
    return version


def use(settings: HubSettings, prefix: str) -> Version:
    """Make a version current: later campaigns hand it out unless they name another. Open campaigns keep theirs.

    Raises:
        InputError, StateError: as :func:`find`.
        CheckpointError: its files are missing or were edited.
        UnavailableError: MLflow does not answer. The version is current all the same.
    """
    with _alone(settings.data):
        version = find(settings.data, prefix)
        if not is_whole(settings.data, version.digest):
            raise _damaged(version.digest, "lacks files, or they were edited")
        version = _choose(settings.data, version)
    sync(settings)
    return version


def sync(settings: HubSettings) -> dict[str, str]:
    """Make MLflow's model registry say what the folders say; twice is as good as once.

    Returns:
        The registry's version number by digest.

    Raises:
        UnavailableError: MLflow does not answer, or refuses.
    """
    uri = settings.tracking_uri or sqlite_uri(settings.data)
    with _alone(settings.data) as root:
        entries = [_entry(settings.data, version, source_uri(uri, root / version.digest)) for version in versions(settings.data)]
        chosen = current(settings.data)
        return sync_registry(uri, entries, current=None if chosen is None else chosen.digest)


def _entry(data: Path, version: Version, source: str) -> RegistryEntry:
    whole = is_whole(data, version.digest)
    card = (data / FOLDER / version.digest / CARD).read_text(errors="replace") if whole else ""
    tags = {"name": version.name, "parameters": str(version.parameters), "image_px": str(version.image_px)}
    return RegistryEntry(digest=version.digest, source=source, whole=whole, card=card, tags=tags)


def _loaded(folder: Path, *, called: str) -> tuple[Version, dict[str, bytes]]:
    """A foundation that loads, and its files: those very bytes that were loaded."""
    from busgen_core.foundation import load_foundation

    loaded = load_foundation(folder)
    files = folder_files(folder, FOUNDATION_FILES)
    if files_digest({name: sha256_bytes(content) for name, content in files.items()}) != loaded.digest:
        raise CheckpointError(f"{folder.name}: the foundation changed while it was read; add it again")
    version = Version(
        digest=loaded.digest,
        name=called,
        parameters=sum(parameter.numel() for parameter in loaded.network.parameters()),
        image_px=loaded.network.image_px,
        added=datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
    )
    return version, files


def _checked_name(name: str) -> str:
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise ConfigError("a foundation's name is up to 63 lower-case letters, digits and hyphens, such as cpu-64") from None


def _folder_name(folder: Path) -> str:
    """A name after the folder's.

    >>> _folder_name(Path("/srv/Foundation_v2"))
    'foundation-v2'
    """
    return re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower())[:63].strip("-") or "foundation"


def _choose(data: Path, version: Version) -> Version:
    """The same version as the latest choice; on disk at once if its folder is there."""
    version = version.model_copy(update={"chosen": 1 + max((v.chosen for v in versions(data)), default=0)})
    if (folder := data / FOLDER / version.digest).is_dir():
        write_whole(folder / RECORD, _record_bytes(version))
    return version


def _record(folder: Path) -> Version:
    try:
        version = Version.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        return Version(digest=folder.name)
    return version.model_copy(update={"digest": folder.name})


def _record_bytes(version: Version) -> bytes:
    return version.model_dump_json(indent=1).encode() + b"\n"


def _write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """All files at once, or none."""
    fresh = target.with_name(target.name + ".new")
    try:
        for name, content in files.items():
            write_whole(fresh / name, content)
        for folder in (fresh, *(path for path in fresh.rglob("*") if path.is_dir())):
            sync_folder(folder)
        fresh.replace(target)
    except (OSError, StorageFullError):
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    sync_folder(target.parent)


@contextmanager
def _alone(data: Path) -> Iterator[Path]:
    """The folder of versions, with no other process writing there; what a killed one left half is cleared away."""
    root = data / FOLDER
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # free again when the file is closed
        for half in root.glob("*.new"):
            shutil.rmtree(half, ignore_errors=True)
        yield root


def _damaged(digest: str, how: str) -> CheckpointError:
    short = digest[:SHOWN]
    return CheckpointError(f"foundation {short} {how}; move its folder away and give it back with 'busgen-hub foundation add'")
