"""Which breasts to recall: thresholds, their rates, and the optimism of choosing them on the evaluated women.

`labels` are 0 or 1 and `scores` probabilities, both of shape (n,). A breast is recalled where score >= threshold, so
equal scores are recalled together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import floor, log10

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from rsna_nb.metrics.intervals import Women
from rsna_nb.metrics.limits import draws_interval
from rsna_nb.metrics.predictions import check_predictions
from rsna_nb.metrics.weighted import MetricsError, checked, in_chunks

Choose = Callable[[np.ndarray, np.ndarray], float]  # (labels, scores) -> threshold

RECALL_RATES = (0.015, 0.024, 0.035, 0.10)  # the first three are those of best single, top 3 and top 10 in PUBLISHED
SPECIFICITIES = (0.8, 0.9, 0.95)
RATES = ["sensitivity", "specificity", "ppv", "recall_rate"]

# Algorithms of the RSNA challenge on its hidden test set (Radiology 2025). Several algorithms together recall a breast
# if any of them does. Table and figure refer to a row by its letter, in the order of the recall rates.
PUBLISHED = pd.DataFrame(
    [
        ("median of 1,537 algorithms", 0.017, 0.276, 0.987, 0.369),
        ("best single algorithm", 0.015, 0.486, 0.995, 0.646),
        ("top 3 together", 0.024, 0.607, 0.988, np.nan),
        ("top 10 together", 0.035, 0.678, 0.978, np.nan),
    ],
    columns=["system", "recall_rate", "sensitivity", "specificity", "ppv"],
).sort_values("recall_rate", ignore_index=True)
PUBLISHED.insert(0, "letter", list("abcd"))


@dataclass(frozen=True)
class OperatingPoint:
    """The rates and counts that a threshold gives. A rate without rows is NaN, such as PPV without a recall."""

    threshold: float
    sensitivity: float
    specificity: float
    ppv: float
    recall_rate: float
    tp: int
    fp: int
    fn: int
    tn: int

    @classmethod
    def of_calls(cls, labels: ArrayLike, calls: ArrayLike, threshold: float) -> "OperatingPoint":
        """The operating point of given calls, bool (n,); `threshold` is only recorded."""
        counts = _outcomes(labels, calls).sum(axis=0)
        return cls(float(threshold), *_rates(counts).tolist(), *counts.tolist())

    @property
    def f1(self) -> float:
        """The harmonic mean of sensitivity and PPV: 0 where nothing is recalled, NaN without a positive."""
        return 2 * self.tp / (2 * self.tp + self.fp + self.fn) if self.tp + self.fn else float("nan")


def _outcomes(labels: ArrayLike, calls: ArrayLike) -> np.ndarray:
    """Whether each row is a true positive, false positive, false negative, true negative: 0 or 1, (n, 4)."""
    positive, called = np.asarray(labels) == 1, np.asarray(calls, dtype=bool)
    kinds = [positive & called, ~positive & called, positive & ~called, ~positive & ~called]
    return np.stack(kinds, axis=-1).astype(int)


def _rates(counts: np.ndarray) -> np.ndarray:
    """`RATES` (4, ...) of tp, fp, fn and tn (..., 4); NaN for 0 / 0."""
    tp, fp, fn, tn = np.moveaxis(np.asarray(counts, dtype=float), -1, 0)
    with np.errstate(invalid="ignore"):
        return np.stack([tp / (tp + fn), tn / (tn + fp), tp / (tp + fp), (tp + fp) / (tp + fp + fn + tn)])


def at_threshold(labels: ArrayLike, scores: ArrayLike, threshold: float) -> OperatingPoint:
    """The operating point of recalling where score >= threshold.

    Examples
    --------
    >>> point = at_threshold([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9], threshold=0.4)
    >>> point.sensitivity, point.specificity, point.recall_rate
    (1.0, 0.5, 0.75)
    """
    positive, values = checked(labels, scores)
    return OperatingPoint.of_calls(positive, values >= threshold, threshold)


def curve(labels: ArrayLike, scores: ArrayLike) -> pd.DataFrame:
    """Every threshold that makes a difference, ascending, with its rates; ROC and PR curves are plotted from them.

    scikit-learn's curves have neither the counts nor the recall rate, and its two curves have different thresholds.

    Returns
    -------
    A row for each distinct score, and one just above the highest, which recalls nothing. The columns are threshold,
    tp, fp, fn, tn, sensitivity, specificity, ppv, recall_rate and f1.
    """
    positive, values = np.asarray(labels) == 1, np.asarray(scores, dtype=float)
    if not len(values) or np.isnan(values).any():
        raise MetricsError(
            f"a threshold needs scores that are numbers: {np.isnan(values).sum()} of {len(values)} are NaN"
        )
    thresholds = np.unique(values)
    # the next float above the highest score: at infinity no score axis could show it
    thresholds = np.append(thresholds, np.nextafter(thresholds[-1], np.inf))
    tp, fp = (side.size - np.searchsorted(np.sort(side), thresholds) for side in (values[positive], values[~positive]))
    counts = np.stack([tp, fp, tp[0] - tp, fp[0] - fp], axis=1)
    df = pd.DataFrame(counts, columns=["tp", "fp", "fn", "tn"]).assign(**dict(zip(RATES, _rates(counts), strict=True)))
    df["f1"] = 2 * tp / np.maximum(2 * tp + fp + df["fn"], 1) if tp[0] else np.nan
    df.insert(0, "threshold", thresholds)
    return df


def threshold_by_f1(labels: ArrayLike, scores: ArrayLike) -> float:
    """The score with the largest F1, the highest one of several; `MetricsError` without a positive."""
    df = curve(labels, scores)
    if df["f1"].isna().any():
        raise MetricsError("F1 has no best threshold without a positive")
    return float(df.loc[df["f1"] == df["f1"].max(), "threshold"].max())


def threshold_at_recall_rate(labels: ArrayLike, scores: ArrayLike, rate: float) -> float:
    """The lowest score that recalls no more than `rate` (0-1) of all rows.

    Equal scores are recalled together. If recalling them would exceed the rate, none of them is; if they are the
    highest scores, nothing is recalled, and the threshold lies just above them.
    """
    df = curve(labels, scores)
    within = df["recall_rate"] <= rate + 1e-12  # 3 / 100 recalled is not above a rate of 0.03 by rounding
    return float(df.loc[within, "threshold"].min())


def threshold_at_specificity(labels: ArrayLike, scores: ArrayLike, specificity: float) -> float:
    """The lowest score whose specificity is `specificity` (0-1) or more; `MetricsError` without a negative.

    Equal scores are recalled together, so the specificity can be well above the requested one.
    """
    df = curve(labels, scores)
    if df["specificity"].isna().any():
        raise MetricsError("a threshold at a specificity needs a negative")
    return float(df.loc[df["specificity"] >= specificity - 1e-12, "threshold"].min())


def threshold_text(threshold: float) -> str:
    """A threshold with three significant digits, also of its distance to 1.

    Scores of a sharp network lie close to 1, and a threshold of 0.9996 must not be read as 1.

    >>> [threshold_text(value) for value in (0.9996, 0.5, 0.00123, 1.0, 2.5)]
    ['0.999600', '0.500', '0.00123', '1.00', '2.50']
    """
    if not 0.5 <= threshold < 1:
        return f"{threshold:#.3g}"
    return f"{threshold:.{2 - floor(log10(1 - threshold))}f}"


def assign_folds(predictions: pd.DataFrame, folds: int = 5, seed: int = 0) -> np.ndarray:
    """The fold of each row (rows,): the column `fold` if it has two values or more, else 0 to `folds` - 1 by woman.

    Women are shuffled and assigned in turn, those with cancer first, so that each fold has its share of them.
    scikit-learn's StratifiedGroupKFold balances rows; here each woman counts once.

    Raises
    ------
    MetricsError
        With fewer than two women with cancer, or if the column has an empty value or two folds for a woman.
    """
    cancer = predictions.groupby("patient_id")["cancer"].max()
    if cancer.sum() < 2:
        raise MetricsError(f"choosing on other women needs at least 2 women with cancer, there are {cancer.sum()}")
    if "fold" in predictions and predictions["fold"].nunique() > 1:
        several = predictions.groupby("patient_id")["fold"].nunique(dropna=False)
        if predictions["fold"].isna().any() or several.max() > 1:
            raise MetricsError(f"the column fold is empty or has two folds for a woman: patient_id {several.idxmax()}")
        return predictions["fold"].to_numpy()
    # a stable sort keeps the shuffled order within those with and those without cancer
    ordered = cancer.sample(frac=1, random_state=seed).sort_values(ascending=False, kind="stable")
    fold_of = pd.Series(np.arange(len(ordered)) % folds, index=ordered.index)
    return predictions["patient_id"].map(fold_of).to_numpy()


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Calls by thresholds chosen on other women, and the rates of a threshold chosen on the same women."""

    calls: np.ndarray  # bool (rows,)
    thresholds: np.ndarray  # one for each fold
    point: OperatingPoint  # of the calls of all folds; its threshold is the median over the folds
    in_sample: OperatingPoint  # with the threshold chosen on all rows
    optimism: dict[str, float]  # in_sample minus point: sensitivity, specificity, ppv, recall_rate, f1


