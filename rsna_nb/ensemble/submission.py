"""A run or an ensemble and a data set's test images -> submission.csv, in the format of the RSNA challenge.

    submission.csv         a row a breast: prediction_id (<patient_id>_<laterality>), cancer (0-1)
    submission_ledger.csv  a row a file: its breast, its score or why it has none, and what its breast's score is

A breast's score is the mean of its images' scores. The challenge's metric, pF1, takes scores for probabilities. The
class weights that a run was trained with are therefore corrected for, unless raw scores are asked for. Calls (0 or 1)
are made by a threshold on raw scores, the scale on which thresholds are chosen. Nothing is downloaded.
"""

import json
import logging
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from rsna_nb import inference, metrics
from rsna_nb.config import ConfigError
from rsna_nb.ensemble.combine import Ensemble
from rsna_nb.ensemble.model_pool import KEY, class_weights_of
from rsna_nb.evaluation import data_folder, with_fold
from rsna_nb.metadata import MetadataError, find_data, kaggle, load_metadata
from rsna_nb.metrics import CrossFit, MetricsError, cross_fitted, prior_correction, threshold_by_f1
from rsna_nb.notebook import Markdown, Unavailable, UnavailableError, attempt
from rsna_nb.runs import Run
from rsna_nb.system import write_whole

log = logging.getLogger(__name__)

COLUMNS = ["prediction_id", "cancer"]
WAYS = {
    "raw": "raw scores",
    "probability": "probabilities, corrected for class weights",
    "calls": "calls at the threshold",
}
MAX_IDS = 5  # ids in a message


class SubmissionError(UnavailableError, ValueError):
    """A submission that cannot be made, or that Kaggle would refuse; the message names the ids."""


def choose_data(ensemble: Ensemble, data_dir: str | Path = "") -> Path:
    """The folder whose images are scored.

    Parameters
    ----------
    ensemble
        The model.
    data_dir
        A data folder. "" is the mounted competition on Kaggle, and elsewhere the folder that the model's runs were
        trained on.

    Raises
    ------
    SubmissionError
        Where the runs were trained on several folders, or theirs is not on this machine.
    """
    if data_dir:
        return find_data(data_dir)
    # On Kaggle the folder of training is never there, but the competition is mounted.
    folders = sorted({kaggle.mounted() or data_folder(run) for run in ensemble.pool.runs})
    if len(folders) > 1:
        raise SubmissionError(f"data_dir is empty, and the runs were trained on several folders: {_shown(folders)}")
    if not folders[0].is_dir():
        raise SubmissionError(f"data_dir is empty, and {folders[0]}, which the model was trained on, is not here")
    return folders[0]


def describe_data(ensemble: Ensemble, folder: Path) -> Markdown:
    """A sentence on which images are scored, with a warning where generated and real mammograms meet."""
    scored = (folder / "generated.json").is_file()  # synthetic.generate writes it
    trained = {run.id: _trained_on_generated(run) for run in ensemble.pool.runs}
    kinds = {True: "generated mammograms", False: "real mammograms", None: "unknown images"}
    text = f"Scored are the {kinds[scored]} in `{folder}`."
    if others := [name for name, generated in trained.items() if generated not in (scored, None)]:
        warning = f"{', '.join(others)} learned from {kinds[not scored]}: these scores mean nothing"
        log.warning(warning)  # for papermill, whose log is read and not its notebook
        return Markdown(f"{text} **{warning}.**")
    return Markdown(text)


def _trained_on_generated(run: Run) -> bool | None:
    """Whether the run learned from generated mammograms, None where it does not tell."""
    path = run.path / "config" / "environment.json"
    return json.loads(path.read_text()).get("generated") if path.is_file() else None


def scale(ensemble: Ensemble, scores: str, as_calls: bool = False) -> Ensemble:
    """The ensemble with the scores that are to be submitted.

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
        Where the scores cannot be corrected, or `scores` is another word.
    """
    if scores not in ("probability", "raw"):
        raise SubmissionError(f'scores must be "probability" or "raw", not {scores!r}')
    if scores == "raw" or as_calls:  # thresholds are chosen on raw scores
        return ensemble
    try:
        return ensemble.prior_corrected()
    except MetricsError as error:
        raise SubmissionError(f'{error}: set scores to "raw", or as_calls to true') from error


