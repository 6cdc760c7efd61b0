"""Runs -> the members of an ensemble, and their scores of women that none of them was trained on.

A member is one run, or the fold runs of one recipe: runs whose settings differ only in fold, name and folders.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from rsna_nb.config import resolve
from rsna_nb.evaluation import class_weights, held_out, on_the_same_images, refuse_seen, weighs_nothing
from rsna_nb.metrics import MetricsError, prior_correction
from rsna_nb.runs import Run, RunError, load_run, readable_runs, recipe

KEY = ["patient_id", "image_id"]
ClassWeights = Mapping[int, float]  # {0: weight, 1: weight} in the training loss


@dataclass(frozen=True, eq=False)  # eq=False: two tables cannot be compared to one truth value
class ModelPool:
    """Members on the same split, and their scores of the women that none of them was trained on.

    Attributes
    ----------
    members
        The runs of each member, by the member's name: a run's id, or "3 folds of <id of the first>".
    rows
        A row per image with its metadata, cancer, `split` and, for validation images, `fold`.
    scores
        (images, runs), a column for each run id; NaN if the image belongs to another fold.
    class_weights
        For each run id the weights that its scores in this table are corrected for; empty for raw scores.
    """

    members: Mapping[str, Sequence[Run]]
    rows: pd.DataFrame
    scores: pd.DataFrame
    class_weights: Mapping[str, ClassWeights] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The members' names."""
        return list(self.members)

    @property
    def runs(self) -> list[Run]:
        """All runs of all members."""
        return list(chain(*self.members.values()))

    @property
    def evaluated_split(self) -> str:
        """The women that members are evaluated on: "test" if the runs have test women, else "validation"."""
        return "test" if (self.rows["split"] == "test").any() else "validation"

    def of(self, split: str) -> np.ndarray:
        """Which rows belong to the split, bool (images,)."""
        return (self.rows["split"] == split).to_numpy()

    def prior_corrected(self) -> "ModelPool":
        """The pool with probabilities for scores: each run's class weights are corrected for.

        `MetricsError` that names the run whose scores cannot be corrected.
        """
        weights = {run.id: class_weights_of(run) for run in self.runs}
        return replace(self, scores=corrected(self.scores, weights), class_weights=weights)


def class_weights_of(run: Run) -> ClassWeights:
    """The run's class weights in training, 1 and 1 for none; `MetricsError` names a run that does not record them."""
    try:
        # Unweighted training gives probabilities already; class_weights would call that an error.
        return {0: 1.0, 1: 1.0} if weighs_nothing(run) else class_weights(run)
    except MetricsError as error:
        raise MetricsError(f"run {run.id}: {error}") from error


def corrected(scores: pd.DataFrame, weights: Mapping[str, ClassWeights]) -> pd.DataFrame:
    """The scores (images, runs) with the class weights of some of the runs corrected for; NaN stays NaN."""
    fixed = {}
    for name, own in weights.items():
        known = scores[name].dropna()  # prior_correction refuses NaN
        fixed[name] = pd.Series(prior_correction(known, own), index=known.index)
    return scores.assign(**fixed)


def find_runs(names: str | Sequence[str], runs_dir: str | Path = "runs") -> list[Run]:
    """Runs by their ids or paths: a sequence, or one string with commas or spaces between them.

    "" is the newest finished run and all others on its split: the newest of each recipe and fold, if a recipe has
    the same folds. Runs that leave out a site or machine are not among them. `RunError` if there is none.
    """
    if isinstance(names, str):
        names = re.findall(r"[^,\s]+", names)
    if names:
        return [load_run(name, runs_dir) for name in names]
    # A run that leaves out a group validates on other women than the others do.
    finished = [run for run in readable_runs(runs_dir) if run.is_finished and not run.config.leave_out]
    if not finished:
        raise RunError(f"there is no finished run in {resolve(runs_dir)}: 03_train and 05_cross_validate make them")
    split = _split_settings(finished[-1])
    newest: dict[str, dict[int, Run]] = {}
    for run in finished:
        if _split_settings(run) == split:
            newest.setdefault(str(recipe(run.config)), {})[run.config.fold] = run  # the oldest come first
    # A recipe that lacks a fold has no score of the women in it.
    folds = newest[str(recipe(finished[-1].config))].keys()
    return [run for runs in newest.values() if runs.keys() == folds for _, run in sorted(runs.items())]


def _split_settings(run: Run) -> tuple[object, ...]:
    """The settings that choose the validation women, except the fold, and whether the run was imported: it has none."""
    config = run.config
    shares = config.n_folds if config.fold >= 0 else config.val_fraction
    data = resolve(config.data_dir) if config.data_dir else ""  # one folder may be written in two ways
    own = config.limit_patients, config.test_fraction, config.split_seed, config.fold >= 0, shares
    return data, *own, bool(run.imported)


