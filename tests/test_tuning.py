import json
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from rsna_nb import evaluation, plots, runs
from rsna_nb.config import ConfigError, RunConfig
from rsna_nb.experiments import search_space, tuning
from rsna_nb.experiments.search_space import CategoricalDistribution, FloatDistribution, space_of
from rsna_nb.experiments.study import StudyError, StudySpec, at_work, next_trial, open_study, table
from rsna_nb.metadata import MetadataError
from rsna_nb.model import build_model
from rsna_nb.notebook import Unavailable, attempt
from rsna_nb.runs import RunError
from rsna_nb.training import callbacks, split_table
from tests.small import SMALL, failing_on

ROOT = Path(__file__).parents[1]
SEARCH = "learning_rate dropout pooling imbalance"
STEPS = 5  # an epoch of the small data has


@pytest.fixture(scope="module")
def settings(generated, stores, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("tuned")
    folders = {"data_dir": str(generated), "store_dir": stores, "runs_dir": str(folder / "runs")}
    return SMALL | folders | {"epochs": 1, "test_fraction": 0.3}


def plan_of(settings: dict, name: str, search: str = SEARCH, objective: str = "val_auc") -> tuning.Plan:
    return tuning.plan(RunConfig(**settings), name, objective, search.split())


def worker(settings: dict, trials: int, step: int = 0) -> subprocess.Popen:
    """Another process that works on the study "shared"."""
    command = [sys.executable, "-m", "tests.tuned", json.dumps(settings), "shared", SEARCH, str(trials), str(step)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def shared(settings) -> tuple[tuning.Plan, optuna.Study]:
    """A study of three trials whose process was killed in its second; another went on with it."""
    killed = worker(settings, 3, STEPS + 2)
    output = killed.communicate()[0]
    assert killed.returncode == -signal.SIGKILL, output[-2000:]
    plan = plan_of(settings, "shared")
    return plan, tuning.tune(plan, 3)


@pytest.mark.slow
def test_a_killed_study_keeps_its_finished_trials_and_tries_the_killed_one_again(shared):
    trials = table(shared[1])
    assert trials["state"].tolist() == ["finished", "killed", "finished", "finished"]
    first, killed, again = shared[1].trials[:3]
    assert first.user_attrs["default"]
    assert again.user_attrs["retry_of"] == killed.number
    assert killed.params.items() <= again.params.items()
    (left,) = shared[0].folder.glob(f"*-trial-{killed.number}")
    assert not list((left / "checkpoints").iterdir())  # its network takes no room


@pytest.mark.slow
def test_a_complete_study_runs_no_more_trials_and_each_trial_has_one_run(shared):
    plan, _ = shared
    trials = table(tuning.tune(plan, 3)).query("state == 'finished'")
    assert len(trials) == 3
    assert not trials["learning_rate"].duplicated().any()
    assert [len(list(plan.folder.glob(f"*-trial-{number}"))) for number in range(5)] == [1] * 4 + [0]
    assert set(trials["run"]) <= {run.id for run in runs.list_runs(plan.folder)}
    assert not runs.list_runs(plan.config.runs_dir)  # the runs of a study are in its own folder


@pytest.mark.slow
def test_a_second_process_leaves_a_running_trial_alone_and_runs_the_others(settings, tmp_path):
    settings = settings | {"runs_dir": str(tmp_path / "runs")}
    plan = plan_of(settings, "shared")
    study = open_study(plan.folder, "", plan._spec(split_table(plan.config)[0]))
    with at_work(plan.folder) as name:
        trial = next_trial(study, plan.folder, name, 3, plan.config.seed)
        other = worker(settings, 3)
        output = other.communicate()[0]
        assert other.returncode == 0, output[-2000:]
        assert table(study)["state"].tolist() == ["running", "finished", "finished"]
        tuning.run_trial(plan, study, trial)
    trials = table(study)
    assert trials["state"].tolist() == ["finished"] * 3
    assert trials["run"].nunique() == 3
    assert len({trial.user_attrs["worker"] for trial in study.trials}) == 2


@pytest.mark.slow
def test_a_trial_has_the_objective_and_the_settings_of_its_run(shared):
    plan, study = shared
    for row in table(study).query("state == 'finished'").itertuples():
        run = runs.load_run(row.run, plan.folder)
        assert row.value == run.history["val_auc"].max()
        assert run.config.monitor == "val_auc"
        drawn = {name: getattr(row, name) for name in SEARCH.split()}
        drawn |= {"run_name": f"trial-{row.trial}", "runs_dir": str(plan.folder)}
        assert run.config == plan.config.replace(**drawn)
        assert run.id.endswith(f"-trial-{row.trial}")
        assert not (run.path / "checkpoints" / "state.npz").exists()


@pytest.mark.slow
def test_all_trials_keep_the_same_test_women_out_of_training(shared):
    plan, study = shared
    kept_out = [
        frozenset(runs.load_run(run, plan.folder).predictions.query("split == 'test'")["image_id"])
        for run in table(study).query("state == 'finished'")["run"]
    ]
    assert len(set(kept_out)) == 1
    assert kept_out[0]


@pytest.mark.slow
def test_the_best_settings_are_compared_with_the_first_on_the_same_test_women(shared):
    plan, study = shared
    best = table(study).query("best")["trial"].item()
    found = attempt(tuning.beside_default, plan, study, 50)
    if best == 0:
        assert found == Unavailable("no trial was better than the settings that the study started with")
    else:
        evaluated = evaluation.evaluate(tuning.best_run(plan, study))
        assert evaluated.split == "test"
        figures = evaluation.main_metrics(evaluated, 50)
        assert found.loc["AUC", "best settings"].estimate == figures.loc["breast, mean", "AUC"].estimate
        difference = found.loc["AUC", "best settings"].estimate - found.loc["AUC", "first settings"].estimate
        assert found.loc["AUC", "difference"].estimate == pytest.approx(difference)


@pytest.mark.slow
def test_best_json_has_the_settings_of_the_best_trial(shared):
    plan, study = shared
    config = RunConfig.from_json(tuning.write_results(plan, study))
    best = study.best_trial
    assert config == plan.config.replace(**best.params)
    assert config.run_name == "shared"
    assert config.runs_dir == plan.config.runs_dir
    assert best.value == max(trial.value for trial in study.get_trials(states=[TrialState.COMPLETE]))


@pytest.mark.slow
def test_the_figures_show_every_trial(shared):
    plan, study = shared
    trials = table(study)
    assert "3 finished, 1 killed" in plots.trial_history(trials, "val_auc", True).get_label()
    slices = plots.setting_slices(trials, plan.space, "val_auc")
    assert [axis.get_xscale() for axis in slices.axes[:4]] == ["log", "linear", "linear", "linear"]
    assert [axis.get_xlabel() for axis in slices.axes] == [*SEARCH.split(), "", ""]
    for axis in slices.axes[:4]:
        assert sum(len(line.get_xdata()) for line in axis.lines if line.get_label() == "finished") == 3


@pytest.mark.slow
def test_failed_and_pruned_trials_have_a_reason_and_leave_no_network_and_the_study_goes_on(settings, monkeypatch):
    plan = plan_of(settings | {"epochs": 2}, "ended", "learning_rate")
    study = open_study(plan.folder, "", plan._spec(split_table(plan.config)[0]))
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


@pytest.mark.slow
def test_a_trial_whose_objective_is_not_a_number_has_failed_and_says_so(settings, monkeypatch):
    monkeypatch.setattr(tuning, "_train", lambda *_: float("nan"))
    plan = plan_of(settings, "undefined", "dropout")
    trials = table(tuning.tune(plan, 1))
    assert trials["state"].tolist() == ["failed"]
    assert trials["reason"].item() == "val_auc is not defined at the best epoch"
    with pytest.raises(StudyError, match="no trial of study undefined has finished"):
        tuning.best_run(plan, open_study(plan.folder, "", plan._spec(split_table(plan.config)[0])))


def test_a_wrong_data_folder_ends_the_study_before_any_trial(settings, tmp_path):
    plan = plan_of(settings | {"data_dir": str(tmp_path), "runs_dir": str(tmp_path / "runs")}, "wrong")
    with pytest.raises(MetadataError, match="this folder is empty"):
        tuning.tune(plan, 2)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_study_of_other_settings_or_of_another_table_is_not_gone_on_with(shared, settings):
    with pytest.raises(StudyError, match=r"study shared was started with other .*: img_size 64 and now 96\."):
        tuning.tune(plan_of(settings | {"img_size": 96}, "shared"), 6)
    with pytest.raises(StudyError, match=r"table '.{8}' and now '.{8}'"):
        tuning.tune(plan_of(settings | {"limit_patients": 20}, "shared"), 6)


REFUSED = {
    "unknown setting": ({}, {"search": ["dropuot"]}, "search: dropuot is not known; the nearest are dropout"),
    "nothing": ({}, {"search": []}, "search names no setting"),
    "unknown backbone": ({}, {"search": ["backbone"], "backbones": ["smal"]}, "backbones: smal is not known"),
    "no backbones": ({}, {"search": ["backbone"]}, "go together"),
    "backbones alone": ({}, {"backbones": ["small"]}, "go together"),
    "nothing frozen": ({}, {"search": ["fine_tune_epochs"]}, "has no effect unless freeze_backbone is true"),
    "no breasts": ({}, {"search": ["combine"]}, 'combine has no effect with unit "image"'),
    "loss of other units": ({}, {"objective": "val_loss", "search": ["unit"]}, "cannot choose among units"),
    "AUC of other units": ({}, {"objective": "val_auc", "search": ["unit"]}, "cannot choose among units"),
    "no test women": ({"test_fraction": 0.0}, {}, "test_fraction is 0"),
    "weighted loss": (
        {},
        {"objective": "val_loss", "search": ["imbalance"]},
        "val_loss depends on the weights of",
    ),
    "one string": ({}, {"search": "dropout, poling"}, "search: poling is not known; the nearest are pooling"),
    "objective": ({}, {"objective": "auc"}, "objective must be one of val_loss, val_auc, val_pf1, not auc"),
    "name": ({}, {"name": "a/b"}, "study must be letters"),
    "resume": ({"resume": "x"}, {}, "resume is for a single run"),
}


@pytest.mark.parametrize(("changed", "asked", "message"), REFUSED.values(), ids=REFUSED)
def test_a_study_that_makes_no_sense_is_refused_with_a_reason(changed, asked, message):
    config = RunConfig(**SMALL | {"test_fraction": 0.2} | changed)
    with pytest.raises(ConfigError, match=message):
        tuning.plan(config, **{"name": "a", "objective": "val_auc", "search": ["dropout"]} | asked)


def test_a_backbone_that_lacks_the_layer_to_fine_tune_from_is_refused_before_any_trial(settings, tmp_path, monkeypatch):
    def without_weights(config: RunConfig) -> keras.Model:
        return build_model(config.replace(weights="none", freeze_backbone=False, fine_tune_epochs=0))

    monkeypatch.setattr(tuning, "build_model", without_weights)
    tuned = {"freeze_backbone": True, "weights": "imagenet", "fine_tune_epochs": 1, "fine_tune_from": "stage_3"}
    config = RunConfig(**settings | tuned | {"runs_dir": str(tmp_path)})
    plan = tuning.plan(config, "layers", "val_auc", ["backbone"], ["small", "yolo11n"])
    with pytest.raises(ConfigError, match="backbone yolo11n: fine_tune_from stage_3 is in no layer's name"):
        tuning.tune(plan, 1)
    assert not list(tmp_path.iterdir())
    alone = config.replace(backbone="yolo11n", fine_tune_epochs=0)
    with pytest.raises(ConfigError, match="backbone yolo11n: fine_tune_from stage_3"):
        tuning.tune(tuning.plan(alone, "layers", "val_auc", ["fine_tune_epochs"]), 1)


@pytest.mark.slow
def test_a_trial_starts_from_the_run_that_weights_names_by_its_id(settings, small_run):
    config = RunConfig(**settings | {"weights": small_run.id, "runs_dir": str(small_run.path.parent)})
    plan = tuning.plan(config, "from_a_run", "val_auc", ["dropout"])
    own = build_model(tuning._in_study(plan, plan.config, "trial-0")).get_layer("cancer").get_weights()
    trained = keras.models.load_model(small_run.checkpoint).get_layer("cancer").get_weights()
    for mine, other in zip(own, trained, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_the_space_holds_the_first_settings_and_all_choices_of_a_setting():
    config = RunConfig(learning_rate=0.5, batch_size_per_gpu=7)
    space = space_of(config, ["batch_size_per_gpu", "pooling", "learning_rate"])
    assert list(space) == ["learning_rate", "pooling", "batch_size_per_gpu"]
    assert space["learning_rate"] == FloatDistribution(1e-4, 0.5, log=True)
    assert 7 in space["batch_size_per_gpu"].choices
    assert space["pooling"] == CategoricalDistribution(("avg", "max"))
    words = ["0.0001 to 0.5, on a logarithmic scale", "avg, max"]
    assert [search_space.in_words(values) for values in space.values()][:2] == words
    for name, values in search_space.SPACE.items():
        for value in values.choices if isinstance(values, CategoricalDistribution) else (values.low, values.high):
            config.replace(**{name: value})


def test_a_choice_that_other_settings_rule_out_is_not_drawn():
    space = space_of(RunConfig(epochs=9, warmup_epochs=6), ["fine_tune_epochs", "fine_tune_learning_rate"])
    assert space["fine_tune_epochs"] == CategoricalDistribution((0,))


def test_the_learning_rate_of_fine_tuning_is_drawn_only_with_fine_tuning(tmp_path):
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
