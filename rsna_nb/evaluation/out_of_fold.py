"""Cross-validation: a score for each image from the model trained without that woman, and how good these scores are.

The unit is the breast, scored by the mean of its images' scores; intervals are over women. The scores of a fold are
those of the epoch that the other folds chose (`epochs.chosen_by_others`), as its own women would choose the epoch that
flatters them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_nb import metrics
from rsna_nb.evaluation import epochs
from rsna_nb.evaluation.comparison import group_rows
from rsna_nb.evaluation.evaluated_run import held_out, scored_breasts, with_corrected_score
from rsna_nb.evaluation.results import plain
from rsna_nb.evaluation.run_metrics import main_intervals, score_columns
from rsna_nb.metrics import PREPARE, UNDEFINED, Interval, MetricsError, Women, by_breast
from rsna_nb.notebook import Markdown, UnavailableError
from rsna_nb.runs import Run
from rsna_nb.splits import as_text
from rsna_nb.system import write_whole


def _validation_of(run: Run, epoch: int | None) -> pd.DataFrame:
    """The validation images, scored at an epoch (None: the run's own best), which the column epoch has."""
    images, best = held_out(run).query("split == 'validation'"), epochs.best_epoch(run)
    scored = images if epoch in (None, best) else epochs.scores_at(run, images, epoch)
    return scored.assign(epoch=best if epoch is None else epoch)


def out_of_fold(runs: Mapping[int, Run], in_sample: bool = False) -> pd.DataFrame:
    """The validation images of fold runs, each once, with the columns fold, run and epoch.

    The scores are those of the epoch that the other folds chose; with `in_sample`, and where the run did not keep them
    (`epochs.epochs_of`), those of the run's own best epoch.

    The column corrected_score exists if the class weights of all runs are known (`with_corrected_score`).
    `MetricsError` without a run, or with a woman in two folds.
    """
    if not runs:
        raise MetricsError("no fold is finished")
    chosen = {} if in_sample else epochs.epochs_of(runs)
    tables = [
        with_corrected_score(run, _validation_of(run, chosen.get(fold)))[0].assign(fold=fold, run=run.id)
        for fold, run in sorted(runs.items())
    ]
    predictions = pd.concat(tables, ignore_index=True)
    # pF1 over folds needs one scale: if one run's weights are unknown, all stay raw
    if "corrected_score" in predictions and predictions["corrected_score"].isna().any():
        predictions = predictions.drop(columns="corrected_score")
    folds = predictions.groupby("patient_id")["fold"].nunique()
    if folds.max() > 1:
        raise MetricsError(f"{(folds > 1).sum()} women are in two folds, first patient_id {folds.idxmax()}")
    return predictions


def which(runs: Mapping[int, Run], n_folds: int) -> Markdown:
    """A sentence on which folds are finished, and what to do about the others."""
    missing = [fold for fold in range(n_folds) if fold not in runs]
    if not missing:
        return Markdown(
            f"All {n_folds} folds are finished: each image is scored once, by a model trained without that woman."
        )
    names = ", ".join(map(str, missing))
    return Markdown(
        f"**{len(missing)} of {n_folds} folds are missing: {names}.** What follows covers the women of the others. "
        f"`-p fold {missing[0]}` trains one, here or on another computer with the same `runs_dir` and `store_dir`; "
        "without `fold` this notebook trains all that are missing."
    )


def epochs_note(runs: Mapping[int, Run]) -> Markdown:
    """Which epoch scores each fold, and for which folds the women that are scored have chosen it."""
    chosen = epochs.epochs_of(runs)
    names = ", ".join(f"{epoch} for fold {fold}" for fold, epoch in sorted(chosen.items()))
    own = ", ".join(str(fold) for fold in sorted(runs) if fold not in chosen)
    sentences = [f"The epochs that the other folds chose: {names}."] if chosen else []
    if own:
        reason = (
            "no other fold is finished"
            if len(runs) == 1
            else "its run has no validation_scores.csv (one of an earlier version), or no other fold has a curve"
        )
        sentences.append(
            f"**The epoch was chosen on the same women in fold {own}**, because {reason}. What follows is therefore "
            "better than it would be on new women, and no interval includes this."
        )
    return Markdown(" ".join(sentences))


def epoch_optimism(runs: Mapping[int, Run], predictions: pd.DataFrame, in_sample: pd.DataFrame) -> pd.DataFrame:
    """The metrics by breast with the epochs of `out_of_fold` and with each run's own best one, and the difference.

    The AUC is that within folds; average precision and pF1 are means of the folds. Only folds whose epoch others chose
    are in it; `UnavailableError` if there is none.
    """
    judged = list(epochs.epochs_of(runs))
    if not judged:
        raise UnavailableError("no fold's epoch was chosen by other folds")
    tables = [table[table["fold"].isin(judged)] for table in (in_sample, predictions)]
    both = [overall(table, 2) for table in tables]  # two draws: the intervals are not shown
    ways = {words: "within folds" if words == "AUC" else "mean of folds" for words in both[0].index}
    found = {words: [table.loc[words, way].estimate for table in both] for words, way in ways.items()}
    columns = ["chosen on the same women", "chosen on other folds"]
    table = pd.DataFrame.from_dict(found, orient="index", columns=columns)
    # adding 0.0 turns a rounded -0.0 into 0.0
    return table.assign(optimism=table[columns[0]] - table[columns[1]]).round(3) + 0.0


def breasts_of(predictions: pd.DataFrame) -> pd.DataFrame:
    """A row for each breast: patient_id, laterality, cancer, score, corrected_score if known, and fold."""
    return scored_breasts(predictions)


def fold_table(predictions: pd.DataFrame, n: int) -> pd.DataFrame:
    """A row for each fold: its women and images, and AUC, average precision and pF1 with intervals."""
    rows = {}
    for fold, images in predictions.groupby("fold"):
        rows[fold] = _counts(images) | main_intervals(scored_breasts(images), n)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("fold")


def _counts(images: pd.DataFrame) -> dict[str, Any]:
    return {
        "women": images["patient_id"].nunique(),
        "with cancer": images.loc[images["cancer"] == 1, "patient_id"].nunique(),
        "images": len(images),
        "positive images": images["cancer"].sum(),
    }


def overall(predictions: pd.DataFrame, n: int) -> pd.DataFrame:
    """AUC, average precision and pF1 over all folds, with a row for each.

    Returns
    -------
    The columns of `metrics.fold_metrics`, and the standard deviation, lowest and highest of the folds' own values.
    """
    breasts = breasts_of(predictions)
    rows: dict[str, dict[str, Any]] = {}
    for words, (name, column) in score_columns(breasts).items():
        table, metric = breasts.assign(score=breasts[column]), getattr(metrics, name)
        folds = pd.Series([metric(own["cancer"], own["score"]) for _, own in table.groupby("fold")])
        spread = {"standard deviation": folds.std(), "lowest": folds.min(), "highest": folds.max()}
        rows[words] = {"within folds": UNDEFINED, **metrics.fold_metrics(table, name, n)}
        rows[words] |= {label: float(value) for label, value in spread.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def sites_and_machines(predictions: pd.DataFrame, n: int) -> pd.DataFrame:
    """The AUC within folds of each site and machine (`comparison.group_rows`)."""

    def within(breasts: pd.DataFrame) -> Interval:
        if breasts.groupby("fold")["cancer"].nunique().max() < 2:
            raise UnavailableError("no fold has breasts with and without cancer")
        return metrics.fold_metrics(breasts, n=n)["within folds"]

    return group_rows(predictions, {"site_id": "site", "machine_id": "machine"}, within)


def leave_one_group_out_table(
    groups: pd.DataFrame, runs: Mapping[str, Run], predictions: pd.DataFrame, n: int
) -> pd.DataFrame:
    """The AUC of each group (site or machine) by a model that never saw the group, and by models that did.

    Parameters
    ----------
    groups
        `cross_validation.groups`: value, reason and counts.
    runs
        By value, the run that was trained without the group. Its epoch is chosen by the runs without the other groups,
        which validate on other women (but for women with images of two groups); if there is no other run, or it did not
        keep its scores, it is its own best.
    predictions
        The out-of-fold predictions, by models that trained on other women of the group.
    n
        The number of bootstrap samples.

    Returns
    -------
    `groups` with run, epoch, "epoch chosen by" ("other groups" or "its own women"), "never seen" (the AUC by the run
    without the group), "out of fold" (the AUC within folds of the same images) and "difference" (the first minus the
    second, on the same bootstrap samples), the last three as Intervals. If there are none, `reason` says why.
    """
    found, chosen = {}, epochs.epochs_of(runs)
    for value, run in runs.items():
        own = _validation_of(run, chosen.get(value))
        breasts = _scored_by_both(own, predictions)
        found[value] = {
            "run": run.id,
            "epoch": str(own["epoch"].iloc[0]),  # as text: a group without a run leaves it empty
            "epoch chosen by": "other groups" if value in chosen else "its own women",
        } | (_paired_aucs(breasts, n) if breasts["cancer"].nunique() == 2 else {})
    columns = ["run", "epoch", "epoch chosen by", "never seen", "out of fold", "difference"]
    rows = pd.DataFrame.from_dict(found, orient="index", columns=columns).rename_axis("value")
    table = groups.merge(rows, left_on="value", right_index=True, how="left")
    missing = table["never seen"].isna() & (table["reason"] == "")
    return table.assign(reason=table["reason"].mask(missing, "no out-of-fold scores of both classes"))


def _scored_by_both(own: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """The breasts whose images occur in both, with fold, score and other (the score in `predictions`)."""
    key = ["patient_id", "image_id"]
    both = own.merge(predictions[[*key, "fold", "score"]], on=key, suffixes=("", "_other"))
    if both.empty:
        return both
    return breasts_of(both).assign(other=by_breast(both.assign(score=both["score_other"]))["score"])


def _paired_aucs(breasts: pd.DataFrame, n: int) -> dict[str, Interval]:
    positive, women = breasts["cancer"].to_numpy() == 1, Women.of(breasts, "patient_id")
    own = PREPARE["auc"](positive, breasts["score"].to_numpy())
    other = metrics.within_folds(breasts["fold"].to_numpy(), positive, breasts["other"].to_numpy())
    evaluates = {"never seen": own, "out of fold": other, "difference": lambda weights: own(weights) - other(weights)}
    found = metrics.resampled_intervals(women, evaluates, n, 0, differences=("difference",))
    # As in the table of all folds, whose intervals are wider because the folds' networks share training women.
    return found | {"out of fold": metrics.fold_metrics(breasts.assign(score=breasts["other"]), n=n)["within folds"]}


def composition(table: pd.DataFrame, folds: list[tuple[np.ndarray, np.ndarray]]) -> pd.DataFrame:
    """A row for each fold of `splits.k_folds`: women and images, those with cancer, and the images of each site."""
    rows = {}
    for fold, (_, places) in enumerate(folds):
        own = table.iloc[places]
        sites = as_text(own["site_id"]).value_counts().sort_index()
        rows[fold] = _counts(own) | {f"site {site}": count for site, count in sites.items()}
    return pd.DataFrame.from_dict(rows, orient="index").fillna(0).astype(int).rename_axis("fold")


def write(folder: Path, predictions: pd.DataFrame, results: Mapping[str, Any]) -> list[Path]:
    """Write out_of_fold.csv, a row for each image, and cross_validation.json into a folder; return both paths."""
    files = [folder / "out_of_fold.csv", folder / "cross_validation.json"]
    write_whole(files[0], predictions.to_csv(index=False).encode())
    write_whole(files[1], (json.dumps(plain(results), indent=2) + "\n").encode())
    return files
