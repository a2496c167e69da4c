"""Points as metrics of a run of MLflow."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from pipeline.config import LoggerConfig
from pipeline.loggers.base import End, LoggedRun
from pipeline.loggers.points import Point
from pipeline.settings_file import flatten

_ENDS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_PARAMS = 100  # that one call takes
_MAX_VALUE = 500  # characters of a parameter that every server takes
_LINE = "metrics_line"


class MlflowLogger:
    """A run whose metric ``metrics_line`` says which points it has."""

    last_line = 0

    def __init__(self, settings: LoggerConfig, run: LoggedRun) -> None:
        self._run = run
        self._experiment = settings.project or os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        self._client = MlflowClient(tracking_uri=settings.place)

    def start(self, run_id: str | None) -> str:
        """Start or continue a run."""
        if run_id is None:
            run_id = self._create()
        else:
            self._client.update_run(run_id, status="RUNNING")
            self.last_line = int(self._client.get_run(run_id).data.metrics.get(_LINE, 0))
        self._run_id = run_id
        return run_id

    def _create(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found else None
        experiment = experiment or self._client.create_experiment(self._experiment)
        created = self._client.create_run(experiment, run_name=self._run.name)
        params = [Param(key, _text(value)) for key, value in flatten(self._run.config).items()]
        for first in range(0, len(params), _PARAMS):
            self._client.log_batch(created.info.run_id, params=params[first : first + _PARAMS])
        return created.info.run_id

    def log(self, point: Point) -> None:
        """Add a point; its line comes last, so that a point that is there is complete."""
        now_ms, values = int(time.time() * 1000), {**point.values, _LINE: point.line}
        metrics = [Metric(name, value, now_ms, point.step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def end(self, end: End) -> None:
        """Record how the run ended."""
        self._client.set_terminated(self._run_id, _ENDS[end])


def _text(value: Any) -> str:
    """A setting as text that is not too long."""
    return (value if isinstance(value, str) else json.dumps(value))[:_MAX_VALUE]
