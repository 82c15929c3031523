"""MLflow: the store that MLFLOW_TRACKING_URI names, or else RUN/mlflow.db."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import ClassVar

from dorakit.training.trackers.tracker import End, Tracked

_STATUS: dict[End, str] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MlflowTracker:
    """Logs through MLflow's client: the recipe as parameters, no artifacts."""

    needs: ClassVar[tuple[str, ...]] = ("mlflow", "sqlalchemy", "alembic")

    def __init__(self, tracked: Tracked):
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when it is imported
        # A server that does not answer holds the training up for seconds, not for MLflow's minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):  # which tell how they make the tables of a new file
            logging.getLogger(name).setLevel(logging.WARNING)
        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{tracked.directory.resolve() / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=place)
        self.has_told = bool(tracked.kept_id) and self._is_there(tracked.kept_id)
        if self.has_told:
            self.id = tracked.kept_id
            self._client.update_run(self.id, status="RUNNING")
        else:
            self.id = self._create(tracked)

    def _is_there(self, kept_id: str) -> bool:
        """Another store than before does not know the run."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_run(kept_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return True

    def _create(self, tracked: Tracked) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", tracked.project)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        created = str(self._client.create_run(experiment_id, run_name=tracked.name).info.run_id)
        params = [Param(key, str(value)) for key, value in tracked.settings.items()]
        for first in range(0, len(params), 100):  # the most that one call takes
            self._client.log_batch(created, params=params[first : first + 100])
        return created

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of a step."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        self._client.log_batch(self.id, metrics=[Metric(name, value, now, step) for name, value in figures.items()])

    def finish(self, end: End) -> None:
        """Say how it ended."""
        self._client.set_terminated(self.id, status=_STATUS[end])
