"""A run's figures beside others: group by group of women, beside a guess without a picture, beside another run.

All are by breast, with intervals over women.
"""

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from rsna_nb import metrics
from rsna_nb.evaluation.evaluated_run import Evaluation, evaluate
from rsna_nb.evaluation.figures import STATISTICS, main_intervals
from rsna_nb.evaluation.imbalance import group_names, in_order, one_hot
from rsna_nb.metrics import MetricsError, assign_folds, by_breast
from rsna_nb.notebook import UnavailableError
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


def by_group(predictions: pd.DataFrame, column: str) -> pd.DataFrame:
    """The breasts of each value of a column, `value` naming it: scored by the images that have it.

    Of "invasive" the values are kinds of cancer, each beside all breasts without.
    """
    if column == "invasive":
        clear, kinds = predictions["cancer"] == 0, {"invasive": 1, "not invasive": 0}
        parts = {name: clear | (predictions[column] == kind) for name, kind in kinds.items()}
    else:
        names = group_names(predictions[column])
        words = {"0": "no", "1": "yes"} if column == "implant" else {}
        parts = {words.get(name, name): names == name for name in in_order(names)}
    tables = [by_breast(predictions[rows]).assign(value=name) for name, rows in parts.items()]
    return pd.concat(tables).astype({"value": pd.CategoricalDtype(list(parts), ordered=True)})


def subgroups(evaluation: Evaluation, n: int) -> pd.DataFrame:
    """The AUC by breast in each group of women: `metrics.subgroups` with the column `group` before it.

    A column that predictions.csv lacks, or that is empty, is a row with that reason.
    """
    tables, predictions = [], evaluation.predictions
    for column, group in GROUPS.items():
        if column not in predictions or predictions[column].isna().all():
            reason = "empty in predictions.csv" if column in predictions else "not in predictions.csv"
            tables.append(pd.DataFrame([{"value": "", "reason": reason, "small": False}]).assign(group=group))
        else:
            found = metrics.subgroups(by_group(predictions, column), "value", n=n)
            tables.append(found.astype({"value": str}).assign(group=group))
    df = pd.concat(tables, ignore_index=True)
    return df[["group", "value", "women", "positive_women", "estimate", "low", "high", "small", "reason"]]


def baseline(evaluation: Evaluation) -> pd.DataFrame:
    """The breasts scored without a picture: a logistic regression on age and machine, fitted on other women.

    Five fits' scores in one table: where age and machine tell nothing the AUC is on average a little below 0.5
    (0.494 over 40 draws of 112 women), as a fold with more cancers is scored by the others, which have fewer.
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
    return evaluation.breasts.assign(score=scores)


def differences(a: pd.DataFrame, b: pd.DataFrame, names: tuple[str, str], n: int) -> pd.DataFrame:
    """Figures of `a` and of `b`, and b's less a's on the same draws of women: a row each figure, of Intervals.

    The columns are `names`, which say what a and b are, and "difference".
    """
    first, second = (main_intervals(df, n) for df in (a, b))
    rows = {
        words: (first[words], second[words], metrics.difference(a, b, name, n=n)) for name, words in STATISTICS.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=[*names, "difference"])


def compared(evaluation: Evaluation, other: Run | None, n: int) -> pd.DataFrame:
    """`differences` of the run and another, on the women that both are judged on; `UnavailableError` where refused."""
    if other is None:
        raise UnavailableError("no other run was named (parameter compare)")
    if other.path.resolve() == evaluation.run.path.resolve():
        raise UnavailableError(f"run {other.id} would be compared with itself")
    own, theirs = paired(evaluation, other)
    return differences(theirs, own, (other.id, evaluation.run.id), n)


def paired(evaluation: Evaluation, other: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The breasts that both runs are judged on, with the scores of each: (this run's, the other's).

    Raises
    ------
    MetricsError
        Where a run may have trained on women whom the other is judged on: those that its own predictions lack.
    """
    judged = evaluate(other)
    if judged.split != evaluation.split:
        raise MetricsError(
            f"run {evaluation.run.id} is judged on {evaluation.split} women, run {other.id} on {judged.split} women: "
            "the checkpoint of one may have been chosen on women that the other has never seen"
        )
    own, theirs = (evaluation.predictions, f"run {evaluation.run.id}"), (judged.predictions, f"run {other.id}")
    refuse_seen(*own, other.predictions, theirs[1])
    refuse_seen(*theirs, evaluation.run.predictions, own[1])
    both = on_the_same_images(*own, *theirs)
    return by_breast(both), by_breast(both.assign(score=both["score_other"]))


def refuse_seen(judged: pd.DataFrame, whose: str, kept_out: pd.DataFrame, other: str) -> None:
    """`MetricsError` where `other`, which kept these rows out of its training, may have seen women that are judged."""
    women = set(judged["patient_id"])
    unseen = women - set(kept_out["patient_id"])
    if unseen:
        raise MetricsError(
            f"{len(unseen)} of the {len(women)} women whom {whose} is judged on are not among "
            f"those that {other} kept out of its training: it trained on them, or may have. Compare runs "
            "of the same data, seed, fractions and fold"
        )


def on_the_same_images(own: pd.DataFrame, whose: str, other: pd.DataFrame, others: str) -> pd.DataFrame:
    """`own` with the other's scores of the same images in `score_other`; `MetricsError` where images or labels differ.

    `whose` and `others` name the two.
    """
    key = ["patient_id", "image_id"]
    scores = other[[*key, "laterality", "cancer", "score"]]
    both = own.merge(scores, on=key, suffixes=("", "_other"))
    missing = len(own) + len(scores) - 2 * len(both)
    if missing:
        raise MetricsError(f"{missing} images are scored by one of the two runs alone: {whose} and {others}")
    if not (both["cancer"].eq(both["cancer_other"]) & both["laterality"].eq(both["laterality_other"])).all():
        raise MetricsError(
            f"images of the same id have other labels in the two runs, {whose} and {others}: "
            "their data are not the same"
        )
    return both
