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

from rsna_nb import inference, metrics, runs
from rsna_nb.backbones.registry import build_backbone
from rsna_nb.config import RunConfig
from rsna_nb.metadata.table import load_metadata
from rsna_nb.prepare.store import PrepareError
from rsna_nb.splits import SplitError
from rsna_nb.training import callbacks, data
from rsna_nb.training import run as training
from rsna_nb.training import session as fitting
from rsna_nb.training.callbacks import TrainingError
from rsna_nb.training.inputs import Pictures
from rsna_nb.training.training_model import ForwardPath
from tests.small import SMALL, TIMINGS, changed_layers, failing_on


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
    assert environment["generated"]
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
    first, second = (one.history.drop(columns=TIMINGS).to_csv() for one in (run, again))
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
    for path in sys.argv[2:]:
        print("run", training.train(RunConfig.from_json(path)).path)
"""


def train_on(devices: int, configs: list[RunConfig], folder: Path) -> list[runs.Run]:
    """Runs of a process with so many devices."""
    (folder / "devices.py").write_text(DEVICES)
    paths = [folder / f"{number}.json" for number in range(len(configs))]
    for config, path in zip(configs, paths, strict=True):
        config.to_json(path)
    command = [sys.executable, folder / "devices.py", str(devices), *paths]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-2000:]
    return [runs.load_run(line[4:]) for line in answer.stdout.splitlines() if line.startswith("run ")]


@pytest.fixture(scope="module")
def frozen(small_weights) -> dict:
    """Settings of a frozen backbone with weights of its own."""
    return {"weights": small_weights, "freeze_backbone": True}


SAME = {"dropout": 0.0, "epochs": 2}
RECIPES = {
    "feature bank": {},
    "frozen backbone": {"feature_bank": False},
    "fine-tuning": {"epochs": 1, "fine_tune_epochs": 1},
    "averaged weights, clipped gradients, two parts": {
        "feature_bank": False, "ema": 0.9, "clip_norm": 0.01, "gradient_accumulation": 2,
    },
    "balanced batches": {"imbalance": "balanced_batches"},
    "focal loss": {"imbalance": "focal", "positive_label": 0.9},
    "synchronised batch normalisation": {"freeze_backbone": False, "weights": "none", "learning_rate": 1e-4},
}  # fmt: skip


@pytest.fixture(scope="module")
def on_two_devices(settings, frozen, tmp_path_factory) -> dict[str, runs.Run]:
    folder = tmp_path_factory.mktemp("devices")
    configs = [
        RunConfig(**settings | frozen | SAME | recipe | {"batch_size_per_gpu": 4}) for recipe in RECIPES.values()
    ]
    return dict(zip(RECIPES, train_on(2, configs, folder), strict=True))


@pytest.mark.parametrize("name", RECIPES)
def test_two_devices_give_the_metrics_of_one(settings, frozen, on_two_devices, name):
    recipe, two = RECIPES[name], on_two_devices[name]
    one = training.train(RunConfig(**settings | frozen | SAME | recipe))
    assert len(json.loads(two.file("config/environment.json").read_text())["devices"]) == 2
    figures = ["loss", "val_loss", "val_auc"]
    if recipe.get("freeze_backbone", True):  # else few images: one pair moves AUC by 0.001
        figures.append("auc")
    for figure in figures:
        np.testing.assert_allclose(two.history[figure], one.history[figure], atol=1e-3, err_msg=figure)
    np.testing.assert_allclose(two.predictions["score"], one.predictions["score"], atol=1e-3)


def test_the_head_learns_the_same_from_the_bank_as_from_the_pictures(settings, frozen, tmp_path):
    same = settings | frozen | {"dropout": 0.0, "epochs": 5, "early_stopping_patience": 0}
    plain, bank = (training.train(RunConfig(**same, feature_bank=used)) for used in (False, True))
    assert "the head learns from the feature bank" in bank.file("logs/train.log").read_text()
    for name in ("loss", "auc", "val_loss", "val_auc", "val_pf1"):
        np.testing.assert_allclose(bank.history[name], plain.history[name], atol=1e-4, err_msg=name)
    np.testing.assert_allclose(bank.predictions["score"], plain.predictions["score"], atol=1e-4)


@pytest.mark.parametrize("bank", [True, False])
def test_a_frozen_backbone_trains_its_head_alone_and_is_saved_with_it(settings, frozen, generated, bank):
    run = training.train(RunConfig(**settings | frozen | {"epochs": 1, "feature_bank": bank}))
    model = keras.models.load_model(run.checkpoint)
    assert len(model.trainable_variables) == 2
    untrained = build_backbone("small", 64, frozen["weights"])
    for ours, theirs in zip(model.get_layer("backbone").get_weights(), untrained.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    table = load_metadata(generated).set_index("image_id")
    scores = inference.predict(run, table["path"][run.predictions["image_id"]])
    np.testing.assert_allclose(scores["score"], run.predictions["score"], atol=1e-5)


def test_fine_tuning_begins_at_the_best_head_and_trains_from_the_layer_named(settings, frozen):
    tuned = {"epochs": 2, "fine_tune_epochs": 2, "fine_tune_from": "stage_3", "fine_tune_learning_rate": 1e-3}
    coarse = {"learning_rate": 1.0}  # of the head: what it leaves fine-tuning gains
    run = training.train(RunConfig(**settings | frozen | tuned | coarse))
    assert run.history["phase"].tolist() == ["head"] * 2 + ["fine_tuning"] * 2
    assert run.history["epoch"].tolist() == [1, 2, 3, 4]
    assert run.history["learning_rate"][2] == pytest.approx(1e-3)
    assert run.metrics["best_epoch"] > 2, "else fine-tuning is not looked at"
    model = keras.models.load_model(run.checkpoint).get_layer("backbone")
    changed = changed_layers(model, build_backbone("small", 64, frozen["weights"]))
    assert changed
    assert all("stage_3" in name for name in changed)


def test_the_learning_rate_warms_up_and_falls_as_a_cosine(settings, frozen):
    config = RunConfig(**settings | frozen | {"epochs": 6}, lr_schedule="cosine", warmup_epochs=2)
    rates = training.train(config).history["learning_rate"]
    assert rates[0] < rates[1] <= 1e-3
    assert (rates[1:].diff()[1:] < 0).all()
    assert rates[5] < 1e-4


def damaged_copy(generated: Path, folder: Path, files: int) -> Path:
    shutil.copytree(generated, folder)
    for path in sorted((folder / "train_images").rglob("*.dcm"))[:files]:
        path.write_text("no DICOM")
    return folder


def test_unreadable_files_are_left_out_and_counted(settings, generated, tmp_path):
    folder = damaged_copy(generated, tmp_path / "damaged", 5)
    run = training.train(RunConfig(**settings | {"data_dir": str(folder), "epochs": 1}))
    assert run.metrics["unreadable"] == 5
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


def test_a_loss_that_is_no_number_stops_at_its_step_and_keeps_the_best(settings, monkeypatch, tmp_path):
    poison = failing_on(2, None, lambda self, logs: logs.update(loss=float("nan")))
    monkeypatch.setattr(callbacks, "StopAtNaN", poison)
    with pytest.raises(TrainingError, match="the loss is nan at epoch 2, step 3"):
        training.train(RunConfig(**settings | {"runs_dir": str(tmp_path)}))
    (stopped,) = runs.list_runs(tmp_path)
    assert len(stopped.history) == 1
    keras.models.load_model(stopped.checkpoint)


def test_a_loss_that_overflows_stops_at_its_step(settings, monkeypatch, tmp_path):
    monkeypatch.setattr(fitting, "class_weights", lambda config, rows: {0: 1e38, 1: 3e38})
    with pytest.raises(TrainingError, match="the loss is inf at epoch 1, step 1"):
        training.train(RunConfig(**settings | {"runs_dir": str(tmp_path)}))


def test_scores_that_are_no_numbers_stop_the_run_by_name(settings, monkeypatch, tmp_path):
    monkeypatch.setattr(ForwardPath, "scorer", lambda self, rows, batch, devices: lambda: np.full(len(rows), np.nan))
    with pytest.raises(TrainingError, match="the validation scores of epoch 1 are not numbers"):
        training.train(RunConfig(**settings | {"runs_dir": str(tmp_path)}))


def hungry(most: int):
    """A training step that has memory for `most` images at once."""

    def to_network(self, pictures, *variants):
        def check(images: int) -> int:
            if images > most:
                raise MemoryError  # which TensorFlow makes a ResourceExhaustedError
            return images

        if variants:  # in training
            with tf.control_dependencies([tf.py_function(check, [tf.shape(pictures)[0]], tf.int32)]):
                pictures = tf.identity(pictures)
        return plain(self, pictures, *variants)

    plain = Pictures.to_network
    return to_network


def test_out_of_memory_halves_what_goes_through_at_once_and_the_run_goes_on(settings, monkeypatch, tmp_path, run):
    monkeypatch.setattr(Pictures, "to_network", hungry(2))
    config = RunConfig(**settings | {"runs_dir": str(tmp_path)})
    less = training.train(config)
    log = less.file("logs/train.log").read_text()
    assert "out of memory with 8 images at once on a device: going on from epoch 1 with 4, 2 times a step" in log
    assert "going on from epoch 1 with 2, 4 times a step: the batch is still 8" in log
    assert less.history["epoch"].tolist() == [1, 2, 3]
    assert "finished" in log


def test_out_of_memory_with_one_image_names_the_settings_to_change(settings, monkeypatch, tmp_path):
    monkeypatch.setattr(Pictures, "to_network", hungry(0))
    with pytest.raises(TrainingError, match="out of memory with 1 images at once on a device, at img_size 64: lower"):
        training.train(RunConfig(**settings | {"runs_dir": str(tmp_path), "batch_size_per_gpu": 2}))


def test_out_of_memory_in_a_later_epoch_keeps_those_before(settings, monkeypatch, tmp_path, frozen):
    """With the body frozen the parts of a batch make the same step as the whole: so does the run."""
    same = settings | frozen | {"feature_bank": False, "runs_dir": str(tmp_path), "dropout": 0.0}
    whole = training.train(RunConfig(**same))
    steps, plain = iter(range(10**6)), callbacks.StopAtNaN.on_train_batch_end

    def once(self, batch: int, logs: dict) -> None:
        plain(self, batch, logs)
        if next(steps) == 12:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    monkeypatch.setattr(callbacks.StopAtNaN, "on_train_batch_end", once)
    less = training.train(RunConfig(**same))
    assert "going on from epoch 2 with 4, 2 times a step" in less.file("logs/train.log").read_text()
    for name in ("loss", "val_loss", "val_auc"):
        np.testing.assert_allclose(less.history[name], whole.history[name], atol=1e-5, err_msg=name)


TERMINATED = """
import sys
from rsna_nb import training
from rsna_nb.config import RunConfig

if __name__ == "__main__":
    training.train(RunConfig.from_json(sys.argv[1]))
"""


def test_sigterm_stops_after_the_step_and_says_from_where_to_go_on(settings, tmp_path):
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
    log = (stopped.path / "logs" / "train.log").read_text()
    epoch = len(stopped.history) + 1
    assert f"SIGTERM at epoch {epoch}" in log
    assert f"resumed, the run goes on from epoch {epoch}" in log


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