def _data_of(run: Run) -> str:
    """The fingerprint of the table that the run was trained on, whatever its folder is called."""
    path = run.path / "config" / "environment.json"
    return str(json.loads(path.read_text()).get("data_fingerprint", "")) if path.is_file() else ""


def gather(runs: Sequence[Run]) -> ModelPool:
    """The pool of the members that the runs make, in their order.

    Raises
    ------
    MetricsError
        If the runs have different splits. One may then have been trained on women that another is evaluated on, or the
        women belong to different folds, or different images were scored; the message names the runs.
    """
    by_member: dict[str, dict[int, Run]] = {}
    for run in runs:
        # Folds of one recipe on other data are another member, whose split differs and is refused below.
        known = by_member.setdefault(f"{recipe(run.config)} {_data_of(run)}" if run.config.fold >= 0 else run.id, {})
        if run.config.fold in known:
            raise MetricsError(
                f"runs {known[run.config.fold].id} and {run.id} are the same fold of the same recipe: name one of them"
                if run.config.fold >= 0
                else f"run {run.id} is named twice"
            )
        known[run.config.fold] = run
    members = {_name(folds): [run for _, run in sorted(folds.items())] for folds in by_member.values()}
    tables = {run.id: _held_out(run).assign(run=run.id, fold=run.config.fold) for run in runs}
    (first, rows), *others = ((name, _rows({run.id: tables[run.id] for run in own})) for name, own in members.items())
    # Comparing each with the first suffices: those that agree with it agree with each other.
    for name, other in others:
        _check_same_split(rows, f"run {first}", other, f"run {name}")
    images = pd.MultiIndex.from_frame(rows[KEY])
    scores = {
        run.id: tables[run.id].set_index(KEY)["score"].reindex(images).to_numpy()  # NaN for the images of other folds
        for run in chain(*members.values())
    }
    # `attention` is one run's; it would also say that the ensemble's scores are those of a network for breasts.
    own = rows.drop(columns=["score", "run", "attention"], errors="ignore")
    return ModelPool(members, own, pd.DataFrame(scores))


def _held_out(run: Run) -> pd.DataFrame:
    """The rows of `held_out`; none for an imported run that has not scored labelled images yet."""
    if run.imported and not (run.path / "predictions.csv").is_file():
        texts = dict.fromkeys([*KEY, "laterality", "split"], pd.Series(dtype=object))
        return pd.DataFrame(texts | {"cancer": pd.Series(dtype=int), "score": pd.Series(dtype=float)})
    return held_out(run)


def _name(folds: Mapping[int, Run]) -> str:
    """A member's name, from its runs by their folds."""
    first = folds[min(folds)].id
    return first if len(folds) == 1 else f"{len(folds)} folds of {first}"


def _rows(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A row per image of a member, from its runs' tables by id: validation images with their fold, test images once.

    `MetricsError` if a woman is in the validation of two folds, or the folds have different test women.
    """
    everything = pd.concat(tables.values())
    validation = everything[everything["split"] == "validation"]
    # The model that scores a woman in two folds was trained on her.
    women = validation.groupby("patient_id")["run"].unique()
    several = women[women.str.len() > 1]
    if len(several):
        raise MetricsError(
            f"{len(several)} women are in the validation of two folds, first patient_id {several.index[0]} in runs "
            f"{' and '.join(several.iloc[0])}: the folds are not of the same table"
        )
    (first, test), *others = ((name, table[table["split"] == "test"]) for name, table in tables.items())
    for name, other in others:
        on_the_same_images(test, f"run {first}", other, f"run {name}")
    # All runs scored the test women, so their rows name no single run or fold.
    return pd.concat([validation, test.assign(run="", fold=np.nan)], ignore_index=True)


def _check_same_split(rows: pd.DataFrame, name: str, other_rows: pd.DataFrame, other_name: str) -> None:
    for split in ("test", "validation"):
        own, others = (each[each["split"] == split] for each in (rows, other_rows))
        # First the graver fault: one may have been trained on women of the other. Then whether the images are the same.
        refuse_seen(own, name, other_rows, other_name)
        refuse_seen(others, other_name, rows, name)
        both = on_the_same_images(own, name, others, other_name)
        # The same women in other folds: a weight chosen without fold 0 would then have seen some of its women.
        fold_of = other_rows.set_index(KEY)["fold"]
        if split == "validation" and not both["fold"].eq(fold_of.loc[pd.MultiIndex.from_frame(both[KEY])].array).all():
            raise MetricsError(f"{name} and {other_name} assigned the validation women to different folds")
