"""The files in a run folder, and the errors for bad data."""

import gc
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from sklearn import metrics as reference

from rsna_nb import inference, metrics, runs
from rsna_nb.config import RunConfig
from rsna_nb.metadata import load_metadata
from rsna_nb.prepare import PrepareError
from rsna_nb.splits import SplitError
from rsna_nb.training import TrainingError, data, train
from rsna_nb.training.run import choose_precision
from tests.small import TIMINGS, stop_at

FILES = [
    "config/config.json",
    "config/environment.json",
    "code/rsna_nb/dicom/reader.py",
    "logs/train.log",
    "logs/history.csv",
    "checkpoints/best.keras",
    "predictions.csv",
    "validation_scores.csv",
    "metrics.json",
]


def test_a_run_folder_is_complete(small_run, small_settings):
    for name in FILES:
        assert small_run.file(name).stat().st_size > 0
    own = {"run_name": "first", "test_fraction": 0.2, "runs_dir": small_run.config.runs_dir}
    assert small_run.config == RunConfig(**small_settings | own)
    environment = json.loads(small_run.file("config/environment.json").read_text())
    assert environment["packages"]["tensorflow"] == tf.__version__
    assert len(environment["table_fingerprint"]) == len(environment["store_fingerprint"]) == 64
    assert environment["generated"]
    log = small_run.file("logs/train.log").read_text()
    assert "devices: /device:CPU:0" in log
    assert "first step: " in log
    assert small_run.id.endswith("-first")


def test_the_history_has_every_metric_of_every_epoch(small_run):
    history = small_run.history
    figures = ["loss", "auc", "accuracy", "bce", "precision", "recall", "f1"]
    assert {*figures, *(f"val_{name}" for name in figures), "val_pf1"} <= set(history)
    assert {"epoch", "learning_rate", "seconds", "images_per_second"} <= set(history)
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["learning_rate"][0] == pytest.approx(1e-3)
    assert history.notna().all(axis=None)


def test_the_best_epochs_metrics_are_scikit_learns_on_the_predictions(small_run):
    validation = small_run.predictions.query("split == 'validation'")
    best = small_run.history.set_index("epoch").loc[small_run.metrics["best_epoch"]]
    labels, scores = validation["cancer"], validation["score"]
    table, _ = data.split_table(small_run.config)
    weights = metrics.class_weights(table["cancer"][table["split"] == "train"])
    expected = {
        "val_loss": reference.log_loss(labels, scores, sample_weight=labels.map(weights)),
        "val_bce": reference.log_loss(labels, scores),
        "val_auc": reference.roc_auc_score(labels, scores),
        "val_accuracy": reference.accuracy_score(labels, scores >= 0.5),
        "val_precision": reference.precision_score(labels, scores >= 0.5, zero_division=0),
        "val_recall": reference.recall_score(labels, scores >= 0.5),
        "val_f1": reference.f1_score(labels, scores >= 0.5, zero_division=0),
    }
    for name, value in expected.items():
        assert best[name] == pytest.approx(value, abs=1e-5), name
    assert small_run.metrics["validation"]["image"]["auc"] == pytest.approx(expected["val_auc"], abs=1e-9)


def test_pf1_is_that_of_scores_corrected_for_the_class_weights_in_every_file(small_run):
    """`predictions.csv` keeps the scores as the network gives them."""
    table, _ = data.split_table(small_run.config)
    weights = metrics.class_weights(table["cancer"][table["split"] == "train"])
    validation = small_run.predictions.query("split == 'validation'")
    odds = validation["score"] / (1 - validation["score"]) * weights[0] / weights[1]
    breasts = validation.assign(score=odds / (1 + odds)).groupby(["patient_id", "laterality"])[["cancer", "score"]]
    breasts = breasts.mean()
    precision = breasts["score"][breasts["cancer"] == 1].sum() / breasts["score"].sum()
    recall = breasts["score"][breasts["cancer"] == 1].mean()
    expected = 2 * precision * recall / (precision + recall)
    best = small_run.history.set_index("epoch").loc[small_run.metrics["best_epoch"]]
    assert best["val_pf1"] == pytest.approx(expected, abs=1e-5)
    assert small_run.metrics["validation"]["breast"]["pf1"] == pytest.approx(expected, abs=1e-5)
    raw = metrics.by_breast(validation)
    assert abs(metrics.pf1(raw["cancer"], raw["score"]) - expected) > 0.01, "else the correction is not seen"
    assert "corrected for the class weights" in small_run.file("logs/train.log").read_text()


