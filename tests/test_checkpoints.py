import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rsna_nb import runs
from rsna_nb.config import ConfigError, RunConfig
from rsna_nb.runs import RunError
from rsna_nb.system.files import read_arrays, write_arrays
from rsna_nb.training import TrainingError, checkpoints, train
from tests.notebooks import TRAIN, parameters_cell
from tests.small import ALL_KINDS_OF_STATE, assert_equal, resumed, stop_at

KILLED = Path(__file__).parent / "killed.py"


@pytest.fixture(scope="module")
def recipe(training_folders, small_weights) -> dict:
    """Breasts have all that images have, and draws of their images."""
    return ALL_KINDS_OF_STATE | training_folders | {"weights": small_weights, "unit": "woman", "images_per_breast": 1}


@pytest.fixture(scope="module")
def whole(recipe) -> runs.Run:
    return train(RunConfig(**recipe, run_name="whole"))


def killed(recipe: dict, folder: Path, place: str, count: int, when: str) -> runs.Run:
    """Start a run that kills itself, and return it."""
    settings = json.dumps(recipe | {"runs_dir": str(folder / "runs")})
    command = [sys.executable, KILLED, "1", settings, place, str(count), when]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == -signal.SIGKILL, answer.stderr[-2000:]
    (run,) = runs.list_runs(folder / "runs")
    return run


@pytest.mark.parametrize(
    ("place", "count", "when"),
    [
        ("fsync", 4, "after"),
        ("fsync", 11, "before"),  # between the phases
        ("step", 39, "after"),
    ],
)
@pytest.mark.slow
def test_a_run_that_was_killed_can_be_resumed_to_the_same_result(recipe, whole, tmp_path, place, count, when):
    """tests/bench/bench_resume.py tries more places, also while the bank is computed."""
    assert_equal(resumed(killed(recipe, tmp_path, place, count, when)), whole)


@pytest.mark.slow
def test_a_run_that_was_stopped_three_times_can_be_resumed_to_the_same_result(recipe, whole, tmp_path, monkeypatch):
    run = killed(recipe, tmp_path, "step", 5, "after")
    for step in (9, 17):
        stop_at(step, monkeypatch)
        with pytest.raises(TrainingError, match="stopped for the test"):
            resumed(run)
    assert_equal(resumed(run), whole)


@pytest.mark.slow
def test_a_run_stopped_after_the_last_epoch_of_a_phase_is_resumed_to_the_same_result(recipe, whole, tmp_path):
    last = int((whole.history["phase"] == "head").sum())

    def stop(epoch: int, logs: dict) -> None:
        if epoch == last:
            raise TrainingError("stopped for the test")

    with pytest.raises(TrainingError, match="stopped for the test"):
        train(RunConfig(**recipe | {"runs_dir": str(tmp_path)}), stop)
    assert_equal(resumed(*runs.list_runs(tmp_path)), whole)


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(whole):
    before = {path: path.read_bytes() for path in whole.path.rglob("*.*") if path.is_file() and path.suffix != ".log"}
    resumed(whole)
    assert before == {path: path.read_bytes() for path in before}
    assert "the run is finished" in whole.file("logs/train.log").read_text()


@pytest.fixture(scope="module")
def stopped_once(recipe, tmp_path_factory) -> runs.Run:
    """A run that was stopped in its fourth epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(20, patch)
        with pytest.raises(TrainingError, match="stopped for the test"):
            train(RunConfig(**recipe | {"runs_dir": str(folder)}))
    (run,) = runs.list_runs(folder)
    assert len(run.history) == 3
    return run


@pytest.fixture
def stopped(stopped_once, tmp_path) -> runs.Run:
    """A copy in the test's own folder; its settings still name the first folder."""
    return runs.Run(shutil.copytree(stopped_once.path, tmp_path / "runs" / stopped_once.id))


