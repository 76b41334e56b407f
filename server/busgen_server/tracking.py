"""Downstream models in MLflow: one run for each model, in a SQLite file of the hub's data folder; no server, no telemetry."""

import os
from collections.abc import Mapping
from pathlib import Path

EXPERIMENT = "downstream"


def track_model(data: Path, *, name: str, parameters: Mapping[str, str | int], metrics: Mapping[str, float]) -> None:
    """Record a trained model, or add its scores later: runs of one name are one run.

    Args:
        data: The hub's data folder; ``mlflow.sqlite`` lies in it.
        name: Model id.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{data / 'mlflow.sqlite'}")
    found = client.get_experiment_by_name(EXPERIMENT)
    experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT, artifact_location=(data / "mlflow").as_uri())
    runs = client.search_runs([experiment], filter_string=f"attributes.run_name = '{name}'", max_results=1)
    run_id = runs[0].info.run_id if runs else client.create_run(experiment, run_name=name).info.run_id
    for key, value in parameters.items():
        client.log_param(run_id, key, value)
    for key, metric in metrics.items():
        client.log_metric(run_id, key, metric)
    client.set_terminated(run_id)
