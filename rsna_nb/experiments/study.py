"""A study of Optuna that any number of processes work on, on one computer or on several.

All of them share the study's folder. A process locks the folder before it asks for a trial and counts the trials, so
that no trial is run twice and no more are started than were requested. Each process also holds a lock of its own as
long as it lives. A trial whose process is gone has failed, and its settings are tried again.

Optuna's own tools are not sufficient. `MaxTrialsCallback` counts only after a trial has ended, so that every process
that joins runs one too many. The heartbeat, which finds killed processes, works only with databases and waits for a
grace period; the callback that retries their trials is experimental and changed its name in Optuna 5.
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

from rsna_nb.config import DEFAULTS, ConfigError, resolve
from rsna_nb.metrics import MetricsError
from rsna_nb.runs import RunError, differences
from rsna_nb.system import is_held, locked, write_whole

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm, which Optuna imports, warns where ipywidgets is not installed
        import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, Trial, TrialState
    from sqlalchemy.pool import NullPool  # Optuna's storages need SQLAlchemy
except ImportError as error:
    raise ImportError("tuning needs Optuna: pip install 'rsna_nb[tune]'") from error

__all__ = ["CategoricalDistribution", "FloatDistribution", "Trial", "TrialState", "optuna"]
log = logging.getLogger(__name__)

MAX_KILLS = 3  # a trial whose process was killed this often has failed: its settings may be the cause
MIN_FOR_PRUNING = 5  # finished trials needed before a trial can be pruned for being worse than their median
MIN_FOR_IMPORTANCE = 10  # finished trials; with fewer, the order of the settings is chance
STATES = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


class StudyError(RunError):
    """A study that cannot be started or continued with these settings."""


@dataclass(frozen=True)
class StudySpec:
    """What a study is made for.

    Attributes
    ----------
    facts
        What all trials have in common, by name; a study continues only if all facts are the same.
    first
        The searched values of the first trial: those of the settings that the study starts with.
    maximize
        Whether a larger objective is better.
    unpruned
        Epochs in which no trial is pruned.
    """

    facts: dict[str, Any]
    first: dict[str, Any]
    maximize: bool
    unpruned: int


def open_study(folder: Path, storage: str, spec: StudySpec) -> optuna.Study:
    """The study in a folder, made with its first trial waiting if it is missing.

    Raises
    ------
    StudyError
        If it was started with other facts, or if the folder and the storage hold different studies.
    ConfigError
        For a storage of another kind than `_open_storage` accepts.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with locked(folder):
        study = optuna.create_study(
            storage=_open_storage(folder, storage),
            pruner=optuna.pruners.MedianPruner(MIN_FOR_PRUNING, n_warmup_steps=spec.unpruned + 1),
            study_name=folder.name,
            direction="maximize" if spec.maximize else "minimize",
            load_if_exists=True,
        )
        _check_folder(folder, study)  # before anything is written into a study of another folder
        if "facts" not in study.user_attrs:
            study.enqueue_trial(spec.first, user_attrs={"default": True}, skip_if_exists=True)
        _keep_to(study, "facts", spec.facts)  # comes last: without facts, what is above is done again
    return study


def _check_folder(folder: Path, study: optuna.Study) -> None:
    """Pair a new folder with a new study; refuse a folder and a study that do not belong together.

    Two studies in one folder would overwrite each other's best.json. With one study in two folders, trials that
    are running would look killed, because the locks of their processes are in the other folder.
    """
    file = folder / "study.id"
    if "facts" not in study.user_attrs and not file.is_file():  # both are new, or creating them was interrupted
        study.set_user_attr("id", uuid.uuid4().hex)
        write_whole(file, study.user_attrs["id"].encode())
    if not file.is_file() or study.user_attrs.get("id") != file.read_text():
        raise StudyError(
            f"study {study.study_name}: {folder} and the storage hold different studies. Give the runs_dir and the "
            "storage that it was started with, or another study name"
        )


def check_pictures(study: optuna.Study, folder: Path, fingerprint: str) -> None:
    """`StudyError` if earlier trials were trained on other images, by the fingerprint of their store."""
    with locked(folder):
        _keep_to(study, "pictures", {"pictures": fingerprint})


def _keep_to(study: optuna.Study, name: str, facts: dict[str, Any]) -> None:
    """Write facts into a study that has none of this name; `StudyError` if it has different ones."""
    if name not in study.user_attrs:
        study.set_user_attr(name, facts)
    # Through JSON, as the storage has them: a tuple comes back as a list.
    # A study of an earlier version lacks the settings that are new since, and had what are their defaults now.
    recorded = {key: DEFAULTS[key] for key in facts if key in DEFAULTS} | study.user_attrs[name]
    if changed := differences(recorded, json.loads(json.dumps(facts))):
        raise StudyError(
            f"study {study.study_name} was started with other settings or data: {changed}. Give another study name, "
            "or the settings it was started with"
        )