def test_a_changed_config_is_refused_by_name(stopped):
    settings = json.loads(stopped.file("config/config.json").read_text())
    (stopped.path / "config" / "config.json").write_text(json.dumps(settings | {"dropout": 0.1, "seed": 3}))
    with pytest.raises(RunError, match=r"config\.json differ from .*dropout 0\.4 .*0\.1, seed 42 .*3"):
        resumed(stopped)


def test_other_settings_are_refused_by_name(stopped):
    own = {"resume": stopped.id, "runs_dir": str(stopped.path.parent)}
    other = stopped.config.replace(**own, epochs=50)
    with pytest.raises(RunError, match=r"the settings given differ from .*epochs 5 .*50"):
        train(other)
    with pytest.raises(ConfigError, match=r"continues with its own settings: remove epochs 50 \(the run has 5\)"):
        RunConfig.resumed(own | {"epochs": 50})


def test_another_table_is_refused(stopped, generated, tmp_path):
    data = shutil.copytree(generated, tmp_path / "data")
    lines = (data / "train.csv").read_text().splitlines()
    (data / "train.csv").write_text("\n".join(lines[:-1]) + "\n")
    path = stopped.file("config/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_dir": str(data)}))
    (stopped.path / checkpoints.STATE_FILE).unlink()  # which would refuse the settings first
    with pytest.raises(RunError, match=r"the table has changed since it began \(table_fingerprint"):
        resumed(stopped)


def test_another_store_is_refused(stopped):
    path = stopped.path / "config" / "environment.json"
    environment = json.loads(path.read_text())
    path.write_text(json.dumps(environment | {"store_fingerprint": "0" * 64}))
    with pytest.raises(RunError, match="the store of prepared images has changed since it began"):
        resumed(stopped)


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no run nothing in"):
        RunConfig.resumed({"resume": "nothing", "runs_dir": str(tmp_path)})


def test_a_damaged_state_is_named(stopped):
    path = stopped.path / checkpoints.STATE_FILE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"state\.npz.* is damaged"):
        resumed(stopped)


def test_a_notebook_resumes_with_the_runs_settings_and_refuses_others(stopped):
    runs_dir = str(stopped.path.parent)
    namespace: dict = {}
    exec(parameters_cell(TRAIN), namespace)
    namespace |= {"resume": stopped.id, "runs_dir": runs_dir}
    config = RunConfig.from_notebook(namespace, "settings")
    assert config == stopped.config.replace(resume=stopped.id, runs_dir=runs_dir)
    assert f"run {stopped.id}" in config.origins(namespace).text
    with pytest.raises(ConfigError, match=r"dropout 0\.9 \(the run has 0\.4\)"):
        RunConfig.from_notebook(namespace | {"dropout": 0.9}, "settings")


def change_facts(run: runs.Run, change: Callable[[dict], object]) -> None:
    path = run.path / checkpoints.STATE_FILE
    arrays = read_arrays(path)
    facts = json.loads(str(arrays.pop("facts")))
    change(facts)
    write_arrays(path, arrays | {"facts": np.array(json.dumps(facts))})


def test_a_setting_added_to_config_json_is_refused(stopped):
    change_facts(stopped, lambda facts: facts["settings"].pop("dropout"))
    with pytest.raises(RunError, match=r"config\.json differ from .*dropout None .*0\.4"):
        checkpoints.load(stopped)


@pytest.mark.slow
def test_a_run_that_is_resumed_with_more_devices_keeps_its_batch(stopped):
    """It is killed at its first step, which is enough to see the batch."""
    settings = json.dumps({"resume": stopped.id, "runs_dir": str(stopped.path.parent)})
    command = [sys.executable, KILLED, "2", settings, "step", "1"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == -signal.SIGKILL, answer.stderr[-2000:]
    log = stopped.file("logs/train.log").read_text()
    assert log.count("global batch 4 breasts: ") == 2
    assert "the global batch is cut" not in log
