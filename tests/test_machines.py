"""Several computers that train one run: processes on 127.0.0.1 that TF_CONFIG names."""

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import keras
import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest

from rsna_nb import runs
from tests.notebooks import TRAIN
from tests.small import SMALL, TIMINGS

pytestmark = pytest.mark.slow
KILLED = Path(__file__).with_name("killed.py")
SETTINGS = SMALL | {
    "freeze_backbone": True,
    "test_fraction": 0.2,
    "dropout": 0.3,
    "learning_rate": 0.01,
    "fine_tune_learning_rate": 1e-3,
    "epochs": 8,
    "fine_tune_epochs": 4,
    "early_stopping_patience": 0,
}
LONGEST = 300  # seconds for a run; a tenth of it on two idle cores
SOON = 120  # seconds for a computer to notice that another is lost


@dataclass
class Machine:
    """A process of a cluster, and the file with what it prints."""

    process: subprocess.Popen
    output: Path

    def end(self, seconds: float = LONGEST) -> int:
        """Wait for the process and return its exit code."""
        return self.process.wait(seconds)

    def lose(self) -> None:
        """Kill the process and those that it started, as a power cut would."""
        family = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self.process.wait()

    @property
    def said(self) -> str:
        return self.output.read_text()


Cluster = Callable[..., list[Machine]]


def free_ports(count: int) -> list[int]:
    """Ports below those that the system assigns, which a notebook's kernel may take meanwhile."""
    ports: list[int] = []
    for port in random.sample(range(20_000, 32_000), 1_000):
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            break
    return ports


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Starts connected computers, one for each command; all end with the tests."""
    started = []

    def start(folder: Path, *commands: Sequence[object], tasks: Sequence[str] = ("worker", "worker")) -> list[Machine]:
        folder.mkdir(exist_ok=True)
        addresses = [f"127.0.0.1:{port}" for port in free_ports(len(commands))]
        named = {task: [a for a, t in zip(addresses, tasks, strict=True) if t == task] for task in tasks}
        machines = []
        for number, (task, command) in enumerate(zip(tasks, commands, strict=True)):
            own = {"type": task, "index": named[task].index(addresses[number])}
            environment = os.environ | {"TF_CONFIG": json.dumps({"cluster": named, "task": own})}
            output = folder / f"output-{number}.txt"
            with output.open("w") as file:
                process = subprocess.Popen(
                    [sys.executable, *map(str, command)],
                    cwd=folder,
                    env=environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            machines.append(Machine(process, output))
        started.extend(machines)
        return machines

    yield start
    for machine in started:
        if machine.process.poll() is None:
            machine.lose()


def papermill(*arguments: object) -> list[list[object]]:
    """Commands that run the notebook on two computers, with an output file each."""
    return [["-m", "papermill", TRAIN, f"{n}.ipynb", *arguments, "--no-progress-bar"] for n in range(2)]


def script(settings: dict) -> list[object]:
    """The command that trains without a notebook, on one device of a computer."""
    return [KILLED, 1, json.dumps(settings)]


def on_two_devices(settings: dict) -> subprocess.CompletedProcess:
    """Train on one computer with two devices."""
    command = [sys.executable, KILLED, "2", json.dumps(settings)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def cells(notebook: Path) -> list[nbformat.NotebookNode]:
    return nbformat.read(notebook, as_version=4).cells


READERS = {
    ".json": lambda path: json.loads(path.read_text()),
    ".csv": pd.read_csv,
    ".npz": lambda path: dict(np.load(path)),
    ".keras": keras.models.load_model,
    ".ipynb": cells,
    ".png": lambda path: cv2.imread(str(path)).shape,
}


def wait_for_epochs(run: Path, epochs: int, machines: list[Machine]) -> None:
    """Wait until the history of the run has so many epochs."""
    ends = time.monotonic() + LONGEST
    while time.monotonic() < ends and all(machine.process.poll() is None for machine in machines):
        for history in run.parent.glob(f"{run.name}/logs/history.csv"):
            if len(history.read_text().splitlines()) > epochs:
                return
        time.sleep(0.02)
    pytest.fail("\n".join([f"no epoch {epochs}", *(machine.said[-3000:] for machine in machines)]))


@pytest.fixture(scope="module")
def settings(generated: Path, small_weights: str, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("machines")
    return SETTINGS | {
        "data_dir": str(generated),
        "store_dir": str(folder / "stores"),
        "runs_dir": str(folder / "runs"),
        "weights": small_weights,
    }


@pytest.fixture(scope="module")
def given(settings: dict, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Arguments of papermill for the settings."""
    path = tmp_path_factory.mktemp("settings") / "settings.json"
    path.write_text(json.dumps(settings))
    return ["-f", path]


