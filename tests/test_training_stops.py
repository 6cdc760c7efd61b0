"""Training that ends early, or continues with less memory: what is kept and logged."""

import os
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from rsna_nb import metrics, runs
from rsna_nb.config import RunConfig
from rsna_nb.training import TrainingError, callbacks, find_devices, train
from rsna_nb.training.inputs import Pictures
from rsna_nb.training.training_model import ForwardPath
from tests.small import failing_on


def test_a_loss_that_is_no_number_stops_at_its_step_and_keeps_the_best(frozen_settings, monkeypatch, tmp_path):
    poison = failing_on(2, None, lambda self, logs: logs.update(loss=float("nan")))
    monkeypatch.setattr(callbacks, "StopAtNaN", poison)
    with pytest.raises(TrainingError, match="the loss is nan at epoch 2, step 3"):
        train(RunConfig(**frozen_settings | {"runs_dir": str(tmp_path)}))
    (stopped,) = runs.list_runs(tmp_path)
    assert len(stopped.history) == 1
    keras.models.load_model(stopped.checkpoint)


def test_a_loss_that_overflows_stops_at_its_step(frozen_settings, monkeypatch, tmp_path):
    monkeypatch.setattr(metrics, "class_weights", lambda labels, share: {0: 1e38, 1: 3e38})
    with pytest.raises(TrainingError, match="the loss is inf at epoch 1, step 1"):
        train(RunConfig(**frozen_settings | {"runs_dir": str(tmp_path)}))


def test_scores_that_are_no_numbers_stop_the_run_by_name(frozen_settings, monkeypatch, tmp_path):
    monkeypatch.setattr(ForwardPath, "scorer", lambda self, rows, batch, devices: lambda: np.full(len(rows), np.nan))
    with pytest.raises(TrainingError, match="the validation scores of epoch 1 are not finite"):
        train(RunConfig(**frozen_settings | {"runs_dir": str(tmp_path)}))


def hungry(most: int):
    """A training step that has memory for microbatches of `most` images."""

    def to_network(self, pictures, *variants):
        def check(images: int) -> int:
            if images > most:
                raise MemoryError  # TensorFlow turns it into a ResourceExhaustedError
            return images

        if variants:  # in training
            with tf.control_dependencies([tf.py_function(check, [tf.shape(pictures)[0]], tf.int32)]):
                pictures = tf.identity(pictures)
        return plain(self, pictures, *variants)

    plain = Pictures.to_network
    return to_network


@pytest.fixture
def plain(frozen_settings, tmp_path) -> dict:
    """Without a bank, so that images go through the network in training."""
    return frozen_settings | {"feature_bank": False, "runs_dir": str(tmp_path), "dropout": 0.0, "epochs": 2}


@pytest.mark.slow
def test_out_of_memory_halves_the_microbatches_and_the_run_goes_on(plain, monkeypatch):
    monkeypatch.setattr(Pictures, "to_network", hungry(2))
    less = train(RunConfig(**plain))
    log = less.file("logs/train.log").read_text()
    assert "out of memory with microbatches of 8 images" in log
    assert "4 microbatches of 2; the global batch is still 8" in log
    assert less.history["epoch"].tolist() == [1, 2]
    assert "finished" in log


@pytest.mark.slow
def test_out_of_memory_halves_the_breasts_of_a_microbatch(plain, monkeypatch):
    monkeypatch.setattr(Pictures, "to_network", hungry(2))
    less = train(RunConfig(**plain | {"unit": "breast"}))
    log = less.file("logs/train.log").read_text()
    assert "out of memory with microbatches of 4 breasts" in log
    assert "2 microbatches of 2; the global batch is still 4" in log
    assert less.history["epoch"].tolist() == [1, 2]


def test_out_of_memory_with_one_image_names_the_settings_to_change(plain, monkeypatch):
    monkeypatch.setattr(Pictures, "to_network", hungry(0))
    with pytest.raises(TrainingError, match=r"microbatches of 1 images .* img_size 64: lower batch_size_per_gpu"):
        train(RunConfig(**plain | {"batch_size_per_gpu": 2}))