def test_the_best_epoch_is_the_one_with_the_lowest_validation_loss(small_run):
    assert small_run.history["val_loss"].idxmin() + 1 == small_run.metrics["best_epoch"]


def test_the_scores_of_every_epoch_are_kept_and_those_of_the_best_are_the_predictions(small_run):
    scores = pd.read_csv(small_run.file("validation_scores.csv"), dtype={"patient_id": str, "image_id": str})
    assert list(scores) == ["patient_id", "laterality", "image_id", "epoch_1", "epoch_2", "epoch_3"]
    validation = small_run.predictions.query("split == 'validation'").set_index("image_id")
    best = scores.set_index("image_id")[f"epoch_{small_run.metrics['best_epoch']}"]
    np.testing.assert_array_equal(best.astype(np.float32), validation.loc[best.index, "score"].astype(np.float32))
    for epoch, auc in small_run.history.set_index("epoch")["val_auc"].items():
        labels = validation.loc[best.index, "cancer"]
        assert reference.roc_auc_score(labels, scores[f"epoch_{epoch}"]) == pytest.approx(auc, abs=1e-9)


def test_predictions_have_a_row_for_each_validation_and_test_image(small_run):
    table, _ = data.split_table(small_run.config)
    held = table[table["split"] != "train"]
    predictions = small_run.predictions
    assert set(predictions["image_id"]) == set(held["image_id"])
    assert predictions["image_id"].is_unique
    assert predictions["score"].between(0, 1).all()
    assert {"site_id", "age", "machine_id", "density", "split", "cancer"} <= set(predictions)
    assert set(small_run.metrics) >= {"validation", "test"}


def test_tensorboard_has_losses_metrics_the_learning_rate_and_the_graph(small_run):
    found: dict[str, set] = {}
    for file in (small_run.path / "tensorboard").rglob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            tags = {value.tag for value in event.summary.value} | ({"graph"} if event.graph_def else set())
            found.setdefault(file.parent.name, set()).update(tags)
    assert {"graph", "model", "epoch_loss", "epoch_auc", "epoch_learning_rate"} <= found["train"]
    assert {"epoch_loss", "epoch_auc", "epoch_pf1"} <= found["validation"]


def test_files_are_scored_as_in_training(small_run, generated, tmp_path):
    predictions = small_run.predictions.set_index("image_id")
    table = load_metadata(generated).set_index("image_id").loc[predictions.index]
    bad = tmp_path / "bad.dcm"
    bad.write_text("no DICOM")
    scores = inference.predict(small_run, [*table["path"][:5], bad, *table["path"][5:]])
    assert scores["error"][5] == "not a DICOM, PNG, JPEG, TIFF or PGM file"
    assert np.isnan(scores["score"][5])
    np.testing.assert_allclose(scores["score"].drop(5), predictions["score"], atol=1e-5)


def live_networks() -> int:
    """Count them without collecting garbage first."""
    return sum(isinstance(each, keras.Model) for each in gc.get_objects())


@pytest.mark.slow
def test_the_same_seed_gives_the_same_history_to_the_byte_and_no_network_is_kept(small_settings, small_run):
    """Three runs one after another, as folds are."""
    config = RunConfig(**small_settings, test_fraction=0.2)
    again = train(config)
    first, second = (one.history.drop(columns=TIMINGS).to_csv() for one in (small_run, again))
    assert first == second
    np.testing.assert_array_equal(small_run.predictions["score"], again.predictions["score"])
    assert again.id != small_run.id
    before = live_networks()
    other = train(RunConfig(**small_settings | {"epochs": 1}, test_fraction=0.2, seed=43))
    assert other.history["loss"][0] != small_run.history["loss"][0]
    assert live_networks() <= before


def damaged_copy(generated: Path, folder: Path, files: int) -> Path:
    shutil.copytree(generated, folder)
    for path in sorted((folder / "train_images").rglob("*.dcm"))[:files]:
        path.write_text("no DICOM")
    return folder


@pytest.mark.slow
def test_unreadable_files_are_counted_and_the_others_are_trained_on(frozen_settings, generated, tmp_path):
    folder = damaged_copy(generated, tmp_path / "damaged", 5)
    run = train(RunConfig(**frozen_settings | {"data_dir": str(folder), "epochs": 1}))
    assert run.metrics["unreadable"] == 5
    assert "5 x not a DICOM, PNG, JPEG, TIFF or PGM file" in run.file("logs/train.log").read_text()


