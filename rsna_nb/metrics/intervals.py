"""Confidence intervals over women: the bootstrap, paired differences and subgroups."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from scipy.stats import binomtest
from scipy.stats import t as student

from rsna_nb.metrics.figures import PREPARE, Evaluate, MetricsError, in_parts
from rsna_nb.metrics.predictions import check_columns, check_predictions

Statistic = str | Callable[[np.ndarray, np.ndarray, np.ndarray], float]  # a name, or f(labels, scores, weights)


@dataclass(frozen=True, eq=False)
class Interval:
    """A figure and its confidence interval over women; `low` and `high` are NaN where none can be made."""

    estimate: float
    low: float
    high: float
    draws: np.ndarray  # the figure of each draw (n,), NaN where a draw leaves it undefined
    positives: int  # women with cancer

    def __str__(self) -> str:
        if np.isnan(self.estimate):
            return "not defined"
        limits = "no interval" if np.isnan(self.low) else f"{self.low:.3f} to {self.high:.3f}"
        return f"{self.estimate:.3f} ({limits})"


UNDEFINED = Interval(float("nan"), float("nan"), float("nan"), np.array([]), 0)
FEW = 10  # women with cancer, or without, below which an interval is rough


def bootstrap(
    predictions: pd.DataFrame,
    statistic: Statistic,
    groups: str = "patient_id",
    n: int = 2000,
    seed: int = 0,
) -> Interval:
    """A figure with its interval from `n` draws of women with all their rows; see `bootstrap_many`."""
    return bootstrap_many(predictions, {"figure": statistic}, groups, n, seed)["figure"]


def bootstrap_many(
    predictions: pd.DataFrame,
    statistics: Mapping[str, Statistic],
    groups: str = "patient_id",
    n: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Several figures with intervals from the same draws of women (`normal_interval`).

    A draw takes as many women as there are, with replacement, cancer or not: the images of one woman are not
    independent, and the number of cancers varies as it would in another sample (Field & Welsh 2007, J. R. Stat.
    Soc. B 69:369, cluster bootstrap). A draw is a weight for each row, so that nothing is sorted again.

    Parameters
    ----------
    predictions
        A row an image or a breast, with `groups`, cancer and score; `MetricsError` where these have faults.
    statistics
        "auc", "average_precision", "pf1", or f(labels, scores, weights), all (rows,), called once a draw.
    """
    predictions = check_predictions(predictions, [groups, "cancer", "score"])
    labels, scores = predictions["cancer"].to_numpy(), predictions["score"].to_numpy()
    evaluates = [evaluator(statistic, labels, scores) for statistic in statistics.values()]
    women = Women.of(predictions, groups)
    figures = resampled(women, evaluates, n, seed)
    return {
        name: normal_interval(estimate, draws, women.positives, women.rarer)
        for name, (estimate, draws) in zip(statistics, figures, strict=True)
    }


@dataclass(frozen=True)
class Women:
    """Whom the draws are of: the woman of each row, and how many women have a row with cancer, and one without.

    A woman with cancer in one breast has both: AUC and specificity hang on her healthy breast too.
    """

    codes: np.ndarray  # (rows,) in 0 to total - 1, in the order of their ids
    positives: int
    negatives: int
    total: int

    @classmethod
    def of(cls, predictions: pd.DataFrame, groups: str) -> "Women":
        codes, names = pd.factorize(predictions[groups], sort=True)
        positives, negatives = (len(np.unique(codes[predictions["cancer"] == value])) for value in (1, 0))
        return cls(codes, positives, negatives, len(names))

    @property
    def rarer(self) -> int:
        return min(self.positives, self.negatives)

    def drawn(self, n: int, seed: int) -> np.ndarray:
        """How often each woman is in each draw: (n, women); `MetricsError` unless `n` is 2 or more."""
        if not isinstance(n, int | np.integer):
            raise MetricsError(f"draws must be a whole number, not {n!r}")
        if n < 2:
            raise MetricsError(f"draws must be 2 or more, not {n}")
        rng, counts = np.random.default_rng(seed), np.empty((n, self.total), dtype=np.int16)
        for draw in counts:
            draw[:] = np.bincount(rng.integers(self.total, size=self.total), minlength=self.total)
        return counts