@pytest.mark.slow
def test_out_of_memory_with_one_breast_names_the_images_of_a_breast(plain, monkeypatch):
    monkeypatch.setattr(Pictures, "to_network", hungry(0))
    with pytest.raises(TrainingError, match=r"microbatches of 1 breasts .* images_per_breast \(3\)"):
        train(RunConfig(**plain | {"unit": "breast", "images_per_breast": 3, "batch_size_per_gpu": 2}))


@pytest.mark.slow
def test_out_of_memory_in_a_later_epoch_keeps_those_before(plain, monkeypatch):
    """With the body frozen, the microbatches of a batch make the same step as the whole: so does the run."""
    whole = train(RunConfig(**plain))
    steps, on_train_batch_end = iter(range(10**6)), callbacks.StopAtNaN.on_train_batch_end

    def once(self, batch: int, logs: dict) -> None:
        on_train_batch_end(self, batch, logs)
        if next(steps) == 12:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    monkeypatch.setattr(callbacks.StopAtNaN, "on_train_batch_end", once)
    less = train(RunConfig(**plain))
    assert "continuing from epoch 2 with 2 microbatches of 4" in less.file("logs/train.log").read_text()
    for name in ("epoch", "loss", "val_loss", "val_auc"):
        np.testing.assert_allclose(less.history[name], whole.history[name], atol=1e-5, err_msg=name)


def test_an_exception_of_on_epoch_ends_the_run_with_the_epoch_saved(frozen_settings, tmp_path):
    def on_epoch(epoch: int, logs: callbacks.Logs) -> None:
        assert logs["val_auc"] >= 0
        if epoch == 2:
            raise ZeroDivisionError("of the caller's own")

    config = RunConfig(**frozen_settings | {"runs_dir": str(tmp_path)})
    with pytest.raises(ZeroDivisionError):
        train(config, on_epoch)
    (stopped,) = runs.list_runs(tmp_path)
    assert stopped.history["epoch"].tolist() == [1, 2]
    assert not stopped.is_finished
    last = (stopped.path / "logs" / "train.log").read_text().splitlines()[-1]
    assert last.endswith("of the caller's own")


@pytest.mark.slow
def test_what_is_advisory_ends_no_run(frozen_settings, monkeypatch, tmp_path):
    """A device's memory is only for the log."""
    find_devices()  # asks once in a process, and must be answered

    def broken(*arguments: object) -> None:
        raise FileNotFoundError("/proc/self/cgroup")

    monkeypatch.setattr(tf.config, "list_logical_devices", broken)
    run = train(RunConfig(**frozen_settings | {"runs_dir": str(tmp_path), "epochs": 1}))
    assert "peak memory unknown" in run.file("logs/train.log").read_text()


TERMINATED = """
import sys
from rsna_nb import training
from rsna_nb.config import RunConfig

if __name__ == "__main__":
    training.train(RunConfig.from_json(sys.argv[1]))
"""


@pytest.mark.slow
def test_sigterm_stops_after_the_step_and_says_from_where_to_go_on(frozen_settings, tmp_path):
    (tmp_path / "terminated.py").write_text(TERMINATED)
    endless = {"runs_dir": str(tmp_path / "runs"), "epochs": 5000, "early_stopping_patience": 0}
    RunConfig(**frozen_settings | endless).to_json(tmp_path / "config.json")
    child = subprocess.Popen(
        [sys.executable, tmp_path / "terminated.py", tmp_path / "config.json"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list((tmp_path / "runs").glob("*/logs/history.csv")) and child.poll() is None:
        time.sleep(0.1)
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait(timeout=60) == 1
    (stopped,) = runs.list_runs(tmp_path / "runs")
    last = (stopped.path / "logs" / "train.log").read_text().splitlines()[-1]
    assert "SignalError: SIGTERM at " in last
    assert f"from epoch {len(stopped.history) + 1}" in last or "at the end of an epoch" in last


@pytest.mark.slow
def test_the_default_batch_follows_from_the_data_and_a_given_one_is_used_as_it_is(frozen_settings, tmp_path):
    same = frozen_settings | {"runs_dir": str(tmp_path), "epochs": 1}
    default, given = (train(RunConfig(**same | {"batch_size_per_gpu": size})) for size in (0, 256))
    log = default.file("logs/train.log").read_text()
    assert "8 images per GPU in a batch, from the images of an epoch" in log
    log = given.file("logs/train.log").read_text()
    assert "the global batch is limited to the" in log
    assert "WARNING only 1 steps per epoch" in log