@pytest.fixture(scope="module")
def two_computers(cluster: Cluster, settings: dict, given: list, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two computers that trained through papermill, with the store and runs_dir of `settings`."""
    folder = tmp_path_factory.mktemp("two_computers")
    machines = cluster(folder, *papermill(*given))
    codes = [machine.end() for machine in machines]
    assert codes == [0, 0], "\n".join(machine.said[-3000:] for machine in machines)
    return folder


@pytest.fixture(scope="module")
def whole(two_computers: Path, settings: dict) -> runs.Run:
    """The run of the two computers, which nothing interrupted."""
    (run,) = runs.list_runs(settings["runs_dir"])
    return run


def test_two_computers_make_one_complete_run_folder(whole, two_computers, settings):
    assert whole.metrics["epochs"] == SETTINGS["epochs"] + SETTINGS["fine_tune_epochs"]
    assert set(whole.metrics) >= {"validation", "test"}
    environment = json.loads(whole.file("config/environment.json").read_text())
    assert environment["devices"] == ["/job:worker/replica:0/task:0/device:CPU:0"]
    log = whole.file("logs/train.log").read_text()
    assert "the head trains on the feature bank" in log
    assert "finished" in log
    for number in range(2):
        outputs = [output for cell in cells(two_computers / f"{number}.ipynb") for output in cell.get("outputs", [])]
        assert not [output for output in outputs if output.output_type == "error"]
        assert str(whole.path) in str(outputs)


def test_no_file_is_damaged_or_partial(whole, settings):
    folders = [Path(settings["store_dir"]), Path(settings["runs_dir"])]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in READERS]
    for path in files:
        READERS[path.suffix](path)
    assert {path.suffix for path in files} == set(READERS)
    assert sum(path.suffix == ".npz" for path in files) == 3, "the bank has a block from each computer; the run a state"
    assert_nothing_left_over(*folders)


def assert_nothing_left_over(*folders: Path) -> None:
    hidden = [path for folder in folders for path in folder.rglob(".*") if path.name != ".lock"]
    assert not hidden
    assert not [path for folder in folders for path in folder.rglob("*") if path.suffix in (".part", ".tmp")]


def assert_same_run(run: runs.Run, other: runs.Run) -> None:
    """Compare weights, predictions, history and saved state, all within 1e-5."""
    history, others = (each.history.drop(columns=TIMINGS) for each in (run, other))
    pd.testing.assert_frame_equal(history, others, check_exact=False, rtol=0, atol=1e-5)
    pd.testing.assert_frame_equal(run.predictions, other.predictions, check_exact=False, rtol=0, atol=1e-5)
    ours, theirs = (keras.models.load_model(each.checkpoint).get_weights() for each in (run, other))
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=0, atol=1e-5)
    ours, theirs = (np.load(each.file("checkpoints/state.npz")) for each in (run, other))
    assert ours.files == theirs.files
    for name in set(ours.files) - {"facts"}:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-5, err_msg=name)


def test_two_computers_train_as_two_devices_of_one_computer(whole, settings, tmp_path):
    answer = on_two_devices(settings | {"runs_dir": str(tmp_path)})
    assert answer.returncode == 0, answer.stderr[-3000:]
    (run,) = runs.list_runs(tmp_path)
    assert len(json.loads(run.file("config/environment.json").read_text())["devices"]) == 2
    assert whole.metrics["best_epoch"] > SETTINGS["epochs"], "else fine-tuning is not compared"
    assert_same_run(run, whole)


def test_two_computers_score_breasts_as_two_devices_of_one_computer(two_computers, cluster, settings, tmp_path):
    """After `two_computers`, so that the store and the bank are there."""
    own = settings | {"unit": "woman", "epochs": 2, "fine_tune_epochs": 1, "runs_dir": str(tmp_path / "several")}
    (path := tmp_path / "settings.json").write_text(json.dumps(own))
    machines = cluster(tmp_path, *papermill("-f", path))
    assert [machine.end() for machine in machines] == [0, 0], "\n".join(machine.said[-3000:] for machine in machines)
    answer = on_two_devices(own | {"runs_dir": str(tmp_path / "one")})
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert_same_run(*(runs.list_runs(tmp_path / name)[0] for name in ("several", "one")))


@dataclass
class Interrupted:
    """A run that lost a computer twice and was then trained to its end, and the other computers."""

    run: runs.Run
    survivors: dict[str, Machine]
    codes: dict[str, int]
    finished: subprocess.CompletedProcess


@pytest.fixture(scope="module")
def interrupted(whole, settings, cluster, given, tmp_path_factory) -> Interrupted:
    """The second computer is lost while the head trains; after a resumption the chief is lost in fine-tuning.

    Two devices of one computer continue to the end.
    """
    folder = tmp_path_factory.mktemp("interrupted")
    runs_dir = folder / "runs"
    chief, other = machines = cluster(folder / "first", *papermill(*given, "-p", "runs_dir", runs_dir))
    wait_for_epochs(runs_dir / "*", 3, machines)
    other.lose()
    codes = {"the second": chief.end(SOON)}
    survivors = {"the second": chief}

    (run,) = runs.list_runs(runs_dir)
    assert 3 <= len(run.history) < SETTINGS["epochs"]
    resumed = {"resume": run.id, "runs_dir": str(runs_dir)}
    chief, other = cluster(folder / "second", script(resumed), script(resumed), tasks=("chief", "worker"))
    wait_for_epochs(run.path, SETTINGS["epochs"] + 1, [chief, other])
    chief.lose()
    codes["the chief"] = other.end(SOON)
    survivors["the chief"] = other

    assert SETTINGS["epochs"] < len(run.history) < len(whole.history)
    (run.path / "checkpoints" / ".state.npz.12345678.part").write_bytes(b"what a computer lost in a save leaves")
    return Interrupted(run, survivors, codes, on_two_devices(resumed))


@pytest.mark.parametrize("lost", ["the second", "the chief"])
def test_a_lost_computer_ends_the_other_with_an_error_that_says_what_to_do(interrupted, lost):
    said = interrupted.survivors[lost].said
    assert interrupted.codes[lost] == 1, said[-3000:]
    last = said.strip().splitlines()[-1].lower()
    assert "distributionerror: another computer of tf_config was lost" in last
    assert "start all computers again, with resume set to" in last


def test_the_log_of_the_run_says_why_the_chief_stopped(interrupted):
    lines = interrupted.run.file("logs/train.log").read_text().splitlines()
    stopped = [line.split(" ERROR ")[1] for line in lines if " ERROR " in line]
    assert [line.split(":")[:2] for line in stopped] == [["stopped", " DistributionError"]]


def test_a_run_that_lost_computers_can_be_resumed_to_the_same_result(interrupted, whole):
    assert interrupted.finished.returncode == 0, interrupted.finished.stderr[-3000:]
    assert_same_run(interrupted.run, whole)
    assert_nothing_left_over(interrupted.run.path)


def test_an_error_on_the_chief_stops_the_other_computer(settings, generated, cluster, tmp_path):
    damaged = shutil.copytree(generated, tmp_path / "damaged")
    pd.read_csv(damaged / "train.csv").drop(columns="cancer").to_csv(damaged / "train.csv", index=False)
    settings = settings | {"runs_dir": str(tmp_path / "runs")}
    chief, other = cluster(tmp_path, script(settings | {"data_dir": str(damaged)}), script(settings))
    assert chief.end() == 1
    assert "MetadataError" in chief.said.strip().splitlines()[-1]
    assert other.end(SOON) == 1
    assert "DistributionError: another computer of TF_CONFIG was lost" in other.said.strip().splitlines()[-1]
    (run,) = runs.list_runs(tmp_path / "runs")
    assert "stopped: MetadataError" in run.file("logs/train.log").read_text().strip().splitlines()[-1]


UNEQUAL = """
import sys
import tensorflow as tf
from tensorflow.python.distribute import collective_all_reduce_strategy as strategies
from rsna_nb.training.distribution import find_devices

if sys.argv[1] == "2":  # TensorFlow takes all GPUs of a computer, but of CPUs only one
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    names = "{}/device:CPU:0", "{}/device:CPU:1"
    strategies.CollectiveAllReduceExtended._initialize_local_devices = (
        lambda self, resolver, worker: (tuple(name.format(worker) for name in names), "CPU")
    )
find_devices().wait()
"""


def test_computers_with_different_numbers_of_devices_are_refused(cluster, tmp_path):
    for machine in cluster(tmp_path, ["-c", UNEQUAL, 2], ["-c", UNEQUAL, 1]):
        assert machine.end() == 1
        assert "DistributionError" in machine.said.strip().splitlines()[-1], machine.said[-3000:]


CANARY = """
import json, sys, traceback
import keras
import tensorflow as tf

keras.config.disable_traceback_filtering()
strategy = tf.distribute.MultiWorkerMirroredStrategy()


class WithoutSymbolicBuild(keras.Sequential):
    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        with self.distribute_strategy.scope():
            self._symbolic_build(data_batch=(tf.zeros((4, 3)), tf.zeros((4, 1))))


class WithShapedMetrics(WithoutSymbolicBuild):
    def train_step(self, data):
        return {name: tf.reshape(value, (1,)) for name, value in super().train_step(data).items()}


def fit(kind):
    with strategy.scope():
        model = kind([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", metrics=["mae"])
    dataset = tf.data.Dataset.from_tensors((tf.ones(3), tf.ones(1))).repeat().batch(8)
    dataset = strategy.experimental_distribute_dataset(dataset)
    model.fit(dataset, steps_per_epoch=2, shuffle=False, verbose=0)


def where_it_fails(kind):
    try:
        fit(kind)
    except Exception as error:
        return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


print(json.dumps([where_it_fails(kind) for kind in (keras.Sequential, WithoutSymbolicBuild, WithShapedMetrics)]))
"""


def test_keras_still_needs_distributed_model(cluster, tmp_path):
    """`fit` fails in the two places of keras#20585, and nowhere else."""
    for machine in cluster(tmp_path, ["-c", CANARY], ["-c", CANARY]):
        assert machine.end() == 0, machine.said[-3000:]
        plain, built, shaped = json.loads(machine.said.splitlines()[-1])
        for place, frames in (("_maybe_symbolic_build", plain), ("reduce_per_replica", built)):
            now = f"fit does not fail in {place}, but {f'in {frames}' if frames else 'nowhere'}"
            assert place in (frames or []), f"Keras no longer needs DistributedModel: remove it ({now})"
        assert shaped is None, f"DistributedModel is not enough: fit fails in {shaped}"