def images_of(ensemble: Ensemble, folder: Path, split: Literal["test", "validation"] = "test") -> pd.DataFrame:
    """The images to score, a row each with prediction_id and path.

    Parameters
    ----------
    ensemble
        The model.
    folder
        A data folder (`choose_data`).
    split
        "test" is test.csv. "validation" are the images on which the model's checkpoints were chosen, of train.csv.

    Raises
    ------
    MetadataError
        Where the table has faults.
    SubmissionError
        For another split; where the validation images are not in the table; or where they belong to several folds,
        so that all but one of the fold models were trained on each.
    """
    if split not in ("test", "validation"):
        raise SubmissionError(f'split must be "test" or "validation", not {split!r}')
    if split == "test":
        table = load_metadata(folder, "test")
    elif any(len(runs) > 1 for runs in ensemble.pool.members.values()):
        raise SubmissionError(f"{ensemble.name} has fold runs: all but one of them were trained on a validation image")
    else:
        table = _validation_images(ensemble, folder)
    if "prediction_id" not in table:  # only RSNA's test.csv has it
        table["prediction_id"] = table["patient_id"] + "_" + table["laterality"]
    return table


def _validation_images(ensemble: Ensemble, folder: Path) -> pd.DataFrame:
    """The rows of the ensemble's validation images with their files, `path`."""
    rows = ensemble.pool.rows[ensemble.pool.of("validation")].reset_index(drop=True)
    # A left join keeps the order of the rows, which the scores of the pool are in.
    found = rows.merge(load_metadata(folder)[[*KEY, "path"]], on=KEY, how="left")
    missing = found.loc[found["path"].isna(), "image_id"]
    if len(missing):
        raise SubmissionError(
            f"{_named(missing)} of the validation images are not in {folder / 'train.csv'}: the model was trained on "
            "another table"
        )
    return found


def with_flips(ensemble: Ensemble, flips: bool = True) -> Ensemble:
    """The ensemble whose validation scores are means over the picture and its mirror images, as new scores will be.

    A threshold, or a comparison with validation scores, holds only for scores that were made in the same way. The
    validation images are scored again from the files that the runs were trained on.

    Raises
    ------
    SubmissionError
        Where these files are not there, or cannot be read.
    """
    if not flips:
        return ensemble
    pool = ensemble.pool
    # The runs' own folder, not the one that is scored: two data sets may use the same ids.
    try:
        rows = _validation_images(ensemble, choose_data(ensemble))
    except (SubmissionError, MetadataError) as error:
        raise SubmissionError(f"the validation images cannot be scored with flips: {error}") from error
    scores = pool.scores[pool.of("validation")].reset_index(drop=True)
    for run in pool.runs:
        own = scores[run.id].notna()  # of fold runs, each scored the women of its own fold
        # Four times the work of the validation images; on RSNA about as many files as the hidden test set.
        found = inference.predict(run, rows.loc[own, "path"].tolist(), flips=True)
        unreadable = found["error"].to_numpy() != ""
        if unreadable.any():
            ids = rows.loc[own, "image_id"][unreadable]
            raise SubmissionError(f"{_named(ids)} of the validation images cannot be read any more")
        scores.loc[own, run.id] = found["score"].to_numpy()
    return replace(ensemble, pool=replace(pool, rows=rows.drop(columns="path"), scores=scores))


def score_images(ensemble: Ensemble, images: pd.DataFrame, flips: bool = False) -> pd.DataFrame:
    """The images with `score` (0-1, NaN where a file cannot be read) and `error` (why, else "")."""
    scores = inference.predict_by_runs(ensemble.pool.runs, images["path"].tolist(), flips=flips)
    return images.assign(score=ensemble.scores(scores), error=scores["error"].to_numpy())


def prevalence(ensemble: Ensemble) -> float:
    """The share of breasts with cancer, 0-1, in the table that the first run was trained on."""
    run = ensemble.pool.runs[0]
    try:
        return run.metrics["positive_breasts"] / run.metrics["breasts"]
    except KeyError as error:
        raise SubmissionError(f"metrics.json of run {run.id} does not say how many breasts had cancer") from error


