"""A run or an ensemble and a data set's test images -> submission.csv, a row a breast, as the RSNA challenge has it.

    submission.csv         prediction_id (<patient_id>_<laterality>), cancer (0-1)
    submission_ledger.csv  a row a file: its breast, its score or why it has none, and what its breast's score is

A breast is the mean of its images. Nothing is fetched, and nothing is written but these two files.
"""

import logging
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from rsna_nb import inference, metrics
from rsna_nb.ensemble import Ensemble
from rsna_nb.members import KEY
from rsna_nb.metadata import find_data, load_metadata
from rsna_nb.operating import cross_fitted, threshold_by_f1
from rsna_nb.storage import write_whole

log = logging.getLogger(__name__)

COLUMNS = ["prediction_id", "cancer"]
SHOWN = 5  # ids in a message


class SubmissionError(ValueError):
    """A submission that cannot be made, or would be refused; the message names the ids."""


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
    table = load_metadata(folder, "test") if split == "test" else validation_images(ensemble, load_metadata(folder))
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


def by_breast(images: pd.DataFrame, prior: float) -> pd.DataFrame:
    """prediction_id, files, readable and score: the mean of its readable files, or the prior where there is none."""
    breasts = images.groupby("prediction_id", sort=False)
    df = breasts.agg(files=("score", "size"), readable=("score", "count"), score=("score", "mean")).reset_index()
    return df.assign(score=df["score"].fillna(prior))


def validation_breasts(ensemble: Ensemble) -> pd.DataFrame:
    """The ensemble's own validation breasts with fold, cancer and score."""
    rows = ensemble.predictions[ensemble.library.of("validation")]
    fold_of = rows.groupby("patient_id")["fold"].first()
    breasts = metrics.by_breast(rows)
    return breasts.assign(fold=breasts["patient_id"].map(fold_of))


def threshold_of(ensemble: Ensemble, given: float = 0.0) -> float:
    """The threshold given; for 0 the median of those of best F1, chosen on other women (`operating.cross_fitted`).

    `SubmissionError` for one outside 0-1, `MetricsError` with fewer than two validation women with cancer.
    """
    if not 0 <= given <= 1:
        raise SubmissionError(f"threshold must be a score from 0 to 1, or 0 to have one chosen, not {given}")
    return given or cross_fitted(validation_breasts(ensemble), threshold_by_f1).point.threshold


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