def cross_fitted(breasts: pd.DataFrame, choose: Choose) -> CrossFit:
    """Call the breasts of each fold (`assign_folds`) by the threshold that `choose` picks on all other women.

    Parameters
    ----------
    breasts
        A row for each breast (or image), with patient_id, cancer and score.
    choose
        A function from labels and scores to a threshold, such as `threshold_by_f1`.

    Raises
    ------
    MetricsError
        For a fault of the table, or fewer than two women with cancer.
    """
    breasts = check_predictions(breasts, ["patient_id", "cancer", "score"])
    labels, scores = breasts["cancer"].to_numpy(), breasts["score"].to_numpy()
    fold = assign_folds(breasts)
    thresholds, calls = [], np.zeros(len(breasts), dtype=bool)
    for value in np.unique(fold):
        own = fold == value
        thresholds.append(choose(labels[~own], scores[~own]))
        calls[own] = scores[own] >= thresholds[-1]
    point = OperatingPoint.of_calls(labels, calls, float(np.median(thresholds)))
    in_sample = at_threshold(labels, scores, choose(labels, scores))
    optimism = {name: getattr(in_sample, name) - getattr(point, name) for name in [*RATES, "f1"]}
    return CrossFit(calls, np.array(thresholds), point, in_sample, optimism)


