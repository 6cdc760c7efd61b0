"""The breasts that a radiologist wants to see first: the clearest hits, the worst misses and false alarms."""

from pathlib import Path

import pandas as pd

from rsna_nb.config import resolve
from rsna_nb.evaluation.evaluated_run import Evaluation
from rsna_nb.metadata import DEMO_DIR, kaggle
from rsna_nb.metrics import CrossFit
from rsna_nb.notebook import UnavailableError
from rsna_nb.prepare import image_file, store_path
from rsna_nb.runs import Run

PREPARE_FIRST = "run notebooks/00_prepare.ipynb with this data_dir and img_size"


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
