"""A run's predictions -> everything that 04_evaluate shows, but for the figures and the words.

The women are the test women where a run has some, else its validation women. The unit is the breast, its score
the mean of its images' scores; intervals are over women.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from rsna_nb import metrics
from rsna_nb.config import resolve
from rsna_nb.metadata import DEMO_DIR, kaggle
from rsna_nb.metrics import BreastScore, CrossFit, MetricsError, Women, by_breast, calibration, check_predictions
from rsna_nb.notebook import Markdown, Unavailable, UnavailableError, attempt
from rsna_nb.prepare import image_file, store_path
from rsna_nb.runs import Run, RunError, list_runs, load_run

STATISTICS = {"auc": "AUC", "average_precision": "average precision", "pf1": "pF1"}
PREPARE_FIRST = "run notebooks/00_prepare.ipynb with this data_dir and img_size"
GRID = np.linspace(0, 1, 101)


def find_run(run: str, runs_dir: str | Path = "runs") -> Run:
    """A run by its id or path, "" for the newest that has predictions; `RunError` where there is none."""
    if run:
        return load_run(run, runs_dir)
    finished = [known for known in list_runs(runs_dir) if (known.path / "predictions.csv").is_file()]
    if not finished:
        raise RunError(f"no run in {resolve(runs_dir)} has predictions.csv: train one with notebooks/03_train.ipynb")
    return finished[-1]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A run and the images that it is judged on, a row each."""

    run: Run
    split: str  # "test" or "validation"
    predictions: pd.DataFrame

    @cached_property
    def breasts(self) -> pd.DataFrame:
        return by_breast(self.predictions)

    @cached_property
    def women(self) -> pd.DataFrame:
        """A row a woman: patient_id, cancer."""
        return self.breasts.groupby("patient_id")["cancer"].max().reset_index()


def evaluate(run: Run) -> Evaluation:
    """The checked rows of a run.

    Raises
    ------
    MetricsError
        For a fault of predictions.csv (`metrics.check_predictions`), an image that stands in it twice, one woman
        alone, or women of one class alone; the message names the file.
    """
    predictions = held_out(run)
    split = "test" if (predictions["split"] == "test").any() else "validation"
    rows = predictions[predictions["split"] == split].reset_index(drop=True)
    cancer = rows.groupby("patient_id")["cancer"].max()
    if len(cancer) < 2 or rows["cancer"].nunique() < 2:
        count = f"{len(cancer)} {split} women, {int(cancer.sum())} of them with cancer"
        raise MetricsError(f"{run.path / 'predictions.csv'}: {count}: a detector is judged on both kinds of breast")
    return Evaluation(run, split, rows)


def held_out(run: Run) -> pd.DataFrame:
    """The run's validation and test images, a row each, checked; `MetricsError` names the file and its fault."""
    try:
        return checked_rows(run.predictions)
    except (MetricsError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise MetricsError(f"{run.path / 'predictions.csv'}: {error}") from error


def checked_rows(predictions: pd.DataFrame) -> pd.DataFrame:
    predictions = check_predictions(predictions, ["patient_id", "image_id", "laterality", "split", "cancer", "score"])
    twice = predictions.duplicated(["patient_id", "image_id"])
    if twice.any():
        raise MetricsError(f"{twice.sum()} images stand in it twice, first {predictions[twice].iloc[0]['image_id']}")
    for column, words in (("split", ["validation", "test"]), ("laterality", ["L", "R"])):
        others = predictions[~predictions[column].isin(words)]
        if len(others):
            first = others.iloc[0]
            raise MetricsError(
                f"{column} must be {' or '.join(words)}, not {first[column]}, in {len(others)} rows, first in row "
                f"{first.name}: patient_id {first['patient_id']}, image_id {first['image_id']}"
            )
    both = predictions.groupby("patient_id")["split"].nunique()
    if both.max() > 1:
        raise MetricsError(f"{(both > 1).sum()} women are in both splits, first patient_id {both.idxmax()}")
    return predictions


def class_weights(run: Run) -> dict[int, float]:
    """The weights that training gave the classes, from the counts in metrics.json; `MetricsError` for none.

    Batches with a fixed share of positives weigh them as class weights of that share would.
    """
    config = run.config
    if config.positive_label < 1:
        raise MetricsError(
            f"scores are not probabilities: the run was trained with positive_label {config.positive_label:g}"
        )
    if config.imbalance not in ("class_weight", "balanced_batches"):
        raise MetricsError(f'the run was trained without class weights (imbalance "{config.imbalance}")')
    try:
        images, positives = (int(run.metrics[name]["train"]) for name in ("images", "positives"))
        share = 0.5 if config.imbalance == "class_weight" else float(run.metrics["sampled_share"])
    except (KeyError, TypeError, ValueError) as error:  # json.JSONDecodeError among them
        raise MetricsError(f"metrics.json does not say how many training images there were: {error}") from error
    try:
        return metrics.class_weights_of(images, positives, share)
    except MetricsError as error:
        raise MetricsError(f"metrics.json, of the training images: {error}") from error


def weighs_nothing(run: Run) -> bool:
    """Whether training was by the plain cross-entropy, so that the scores are probabilities as they are."""
    return run.config.imbalance == "none" and run.config.positive_label == 1


def corrected(evaluation: Evaluation, how: BreastScore = "mean") -> pd.DataFrame:
    """The breasts with the class weights corrected for in each image's score first; `MetricsError` where there were
    none."""
    weights = class_weights(evaluation.run)
    scores = calibration.prior_correction(evaluation.predictions["score"], weights)
    return by_breast(evaluation.predictions.assign(score=scores), how)


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


def data_folder(run: Run) -> Path:
    """Where the run's data are, as `metadata.find_data` would find them; nothing is generated."""
    return resolve(run.config.data_dir) if run.config.data_dir else kaggle.mounted() or resolve(DEMO_DIR)


def examples(evaluation: Evaluation, fit: CrossFit, count: int) -> dict[str, pd.DataFrame]:
    """Up to `count` breasts a kind, by the highest-scoring image of each, which is in `file`.

    The kinds are hits (cancer and recalled, highest scores first), misses (cancer and not recalled, lowest first) and
    false alarms (recalled without cancer, highest first). `UnavailableError` where the store lacks a picture.
    """
    if count < 1:
        raise UnavailableError("no pictures were asked for (the parameter pictures is 0)")
    run, breasts = evaluation.run, evaluation.breasts.assign(called=fit.calls)
    store = store_path(resolve(run.config.store_dir), data_folder(run), run.config.img_size)
    if not store.is_dir():
        raise UnavailableError(f"the store of prepared pictures {store} is not there: {PREPARE_FIRST}")
    images = evaluation.predictions.sort_values("score", ascending=False, kind="stable")
    images = images.drop_duplicates(["patient_id", "laterality"]).rename(columns={"score": "image_score"})
    df = breasts.drop(columns="cancer").merge(images, on=["patient_id", "laterality"])
    df["file"] = [str(image_file(store, *ids)) for ids in zip(df["patient_id"], df["image_id"], strict=True)]
    cancer, called = df["cancer"] == 1, df["called"]
    found = {
        "hits": df[cancer & called].nlargest(count, "score"),
        "misses": df[cancer & ~called].nsmallest(count, "score"),
        "false alarms": df[~cancer & called].nlargest(count, "score"),
    }
    gone = [file for rows in found.values() for file in rows["file"] if not Path(file).is_file()]
    if gone:
        raise UnavailableError(f"{len(gone)} pictures are not in the store, first {gone[0]}: {PREPARE_FIRST}")
    return found
