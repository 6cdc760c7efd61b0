import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import optuna
import pytest
from optuna.trial import TrialState

from rsna_nb import evaluation, plots, runs
from rsna_nb.config import ConfigError, RunConfig
from rsna_nb.experiments import search_space, tuning
from rsna_nb.experiments.search_space import Choice, Range, space_of
from rsna_nb.experiments.study import StudyError, StudySpec, at_work, next_trial, open_study, table
from rsna_nb.metadata.table import MetadataError
from rsna_nb.model import build_model
from rsna_nb.notebook import Unavailable, attempt
from rsna_nb.runs import RunError
from rsna_nb.system.files import is_held
from rsna_nb.training import callbacks
from rsna_nb.training.data import split_table
from tests.small import SMALL, failing_on

ROOT = Path(__file__).parents[1]
SEARCH = "learning_rate dropout pooling imbalance"
STEPS = 5  # an epoch of the small data has


@pytest.fixture(scope="module")
def settings(generated, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("tuned")
    folders = {"data_dir": str(generated), "store_dir": str(folder / "stores"), "runs_dir": str(folder / "runs")}
    return SMALL | folders | {"epochs": 1, "test_fraction": 0.3}


def plan_of(settings: dict, name: str, search: str = SEARCH, objective: str = "val_auc") -> tuning.Plan:
    return tuning.plan(RunConfig(**settings), name, objective, search.split())


def worker(settings: dict, trials: int, step: int = 0) -> subprocess.Popen:
    """A process of its own that works on the study "shared"."""
    command = [sys.executable, "-m", "tests.tuned", json.dumps(settings), "shared", SEARCH, str(trials), str(step)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def shared(settings) -> tuple[tuning.Plan, optuna.Study]:
    """A study of four trials that was killed in its second, and then gone on with by two processes at once."""
    killed = worker(settings, 4, STEPS + 2)
    said = killed.communicate()[0]
    assert killed.returncode == -signal.SIGKILL, said[-2000:]
    plan, other = plan_of(settings, "shared"), worker(settings, 4)
    while not any(map(is_held, (plan.folder / "workers").iterdir())):
        assert other.poll() is None, other.communicate()[0]
        time.sleep(0.1)
    study = tuning.tune(plan, 4)
    said = other.communicate()[0]
    assert other.returncode == 0, said[-2000:]
    return plan, study


def test_a_killed_study_goes_on_with_what_was_finished_and_tries_the_killed_trial_again(shared):
    trials = table(shared[1])
    assert trials["state"].tolist() == ["finished", "killed"] + ["finished"] * 3
    first, killed, again = shared[1].trials[:3]
    assert first.user_attrs["default"]
    assert again.user_attrs["again"] == killed.number
    assert killed.params.items() <= again.params.items()


def test_two_processes_run_no_trial_twice_and_no_more_than_asked_for(shared):
    plan, study = shared
    trials = table(study).query("state == 'finished'")
    assert len(trials) == 4
    assert len({trial.user_attrs["worker"] for trial in study.trials}) == 3  # the one that was killed among them
    assert not trials["learning_rate"].duplicated().any()
    assert [len(list(plan.folder.glob(f"*-trial-{number}"))) for number in range(6)] == [1] * 5 + [0]
    assert set(trials["run"]) <= {run.id for run in runs.list_runs(plan.folder)}
    assert not runs.list_runs(plan.config.runs_dir)  # the runs of a study are in its own folder


def test_a_trials_figure_is_its_runs_at_the_best_epoch_and_its_settings_are_its_runs(shared):
    plan, study = shared
    for row in table(study).query("state == 'finished'").itertuples():
        run = runs.load_run(row.run, plan.folder)
        assert row.value == run.history["val_auc"].max()
        assert run.config.monitor == "val_auc"
        drawn = {name: getattr(row, name) for name in SEARCH.split()}
        drawn |= {"run_name": f"trial-{row.trial}", "runs_dir": str(plan.folder)}
        assert run.config == dataclasses.replace(plan.config, **drawn)
        assert run.id.endswith(f"-trial-{row.trial}")
        assert not (run.path / "checkpoints" / "state.npz").exists()


def test_all_trials_are_judged_on_the_same_test_women_whom_none_was_trained_on(shared):
    plan, study = shared
    kept_out = [
        frozenset(runs.load_run(run, plan.folder).predictions.query("split == 'test'")["image_id"])
        for run in table(study).query("state == 'finished'")["run"]
    ]
    assert len(set(kept_out)) == 1
    assert kept_out[0]


def test_the_best_is_compared_with_the_beginning_on_the_same_test_women(shared):
    plan, study = shared
    best = table(study).query("best")["trial"].item()
    found = attempt(tuning.beside_default, plan, study, 50)
    if best == 0:
        assert found == Unavailable("no trial was better than the settings that the study began with")
    else:
        judged = evaluation.evaluate(tuning.best_run(plan, study))
        assert judged.split == "test"
        figures = evaluation.main_metrics(judged, 50)
        assert found.loc["AUC", "best settings"].estimate == figures.loc["breast, mean", "AUC"].estimate
        difference = found.loc["AUC", "best settings"].estimate - found.loc["AUC", "first settings"].estimate
        assert found.loc["AUC", "difference"].estimate == pytest.approx(difference)


def test_best_json_has_the_best_trials_settings_and_names_a_run_of_its_own(shared):
    plan, study = shared
    config = RunConfig.from_json(tuning.write_best(plan, study))
    best = study.best_trial
    assert config == dataclasses.replace(plan.config, **best.params)
    assert config.run_name == "shared"
    assert config.runs_dir == plan.config.runs_dir
    assert best.value == max(trial.value for trial in study.get_trials(states=[TrialState.COMPLETE]))


def test_the_figures_show_every_trial(shared):
    plan, study = shared
    trials = table(study)
    assert "4 finished, 1 killed" in plots.trial_history(trials, "val_auc", True).get_label()
    slices = plots.setting_slices(trials, plan.by_logarithm, "val_auc")
    assert [axis.get_xscale() for axis in slices.axes[:4]] == ["log", "linear", "linear", "linear"]
    assert [axis.get_xlabel() for axis in slices.axes] == [*SEARCH.split(), "", ""]
    for axis in slices.axes[:4]:
        assert sum(len(line.get_xdata()) for line in axis.lines if line.get_label() == "finished") == 4


def test_trials_that_fail_or_are_pruned_say_why_and_leave_no_network_and_the_study_goes_on(settings, monkeypatch):
    plan = plan_of(settings | {"epochs": 2}, "ended", "learning_rate")
    study = open_study(plan.folder, "", plan.asked(split_table(plan.config)[0]))
    kinds = {"learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)}
    for _ in range(5):  # whatever others reach is less
        perfect = optuna.trial.create_trial(
            params={"learning_rate": 1e-3}, distributions=kinds, value=1.1, intermediate_values={1: 1.1, 2: 1.1}
        )
        study.add_trial(perfect)
    poison = failing_on(0, None, lambda self, logs: logs.update(loss=float("nan")))
    monkeypatch.setattr(callbacks, "StopAtNaN", poison)
    tuning.tune(plan, 7)
    failed, pruned = table(study).query("run != ''").to_dict("records")
    assert (failed["state"], failed["default"], failed["epochs"]) == ("failed", True, 1)  # never pruned
    assert failed["reason"].startswith("the loss is nan at epoch 2, step 1")
    assert (pruned["state"], pruned["default"], pruned["epochs"]) == ("pruned", False, 1)
    assert pruned["reason"] == "pruned at epoch 1, worse than the median of the trials before"
    for trial in (failed, pruned):
        run = runs.load_run(trial["run"], plan.folder)
        assert len(run.history) == 1
        assert not (run.path / "metrics.json").exists()
        assert [file.name for file in (run.path / "checkpoints").iterdir()] == []
        assert trial["reason"] in (run.path / "logs" / "train.log").read_text().splitlines()[-1]
    with pytest.raises(RunError, match="has predictions"):
        evaluation.find_run("", plan.folder)


def test_a_wrong_data_folder_ends_the_study_before_any_trial(settings, tmp_path):
    plan = plan_of(settings | {"data_dir": str(tmp_path), "runs_dir": str(tmp_path / "runs")}, "wrong")
    with pytest.raises(MetadataError, match=r"train\.csv"):
        tuning.tune(plan, 2)
    assert not (tmp_path / "runs").exists()


def test_a_study_of_other_settings_or_of_another_table_is_not_gone_on_with(shared, settings):
    with pytest.raises(StudyError, match=r"study shared was begun otherwise: img_size 64 and now 96\. Give another"):
        tuning.tune(plan_of(settings | {"img_size": 96}, "shared"), 6)
    with pytest.raises(StudyError, match=r"table '.{8}' and now '.{8}'"):
        tuning.tune(plan_of(settings | {"limit_patients": 20}, "shared"), 6)


REFUSED = {
    "unknown setting": ({}, {"search": ["dropuot"]}, "search: dropuot is not known; the nearest are dropout"),
    "nothing": ({}, {"search": []}, "search names no setting"),
    "unknown backbone": ({}, {"search": ["backbone"], "backbones": ["smal"]}, "backbones: smal is not known"),
    "no backbones": ({}, {"search": ["backbone"]}, "go together"),
    "backbones alone": ({}, {"backbones": ["small"]}, "go together"),
    "nothing frozen": ({}, {"search": ["fine_tune_epochs"]}, "has no effect where the whole network learns"),
    "no test women": ({"test_fraction": 0.0}, {}, "test_fraction is 0"),
    "weighted loss": ({}, {"objective": "val_loss", "search": ["imbalance"]}, "val_loss is weighted as imbalance says"),
    "objective": ({}, {"objective": "auc"}, "objective must be one of val_loss, val_auc, val_pf1, not auc"),
    "name": ({}, {"name": "a/b"}, "study must be letters"),
    "resume": ({"resume": "x"}, {}, "a study goes on when its name is given again"),
}


@pytest.mark.parametrize(("changed", "asked", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_searched_is_refused_with_words(changed, asked, message):
    config = RunConfig(**SMALL | {"test_fraction": 0.2} | changed)
    with pytest.raises(ConfigError, match=message):
        tuning.plan(config, **{"name": "a", "objective": "val_auc", "search": ["dropout"]} | asked)


def test_a_backbone_that_lacks_the_layer_to_fine_tune_from_is_refused_before_any_trial(settings, tmp_path, monkeypatch):
    def without_weights(config: RunConfig) -> keras.Model:
        return build_model(dataclasses.replace(config, weights="none", freeze_backbone=False, fine_tune_epochs=0))

    monkeypatch.setattr(tuning, "build_model", without_weights)
    tuned = {"freeze_backbone": True, "weights": "imagenet", "fine_tune_epochs": 1, "fine_tune_from": "stage_3"}
    config = RunConfig(**settings | tuned | {"runs_dir": str(tmp_path)})
    plan = tuning.plan(config, "layers", "val_auc", ["backbone"], ["small", "yolo11n"])
    with pytest.raises(ConfigError, match="backbone yolo11n: fine_tune_from stage_3 is in no layer's name"):
        tuning.tune(plan, 1)
    assert not list(tmp_path.iterdir())
    alone = dataclasses.replace(config, backbone="yolo11n", fine_tune_epochs=0)
    with pytest.raises(ConfigError, match="backbone yolo11n: fine_tune_from stage_3"):
        tuning.tune(tuning.plan(alone, "layers", "val_auc", ["fine_tune_epochs"]), 1)


def test_the_space_holds_what_the_study_begins_with_and_all_that_a_setting_allows():
    config = RunConfig(learning_rate=0.5, batch_size_per_gpu=7)
    space = space_of(config, ["batch_size_per_gpu", "pooling", "learning_rate"])
    assert list(space) == ["learning_rate", "pooling", "batch_size_per_gpu"]
    assert space["learning_rate"] == Range(1e-4, 0.5, log=True)
    assert 7 in space["batch_size_per_gpu"].values
    assert space["pooling"] == Choice(("avg", "max"))
    assert [str(values) for values in space.values()][:2] == ["0.0001 to 0.5, by its logarithm", "avg, max"]
    for name, values in search_space.SPACE.items():
        for value in values.values if isinstance(values, Choice) else (values.low, values.high):
            dataclasses.replace(config, **{name: value})


def test_a_choice_that_other_settings_rule_out_is_not_drawn():
    space = space_of(RunConfig(epochs=9, warmup_epochs=6), ["fine_tune_epochs", "fine_tune_learning_rate"])
    assert space["fine_tune_epochs"] == Choice((0,))


def test_the_rate_of_fine_tuning_is_drawn_only_where_there_is_fine_tuning(tmp_path):
    config = RunConfig()
    space = space_of(config, ["fine_tune_epochs", "fine_tune_learning_rate"])
    study = open_study(tmp_path, "", StudySpec({}, search_space.own_values(space, config), maximize=True, unpruned=0))
    with at_work(tmp_path) as name:
        for _ in range(12):
            trial = next_trial(study, tmp_path, name, 12, seed=0)
            drawn = search_space.draw(trial, space, config)
            assert ("fine_tune_learning_rate" in trial.params) == (drawn.fine_tune_epochs > 0)
            study.tell(trial, 0.5)
    assert study.trials[0].params == {"fine_tune_epochs": 0}
    assert {trial.params["fine_tune_epochs"] for trial in study.trials} == {0, 5}
