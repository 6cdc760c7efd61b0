"""Studies without training: which process gets which trial, and what happens to trials of killed processes."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest

import rsna_nb
from rsna_nb.config import ConfigError
from rsna_nb.experiments.study import (
    MAX_KILLS,
    StudyError,
    StudySpec,
    at_work,
    check_pictures,
    importances,
    next_trial,
    open_study,
    table,
)
from rsna_nb.metrics import MetricsError

ROOT = Path(__file__).parents[1]
SPEC = StudySpec(facts={"epochs": 2}, first={"x": 0.5}, maximize=True, unpruned=0)


def begun(study, folder: Path, worker: str, trials: int = 10):
    trial = next_trial(study, folder, worker, trials, seed=0)
    if trial is not None:
        trial.suggest_float("x", 0, 1)
    return trial


@pytest.mark.slow
def test_two_processes_share_the_trials_and_none_is_run_twice_nor_drawn_twice(tmp_path):
    storages = {"sqlite": "", "journal": str(tmp_path / "shared.journal")}
    where = [word for name, storage in storages.items() for word in (storage or "-", str(tmp_path / name))]
    command = [sys.executable, "-m", "tests.drawing", "16", *where]
    children = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [json.loads(child.communicate()[0]) for child in children]
    for (name, storage), first, second in zip(storages.items(), *answers, strict=True):
        assert first
        assert second
        assert not set(first) & set(second)
        assert {int(number) for number in first | second} == set(range(16))
        assert len(set((first | second).values())) == 16
        spec = StudySpec({}, {"x": 0.5}, maximize=True, unpruned=0)
        trials = table(open_study(tmp_path / name, storage, spec))
        assert trials["state"].eq("finished").all()
        assert len(trials) == 16


def test_the_first_trial_has_the_settings_that_the_study_starts_with(tmp_path):
    study = open_study(tmp_path, "", SPEC)
    with at_work(tmp_path) as worker:
        assert begun(study, tmp_path, worker).params == {"x": 0.5}
        assert begun(study, tmp_path, worker).params != {"x": 0.5}
    assert table(study)["default"].tolist() == [True, False]


def test_a_trial_whose_process_is_gone_is_tried_again_and_a_running_one_is_not(tmp_path):
    study = open_study(tmp_path, "", SPEC)
    with at_work(tmp_path) as other, at_work(tmp_path) as worker:
        begun(study, tmp_path, other)
        gone = begun(study, tmp_path, "gone")
        again = begun(study, tmp_path, worker)
        assert again.params == gone.params
        assert table(study)["state"].tolist() == ["running", "killed", "running"]
        assert begun(study, tmp_path, worker, trials=2) is None


def test_a_trial_that_kills_its_process_every_time_has_failed_in_the_end(tmp_path):
    study = open_study(tmp_path, "", SPEC)
    for number in range(MAX_KILLS):
        trial = begun(study, tmp_path, "gone", trials=1)
        assert trial.params == {"x": 0.5}
        assert trial.user_attrs.get("kills", 0) == number
    assert begun(study, tmp_path, "gone", trials=1) is None
    assert begun(study, tmp_path, "gone", trials=2).params != {"x": 0.5}
    assert table(study)["default"].tolist() == [True] * MAX_KILLS + [False]


def test_a_study_goes_on_only_with_the_settings_it_was_started_with(tmp_path):
    open_study(tmp_path, "", SPEC)
    assert len(open_study(tmp_path, "", SPEC).trials) == 1
    other = StudySpec(facts={"epochs": 3}, first={"x": 0.5}, maximize=True, unpruned=0)
    with pytest.raises(StudyError, match="started with other settings or data: epochs 2 and now 3"):
        open_study(tmp_path, "", other)


def test_a_kill_while_a_killed_trial_is_queued_again_loses_no_trial_and_queues_none_twice(tmp_path, monkeypatch):
    study = open_study(tmp_path, "", SPEC)
    gone = begun(study, tmp_path, "gone")
    with monkeypatch.context() as patch, at_work(tmp_path) as worker:
        patch.setattr(optuna.Study, "enqueue_trial", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            begun(study, tmp_path, worker)
    assert table(study)["state"].tolist() == ["killed"]
    with at_work(tmp_path) as worker:
        assert begun(study, tmp_path, worker).params == gone.params
        assert begun(study, tmp_path, worker).params != gone.params
    assert table(study)["state"].tolist() == ["killed", "running", "running"]


def test_a_folder_holds_one_study_and_a_study_has_one_folder(tmp_path):
    journal = str(tmp_path / "shared.journal")
    open_study(tmp_path / "a" / "first", journal, SPEC)
    with pytest.raises(StudyError, match="hold different studies"):  # its locks would be elsewhere
        open_study(tmp_path / "b" / "first", journal, SPEC)
    with pytest.raises(StudyError, match="hold different studies"):  # its best.json would be overwritten
        open_study(tmp_path / "a" / "first", "", SPEC)
    assert len(open_study(tmp_path / "a" / "first", journal, SPEC).trials) == 1


def test_a_study_goes_on_only_with_the_pictures_of_its_first_trial(tmp_path):
    study = open_study(tmp_path, "", SPEC)
    check_pictures(study, tmp_path, "a1")
    check_pictures(open_study(tmp_path, "", SPEC), tmp_path, "a1")
    with pytest.raises(StudyError, match="pictures 'a1' and now 'b2'"):
        check_pictures(study, tmp_path, "b2")


def test_a_storage_that_is_neither_file_nor_url_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="storage must be"):
        open_study(tmp_path, "study.db", SPEC)


def test_importance_finds_the_setting_that_matters_and_needs_enough_trials(tmp_path):
    study = open_study(tmp_path, "", SPEC)
    with pytest.raises(MetricsError, match="importance needs 10 finished trials, there are 0"):
        importances(study)
    unit = optuna.distributions.FloatDistribution(0, 1)
    for x, idle in np.random.default_rng(0).random((20, 2)):
        params, kinds = {"x": x, "idle": idle}, {"x": unit, "idle": unit}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=kinds, value=x))
    found = importances(study)
    assert found.sum() == pytest.approx(1)
    assert found["x"] > found["idle"]


def test_without_optuna_tuning_says_what_to_install_and_folds_can_be_trained(monkeypatch):
    monkeypatch.setattr(rsna_nb, "experiments", rsna_nb.experiments)  # put back afterwards, as all modules below
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in [name for name in sys.modules if name.startswith("rsna_nb.experiments")]:
        monkeypatch.delitem(sys.modules, name)
    assert importlib.import_module("rsna_nb.experiments").cross_validation
    with pytest.raises(ImportError, match=r"tuning needs Optuna: pip install 'rsna_nb\[tune\]'"):
        importlib.import_module("rsna_nb.experiments.tuning")
