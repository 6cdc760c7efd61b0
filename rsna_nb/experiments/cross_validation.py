"""Settings -> a run for each fold, or for each site or machine left out.

What is finished is taken as it is, what was stopped goes on.

Machines that share runs_dir and store_dir may work on different folds at the same time; of two on the same fold the
second waits, and then finds it done.
"""

import hashlib
import json
import logging
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pandas as pd

from rsna_nb import runs, splits
from rsna_nb.config import ConfigError, RunConfig, resolve
from rsna_nb.runs import FOLDERS, Run, load_run, readable_runs, recipe
from rsna_nb.splits import SplitError
from rsna_nb.system import locked
from rsna_nb.training import explained_loss, find_devices, prepare, split_table, train

log = logging.getLogger(__name__)
Name = TypeVar("Name", int, str)


@dataclass(frozen=True)
class Origin:
    """What a run has to be made of to be taken: the checked table, and the fingerprint of its pictures."""

    table: pd.DataFrame
    pictures: str

    @classmethod
    def of(cls, config: RunConfig) -> "Origin":
        """Of the settings; the store is made where it is missing."""
        table, data_dir = split_table(config)
        ledger = prepare(config, table, data_dir).ledger
        return cls(table, runs.fingerprints(table, ledger)["store_fingerprint"])

    def is_that_of(self, run: Run, config: RunConfig) -> bool:
        """Whether the run has this table, split as `config` says, and these pictures, or had not come to them yet."""
        path = run.path / "config" / "environment.json"
        if not path.is_file():
            return True
        made = json.loads(path.read_text())
        split = self.table.assign(split=splits.assign(self.table, config)).drop(columns="path")
        return (made["table_fingerprint"], made["store_fingerprint"]) == (runs.fingerprint(split), self.pictures)


def cross_validate(config: RunConfig, folds: Iterable[int] | None = None) -> dict[int, Run]:
    """Train the folds that are not finished yet, and return the finished run of each fold, of other machines too.

    `folds` are those to train; None is the fold that `config` names, or all.

    Raises
    ------
    ConfigError
        Where the settings name a run to resume, or a group to leave out: the runs are found by their settings.
    TrainingError, RunError, ...
        As `training.train`; what was trained is kept.
    """
    wanted = list(folds) if folds is not None else [config.fold] if config.fold >= 0 else list(range(config.n_folds))
    parts = {fold: part_of(config, fold=fold) for fold in range(config.n_folds)}
    unknown = sorted(set(wanted) - set(parts))
    if unknown:
        raise ConfigError(f"there is no fold {unknown[0]}: n_folds is {config.n_folds}")
    return train_parts(parts, wanted)


def left_out(config: RunConfig, column: str) -> dict[str, Run]:
    """As `cross_validate`, a run for each value of a column ("site_id", "machine_id") that `groups` can judge."""
    table = groups(config, column)
    values = list(table.loc[table["reason"] == "", "value"])
    return train_parts({value: part_of(config, leave_out=f"{column}={value}") for value in values}, values)


def groups(config: RunConfig, column: str) -> pd.DataFrame:
    """A row for each value of a column: whom it has, and why leaving it out says nothing where it does not.

    The columns are value, images, women, positive_women, unused_women (with images of other values too: they are on
    neither side) and reason, "" where there is none.
    """
    table, _ = split_table(part_of(config, fold=0))
    table = table.assign(**{column: splits.groups_of(table, column)})
    rows = []
    for value, own in table.groupby(column):
        women = own["patient_id"]
        rows.append(
            {
                "value": value,
                "images": len(own),
                "women": women.nunique(),
                "positive_women": women[own["cancer"] == 1].nunique(),
                "unused_women": table.loc[
                    table["patient_id"].isin(women) & (table[column] != value), "patient_id"
                ].nunique(),
                "reason": reason_against(table, part_of(config, leave_out=f"{column}={value}")),
            }
        )
    return pd.DataFrame(rows).sort_values("value", key=lambda value: value.str.zfill(20), ignore_index=True)


def reason_against(table: pd.DataFrame, config: RunConfig) -> str:
    try:
        splits.assign(table, config)
    except SplitError as error:
        return str(error).partition(",")[0]
    return ""


def part_of(config: RunConfig, fold: int = -1, leave_out: str = "") -> RunConfig:
    """The settings of one run of a cross-validation."""
    if config.resume or config.leave_out:
        name = "resume" if config.resume else "leave_out"
        raise ConfigError(f"{name} is for a single run (03_train): a cross-validation finds its own by their settings")
    return config.replace(fold=fold, leave_out=leave_out)


def train_parts(parts: dict[Name, RunConfig], wanted: list[Name]) -> dict[Name, Run]:
    """Train the parts that are wanted and not finished; the finished run of each part comes back."""
    runs.log_to_console()
    find_devices()  # first: with TF_CONFIG the machines find each other here
    if not parts:
        return {}
    origin = Origin.of(next(iter(parts.values())))
    for name in wanted:
        train_part(parts[name], origin)
    found = {name: find(config, origin) for name, config in parts.items()}
    return {name: run for name, run in found.items() if run and run.is_finished}


def train_part(config: RunConfig, origin: Origin) -> None:
    """Take the run of these settings if it is finished, go on with it if it was stopped, else begin one."""
    devices, what = find_devices(), config.leave_out or f"fold {config.fold}"
    with locked(place(config) / f".{what.replace(' ', '-')}") if devices.chief else nullcontext():
        with explained_loss(devices):
            known = find(config, origin) if devices.chief else None
            name = devices.broadcast(known.id if known else "")
        run = load_run(name, config.runs_dir) if name else None
        if run and run.is_finished:
            log.info("%s: run %s is finished", what, run.id)
        elif run:
            log.info("%s: run %s was stopped before its end", what, run.id)
            here = {folder: getattr(config, folder) for folder in FOLDERS}
            train(run.config.replace(**here | {"resume": run.id}))
        else:
            log.info("%s", what)
            train(config)


def find(config: RunConfig, origin: Origin) -> Run | None:
    """The newest run of these settings and data: of those that are finished, else of those that were stopped."""
    known = [run for run in readable_runs(config.runs_dir) if part(run.config) == part(config)]
    known = [run for run in known if origin.is_that_of(run, config)]
    return max(known, key=lambda run: (run.is_finished, run.id), default=None)


def part(config: RunConfig) -> tuple[object, ...]:
    """What the run of one part of a cross-validation is known by."""
    return config.fold, config.leave_out, recipe(config)


def place(config: RunConfig) -> Path:
    """Where out_of_fold.csv and cross_validation.json of a recipe are, beside its runs."""
    key = hashlib.sha256(json.dumps(recipe(config), sort_keys=True).encode()).hexdigest()[:8]
    return resolve(config.runs_dir) / "cross_validation" / f"{config.backbone}-{key}"
