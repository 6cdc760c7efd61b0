"""Tables of predictions: a row for each image or breast, with patient_id, laterality, cancer (0, 1), score (0-1)."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn import metrics as sklearn_metrics

from rsna_nb.metrics.weighted import MetricsError, pf1

BreastScore = Literal["mean", "max", "noisy_or"]
COLUMNS = ["patient_id", "laterality", "cancer", "score"]


def check_predictions(predictions: pd.DataFrame, columns: list[str] = COLUMNS) -> pd.DataFrame:
    """Return the table with cancer as int and score as float, if every metric of it can be trusted.

    Raises
    ------
    MetricsError
        For a missing column, no rows, an empty id, a score that is NaN or outside 0-1, a cancer other than 0 or 1,
        or a breast whose rows differ in cancer. The message names the first row by its index.
    """
    check_columns(predictions, columns)
    # coerce: a word becomes NaN, so that the first fault can be named with its row
    score, cancer = pd.to_numeric(predictions["score"], errors="coerce"), predictions["cancer"]
    faults = {
        "score is not a number": score.isna(),
        "score is outside 0-1": ~score.between(0, 1),
        "cancer is not 0 or 1": ~cancer.isin([0, 1]),
    }
    faults |= {f"{name} is empty": predictions[name].isna() for name in columns if name not in ("score", "cancer")}
    if {"patient_id", "laterality"} <= set(columns):
        breasts = predictions.groupby(["patient_id", "laterality"])["cancer"]
        faults["cancer is both 0 and 1 in the same breast"] = breasts.transform("nunique") > 1
    refuse(predictions, faults, columns)
    return predictions.assign(cancer=cancer.astype(int), score=score.astype(float))


def refuse(predictions: pd.DataFrame, faults: Mapping[str, pd.Series], columns: list[str]) -> None:
    """`MetricsError` for the first fault that a row has, with the first such row and its values of `columns`.

    `faults` say for each row (bool) whether it has the fault.
    """
    for fault, wrong in faults.items():
        if wrong.any():
            row = predictions[wrong].iloc[0]
            found = ", ".join(f"{name} {row[name]}" for name in columns)
            raise MetricsError(f"{fault} in {wrong.sum()} of {len(wrong)} rows, first in row {row.name}: {found}")


def check_columns(predictions: pd.DataFrame, columns: list[str]) -> None:
    """`MetricsError` if a column is missing, or the table has no rows."""
    missing = [name for name in columns if name not in predictions]
    if missing:
        raise MetricsError(f"the predictions lack {', '.join(missing)}; they have {', '.join(map(str, predictions))}")
    if predictions.empty:
        raise MetricsError("the predictions have no rows")


def by_breast(predictions: pd.DataFrame, how: BreastScore = "mean") -> pd.DataFrame:
    """One row for each breast, with patient_id, laterality, cancer and score.

    Parameters
    ----------
    predictions
        A row for each image, with these columns; `MetricsError` for faults (`check_predictions`).
    how
        "mean" or "max" of the scores of its images, or "noisy_or": 1 - prod(1 - score), the chance that at least one
        image shows cancer if the scores are independent probabilities. Correct for class weights first
        (`prior_correction`).

    Examples
    --------
    >>> images = pd.DataFrame({"patient_id": ["1", "1"], "laterality": ["L", "L"], "cancer": [1, 1]})
    >>> by_breast(images.assign(score=[0.25, 0.75])).to_dict("records")
    [{'patient_id': '1', 'laterality': 'L', 'cancer': 1, 'score': 0.5}]
    """
    predictions = check_predictions(predictions)
    breasts = predictions.groupby(["patient_id", "laterality"], sort=True)
    if how != "noisy_or":
        return breasts.agg(cancer=("cancer", "max"), score=("score", how)).reset_index()
    with np.errstate(divide="ignore"):  # log(0) for a score of 1 is intended: the product is 0
        log_none = np.log1p(-predictions["score"]).groupby([predictions["patient_id"], predictions["laterality"]]).sum()
    return breasts.agg(cancer=("cancer", "max")).assign(score=-np.expm1(log_none)).reset_index()


def scores_breasts(predictions: pd.DataFrame) -> bool:
    """Whether the network scored breasts: each image of predictions.csv then has its breast's score, and `attention`.

    The mean of a breast's scores is then the network's own score of the breast.
    """
    return "attention" in predictions


def split_breasts(predictions: pd.DataFrame) -> pd.DataFrame:
    """The rows of predictions-breasts.csv: patient_id, laterality, split, cancer, images and score of each breast.

    `predictions` have a row for each image. The score is the network's own if `unit` was not "image", else the mean of
    the breast's images.
    """
    breasts = predictions.groupby(["split", "patient_id", "laterality"], as_index=False, sort=True)
    table = breasts.agg(cancer=("cancer", "max"), images=("score", "size"), score=("score", "mean"))
    return table[["patient_id", "laterality", "split", "cancer", "images", "score"]]


def by_image(
    labels: ArrayLike,
    scores: ArrayLike,
    weights: ArrayLike | None = None,
    positive_label: float = 1.0,
    focal_gamma: float = 0.0,
) -> dict[str, float]:
    """The metrics of one epoch, computed exactly from the scores.

    Keras's own metrics bin the scores, and their AUC was 0.711 where the truth was 0.870.

    Parameters
    ----------
    labels, scores
        0 or 1, and probabilities, both (n,).
    weights
        Weights of the images in `loss` (n,).
    positive_label
        Target of positives in `loss` (label smoothing).
    focal_gamma
        Focusing parameter of the focal loss (Lin et al. 2017); 0 gives the cross-entropy.

    Returns
    -------
    `loss` (weighted, divided by the sum of weights), `bce` (plain cross-entropy), `auc`, and `accuracy`, `precision`,
    `recall` and `f1` at a threshold of 0.5. AUC and recall are NaN if a class is missing.
    """
    positive, probability = np.asarray(labels) == 1, np.asarray(scores, dtype=float)
    entropy = cross_entropy(positive, probability)
    losses = cross_entropy(positive * positive_label, probability, focal_gamma)
    called = probability >= 0.5
    hits = int((called & positive).sum())
    calls, positives = int(called.sum()), int(positive.sum())
    both_classes = 0 < positives < len(positive)
    return {
        "loss": float(np.average(losses, weights=None if weights is None else np.asarray(weights))),
        "bce": float(entropy.mean()),
        "auc": float(sklearn_metrics.roc_auc_score(positive, probability)) if both_classes else float("nan"),
        "accuracy": float((called == positive).mean()),
        "precision": hits / calls if calls else 0.0,
        "recall": hits / positives if positives else float("nan"),
        "f1": 2 * hits / (calls + positives) if calls + positives else 0.0,
    }


def cross_entropy(targets: np.ndarray, scores: np.ndarray, gamma: float = 0.0) -> np.ndarray:
    """Binary cross-entropy of each image, (n,); with `gamma` above 0 the focal loss.

    The focal factor is (1 - p) ** gamma, where p = t s + (1 - t) (1 - s) is the probability given to the target t by
    the score s. Scores are kept 1e-7 away from 0 and 1, as in Keras.
    """
    scores = np.clip(scores, 1e-7, 1 - 1e-7)
    entropy = -(targets * np.log(scores) + (1 - targets) * np.log1p(-scores))
    right = targets * scores + (1 - targets) * (1 - scores)
    return (1 - right) ** gamma * entropy if gamma else entropy


def class_weights(labels: ArrayLike, share: float = 0.5) -> dict[int, float]:
    """Weights {0: w0, 1: w1} that give positives this `share` of all weight, with a mean weight of 1.

    `MetricsError` if a class is missing.

    Examples
    --------
    >>> class_weights([1, 0, 0, 0])
    {0: 0.6666666666666666, 1: 2.0}
    """
    positive = np.asarray(labels) == 1
    return class_weights_of(len(positive), int(positive.sum()), share)


def class_weights_of(count: int, positives: int, share: float = 0.5) -> dict[int, float]:
    """As `class_weights`, for `count` rows of which `positives` have cancer."""
    if not 0 < positives < count:
        raise MetricsError(f"class weights need both classes: {positives} of {count} have cancer")
    return {0: (1 - share) * count / (count - positives), 1: share * count / positives}


def summary(predictions: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The metrics of a table of images, by "image" and by "breast" (the mean of its images' scores).

    They are those of `by_image` without `loss`, and average_precision, pf1, count and positives. If the network scored
    breasts, the table has the column attention, and there are no metrics by image.
    """
    tables = {} if scores_breasts(predictions) else {"image": predictions}
    tables |= {"breast": by_breast(predictions)}
    found = {}
    for unit, df in tables.items():
        found[unit] = by_image(df["cancer"], df["score"]) | {
            "average_precision": float(sklearn_metrics.average_precision_score(df["cancer"], df["score"])),
            "pf1": pf1(df["cancer"], df["score"]),
            "count": len(df),
            "positives": int(df["cancer"].sum()),
        }
        del found[unit]["loss"]  # without weights it equals bce
    return found
