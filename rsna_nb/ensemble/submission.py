"""A run or an ensemble and a data set's test images -> the scores of a submission to the RSNA challenge.

A breast's score is the mean of its images' scores. The challenge's metric, pF1, treats scores as probabilities. The
class weights that a run was trained with are therefore corrected for, unless raw scores are requested. Calls (0 or 1)
are made by a threshold on raw scores, the scale on which thresholds are chosen. Nothing is downloaded.
"""

import logging
from dataclasses import replace

import numpy as np
import pandas as pd

from rsna_nb import inference, metrics
from rsna_nb.config import ConfigError
from rsna_nb.ensemble.combine import Ensemble
from rsna_nb.ensemble.model_pool import class_weights_of
from rsna_nb.ensemble.submission_file import SubmissionError, check, named, set_aside, submission_of, write
from rsna_nb.ensemble.submission_images import (
    choose_data,
    describe_data,
    images_of,
    trained_on_generated,
    validation_images,
)
from rsna_nb.evaluation import with_fold
from rsna_nb.metadata import MetadataError
from rsna_nb.metrics import MetricsError, cross_fitted, prior_correction, threshold_by_f1
from rsna_nb.notebook import Unavailable, attempt

log = logging.getLogger(__name__)

__all__ = [
    "SubmissionError",
    "check",
    "choose_data",
    "describe_data",
    "images_of",
    "set_aside",
    "submission_of",
    "trained_on_generated",
    "write",
]

WAYS = {
    "raw": "raw scores",
    "probability": "probabilities, corrected for class weights",
    "calls": "calls at the threshold",
}


def scale(ensemble: Ensemble, scores: str, as_calls: bool = False) -> Ensemble:
    """The ensemble with the scores that will be submitted.

    Parameters
    ----------
    ensemble
        The ensemble with raw scores.
    scores
        "probability": corrected for each run's class weights (`Ensemble.prior_corrected`). "raw": as predictions.csv.
    as_calls
        Whether calls will be submitted. They are made from raw scores.

    Raises
    ------
    SubmissionError
        If the scores cannot be corrected, or `scores` is another word.
    """
    if scores not in ("probability", "raw"):
        raise SubmissionError(f'scores must be "probability" or "raw", not {scores!r}')
    if scores == "raw" or as_calls:  # thresholds are chosen on raw scores
        return ensemble
    try:
        return ensemble.prior_corrected()
    except MetricsError as error:
        raise SubmissionError(f'{error}: set scores to "raw", or as_calls to true') from error


def with_flips(ensemble: Ensemble, flips: bool = True) -> Ensemble:
    """The ensemble whose validation scores are means over the image and its mirror images, as new scores will be.

    A threshold, or a comparison with validation scores, holds only for scores that were made in the same way. The
    validation images are scored again from the files that the runs were trained on.

    Raises
    ------
    SubmissionError
        If these files are missing, or cannot be read.
    """
    if not flips or not ensemble.pool.of("validation").any():
        return ensemble
    pool = ensemble.pool
    # The runs' own folder, not the one that is scored: two data sets may use the same ids.
    try:
        rows = validation_images(ensemble, choose_data(ensemble))
    except (SubmissionError, MetadataError) as error:
        if ensemble.way == "rank":  # new scores with flips would be ranked among validation scores without
            raise ConfigError(f"flips: an ensemble of ranks needs its validation images ({error})") from error
        raise SubmissionError(f"the validation images cannot be scored with flips: {error}") from error
    scores = pool.scores[pool.of("validation")].reset_index(drop=True)
    for run in pool.runs:
        own = scores[run.id].notna()  # of fold runs, each scored the women of its own fold
        # Four times the work of the validation images; on RSNA about as many files as the hidden test set.
        found = inference.predict(run, rows.loc[own, "path"].tolist(), flips=True, images=rows[own])
        unreadable = found["error"].to_numpy() != ""
        if unreadable.any():
            ids = rows.loc[own, "image_id"][unreadable]
            raise SubmissionError(f"{named(ids)} of the validation images can no longer be read")
        scores.loc[own, run.id] = found["score"].to_numpy()
    return replace(ensemble, pool=replace(pool, rows=rows.drop(columns="path"), scores=scores))


def score_images(ensemble: Ensemble, images: pd.DataFrame, flips: bool = False) -> pd.DataFrame:
    """The images with `score` (0-1, NaN if a file cannot be read), `error` (the reason, else "") and `notes`."""
    scores = inference.predict_by_runs(ensemble.pool.runs, images["path"].tolist(), flips=flips, images=images)
    said = {name: scores[name].to_numpy() for name in ("error", "notes")}
    return images.assign(score=ensemble.scores(scores), **said)


def prevalence(ensemble: Ensemble) -> float:
    """The share of breasts with cancer, 0-1, in the table that the first run was trained on.

    For an imported run, it is the share in the published training data.
    """
    run = ensemble.pool.runs[0]
    if run.imported:
        return float(run.imported["prevalence"])
    try:
        return run.metrics["positive_breasts"] / run.metrics["breasts"]
    except KeyError as error:
        raise SubmissionError(f"metrics.json of run {run.id} does not say how many breasts had cancer") from error


