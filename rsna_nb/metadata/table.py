"""train.csv or test.csv -> a checked table, one row per image, in the RSNA data's column names."""

import contextlib
import logging
from pathlib import Path
from typing import Literal

import pandas as pd

from rsna_nb.metadata.checks import MetadataError, check_rows, note_odd_values, settle_mixed_breasts
from rsna_nb.metadata.layout import Layout

log = logging.getLogger(__name__)

Split = Literal["train", "test"]
IDENTITY = ["patient_id", "image_id", "laterality", "view"]
DESCRIPTION = ["site_id", "age", "implant", "machine_id"]
INPUTS = ["laterality", "view", *DESCRIPTION]
"""All columns that may be a model's input. The others of train.csv (biopsy, BIRADS, ...) leak the diagnosis."""

FIRST_ROW = 2  # line 1 of the file is the header
ARCHIVED = "archive.json"
"""A file in a data folder whose training images were prepared from an archive (`prepare.archive`) and are not there."""


def load_metadata(
    data_dir: str | Path, split: Split = "train", check_files: bool = True, mixed_breasts: str = "error"
) -> pd.DataFrame:
    """Read and check the table of a data set.

    Parameters
    ----------
    data_dir
        A folder in the RSNA layout, or one with a `columns.json` (see `Layout`).
    split
        "train" or "test".
    check_files
        False reads the table without looking for the images.
    mixed_breasts
        What to do with a breast whose images disagree on cancer: "error" raises, "any_positive" labels all its images
        positive and logs how many that changes, and "keep" leaves the labels as they are.

    Returns
    -------
    One row per image, in RSNA's column names. Ids, laterality and view are text. A column that holds only numbers is
    numeric. site_id, age, implant and machine_id are empty columns where the data set lacks them. `path` is the image's
    file. An image whose file is missing stays in the table and is logged; preparing gives it a row in the ledger.

    Raises
    ------
    MetadataError
        With every fault and its row; line 1 of the file is the header. Odd values in columns that only describe an
        image, such as an age of 9999, are logged instead (see `checks.note_odd_values`).

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> header = "site_id,patient_id,image_id,laterality,view,age,cancer,implant,machine_id"
    >>> _ = (folder / "train.csv").write_text(header + "\\n1,007,1,L,CC,61,0,0,49\\n1,007,2,R,CC,61,1,0,49\\n")
    >>> load_metadata(folder, check_files=False)[["patient_id", "laterality", "cancer"]].values.tolist()
    [['007', 'L', 0], ['007', 'R', 1]]
    """
    data_dir = Path(data_dir)
    layout = Layout.of(data_dir)
    path = data_dir / layout.table.format(split=split)
    source = _read_table(path)
    df = layout.renamed(source, path)
    # Other data sets need not have RSNA's descriptions, but RSNA's own table without one is a damaged file.
    required = IDENTITY + ([] if layout.columns else DESCRIPTION) + (["cancer"] if split == "train" else [])
    check_rows(df, required, path, unique_images=not layout.several_rows)
    df = df.assign(**{name: float("nan") for name in DESCRIPTION if name not in df})
    note_odd_values(df, path)
    df["path"] = layout.image_paths(df, source, split, path)
    if split == "train":
        df["cancer"] = df["cancer"].astype(float).astype(int)
    if layout.several_rows:
        df = _one_row_an_image(df, path)
    if split == "train":
        settle_mixed_breasts(df, path, mixed_breasts)
    if check_files and not (split == "train" and (data_dir / ARCHIVED).is_file()):
        _check_images(df, path)
    return _typed(df.reset_index(drop=True))


def model_inputs(df: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Select the columns of a table that a model takes as its inputs.

    Raises
    ------
    ValueError
        For a column that is not known before the diagnosis: only those in `INPUTS` are.

    Examples
    --------
    >>> model_inputs(pd.DataFrame({"age": [61], "biopsy": [1]}), ["age"]).columns.tolist()
    ['age']
    >>> model_inputs(pd.DataFrame({"age": [61], "biopsy": [1]}), ["age", "biopsy"])
    Traceback (most recent call last):
    ValueError: biopsy: not among laterality, view, site_id, age, implant, machine_id, which are known before the diagnosis
    """  # noqa: E501  a doctest cannot break the line
    leaking = [name for name in columns if name not in INPUTS]
    if leaking:
        raise ValueError(f"{', '.join(leaking)}: not among {', '.join(INPUTS)}, which are known before the diagnosis")
    return df[columns]


def _read_table(path: Path) -> pd.DataFrame:
    """The file, all columns as text. The index is the row's number in the file; blank rows are skipped."""
    if not path.is_file():
        raise MetadataError(path, [f"there is no such table in the data folder {path.parent}"])
    try:
        # Text, so that one odd value does not change the type of its column. Blank lines count as rows of the file.
        source = pd.read_csv(path, dtype=str, skip_blank_lines=False)
        # Without header=None, pandas silently renames a second column "cancer" to "cancer.1".
        names = pd.read_csv(path, dtype=str, header=None, nrows=1).iloc[0]
    except (ValueError, UnicodeDecodeError) as error:  # pandas' parser errors are ValueErrors
        raise MetadataError(path, [f"not a CSV table: {error}"]) from error
    source.index += FIRST_ROW
    source = source.dropna(how="all")
    if source.empty:
        raise MetadataError(path, ["the table has no rows"])
    if len(names) == 1:
        raise MetadataError(path, [f"the table has one column, {names[0]!r}: separate its fields by commas"])
    if twice := names[names.duplicated()].dropna().tolist():
        raise MetadataError(path, [f"column {name} occurs in the table twice" for name in twice])
    return source


def _one_row_an_image(df: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The first row of each image, positive if any of its rows is. Rows that contradict each other are faults."""
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


def _check_images(df: pd.DataFrame, table: Path) -> None:
    """Warn of missing files. Raise `MetadataError` if all are missing, because then the folder is wrong."""
    # One stat call per file: a minute for RSNA's 54,706 on a network drive, which check_files=False saves.
    missing = [path for path in df["path"] if not Path(path).is_file()]
    if len(missing) == len(df):
        raise MetadataError(table, [f"none of its {len(df)} images exists; the first would be {missing[0]}"])
    if missing:
        log.warning("%d of %d images of %s are missing, the first is %s", len(missing), len(df), table, missing[0])


def _typed(df: pd.DataFrame) -> pd.DataFrame:
    """Convert columns of numbers. Ids, laterality, view and path stay text."""
    for name in df.columns.difference([*IDENTITY, "path"]):
        # pandas has deprecated to_numeric(errors="ignore"), which did this.
        with contextlib.suppress(ValueError, TypeError):
            df[name] = pd.to_numeric(df[name])
    return df
