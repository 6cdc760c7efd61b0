"""One label for each image and each breast, where a data set labels findings or examinations."""

import logging
from pathlib import Path

import pandas as pd

from rsna_nb.metadata.checks import BREAST, MetadataError

log = logging.getLogger(__name__)


def with_label(df: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Leave out the images whose label the layout maps to null; the log counts them.

    Parameters
    ----------
    df
        The table in RSNA's columns, all text. A row without a label does not decide; an image is kept if another of
        its rows says that it is positive.
    path
        The table's file, for the log.
    """
    undecided = df["cancer"].isna()
    images = df["image_id"].fillna("")
    positive = (df["cancer"] == "1").groupby(images).transform("any")
    out = undecided.groupby(images).transform("any") & ~positive
    if out.any():
        log.info(
            "%s: %d images are left out: their label says neither cancer nor no cancer", path, images[out].nunique()
        )
    return df[~out & ~undecided]


def one_row_an_image(df: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return the first row of each image, positive if any of its rows is.

    Raises
    ------
    MetadataError
        If rows of an image contradict each other.
    """
    by_image = df.groupby("image_id")
    faults = [
        f"the rows of image_id {image_id} differ in {name}"
        for name in ("patient_id", "laterality", "view", "path")
        for image_id in by_image[name].nunique().loc[lambda count: count > 1].index
    ]
    if faults:
        raise MetadataError(path, faults)
    if "cancer" in df:
        df["cancer"] = by_image["cancer"].transform("max")
    return df.drop_duplicates("image_id")


def exams_with_cancer(df: pd.DataFrame, exam: str, path: Path) -> pd.DataFrame:
    """Leave out the examinations without cancer of a breast that has cancer in another; the log counts their images.

    Every later step gives a breast one label, and an earlier examination may show the cancer already.

    Parameters
    ----------
    df
        A row for each image, `cancer` as numbers.
    exam
        The column that tells a woman's examinations apart.
    path
        The table's file, for messages.

    Raises
    ------
    MetadataError
        If the column is missing.
    """
    if exam not in df:
        raise MetadataError(path, [f"column {exam!r} is missing, which tells examinations apart"])
    breast = df.groupby(BREAST)["cancer"].transform("max")
    examination = df.groupby([*BREAST, exam], dropna=False)["cancer"].transform("max")
    out = (breast == 1) & (examination == 0)
    if out.any():
        breasts = df.loc[out, BREAST].drop_duplicates().shape[0]
        log.info(
            "%s: %d images of %d breasts are left out: their examination (%s) shows no cancer, but another one does",
            *(path, out.sum(), breasts, exam),
        )
    return df[~out]
