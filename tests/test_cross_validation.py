import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsna_nb import runs
from rsna_nb.config import ConfigError, RunConfig
from rsna_nb.evaluation import out_of_fold
from rsna_nb.experiments import cross_validation
from rsna_nb.metadata.table import load_metadata
from rsna_nb.splits import SplitError
from rsna_nb.system.locks import locked
from rsna_nb.training import data
from rsna_nb.training import run as training
from rsna_nb.training.callbacks import TrainingError
from tests.small import SMALL, stop_at


@pytest.fixture(scope="module")
def recipe(generated, small_weights, tmp_path_factory) -> dict:
    """Settings of two folds of a frozen network, whose features come from the bank."""
    folder = tmp_path_factory.mktemp("folds")
    frozen = {"weights": small_weights, "freeze_backbone": True, "n_folds": 2, "epochs": 2}
    folders = {"data_dir": str(generated), "store_dir": str(folder / "stores"), "runs_dir": str(folder / "runs")}
    return SMALL | frozen | folders


@pytest.fixture(scope="module")
def finished(recipe) -> dict[int, runs.Run]:
    return cross_validation.cross_validate(RunConfig(**recipe))


def copied(recipe: dict, folder: Path) -> RunConfig:
    """The settings with a runs_dir of their own, which has the finished runs."""
    shutil.copytree(recipe["runs_dir"], folder / "runs")
    return RunConfig(**recipe | {"runs_dir": str(folder / "runs")})


def test_every_image_is_out_of_fold_once_and_no_woman_in_two_folds(finished, generated):
    predictions = out_of_fold.out_of_fold(finished)
    assert sorted(predictions["image_id"]) == sorted(load_metadata(generated)["image_id"])
    assert predictions.groupby("patient_id")["fold"].nunique().eq(1).all()
    for fold, run in finished.items():
        assert run.config.fold == fold
        table, _ = data.split_table(run.config)
        held = set(table.loc[table["split"] == "validation", "image_id"])
        assert set(predictions.loc[predictions["fold"] == fold, "image_id"]) == held


def test_finished_folds_are_taken_as_they_are(recipe, finished, tmp_path):
    config = copied(recipe, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("2*/**/*.*") if path.is_file()}
    again = cross_validation.cross_validate(config.replace(run_name="another"))
    assert {fold: run.id for fold, run in again.items()} == {fold: run.id for fold, run in finished.items()}
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert len(runs.list_runs(config.runs_dir)) == 2


def test_one_fold_alone_is_trained_and_is_the_run_that_training_it_gives(recipe, finished, tmp_path):
    config = RunConfig(**recipe | {"runs_dir": str(tmp_path / "runs"), "fold": 1})
    (alone,) = cross_validation.cross_validate(config).items()
    assert alone[0] == 1
    assert [run.config.fold for run in runs.list_runs(config.runs_dir)] == [1]
    np.testing.assert_array_equal(alone[1].predictions["score"], finished[1].predictions["score"])


def test_a_stopped_fold_goes_on_and_the_finished_one_stays(recipe, finished, tmp_path, monkeypatch):
    config = RunConfig(**recipe | {"runs_dir": str(tmp_path / "runs")})
    steps = finished[0].config.epochs * 6
    stop_at(steps + 8, monkeypatch)
    with pytest.raises(TrainingError, match="stopped for the test"):
        cross_validation.cross_validate(config)
    first, second = runs.list_runs(config.runs_dir)
    assert (first.path / "metrics.json").is_file()
    assert len(second.history) == 1
    found = cross_validation.cross_validate(config.replace(run_name="later"))
    assert {fold: run.id for fold, run in found.items()} == {0: first.id, 1: second.id}
    np.testing.assert_array_equal(found[1].predictions["score"], finished[1].predictions["score"])
    assert "goes on" in second.file("logs/train.log").read_text()


