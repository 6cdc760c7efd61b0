"""The AUC of a run by group of women, and its metrics compared with those of a baseline and of another run.

The unit is the breast, and intervals are over women.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from rsna_nb import metrics
from rsna_nb.evaluation.evaluated_run import Evaluation, class_weights, evaluate, scored_breasts
from rsna_nb.evaluation.imbalance import group_names, in_order, one_hot
from rsna_nb.evaluation.run_metrics import RAW_PF1, main_intervals, score_columns
from rsna_nb.metrics import Interval, MetricsError, Women, assign_folds, bootstrap
from rsna_nb.notebook import UnavailableError, attempt
from rsna_nb.runs import Run

GROUPS = {
    "site_id": "site",
    "machine_id": "machine",
    "age": "age",
    "density": "density",
    "view": "view",
    "implant": "implant",
    "invasive": "cancer",
}
VIEWS_TOGETHER = "a score is of all views of a breast"
FEW = 10  # women with cancer, or with a breast without, below which an interval is rough


def by_group(predictions: pd.DataFrame, column: str) -> pd.DataFrame:
    """The breasts of each value of a column, named in the column `value`, scored by the images that have the value.

    For "invasive" the values are kinds of cancer, each compared with all breasts without cancer.
    """
    if column == "invasive":
        clear, kinds = predictions["cancer"] == 0, {"invasive": 1, "not invasive": 0}
        groups = {name: clear | (predictions[column] == kind) for name, kind in kinds.items()}
    else:
        names = group_names(predictions[column])
        words = {"0": "no", "1": "yes"} if column == "implant" else {}
        groups = {words.get(name, name): names == name for name in in_order(names)}
    tables = [scored_breasts(predictions[rows]).assign(value=name) for name, rows in groups.items()]
    return pd.concat(tables).astype({"value": pd.CategoricalDtype(list(groups), ordered=True)})


def subgroups(evaluation: Evaluation, n: int) -> pd.DataFrame:
    """The AUC by breast in each group of women (`group_rows`), with intervals from bootstrap samples of the group."""
    return group_rows(evaluation.predictions, GROUPS, lambda breasts: bootstrap(breasts, "auc", n=n))


def group_rows(
    predictions: pd.DataFrame, groups: Mapping[str, str], metric: Callable[[pd.DataFrame], Interval]
) -> pd.DataFrame:
    """A metric in each value of some columns; a woman can be in several.

    Parameters
    ----------
    predictions
        A row for each image.
    groups
        The name of the group for each column.
    metric
        A function from the breasts of a value to an Interval; it raises `UnavailableError` if there is none.

    Returns
    -------
    The columns group, value, women, positive_women, estimate, low, high, reason ("" if there is a metric), and
    small, which is true for fewer than `FEW` women with cancer, or with a breast without. A column that is missing or
    empty gives a row with that reason, and so does the view if the network scored breasts.
    """
    rows: list[dict[str, Any]] = []
    for column, group in groups.items():
        if reason := _not_grouped(predictions, column):
            rows.append({"group": group, "value": "", "small": False, "reason": reason})
            continue
        for value, breasts in by_group(predictions, column).groupby("value", observed=True):
            women, found = Women.of(breasts, "patient_id"), attempt(_of_both_kinds, breasts, metric)
            row = {"group": group, "value": str(value), "women": women.total, "positive_women": women.positives}
            row |= {name: getattr(found, name, np.nan) for name in ("estimate", "low", "high")}
            rows.append(row | {"small": women.rarer < FEW, "reason": getattr(found, "reason", "")})
    columns = ["group", "value", "women", "positive_women", "estimate", "low", "high", "small", "reason"]
    return pd.DataFrame(rows).reindex(columns=columns)


def _not_grouped(predictions: pd.DataFrame, column: str) -> str:
    """Why there are no groups by a column, or ""."""
    if column not in predictions:
        return "not in predictions.csv"
    if predictions[column].isna().all():
        return "empty in predictions.csv"
    # The same breasts with the same scores would come back as a group for each view.
    return VIEWS_TOGETHER if column == "view" and metrics.scores_breasts(predictions) else ""


def _of_both_kinds(breasts: pd.DataFrame, metric: Callable[[pd.DataFrame], Interval]) -> Interval:
    if breasts["cancer"].nunique() < 2:
        raise UnavailableError("all have cancer" if breasts["cancer"].all() else "no women with cancer")
    return metric(breasts)


def baseline(evaluation: Evaluation) -> pd.DataFrame:
    """The breasts scored without their images: a logistic regression on age and machine, fitted on other women.

    `score` is on the scale of the run's scores: if its class weights are known, the odds are multiplied as they do. A
    pF1 of another scale could not be compared.

    Five fits score five folds. If age and machine are not informative, the AUC is on average slightly below 0.5 (0.494
    in 40 sets of 112 women), because a fold with more cancers is scored by models that saw fewer.

    `UnavailableError` if age and machine are missing, or the same for all.
    """
    first = evaluation.predictions.groupby(["patient_id", "laterality"], as_index=False).first()
    if "age" in first:
        first["age"] = pd.to_numeric(first["age"], errors="coerce")
    columns = [name for name in ("age", "machine_id") if name in first and first[name].nunique() > 1]
    if not columns:
        raise UnavailableError("age and machine are missing, or the same for all")
    inputs, cancer, fold = one_hot(first[columns]), first["cancer"].to_numpy(), assign_folds(evaluation.breasts)
    scores = np.empty(len(first))
    for value in np.unique(fold):
        model = LogisticRegression(max_iter=1000).fit(inputs[fold != value], cancer[fold != value])
        scores[fold == value] = model.predict_proba(inputs[fold == value])[:, 1]
    if "corrected_score" not in evaluation.breasts:
        return evaluation.breasts.assign(score=scores)
    weights = class_weights(evaluation.run)
    weighted = metrics.prior_correction(scores, {0: weights[1], 1: weights[0]})  # swapped: probability -> raw score
    return evaluation.breasts.assign(score=weighted, corrected_score=scores)


def differences(a: pd.DataFrame, b: pd.DataFrame, names: tuple[str, str], n: int) -> pd.DataFrame:
    """The metrics of `a` and `b`, and those of b minus those of a on the same bootstrap samples.

    Parameters
    ----------
    a, b
        Tables of the same breasts. pF1 is that of the column corrected_score if both have it.
    names
        The names of a and b, which become names of columns.
    n
        The number of bootstrap samples.

    Returns
    -------
    A row for each metric; the columns are `names` and "difference", all of Intervals.
    """
    if ("corrected_score" in a) != ("corrected_score" in b):  # pF1 compares only scores of one scale
        a, b = (df.drop(columns="corrected_score", errors="ignore") for df in (a, b))
        return differences(a, b, names, n).rename(index={"pF1": RAW_PF1})
    first, second = (main_intervals(df, n) for df in (a, b))
    rows = {}
    for words, (name, column) in score_columns(a).items():
        change = metrics.difference(a.assign(score=a[column]), b.assign(score=b[column]), name, n=n)
        rows[words] = (first[words], second[words], change)
    return pd.DataFrame.from_dict(rows, orient="index", columns=[*names, "difference"])


def compared(evaluation: Evaluation, other: Run | None, n: int) -> pd.DataFrame:
    """`differences` of the run and another, on the women that both are evaluated on.

    If their networks score different units, the names of the columns say which. `UnavailableError` without another run,
    or if the comparison is refused (`paired`).
    """
    if other is None:
        raise UnavailableError("no other run was named (parameter compare)")
    if other.path.resolve() == evaluation.run.path.resolve():
        raise UnavailableError(f"run {other.id} would be compared with itself")
    own, theirs = paired(evaluation, other)
    runs = (other, evaluation.run)
    differ = other.config.unit != evaluation.run.config.unit
    first, second = (f"{run.id} (unit {run.config.unit})" if differ else run.id for run in runs)
    return differences(theirs, own, (first, second), n)


def paired(evaluation: Evaluation, other: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The breasts that both runs are evaluated on, with the scores of each: (this run's, the other's).

    Raises
    ------
    MetricsError
        If a run may have been trained on women that the other is evaluated on, because its own predictions lack them;
        or if the runs are evaluated on different splits, or have different images or labels.
    """
    evaluated = evaluate(other)
    if evaluated.split != evaluation.split:
        raise MetricsError(
            f"run {evaluation.run.id} is evaluated on {evaluation.split} women, run {other.id} on {evaluated.split} "
            "women: the checkpoint of one may have been chosen on women that the other has never seen"
        )
    own, theirs = (evaluation.predictions, f"run {evaluation.run.id}"), (evaluated.predictions, f"run {other.id}")
    # all rows of a run's predictions.csv were held out, whichever split it is evaluated on
    refuse_seen(*own, other.predictions, theirs[1])
    refuse_seen(*theirs, evaluation.run.predictions, own[1])
    both = on_the_same_images(*own, *theirs)
    renamed = {"score": "score_other", "corrected_score": "corrected_score_other"}
    second = both.drop(columns=renamed, errors="ignore").rename(columns={new: old for old, new in renamed.items()})
    return scored_breasts(both), scored_breasts(second)


