"""MLflow. Where it lies and who may write there are MLflow's own variables (MLFLOW_TRACKING_URI, …_TOKEN, …); the
experiment is MLFLOW_EXPERIMENT_NAME, else tunesmith. Without an address it writes mlflow.db in the working folder."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from tunesmith.recipe import Recipe
from tunesmith.run import Run
from tunesmith.store.secrets import secret
from tunesmith.train.tracker import CURVES, Outcome

_SECRETS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
_AT_ONCE = 100  # parameters of a request
_LONGEST = 500  # characters of a parameter that every store takes


class MLflow:
    """An MLflow run; the history of its training loss tells the last step."""

    def __init__(self, recipe: Recipe, run: Run, id: str | None) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        for name in _SECRETS:  # MLflow reads them nowhere else
            if value := secret(name):
                os.environ.setdefault(name, value)
        self._client = MlflowClient()
        if id is not None:
            self.id = id
            self._client.update_run(id, status="RUNNING")
            self.last_step = max(
                (one.step for one in self._client.get_metric_history(id, CURVES["loss"])), default=0
            )
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "tunesmith")
        experiment = self._client.get_experiment_by_name(name)
        place = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self.id = self._client.create_run(place, run_name=run.name).info.run_id
        self.last_step = 0
        params = [Param(key, str(value)[:_LONGEST]) for key, value in _flat("", recipe.to_json())]
        for first in range(0, len(params), _AT_ONCE):
            self._client.log_batch(self.id, params=params[first : first + _AT_ONCE])

    def log(self, step: int, figures: Mapping[str, float], at: float) -> None:
        """The figures under their step, in one request."""
        from mlflow.entities import Metric

        stamp = round((at or time.time()) * 1000)
        metrics = [Metric(name, value, stamp, step) for name, value in figures.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self, outcome: Outcome) -> None:
        """Sets the run's status."""
        self._client.set_terminated(self.id, _STATUS[outcome])


def _flat(prefix: str, tree: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found = []
    for key, value in tree.items():
        inner = _flat(f"{prefix}{key}.", value) if isinstance(value, dict) else [(f"{prefix}{key}", value)]
        found += inner
    return found