def test_runs_of_other_settings_or_data_are_not_taken(recipe, finished, tmp_path):
    config = copied(recipe, tmp_path)
    parts = {fold: config.replace(fold=fold) for fold in (0, 1)}
    origin = cross_validation.Origin.of(parts[0])
    found = cross_validation.find(parts[0], origin)
    assert found
    assert found.id == finished[0].id
    for name, value in {"epochs": 3, "seed": 1, "n_folds": 3, "split_seed": 1}.items():
        assert cross_validation.find(parts[0].replace(**{name: value}), origin) is None
    for run, name in zip(runs.list_runs(config.runs_dir), ["table_fingerprint", "store_fingerprint"], strict=True):
        path = run.file("config/environment.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: "0" * 64}))
    assert cross_validation.find(parts[0], origin) is None
    assert cross_validation.find(parts[1], origin) is None


def test_a_run_of_settings_that_are_not_known_is_passed_over(recipe, finished, tmp_path):
    config = copied(recipe, tmp_path).replace(fold=0)
    run = runs.list_runs(config.runs_dir)[0]
    path = shutil.copytree(run.path, run.path.with_name("99999999-999999")) / "config" / "config.json"
    path.write_text(json.dumps({"a_later_setting": 1}))
    found = cross_validation.find(config, cross_validation.Origin.of(config))
    assert found
    assert found.id == run.id


def test_a_second_process_on_a_fold_waits_and_finds_it_done(recipe, finished, tmp_path):
    config = RunConfig(**recipe | {"runs_dir": str(tmp_path / "runs")})
    found: dict = {}
    with locked(cross_validation.place(config) / ".fold-0"):
        second = threading.Thread(target=lambda: found.update(cross_validation.cross_validate(config, [0])))
        second.start()
        time.sleep(3)
        assert second.is_alive()
        shutil.copytree(finished[0].path, tmp_path / "runs" / finished[0].id)
    second.join()
    assert [run.id for run in found.values()] == [finished[0].id]
    assert len(runs.list_runs(config.runs_dir)) == 1


@pytest.mark.parametrize(
    ("settings", "folds", "message"),
    [
        ({"leave_out": "site_id=1"}, None, "leave_out is for a single run"),
        ({"resume": "x"}, None, "resume is for a single run"),
        ({}, [2], "there is no fold 2: n_folds is 2"),
    ],
)
def test_what_a_cross_validation_cannot_use_is_named(recipe, settings, folds, message):
    with pytest.raises(ConfigError, match=message):
        cross_validation.cross_validate(RunConfig(**recipe | settings), folds)


@pytest.fixture(scope="module")
def machines(recipe, generated, tmp_path_factory) -> RunConfig:
    """The women on three machines: 7 and 49 with cancer and without, 197 without; one woman on both 7 and 49."""
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


def test_machines_without_positives_and_women_of_two_machines_are_said(machines):
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


def test_each_machine_that_can_be_judged_is_left_out_of_a_run(machines):
    found = cross_validation.left_out(machines, "machine_id")
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
    again = cross_validation.left_out(machines, "machine_id")
    assert {value: run.id for value, run in again.items()} == {value: run.id for value, run in found.items()}


def test_a_machine_that_cannot_be_judged_is_refused_by_training_in_words(machines):
    with pytest.raises(SplitError, match=r"validation split would have no image with cancer.*too small a group"):
        training.train(machines.replace(leave_out="machine_id=197"))


def test_a_column_that_the_table_lacks_is_named(machines):
    with pytest.raises(SplitError, match="the table has no column machine with values to leave out; it has site_id"):
        cross_validation.groups(machines, "machine")


def test_a_column_without_a_value_is_named(machines, generated, tmp_path):
    table = pd.read_csv(generated / "train.csv").assign(machine_id="")
    table.to_csv(tmp_path / "train.csv", index=False)
    (tmp_path / "train_images").symlink_to(generated / "train_images")
    with pytest.raises(SplitError, match="the table has no column machine_id with values to leave out"):
        cross_validation.groups(machines.replace(data_dir=str(tmp_path)), "machine_id")