def evaluator(statistic: Statistic, labels: np.ndarray, scores: np.ndarray) -> Evaluate:
    if callable(statistic):
        return lambda weights: np.array([statistic(labels, scores, row) for row in weights], dtype=float)
    if statistic not in PREPARE:
        raise MetricsError(f"there is no statistic {statistic}; there are {', '.join(PREPARE)}, and functions")
    return PREPARE[statistic](labels == 1, scores)


def resampled(women: Women, evaluates: list[Evaluate], n: int, seed: int) -> list[tuple[float, np.ndarray]]:
    """(the figure on all rows, the figure of each draw (n,)) of each of `evaluates`."""
    parts = []
    for counts in in_parts(women.drawn(n, seed)):
        weights = np.take(counts.astype(float), women.codes, axis=1)
        parts.append([evaluate(weights) for evaluate in evaluates])
    whole = np.ones((1, len(women.codes)))
    draws = [np.concatenate(values) for values in zip(*parts, strict=True)]
    return [(float(evaluate(whole)[0]), values) for evaluate, values in zip(evaluates, draws, strict=True)]


def normal_interval(
    estimate: float, draws: np.ndarray, positives: int, groups: int, on_logits: bool = True
) -> Interval:
    """The interval by the draws' standard deviation and Student's t quantile for `groups` - 1 degrees of freedom.

    `groups`, m, is how many women the figure hangs on. Draws spread less than samples do, by sqrt((m - 1) / m), which
    is made good (Hesterberg 2015, Am. Stat. 69:371). Where the estimate and all draws lie in 0-1 the interval is
    normal on the logit scale, so that it never leaves 0-1 (Pepe 2003, The Statistical Evaluation of Medical Tests,
    5.2); elsewhere, or without `on_logits`, it is on the figure's own scale. A percentile interval is too narrow with
    few women with cancer: it makes nothing good, knows no t quantile, and lies too high where the
    estimate is near 1. tests/bench/bench_intervals.py counts how often each covers the truth.

    Draws that leave the figure undefined are left out. No interval with fewer than 2 women with cancer, or in
    `groups`, or where all draws are equal.
    """
    known = draws[~np.isnan(draws)]
    nan = float("nan")
    if min(positives, groups) < 2 or len(known) < 2 or np.ptp(known) < 1e-9 or np.isnan(estimate):
        return Interval(estimate, nan, nan, draws, positives)
    quantile = student.ppf(0.975, groups - 1) * np.sqrt(groups / (groups - 1))
    if on_logits and 0 < estimate < 1 and known.min() >= 0 and known.max() <= 1:
        low, high = expit(logit(estimate) + quantile * logit_deviation(estimate, known) * np.array([-1, 1]))
    else:
        low, high = estimate + quantile * known.std(ddof=1) * np.array([-1, 1])
    return Interval(estimate, float(low), float(high), draws, positives)


def exact_limits(share: float, women: int) -> tuple[float, float]:
    """Exact (Clopper-Pearson) interval of a share of 0 or 1 among `women`, where the bootstrap has no spread."""
    if women < 1:
        return float("nan"), float("nan")
    limits = binomtest(round(share * women), women).proportion_ci(method="exact")
    return float(limits.low), float(limits.high)


