"""Settings -> a run for each fold, or a run without each site or machine.

Runs are found by their settings and data: one that is finished is used as it is, one that was stopped is resumed.

Computers that share runs_dir and store_dir may train different folds at the same time. If two start the same fold, the
second waits and then finds it finished.
"""

import gc
import hashlib
import json
import logging
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import keras
import pandas as pd

from rsna_nb import runs, splits
from rsna_nb.config import FOLDERS, ConfigError, RunConfig, resolve
from rsna_nb.runs import Run, load_run, readable_runs, recipe
from rsna_nb.splits import SplitError
from rsna_nb.system import locked
from rsna_nb.training import explained_loss, find_devices, prepare, split_table, train

__all__ = ["cross_validate", "groups", "leave_one_group_out", "results_folder"]
log = logging.getLogger(__name__)
Name = TypeVar("Name", int, str)  # of a run among those of a cross-validation: its fold, or the group it leaves out


@dataclass(frozen=True)
class _Data:
    """The data that a run of a cross-validation must have been trained on: the table, and its prepared images."""

    table: pd.DataFrame
    pictures: str  # fingerprint of the store
    folder: Path

    @classmethod
    def of(cls, config: RunConfig) -> "_Data":
        """The data of the settings; images that are missing in the store are prepared."""
        table, folder = split_table(config)
        ledger = prepare(config, table, folder).ledger
        return cls(table, runs.fingerprints(table, ledger)["store_fingerprint"], folder)

    def trained(self, run: Run, config: RunConfig) -> bool:
        """Whether the run was trained on these data, split as `config` says.

        A run that was killed before it recorded its data counts if its settings name the same folder.
        """
        path = run.path / "config" / "environment.json"
        if not path.is_file():  # the path of the data is all that is known of it
            return run.config.data_dir == config.data_dir or resolve(run.config.data_dir) == self.folder
        # The fingerprint of the table includes the split, so it says who was trained on, too.
        written = json.loads(path.read_text())
        split = self.table.assign(split=splits.assign(self.table, config)).drop(columns="path")
        return (written["table_fingerprint"], written["store_fingerprint"]) == (runs.fingerprint(split), self.pictures)

    def key(self, config: RunConfig, *others: Any) -> str:
        """Eight letters that differ if the recipe, the table, the images or one of `others` differs."""
        # Without the split, which differs from fold to fold, and the paths, which differ between computers.
        table = runs.fingerprint(self.table.drop(columns=["path", "split"]))
        facts = json.dumps([recipe(config), table, self.pictures, *others], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:8]


def cross_validate(config: RunConfig, folds: Iterable[int] | None = None) -> dict[int, Run]:
    """Train the folds that are not finished yet.

    Parameters
    ----------
    config
        The settings of all folds. Runs of the same settings and data are found in `runs_dir`, whatever their name.
    folds
        The folds to train; None is the fold that `config` names, or all folds.

    Returns
    -------
    The finished run of each fold, also those that other computers trained.

    Raises
    ------
    ConfigError
        For a fold that does not exist, or settings with `resume` or `leave_out`, which belong to a single run.
    TrainingError, RunError, ...
        As `training.train`; folds that were finished before are kept.
    """
    wanted = list(folds) if folds is not None else [config.fold] if config.fold >= 0 else list(range(config.n_folds))
    configs = {fold: _settings(config, fold=fold) for fold in range(config.n_folds)}
    unknown = [fold for fold in wanted if fold not in configs]
    if unknown:
        raise ConfigError(f"there is no fold {unknown[0]!r}: n_folds is {config.n_folds}")
    return _train_all(configs, wanted)


def leave_one_group_out(config: RunConfig, column: str) -> dict[str, Run]:
    """A run without each value of a column ("site_id", "machine_id"), evaluated on the women who have it.

    Only values for which `groups` gives no reason against it have a run. Runs are found and resumed as in
    `cross_validate`.
    """
    table = groups(config, column)
    values = list(table.loc[table["reason"] == "", "value"])
    return _train_all({value: _settings(config, leave_out=f"{column}={value}") for value in values}, values)


