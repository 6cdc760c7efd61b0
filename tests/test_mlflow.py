"""A training with MLFLOW_TRACKING_URI set is followed by an MLflow server, which can neither stop it nor hold it up.

The tests with a server need the whole package mlflow: `make .venv-mlflow/installed`, or its command in MLFLOW_SERVER.
"""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from rsna_nb import runs
from rsna_nb.config import RunConfig
from rsna_nb.evaluation.report import make_report
from rsna_nb.system import mlflow_run, tracking
from rsna_nb.training import TrainingError, train
from tests.small import resumed, stop_at

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of mlflow's imports
KILLED = Path(__file__).with_name("killed.py")
needs_mlflow = pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="mlflow is not installed")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def server_command() -> str:
    """A command that starts a server; skips the test without one. mlflow-skinny has the command but no server."""
    own = Path(__file__).parents[1] / ".venv-mlflow/bin/mlflow"
    if "MLFLOW_SERVER" not in os.environ and not own.exists():
        pytest.skip("no MLflow server: run make .venv-mlflow/installed")
    return os.environ.get("MLFLOW_SERVER", str(own))


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """The address of a server of its own on this computer. It may be slow: other tests run beside it."""
    command, folder = server_command(), tmp_path_factory.mktemp("mlflow")
    address = f"http://127.0.0.1:{(port := free_port())}"
    store = ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", str(folder / "files")]
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [command, "server", *store, *options], stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while not is_healthy(address):
            assert process.poll() is None, (folder / "log.txt").read_text()[-2000:]
            assert time.monotonic() < deadline, (folder / "log.txt").read_text()[-2000:]
            time.sleep(0.3)
        with pytest.MonkeyPatch.context() as patience:
            patience.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
            yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_healthy(address: str) -> bool:
    try:
        return requests.get(f"{address}/health", timeout=2).ok
    except requests.RequestException:
        return False


@pytest.fixture
def settings(frozen_settings, tmp_path) -> dict:
    return frozen_settings | {"runs_dir": str(tmp_path / "runs")}


def followed(run: runs.Run):
    """The MLflow run of a run, and a client of its server."""
    from mlflow import MlflowClient

    client = MlflowClient()
    return client, client.get_run(json.loads(run.file("logs/mlflow.json").read_text())["run_id"])


def assert_has_all_of(run: runs.Run) -> None:
    """The server has each epoch once, and the settings and metrics.json."""
    client, found = followed(run)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == run.id
    assert found.data.params["backbone"] == "small"
    assert found.data.params["learning_rate"] == str(run.config.learning_rate)
    history = run.history.set_index("epoch").drop(columns="phase")
    for name in history:
        sent = client.get_metric_history(found.info.run_id, name)
        assert [metric.step for metric in sent] == history.index.tolist(), name
        assert [metric.value for metric in sent] == pytest.approx(history[name].tolist(), nan_ok=True)
    (folder := run.path.parent / "downloaded").mkdir()
    assert json.loads(Path(client.download_artifacts(found.info.run_id, "metrics.json", str(folder))).read_text()) == (
        run.metrics
    )


@pytest.mark.slow
@needs_mlflow
def test_a_killed_and_resumed_training_is_one_run_on_the_server(server, settings, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    command = [sys.executable, KILLED, "1", json.dumps(settings | {"fine_tune_epochs": 2}), "step", "12", "after"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == -signal.SIGKILL, answer.stderr[-2000:]
    (run,) = runs.list_runs(settings["runs_dir"])
    client, before = followed(run)
    assert before.info.status == "RUNNING"
    assert len(client.get_metric_history(before.info.run_id, "val_auc")) == len(run.history) > 0
    assert_has_all_of(resumed(run))
    assert followed(run)[1].info.run_id == before.info.run_id
    assert len(client.search_runs([before.info.experiment_id], f"attributes.run_name = '{run.id}'")) == 1
    page = make_report(run, runs_dir=settings["runs_dir"], pictures=0, draws=50)
    sent = client.download_artifacts(before.info.run_id, page.name, str(run.path.parent / "downloaded"))
    assert Path(sent).read_bytes() == page.read_bytes()
    assert followed(run)[1].info.status == "FINISHED"


@needs_mlflow
def test_a_training_that_fails_is_marked_and_epochs_that_could_not_be_sent_are_sent_later(
    server, settings, monkeypatch, caplog
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{free_port()}")  # nobody listens there
    with monkeypatch.context() as once:
        stop_at(12, once)
        with pytest.raises(TrainingError, match="stopped for the test"):
            train(RunConfig(**settings))
    (run,) = runs.list_runs(settings["runs_dir"])
    assert len(run.history) > 0, "it trained without the server"
    (warning,) = [record.getMessage() for record in caplog.records if "MLflow" in record.getMessage()]
    assert f"not everything of run {run.id} could be sent" in warning
    assert "secret" not in warning
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    with monkeypatch.context() as once:
        stop_at(2, once)
        with pytest.raises(TrainingError, match="stopped for the test"):
            resumed(run)
    assert followed(run)[1].info.status == "FAILED"
    assert_has_all_of(resumed(run))


@needs_mlflow
def test_a_server_that_never_answers_is_waited_for_once(settings, monkeypatch, caplog):
    with socket.socket() as silent:  # it accepts connections, and is silent
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        run = mlflow_run(Path(settings["runs_dir"]), {})
        started = time.monotonic()
        for epoch in range(1, 50):
            run.log_epochs([{"epoch": epoch, "loss": 1.0}])
        assert time.monotonic() - started < 10
    assert len(caplog.records) == 1


@needs_mlflow
def test_a_run_that_the_server_does_not_know_begins_anew(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    (tmp_path / "logs").mkdir()
    (tmp_path / tracking.ID_FILE).write_text(json.dumps({"run_id": "0" * 32}))
    with mlflow_run(tmp_path, {"seed": 1}) as run:
        run.log_epochs([{"epoch": 1, "learning_rate": 0.1, "phase": "head"}])
    assert "does not know the run" in caplog.text
    assert followed(runs.Run(tmp_path))[1].data.metrics == {"learning_rate": 0.1}


def test_without_the_variable_nothing_is_imported(tmp_path):
    code = "import sys, pathlib; from rsna_nb.system import mlflow_run; "
    code += "assert mlflow_run(pathlib.Path('.'), {}) is None; assert 'mlflow' not in sys.modules"
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_the_variable_without_the_package_is_one_warning_that_names_the_extra(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as if it were not installed
    assert mlflow_run(tmp_path, {}) is None
    (record,) = caplog.records
    assert "pip install 'rsna_nb[mlflow]'" in record.getMessage()
