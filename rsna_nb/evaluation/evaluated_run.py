"""The checked predictions of a run, and the women that it is evaluated on.

These are the test women if the run has any, else its validation women. The unit is the breast. Its score is
the network's own if the run's `unit` is "breast" or "woman", and otherwise the mean of its images' scores.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from rsna_nb import metrics
from rsna_nb.config import resolve
from rsna_nb.metrics import BreastScore, MetricsError, by_breast, check_predictions, prior_correction, refuse
from rsna_nb.runs import Run, RunError, load_run, readable_runs

FIRST_ROW = 2  # line 1 of predictions.csv is the header; train.csv's faults count its lines likewise


def find_run(run: str, runs_dir: str | Path = "runs") -> Run:
    """A run by its id or path; "" is the newest one that has predictions and whose settings this version knows.

    `RunError` if there is none.
    """
    if run:
        return load_run(run, runs_dir)
    finished = [known for known in readable_runs(runs_dir) if (known.path / "predictions.csv").is_file()]
    if not finished:
        raise RunError(f"no run in {resolve(runs_dir)} has predictions.csv: train one with notebooks/03_train.ipynb")
    return finished[-1]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A run, and a table with a row for each image that it is evaluated on.

    `predictions` has the column corrected_score if the class weights of training are known; `scale` says which
    scores pF1 is computed from.
    """

    run: Run
    split: str  # "test" or "validation"
    predictions: pd.DataFrame
    scale: str

    @cached_property
    def breasts(self) -> pd.DataFrame:
        """A row for each breast: patient_id, laterality, cancer, score and, if known, corrected_score."""
        return scored_breasts(self.predictions)

    @cached_property
    def women(self) -> pd.DataFrame:
        """A row for each woman: patient_id and cancer."""
        return self.breasts.groupby("patient_id")["cancer"].max().reset_index()


def evaluate(run: Run) -> Evaluation:
    """Read and check the predictions of a run.

    Raises
    ------
    MetricsError
        For a fault of predictions.csv (`held_out`), a single woman, or breasts of a single class. The message names
        the file and, for a fault of a row, the line.
    """
    predictions = held_out(run)
    # the checkpoint was chosen on the validation women, so they are used only without test women
    split = "test" if (predictions["split"] == "test").any() else "validation"
    rows = predictions[predictions["split"] == split].reset_index(drop=True)
    cancer = rows.groupby("patient_id")["cancer"].max()
    if len(cancer) < 2 or rows["cancer"].nunique() < 2:
        count = f"{len(cancer)} {split} women, {int(cancer.sum())} of them with cancer"
        raise MetricsError(f"{run.path / 'predictions.csv'}: {count}: an evaluation needs breasts with and without")
    return Evaluation(run, split, *with_corrected_score(run, rows))


def held_out(run: Run) -> pd.DataFrame:
    """The checked table of the run's validation and test images; its index is the line in predictions.csv.

    `MetricsError` names the file and its fault: those of `metrics.check_predictions`, an unknown split or laterality,
    an image that occurs twice, or a woman in both splits.
    """
    try:
        predictions = run.predictions
        return _checked_rows(predictions.set_index(predictions.index + FIRST_ROW))
    except (MetricsError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise MetricsError(f"{run.path / 'predictions.csv'}: {error}") from error


def _checked_rows(predictions: pd.DataFrame) -> pd.DataFrame:
    columns = ["patient_id", "image_id", "laterality", "split"]
    predictions = check_predictions(predictions, [*columns, "cancer", "score"])
    faults = {
        "an image occurs twice": predictions.duplicated(["patient_id", "image_id"]),
        "split is not validation or test": ~predictions["split"].isin(["validation", "test"]),
        "laterality is not L or R": ~predictions["laterality"].isin(["L", "R"]),
        # the checkpoint was chosen on her, so a woman in both splits would make the test optimistic
        "a woman is in both splits": predictions.groupby("patient_id")["split"].transform("nunique") > 1,
    }
    refuse(predictions, faults, columns)
    return predictions


def class_weights(run: Run) -> dict[int, float]:
    """The class weights {0: w0, 1: w1} of the run's training, from the counts in metrics.json.

    Batches with a fixed share of positives weigh them as class weights of that share do. `MetricsError` if the
    run had none, or they are not known.
    """
    if run.imported:
        raise MetricsError("the run was imported, so it is not known how its scores relate to probabilities")
    config = run.config
    try:
        if "examples" in run.metrics:
            count, positives = run.metrics["examples"], run.metrics["positive_examples"]
        else:  # an earlier version, whose examples were images
            count, positives = (run.metrics[name]["train"] for name in ("images", "positives"))
        sampled_share = float(run.metrics["sampled_share"]) if config.imbalance == "balanced_batches" else 0.5
        weights = metrics.training_class_weights(config, int(count), int(positives), sampled_share)
    except (KeyError, TypeError, ValueError) as error:  # damaged JSON and MetricsError are ValueErrors
        raise MetricsError(f"metrics.json does not say how many training images there were: {error}") from error
    if weights is None and config.positive_label < 1:
        raise MetricsError(
            f"scores are not probabilities: the run was trained with positive_label {config.positive_label:g}"
        )
    if weights is None:
        raise MetricsError(f'the run was trained without class weights (imbalance "{config.imbalance}")')
    return weights


def weighs_nothing(run: Run) -> bool:
    """Whether training used the plain cross-entropy, so that the raw scores are probabilities."""
    return not run.imported and run.config.imbalance == "none" and run.config.positive_label == 1


def with_corrected_score(run: Run, images: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Add the column corrected_score if the class weights are known, and return a sentence on the scores pF1 uses.

    pF1 depends on the scale of the scores. It is computed from scores corrected for the class weights, as they are
    submitted. Without known weights, or with a loss that gives no probabilities, the raw scores are used instead.
    """
    try:
        corrected = prior_correction(images["score"], class_weights(run))
    except (MetricsError, RunError) as error:
        return images, f"pF1 is computed from the raw scores: {error}."
    return images.assign(corrected_score=corrected), "pF1 is computed from scores corrected for the class weights."


def scored_breasts(images: pd.DataFrame, how: BreastScore = "mean") -> pd.DataFrame:
    """`by_breast` of the scores and, if the images have these columns, of the corrected scores, and the fold.

    If the network scored breasts, all images of a breast have its score, and so does their mean.
    """
    breasts = by_breast(images, how)
    if "corrected_score" in images:
        corrected = by_breast(images.assign(score=images["corrected_score"]), how)["score"]
        breasts = breasts.assign(corrected_score=corrected)
    return with_fold(breasts, images) if "fold" in images else breasts


def with_fold(breasts: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """The breasts with the fold of their woman, as `predictions` has it."""
    return breasts.assign(fold=breasts["patient_id"].map(predictions.groupby("patient_id")["fold"].first()))
