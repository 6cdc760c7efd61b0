"""Tables of predictions: a row an image or a breast, with patient_id, laterality, cancer (0 or 1) and score (0-1)."""

from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn import metrics as sklearn_metrics

from rsna_nb.metrics.figures import MetricsError, pf1

BreastScore = Literal["mean", "max", "noisy_or"]
COLUMNS = ["patient_id", "laterality", "cancer", "score"]


def check_predictions(predictions: pd.DataFrame, columns: list[str] = COLUMNS) -> pd.DataFrame:
    """The table with cancer as int and score as float, where every figure of it can be trusted.

    Raises
    ------
    MetricsError
        For a missing column, no rows, an empty id, a score that is NaN or outside 0-1, a cancer other than 0 or 1,
        or a breast whose rows differ in cancer.
    """
    check_columns(predictions, columns)
    score, cancer = pd.to_numeric(predictions["score"], errors="coerce"), predictions["cancer"]
    faults = {
        "score is NaN, or no number": score.isna(),
        "score is outside 0-1": ~score.between(0, 1),
        "cancer is not 0 or 1": ~cancer.isin([0, 1]),
    }
    faults |= {f"{name} is empty": predictions[name].isna() for name in columns if name not in ("score", "cancer")}
    for fault, wrong in faults.items():
        if wrong.any():
            row = predictions[wrong].iloc[0]
            found = ", ".join(f"{name} {row[name]}" for name in columns)
            raise MetricsError(f"{fault} in {wrong.sum()} of {len(wrong)} rows, first in row {row.name}: {found}")
    if {"patient_id", "laterality"} <= set(columns):
        check_breasts(predictions)
    return predictions.assign(cancer=cancer.astype(int), score=score.astype(float))


def check_columns(predictions: pd.DataFrame, columns: list[str]) -> None:
    missing = [name for name in columns if name not in predictions]
    if missing:
        raise MetricsError(f"the predictions lack {', '.join(missing)}; they have {', '.join(map(str, predictions))}")
    if predictions.empty:
        raise MetricsError("the predictions have no rows")


def check_breasts(predictions: pd.DataFrame) -> None:
    kinds = predictions.groupby(["patient_id", "laterality"])["cancer"].nunique()
    mixed = kinds.index[kinds > 1]
    if len(mixed):
        woman, side = mixed[0]
        raise MetricsError(
            f"cancer is both 0 and 1 in {len(mixed)} breasts, first in patient_id {woman}, laterality {side}"
        )


def by_breast(predictions: pd.DataFrame, how: BreastScore = "mean") -> pd.DataFrame:
    """One row a breast: patient_id, laterality, cancer (its images' largest) and score (their mean or max).

    "noisy_or" is 1 - prod(1 - score), the chance that one image at least is of cancer where the scores are
    independent probabilities: undo the class weights first (`calibration.prior_correction`).
    """
    predictions = check_predictions(predictions)
    breasts = predictions.groupby(["patient_id", "laterality"], sort=True)
    if how != "noisy_or":
        return breasts.agg(cancer=("cancer", "max"), score=("score", how)).reset_index()
    with np.errstate(divide="ignore"):  # a score of 1
        clear = np.log1p(-predictions["score"]).groupby([predictions["patient_id"], predictions["laterality"]]).sum()
    return breasts.agg(cancer=("cancer", "max")).assign(score=-np.expm1(clear)).reset_index()


def by_image(
    labels: ArrayLike,
    scores: ArrayLike,
    weights: ArrayLike | None = None,
    positive_label: float = 1.0,
    focal_gamma: float = 0.0,
) -> dict[str, float]:
    """The metrics of one epoch, each exact: computed from the scores, not from bins.

    `loss` is the cross-entropy weighted by `weights` (over their sum), with `positive_label` as the target of
    positives and, where `focal_gamma` is above 0, the focal factor (Lin et al. 2017); `bce` is the plain one;
    accuracy, precision, recall and f1 are at a threshold of 0.5.
    """
    positive, probability = np.asarray(labels) == 1, np.asarray(scores, dtype=float)
    entropy = cross_entropy(positive, probability)
    losses = cross_entropy(positive * positive_label, probability, focal_gamma)
    called = probability >= 0.5
    hits = int((called & positive).sum())
    alarms, positives = int(called.sum()), int(positive.sum())
    both_classes = 0 < positives < len(positive)
    return {
        "loss": float(np.average(losses, weights=None if weights is None else np.asarray(weights))),
        "bce": float(entropy.mean()),
        "auc": float(sklearn_metrics.roc_auc_score(positive, probability)) if both_classes else float("nan"),
        "accuracy": float((called == positive).mean()),
        "precision": hits / alarms if alarms else 0.0,
        "recall": hits / positives if positives else float("nan"),
        "f1": 2 * hits / (alarms + positives) if alarms + positives else 0.0,
    }


def cross_entropy(targets: np.ndarray, scores: np.ndarray, gamma: float = 0.0, epsilon: float = 1e-7) -> np.ndarray:
    """Binary cross-entropy of each image, (n,), the scores kept `epsilon` away from 0 and 1 as Keras does.

    Times (1 - p)^`gamma`, p being the probability of being right, t s + (1 - t) (1 - s): the focal loss.
    """
    scores = np.clip(scores, epsilon, 1 - epsilon)
    entropy = -(targets * np.log(scores) + (1 - targets) * np.log1p(-scores))
    right = targets * scores + (1 - targets) * (1 - scores)
    return (1 - right) ** gamma * entropy if gamma else entropy


def class_weights(labels: ArrayLike, share: float = 0.5) -> dict[int, float]:
    """{0: w, 1: w} such that positives are `share` of all weight and the mean weight is 1.

    `MetricsError` where a class is missing.
    """
    positive = np.asarray(labels) == 1
    return class_weights_of(len(positive), int(positive.sum()), share)


def class_weights_of(count: int, positives: int, share: float = 0.5) -> dict[int, float]:
    """`class_weights` of so many rows, of which so many have cancer."""
    if not 0 < positives < count:
        raise MetricsError(f"class weights need both classes: {positives} of {count} have cancer")
    return {0: (1 - share) * count / (count - positives), 1: share * count / positives}


def summary(predictions: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The figures of a table of predictions by image and by breast (mean of its images' scores)."""
    breasts = by_breast(predictions)
    figures = {}
    for unit, df in (("image", predictions), ("breast", breasts)):
        figures[unit] = by_image(df["cancer"], df["score"]) | {
            "average_precision": float(sklearn_metrics.average_precision_score(df["cancer"], df["score"])),
            "pf1": pf1(df["cancer"], df["score"]),
            "count": len(df),
            "positives": int(df["cancer"].sum()),
        }
        del figures[unit]["loss"]  # without weights it is bce
    return figures
