"""Figures of merit from labels and scores: per image, and per breast as the RSNA challenge scores.

`labels` are 0 or 1, `scores` are probabilities, both of shape (n,). A figure that is not defined, such as the
AUC of one class alone, is NaN.
"""

from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn import metrics as sklearn_metrics

Pooling = Literal["mean", "max"]


def pf1(labels: ArrayLike, scores: ArrayLike) -> float:
    """Probabilistic F1, the RSNA challenge's metric; with scores of 0 and 1 it is F1. Scores are clipped to 0-1.

    Precision is pTP / (pTP + pFP) and recall pTP / positives, where pTP is the scores' sum over positives and
    pFP over negatives; pF1 is their harmonic mean, 0 where either is 0.
    https://www.kaggle.com/competitions/rsna-breast-cancer-detection/overview/evaluation
    """
    positive = np.asarray(labels) == 1
    probability = np.clip(np.asarray(scores, dtype=float), 0, 1)
    true_positives, false_positives = probability[positive].sum(), probability[~positive].sum()
    if true_positives == 0:
        return 0.0
    precision = true_positives / (true_positives + false_positives)
    recall = true_positives / positive.sum()
    return float(2 * precision * recall / (precision + recall))


def by_breast(predictions: pd.DataFrame, how: Pooling = "mean") -> pd.DataFrame:
    """One row a breast: patient_id, laterality, cancer (its images' largest) and score (their mean or max)."""
    return (
        predictions.groupby(["patient_id", "laterality"], sort=True)
        .agg(cancer=("cancer", "max"), score=("score", how))
        .reset_index()
    )


def by_image(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> dict[str, float]:
    """The metrics of one epoch, each exact: computed from the scores, not from bins.

    `loss` is the cross-entropy weighted by `weights` (over their sum), `bce` the plain one; accuracy, precision,
    recall and f1 are at a threshold of 0.5.
    """
    positive, probability = np.asarray(labels) == 1, np.asarray(scores, dtype=float)
    entropy = cross_entropy(positive, probability)
    called = probability >= 0.5
    hits = int((called & positive).sum())
    alarms, positives = int(called.sum()), int(positive.sum())
    both_classes = 0 < positives < len(positive)
    return {
        "loss": float(np.average(entropy, weights=None if weights is None else np.asarray(weights))),
        "bce": float(entropy.mean()),
        "auc": float(sklearn_metrics.roc_auc_score(positive, probability)) if both_classes else float("nan"),
        "accuracy": float((called == positive).mean()),
        "precision": hits / alarms if alarms else 0.0,
        "recall": hits / positives if positives else float("nan"),
        "f1": 2 * hits / (alarms + positives) if alarms + positives else 0.0,
    }


def cross_entropy(positive: np.ndarray, scores: np.ndarray, epsilon: float = 1e-7) -> np.ndarray:
    """Binary cross-entropy of each image, (n,), the scores kept `epsilon` away from 0 and 1 as Keras does."""
    scores = np.clip(scores, epsilon, 1 - epsilon)
    return -np.where(positive, np.log(scores), np.log1p(-scores))


def class_weights(labels: ArrayLike) -> dict[int, float]:
    """{0: w, 1: w} such that both classes weigh the same together and the mean weight is 1."""
    positive = np.asarray(labels) == 1
    return {0: len(positive) / (2 * int((~positive).sum())), 1: len(positive) / (2 * int(positive.sum()))}


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
