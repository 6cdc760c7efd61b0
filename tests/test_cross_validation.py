import dataclasses
import gc
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

from rsna_nb import runs
from rsna_nb.config import ConfigError, RunConfig
from rsna_nb.evaluation import epochs, out_of_fold
from rsna_nb.experiments import cross_validation
from rsna_nb.metadata import load_metadata
from rsna_nb.splits import SplitError
from rsna_nb.system import locked
from rsna_nb.training import TrainingError, data, train
from tests.small import SMALL, stop_at

ROOT = Path(__file__).parents[1]
STEPS = 12  # of a fold: 2 epochs of 6


@pytest.fixture(scope="module")
def recipe(generated, stores, small_weights, tmp_path_factory) -> dict:
    """Settings for two folds of a frozen network, which use the feature bank."""
    folder = tmp_path_factory.mktemp("folds")
    frozen = {"weights": small_weights, "freeze_backbone": True, "n_folds": 2, "epochs": 2}
    folders = {"data_dir": str(generated), "store_dir": stores, "runs_dir": str(folder / "runs")}
    return SMALL | frozen | folders


@pytest.fixture(scope="module")
def finished(recipe) -> dict[int, runs.Run]:
    return cross_validation.cross_validate(RunConfig(**recipe))


def copied(recipe: dict, folder: Path) -> RunConfig:
    """The settings with another runs_dir, into which the finished runs are copied."""
    shutil.copytree(recipe["runs_dir"], folder / "runs")
    return RunConfig(**recipe | {"runs_dir": str(folder / "runs")})


@pytest.mark.slow
def test_every_image_is_out_of_fold_once_and_no_woman_in_two_folds(finished, generated):
    predictions = out_of_fold.out_of_fold(finished)
    assert sorted(predictions["image_id"]) == sorted(load_metadata(generated)["image_id"])
    assert predictions.groupby("patient_id")["fold"].nunique().eq(1).all()
    for fold, run in finished.items():
        assert run.config.fold == fold
        table, _ = data.split_table(run.config)
        held = set(table.loc[table["split"] == "validation", "image_id"])
        assert set(predictions.loc[predictions["fold"] == fold, "image_id"]) == held


def test_the_scores_that_each_fold_kept_are_its_predictions_at_its_best_epoch(finished):
    for run in finished.values():
        images, kept = run.predictions, epochs.scores_at(run, run.predictions, run.metrics["best_epoch"])
        assert kept["image_id"].tolist() == images["image_id"].tolist()
        np.testing.assert_array_equal(kept["score"], images["score"].astype(np.float32))
        assert epochs.run_optimism(run).epochs == 2
    others = {fold: epochs.curve(finished[1 - fold]).to_numpy().argmax() + 1 for fold in finished}
    assert epochs.epochs_of(finished) == others


def test_finished_folds_are_not_trained_again(recipe, finished, tmp_path):
    config = copied(recipe, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("2*/**/*.*") if path.is_file()}
    again = cross_validation.cross_validate(config.replace(run_name="another"))
    assert {fold: run.id for fold, run in again.items()} == {fold: run.id for fold, run in finished.items()}
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert len(runs.list_runs(config.runs_dir)) == 2


@pytest.mark.slow
def test_one_fold_alone_gives_the_same_run_as_all_folds_together(recipe, finished, tmp_path):
    config = RunConfig(**recipe | {"runs_dir": str(tmp_path / "runs"), "fold": 1})
    (alone,) = cross_validation.cross_validate(config).items()
    assert alone[0] == 1
    assert [run.config.fold for run in runs.list_runs(config.runs_dir)] == [1]
    np.testing.assert_array_equal(alone[1].predictions["score"], finished[1].predictions["score"])


@pytest.mark.slow
def test_a_stopped_fold_goes_on_and_the_finished_one_is_not_trained_again(recipe, finished, tmp_path, monkeypatch):
    config = RunConfig(**recipe | {"runs_dir": str(tmp_path / "runs")})
    stop_at(STEPS + 8, monkeypatch)
    with pytest.raises(TrainingError, match="stopped for the test"):
        cross_validation.cross_validate(config)
    first, second = runs.list_runs(config.runs_dir)
    assert (first.path / "metrics.json").is_file()
    assert len(second.history) == 1
    found = cross_validation.cross_validate(config.replace(run_name="later"))
    assert {fold: run.id for fold, run in found.items()} == {0: first.id, 1: second.id}
    np.testing.assert_array_equal(found[1].predictions["score"], finished[1].predictions["score"])
    assert "is resumed" in second.file("logs/train.log").read_text()


