"""Training runs in MLflow: parameters and losses, by the client alone (no server, no telemetry). Needs the extra ``train``."""

import os
from collections.abc import Callable, Mapping


def track(uri: str, *, experiment: str, run: str, parameters: Mapping[str, object]) -> Callable[[int, Mapping[str, float]], None]:
    """Begin a run, or go on with the one of this name, and return a function that logs (step, values).

    Args:
        uri: For example ``sqlite:///mlflow.sqlite``, or the address of an MLflow server.
        experiment: Name of the experiment; made where it is missing.
        run: Name of the run.
        parameters: Logged once.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    known = client.get_experiment_by_name(experiment)
    number = known.experiment_id if known else client.create_experiment(experiment)
    found = client.search_runs([number], filter_string=f"attributes.run_name = '{run}'", max_results=1)
    run_id = found[0].info.run_id if found else client.create_run(number, run_name=run).info.run_id
    if not found:
        for key, value in parameters.items():
            client.log_param(run_id, key, value)

    def log(step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            client.log_metric(run_id, key, value, step=step)

    return log
