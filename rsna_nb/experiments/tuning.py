"""Search for the best settings: many runs, each with settings that Optuna proposes from the results of earlier ones.

A study is the folder `runs_dir`/studies/<name>, with a run folder for each trial and best.json. The best trial is
chosen on the validation women. It is then evaluated on the test women, which no choice used, and compared with the
trial that has the settings the study started with.
"""

import gc
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import pandas as pd

from rsna_nb import runs, training
from rsna_nb.config import FOLDERS, ConfigError, RunConfig, is_folder_name, resolve
from rsna_nb.evaluation import differences, evaluate, paired
from rsna_nb.experiments import study as studies
from rsna_nb.experiments.search_space import Space, draw, in_words, own_values, space_of
from rsna_nb.experiments.study import STATES, StudyError, StudySpec, Trial, TrialState, importances, optuna, table
from rsna_nb.metrics import MetricsError
from rsna_nb.model import build_model, layers_from
from rsna_nb.runs import Run
from rsna_nb.system import write_whole
from rsna_nb.training import MODES, Logs, SignalError, TrainingError

__all__ = ["Plan", "beside_default", "best_run", "importances", "in_words", "plan", "table", "tune", "write_results"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """The checked definition of a study.

    Attributes
    ----------
    config
        The settings that it starts with; their `monitor` is the objective.
    name
        The name of the study and of its folder.
    space
        The values that each searched setting may have.
    """

    config: RunConfig
    name: str
    space: Space

    @property
    def folder(self) -> Path:
        """The study's folder, which holds the run folders of its trials."""
        return resolve(self.config.runs_dir) / "studies" / self.name

    @property
    def objective(self) -> str:
        """The column of history.csv by which trials are compared, at each one's best epoch."""
        return self.config.monitor

    @property
    def maximize(self) -> bool:
        """Whether a larger objective is better."""
        return MODES[self.objective] == "max"

    def _spec(self, table: pd.DataFrame) -> StudySpec:
        settings = {name: value for name, value in self.config.model_dump().items() if name not in FOLDERS}
        searched = {f"search of {name}": in_words(values) for name, values in self.space.items()}
        # Without the paths, which differ between computers.
        fingerprint = runs.fingerprint(table.drop(columns=["path", "split"]))
        facts = settings | searched | {"table": fingerprint[:8]}
        return StudySpec(facts, own_values(self.space, self.config), self.maximize, unpruned=self.config.epochs // 4)


def plan(
    config: RunConfig,
    name: str,
    objective: str,
    search: str | Sequence[str],
    backbones: str | Sequence[str] = (),
) -> Plan:
    """Check the definition of a study.

    Parameters
    ----------
    config
        The settings that the study starts with, and those of all trials that are not searched.
    name
        The study's name: letters, digits, - _ and dots.
    objective
        "val_auc", "val_loss" or "val_pf1"; it becomes the `monitor` of every trial.
    search, backbones
        See `search_space.space_of`.

    Raises
    ------
    ConfigError
        If the study cannot be run like this; the message says why.

    Examples
    --------
    >>> asked = plan(RunConfig(test_fraction=0.2), "first", "val_auc", ["dropout"])
    >>> asked.folder.parts[-3:], asked.maximize, asked.config.monitor
    (('runs', 'studies', 'first'), True, 'val_auc')
    """
    if not name or not is_folder_name(name):
        raise ConfigError(f"study must be letters, digits, - _ . and not {name!r}")
    if objective not in MODES:
        raise ConfigError(f"objective must be one of {', '.join(MODES)}, not {objective}")
    if config.test_fraction == 0:
        raise ConfigError("test_fraction is 0: the best trial must be evaluated on women that no choice used; try 0.2")
    if config.resume:
        raise ConfigError("resume is for a single run: a study continues when its name is given again")
    config = config.replace(monitor=objective, run_name=name)
    space = space_of(config, search, backbones)
    if objective == "val_loss" and "imbalance" in space:
        raise ConfigError("objective val_loss depends on the weights of imbalance, so it cannot choose among them")
    if objective != "val_pf1" and "unit" in space:
        raise ConfigError(
            f"objective {objective} is by image or by breast as unit says, so it cannot choose among units: val_pf1 is "
            "by breast for all of them"
        )
    mixed_scales = "focal" in getattr(space.get("imbalance"), "choices", ()) or config.positive_label < 1
    if objective == "val_pf1" and "imbalance" in space and mixed_scales:
        raise ConfigError("objective val_pf1 depends on the scale of the scores, which imbalance changes")
    return Plan(config, name, space)


def tune(plan: Plan, trials: int, hours: float = 0.0, storage: str = "") -> optuna.Study:
    """Run trials until the study has the requested number, with finished, pruned and failed ones counted together.

    The first trial has the settings that the study starts with. A trial that ends in a `TrainingError` has failed, and
    the study continues. Any other error ends the study; that trial is tried again next time.

    Parameters
    ----------
    plan
        From `plan`.
    trials
        The number of trials of all processes together, including those that are running.
    hours
        No trial is started after this many hours; 0 disables the limit.
    storage
        "": SQLite in the study's folder, for one computer; else a .journal file or the URL of a database, for several.

    Raises
    ------
    StudyError
        If the study was started with other settings, another table or other images, or TF_CONFIG names computers.
    MetadataError, SplitError, PrepareError, WeightsError
        If the data or the weights are wrong; raised before any trial starts.
    """
    runs.log_to_console()
    if training.find_devices().workers > 1:
        raise StudyError("TF_CONFIG makes several computers train one run: without it each runs trials of its own")
    started = time.monotonic()
    # The cheapest checks come first: a wrong table ends the study before a folder is made for it.
    images, data_dir = training.split_table(plan.config)
    _check_backbones(plan)
    study = studies.open_study(plan.folder, storage, plan._spec(images))
    ledger = training.prepare(plan.config, images, data_dir).ledger  # here, so that unreadable images cost no trial
    studies.check_pictures(study, plan.folder, runs.fingerprints(images, ledger)["store_fingerprint"])
    with studies.at_work(plan.folder) as worker:
        while not hours or time.monotonic() - started < 3600 * hours:
            # Each process asks for one trial at a time, so that a fast computer runs more of them.
            trial = studies.next_trial(study, plan.folder, worker, trials, plan.config.seed)
            if trial is None:
                break
            run_trial(plan, study, trial)
    return study


def _check_backbones(plan: Plan) -> None:
    """Build each backbone that trials may have: missing weights or layers are an error now, and not hours later."""
    for name in getattr(plan.space.get("backbone"), "choices", [plan.config.backbone]):
        model = build_model(plan.config.replace(backbone=name))
        if plan.config.fine_tune_epochs or "fine_tune_epochs" in plan.space:
            try:
                layers_from(model, plan.config.fine_tune_from)
            except ConfigError as error:
                raise ConfigError(f"backbone {name}: {error}") from error
    keras.backend.clear_session()


def run_trial(plan: Plan, study: optuna.Study, trial: Trial) -> None:
    """Train with a trial's settings, and write its result into the study."""
    for killed in plan.folder.glob(f"*-trial-{trial.user_attrs.get('retry_of')}"):
        _drop_state(killed, finished=False)  # this trial takes its place from the first epoch, so nobody resumes it
    value, state, reason = _outcome(plan, trial)
    if reason:
        trial.set_user_attr("reason", reason)
    # Before `tell`: a process that is killed here leaves a running trial, which is then tried again.
    for run in plan.folder.glob(f"*-trial-{trial.number}"):
        trial.set_user_attr("run", run.name)
        _drop_state(run, finished=state == TrialState.COMPLETE)
    study.tell(trial, value, state)
    outcome = reason if value is None else f"{plan.objective} {value:.4f}"
    log.info("trial %d %s: %s, with %s", trial.number, STATES[state], outcome, trial.params)
    # Keras keeps every model that was built, and with it all its weights.
    keras.backend.clear_session()
    gc.collect()


def _outcome(plan: Plan, trial: Trial) -> tuple[float | None, TrialState, str]:
    """A trial's objective, its state, and why it has no objective.

    An error that its settings cannot have caused is raised.
    """
    try:
        config = draw(trial, plan.space, plan.config)
    except ConfigError as error:
        return None, TrialState.PRUNED, str(error)  # not failed: these settings contradict each other
    log.info("trial %d: %s", trial.number, trial.params)
    try:
        value = _train(plan, trial, config)
    except optuna.TrialPruned as ending:
        return None, TrialState.PRUNED, str(ending)
    except SignalError:  # a TrainingError, but the process is being stopped
        raise
    except TrainingError as error:
        return None, TrialState.FAIL, str(error)
    if math.isnan(value):  # no trial could be compared with it, and Optuna would refuse it
        return None, TrialState.FAIL, f"{plan.objective} is not defined at the best epoch"
    return value, TrialState.COMPLETE, ""


def _train(plan: Plan, trial: Trial, config: RunConfig) -> float:
    """The objective at the best epoch of a trial's run."""

    def on_epoch(epoch: int, logs: Logs) -> None:
        trial.report(logs[plan.objective], epoch)
        # The default settings are never pruned: the best trial is compared with them.
        if "default" not in trial.user_attrs and trial.should_prune():
            raise optuna.TrialPruned(f"pruned at epoch {epoch}, worse than the median of the trials before")

    run = training.train(_in_study(plan, config, f"trial-{trial.number}"), on_epoch)
    # At the best epoch, whose network is kept; the last one may be worse by then.
    return float(run.history.set_index("epoch").loc[run.metrics["best_epoch"], plan.objective])


def _in_study(plan: Plan, config: RunConfig, name: str) -> RunConfig:
    """The settings of a run in the study's folder; a run that `weights` names by its id is named by its folder."""
    run = resolve(plan.config.runs_dir) / config.weights
    weights = str(run) if run.is_dir() else config.weights
    return config.replace(runs_dir=str(plan.folder), run_name=name, weights=weights)


def _drop_state(run: Path, finished: bool) -> None:
    """Remove what only resuming needs, three times the network's size, and the network of an unfinished trial."""
    for file in [run / training.STATE_FILE] if finished else (run / "checkpoints").glob("*"):
        file.unlink(missing_ok=True)


def best_run(plan: Plan, study: optuna.Study) -> Run:
    """The run of the finished trial with the best objective; `StudyError` if none has finished."""
    trials = table(study)  # not study.best_trial, which raises Optuna's own error
    best = trials.loc[trials["best"], "run"]
    if best.empty:
        raise StudyError(f"no trial of study {plan.name} has finished: the column reason of its table says why")
    return runs.load_run(best.iloc[0], plan.folder)


def beside_default(plan: Plan, study: optuna.Study, n: int) -> pd.DataFrame:
    """The best trial compared with the settings that the study started with, on the test women.

    The columns are "first settings", "best settings" and "difference", with a row per metric; `n` bootstrap samples of
    women give the intervals. `MetricsError` if there is nothing to compare.
    """
    best, trials = best_run(plan, study), table(study)
    first = trials.loc[trials["default"] & (trials["state"] == "finished"), "run"]
    if first.empty:
        raise MetricsError("the trial with the settings that the study started with has not finished")
    if first.iloc[0] == best.id:
        raise MetricsError("no trial was better than the settings that the study started with")
    own, others = paired(evaluate(best), runs.load_run(first.iloc[0], plan.folder))
    return differences(others, own, ("first settings", "best settings"), n)


def write_results(plan: Plan, study: optuna.Study) -> Path:
    """Write best.json and trials.csv into the study's folder; return the path of best.json.

    best.json holds every setting of the best trial: a file for papermill's -f, or for `settings` in 03_train.
    """
    own = {"run_name": plan.name, "runs_dir": plan.config.runs_dir, "weights": plan.config.weights}
    config = best_run(plan, study).config.replace(**own)
    config.to_json(plan.folder / "best.json")
    write_whole(plan.folder / "trials.csv", table(study).to_csv(index=False).encode())
    return plan.folder / "best.json"
