"""MLflow: runs of downstream models, and the model registry of foundations. A SQLite file of the hub's data folder, or a server; no telemetry.

The registry is a mirror, for people and tools that read MLflow. What the hub itself needs is in its data folder.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from busgen_core.errors import UnavailableError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

EXPERIMENT = "downstream"
FOUNDATION = "foundation"  # the registered model
CURRENT = "current"  # its alias: the version that a campaign hands out when it names none
DESCRIPTION_LENGTH = 5000  # of a model version, in MLflow's tables
MLFLOW_SETTINGS = {  # an operator's own win
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # its 7 are minutes at a prompt
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # seconds
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistryEntry:
    """One version as the registry should have it.

    Attributes:
        digest: What the version is; there is one version for each.
        source: URI of its files.
        whole: Its files are what the digest says; others are not registered anew, only marked.
        card: Text of its card; shortened to what MLflow keeps.
        tags: Further tags.
    """

    digest: str
    source: str
    whole: bool
    card: str
    tags: Mapping[str, str]


def sqlite_uri(data: Path) -> str:
    """MLflow's store where no server is named: ``mlflow.sqlite`` in the data folder.

    >>> sqlite_uri(Path("/srv/hub"))
    'sqlite:////srv/hub/mlflow.sqlite'
    """
    return f"sqlite:///{(data / 'mlflow.sqlite').absolute()}"


def source_uri(tracking_uri: str, folder: Path) -> str:
    """URI of a version's files: the folder's own; for a server, which refuses local paths, a name within this hub.

    Source: MLflow 3.17, ``mlflow/server/handlers.py``, ``_validate_source_run``.

    >>> source_uri("sqlite:////srv/hub/mlflow.sqlite", Path("/srv/hub/foundations/ab"))
    'file:///srv/hub/foundations/ab'
    >>> source_uri("https://mlflow.example", Path("/srv/hub/foundations/ab"))
    'busgen-hub:/foundations/ab'
    """
    return f"busgen-hub:/foundations/{folder.name}" if _is_server(tracking_uri) else folder.resolve().as_uri()


def sync_registry(uri: str, entries: Sequence[RegistryEntry], *, current: str | None) -> dict[str, str]:
    """Make the registered model ``foundation`` say what ``entries`` say; what is right already is left alone.

    Args:
        uri: MLflow's tracking URI.
        entries: All versions that are there. Those that are registered and no longer there get the tag ``state`` = ``gone``.
        current: Digest of the version that gets the alias ``current``.

    Returns:
        The registry's version number by digest.

    Raises:
        UnavailableError: MLflow does not answer, or refuses.
    """
    with _answering(uri) as client:
        if not client.search_registered_models(f"name='{FOUNDATION}'"):
            client.create_registered_model(FOUNDATION)
        newest_first = sorted(client.search_model_versions(f"name='{FOUNDATION}'"), key=lambda version: -int(version.version))
        known = {version.tags["digest"]: version for version in newest_first if "digest" in version.tags}  # the oldest of a digest
        numbers = {e.digest: number for e in entries if (number := _sync_entry(client, known.get(e.digest), e)) is not None}
        for digest in known.keys() - {entry.digest for entry in entries}:
            _set_tags(client, known[digest], {"state": "gone"})
        if current in numbers and str(client.get_registered_model(FOUNDATION).aliases.get(CURRENT)) != numbers[current]:
            client.set_registered_model_alias(FOUNDATION, CURRENT, numbers[current])
        return numbers


def track_model(data: Path, *, name: str, parameters: Mapping[str, str | int], metrics: Mapping[str, float], tracking_uri: str | None = None) -> None:
    """Record a trained model, or add its scores later: runs of one name are one run.

    Args:
        data: The hub's data folder; ``mlflow.sqlite`` lies in it.
        name: Model id.
        parameters: Logged as the run's.
        metrics: Added to the run's.
        tracking_uri: Another MLflow than the file in ``data``.

    Raises:
        UnavailableError: MLflow does not answer, or refuses.
    """
    uri = tracking_uri or sqlite_uri(data)
    with _answering(uri) as client:
        found = client.get_experiment_by_name(EXPERIMENT)
        place = None if _is_server(uri) else (data.absolute() / "mlflow").as_uri()
        experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT, artifact_location=place)
        runs = client.search_runs([experiment], filter_string=f"attributes.run_name = '{name}'", max_results=1)
        run_id = runs[0].info.run_id if runs else client.create_run(experiment, run_name=name).info.run_id
        for key, value in parameters.items():
            client.log_param(run_id, key, value)
        for key, metric in metrics.items():
            client.log_metric(run_id, key, metric)
        client.set_terminated(run_id)


@contextmanager
def _answering(uri: str) -> Iterator["MlflowClient"]:
    """A client of MLflow; its failures are ours, without its address, which may hold a password."""
    for key, value in MLFLOW_SETTINGS.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield MlflowClient(tracking_uri=uri, registry_uri=uri)
    except (MlflowException, SQLAlchemyError) as error:
        code = getattr(error, "error_code", type(error).__name__)
        raise UnavailableError(f"MLflow does not answer, or refuses ({code}); check tracking_uri in the hub's settings") from error


def _sync_entry(client: "MlflowClient", found: "ModelVersion | None", entry: RegistryEntry) -> str | None:
    """Register or correct one version; its number, None for a damaged one that is not registered."""
    card = entry.card[:DESCRIPTION_LENGTH]
    tags = {**entry.tags, "digest": entry.digest, "state": "whole" if entry.whole else "damaged"}
    if found is not None and found.source != entry.source:  # the hub was moved; MLflow cannot change a source
        client.delete_model_version(FOUNDATION, found.version)
        found = None
    if found is None and not entry.whole:
        return None
    if found is None:
        found = client.create_model_version(FOUNDATION, entry.source, tags=tags, description=card, await_creation_for=0)
    _set_tags(client, found, tags)
    if entry.whole and found.description != card:
        client.update_model_version(FOUNDATION, found.version, description=card)
    return str(found.version)


def _set_tags(client: "MlflowClient", version: "ModelVersion", tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        if version.tags.get(key) != value:
            client.set_model_version_tag(FOUNDATION, version.version, key, value)


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))
