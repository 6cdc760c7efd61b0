"""Scores of breasts -> submission.csv, checked as Kaggle would check it, and a ledger of its files.

submission.csv         a row per breast: prediction_id (<patient_id>_<laterality>), cancer (0-1)
submission_ledger.csv  a row per file: its breast, its score or why it has none, its notes, and how its breast is scored
"""

import logging
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from rsna_nb.notebook import UnavailableError
from rsna_nb.system import write_whole

log = logging.getLogger(__name__)

COLUMNS = ["prediction_id", "cancer"]
MAX_IDS = 5  # ids in a message


class SubmissionError(UnavailableError, ValueError):
    """A submission that cannot be made, or that Kaggle would refuse; the message names the ids."""


def submission_of(breasts: pd.DataFrame, threshold: float | None = None) -> pd.DataFrame:
    """The table of submission.csv, from `score_breasts`: scores, or calls if there is a threshold.

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
    rsna_nb.ensemble.submission_file.SubmissionError: prediction_id occurs twice: 1 (7_L)
    """
    if list(submission.columns) != COLUMNS:
        raise SubmissionError(f"the columns must be {shown(COLUMNS)}, not {shown(submission.columns)}")
    ids, values = submission["prediction_id"], pd.to_numeric(submission["cancer"], errors="coerce")
    faults = {
        "occurs twice": ids[ids.duplicated()],
        "has no finite number from 0 to 1": ids[~(np.isfinite(values) & values.between(0, 1))],
    }
    if sample is not None:
        expected = pd.read_csv(sample, dtype=str)
        if list(expected.columns) != COLUMNS:
            raise SubmissionError(f"{sample} has the columns {shown(expected.columns)}, not {shown(COLUMNS)}")
        wanted = expected["prediction_id"]  # read as text: some ids look like numbers
        faults[f"in {sample} but not in the submission"] = wanted[~wanted.isin(ids)]
        faults[f"not in {sample}"] = ids[~ids.isin(wanted)]
    messages = [f"prediction_id {fault}: {named(rows)}" for fault, rows in faults.items() if len(rows)]
    if messages:
        raise SubmissionError("; ".join(messages))


def shown(names: Iterable[object]) -> str:
    """The names with commas between them."""
    return ", ".join(map(str, names))


def named(ids: pd.Series) -> str:
    """How many ids there are, and the first of them."""
    return f"{len(ids)} ({shown(ids[:MAX_IDS])}{', ...' if len(ids) > MAX_IDS else ''})"


def write(folder: str | Path, submission: pd.DataFrame, images: pd.DataFrame, breasts: pd.DataFrame) -> list[Path]:
    """Write submission.csv and submission_ledger.csv into a folder.

    Files of an earlier submission that differ are not overwritten: they are renamed by the time they were written.

    Returns
    -------
    The path of submission.csv, and those of the files that were renamed.
    """
    ledger = images[["prediction_id", "patient_id", "image_id", "score", "error", "notes"]]
    of_breast = breasts.set_index("prediction_id").loc[ledger["prediction_id"]]
    # The ledger records how the breast of each file was scored; submission.csv has no column for it.
    words = np.where(of_breast["readable"] == 0, "the prior", "the mean of its readable files")
    ledger = ledger.assign(breast_score=of_breast["score"].to_numpy(), breast_is=words)
    files = {
        Path(folder) / name: df.to_csv(index=False).encode()
        for name, df in (("submission.csv", submission), ("submission_ledger.csv", ledger))
    }
    renamed = []
    # The same submission again leaves the files as they are.
    if any(path.is_file() and path.read_bytes() != content for path, content in files.items()):
        renamed = [set_aside(path) for path in files if path.is_file()]  # both, so that they stay a pair
    for path, content in files.items():
        write_whole(path, content)
    return [*list(files)[:1], *renamed]


def set_aside(path: Path) -> Path:
    """Rename a file by the time it was written, and return its new path; a number is added if that name is taken."""
    stem = f"{path.stem}-{datetime.fromtimestamp(path.stat().st_mtime):%Y%m%d-%H%M%S}"
    number, aside = 1, path.with_name(stem + path.suffix)
    while aside.exists():
        number, aside = number + 1, path.with_name(f"{stem}-{number + 1}{path.suffix}")
    path.rename(aside)
    log.info("the earlier %s is kept as %s", path.name, aside.name)
    return aside
