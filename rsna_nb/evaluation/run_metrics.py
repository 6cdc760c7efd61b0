"""The figures that 04_evaluate shows of one run, with intervals over women."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rsna_nb import metrics
from rsna_nb.evaluation.evaluated_run import Evaluation, class_weights, corrected, weighs_nothing
from rsna_nb.metrics import BreastScore, MetricsError, Women, by_breast, calibration
from rsna_nb.notebook import Markdown, Unavailable, attempt

STATISTICS = {"auc": "AUC", "average_precision": "average precision", "pf1": "pF1"}
GRID = np.linspace(0, 1, 101)


def main_figures(evaluation: Evaluation, n: int) -> pd.DataFrame:
    """AUC, average precision and pF1 with intervals: a row each way of scoring a breast, and one by image.

    Where the run has class weights, rows with the weights corrected for follow; noisy-or, which needs probabilities, is
    left out where they are not known.
    """
    tables = {
        "breast, mean": evaluation.breasts,
        "breast, highest": by_breast(evaluation.predictions, "max"),
        "image": evaluation.predictions,
    }
    ways: dict[str, BreastScore] = {"mean": "mean", "highest": "max", "noisy-or": "noisy_or"}
    if weighs_nothing(evaluation.run):
        tables["breast, noisy-or"] = by_breast(evaluation.predictions, "noisy_or")
    elif not isinstance(attempt(class_weights, evaluation.run), Unavailable):
        tables |= {f"breast, {name}, weights corrected for": corrected(evaluation, how) for name, how in ways.items()}
    return pd.DataFrame({unit: main_intervals(df, n) for unit, df in tables.items()}).T.rename_axis(index="unit")


def main_intervals(predictions: pd.DataFrame, n: int) -> dict[str, metrics.Interval]:
    """AUC, average precision and pF1 of breasts or images, from the same `n` draws of women."""
    return metrics.bootstrap_many(predictions, {words: name for name, words in STATISTICS.items()}, n=n)


def bands(breasts: pd.DataFrame, n: int, seed: int = 0) -> pd.DataFrame:
    """ROC and PR at 101 places, columns curve, x, estimate, low and high: the middle 95 % of `n` draws of women.

    `curve` is "roc", sensitivity by 1 - specificity, or "pr", PPV by sensitivity. Percentiles, so that a band is as
    smooth and rising as its curve; with few women with cancer it is a little too narrow (`metrics.normal_interval`).
    """
    women, read = Women.of(breasts, "patient_id"), curves_reader(breasts)
    if women.rarer < 2:
        raise MetricsError(
            f"a band needs 2 women with cancer and 2 with a breast without, there are {women.rarer} of one kind"
        )
    drawn = np.stack([read(counts[women.codes]) for counts in women.drawn(n, seed)])  # (n, 2, 101)
    low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    whole = read(np.ones(len(breasts)))
    columns = {"x": GRID, "estimate": whole, "low": low, "high": high}
    tables = [
        pd.DataFrame({name: values if name == "x" else values[i] for name, values in columns.items()}) for i in range(2)
    ]
    return pd.concat(tables, keys=["roc", "pr"], names=["curve"]).reset_index("curve").reset_index(drop=True)


def curves_reader(breasts: pd.DataFrame) -> Callable[[np.ndarray], np.ndarray]:
    """Weights (rows,) -> sensitivity and PPV (2, 101) at `GRID`, NaN for a draw of one class."""
    order = np.argsort(-breasts["score"].to_numpy(), kind="stable")
    scores, positive = breasts["score"].to_numpy()[order], breasts["cancer"].to_numpy()[order] == 1
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True))  # of equal scores, which are recalled together

    def read(weights: np.ndarray) -> np.ndarray:
        weights = weights[order]
        hits, alarms = np.cumsum(weights * positive)[last], np.cumsum(weights * ~positive)[last]
        if not hits[-1] or not alarms[-1]:
            return np.full((2, len(GRID)), np.nan)
        sensitivity = np.interp(GRID, np.append(0, alarms / alarms[-1]), np.append(0, hits / hits[-1]))
        reached = np.searchsorted(hits / hits[-1], np.maximum(GRID, 1e-12) - 1e-12)
        return np.stack([sensitivity, (hits / np.maximum(hits + alarms, 1e-12))[reached]])

    return read


@dataclass(frozen=True, eq=False)
class Calibration:
    """Figures of the scores as they are and corrected, the breasts' scores of some ways, and what was corrected for."""

    table: pd.DataFrame
    labels: pd.Series
    scores: Mapping[str, np.ndarray]
    note: Markdown

    @property
    def rounded(self) -> pd.DataFrame:
        return self.table.round(4).rename_axis(None)


def calibrate(evaluation: Evaluation) -> Calibration:
    """Of the breasts: raw, with the class weights corrected for, and Platt, isotonic and temperature by other women."""
    breasts, prior_corrected = evaluation.breasts, attempt(corrected, evaluation)
    ways = {"raw": breasts["score"].to_numpy()}
    if isinstance(prior_corrected, Unavailable):
        note = f"Prior correction is left out: {prior_corrected.reason}."
    else:
        weights = class_weights(evaluation.run)
        note = (
            f"The class weights that prior correction undoes: {weights[0]:.3f} without cancer, {weights[1]:.3f} with."
        )
        ways["prior-corrected"] = prior_corrected["score"].to_numpy()
    ways |= {method: calibration.recalibrated(breasts, method) for method in calibration.FIT}
    shown = {way: scores for way, scores in ways.items() if way not in ("isotonic", "temperature")}
    return Calibration(calibration.calibration_table(breasts["cancer"], ways), breasts["cancer"], shown, Markdown(note))