def refuse_seen(evaluated: pd.DataFrame, whose: str, kept_out: pd.DataFrame, other: str) -> None:
    """Raise `MetricsError` if `other` may have been trained on women that `whose` is evaluated on.

    `evaluated` are the rows of `whose`, `kept_out` those that `other` held out of its training.
    """
    women = set(evaluated["patient_id"])
    unseen = women - set(kept_out["patient_id"])
    if unseen:
        raise MetricsError(
            f"{len(unseen)} of the {len(women)} women that {whose} is evaluated on are not among those that {other} "
            f"held out: {other} may have been trained on them. Compare runs of the same data, seed, fractions and fold"
        )


def on_the_same_images(own: pd.DataFrame, whose: str, other: pd.DataFrame, others: str) -> pd.DataFrame:
    """`own` with the other's scores of the same images in `score_other` (and `corrected_score_other`, if known).

    `whose` and `others` name the two in the message of the `MetricsError` that is raised if images or labels differ.
    """
    key = ["patient_id", "image_id"]
    given = [name for name in ("score", "corrected_score") if name in other]
    scores = other[[*key, "laterality", "cancer", *given]]
    scores = scores.rename(columns={name: f"{name}_other" for name in ("laterality", "cancer", *given)})
    both = own.merge(scores, on=key)
    missing = len(own) + len(scores) - 2 * len(both)
    if missing:
        raise MetricsError(f"{missing} images are scored by only one of the two runs: {whose} and {others}")
    if not (both["cancer"].eq(both["cancer_other"]) & both["laterality"].eq(both["laterality_other"])).all():
        raise MetricsError(
            f"images of the same id have different labels in the two runs, {whose} and {others}: "
            "their data are not the same"
        )
    return both
