"""A run or an ensemble and a data set's test images -> submission.csv, a row a breast, as the RSNA challenge has it.

    submission.csv         prediction_id (<patient_id>_<laterality>), cancer (0-1)
    submission_ledger.csv  a row a file: its breast, its score or why it has none, and what its breast's score is

A breast is the mean of its images. The challenge's metric, pF1, takes scores for probabilities, so that the class
weights that a run was trained with are corrected for first, unless raw scores are asked for; calls are by the raw
scores, on
which thresholds are chosen. Nothing is fetched, and nothing is written but these two files.
"""

import logging
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from rsna_nb import inference, metrics
from rsna_nb.ensemble.combine import Ensemble
from rsna_nb.ensemble.model_pool import KEY
from rsna_nb.evaluation import class_weights, weighs_nothing, with_fold
from rsna_nb.metadata import find_data, load_metadata
from rsna_nb.metrics import CrossFit, MetricsError, cross_fitted, prior_correction, threshold_by_f1
from rsna_nb.notebook import attempt
from rsna_nb.system import write_whole

log = logging.getLogger(__name__)

COLUMNS = ["prediction_id", "cancer"]
WAYS = {
    "raw": "raw scores",
    "probability": "probabilities, class weights corrected for",
    "calls": "calls at the threshold",
}
SHOWN = 5  # ids in a message


class SubmissionError(ValueError):
    """A submission that cannot be made, or would be refused; the message names the ids."""


def on_scale(ensemble: Ensemble, scores: str, as_calls: bool = False) -> Ensemble:
    """The ensemble whose scores are to be submitted.

    Parameters
    ----------

    scores
        "probability": corrected for each run's class weights (`Ensemble.prior_corrected`); "raw": as predictions.csv.
    as_calls
        Whether calls will be submitted, which are by the raw scores.

    Raises
    ------
    SubmissionError
        Where its scores cannot be made probabilities, or `scores` is another word.
    """
    if scores not in ("probability", "raw"):
        raise SubmissionError(f'scores must be "probability" or "raw", not {scores!r}')
    if scores == "raw" or as_calls:
        return ensemble
    try:
        return ensemble.prior_corrected()
    except MetricsError as error:
        raise SubmissionError(f'{error}: set scores to "raw", or as_calls to true') from error


def images_of(ensemble: Ensemble, data_dir: str | Path, split: Literal["test", "validation"] = "test") -> pd.DataFrame:
    """The images to score, a row each with prediction_id and path.

    Parameters
    ----------
    data_dir
        As the setting: "" is the mounted competition on Kaggle, elsewhere the demo set.
    split
        "test" is test.csv; "validation" are the images on which the ensemble's checkpoints were chosen, of train.csv.

    Raises
    ------
    MetadataError
        Where the table has faults.
    SubmissionError
        Where the validation images are not in the table, or are of several folds: all but one of their models were
        trained on each. Or for another split.
    """
    if split not in ("test", "validation"):
        raise SubmissionError(f'split must be "test" or "validation", not {split!r}')
    folder = find_data(data_dir)
    if split == "test":
        table = load_metadata(folder, "test")
    else:
        mixed_breasts = ensemble.library.runs[0].config.mixed_breasts
        table = validation_images(ensemble, load_metadata(folder, mixed_breasts=mixed_breasts))
    if "prediction_id" not in table:
        table["prediction_id"] = table["patient_id"] + "_" + table["laterality"]
    return table


def validation_images(ensemble: Ensemble, table: pd.DataFrame) -> pd.DataFrame:
    if any(len(member.runs) > 1 for member in ensemble.library.members):
        raise SubmissionError(
            f"{ensemble.name} has fold runs: each validation image was in the training of all folds but one"
        )
    rows = ensemble.library.rows[ensemble.library.of("validation")][[*KEY, "laterality"]]
    found = rows.merge(table[[*KEY, "path"]], on=KEY, how="left")
    missing = found.loc[found["path"].isna(), "image_id"]
    if len(missing):
        raise SubmissionError(f"{named(missing)} of the validation images are not in train.csv: set data_dir to theirs")
    return found


def score_images(ensemble: Ensemble, images: pd.DataFrame, flips: bool = False) -> pd.DataFrame:
    """The images with `score` (0-1, NaN where a file cannot be read) and `error` (why, else "")."""
    scores = inference.predict_by_runs(ensemble.library.runs, images["path"].tolist(), flips=flips)
    return images.assign(score=ensemble.scores(scores), error=scores["error"].to_numpy())


def prevalence(ensemble: Ensemble) -> float:
    """The share of breasts with cancer in the table that the first run was trained on, by its metrics.json.

    Of images, which is logged, where metrics.json has no breasts.
    """
    counts = ensemble.library.runs[0].metrics
    if "breasts" in counts:
        return counts["positive_breasts"] / counts["breasts"]
    log.warning("the prior is the share of images with cancer: metrics.json was written without breasts")
    return sum(counts["positives"].values()) / sum(counts["images"].values())


def score_of_unreadable(ensemble: Ensemble) -> float:
    """What a breast gets that has no readable file: `prevalence`, as a score on the ensemble's own
    scale.

    For a run with class weights it is the score whose correction is the prevalence, by default about 0.5; for
    one whose scores are no probabilities the mean of its validation scores.
    """
    prior, row = prevalence(ensemble), pd.DataFrame(index=[0])
    for run in ensemble.library.runs:
        try:
            weights = {0: 1.0, 1: 1.0} if weighs_nothing(run) else class_weights(run)
            row[run.id] = prior_correction([prior], {0: weights[1], 1: weights[0]})  # the other way round
        except MetricsError:
            row[run.id] = ensemble.library.scores.loc[ensemble.library.of("validation"), run.id].mean()
    return float(ensemble.scores(row)[0])


