"""Runs -> the members of an ensemble, and what each of them scored of women that it was not trained on.

A member is a run, or the fold runs of one recipe: runs whose settings differ in fold, name and folders alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from rsna_nb.config import RunConfig, resolve
from rsna_nb.evaluation import held_out, on_the_same_images, refuse_seen
from rsna_nb.metrics import MetricsError
from rsna_nb.runs import Run, RunError, load_run, readable_runs, recipe

KEY = ["patient_id", "image_id"]


@dataclass(frozen=True, eq=False)
class Member:
    """A run, or fold runs of one recipe, with their checked predictions."""

    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        first = self.runs[0]
        return first.id if len(self.runs) == 1 else f"{len(self.runs)} folds of {first.id}"

    @cached_property
    def tables(self) -> list[pd.DataFrame]:
        return [held_out(run).assign(run=run.id, fold=run.config.fold) for run in self.runs]

    @cached_property
    def rows(self) -> pd.DataFrame:
        """A row an image: those of validation with the run that scored it and its fold, those of test once.

        `MetricsError` where a woman is in two folds' validation, or the folds have other test women.
        """
        everything = pd.concat(self.tables)
        validation = everything[everything["split"] == "validation"]
        women = validation.groupby("patient_id")["run"].unique()
        several = women[women.str.len() > 1]
        if len(several):
            raise MetricsError(
                f"{len(several)} women are in the validation of two folds, first patient_id {several.index[0]} in runs "
                f"{' and '.join(several.iloc[0])}: the folds are not of the same table"
            )
        test = [table[table["split"] == "test"] for table in self.tables]
        for run, other in zip(self.runs[1:], test[1:], strict=True):
            on_the_same_images(test[0], f"run {self.runs[0].id}", other, f"run {run.id}")
        return pd.concat([validation, test[0].assign(run="", fold=np.nan)], ignore_index=True)


@dataclass(frozen=True, eq=False)
class ModelPool:
    """Members on the same split, and their scores of the women whom none of them was trained on.

    Attributes
    ----------
    rows
        A row an image with its metadata, cancer, `split` and, of validation images, `fold`.
    scores
        (images, runs) by run id, NaN where the image is of another fold.
    """

    members: tuple[Member, ...]
    rows: pd.DataFrame
    scores: pd.DataFrame

    @property
    def names(self) -> list[str]:
        return [member.name for member in self.members]

    @property
    def runs(self) -> list[Run]:
        return [run for member in self.members for run in member.runs]

    @property
    def split(self) -> str:
        """Whom it is judged on: "test" women where there are some, else those of "validation"."""
        return "test" if (self.rows["split"] == "test").any() else "validation"

    def of(self, split: str) -> np.ndarray:
        """Which rows are of the split, bool (images,)."""
        return (self.rows["split"] == split).to_numpy()


def find_runs(names: str, runs_dir: str | Path = "runs") -> list[Run]:
    """Runs by their ids or paths, between commas or spaces.

    "" is the newest finished run and all others on its split: the newest of each recipe and fold, of recipes that have
    the same folds. Runs that left out a site or machine are not among them. `RunError` where there is none.
    """
    if names.strip():
        return [load_run(name, runs_dir) for name in re.split(r"[,\s]+", names.strip(", \n"))]
    finished = [run for run in readable_runs(runs_dir) if run.is_finished and not run.config.leave_out]
    if not finished:
        raise RunError(f"there is no finished run in {resolve(runs_dir)}: 03_train and 05_cross_validate make them")
    newest = finished[-1]
    by_recipe: dict[str, dict[int, Run]] = {}
    for run in finished:
        if split_of(run.config) == split_of(newest.config):
            by_recipe.setdefault(recipe_of(run.config), {})[run.config.fold] = run
    folds = by_recipe[recipe_of(newest.config)].keys()
    return [run for runs in by_recipe.values() if runs.keys() == folds for _, run in sorted(runs.items())]


def recipe_of(config: RunConfig) -> str:
    """What the fold runs of a cross-validation share, to be compared."""
    return str(recipe(config))


def split_of(config: RunConfig) -> tuple[object, ...]:
    """The settings that deal the women, but for the fold."""
    shares = config.n_folds if config.fold >= 0 else config.val_fraction
    data = resolve(config.data_dir) if config.data_dir else ""
    return data, config.limit_patients, config.test_fraction, config.split_seed, config.fold >= 0, shares


def gather(runs: Sequence[Run]) -> ModelPool:
    """The members that the runs make, in their order.

    Raises
    ------
    MetricsError
        Where the runs are of different splits: one may have trained on women whom another is judged on, or they were
        dealt to other folds, or they scored other images; the message says which and why.
    """
    by_recipe: dict[str, dict[int, Run]] = {}
    for run in runs:
        known = by_recipe.setdefault(recipe_of(run.config) if run.config.fold >= 0 else run.id, {})
        if run.config.fold in known:
            raise MetricsError(
                f"runs {known[run.config.fold].id} and {run.id} are the same fold of the same recipe: name one of them"
                if run.config.fold >= 0
                else f"run {run.id} is named twice"
            )
        known[run.config.fold] = run
    members = tuple(Member(tuple(run for _, run in sorted(folds.items()))) for folds in by_recipe.values())
    for member in members[1:]:
        check_same_split(members[0], member)
    rows = members[0].rows
    scores = {run.id: scores_of(table, rows) for member in members for run, table in pairs(member)}
    return ModelPool(members, rows.drop(columns=["score", "run"]), pd.DataFrame(scores))


def pairs(member: Member) -> list[tuple[Run, pd.DataFrame]]:
    return list(zip(member.runs, member.tables, strict=True))


def scores_of(table: pd.DataFrame, rows: pd.DataFrame) -> np.ndarray:
    """The table's scores of the rows, NaN where it has none."""
    return table.set_index(KEY)["score"].reindex(pd.MultiIndex.from_frame(rows[KEY])).to_numpy()


def check_same_split(member: Member, other: Member) -> None:
    names = [f"run {member.name}", f"run {other.name}"]
    for split in ("test", "validation"):
        own, theirs = (each.rows[each.rows["split"] == split] for each in (member, other))
        refuse_seen(own, names[0], other.rows, names[1])
        refuse_seen(theirs, names[1], member.rows, names[0])
        both = on_the_same_images(own, names[0], theirs, names[1])
        fold_of = other.rows.set_index(KEY)["fold"]
        if split == "validation" and not both["fold"].eq(fold_of.loc[pd.MultiIndex.from_frame(both[KEY])].array).all():
            raise MetricsError(f"{names[0]} and {names[1]} dealt the validation women to other folds")
