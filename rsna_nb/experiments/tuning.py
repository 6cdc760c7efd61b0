"""Which settings are best: runs with settings drawn from the outcomes of those before, all on the same women.

A study is a folder, `runs_dir`/studies/<name>, with a run folder for each trial, and best.json. It picks its best trial
by the validation women; the test women, whom no trial was picked by, then judge it beside the settings that the study
began with.
"""

import gc
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import pandas as pd

from rsna_nb import runs
from rsna_nb.config import ConfigError, RunConfig, is_folder_name, resolve
from rsna_nb.evaluation import differences, evaluate, paired
from rsna_nb.experiments.search_space import Choice, Range, Space, draw, own_values, space_of
from rsna_nb.experiments.study import (
    ENDED,
    StudyError,
    StudySpec,
    Trial,
    TrialState,
    at_work,
    importances,
    next_trial,
    open_study,
    optuna,
    table,
)
from rsna_nb.metrics import MetricsError
from rsna_nb.model import build_model, layers_from
from rsna_nb.runs import FOLDERS, Run
from rsna_nb.training import MODES, STATE_FILE, Logs, SignalError, TrainingError, find_devices, prepare, split_table
from rsna_nb.training import run as training

__all__ = ["Plan", "beside_default", "best_run", "importances", "plan", "table", "tune", "write_best"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What a study is asked: `config` are the settings that it begins with, `objective` what picks the best epoch."""

    config: RunConfig
    name: str
    objective: str
    space: Space

    @property
    def folder(self) -> Path:
        return resolve(self.config.runs_dir) / "studies" / self.name

    @property
    def maximize(self) -> bool:
        return MODES[self.objective] == "max"

    @property
    def by_logarithm(self) -> dict[str, bool]:
        """Of each searched setting."""
        return {name: isinstance(values, Range) and values.log for name, values in self.space.items()}

    def asked(self, table: pd.DataFrame) -> StudySpec:
        settings = {name: value for name, value in self.config.model_dump().items() if name not in FOLDERS}
        searched = {f"search of {name}": repr(values) for name, values in self.space.items()}
        fingerprint = runs.fingerprint(table.drop(columns=["path", "split"]))
        facts = settings | searched | {"objective": self.objective, "table": fingerprint[:8]}
        return StudySpec(facts, own_values(self.space, self.config), self.maximize, unpruned=self.config.epochs // 4)


def plan(config: RunConfig, name: str, objective: str, search: Sequence[str], backbones: Sequence[str] = ()) -> Plan:
    """Check what is asked; in every trial `monitor` is the objective, "val_auc", "val_loss" or "val_pf1".

    Raises
    ------
    ConfigError
        Where it cannot be searched so, the message says why.
    """
    if not name or not is_folder_name(name):
        raise ConfigError(f"study must be letters, digits, - _ . and not {name!r}")
    if objective not in MODES:
        raise ConfigError(f"objective must be one of {', '.join(MODES)}, not {objective}")
    if objective == "val_loss" and "imbalance" in search:
        raise ConfigError("objective val_loss is weighted as imbalance says, so it cannot choose that: take val_auc")
    if config.test_fraction == 0:
        raise ConfigError("test_fraction is 0: the best trial is judged on women whom the study never saw, as 0.2")
    if config.resume:
        raise ConfigError("resume is for single runs: a study goes on when its name is given again")
    config = config.replace(monitor=objective, run_name=name)
    return Plan(config, name, objective, space_of(config, search, backbones))


def tune(plan: Plan, trials: int, hours: float = 0.0, storage: str = "") -> optuna.Study:
    """Run trials until the study has so many, finished, pruned and failed ones together, or the hours are over.

    The first one has the settings that the study begins with. A trial that ends in a `TrainingError` has failed, and
    the study goes on; any other error ends it, and the trial is tried again next time.

    Parameters
    ----------
    trials
        Of all processes together; those that other processes have in work count.
    hours
        No trial is begun after these; 0 for no limit.
    storage
        See `open_storage`.

    Raises
    ------
    StudyError
        Where a study of that name was begun with other settings or another table, or TF_CONFIG names machines.
    MetadataError, SplitError, PrepareError, WeightsError
        Where the data or the weights are wrong: before any trial.
    """
    runs.log_to_console()
    if find_devices().workers > 1:
        raise StudyError("TF_CONFIG makes several machines train one run: without it each takes trials of its own")
    started = time.monotonic()
    images, data_dir = split_table(plan.config)
    check_backbones(plan)
    study = open_study(plan.folder, storage, plan.asked(images))
    prepare(plan.config, images, data_dir)  # here, so that pictures that cannot be had cost no trial
    with at_work(plan.folder) as worker:
        while not hours or time.monotonic() - started < 3600 * hours:
            trial = next_trial(study, plan.folder, worker, trials, plan.config.seed)
            if trial is None:
                break
            run_trial(plan, study, trial)
    return study


def check_backbones(plan: Plan) -> None:
    """Build each that trials may have: weights or layers that it lacks are an error now, and not in the night."""
    searched = plan.space.get("backbone", Choice((plan.config.backbone,)))
    for name in getattr(searched, "values", ()):
        model = build_model(plan.config.replace(backbone=name))
        if plan.config.fine_tune_epochs or "fine_tune_epochs" in plan.space:
            try:
                layers_from(model, plan.config.fine_tune_from)
            except ConfigError as error:
                raise ConfigError(f"backbone {name}: {error}") from error
    keras.backend.clear_session()


def run_trial(plan: Plan, study: optuna.Study, trial: Trial) -> None:
    """Train with a trial's settings and write down what came of it."""
    value, state, reason = outcome(plan, trial)
    if reason:
        trial.set_user_attr("reason", reason)
    for run in plan.folder.glob(f"*-trial-{trial.number}"):
        trial.set_user_attr("run", run.name)
        drop_state(run, finished=state == TrialState.COMPLETE)
    study.tell(trial, value, state)
    figure = reason if value is None else f"{plan.objective} {value:.4f}"
    log.info("trial %d %s: %s, with %s", trial.number, ENDED[state], figure, trial.params)
    keras.backend.clear_session()
    gc.collect()


def outcome(plan: Plan, trial: Trial) -> tuple[float | None, TrialState, str]:
    """A trial's objective, its state, and why it has no objective. Errors that are not of its settings are raised."""
    try:
        config = draw(trial, plan.space, plan.config)
    except ConfigError as error:
        return None, TrialState.PRUNED, str(error)
    log.info("trial %d: %s", trial.number, trial.params)
    try:
        return train_trial(plan, trial, config), TrialState.COMPLETE, ""
    except optuna.TrialPruned as ending:
        return None, TrialState.PRUNED, str(ending)
    except SignalError:
        raise
    except TrainingError as error:
        return None, TrialState.FAIL, str(error)


def train_trial(plan: Plan, trial: Trial, config: RunConfig) -> float:
    """The objective at the best epoch of a trial's run."""

    def on_epoch(epoch: int, logs: Logs) -> None:
        trial.report(logs[plan.objective], epoch)
        if "default" not in trial.user_attrs and trial.should_prune():  # the default is what the best is compared with
            raise optuna.TrialPruned(f"pruned at epoch {epoch}, worse than the median of the trials before")

    config = config.replace(runs_dir=str(plan.folder), run_name=f"trial-{trial.number}")
    run = training.train(config, on_epoch)
    return float(run.history.set_index("epoch").loc[run.metrics["best_epoch"], plan.objective])


def drop_state(run: Path, finished: bool) -> None:
    """Remove what only resuming needs, thrice the network's size, and the network of a trial that did not finish."""
    for file in [run / STATE_FILE] if finished else (run / "checkpoints").glob("*"):
        file.unlink(missing_ok=True)


def best_run(plan: Plan, study: optuna.Study) -> Run:
    """Of the finished trials, the one with the best objective; `StudyError` where none has finished."""
    best = table(study).query("best")["run"]
    if best.empty:
        raise StudyError(f"no trial of study {plan.name} has finished: the reasons are in its table")
    return runs.load_run(best.iloc[0], plan.folder)


def beside_default(plan: Plan, study: optuna.Study, n: int) -> pd.DataFrame:
    """The best trial and the settings that the study began with, on the test women: `comparison.differences`.

    `MetricsError` where there is nothing to compare.
    """
    best, trials = best_run(plan, study), table(study)
    first = trials.query("default and state == 'finished'")["run"]
    if first.empty:
        raise MetricsError("the trial with the settings that the study began with has not finished")
    if first.iloc[0] == best.id:
        raise MetricsError("no trial was better than the settings that the study began with")
    own, theirs = paired(evaluate(best), runs.load_run(first.iloc[0], plan.folder))
    return differences(theirs, own, ("first settings", "best settings"), n)


def write_best(plan: Plan, study: optuna.Study) -> Path:
    """best.json in the study's folder: every setting of the best trial, a file for papermill's -f."""
    config = best_run(plan, study).config.replace(run_name=plan.name, runs_dir=plan.config.runs_dir)
    path = plan.folder / "best.json"
    config.to_json(path)
    return path
