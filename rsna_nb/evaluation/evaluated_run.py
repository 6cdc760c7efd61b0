"""A run's predictions, checked, and the women that they are evaluated on.

The women are the test women where a run has some, else its validation women. The unit is the breast, its score
the mean of its images' scores.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from rsna_nb import metrics
from rsna_nb.config import resolve
from rsna_nb.metrics import BreastScore, MetricsError, by_breast, calibration, check_predictions
from rsna_nb.runs import Run, RunError, list_runs, load_run


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
