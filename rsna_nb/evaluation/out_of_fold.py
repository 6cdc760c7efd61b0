"""The runs of a cross-validation -> a score for each image by the model that never saw its woman, and what it is worth.

The unit is the breast, its score the mean of its images' scores; intervals are over women.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_nb import metrics
from rsna_nb.evaluation.comparison import by_group
from rsna_nb.evaluation.evaluated_run import held_out
from rsna_nb.evaluation.figures import STATISTICS, main_intervals
from rsna_nb.evaluation.summary import plain
from rsna_nb.metrics import PREPARE, UNDEFINED, Interval, MetricsError, Women, by_breast, group_row, normal_interval
from rsna_nb.notebook import Markdown
from rsna_nb.runs import Run
from rsna_nb.splits import in_words
from rsna_nb.system import write_whole


def validation_of(run: Run) -> pd.DataFrame:
    """The validation rows of predictions.csv, checked (`evaluation.held_out`)."""
    return held_out(run).query("split == 'validation'")


def out_of_fold(runs: Mapping[int, Run]) -> pd.DataFrame:
    """The validation rows of the runs by fold, with the columns fold and run; each image stands in it once.

    `MetricsError` where there is no run, or a woman is in two folds.
    """
    if not runs:
        raise MetricsError("no fold is finished")
    tables = [validation_of(run).assign(fold=fold, run=run.id) for fold, run in sorted(runs.items())]
    predictions = pd.concat(tables, ignore_index=True)
    folds = predictions.groupby("patient_id")["fold"].nunique()
    if folds.max() > 1:
        raise MetricsError(f"{(folds > 1).sum()} women are in two folds, first patient_id {folds.idxmax()}")
    return predictions


def which(runs: Mapping[int, Run], n_folds: int) -> Markdown:
    """Which folds are finished, and what to do about the others."""
    missing = [fold for fold in range(n_folds) if fold not in runs]
    if not missing:
        return Markdown(
            f"All {n_folds} folds are finished: each image is scored once, by a model that never saw its woman."
        )
    names = ", ".join(map(str, missing))
    return Markdown(
        f"**Of {n_folds} folds {len(missing)} are missing: {names}.** All that follows is of the women of the others. "
        f"`-p fold {missing[0]}` trains one, here or on another machine with the same `runs_dir` and `store_dir`; "
        "without `fold` this notebook trains all that are missing."
    )


def with_fold(breasts: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """The breasts with the fold of their woman."""
    return breasts.assign(fold=breasts["patient_id"].map(predictions.groupby("patient_id")["fold"].first()))


def breasts_of(predictions: pd.DataFrame) -> pd.DataFrame:
    """A row a breast: patient_id, laterality, cancer, score and fold."""
    return with_fold(by_breast(predictions), predictions)


def fold_table(predictions: pd.DataFrame, n: int) -> pd.DataFrame:
    """Each fold's own figures, a row a fold: whom it has, and AUC, average precision and pF1 with intervals."""
    rows = {}
    for fold, images in predictions.groupby("fold"):
        breasts = by_breast(images)
        women = Women.of(breasts, "patient_id")
        rows[fold] = {
            "women": women.total,
            "with cancer": women.positives,
            "images": len(images),
            "positive images": images["cancer"].sum(),
        } | main_intervals(breasts, n)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("fold")


def overall(predictions: pd.DataFrame, n: int) -> pd.DataFrame:
    """AUC, average precision and pF1 over all folds, a row each.

    The columns are those of `metrics.fold_figures`, and the standard deviation, the lowest and the highest of the
    folds' own figures.
    """
    breasts, rows = breasts_of(predictions), {}
    for key, name in STATISTICS.items():
        figure = getattr(metrics, key)
        folds = pd.Series([figure(own["cancer"], own["score"]) for _, own in breasts.groupby("fold")])
        spread = {"standard deviation": folds.std(), "lowest": folds.min(), "highest": folds.max()}
        rows[name] = (
            {"within folds": UNDEFINED}
            | metrics.fold_figures(breasts, key, n)
            | {name: float(value) for name, value in spread.items()}
        )
    return pd.DataFrame.from_dict(rows, orient="index")