def score_of_unreadable(ensemble: Ensemble) -> float:
    """The score of a breast without a readable file: `prevalence` on the ensemble's own scale.

    For a run with class weights this is the score that is corrected to the prevalence, about 0.5 by default. For a run
    whose scores are no probabilities it is the mean of its validation scores.
    """
    prior, row = prevalence(ensemble), pd.DataFrame(index=[0])
    for run in ensemble.pool.runs:
        try:
            weights = class_weights_of(run)
            row[run.id] = prior_correction([prior], {0: weights[1], 1: weights[0]})  # swapped: probability -> raw
        except MetricsError:
            # No probability can be turned into such a score; its mean leaves the order of breasts alone.
            row[run.id] = ensemble.pool.scores.loc[ensemble.pool.of("validation"), run.id].mean()
    return float(ensemble.scores(row)[0])


def score_breasts(images: pd.DataFrame, unreadable: float) -> pd.DataFrame:
    """A row a breast: prediction_id, files, readable and score.

    The score is the mean over the readable files, or `unreadable` where there are none.
    """
    breasts = images.groupby("prediction_id", sort=False)  # in the order of test.csv
    df = breasts.agg(files=("score", "size"), readable=("score", "count"), score=("score", "mean")).reset_index()
    return df.assign(score=df["score"].fillna(unreadable))


def validation_breasts(ensemble: Ensemble) -> pd.DataFrame:
    """The ensemble's validation breasts, a row each with fold, cancer and score."""
    # With fold, so that a threshold is chosen across the folds of the models and not across new ones.
    rows = ensemble.predictions[ensemble.pool.of("validation")]
    return with_fold(metrics.by_breast(rows), rows)


def threshold_of(ensemble: Ensemble | Unavailable, given: float = 0.0) -> float:
    """The threshold of calls.

    Parameters
    ----------
    ensemble
        The ensemble with raw scores, or why its validation scores are not known.
    given
        The threshold, in 0-1. For 0 it is the median of the thresholds with the best F1, each chosen on other folds
        (`metrics.cross_fitted`).

    Raises
    ------
    ConfigError
        For a threshold outside 0-1.
    SubmissionError, MetricsError
        Where one must be chosen and the validation scores are not known, or hold fewer than two women with cancer.
    """
    _check_threshold(given)
    if given:
        return given
    if isinstance(ensemble, Unavailable):
        raise SubmissionError(f"{ensemble.reason}: set threshold to a score from 0 to 1, or flips to false")
    return _fit_threshold(validation_breasts(ensemble)).point.threshold


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold must be a score from 0 to 1, or 0 to have one chosen, not {threshold}")


def _fit_threshold(breasts: pd.DataFrame) -> CrossFit:
    try:
        return cross_fitted(breasts, threshold_by_f1)
    except MetricsError as error:
        raise MetricsError(f"{error}: set the parameter threshold to a score from 0 to 1") from error


