"""train.csv or test.csv -> a checked table, one row an image, in the RSNA data's column names."""

import contextlib
import json
import logging
import re
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from rsna_nb import synthetic
from rsna_nb.config import resolve
from rsna_nb.metadata import kaggle

log = logging.getLogger(__name__)

Split = Literal["train", "test"]
IDENTITY = ["patient_id", "image_id", "laterality", "view"]
DESCRIPTION = ["site_id", "age", "implant", "machine_id"]
INPUTS = ["laterality", "view", *DESCRIPTION]
"""All that may be a model's input: the other columns of train.csv (biopsy, BIRADS, ...) leak the diagnosis."""

PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
FIRST_ROW = 2  # line 1 of the file is the header
MAX_FAULTS = 20
DEMO_DIR = "data/demo"


class MetadataError(ValueError):
    """A table that cannot be used. `faults` holds every fault; the message the first twenty and a count."""

    def __init__(self, path: str | Path, faults: list[str]) -> None:
        self.faults = faults
        shown = faults[:MAX_FAULTS]
        more = [f"and {len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
        super().__init__(f"{path}: " + "; ".join(shown + more))


@dataclass(frozen=True)
class Layout:
    """How a data set names its things. The default is RSNA's; a `columns.json` in the data folder says another.

    Attributes
    ----------
    table
        File name of the table; {split} stands for train or test.
    images
        Path of an image from the data folder, made of the table's own columns in braces.
    columns
        RSNA's column name -> the table's, or several of them in a pattern: "{patient_id}_{image view}".
    values
        RSNA's column name -> {the table's value: RSNA's value}; a value that is not listed is a fault.
    several_rows
        True where an image has a row for each finding: the image is positive if any row is.
    """

    table: str = "{split}.csv"
    images: str = "{split}_images/{patient_id}/{image_id}.dcm"
    columns: dict[str, str] = field(default_factory=dict)
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    several_rows: bool = False

    @classmethod
    def of(cls, data_dir: Path) -> "Layout":
        path = data_dir / "columns.json"
        if not path.is_file():
            return cls()
        try:
            layout = cls(**json.loads(path.read_text()))
        except (TypeError, ValueError) as error:
            raise MetadataError(path, [f"not a column map: {error}"]) from error
        if faults := layout.faults():
            raise MetadataError(path, faults)
        return layout

    def faults(self) -> list[str]:
        """What is wrong with the map itself, whatever the table holds."""
        patterns = {"table": self.table, "images": self.images}
        if isinstance(self.columns, dict):
            patterns |= {f"columns: {name}": pattern for name, pattern in self.columns.items()}
        faults = [f"{name} {pattern!r}: {fault}" for name, pattern in patterns.items() if (fault := fault_of(pattern))]
        if not faults and (others := sorted(fields_of(self.table) - {"split"})):
            faults.append(f"table {self.table!r}: only {{split}} can stand in braces, not {others[0]}")
        if not isinstance(self.columns, dict):
            faults.append("columns must be an object: RSNA's column name, and the table's")
        if not isinstance(self.values, dict) or not all(isinstance(each, dict) for each in self.values.values()):
            faults.append("values must be an object of objects: RSNA's column name, the table's value and RSNA's value")
        if not isinstance(self.several_rows, bool):
            faults.append(f"several_rows must be true or false, not {self.several_rows!r}")
        return faults


def fields_of(pattern: str) -> set[str]:
    """The names in braces in a pattern."""
    return {name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None}


def fault_of(pattern: Any) -> str:
    """Why a pattern of columns.json cannot be one, "" where it can."""
    if not isinstance(pattern, str):
        return f"must be text, not {type(pattern).__name__}"
    try:
        return "a column's name is missing between braces" if "" in fields_of(pattern) else ""
    except ValueError as error:
        return str(error)


def find_data(data_dir: str | Path) -> Path:
    """The data folder that the setting `data_dir` means.

    "" is the competition's mounted folder on Kaggle, and the demo set elsewhere, generated if it is missing.
    """
    if data_dir != "":
        return resolve(data_dir)
    mounted = kaggle.mounted()
    if mounted:
        log.info("data: the competition's folder mounted at %s", mounted)
        return mounted
    log.info("data: the generated demo set in %s", DEMO_DIR)
    return synthetic.generate(resolve(DEMO_DIR))


def load_metadata(data_dir: str | Path, split: Split = "train", check_files: bool = True) -> pd.DataFrame:
    """The checked table of a data set, one row an image.

    Parameters
    ----------
    data_dir
        A folder in the RSNA layout, or one with a `columns.json` (see `Layout`).
    split
        "train" or "test".
    check_files
        False reads the table without looking for the images.

    Returns
    -------
    The table in RSNA's column names, ids as text, with `path`, each image's file. A missing file stays in
    the table: preparing gives it a row in the ledger.

    Raises
    ------
    MetadataError
        With every fault found and its row: line 1 of the file is the header.
    """
    data_dir = Path(data_dir)
    layout = Layout.of(data_dir)
    path = data_dir / layout.table.format(split=split)
    source = read_table(path)
    df = rename(source, layout, path)
    check(df, split, path, layout)
    df["path"] = image_paths(df, source, layout, split, path)
    df = typed(df.reset_index(drop=True))
    if layout.several_rows:
        df = one_row_an_image(df, path)
    if check_files:
        check_images(df, path)
    return df


def read_table(path: Path) -> pd.DataFrame:
    """All columns as text; the index is the row's number in the file, of which blank ones are left out."""
    if not path.is_file():
        raise MetadataError(path, [f"there is no such table in the data folder {path.parent}"])
    try:
        # text, so that one odd value does not change a column's type; blank lines count as rows of the file
        source = pd.read_csv(path, dtype=str, skip_blank_lines=False)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' parser errors are ValueErrors
        raise MetadataError(path, [f"not a CSV table: {error}"]) from error
    source.index += FIRST_ROW
    source = source.dropna(how="all")
    if source.empty:
        raise MetadataError(path, ["the table has no rows"])
    return source


def rename(source: pd.DataFrame, layout: Layout, path: Path) -> pd.DataFrame:
    """The table with RSNA's columns: its own where the layout names none, with the layout's values."""
    df, faults = source.copy(), []
    for name, pattern in layout.columns.items():
        try:
            if "{" in pattern:
                df[name] = [pattern.format_map(row) for row in source.astype(str).to_dict("records")]
            else:
                df[name] = source[pattern]
        except KeyError as error:
            faults.append(f"column {error} is missing: columns.json names it for {name}")
    for name, values in layout.values.items():
        if name in df:
            faults += other_values(df, name, list(values))
            df[name] = df[name].map(values)
    if faults:
        raise MetadataError(path, faults)
    return df


def check(df: pd.DataFrame, split: Split, path: Path, layout: Layout) -> None:
    """Raise `MetadataError` with all faults; columns that other data need not have are added empty."""
    required = IDENTITY + ([] if layout.columns else DESCRIPTION) + (["cancer"] if split == "train" else [])
    faults = [f"column {name} is missing" for name in required if name not in df]
    for name in ("patient_id", "image_id"):
        if name in df:
            faults += [
                f"row {line}: {name} {value!r} is not a plain number or word"
                for line, value in df[name].items()
                if not (isinstance(value, str) and PLAIN_ID.fullmatch(value))
            ]
    if "image_id" in df and not layout.several_rows:
        first = df.index.to_series().groupby(df["image_id"], dropna=False).transform("first")
        twice = first[first != first.index]
        faults += [
            f"row {line}: image_id {image_id} stands in row {row} already"
            for line, row, image_id in zip(twice.index, twice, df["image_id"][twice.index], strict=True)
        ]
    faults += other_values(df, "laterality", ["L", "R"])
    if "age" in df:
        wrong = df.loc[df["age"].notna() & pd.to_numeric(df["age"], errors="coerce").isna(), "age"]
        faults += [f"row {line}: age is {value!r}, not a number of years" for line, value in wrong.items()]
    if split == "train" and "cancer" in df:
        df["cancer"] = df["cancer"].astype(str).str.removesuffix(".0")
        faults += other_values(df, "cancer", ["0", "1"])
    if faults:
        raise MetadataError(path, faults)
    for name in DESCRIPTION:
        if name not in df:
            df[name] = float("nan")


def typed(df: pd.DataFrame) -> pd.DataFrame:
    """Numbers where every value of a column is one; ids, laterality, view and path stay text."""
    for name in df.columns.difference([*IDENTITY, "path"]):
        with contextlib.suppress(ValueError, TypeError):
            df[name] = pd.to_numeric(df[name])
    return df


def one_row_an_image(df: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The first row of each image, positive if any of its rows is; rows that contradict each other are faults."""
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
    return df.drop_duplicates("image_id", ignore_index=True)


def other_values(df: pd.DataFrame, name: str, allowed: list[str]) -> list[str]:
    """A fault for each row of the column that holds another value."""
    if name not in df:
        return []
    choices = " or ".join(allowed)
    return [
        f"row {line}: {name} is {value!r}, not {choices}" for line, value in df[name].items() if value not in allowed
    ]


def image_paths(df: pd.DataFrame, source: pd.DataFrame, layout: Layout, split: Split, table: Path) -> list[str]:
    """Each image's file, inside the data folder: the ids are plain, and other columns may not leave it."""
    rows = source.assign(**{name: df[name] for name in IDENTITY}).astype(str).to_dict("records")
    try:
        paths = [Path(layout.images.format_map(row | {"split": split})) for row in rows]
    except KeyError as error:
        raise MetadataError(table, [f"columns.json names a column {error} in images, which is missing"]) from error
    faults = [
        f"row {line}: the image's path {path} leaves the data folder"
        for line, path in zip(df.index, paths, strict=True)
        if path.is_absolute() or ".." in path.parts
    ]
    if faults:
        raise MetadataError(table, faults)
    return [str(table.parent / path) for path in paths]


def check_images(df: pd.DataFrame, table: Path) -> None:
    """Warn of missing files; raise `MetadataError` where none is there, which is a wrong folder."""
    missing = [path for path in df["path"] if not Path(path).is_file()]
    if len(missing) == len(df):
        raise MetadataError(table, [f"none of its {len(df)} images is there; the first would be {missing[0]}"])
    if missing:
        log.warning("%d of %d images of %s are missing, the first is %s", len(missing), len(df), table, missing[0])


def model_inputs(df: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """`columns` of the table as a model's inputs; `ValueError` for one that is not known before the diagnosis."""
    leaking = [name for name in columns if name not in INPUTS]
    if leaking:
        raise ValueError(f"{', '.join(leaking)}: not among {', '.join(INPUTS)}, which are known before the diagnosis")
    return df[columns]