def score_breasts(images: pd.DataFrame, unreadable: float) -> pd.DataFrame:
    """prediction_id, files, readable and score: the mean of its readable files, or `unreadable` where there is none."""
    breasts = images.groupby("prediction_id", sort=False)
    df = breasts.agg(files=("score", "size"), readable=("score", "count"), score=("score", "mean")).reset_index()
    return df.assign(score=df["score"].fillna(unreadable))


def validation_breasts(ensemble: Ensemble) -> pd.DataFrame:
    """The ensemble's own validation breasts with fold, cancer and score."""
    rows = ensemble.predictions[ensemble.library.of("validation")]
    return with_fold(metrics.by_breast(rows), rows)


def threshold_of(ensemble: Ensemble, given: float = 0.0) -> float:
    """The threshold given; for 0 the median of those of best F1, chosen on other women (`operating.cross_fitted`).

    `SubmissionError` for one outside 0-1, `MetricsError` with fewer than two validation women with cancer.
    """
    if not 0 <= given <= 1:
        raise SubmissionError(f"threshold must be a score from 0 to 1, or 0 to have one chosen, not {given}")
    return given or fitted(validation_breasts(ensemble)).point.threshold


def fitted(breasts: pd.DataFrame) -> CrossFit:
    try:
        return cross_fitted(breasts, threshold_by_f1)
    except MetricsError as error:
        raise MetricsError(f"{error}: set the parameter threshold to a score from 0 to 1") from error


def validation_pf1(ensemble: Ensemble, scores: str, as_calls: bool, threshold: float = 0.0) -> pd.DataFrame:
    """pF1 of the validation breasts by each way to submit them, a row each, with intervals over women.

    `ensemble` is the one with raw scores. Calls are by the threshold given, or for 0 by thresholds chosen on other
    women. The columns are "validation pF1" (an Interval, or Unavailable with the reason) and "submitted" ("yes" or "").
    """
    ways = {
        "raw": attempt(validation_breasts, ensemble),
        "probability": attempt(lambda: validation_breasts(ensemble.prior_corrected())),
        "calls": attempt(called, ensemble, threshold),
    }
    own = "calls" if as_calls else scores
    rows = [(attempt(metrics.bootstrap, breasts, "pf1"), "yes" if way == own else "") for way, breasts in ways.items()]
    return pd.DataFrame(rows, index=[WAYS[way] for way in ways], columns=["validation pF1", "submitted"])


def called(ensemble: Ensemble, threshold: float) -> pd.DataFrame:
    """The validation breasts with calls for scores."""
    breasts, level = validation_breasts(ensemble), threshold_of(ensemble, threshold)
    calls = breasts["score"] >= level if threshold else fitted(breasts).calls
    return breasts.assign(score=np.asarray(calls, dtype=float))


def submission_of(breasts: pd.DataFrame, threshold: float | None = None) -> pd.DataFrame:
    """submission.csv: the scores, or with a threshold 1 from it on and 0 below."""
    cancer = breasts["score"] if threshold is None else (breasts["score"] >= threshold).astype(int)
    return pd.DataFrame({"prediction_id": breasts["prediction_id"], "cancer": cancer})


def check(submission: pd.DataFrame, sample: str | Path | None = None) -> None:
    """`SubmissionError` that names the ids, where Kaggle would refuse the submission.

    `sample` is sample_submission.csv, whose ids and columns it must have; None checks the values and ids alone.
    """
    if list(submission.columns) != COLUMNS:
        raise SubmissionError(
            f"the columns must be {', '.join(COLUMNS)}, not {', '.join(map(str, submission.columns))}"
        )
    ids, values = submission["prediction_id"], pd.to_numeric(submission["cancer"], errors="coerce")
    faults = {
        "twice in it": ids[ids.duplicated()],
        "without a finite number from 0 to 1": ids[~(np.isfinite(values) & values.between(0, 1))],
    }
    if sample is not None:
        expected = pd.read_csv(sample, dtype=str)
        if list(expected.columns) != COLUMNS:
            raise SubmissionError(f"{sample} has the columns {', '.join(expected.columns)}, not {', '.join(COLUMNS)}")
        wanted = expected["prediction_id"]
        faults[f"missing, which {sample} has"] = wanted[~wanted.isin(ids)]
        faults[f"not in {sample}"] = ids[~ids.isin(wanted)]
    messages = [f"{named(rows)} are {fault}" for fault, rows in faults.items() if len(rows)]
    if messages:
        raise SubmissionError("prediction_id: " + "; ".join(messages))


def named(ids: pd.Series) -> str:
    """The first ids, and how many there are."""
    return f"{len(ids)} ({', '.join(ids.astype(str)[:SHOWN])}{', ...' if len(ids) > SHOWN else ''})"


def write(folder: str | Path, submission: pd.DataFrame, images: pd.DataFrame, breasts: pd.DataFrame) -> Path:
    """submission.csv and submission_ledger.csv in a folder; the path of the first."""
    ledger = images[["prediction_id", "patient_id", "image_id", "score", "error"]]
    of_breast = breasts.set_index("prediction_id").loc[ledger["prediction_id"]]
    words = np.where(of_breast["readable"] == 0, "the prior", "the mean of its readable files")
    ledger = ledger.assign(breast_score=of_breast["score"].to_numpy(), breast_is=words)
    for name, df in (("submission.csv", submission), ("submission_ledger.csv", ledger)):
        write_whole(Path(folder) / name, df.to_csv(index=False).encode())
    return Path(folder) / "submission.csv"
