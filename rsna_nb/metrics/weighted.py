"""AUC, average precision and pF1 that take weights, so that 2,000 bootstrap draws are 2,000 rows of weights.

`labels` are 0 or 1 and `scores` are probabilities, both of shape (n,). A metric that is not defined, such as the AUC
of a single class, is NaN.

scikit-learn has AUC and average precision, but sorts the scores again in each call: 2,000 draws of the RSNA table
(54,706 rows) would take minutes. Here the scores are sorted once, and a draw costs a few sums. No library has pF1.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rsna_nb.notebook import UnavailableError

FloatOrDraws = Any  # a float; (draws,) floats where the weights are (draws, n)
Evaluate = Callable[[np.ndarray], np.ndarray]  # weights (draws, n) -> the metric of each draw (draws,)
CHUNK = 32  # draws evaluated together: 32 rows of 54,706 weights take 14 MB


class MetricsError(UnavailableError, ValueError):
    """The table does not allow a correct metric; the message names the column and the row."""


def pf1(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> FloatOrDraws:
    """Probabilistic F1, the metric of the RSNA challenge. With scores of 0 and 1 it equals F1.

    Precision is pTP / (pTP + pFP) and recall is pTP / positives, where pTP sums the scores of the positives and pFP
    those of the negatives. pF1 is their harmonic mean, 2 pTP / (pTP + pFP + positives), and 0 where either is 0.
    https://www.kaggle.com/competitions/rsna-breast-cancer-detection/overview/evaluation

    Parameters
    ----------
    labels, scores
        0 or 1, and probabilities, both (n,). Scores outside 0-1 are clipped.
    weights
        One weight per row (n,), or one row of weights per draw (draws, n).

    Returns
    -------
    A float, or (draws,) floats for weights of two dimensions.

    Raises
    ------
    MetricsError
        For labels other than 0 and 1, and for scores that are NaN.

    Examples
    --------
    >>> round(pf1([1, 0, 0], [0.8, 0.1, 0.3]), 3)  # 2 x 0.8 / (0.8 + 0.4 + 1)
    0.727
    """
    return _evaluated(_prepare_pf1, labels, scores, weights)


def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> FloatOrDraws:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    Parameters, results and errors are those of `pf1`.
    """
    return _evaluated(_prepare_auc, labels, scores, weights)


def average_precision(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> FloatOrDraws:
    """The precision at the score of each positive, averaged over positives, as scikit-learn defines it.

    Parameters, results and errors are those of `pf1`.
    """
    return _evaluated(_prepare_average_precision, labels, scores, weights)


def checked(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each row is positive (bool) and its score (float), both (n,).

    `MetricsError` for labels other than 0 and 1, and for scores that are NaN.
    """
    known, values = np.asarray(labels), np.asarray(scores, dtype=float)
    if not np.isin(known, [0, 1]).all():
        raise MetricsError(f"{(~np.isin(known, [0, 1])).sum()} of {len(known)} labels are neither 0 nor 1")
    if np.isnan(values).any():
        raise MetricsError(f"{np.isnan(values).sum()} of {len(values)} scores are NaN")
    return known == 1, values


def in_chunks(draws: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of `draws`, `CHUNK` at a time: all of them at once would not fit into memory."""
    for start in range(0, len(draws), CHUNK):
        yield draws[start : start + CHUNK]


def divided(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide element by element; NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)


def _evaluated(
    prepare: Callable[[np.ndarray, np.ndarray], Evaluate],
    labels: ArrayLike,
    scores: ArrayLike,
    weights: ArrayLike | None,
) -> FloatOrDraws:
    positive, values = checked(labels, scores)
    evaluate = prepare(positive, values)
    draws = np.ones(len(values)) if weights is None else np.asarray(weights)
    if draws.ndim == 1:
        return float(evaluate(draws[np.newaxis].astype(float))[0])
    return np.concatenate([evaluate(chunk.astype(float)) for chunk in in_chunks(draws)])


def _prepare_pf1(positive: np.ndarray, scores: np.ndarray) -> Evaluate:
    probability = np.clip(scores, 0, 1)
    columns = np.stack([probability * positive, probability, positive], axis=1)  # pTP, pTP + pFP, positives

    def evaluate(weights: np.ndarray) -> np.ndarray:
        hits, calls, positives = (weights @ columns).T
        return np.divide(2 * hits, calls + positives, out=np.zeros(len(weights)), where=hits > 0)

    return evaluate


def _prepare_auc(positive: np.ndarray, scores: np.ndarray) -> Evaluate:
    by_level = _prepare_levels(positive, scores)

    def evaluate(weights: np.ndarray) -> np.ndarray:
        positives, below, tied, negatives = by_level(weights)
        pairs = positives.sum(axis=1) * negatives
        return divided((positives * (below + tied / 2)).sum(axis=1), pairs)

    return evaluate


def _prepare_average_precision(positive: np.ndarray, scores: np.ndarray) -> Evaluate:
    by_level = _prepare_levels(positive, scores)

    def evaluate(weights: np.ndarray) -> np.ndarray:
        positives, below, _, negatives = by_level(weights)
        hits = positives[:, ::-1].cumsum(axis=1)[:, ::-1]  # positives at this score and above
        calls = hits + negatives[:, np.newaxis] - below
        precision = np.divide(hits, calls, out=np.zeros_like(hits), where=hits > 0)
        total = np.where(negatives > 0, positives.sum(axis=1), 0)
        return divided((positives * precision).sum(axis=1), total)

    return evaluate


def _prepare_levels(positive: np.ndarray, scores: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """Sort once, so that a row of weights becomes sums between and at the K distinct scores of the positives.

    ROC and precision-recall need nothing else. Of the 3K + 1 cells, cell 2k holds the negatives between the scores
    k - 1 and k, cell 2k + 1 those tied with k, and cell 2K + 1 + k the positives at k.

    The returned function takes weights (draws, n) and returns the weight of the positives at each score, of
    the negatives below it and of the negatives tied with it, all (draws, K) with ascending scores, and the weight of
    all negatives (draws,).
    """
    levels = np.unique(scores[positive])
    left, right = np.searchsorted(levels, scores, "left"), np.searchsorted(levels, scores, "right")
    cell = np.where(positive, 2 * len(levels) + 1 + left, left + right)
    order = np.argsort(cell, kind="stable")
    filled, starts = np.unique(cell[order], return_index=True)

    def by_level(weights: np.ndarray) -> tuple[np.ndarray, ...]:
        cells = np.zeros((len(weights), 3 * len(levels) + 1))
        # reduceat sums runs of equal cells: the draws share one sorted order
        cells[:, filled] = np.add.reduceat(np.take(weights, order, axis=1), starts, axis=1)
        negatives, positives = np.split(cells, [2 * len(levels) + 1], axis=1)
        return positives, negatives.cumsum(axis=1)[:, :-1:2], negatives[:, 1::2], negatives.sum(axis=1)

    return by_level


PREPARE = {"auc": _prepare_auc, "average_precision": _prepare_average_precision, "pf1": _prepare_pf1}