def score_of_unreadable(ensemble: Ensemble) -> float:
    """The score of a breast without a readable file: `prevalence`, converted to the scale of the ensemble's scores.

    For a run with class weights this is the score that is corrected to the prevalence, about 0.5 by default. For a run
    whose scores are not probabilities it is the mean of its validation scores; an imported run has none, and gets
    `prevalence` itself.
    """
    prior, row = prevalence(ensemble), pd.DataFrame(index=[0])
    for run in ensemble.pool.runs:
        try:
            weights = class_weights_of(run)
            row[run.id] = prior_correction([prior], {0: weights[1], 1: weights[0]})  # swapped: probability -> raw
        except MetricsError:
            # No probability can be converted to such a score; the mean score hardly changes the order of breasts.
            known = ensemble.pool.scores.loc[ensemble.pool.of("validation"), run.id]
            row[run.id] = known.mean() if len(known) else prior
    return float(ensemble.scores(row)[0])


def score_breasts(images: pd.DataFrame, unreadable: float) -> pd.DataFrame:
    """A row per breast: prediction_id, files, readable and score.

    The score is the mean over the readable files, or `unreadable` if there are none.
    """
    breasts = images.groupby("prediction_id", sort=False)  # in the order of test.csv
    df = breasts.agg(files=("score", "size"), readable=("score", "count"), score=("score", "mean")).reset_index()
    return df.assign(score=df["score"].fillna(unreadable))


def validation_breasts(ensemble: Ensemble) -> pd.DataFrame:
    """The ensemble's validation breasts: a row for each with fold, cancer and score."""
    if not ensemble.pool.of("validation").any():
        raise SubmissionError(f"{ensemble.name} was imported and has no validation scores")
    # With fold, so that a threshold is chosen across the folds of the models and not across new ones.
    rows = ensemble.predictions[ensemble.pool.of("validation")]
    return with_fold(metrics.by_breast(rows), rows)


def threshold_of(ensemble: Ensemble | Unavailable, given: float = 0.0) -> float:
    """The threshold of calls.

    Parameters
    ----------
    ensemble
        The ensemble with raw scores, or `Unavailable` with the reason why its validation scores are not known.
    given
        The threshold, in 0-1. For 0 it is the median of the thresholds with the best F1, each chosen on other folds
        (`metrics.cross_fitted`); for an imported detector it is the published one, which is logged.

    Raises
    ------
    ConfigError
        For a threshold outside 0-1.
    SubmissionError, MetricsError
        If one must be chosen and the validation scores are not known, or belong to fewer than two women with cancer; or
        if an imported detector has no published threshold for its `reading`.
    """
    _check_threshold(given)
    if given:
        return given
    if isinstance(ensemble, Unavailable):
        raise SubmissionError(f"{ensemble.reason}: set threshold to a score from 0 to 1, or flips to false")
    if not ensemble.pool.of("validation").any():
        return _published_threshold(ensemble)
    try:
        return cross_fitted(validation_breasts(ensemble), threshold_by_f1).point.threshold
    except MetricsError as error:
        raise MetricsError(f"{error}: set the parameter threshold to a score from 0 to 1") from error


def _published_threshold(ensemble: Ensemble) -> float:
    found = {run.imported.get("threshold") for run in ensemble.pool.runs}
    level = found.pop() if len(found) == 1 else None
    if level is None:
        raise SubmissionError(
            f"{ensemble.name} has no validation scores to choose a threshold on, and none was published for its "
            "setting of reading: set the parameter threshold to a score from 0 to 1"
        )
    images = ensemble.pool.runs[0].imported["images"]
    log.warning("threshold %g was published with the detector and not chosen here; images are %s", level, images)
    return float(level)


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold must be a score from 0 to 1, or 0 to have one chosen, not {threshold}")


def validation_pf1(ensemble: Ensemble, scores: str, as_calls: bool, threshold: float = 0.0) -> pd.DataFrame:
    """pF1 of the validation breasts, with intervals over women; a row for each way to submit scores.

    Parameters
    ----------
    ensemble
        The ensemble with raw scores.
    scores, as_calls
        What is submitted, as for `scale`.
    threshold
        The threshold of the calls; for 0 each fold's calls are made by a threshold chosen on the other folds.

    Returns
    -------
    The columns "validation pF1" (an Interval, or Unavailable with the reason) and "submitted" ("yes" or "").
    """
    _check_threshold(threshold)
    ways = {
        "raw": attempt(validation_breasts, ensemble),
        "probability": attempt(lambda: validation_breasts(ensemble.prior_corrected())),
        "calls": attempt(_called, ensemble, threshold),
    }
    own = "calls" if as_calls else scores
    rows = [(attempt(metrics.bootstrap, breasts, "pf1"), "yes" if way == own else "") for way, breasts in ways.items()]
    return pd.DataFrame(rows, index=[WAYS[way] for way in ways], columns=["validation pF1", "submitted"])


def _called(ensemble: Ensemble, threshold: float) -> pd.DataFrame:
    """The validation breasts with calls, 0 or 1, in place of scores."""
    breasts = validation_breasts(ensemble)
    # Cross-fitted thresholds, because one that is chosen on all breasts would give an optimistic pF1.
    calls = breasts["score"] >= threshold if threshold else cross_fitted(breasts, threshold_by_f1).calls
    return breasts.assign(score=np.asarray(calls, dtype=float))