def validation_pf1(ensemble: Ensemble, scores: str, as_calls: bool, threshold: float = 0.0) -> pd.DataFrame:
    """pF1 of the validation breasts for each way to submit them, a row each, with intervals over women.

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
    """The validation breasts with calls, 0 or 1, for scores."""
    breasts = validation_breasts(ensemble)
    # Calls of cross-fitted thresholds: one chosen on all breasts would flatter them.
    calls = breasts["score"] >= threshold if threshold else _fit_threshold(breasts).calls
    return breasts.assign(score=np.asarray(calls, dtype=float))


def submission_of(breasts: pd.DataFrame, threshold: float | None = None) -> pd.DataFrame:
    """The table of submission.csv, from `score_breasts`: scores, or calls where there is a threshold.

    Examples
    --------
    >>> breasts = pd.DataFrame({"prediction_id": ["7_L", "7_R"], "score": [0.2, 0.6]})
    >>> submission_of(breasts, threshold=0.5)["cancer"].tolist()
    [0, 1]
    """
    cancer = breasts["score"] if threshold is None else (breasts["score"] >= threshold).astype(int)
    return pd.DataFrame({"prediction_id": breasts["prediction_id"], "cancer": cancer})


def check(submission: pd.DataFrame, sample: str | Path | None = None) -> None:
    """Refuse what Kaggle would refuse.

    Parameters
    ----------
    submission
        The table of submission.csv.
    sample
        sample_submission.csv, whose ids and columns it must have; None checks only values and repeated ids.

    Raises
    ------
    SubmissionError
        With every fault and the ids that have it.

    Examples
    --------
    >>> check(pd.DataFrame({"prediction_id": ["7_L", "7_L"], "cancer": [0.1, 0.2]}))
    Traceback (most recent call last):
    rsna_nb.ensemble.submission.SubmissionError: prediction_id: 1 (7_L) are in it twice
    """
    if list(submission.columns) != COLUMNS:
        raise SubmissionError(f"the columns must be {_shown(COLUMNS)}, not {_shown(submission.columns)}")
    ids, values = submission["prediction_id"], pd.to_numeric(submission["cancer"], errors="coerce")
    faults = {
        "in it twice": ids[ids.duplicated()],
        "without a finite number from 0 to 1": ids[~(np.isfinite(values) & values.between(0, 1))],
    }
    if sample is not None:
        expected = pd.read_csv(sample, dtype=str)
        if list(expected.columns) != COLUMNS:
            raise SubmissionError(f"{sample} has the columns {_shown(expected.columns)}, not {_shown(COLUMNS)}")
        wanted = expected["prediction_id"]  # read as text: some ids would pass for numbers
        faults[f"missing, but in {sample}"] = wanted[~wanted.isin(ids)]
        faults[f"not in {sample}"] = ids[~ids.isin(wanted)]
    messages = [f"{_named(rows)} are {fault}" for fault, rows in faults.items() if len(rows)]
    if messages:
        raise SubmissionError("prediction_id: " + "; ".join(messages))


def _shown(names: Iterable[object]) -> str:
    return ", ".join(map(str, names))


def _named(ids: pd.Series) -> str:
    """How many ids there are, and the first of them."""
    return f"{len(ids)} ({_shown(ids[:MAX_IDS])}{', ...' if len(ids) > MAX_IDS else ''})"


def write(folder: str | Path, submission: pd.DataFrame, images: pd.DataFrame, breasts: pd.DataFrame) -> list[Path]:
    """Write submission.csv and submission_ledger.csv into a folder.

    Files of an earlier submission that differ are not overwritten: they are renamed by the time they were written.

    Returns
    -------
    The path of submission.csv, and those of the files that were renamed.
    """
    ledger = images[["prediction_id", "patient_id", "image_id", "score", "error"]]
    of_breast = breasts.set_index("prediction_id").loc[ledger["prediction_id"]]
    # The ledger says for every file what became of its breast, as submission.csv has no room for it.
    words = np.where(of_breast["readable"] == 0, "the prior", "the mean of its readable files")
    ledger = ledger.assign(breast_score=of_breast["score"].to_numpy(), breast_is=words)
    files = {
        Path(folder) / name: df.to_csv(index=False).encode()
        for name, df in (("submission.csv", submission), ("submission_ledger.csv", ledger))
    }
    renamed = []
    # The same submission again leaves the files as they are.
    if any(path.is_file() and path.read_bytes() != content for path, content in files.items()):
        renamed = [_set_aside(path) for path in files if path.is_file()]  # both, so that they stay a pair
    for path, content in files.items():
        write_whole(path, content)
    return [*list(files)[:1], *renamed]


def _set_aside(path: Path) -> Path:
    """Rename a file by the time it was written; a number is added where that name is taken."""
    stem = f"{path.stem}-{datetime.fromtimestamp(path.stat().st_mtime):%Y%m%d-%H%M%S}"
    number, aside = 1, path.with_name(stem + path.suffix)
    while aside.exists():
        number, aside = number + 1, path.with_name(f"{stem}-{number + 1}{path.suffix}")
    path.rename(aside)
    log.info("%s of an earlier submission is kept as %s", path.name, aside.name)
    return aside