def test_more_than_a_tenth_unreadable_stops_the_run(small_settings, generated, tmp_path):
    folder = damaged_copy(generated, tmp_path / "damaged", 15)
    config = RunConfig(**small_settings | {"data_dir": str(folder)})
    with pytest.raises(PrepareError, match=r"15 of \d+ images cannot be read, more than 10%"):
        data.prepare(config, *data.split_table(config))


def test_a_folder_that_cannot_be_written_stops_before_preparing(small_settings, tmp_path):
    (tmp_path / "file").touch()
    folders = {"store_dir": str(tmp_path / "store"), "runs_dir": str(tmp_path / "file" / "runs")}
    config = RunConfig(**small_settings | folders)
    with pytest.raises(OSError, match=r"nothing can be written into the folder .*file/runs: Not a directory"):
        data.prepare(config, *data.split_table(config))
    assert not list((tmp_path / "store").iterdir())


def test_a_run_that_fails_leaves_its_log_with_the_reason(small_settings, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="this folder is empty"):
        train(RunConfig(**small_settings | {"data_dir": str(tmp_path / "empty"), "runs_dir": str(tmp_path)}))
    (failed,) = runs.list_runs(tmp_path)
    assert "stopped: MetadataError" in (failed.path / "logs" / "train.log").read_text()
    with pytest.raises(runs.RunError, match=r"has no metrics\.json"):
        failed.metrics  # noqa: B018


def test_a_table_without_positives_is_refused(small_settings, generated, tmp_path):
    table = pd.read_csv(generated / "train.csv").assign(cancer=0)
    table.to_csv(tmp_path / "train.csv", index=False)
    (tmp_path / "train_images").symlink_to(generated / "train_images")
    with pytest.raises(SplitError, match="no image with cancer"):
        data.split_table(RunConfig(**small_settings | {"data_dir": str(tmp_path)}))


def test_two_runs_of_one_second_have_two_folders(small_settings, tmp_path):
    config = RunConfig(**small_settings | {"runs_dir": str(tmp_path)})
    ids = {runs.new_run(config).id for _ in range(3)}
    assert len(ids) == 3
    assert [run.id for run in runs.list_runs(tmp_path)] == sorted(ids)
    assert runs.load_run(min(ids), tmp_path).config == config
    with pytest.raises(runs.RunError, match="there is no run nothing"):
        runs.load_run("nothing", tmp_path)


def test_the_log_of_a_run_begins_with_what_its_data_are(small_run):
    first = (small_run.path / "logs" / "train.log").read_text().splitlines()[0]
    assert "GENERATED data, not real mammograms" in first


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ([], "float32"),
        ([(8, 0)], "bfloat16"),
        ([(7, 5)] * 2, "float16"),
        ([(9, 0), (7, 0)], "float16"),
        ([(6, 1)], "float32"),
    ],
)
def test_the_precision_is_what_every_gpu_has_tensor_cores_for(monkeypatch, capabilities, expected):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: range(len(capabilities)))
    monkeypatch.setattr(
        tf.config.experimental, "get_device_details", lambda gpu: {"compute_capability": capabilities[gpu]}
    )
    assert choose_precision(RunConfig()) == expected
    assert choose_precision(RunConfig(mixed_precision="bfloat16")) == "bfloat16"


@pytest.mark.slow
def test_a_run_in_float16_resumes_exactly_with_its_scale_of_the_loss(small_settings, monkeypatch):
    settings = small_settings | {"mixed_precision": "float16", "epochs": 2}
    whole = train(RunConfig(**settings))
    scaled = np.load(whole.path / "checkpoints" / "state.npz")
    assert 32768.0 in [float(scaled[name]) for name in scaled.files if scaled[name].shape == () and name != "facts"]
    with monkeypatch.context() as patch:
        stop_at(8, patch)
        with pytest.raises(TrainingError):
            train(RunConfig(**settings, run_name="stopped16"))
    (stopped,) = (run for run in runs.list_runs(settings["runs_dir"]) if run.config.run_name == "stopped16")
    resumed = train(stopped.config.replace(resume=stopped.id))
    assert resumed.history["loss"].tolist() == whole.history["loss"].tolist()
    np.testing.assert_array_equal(resumed.predictions["score"], whole.predictions["score"])
