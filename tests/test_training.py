import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from sklearn import metrics as reference

from rsna_nb import callbacks, data, inference, metrics, runs, training
from rsna_nb.backbones import build_backbone
from rsna_nb.callbacks import TrainingError
from rsna_nb.config import RunConfig
from rsna_nb.metadata import load_metadata
from rsna_nb.prepare import PrepareError
from rsna_nb.splits import SplitError

SMALL = {
    "img_size": 64,
    "backbone": "small",
    "weights": "none",
    "freeze_backbone": False,
    "pooling": "max",
    "batch_size_per_gpu": 8,
    "val_fraction": 0.3,
    "learning_rate": 1e-3,
    "epochs": 3,
}


@pytest.fixture(scope="module")
def settings(generated, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("training")
    return SMALL | {"data_dir": str(generated), "store_dir": str(folder / "stores"), "runs_dir": str(folder / "runs")}


@pytest.fixture(scope="module")
def run(settings) -> runs.Run:
    return training.train(RunConfig(**settings, run_name="first", test_fraction=0.2))


def test_a_run_folder_is_complete(run, settings):
    for name in (
        "config/config.json",
        "config/environment.json",
        "code/rsna_nb/dicom.py",
        "logs/train.log",
        "logs/history.csv",
        "checkpoints/best.keras",
        "predictions.csv",
        "metrics.json",
    ):
        assert run.file(name).stat().st_size > 0
    assert run.config == RunConfig(**settings, run_name="first", test_fraction=0.2)
    environment = json.loads(run.file("config/environment.json").read_text())
    assert environment["packages"]["tensorflow"] == tf.__version__
    assert len(environment["table_fingerprint"]) == len(environment["store_fingerprint"]) == 64
    assert run.id.endswith("-first")


def test_the_history_has_every_metric_of_every_epoch(run):
    history = run.history
    figures = ["loss", "auc", "accuracy", "bce", "precision", "recall", "f1"]
    assert {*figures, *(f"val_{name}" for name in figures), "val_pf1"} <= set(history)
    assert {"epoch", "learning_rate", "seconds", "images_per_second"} <= set(history)
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["learning_rate"][0] == pytest.approx(1e-3)
    assert history.notna().all(axis=None)


def test_the_best_epochs_metrics_are_scikit_learns_on_the_predictions(run):
    validation = run.predictions.query("split == 'validation'")
    best = run.history.set_index("epoch").loc[run.metrics["best_epoch"]]
    labels, scores = validation["cancer"], validation["score"]
    table, _ = data.split_table(run.config)
    weights = metrics.class_weights(table["cancer"][table["split"] == "train"])
    breasts = validation.groupby(["patient_id", "laterality"])[["cancer", "score"]].mean()
    precision = breasts["score"][breasts["cancer"] == 1].sum() / breasts["score"].sum()
    recall = breasts["score"][breasts["cancer"] == 1].mean()
    expected = {
        "val_loss": reference.log_loss(labels, scores, sample_weight=labels.map(weights)),
        "val_bce": reference.log_loss(labels, scores),
        "val_auc": reference.roc_auc_score(labels, scores),
        "val_accuracy": reference.accuracy_score(labels, scores >= 0.5),
        "val_precision": reference.precision_score(labels, scores >= 0.5, zero_division=0),
        "val_recall": reference.recall_score(labels, scores >= 0.5),
        "val_f1": reference.f1_score(labels, scores >= 0.5, zero_division=0),
        "val_pf1": 2 * precision * recall / (precision + recall),
    }
    for name, value in expected.items():
        assert best[name] == pytest.approx(value, abs=1e-5), name
    assert run.metrics["validation"]["image"]["auc"] == pytest.approx(expected["val_auc"], abs=1e-9)


def test_the_best_epoch_is_the_one_with_the_lowest_validation_loss(run):
    assert run.history["val_loss"].idxmin() + 1 == run.metrics["best_epoch"]


def test_predictions_have_a_row_for_each_validation_and_test_image(run):
    table, _ = data.split_table(run.config)
    held = table[table["split"] != "train"]
    predictions = run.predictions
    assert set(predictions["image_id"]) == set(held["image_id"])
    assert predictions["image_id"].is_unique
    assert predictions["score"].between(0, 1).all()
    assert {"site_id", "age", "machine_id", "density", "split", "cancer"} <= set(predictions)
    assert set(run.metrics) >= {"validation", "test"}


def test_tensorboard_has_losses_metrics_the_learning_rate_and_the_graph(run):
    found: dict[str, set] = {}
    for file in (run.path / "tensorboard").rglob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            tags = {value.tag for value in event.summary.value} | ({"graph"} if event.graph_def else set())
            found.setdefault(file.parent.name, set()).update(tags)
    assert {"graph", "model", "epoch_loss", "epoch_auc", "epoch_learning_rate"} <= found["train"]
    assert {"epoch_loss", "epoch_auc", "epoch_pf1"} <= found["validation"]


def test_files_are_scored_as_in_training(run, generated, tmp_path):
    predictions = run.predictions.set_index("image_id")
    table = load_metadata(generated).set_index("image_id").loc[predictions.index]
    bad = tmp_path / "bad.dcm"
    bad.write_text("no DICOM")
    scores = inference.predict(run, [*table["path"][:5], bad, *table["path"][5:]])
    assert scores["error"][5] == "not a DICOM file"
    assert np.isnan(scores["score"][5])
    np.testing.assert_allclose(scores["score"].drop(5), predictions["score"], atol=1e-5)


def test_the_same_seed_gives_the_same_history_to_the_byte(settings, run):
    again = training.train(RunConfig(**settings, test_fraction=0.2))
    timings = ["seconds", "images_per_second"]
    first, second = (one.history.drop(columns=timings).to_csv() for one in (run, again))
    assert first == second
    np.testing.assert_array_equal(run.predictions["score"], again.predictions["score"])
    assert again.id != run.id
    other = training.train(RunConfig(**settings | {"epochs": 1}, test_fraction=0.2, seed=43))
    assert other.history["loss"][0] != run.history["loss"][0]


DEVICES = """
import sys, tensorflow as tf
from rsna_nb import training
from rsna_nb.config import RunConfig

if __name__ == "__main__":
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(sys.argv[1]))
    print(training.train(RunConfig.from_json(sys.argv[2])).path)
"""


def train_on(devices: int, config: RunConfig, folder: Path) -> runs.Run:
    (folder / "devices.py").write_text(DEVICES)
    config.to_json(folder / "config.json")
    command = [sys.executable, folder / "devices.py", str(devices), folder / "config.json"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-2000:]
    return runs.load_run(answer.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("weights") / "mobilenet_notop.weights.h5")
    keras.utils.set_random_seed(0)
    keras.applications.MobileNet(include_top=False, weights=None, input_shape=(64, 64, 3)).save_weights(path)
    return path


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen backbone", "synchronised batch normalisation"])
def test_two_devices_give_the_metrics_of_one(settings, weights_file, tmp_path, frozen):
    network = {"backbone": "mobilenet", "weights": weights_file, "freeze_backbone": True}
    same = settings | {"dropout": 0.0, "epochs": 2} | (network if frozen else {"learning_rate": 1e-4})
    one = training.train(RunConfig(**same | {"batch_size_per_gpu": 16}))
    two = train_on(2, RunConfig(**same | {"batch_size_per_gpu": 8}), tmp_path)
    assert len(json.loads(two.file("config/environment.json").read_text())["devices"]) == 2
    for name in (
        "loss",
        "val_loss",
        "val_auc",
        *(["auc"] if frozen else []),
    ):  # few images: one pair moves AUC by 0.001
        np.testing.assert_allclose(two.history[name], one.history[name], atol=1e-3, err_msg=name)
    np.testing.assert_allclose(two.predictions["score"], one.predictions["score"], atol=1e-3)


def test_a_frozen_backbone_trains_its_head_alone(settings, weights_file):
    frozen = {"backbone": "mobilenet", "weights": weights_file, "freeze_backbone": True, "epochs": 1}
    model = keras.models.load_model(training.train(RunConfig(**settings | frozen)).checkpoint)
    assert len(model.trainable_variables) == 2
    untrained = build_backbone("mobilenet", 64, weights_file)
    for ours, theirs in zip(model.get_layer("backbone").get_weights(), untrained.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def damaged_copy(generated: Path, folder: Path, files: int) -> Path:
    shutil.copytree(generated, folder)
    for path in sorted((folder / "train_images").rglob("*.dcm"))[:files]:
        path.write_text("no DICOM")
    return folder


def test_unreadable_files_are_left_out_and_counted(settings, generated, tmp_path):
    folder = damaged_copy(generated, tmp_path / "damaged", 5)
    run = training.train(RunConfig(**settings | {"data_dir": str(folder), "epochs": 1}))
    assert run.metrics["left_out"] == 5
    assert "left out: 5 x not a DICOM file" in run.file("logs/train.log").read_text()


def test_more_than_a_tenth_unreadable_stops_the_run(settings, generated, tmp_path):
    folder = damaged_copy(generated, tmp_path / "damaged", 15)
    with pytest.raises(PrepareError, match=r"15 of \d+ images cannot be read, more than 10%"):
        training.train(RunConfig(**settings | {"data_dir": str(folder)}))


def test_a_run_that_fails_leaves_its_log_with_the_reason(settings, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there is no such table"):
        training.train(RunConfig(**settings | {"data_dir": str(tmp_path / "empty"), "runs_dir": str(tmp_path)}))
    (failed,) = runs.list_runs(tmp_path)
    assert "stopped: MetadataError" in (failed.path / "logs" / "train.log").read_text()
    with pytest.raises(runs.RunError, match=r"has no metrics\.json"):
        failed.metrics  # noqa: B018


def test_a_table_without_positives_is_refused(settings, generated, tmp_path):
    table = pd.read_csv(generated / "train.csv").assign(cancer=0)
    table.to_csv(tmp_path / "train.csv", index=False)
    (tmp_path / "train_images").symlink_to(generated / "train_images")
    with pytest.raises(SplitError, match="no image with cancer"):
        training.train(RunConfig(**settings | {"data_dir": str(tmp_path)}))


def failing_on(step: int, error: Exception | None, fault):
    """A callback class whose batch `step` meets `fault`, put in the place of StopAtNaN."""

    class Failing(callbacks.StopAtNaN):
        def on_train_batch_end(self, batch: int, logs: dict) -> None:
            if self.epoch == 1 and batch == step:
                fault(self, logs)
                if error:
                    raise error
            super().on_train_batch_end(batch, logs)

    return Failing


def test_a_loss_that_is_no_number_stops_at_its_step_and_keeps_the_best(settings, monkeypatch, tmp_path):
    poison = failing_on(2, None, lambda self, logs: logs.update(loss=float("nan")))
    monkeypatch.setattr(callbacks, "StopAtNaN", poison)
    with pytest.raises(TrainingError, match="the loss is nan at epoch 2, step 3"):
        training.train(RunConfig(**settings | {"runs_dir": str(tmp_path)}))
    (stopped,) = runs.list_runs(tmp_path)
    assert len(stopped.history) == 1
    keras.models.load_model(stopped.checkpoint)


def test_a_loss_that_overflows_stops_at_its_step(settings, monkeypatch, tmp_path):
    monkeypatch.setattr(training, "class_weights", lambda config, rows: {0: 1e38, 1: 3e38})
    with pytest.raises(TrainingError, match="the loss is inf at epoch 1, step 1"):
        training.train(RunConfig(**settings | {"runs_dir": str(tmp_path)}))


def test_scores_that_are_no_numbers_stop_the_run_by_name(settings, monkeypatch, tmp_path):
    monkeypatch.setattr(callbacks, "predict_scores", lambda model, dataset, count: np.full(count, np.nan))
    with pytest.raises(TrainingError, match="the validation scores of epoch 1 are not numbers"):
        training.train(RunConfig(**settings | {"runs_dir": str(tmp_path)}))


def test_out_of_memory_names_the_settings_to_change(settings, monkeypatch, tmp_path):
    error = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    monkeypatch.setattr(callbacks, "StopAtNaN", failing_on(0, error, lambda self, logs: None))
    with pytest.raises(TrainingError, match="out of memory with batch_size_per_gpu 8 at img_size 64: halve"):
        training.train(RunConfig(**settings | {"runs_dir": str(tmp_path)}))


TERMINATED = """
import sys
from rsna_nb import training
from rsna_nb.config import RunConfig

if __name__ == "__main__":
    training.train(RunConfig.from_json(sys.argv[1]))
"""


def test_sigterm_saves_the_model_and_says_so(settings, tmp_path):
    (tmp_path / "terminated.py").write_text(TERMINATED)
    RunConfig(**settings | {"runs_dir": str(tmp_path / "runs"), "epochs": 5000, "early_stopping_patience": 0}).to_json(
        tmp_path / "config.json"
    )
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
    assert "SIGTERM at epoch" in (stopped.path / "logs" / "train.log").read_text()
    keras.models.load_model(stopped.path / "checkpoints" / "last.keras")


@pytest.mark.parametrize(("monitor", "sign"), [("val_auc", 1), ("val_pf1", 1), ("val_loss", -1)])
def test_reducing_stopping_and_keeping_watch_the_same_metric(settings, tmp_path, monitor, sign):
    config = RunConfig(
        **settings | {"runs_dir": str(tmp_path), "epochs": 12, "learning_rate": 1e-6},
        monitor=monitor,
        reduce_lr_patience=1,
        early_stopping_patience=3,
    )
    run = training.train(config)
    values = sign * run.history[monitor]
    best = int(values.argmax())
    assert run.metrics["best_epoch"] == best + 1
    assert len(run.history) == min(12, best + 1 + 3)
    falls = run.history["learning_rate"].diff() < 0
    without_gain = values <= values.cummax().shift(fill_value=-np.inf)
    assert falls.shift(-1, fill_value=False)[:-1].equals(without_gain[:-1])


def test_a_batch_larger_than_the_data_is_cut_and_few_steps_are_warned_of(settings, tmp_path):
    run = training.train(RunConfig(**settings | {"runs_dir": str(tmp_path), "batch_size_per_gpu": 256, "epochs": 1}))
    log = run.file("logs/train.log").read_text()
    assert "the global batch is cut to the training images there are" in log
    assert "WARNING only 1 steps an epoch" in log


def test_two_runs_of_one_second_have_two_folders(settings, tmp_path):
    config = RunConfig(**settings | {"runs_dir": str(tmp_path)})
    ids = {runs.new_run(config).id for _ in range(3)}
    assert len(ids) == 3
    assert [run.id for run in runs.list_runs(tmp_path)] == sorted(ids)
    assert runs.load_run(min(ids), tmp_path).config == config
    with pytest.raises(runs.RunError, match="there is no run nothing"):
        runs.load_run("nothing", tmp_path)
