"""Confidence intervals over women: the bootstrap and paired differences.

Written by hand because `scipy.stats.bootstrap` resamples single observations; here a woman is resampled with all her
images. A *draw* is one bootstrap sample of women.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rsna_nb.metrics.limits import Interval, draws_interval
from rsna_nb.metrics.predictions import check_predictions
from rsna_nb.metrics.weighted import PREPARE, Evaluate, MetricsError, in_chunks

Statistic = str | Callable[[np.ndarray, np.ndarray, np.ndarray], float]  # a name, or f(labels, scores, weights)


def bootstrap(
    predictions: pd.DataFrame, statistic: Statistic, groups: str = "patient_id", n: int = 2000, seed: int = 0
) -> Interval:
    """A metric with its 95 % interval (`draws_interval`) from `n` bootstrap samples of women, called draws.

    A draw takes as many women as there are, with replacement, whether they have cancer or not. Women are resampled
    because images of one woman are not independent. The number of cancers varies from draw to draw as it would from
    sample to sample (cluster bootstrap: Field & Welsh 2007, J. R. Stat. Soc. B 69:369). The same seed gives the same
    draws, so that several metrics can be compared draw by draw.

    Parameters
    ----------
    predictions
        A row for each image or breast, with the columns `groups`, cancer and score.
    statistic
        "auc", "average_precision", "pf1", or a function f(labels, scores, weights) of arrays (rows,), which is called
        once for each draw.
    groups
        The column whose values are resampled with all their rows: the woman.
    n, seed
        The number of draws, 2 or more, and the seed of the random generator.

    Raises
    ------
    MetricsError
        For a fault of the table (`check_predictions`), an unknown statistic, or fewer than 2 draws.

    Examples
    --------
    >>> table = pd.DataFrame({"patient_id": list("aabbccdd"), "cancer": [1, 0, 0, 0, 1, 1, 0, 0]})
    >>> table["score"] = [0.9, 0.2, 0.4, 0.1, 0.3, 0.6, 0.2, 0.5]
    >>> auc = bootstrap(table, "auc", n=200)
    >>> round(auc.estimate, 3), 0 < auc.low < auc.high < 1
    (0.867, True)
    """
    predictions = check_predictions(predictions, [groups, "cancer", "score"])
    evaluate = evaluator(statistic, predictions["cancer"].to_numpy(), predictions["score"].to_numpy())
    return resampled_intervals(Women.of(predictions, groups), {"metric": evaluate}, n, seed)["metric"]


@dataclass(frozen=True)
class Women:
    """The women that are resampled, and how many of them have at least one row with cancer, and at least one without.

    A woman with cancer in one breast counts in both, because AUC and specificity depend on her healthy breast too.
    """

    codes: np.ndarray  # the woman of each row (rows,), 0 to total - 1 in the order of their ids
    positives: int
    negatives: int
    total: int

    @classmethod
    def of(cls, predictions: pd.DataFrame, groups: str) -> "Women":
        """Count the women of a table with the columns `groups` and cancer."""
        codes, names = pd.factorize(predictions[groups], sort=True)
        positives, negatives = (len(np.unique(codes[predictions["cancer"] == value])) for value in (1, 0))
        return cls(codes, positives, negatives, len(names))

    @property
    def rarer(self) -> int:
        """The smaller of `positives` and `negatives`, which limits the precision of an AUC."""
        return min(self.positives, self.negatives)

    def drawn(self, n: int, seed: int) -> np.ndarray:
        """Draw `n` times and return how often each woman is in each draw, (n, women).

        `MetricsError` unless `n` is a whole number of 2 or more.
        """
        if not isinstance(n, int | np.integer):
            raise MetricsError(f"draws must be a whole number, not {n!r}")
        if n < 2:
            raise MetricsError(f"draws must be 2 or more, not {n}")
        # int16: 2,000 draws of 11,913 women take 48 MB, a quarter of what NumPy's default would
        rng, counts = np.random.default_rng(seed), np.empty((n, self.total), dtype=np.int16)
        for draw in counts:
            draw[:] = np.bincount(rng.integers(self.total, size=self.total), minlength=self.total)
        return counts


def evaluator(statistic: Statistic, labels: np.ndarray, scores: np.ndarray) -> Evaluate:
    """Return the function from weights (draws, rows) to the statistic of each draw (draws,)."""
    if callable(statistic):
        return lambda weights: np.array([statistic(labels, scores, row) for row in weights], dtype=float)
    if statistic not in PREPARE:
        raise MetricsError(f"there is no statistic {statistic}: give one of {', '.join(PREPARE)}, or a function")
    return PREPARE[statistic](labels == 1, scores)


def resampled(women: Women, evaluates: list[Evaluate], n: int, seed: int) -> list[tuple[float, np.ndarray]]:
    """Return for each of `evaluates` the metric of all rows, and that of each of the `n` draws (n,)."""
    chunks = []
    for counts in in_chunks(women.drawn(n, seed)):
        weights = np.take(counts.astype(float), women.codes, axis=1)
        chunks.append([evaluate(weights) for evaluate in evaluates])
    whole = np.ones((1, len(women.codes)))  # every row once is the estimate itself
    draws = [np.concatenate(values) for values in zip(*chunks, strict=True)]
    return [(float(evaluate(whole)[0]), values) for evaluate, values in zip(evaluates, draws, strict=True)]


def resampled_intervals(
    women: Women,
    evaluates: Mapping[str, Evaluate],
    n: int,
    seed: int,
    differences: tuple[str, ...] = (),
    widen: float = 1.0,
) -> dict[str, Interval]:
    """The interval of each metric from the same draws; those named in `differences` are not confined to 0-1.

    `widen` is that of `draws_interval`.
    """
    found = zip(evaluates, resampled(women, list(evaluates.values()), n, seed), strict=True)
    return {
        name: draws_interval(estimate, draws, women.positives, women.rarer, name not in differences, widen)
        for name, (estimate, draws) in found
    }


def difference(
    predictions_a: pd.DataFrame, predictions_b: pd.DataFrame, statistic: Statistic, n: int = 2000
) -> Interval:
    """The metric of b minus that of a, both on the same draws, so that what they share cancels out.

    Rows are matched on patient_id and image_id, or on laterality if one has no image_id, in any order.

    Raises
    ------
    MetricsError
        If the two have different rows or labels, or a fault that `bootstrap` finds.
    """
    a, b = matched(predictions_a, predictions_b)
    labels = a["cancer"].to_numpy()
    evaluate_a, evaluate_b = (evaluator(statistic, labels, df["score"].to_numpy()) for df in (a, b))
    evaluates: dict[str, Evaluate] = {"difference": lambda weights: evaluate_b(weights) - evaluate_a(weights)}
    return resampled_intervals(Women.of(a, "patient_id"), evaluates, n, 0, ("difference",))["difference"]


def matched(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return both tables sorted by patient_id and image_id (else laterality).

    `MetricsError` if one has a row twice, or they have different rows or labels.
    """
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
        raise MetricsError(f"{len(alone)} rows are in only one of the two, first {' and '.join(key)} {alone[0]}")
    other = a.index[a["cancer"] != b["cancer"]]
    if len(other):
        raise MetricsError(f"{len(other)} rows differ in cancer, first {' and '.join(key)} {other[0]}")
    return a, b