def sites_and_machines(predictions: pd.DataFrame, n: int) -> pd.DataFrame:
    """The AUC within folds of each site and machine, as `comparison.subgroups` has them for `plots.subgroup_forest`."""
    rows: list[dict[str, Any]] = []
    for column, group in (("site_id", "site"), ("machine_id", "machine")):
        if column not in predictions or predictions[column].isna().all():
            rows.append({"group": group, "value": "", "small": False, "reason": "the table does not say"})
            continue
        breasts = with_fold(by_group(predictions, column), predictions)
        for value, own in breasts.groupby("value", observed=True):
            rows.append({"group": group, "value": value} | group_row(own, no_auc(own), within, n))
    return pd.DataFrame(rows)


def no_auc(breasts: pd.DataFrame) -> str:
    """Why there is no AUC within folds, "" where there is."""
    kinds = breasts.groupby("fold")["cancer"].nunique()
    return "" if kinds.max() > 1 else "no fold has both kinds" if breasts["cancer"].any() else "no women with cancer"


def within(breasts: pd.DataFrame, n: int) -> Interval:
    return metrics.fold_figures(breasts, n=n)["within folds"]


def leave_one_group_out_table(
    groups: pd.DataFrame, runs: Mapping[str, Run], predictions: pd.DataFrame, n: int
) -> pd.DataFrame:
    """`cross_validation.groups` with the AUC of each group, by the model that never saw it and out of fold.

    "left out" is by the run of `runs` that left the group out, "out of fold" (within folds) by the models that
    trained on other women of the group, both on the images that `predictions` has too; "difference" is the first less
    the second, on the same draws of women. Where there is no run, `reason` says why.
    """
    figures = {}
    for value, run in runs.items():
        breasts = both_scored(validation_of(run), predictions)
        figures[value] = {"run": run.id} | (paired_aucs(breasts, n) if breasts["cancer"].nunique() == 2 else {})
    columns = ["run", "left out", "out of fold", "difference"]
    found = pd.DataFrame.from_dict(figures, orient="index", columns=columns).rename_axis("value")
    table = groups.merge(found, left_on="value", right_index=True, how="left")
    unjudged = table["left out"].isna() & (table["reason"] == "")
    return table.assign(reason=table["reason"].mask(unjudged, "its images of both kinds are not scored out of fold"))


def both_scored(own: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """The breasts whose images stand in both, with fold, score and other (the score in `predictions`)."""
    key = ["patient_id", "image_id"]
    both = own.merge(predictions[[*key, "fold", "score"]], on=key, suffixes=("", "_other"))
    if both.empty:
        return both
    return breasts_of(both).assign(other=by_breast(both.assign(score=both["score_other"]))["score"])


def paired_aucs(breasts: pd.DataFrame, n: int, seed: int = 0) -> dict[str, Interval]:
    """The AUC of score, that of other within folds, and the first less the second."""
    positive, women = breasts["cancer"].to_numpy() == 1, Women.of(breasts, "patient_id")
    own = PREPARE["auc"](positive, breasts["score"].to_numpy())
    parts = metrics.parts_of(breasts["fold"].to_numpy(), positive, breasts["other"].to_numpy(), "auc")
    other = metrics.within_folds(positive, parts)
    evaluates = {"left out": own, "out of fold": other, "difference": lambda weights: own(weights) - other(weights)}
    figures = metrics.resampled(women, list(evaluates.values()), n, seed)
    return {
        name: normal_interval(estimate, draws, women.positives, women.rarer, on_logits=name != "difference")
        for name, (estimate, draws) in zip(evaluates, figures, strict=True)
    }


def composition(table: pd.DataFrame, folds: list[tuple[np.ndarray, np.ndarray]]) -> pd.DataFrame:
    """Who is in each fold (`splits.k_folds`), a row a fold: women and images, with cancer, and images of each site."""
    rows = {}
    for fold, (_, places) in enumerate(folds):
        own = table.iloc[places]
        rows[fold] = {
            "women": own["patient_id"].nunique(),
            "with cancer": own.loc[own["cancer"] == 1, "patient_id"].nunique(),
            "images": len(own),
            "positive images": own["cancer"].sum(),
        } | {f"site {site}": count for site, count in in_words(own["site_id"]).value_counts().sort_index().items()}
    return pd.DataFrame.from_dict(rows, orient="index").fillna(0).astype(int).rename_axis("fold")


def write(folder: Path, predictions: pd.DataFrame, results: Mapping[str, Any]) -> list[Path]:
    """out_of_fold.csv, a row an image, and cross_validation.json in a folder; where they are comes back."""
    files = [folder / "out_of_fold.csv", folder / "cross_validation.json"]
    write_whole(files[0], predictions.to_csv(index=False).encode())
    write_whole(files[1], (json.dumps(plain(results), indent=2) + "\n").encode())
    return files
