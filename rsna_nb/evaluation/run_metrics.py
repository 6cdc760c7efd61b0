"""The metrics that 04_evaluate shows of one run, with intervals over women."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rsna_nb import metrics
from rsna_nb.evaluation.evaluated_run import Evaluation, class_weights, scored_breasts, weighs_nothing
from rsna_nb.metrics import Interval, MetricsError, Women, by_breast, calibration, check_predictions
from rsna_nb.notebook import Markdown, Unavailable, attempt

STATISTICS = {"auc": "AUC", "average_precision": "average precision", "pf1": "pF1"}
RAW_PF1 = "pF1, raw scores"
MEASURES = {"brier": "Brier score", "ece": "ECE", "mean_score": "mean score", "observed": "share with cancer"}
GRID = np.linspace(0, 1, 101)


def main_metrics(evaluation: Evaluation, n: int) -> pd.DataFrame:
    """AUC, average precision and pF1, by breast and by image.

    Returns
    -------
    A row for each unit: the breast scored by the mean or by the highest of its images, the image, and the breast
    scored by noisy-or if the scores are probabilities or can be corrected. If the network scored breasts, there is
    only the row "breast". The first row is that of `Evaluation.breasts`. The columns are those of `main_intervals`.
    """
    images = evaluation.predictions
    if metrics.scores_breasts(images):
        rows = {"breast": main_intervals(evaluation.breasts, n)}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="unit")
    tables = {
        "breast, mean": evaluation.breasts,
        "breast, highest": scored_breasts(images, "max"),
        "image": images,
    }
    if "corrected_score" in images:
        tables["breast, noisy-or"] = by_breast(images.assign(score=images["corrected_score"]), "noisy_or")
    elif weighs_nothing(evaluation.run):
        tables["breast, noisy-or"] = by_breast(images, "noisy_or")
    rows = {unit: main_intervals(df, n) for unit, df in tables.items()}
    # noisy-or is made from corrected scores alone, so its cell for raw pF1 is empty
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="unit").fillna("")


def main_intervals(predictions: pd.DataFrame, n: int) -> dict[str, Interval]:
    """AUC, average precision and pF1 of breasts or images, from the same `n` bootstrap samples of women.

    If the table has the column corrected_score, "pF1" is computed from it, and "pF1, raw scores" follows.
    """
    predictions = check_predictions(predictions, ["patient_id", "cancer", "score"])
    labels = predictions["cancer"].to_numpy()
    evaluates = {
        words: metrics.evaluator(name, labels, predictions[column].to_numpy())
        for words, (name, column) in score_columns(predictions).items()
    }
    return metrics.resampled_intervals(Women.of(predictions, "patient_id"), evaluates, n, seed=0)


def score_columns(predictions: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """For each metric by its name in tables: its statistic, and the column with the scores that it is computed from."""
    columns = {words: (name, "score") for name, words in STATISTICS.items()}
    if "corrected_score" in predictions:
        columns |= {"pF1": ("pf1", "corrected_score"), RAW_PF1: ("pf1", "score")}
    return columns


def bands(breasts: pd.DataFrame, n: int) -> pd.DataFrame:
    """The ROC and precision-recall curves at 101 points, with the middle 95 % of `n` bootstrap samples of women.

    The limits are percentiles, so that a band is as smooth and rising as its curve. With few women with cancer it is
    too narrow (coverage in `metrics.draws_interval`).

    Returns
    -------
    The columns curve ("roc": sensitivity by 1 - specificity; "pr": PPV by sensitivity), x, estimate, low and high.

    Raises
    ------
    MetricsError
        With fewer than 2 women with cancer, or with a breast without.
    """
    women, read = Women.of(breasts, "patient_id"), _curves_reader(breasts)
    if women.rarer < 2:
        raise MetricsError(
            f"a band needs 2 women with cancer and 2 with a breast without, there are {women.rarer} of one kind"
        )
    # one draw at a time: the sorted sums of all draws at once would take gigabytes on a large table
    drawn = np.stack([read(counts[women.codes]) for counts in women.drawn(n, seed=0)])  # (n, 2, 101)
    low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    whole = read(np.ones(len(breasts)))
    tables = [
        pd.DataFrame({"curve": name, "x": GRID, "estimate": whole[i], "low": low[i], "high": high[i]})
        for i, name in enumerate(("roc", "pr"))
    ]
    return pd.concat(tables, ignore_index=True)


def _curves_reader(breasts: pd.DataFrame) -> Callable[[np.ndarray], np.ndarray]:
    """Prepare the function from weights (rows,) to sensitivity and PPV (2, 101) at `GRID`; NaN for a single class.

    PPV at a sensitivity is that of the highest threshold which reaches it, as PPV between two thresholds is undefined.
    """
    order = np.argsort(-breasts["score"].to_numpy(), kind="stable")
    scores, positive = breasts["score"].to_numpy()[order], breasts["cancer"].to_numpy()[order] == 1
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True))  # of equal scores, which are recalled together

    def read(weights: np.ndarray) -> np.ndarray:
        weights = weights[order]
        hits, alarms = np.cumsum(weights * positive)[last], np.cumsum(weights * ~positive)[last]
        if not hits[-1] or not alarms[-1]:
            return np.full((2, len(GRID)), np.nan)
        sensitivity = np.interp(GRID, np.append(0, alarms / alarms[-1]), np.append(0, hits / hits[-1]))
        reached = np.searchsorted(hits / hits[-1], np.maximum(GRID, 1e-12) - 1e-12)  # 1e-12: rounding of the division
        return np.stack([sensitivity, (hits / np.maximum(hits + alarms, 1e-12))[reached]])

    return read


@dataclass(frozen=True, eq=False)
class Calibration:
    """How well calibrated the raw and the corrected scores of the breasts are."""

    table: pd.DataFrame  # `calibration.calibration_table`
    labels: pd.Series
    scores: Mapping[str, np.ndarray]  # the versions that are plotted
    note: Markdown  # which class weights were corrected for, or why none were

    @property
    def rounded(self) -> pd.DataFrame:
        """The table as a notebook shows it."""
        return self.table.round(4).rename_axis(None).rename(columns=MEASURES)


def calibrate(evaluation: Evaluation) -> Calibration:
    """Compare raw scores with prior-corrected ones and with those of Platt, isotonic and temperature scaling.

    The last three are fitted on other women than those whose scores they change. `MetricsError` with fewer than two
    women with cancer.
    """
    breasts, weights = evaluation.breasts, attempt(class_weights, evaluation.run)
    ways = {"raw": breasts["score"].to_numpy()}
    if isinstance(weights, Unavailable):
        note = f"Prior correction is not available: {weights.reason}."
    else:
        note = f"Prior correction reverses the class weights {weights[0]:.3f} without cancer and {weights[1]:.3f} with."
        ways["prior-corrected"] = breasts["corrected_score"].to_numpy()
    ways |= {method: calibration.recalibrated(breasts, method) for method in calibration.FIT}
    # five curves would hide each other; the table has all of them
    drawn = {way: scores for way, scores in ways.items() if way not in ("isotonic", "temperature")}
    return Calibration(calibration.calibration_table(breasts["cancer"], ways), breasts["cancer"], drawn, Markdown(note))