@pytest.mark.slow
def test_a_cross_validation_that_was_killed_goes_on_as_if_it_had_not_been(recipe, finished, tmp_path):
    settings = recipe | {"runs_dir": str(tmp_path / "runs")}
    for step, code in ((STEPS + 8, -signal.SIGKILL), (3, -signal.SIGKILL), (0, 0)):
        command = [sys.executable, "-m", "tests.folded", json.dumps(settings), str(step)]
        assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == code
    found = {run.config.fold: run for run in runs.list_runs(tmp_path / "runs")}
    assert len(runs.list_runs(tmp_path / "runs")) == len(found) == 2
    for fold, run in found.items():
        np.testing.assert_array_equal(run.predictions["score"], finished[fold].predictions["score"])


def test_runs_of_other_settings_or_data_are_not_taken(recipe, finished, tmp_path):
    config = copied(recipe, tmp_path)
    parts = {fold: config.replace(fold=fold) for fold in (0, 1)}
    data_of_all = cross_validation._Data.of(parts[0])
    found = cross_validation._find(parts[0], data_of_all)
    assert found
    assert found.id == finished[0].id
    for name, value in {"epochs": 3, "seed": 1, "n_folds": 3, "split_seed": 1}.items():
        assert cross_validation._find(parts[0].replace(**{name: value}), data_of_all) is None
    for run, name in zip(runs.list_runs(config.runs_dir), ["table_fingerprint", "store_fingerprint"], strict=True):
        path = run.file("config/environment.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: "0" * 64}))
    assert cross_validation._find(parts[0], data_of_all) is None
    assert cross_validation._find(parts[1], data_of_all) is None


def test_a_run_with_unknown_settings_is_skipped(recipe, finished, tmp_path):
    config = copied(recipe, tmp_path).replace(fold=0)
    run = runs.list_runs(config.runs_dir)[0]
    path = shutil.copytree(run.path, run.path.with_name("99999999-999999")) / "config" / "config.json"
    path.write_text(json.dumps({"a_later_setting": 1}))
    found = cross_validation._find(config, cross_validation._Data.of(config))
    assert found
    assert found.id == run.id


@pytest.mark.slow
def test_a_second_process_on_a_fold_waits_and_finds_it_finished(recipe, finished, tmp_path):
    config = RunConfig(**recipe | {"runs_dir": str(tmp_path / "runs")})
    found: dict = {}
    part = config.replace(fold=0)
    with locked(cross_validation._lock(part, cross_validation._Data.of(part))):
        second = threading.Thread(target=lambda: found.update(cross_validation.cross_validate(config, [0])))
        second.start()
        time.sleep(3)
        assert second.is_alive()
        shutil.copytree(finished[0].path, tmp_path / "runs" / finished[0].id)
    second.join()
    assert [run.id for run in found.values()] == [finished[0].id]
    assert len(runs.list_runs(config.runs_dir)) == 1


def test_a_run_that_was_killed_before_it_wrote_down_its_data_is_not_taken_for_other_data(recipe, finished, tmp_path):
    config = copied(recipe, tmp_path).replace(fold=0)
    (tmp_path / "runs" / finished[0].id / "config" / "environment.json").unlink()
    data_of_all = cross_validation._Data.of(config)
    found = cross_validation._find(config, data_of_all)
    assert found
    assert found.id == finished[0].id
    other = config.replace(data_dir=str(tmp_path / "other"))
    (tmp_path / "other").symlink_to(recipe["data_dir"])
    assert cross_validation._find(other, dataclasses.replace(data_of_all, folder=tmp_path / "other")) is None


def test_results_of_other_data_names_columns_or_draws_have_a_folder_of_their_own(recipe, generated, tmp_path):
    config = RunConfig(**recipe | {"runs_dir": str(tmp_path / "runs")})
    pd.read_csv(generated / "train.csv").assign(age=50).to_csv(tmp_path / "train.csv", index=False)
    (tmp_path / "train_images").symlink_to(generated / "train_images")
    results = cross_validation.results_folder
    found = [results(config), results(config, "site_id"), results(config, "machine_id"), results(config, draws=50)]
    others = {"data_dir": str(tmp_path), "run_name": "another", "epochs": 3, "n_folds": 3}
    found += [results(config.replace(**{name: value})) for name, value in others.items()]
    assert len(set(found)) == len(found)
    assert results(config.replace(fold=1)) == found[0]  # the folds of a cross-validation share one
    assert results(config, folds=[0, 1]) == found[0]
    assert results(config, folds=[0]) not in found  # some folds never overwrite the results of all
    assert all(folder.parent == tmp_path / "runs" / "cross_validation" for folder in found)


@pytest.mark.slow
def test_the_models_of_earlier_folds_are_not_kept(recipe, tmp_path, monkeypatch):
    def models() -> int:
        return sum(isinstance(each, keras.Model) for each in gc.get_objects())

    def counting(config: RunConfig) -> runs.Run:
        alive.append(models())
        return train(config)

    alive: list[int] = []
    monkeypatch.setattr(cross_validation, "train", counting)
    config = RunConfig(**recipe | {"runs_dir": str(tmp_path / "runs"), "epochs": 1})
    keras.backend.clear_session()
    gc.collect()
    gc.disable()  # or it may come by chance
    try:
        cross_validation.cross_validate(config)
    finally:
        gc.enable()
    assert alive == [alive[0]] * 2
    assert models() == alive[0]


@pytest.mark.parametrize(
    ("settings", "folds", "message"),
    [
        ({"leave_out": "site_id=1"}, None, "leave_out is for a single run"),
        ({"resume": "x"}, None, "resume is for a single run"),
        ({}, [2], "there is no fold 2: n_folds is 2"),
        ({}, "01", "there is no fold '0': n_folds is 2"),
    ],
)
def test_settings_that_a_cross_validation_cannot_use_are_named(recipe, settings, folds, message):
    with pytest.raises(ConfigError, match=message):
        cross_validation.cross_validate(RunConfig(**recipe | settings), folds)


@pytest.fixture(scope="module")
def machines(recipe, generated, tmp_path_factory) -> RunConfig:
    """Three machines: 7 and 49 have women with cancer and without, 197 only without; one woman is on both 7 and 49."""
    folder = tmp_path_factory.mktemp("machines")
    table = pd.read_csv(generated / "train.csv")
    has_cancer = table.groupby("patient_id")["cancer"].transform("max") == 1
    number = pd.Series(pd.factorize(table["patient_id"])[0])
    table["machine_id"] = np.where(number % 2, 7, 49)
    table.loc[~has_cancer & (number % 3 == 0), "machine_id"] = 197
    two = table[has_cancer & (table["machine_id"] == 7)].index
    table.loc[two[0], "machine_id"] = 49
    table.to_csv(folder / "train.csv", index=False)
    (folder / "train_images").symlink_to(generated / "train_images")
    return RunConfig(**recipe | {"data_dir": str(folder), "runs_dir": str(folder / "runs")})


def test_groups_tells_of_machines_without_cancers_and_women_of_two_machines(machines):
    table = cross_validation.groups(machines, "machine_id").set_index("value")
    assert list(table.index) == ["7", "49", "197"]
    assert table.loc["197", "positive_women"] == 0
    assert table["reason"].to_dict() == {
        "7": "",
        "49": "",
        "197": "the validation split would have no image with cancer",
    }
    assert table["unused_women"].to_dict() == {"7": 1, "49": 1, "197": 0}


def load(config: RunConfig) -> pd.DataFrame:
    return load_metadata(config.data_dir)


@pytest.mark.slow
def test_each_machine_with_cancers_is_left_out_of_a_run(machines):
    found = cross_validation.leave_one_group_out(machines, "machine_id")
    assert set(found) == {"7", "49"}
    table = load(machines)
    for value, run in found.items():
        inside = table[table["machine_id"] == int(value)]
        assert set(run.predictions["image_id"]) == set(inside["image_id"])
        others = set(table["patient_id"]) - set(inside["patient_id"])
        counts, unused = (
            run.metrics["images"],
            set(inside["patient_id"]) & set(table.loc[table["machine_id"] != int(value), "patient_id"]),
        )
        assert counts["train"] == table["patient_id"].isin(others).sum()
        assert counts["unused"] == table["patient_id"].isin(unused).sum() - inside["patient_id"].isin(unused).sum() > 0
        log = run.file("logs/train.log").read_text()
        assert f": {counts['train'] + counts['validation']} images\n" in log  # of the feature bank
    again = cross_validation.leave_one_group_out(machines, "machine_id")
    assert {value: run.id for value, run in again.items()} == {value: run.id for value, run in found.items()}


def test_training_without_a_machine_that_has_no_cancers_is_refused(machines):
    with pytest.raises(SplitError, match=r"validation split would have no image with cancer.*too small a group"):
        train(machines.replace(leave_out="machine_id=197"))


def test_a_column_that_the_table_lacks_is_named(machines):
    with pytest.raises(SplitError, match="the table has no column machine with values to leave out; it has site_id"):
        cross_validation.groups(machines, "machine")


def test_a_column_without_a_value_is_named(machines, generated, tmp_path):
    table = pd.read_csv(generated / "train.csv").assign(machine_id="")
    table.to_csv(tmp_path / "train.csv", index=False)
    (tmp_path / "train_images").symlink_to(generated / "train_images")
    with pytest.raises(SplitError, match="the table has no column machine_id with values to leave out"):
        cross_validation.groups(machines.replace(data_dir=str(tmp_path)), "machine_id")