def groups(config: RunConfig, column: str) -> pd.DataFrame:
    """A row for each value of a column: its women and images, and the reason if it cannot be left out.

    The columns are value, images, women, positive_women, unused_women (those who have images of other values too, and
    therefore neither train nor validate) and reason, "" if there is none.
    """
    table, _ = split_table(_settings(config, fold=0))  # any split: only the table is used
    table = table.assign(**{column: splits.groups_of(table, column)})
    woman = table["patient_id"]
    several = table.groupby("patient_id")[column].transform("nunique", dropna=False) > 1
    by_value = table.assign(positive=woman.where(table["cancer"] == 1), unused=woman.where(several)).groupby(column)
    df = by_value.agg(
        images=("image_id", "size"),
        women=("patient_id", "nunique"),
        positive_women=("positive", "nunique"),
        unused_women=("unused", "nunique"),
    )
    df["reason"] = [_reason_against(table, _settings(config, leave_out=f"{column}={value}")) for value in df.index]
    # Numbers as text, in the order of the numbers: 7 before 49.
    return (
        df.rename_axis("value")
        .reset_index()
        .sort_values("value", key=lambda text: text.str.zfill(20), ignore_index=True)
    )


def _reason_against(table: pd.DataFrame, config: RunConfig) -> str:
    try:
        splits.assign(table, config)
    except SplitError as error:
        return str(error).partition(",")[0]  # the rest is advice for a single run
    return ""


def _settings(config: RunConfig, fold: int = -1, leave_out: str = "") -> RunConfig:
    """The settings of one run of a cross-validation."""
    if config.resume or config.leave_out:
        name = "resume" if config.resume else "leave_out"
        raise ConfigError(f"{name} is for a single run (03_train): a cross-validation finds its runs by their settings")
    return config.replace(fold=fold, leave_out=leave_out)


def _train_all(configs: dict[Name, RunConfig], wanted: list[Name]) -> dict[Name, Run]:
    """Train the wanted runs that are not finished; return the finished run of each of `configs`."""
    runs.log_to_console()
    find_devices()  # first: with TF_CONFIG, the computers connect here
    if not configs:  # no group can be left out
        return {}
    data = _Data.of(next(iter(configs.values())))  # once for all: on RSNA reading the table takes seconds
    for name in wanted:
        _train_one(configs[name], data)
        # Keras keeps every model that was built: without this, memory grows by a network per fold.
        keras.backend.clear_session()
        gc.collect()
    # All of them, not only the wanted: other computers may have finished some meanwhile.
    found = {name: _find(config, data) for name, config in configs.items()}
    return {name: run for name, run in found.items() if run and run.is_finished}


def _train_one(config: RunConfig, data: _Data) -> None:
    """Use the run of these settings if it is finished, resume it if it was stopped, else start one."""
    devices, what = find_devices(), config.leave_out or f"fold {config.fold}"
    # With TF_CONFIG several computers train one run together: the first decides which, and tells the others.
    with locked(_lock(config, data)) if devices.chief else nullcontext():
        with explained_loss(devices):
            known = _find(config, data) if devices.chief else None
            name = devices.broadcast(known.id if known else "")
        run = load_run(name, config.runs_dir) if name else None
        if run and run.is_finished:
            log.info("%s: run %s is finished", what, run.id)
        elif run:
            log.info("%s: run %s was stopped before its end", what, run.id)
            # The run may have been started on a computer where the same folders have other names.
            here = {folder: getattr(config, folder) for folder in FOLDERS}
            train(run.config.replace(**here | {"resume": run.id}))
        else:
            log.info("%s", what)
            train(config)


def _find(config: RunConfig, data: _Data) -> Run | None:
    """The newest finished run of these settings and data, or else the newest that was stopped."""
    own = config.fold, config.leave_out, recipe(config)
    known = [
        run
        for run in readable_runs(config.runs_dir)
        if (run.config.fold, run.config.leave_out, recipe(run.config)) == own and not run.imported
        if data.trained(run, config)
    ]
    return max(known, key=lambda run: (run.is_finished, run.id), default=None)


def _lock(config: RunConfig, data: _Data) -> Path:
    """The folder that a process holds while it trains the run of these settings and data."""
    # By recipe and data, not by run_name: two processes with different names would otherwise train the same run.
    folder = resolve(config.runs_dir) / "cross_validation" / ".locks"
    return folder / f"{data.key(config)}-{config.leave_out or config.fold}"


def results_folder(config: RunConfig, column: str = "", draws: int = 0, folds: Iterable[int] = ()) -> Path:
    """The folder for out_of_fold.csv and cross_validation.json, in `runs_dir`.

    Other results get another folder, so that none are overwritten: those of other settings, another table, other
    images, another `run_name`, another column of groups left out, another number of bootstrap samples, and those of
    `folds` that are not yet all folds.
    """
    data = _Data.of(_settings(config, fold=0))
    name = config.run_name or config.backbone  # for people; the key tells results apart
    some = sorted(folds) if len(set(folds)) < config.n_folds else []
    key = data.key(config, config.run_name, column, draws, some)
    return resolve(config.runs_dir) / "cross_validation" / f"{name}-{key}"
