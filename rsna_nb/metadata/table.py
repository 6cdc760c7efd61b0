"""The tables of a data set -> one checked table, one row per image, in the RSNA data's column names."""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from rsna_nb.metadata.checks import IDENTITY, MetadataError, check_rows, note_odd_values, settle_mixed_breasts
from rsna_nb.metadata.columns import derived, joined, missing_columns, renamed
from rsna_nb.metadata.images import check_one_image_a_file, early_files, named_files
from rsna_nb.metadata.labels import exams_with_cancer, one_row_an_image, with_label
from rsna_nb.metadata.layout import Layout, Split
from rsna_nb.metadata.reading import read_table
from rsna_nb.metadata.sources import find_joined, find_tables

log = logging.getLogger(__name__)

DESCRIPTION = ["site_id", "age", "implant", "machine_id"]
INPUTS = ["laterality", "view", *DESCRIPTION]
"""All columns that may be a model's input. The others of train.csv (biopsy, BIRADS, ...) leak the diagnosis."""

ARCHIVED = "archive.json"
"""A file in a data folder whose training images were prepared from an archive (`prepare.archive`) and are not there."""


class DataSet(NamedTuple):
    """What a data folder holds, in words.

    Attributes
    ----------
    name
        The data set's name. Without a layout that is known: that of the folder.
    label
        What "cancer" means, in one sentence; "" means that cancer is proven by biopsy.
    """

    name: str
    label: str


def describe(data_dir: str | Path) -> DataSet:
    """Return the name and the label of the data set in a folder.

    Raises
    ------
    MetadataError
        If its columns.json is faulty, or it looks like several data sets.
    """
    layout = Layout.of(Path(data_dir))
    return DataSet(layout.name, layout.label)


def load_metadata(
    data_dir: str | Path,
    split: Split = "train",
    check_files: bool = True,
    mixed_breasts: str = "error",
    table: str | Path = "",
) -> pd.DataFrame:
    """Read and check the table of a data set.

    Parameters
    ----------
    data_dir
        A folder in a layout that the package knows, such as RSNA's, or one with a `columns.json` (see `Layout`).
    split
        "train" or "test".
    check_files
        False reads the table without looking whether the files that it names exist.
    mixed_breasts
        What to do with a breast whose images disagree on cancer: "error" raises, "any_positive" labels all its images
        positive and logs how many that changes, and "keep" leaves the labels as they are.
    table
        The table, or a folder that contains it, if it is not in `data_dir`. "" searches near `data_dir` (see
        `sources.find_tables`).

    Returns
    -------
    One row per image, in RSNA's column names. Ids, laterality and view are text. A column that holds only numbers is
    numeric. site_id, age, implant and machine_id are empty columns where the data set lacks them. `path` is the image's
    file. An image whose file is missing stays in the table and is logged; preparing gives it a row in the ledger. Where
    only the file could tell which woman or view a row is about, the row is left out and logged.

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
    source, path = _source(layout, data_dir, split, table)
    source, files = early_files(layout, source, split, data_dir, path)
    if faults := missing_columns(source, layout):
        raise MetadataError(path, faults)
    df = renamed(layout, source, path)
    if split == "train" and "cancer" in layout.values:
        df = with_label(df, path)
        source = source.loc[df.index]
    labelled = split == "train" or ("cancer" in df and df["cancer"].notna().all())
    required = IDENTITY + (["cancer"] if labelled else [])
    check_rows(df, required, path, unique_images=not layout.several_rows, exam=layout.exam)
    absent = [name for name in DESCRIPTION if name not in df]
    if absent and not layout.columns:
        log.warning("%s: without the columns %s, which RSNA's table has; they stay empty", path, ", ".join(absent))
    df = df.assign(**dict.fromkeys(absent, float("nan")))
    note_odd_values(df, path)
    df["path"] = named_files(layout, source, df, split, data_dir, path) if files is None else files
    if "images" in layout.model_fields_set:
        check_one_image_a_file(df, path)
    if labelled:
        df["cancer"] = df["cancer"].astype(float).astype(int)
    if layout.several_rows:
        df = one_row_an_image(df, path)
    if labelled and layout.exam:
        df = exams_with_cancer(df, layout.exam, path)
    if labelled:
        settle_mixed_breasts(df, path, layout.mixed_breasts if mixed_breasts == "error" else mixed_breasts)
    if check_files and not (split == "train" and (data_dir / ARCHIVED).is_file()):
        _check_images(df, path)
    return _typed(df.reset_index(drop=True))


def _source(layout: Layout, data_dir: Path, split: Split, table: str | Path) -> tuple[pd.DataFrame, Path]:
    """Read the tables of a split, all columns as text, and the file or folder that messages name."""
    paths = find_tables(layout, data_dir, split, table)
    path = paths[0] if len(paths) == 1 else paths[0].parent
    source = _stacked(paths, [read_table(each, layout.names, layout.lines) for each in paths])
    source = derived(source, layout, split, path)
    _warn_of_unused_split(source, layout, path)
    for join in layout.joined:
        right_path = find_joined(join.table, data_dir, paths[0], split)
        right = derived(read_table(right_path), layout, split, right_path)
        source = derived(joined(source, right, join, path, right_path), layout, split, path)
    return source, path


def _warn_of_unused_split(source: pd.DataFrame, layout: Layout, path: Path) -> None:
    """Log that training takes rows that the table's authors meant for testing."""
    if not layout.is_split and "split" in source:
        values = ", ".join(map(repr, source["split"].dropna().unique()[:5]))
        log.warning("%s: all rows are taken, whatever column split says (%s): rows could pick some", path, values)


def _stacked(paths: Sequence[Path], tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return one table of all; the index says of which file a row is."""
    if len(tables) == 1:
        return tables[0]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):  # the index must tell all rows apart
        names = [str(path) for path in paths]
    named = [
        df.set_axis([f"{row} of {name}" for row in df.index], axis=0) for name, df in zip(names, tables, strict=True)
    ]
    return pd.concat(named)


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