def logit_deviation(estimate: float, draws: np.ndarray) -> float:
    """The standard deviation of the draws' logits, or by the delta method sd / (p (1 - p)), whichever is larger.

    A draw of 0 or 1, whose logit is infinite, counts as the most extreme of the others; where many are, as for a
    sensitivity among few women, the delta method is the larger.
    """
    delta = draws.std(ddof=1) / (estimate * (1 - estimate))
    inside = draws[(draws > 0) & (draws < 1)]
    if not len(inside):
        return float(delta)
    return float(max(delta, logit(np.clip(draws, inside.min(), inside.max())).std(ddof=1)))


def difference(
    predictions_a: pd.DataFrame,
    predictions_b: pd.DataFrame,
    statistic: Statistic,
    n: int = 2000,
    seed: int = 0,
) -> Interval:
    """The figure of b less that of a, both on the same draws of women: normal on the figure's own scale.

    Rows are matched on patient_id and image_id, or laterality where there is no image_id, in any order.

    Raises
    ------
    MetricsError
        Where the two have other rows or other labels, or a fault that `bootstrap_many` finds.
    """
    a, b = matched(predictions_a, predictions_b)
    labels = a["cancer"].to_numpy()
    evaluate_a, evaluate_b = (evaluator(statistic, labels, df["score"].to_numpy()) for df in (a, b))
    women = Women.of(a, "patient_id")
    [(estimate, draws)] = resampled(women, [lambda weights: evaluate_b(weights) - evaluate_a(weights)], n, seed)
    return normal_interval(estimate, draws, women.positives, women.rarer, on_logits=False)


def matched(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables in the order of their keys, which must be the same and have the same labels."""
    key = ["patient_id", "image_id" if "image_id" in a and "image_id" in b else "laterality"]
    tables = []
    for name, df in (("first", a), ("second", b)):
        df = check_predictions(df, [*key, "cancer", "score"])
        df = df.set_index([df[column].astype(str) for column in key]).sort_index()
        if df.index.has_duplicates:
            raise MetricsError(f"the {name} predictions have {' '.join(df.index[df.index.duplicated()][0])} twice")
        tables.append(df)
    a, b = tables
    alone = a.index.symmetric_difference(b.index)
    if len(alone):
        raise MetricsError(f"{len(alone)} rows are in one of the two only, first {' and '.join(key)} {alone[0]}")
    other = a.index[a["cancer"] != b["cancer"]]
    if len(other):
        raise MetricsError(f"{len(other)} rows differ in cancer, first {' and '.join(key)} {other[0]}")
    return a, b


def subgroups(predictions: pd.DataFrame, column: str, n: int = 2000) -> pd.DataFrame:
    """The AUC for each value of `column`, the empty ones as "unknown", each on its own draws of its women.

    The columns are value and those of `group_row`. A woman can be in several of them.
    """
    predictions = check_predictions(predictions, ["patient_id", "cancer", "score"])
    check_columns(predictions, [column])
    known = [(value, df) for value, df in predictions.groupby(column, sort=True, observed=True)]
    unknown = predictions[predictions[column].isna()]
    reasons = {(0,): "no women with cancer", (1,): "all rows have cancer"}
    return pd.DataFrame(
        [
            {"value": value} | group_row(df, reasons.get(tuple(df["cancer"].unique()), ""), bootstrap, "auc", n=n)
            for value, df in known + [("unknown", unknown)] * (len(unknown) > 0)
        ]
    )


def group_row(
    df: pd.DataFrame, reason: str, figure: Callable[..., Interval], *arguments: Any, **options: Any
) -> dict[str, Any]:
    """A group's line in a table: its women, and `figure` of its rows or the `reason` why there is none.

    The keys are rows, women, positive_women, estimate, low, high, small (fewer than `FEW` women with cancer or with
    a row without) and reason (else "").
    """
    women = Women.of(df, "patient_id")
    found = UNDEFINED if reason else figure(df, *arguments, **options)
    return {
        "rows": len(df),
        "women": women.total,
        "positive_women": women.positives,
        "estimate": found.estimate,
        "low": found.low,
        "high": found.high,
        "small": women.rarer < FEW,
        "reason": reason,
    }
