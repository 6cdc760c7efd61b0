"""The breasts that a radiologist wants to see first: the clearest hits, the worst misses and false alarms."""

from pathlib import Path

import pandas as pd

from rsna_nb.config import resolve
from rsna_nb.evaluation.evaluated_run import Evaluation
from rsna_nb.metadata import KaggleError, find_data
from rsna_nb.metrics import CrossFit, scores_breasts
from rsna_nb.notebook import UnavailableError
from rsna_nb.prepare import image_file, store_path
from rsna_nb.runs import Run

PREPARE_FIRST = "run notebooks/00_prepare.ipynb with this data_dir, img_size and reading"


def data_folder(run: Run) -> Path:
    """The folder of the run's data, as `metadata.find_data` names it. Nothing is generated or downloaded.

    Raises
    ------
    UnavailableError
        If the data are on Kaggle and neither mounted nor downloaded, or the run was imported and has no data yet.
    """
    if run.imported and not run.config.data_dir:  # "" would be the demo data, which it has never seen
        raise UnavailableError(f"run {run.id} was imported and has not scored labelled images")
    try:
        return find_data(run.config.data_dir, fetch=False)
    except KaggleError as error:
        raise UnavailableError(str(error)) from error


def store_of(run: Run) -> Path:
    """The folder of the run's prepared images; `UnavailableError` as `data_folder`."""
    return store_path(resolve(run.config.store_dir), data_folder(run), run.config.img_size, run.image_recipe)


def examples(evaluation: Evaluation, fit: CrossFit, count: int) -> dict[str, pd.DataFrame]:
    """Up to `count` breasts of each kind, with one image of each in the column `file`.

    It is the highest-scoring image, or the one with the largest attention if the network scored breasts.

    Returns
    -------
    By kind: "hits" (cancer, recalled; highest scores first), "misses" (cancer, not recalled; lowest first) and "false
    alarms" (no cancer, recalled; highest first).

    Raises
    ------
    UnavailableError
        For a count of 0, or if the store lacks an image.
    """
    if count < 1:
        raise UnavailableError("the parameter pictures is 0")
    breasts, store = evaluation.breasts.assign(called=fit.calls), store_of(evaluation.run)
    if not store.is_dir():
        raise UnavailableError(f"there is no store of prepared images at {store}: {PREPARE_FIRST}")
    # stable: images of equal scores stay in the order of the table, so that reports are the same every time
    by = "attention" if scores_breasts(evaluation.predictions) else "score"
    images = evaluation.predictions.sort_values(by, ascending=False, kind="stable")
    images = images.drop_duplicates(["patient_id", "laterality"]).rename(columns={"score": "image_score"})
    images = images.drop(columns=["cancer", "corrected_score"], errors="ignore")
    df = breasts.merge(images, on=["patient_id", "laterality"])
    df["file"] = [str(image_file(store, *ids)) for ids in zip(df["patient_id"], df["image_id"], strict=True)]
    cancer, called = df["cancer"] == 1, df["called"]
    found = {
        "hits": df[cancer & called].nlargest(count, "score"),
        "misses": df[cancer & ~called].nsmallest(count, "score"),
        "false alarms": df[~cancer & called].nlargest(count, "score"),
    }
    gone = [file for rows in found.values() for file in rows["file"] if not Path(file).is_file()]
    if gone:
        raise UnavailableError(f"{len(gone)} images are not in the store, first {gone[0]}: {PREPARE_FIRST}")
    return found