def _rules() -> dict[str, Choose]:
    by_rate = {f"recall rate {rate:.1%}": partial(threshold_at_recall_rate, rate=rate) for rate in RECALL_RATES}
    by_specificity = {
        f"specificity {value:.0%}": partial(threshold_at_specificity, specificity=value) for value in SPECIFICITIES
    }
    return {**by_rate, **by_specificity, "best F1": threshold_by_f1}


def operating_table(breasts: pd.DataFrame, n: int = 2000) -> pd.DataFrame:
    """The rates of several rules for choosing a threshold, a row for each rule.

    Parameters
    ----------
    breasts
        A row for each breast, with patient_id, cancer and score.
    n
        The number of bootstrap samples of women.

    Returns
    -------
    The columns rule, threshold (median over the folds), and for each of `RATES` `<rate>_in_sample` (chosen on the
    same women), `<rate>` (cross-fitted), `<rate>_low` and `<rate>_high`. The intervals treat the thresholds as
    fixed: they do not include that another sample would give other thresholds.
    """
    breasts = check_predictions(breasts, ["patient_id", "cancer", "score"])
    fits = {rule: cross_fitted(breasts, choose) for rule, choose in _rules().items()}
    limits = rate_intervals(breasts, [fit.calls for fit in fits.values()], n)
    rows = []
    for (rule, fit), intervals in zip(fits.items(), limits, strict=True):
        row: dict[str, str | float] = {"rule": rule, "threshold": fit.point.threshold}
        for name, (low, high) in zip(RATES, intervals, strict=True):
            row |= {f"{name}_in_sample": getattr(fit.in_sample, name), name: getattr(fit.point, name)}
            row |= {f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def rate_intervals(breasts: pd.DataFrame, calls: list[np.ndarray], n: int = 2000) -> list[list[tuple[float, float]]]:
    """Intervals (low, high) of `RATES` for each of `calls`, bool (rows,), over `n` bootstrap samples of women.

    Different women limit each rate: those who have a breast with cancer, one without, one recalled, and all women.
    """
    women = Women.of(breasts, "patient_id")
    each = [_outcomes(breasts["cancer"], called) for called in calls]
    # the calls are fixed, so a draw only adds the women's counts: one product for all rules and draws
    by_woman = pd.DataFrame(np.hstack(each)).groupby(women.codes).sum().to_numpy(dtype=float)  # (women, 4 x calls)
    sums = np.concatenate([counts @ by_woman for counts in in_chunks(women.drawn(n, seed=0))]).reshape(n, -1, 4)
    found = []
    for i, called in enumerate(calls):
        groups = [women.positives, women.negatives, len(np.unique(women.codes[called])), women.total]
        parts = zip(_rates(each[i].sum(axis=0)).tolist(), _rates(sums[:, i]), groups, strict=True)
        intervals = [draws_interval(whole, draws, women.positives, count) for whole, draws, count in parts]
        found.append([(interval.low, interval.high) for interval in intervals])
    return found
