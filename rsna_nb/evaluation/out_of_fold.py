"""Cross-validation: a score for each image from the model trained without that woman, and how good these scores are.

The unit is the breast, scored by the mean of its images' scores; intervals are over women.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_nb import metrics
from rsna_nb.evaluation.comparison import group_rows
from rsna_nb.evaluation.evaluated_run import held_out, scored_breasts, with_corrected_score
from rsna_nb.evaluation.results import plain
from rsna_nb.evaluation.run_metrics import main_intervals, score_columns
from rsna_nb.metrics import PREPARE, UNDEFINED, Interval, MetricsError, Women, by_breast
from rsna_nb.notebook import Markdown, UnavailableError
from rsna_nb.runs import Run
from rsna_nb.splits import as_text
from rsna_nb.system import write_whole


def _validation_of(run: Run) -> pd.DataFrame:
    return held_out(run).query("split == 'validation'")


def out_of_fold(runs: Mapping[int, Run]) -> pd.DataFrame:
    """The validation images of fold runs, each once, with the columns fold and run.

    The column corrected_score exists if the class weights of all runs are known (`with_corrected_score`).
    `MetricsError` without a run, or with a woman in two folds.
    """
    if not runs:
        raise MetricsError("no fold is finished")
    tables = [
        with_corrected_score(run, _validation_of(run))[0].assign(fold=fold, run=run.id)
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
        By value, the run that was trained without the group.
    predictions
        The out-of-fold predictions, by models that trained on other women of the group.
    n
        The number of bootstrap samples.

    Returns
    -------
    `groups` with run, "never seen" (the AUC by the run without the group), "out of fold" (the AUC within folds of the
    same images) and "difference" (the first minus the second, on the same bootstrap samples), as Intervals. If there
    are none, `reason` says why.
    """
    found = {}
    for value, run in runs.items():
        breasts = _scored_by_both(_validation_of(run), predictions)
        found[value] = {"run": run.id} | (_paired_aucs(breasts, n) if breasts["cancer"].nunique() == 2 else {})
    columns = ["run", "never seen", "out of fold", "difference"]
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
    return metrics.resampled_intervals(women, evaluates, n, 0, differences=("difference",))


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
