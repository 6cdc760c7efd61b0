"""A study of Optuna that any number of processes work on, on one machine or on several.

They share its folder: whoever wants a trial holds the folder while it counts those that there are, so that no trial is
run twice and no more are begun than asked for. A process holds a folder of its own while it lives; a trial whose
process is gone has failed, and its settings are tried again. (Optuna's own way, its heartbeat, is for databases alone,
and a lost trial waits there for a grace period to pass.)
"""

import json
import logging
import shutil
import socket
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_nb.config import ConfigError, resolve
from rsna_nb.metrics import MetricsError
from rsna_nb.runs import RunError, differences
from rsna_nb.system import is_held, locked

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tqdm, that there are no widgets
        import optuna
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, Trial, TrialState
except ImportError as error:
    raise ImportError("tuning needs Optuna: pip install 'rsna_nb[tune]'") from error

log = logging.getLogger(__name__)

MOST_KILLED = 3  # times that a trial may take its process along, before it counts as failed
FEWEST_FOR_PRUNING = 5  # finished trials, before one is stopped for being worse than their median
FEWEST_FOR_IMPORTANCE = 10  # finished trials
ENDED = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


class StudyError(RunError):
    """A study that cannot go on as asked."""


@dataclass(frozen=True)
class StudySpec:
    """What a study is made for."""

    facts: dict[str, Any]  # that all its trials have in common, whoever runs them
    first: dict[str, Any]  # what its first trial has drawn
    maximize: bool  # the objective
    unpruned: int  # epochs in which no trial is pruned


def open_study(folder: Path, storage: str, asked: StudySpec) -> optuna.Study:
    """The study, made with its first trial if missing; `StudyError` where it was begun otherwise."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with locked(folder):
        study = optuna.create_study(
            storage=open_storage(folder, storage),
            pruner=optuna.pruners.MedianPruner(FEWEST_FOR_PRUNING, n_warmup_steps=asked.unpruned + 1),
            study_name=folder.name,
            direction="maximize" if asked.maximize else "minimize",
            load_if_exists=True,
        )
        if "facts" not in study.user_attrs:
            study.enqueue_trial(asked.first, user_attrs={"default": True}, skip_if_exists=True)
            study.set_user_attr("facts", asked.facts)
    refuse_differences(folder.name, study.user_attrs["facts"], json.loads(json.dumps(asked.facts)))
    return study


def refuse_differences(name: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    if changed := differences(before, now):
        raise StudyError(f"study {name} was begun otherwise: {changed}. Give another study name, or its settings")


def open_storage(folder: Path, storage: str) -> optuna.storages.BaseStorage:
    """Where the trials are written down.

    "" is a file of sqlite in the study's folder, for one machine: on a folder shared by NFS sqlite may be damaged. For
    several machines it is the name of a .journal file in the folder that they share, Optuna's own for NFS, or the URL
    of a database, as "postgresql+psycopg2://user@host/name".
    """
    if "://" in storage:
        return optuna.storages.RDBStorage(storage)
    if storage and not storage.endswith(".journal"):
        raise ConfigError(f'storage must be "", a file that ends with .journal, or a URL, not {storage}')
    if storage:
        resolve(storage).parent.mkdir(parents=True, exist_ok=True)
        backend = JournalFileBackend(str(resolve(storage)))
        return optuna.storages.JournalStorage(backend)
    patience = {"connect_args": {"timeout": 60}}  # seconds, for another process to have written
    return optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}", engine_kwargs=patience)


@contextmanager
def at_work(folder: Path) -> Iterator[str]:
    """The name of this worker, whose folder is held as long as its process works."""
    name = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    with locked(folder / "workers" / name):
        try:
            yield name
        finally:
            shutil.rmtree(folder / "workers" / name, ignore_errors=True)


def next_trial(study: optuna.Study, folder: Path, worker: str, trials: int, seed: int) -> Trial | None:
    """A trial of this worker's own, None where all that were asked for are done or in work.

    Each trial has a seed of its own, so that no two draw the same settings, whichever processes run them.
    """
    with locked(folder):
        give_up_killed(study, folder)
        if sum(map(counts, study.get_trials(deepcopy=False))) >= trials:
            return None
        trial = study.ask()
        trial.set_user_attr("worker", worker)
    own_seed = np.random.SeedSequence([seed, trial.number]).generate_state(1)
    study.sampler = optuna.samplers.TPESampler(seed=int(own_seed[0]))
    return trial


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of those asked for: not where it waits, nor where another was begun in its place."""
    return trial.state != TrialState.WAITING and not (was_killed(trial) and kills(trial) < MOST_KILLED)


def was_killed(trial: FrozenTrial) -> bool:
    """Whether it has failed and nobody was left to say why."""
    return trial.state == TrialState.FAIL and "reason" not in trial.user_attrs


def kills(trial: FrozenTrial) -> int:
    """Processes that were lost with a trial that was killed, and with those that it repeats."""
    return trial.user_attrs.get("kills", 0) + 1


def give_up_killed(study: optuna.Study, folder: Path) -> None:
    """Mark trials whose processes are gone as failed, and let their settings be tried again."""
    for trial in study.get_trials(states=[TrialState.RUNNING]):
        if is_held(folder / "workers" / trial.user_attrs.get("worker", "none")):
            continue
        study.tell(trial.number, state=TrialState.FAIL)
        again = kills(trial) < MOST_KILLED
        log.warning("trial %d was cut off%s", trial.number, ": it is tried again" if again else " again: it has failed")
        if again:
            kept = {name: trial.user_attrs[name] for name in {"default"} & set(trial.user_attrs)}
            study.enqueue_trial(trial.params, user_attrs=kept | {"kills": kills(trial), "again": trial.number})


def table(study: optuna.Study) -> pd.DataFrame:
    """A row a trial: trial, state in words, value of the objective, epochs, default (whether it has the settings that
    the study began with), best, seconds, run, reason (why it has not finished), and the settings that it drew."""
    trials = study.get_trials(deepcopy=False)
    best = study.best_trial.number if any(trial.state == TrialState.COMPLETE for trial in trials) else None
    return pd.DataFrame([row(trial, trial.number == best) for trial in trials])


def row(trial: FrozenTrial, best: bool) -> dict[str, Any]:
    killed = was_killed(trial)
    seconds = trial.duration.total_seconds() if trial.duration and not killed else float("nan")
    own = {name: trial.user_attrs.get(name, "") for name in ("run", "reason")}
    state = "killed" if killed else ENDED.get(trial.state, trial.state.name.lower())
    facts = {"trial": trial.number, "state": state, "value": trial.value, "epochs": trial.last_step or 0}
    facts |= {"default": "default" in trial.user_attrs, "best": best, "seconds": seconds}
    return facts | own | trial.params


def importances(study: optuna.Study) -> pd.Series:
    """How much each setting parts the better half of the finished trials from the others, 0-1, in all 1.

    PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255), which compares the better half with all. Its own choice, the
    best tenth, is two of 20 trials: there a setting without any effect had 0.4, here 0.1 (means of 8 drawn studies).
    `MetricsError` where too few trials have finished to say.
    """
    finished = len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]))
    if finished < FEWEST_FOR_IMPORTANCE:
        raise MetricsError(f"importance needs {FEWEST_FOR_IMPORTANCE} finished trials, there are {finished}")
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.5)
    return pd.Series(optuna.importance.get_param_importances(study, evaluator=evaluator), name="importance")
