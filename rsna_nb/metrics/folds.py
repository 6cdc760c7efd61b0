"""Figures of scores that models of different folds gave: the models share no scale, so that a pooled figure also
measures how far their scales are apart (Forman & Scholz 2010, SIGKDD Explorations 12:49)."""

import numpy as np
import pandas as pd

from rsna_nb.metrics.figures import PREPARE, Evaluate, divided
from rsna_nb.metrics.intervals import Interval, Women, normal_interval, resampled
from rsna_nb.metrics.predictions import check_predictions

Parts = list[tuple[np.ndarray, Evaluate]]  # of each fold: positions of its rows, and its figure by their weights


def fold_figures(
    predictions: pd.DataFrame, statistic: str = "auc", n: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """A figure of out-of-fold scores in three ways, with intervals from the same `n` draws of women.

    "within folds" (AUC alone) compares scores of one fold only: the chance that a positive scores above a negative of
    its own fold, all such pairs alike. "mean of folds" gives each fold the same weight. "pooled" takes all scores as
    if one model had given them. The intervals leave out that other training women give another model.

    Parameters
    ----------
    predictions
        A row an image or a breast, with patient_id, cancer, score and fold.
    statistic
        "auc", "average_precision" or "pf1".
    """
    predictions = check_predictions(predictions, ["patient_id", "cancer", "score", "fold"])
    positive, scores = predictions["cancer"].to_numpy() == 1, predictions["score"].to_numpy()
    parts = parts_of(predictions["fold"].to_numpy(), positive, scores, statistic)
    evaluates = {"within folds": within_folds(positive, parts)} if statistic == "auc" else {}
    evaluates |= {"mean of folds": mean_of_folds(parts), "pooled": PREPARE[statistic](positive, scores)}
    women = Women.of(predictions, "patient_id")
    figures = resampled(women, list(evaluates.values()), n, seed)
    return {
        name: normal_interval(estimate, draws, women.positives, women.rarer)
        for name, (estimate, draws) in zip(evaluates, figures, strict=True)
    }


def parts_of(fold: np.ndarray, positive: np.ndarray, scores: np.ndarray, statistic: str) -> Parts:
    places = [np.flatnonzero(fold == value) for value in np.unique(fold)]
    return [(rows, PREPARE[statistic](positive[rows], scores[rows])) for rows in places]


def mean_of_folds(parts: Parts) -> Evaluate:
    return lambda weights: np.mean([evaluate(weights[:, rows]) for rows, evaluate in parts], axis=0)


def within_folds(positive: np.ndarray, parts: Parts) -> Evaluate:
    """The AUC of the pairs of one fold: the folds' AUCs weighted by their pairs; a fold of one class has none."""

    def evaluate(weights: np.ndarray) -> np.ndarray:
        won, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        for rows, auc in parts:
            own = weights[:, rows]
            count = (own @ positive[rows]) * (own @ ~positive[rows])
            won += np.where(count > 0, auc(own), 0) * count
            pairs += count
        return divided(won, pairs)

    return evaluate
