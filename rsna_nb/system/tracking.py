"""Sends a training to an MLflow server, if MLFLOW_TRACKING_URI names one; without it, mlflow is not imported.

The id of the MLflow run is kept in the run folder (logs/mlflow.json), so a resumed training goes on in the same MLflow
run. Whatever fails here is a warning: training neither ends nor waits because of a server.
"""

import json
import logging
import numbers
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from rsna_nb.system.files import write_whole

log = logging.getLogger(__name__)

ID_FILE = "logs/mlflow.json"
# The defaults of mlflow, 7 retries of 120 s each, would stop training for a quarter of an hour at every epoch.
LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
PAUSE = 60.0  # seconds without another attempt after a failed one
# The most that a server takes in one request; for metrics it is 1,000, and an epoch has about 15.
PARAMETERS_AT_ONCE, EPOCHS_AT_ONCE = 100, 40


class MlflowRun:
    """The MLflow run of a run folder, as a context: it ends as FINISHED, or as FAILED after an exception."""

    def __init__(self, client: Any, folder: Path, settings: Mapping[str, object]) -> None:
        """`client` is an MlflowClient; `settings` become the parameters of the MLflow run."""
        self.client, self.folder, self.settings = client, folder, settings
        self.id, self.sent, self.next_attempt = "", 0, 0.0

    def __enter__(self) -> Self:
        self.log_epochs([])  # the run is on the server before its first epoch, which can take an hour
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._attempt(lambda: self.client.set_terminated(self._opened(), "FAILED" if kind else "FINISHED"))

    def log_epochs(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Send the epochs that the server lacks: a dict for each, whose `epoch` is the step of its other numbers.

        Epochs that cannot be sent are sent with a later one. After a failure there is no attempt for `PAUSE` seconds.
        """
        if time.monotonic() >= self.next_attempt:
            self._attempt(lambda: self._send(history))

    def log_results(self, history: Sequence[Mapping[str, Any]], files: Sequence[Path]) -> None:
        """Send the epochs that the server still lacks, and files."""
        self.next_attempt = 0.0
        if self._attempt(lambda: self._send(history)):
            for file in files:
                self.log_file(self.id, file)

    def log_file(self, run_id: str, file: Path) -> None:
        """Send a file to an MLflow run, which can be finished."""
        self._attempt(partial(self.client.log_artifact, run_id, str(file)))

    def _attempt(self, action: Callable[[], object]) -> bool:
        """Run an action and return whether it succeeded; an error of any kind becomes a warning."""
        try:
            action()
        except Exception as error:
            if not self.next_attempt:  # one line, however long a server is away
                # The address can contain a password.
                text = re.sub(r"//[^/@\s]*@", "//", str(error).partition("\n")[0])
                log.warning("not everything of run %s could be sent to MLflow: %s", self.folder.name, text)
            self.next_attempt = time.monotonic() + PAUSE
            return False
        self.next_attempt = 0.0
        return True

    def _send(self, history: Sequence[Mapping[str, Any]]) -> None:
        from mlflow.entities import Metric

        run_id, now = self._opened(), int(time.time() * 1000)
        rows = [row for row in history if row["epoch"] > self.sent]
        for start in range(0, len(rows), EPOCHS_AT_ONCE):
            some = rows[start : start + EPOCHS_AT_ONCE]
            metrics = [
                Metric(name, float(value), now, row["epoch"])
                for row in some
                for name, value in row.items()
                if isinstance(value, numbers.Real) and name != "epoch"
            ]
            self.client.log_batch(run_id, metrics)
            self.sent = some[-1]["epoch"]

    def _opened(self) -> str:
        """The id of the MLflow run, which is found or made at the first call."""
        if not self.id:
            found = self._found() or self._made()
            self.client.update_run(found.info.run_id, "RUNNING")
            if not found.data.params:
                self._log_settings(found.info.run_id)
            self.id = found.info.run_id
            log.info("MLflow run %s", self.id)
        return self.id

    def _found(self) -> Any:
        """The MLflow run that this run folder had before; None if it had none, or the server does not know it."""
        from mlflow.exceptions import MlflowException

        if not (file := self.folder / ID_FILE).is_file():
            return None
        try:
            run = self.client.get_run(json.loads(file.read_text())["run_id"])
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            log.warning("the MLflow server does not know the run of %s: a new one begins", file)
            return None
        # A killed training may have sent epochs that nothing on this computer tells of, so the server is asked.
        steps = self.client.get_metric_history(run.info.run_id, "learning_rate")
        self.sent = max((metric.step for metric in steps), default=0)
        return run

    def _made(self) -> Any:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "rsna_nb"
        experiment = self.client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(name)
        run = self.client.create_run(experiment_id, run_name=self.folder.name)
        write_whole(self.folder / ID_FILE, json.dumps({"run_id": run.info.run_id}).encode())
        return run

    def _log_settings(self, run_id: str) -> None:
        from mlflow.entities import Param

        all_of_them = [Param(name, str(value)) for name, value in self.settings.items()]
        for start in range(0, len(all_of_them), PARAMETERS_AT_ONCE):
            self.client.log_batch(run_id, params=all_of_them[start : start + PARAMETERS_AT_ONCE])


def add_to_mlflow(folder: Path, file: Path) -> None:
    """Send a file to the MLflow run of a run folder, if it has one and MLFLOW_TRACKING_URI is set."""
    kept = folder / ID_FILE
    if kept.is_file() and (run := mlflow_run(folder, {})):
        log.info("%s is sent to MLflow with all pictures in it", file.name)
        run.log_file(json.loads(kept.read_text())["run_id"], file)


def mlflow_run(folder: Path, settings: Mapping[str, object]) -> MlflowRun | None:
    """Return the MLflow run of a run folder; None without MLFLOW_TRACKING_URI, or if mlflow cannot be imported.

    The server is not asked for anything yet.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    for name, value in LIMITS.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient

        return MlflowRun(MlflowClient(), folder, settings)
    except Exception as error:  # of an import, or of an address that mlflow does not understand
        log.warning(
            "MLFLOW_TRACKING_URI is set, but nothing is sent, because mlflow cannot be used (%s): "
            "pip install 'rsna_nb[mlflow]', or unset the variable",
            error,
        )
        return None