def _open_storage(folder: Path, storage: str) -> optuna.storages.BaseStorage:
    """The storage of the trials.

    "" is an SQLite file in the study's folder, for one computer: SQLite files can be damaged on NFS. Several computers
    need the name of a .journal file in a folder that they share (Optuna's own format, safe on NFS), or the URL of a
    database such as "postgresql+psycopg2://user@host/name".
    """
    if "://" in storage:
        return optuna.storages.RDBStorage(storage)
    if storage and not storage.endswith(".journal"):
        raise ConfigError(f'storage must be "", a file that ends with .journal, or a URL, not {storage}')
    if storage:
        resolve(storage).parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.JournalStorage(JournalFileBackend(str(resolve(storage))))
    # `timeout`: seconds to wait while another process writes. NullPool closes each connection after its use, as Python
    # 3.13 warns of connections that nobody closed.
    engine_kwargs = {"connect_args": {"timeout": 60}, "poolclass": NullPool}
    return optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}", engine_kwargs=engine_kwargs)


@contextmanager
def at_work(folder: Path) -> Iterator[str]:
    """The name of this worker, which holds a lock in the study's folder until its process ends."""
    name = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    with locked(folder / "workers" / name):
        try:
            yield name
        finally:
            shutil.rmtree(folder / "workers" / name, ignore_errors=True)


def next_trial(study: optuna.Study, folder: Path, worker: str, trials: int, seed: int) -> Trial | None:
    """A trial for this worker alone, None if as many as requested are done or running.

    Each trial has a random seed of its own, so that no two processes get the same settings.
    """
    with locked(folder):  # counting and asking must be one step, or two processes count the same
        _retry_killed(study, folder)
        known = study.get_trials(deepcopy=False)
        retried = _retried(known)
        if sum(trial.state != TrialState.WAITING and trial.number not in retried for trial in known) >= trials:
            return None
        trial = study.ask()
        trial.set_user_attr("worker", worker)
    # Two samplers with one seed would propose the same values after the same history.
    own_seed = np.random.SeedSequence([seed, trial.number]).generate_state(1)
    study.sampler = optuna.samplers.TPESampler(seed=int(own_seed[0]))
    return trial


def _retried(trials: list[FrozenTrial]) -> set[int]:
    """Numbers of killed trials whose settings are tried again, so that they do not count themselves."""
    return {trial.user_attrs["retry_of"] for trial in trials if "retry_of" in trial.user_attrs}


def _was_killed(trial: FrozenTrial) -> bool:
    """Whether the trial has failed without a reason: its process could no longer write one."""
    return trial.state == TrialState.FAIL and "reason" not in trial.user_attrs


def _retry_killed(study: optuna.Study, folder: Path) -> None:
    """Mark trials whose processes are gone as failed, and queue their settings again.

    Each of the two steps reads the study again, so that the next process repairs what a process that is killed between
    them leaves unfinished.
    """
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        # A killed process holds no lock, whichever computer it ran on. Without a name it died before it had one.
        if not is_held(folder / "workers" / trial.user_attrs.get("worker", "none")):
            # Its process may have told its result and left since the trials were listed.
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
    known = study.get_trials(deepcopy=False)
    for trial in known:
        kills = trial.user_attrs.get("kills", 0) + 1
        if not _was_killed(trial) or trial.number in _retried(known) or kills >= MAX_KILLS:
            continue
        log.warning("trial %d: its process was killed; its settings are tried again", trial.number)
        # The retry of the first trial is still the one with the settings that the study started with.
        default = {name: True for name in ("default",) if name in trial.user_attrs}
        study.enqueue_trial(trial.params, user_attrs=default | {"kills": kills, "retry_of": trial.number})


def table(study: optuna.Study) -> pd.DataFrame:
    """A row per trial, in the order of their numbers.

    The columns are trial, state ("finished", "pruned", "failed", "killed", "running" or "waiting"), value (of the
    objective), epochs, default (whether it has the settings that the study started with), best, seconds, run, reason
    (why it has no value), and one for each searched setting.
    """
    trials = study.get_trials(deepcopy=False)
    # best_trial raises an error if no trial has finished.
    best = study.best_trial.number if any(trial.state == TrialState.COMPLETE for trial in trials) else None
    return pd.DataFrame([_row(trial) | {"best": trial.number == best} | trial.params for trial in trials])


def _row(trial: FrozenTrial) -> dict[str, Any]:
    killed = _was_killed(trial)
    return {
        "trial": trial.number,
        "state": "killed" if killed else STATES.get(trial.state, trial.state.name.lower()),
        "value": trial.value,
        "epochs": trial.last_step or 0,
        "default": "default" in trial.user_attrs,
        # A killed trial ends when another process finds it, perhaps days later.
        "seconds": trial.duration.total_seconds() if trial.duration and not killed else float("nan"),
        "run": trial.user_attrs.get("run", ""),
        "reason": trial.user_attrs.get("reason", ""),
    }


def importances(study: optuna.Study) -> pd.Series:
    """The importance of each setting for separating better from worse trials, 0-1; sums to 1.

    The method is PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255). It compares the better half with all trials.
    Optuna's default compares the best tenth, which is two of 20 trials: there a setting without any effect got 0.4,
    here 0.1 (means over 8 simulated studies).

    Raises
    ------
    MetricsError
        If too few trials have finished.
    """
    finished = len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]))
    if finished < MIN_FOR_IMPORTANCE:
        raise MetricsError(f"importance needs {MIN_FOR_IMPORTANCE} finished trials, there are {finished}")
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.5)
    return pd.Series(optuna.importance.get_param_importances(study, evaluator=evaluator), name="importance")
