"""Figures of merit that take weights, so that a bootstrap's 2,000 draws are as many rows of weights.

`labels` are 0 or 1, `scores` are probabilities, both of shape (n,). A figure that is not defined, such as the AUC of
one class alone, is NaN.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rsna_nb.notebook import UnavailableError

FloatOrDraws = Any  # a float; (draws,) floats where the weights are (draws, n)
Evaluate = Callable[[np.ndarray], np.ndarray]  # weights (draws, n) -> the figure of each draw (draws,)
DRAWS_AT_ONCE = 32  # 54,706 rows of as many draws take 14 MB


class MetricsError(UnavailableError, ValueError):
    """A table that no right figure can be made from; the message names the column and the row."""


def pf1(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> FloatOrDraws:
    """Probabilistic F1, the RSNA challenge's metric; with scores of 0 and 1 it is F1. Scores are clipped to 0-1.

    Precision is pTP / (pTP + pFP) and recall pTP / positives, where pTP is the scores' sum over positives and
    pFP over negatives; pF1 is their harmonic mean, 2 pTP / (pTP + pFP + positives), and 0 where either is 0.
    https://www.kaggle.com/competitions/rsna-breast-cancer-detection/overview/evaluation
    """
    return evaluated(prepare_pf1, labels, scores, weights)


def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> FloatOrDraws:
    """The chance that a positive scores above a negative, a tie counting half: the area under the ROC curve."""
    return evaluated(prepare_auc, labels, scores, weights)


def average_precision(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> FloatOrDraws:
    """The precision at each positive's score, averaged over positives: scikit-learn's average_precision_score."""
    return evaluated(prepare_average_precision, labels, scores, weights)


def evaluated(
    prepare: Callable[[np.ndarray, np.ndarray], Evaluate],
    labels: ArrayLike,
    scores: ArrayLike,
    weights: ArrayLike | None,
) -> FloatOrDraws:
    """The figure by weights of shape (n,), or of each draw by weights of shape (draws, n), a few draws at once."""
    positive, values = checked(labels, scores)
    evaluate = prepare(positive, values)
    draws = np.ones(len(values)) if weights is None else np.asarray(weights)
    if draws.ndim == 1:
        return float(evaluate(draws[np.newaxis].astype(float))[0])
    return np.concatenate([evaluate(part.astype(float)) for part in in_parts(draws)])


def checked(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Whether each row is positive, and the scores, both (n,); `MetricsError` for labels but 0 and 1, and for NaN."""
    known, values = np.asarray(labels), np.asarray(scores, dtype=float)
    if not np.isin(known, [0, 1]).all():
        raise MetricsError(f"{(~np.isin(known, [0, 1])).sum()} of {len(known)} labels are neither 0 nor 1")
    if np.isnan(values).any():
        raise MetricsError(f"{np.isnan(values).sum()} of {len(values)} scores are NaN")
    return known == 1, values


def in_parts(draws: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of `draws`, `DRAWS_AT_ONCE` at a time."""
    for start in range(0, len(draws), DRAWS_AT_ONCE):
        yield draws[start : start + DRAWS_AT_ONCE]


def prepare_pf1(positive: np.ndarray, scores: np.ndarray) -> Evaluate:
    probability = np.clip(scores, 0, 1)
    columns = np.stack([probability * positive, probability, positive], axis=1)  # pTP, pTP + pFP, positives

    def evaluate(weights: np.ndarray) -> np.ndarray:
        hits, calls, positives = (weights @ columns).T
        return np.divide(2 * hits, calls + positives, out=np.zeros(len(weights)), where=hits > 0)

    return evaluate


def prepare_auc(positive: np.ndarray, scores: np.ndarray) -> Evaluate:
    by_level = prepare_levels(positive, scores)

    def evaluate(weights: np.ndarray) -> np.ndarray:
        positives, below, tied, negatives = by_level(weights)
        pairs = positives.sum(axis=1) * negatives
        return divided((positives * (below + tied / 2)).sum(axis=1), pairs)

    return evaluate


def prepare_average_precision(positive: np.ndarray, scores: np.ndarray) -> Evaluate:
    by_level = prepare_levels(positive, scores)

    def evaluate(weights: np.ndarray) -> np.ndarray:
        positives, below, _, negatives = by_level(weights)
        hits = positives[:, ::-1].cumsum(axis=1)[:, ::-1]  # at this score and above
        calls = hits + negatives[:, np.newaxis] - below
        precision = np.divide(hits, calls, out=np.zeros_like(hits), where=hits > 0)
        total = np.where(negatives > 0, positives.sum(axis=1), 0)
        return divided((positives * precision).sum(axis=1), total)

    return evaluate


def divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where below is 0."""
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


def prepare_levels(positive: np.ndarray, scores: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """All that ROC and PR need of the rows: sums of weights at the positives' K distinct scores, and between them.

    Cell 2k is the negatives between the scores k - 1 and k, 2k + 1 those tied with k, 2K + 1 + k the positives of k.
    What comes back takes weights (draws, n) to the weight of positives at each score, of negatives below it, of
    negatives tied with it, all (draws, K) with scores ascending, and of all negatives (draws,).
    """
    levels = np.unique(scores[positive])
    left, right = np.searchsorted(levels, scores, "left"), np.searchsorted(levels, scores, "right")
    cell = np.where(positive, 2 * len(levels) + 1 + left, left + right)
    order = np.argsort(cell, kind="stable")
    filled, starts = np.unique(cell[order], return_index=True)

    def by_level(weights: np.ndarray) -> tuple[np.ndarray, ...]:
        cells = np.zeros((len(weights), 3 * len(levels) + 1))
        cells[:, filled] = np.add.reduceat(np.take(weights, order, axis=1), starts, axis=1)
        negatives, positives = np.split(cells, [2 * len(levels) + 1], axis=1)
        return positives, negatives.cumsum(axis=1)[:, :-1:2], negatives[:, 1::2], negatives.sum(axis=1)

    return by_level


PREPARE = {"auc": prepare_auc, "average_precision": prepare_average_precision, "pf1": prepare_pf1}
