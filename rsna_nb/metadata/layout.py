"""How a data set names its table, its columns and its images: the file columns.json in the data folder."""

import string
from pathlib import Path
from typing import Annotated, Any, Self

import pandas as pd
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from rsna_nb.metadata.checks import MetadataError, faults_of


def _fields_of(pattern: str) -> set[str]:
    """The names in braces in a pattern; `ValueError` if the braces are wrong."""
    names = {name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None}
    if "" in names:
        raise ValueError("a column's name is missing between braces")
    return names


def _checked_pattern(pattern: str) -> str:
    _fields_of(pattern)
    return pattern


def _checked_table(pattern: str) -> str:
    if others := sorted(_fields_of(pattern) - {"split"}):
        raise ValueError(f"only {{split}} may be used in braces, not {others[0]}")
    return pattern


Pattern = Annotated[str, AfterValidator(_checked_pattern)]
TableName = Annotated[str, AfterValidator(_checked_table)]


class Layout(BaseModel):
    """How a data set names its table, images, columns and values.

    The defaults are RSNA's; a `columns.json` in the data folder changes them.

    Attributes
    ----------
    table
        File name of the table. {split} is replaced by train or test.
    images
        Path of an image within the data folder. Names in braces are replaced: {split}, columns of the table, and RSNA's
        patient_id, image_id, laterality and view.
    columns
        RSNA's column name -> the table's name for it, or a pattern of several: "{patient_id}_{image view}".
    values
        RSNA's column name -> {the table's value: RSNA's value}. "" means an empty field. A value that is
        not listed is a fault.
    several_rows
        Whether an image has one row per finding. The image is positive if any of its rows is.
    """

    # strict: pydantic would take "yes" for True and 1 for "1". forbid: a misspelt key would be ignored.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    table: TableName = "{split}.csv"
    images: Pattern = "{split}_images/{patient_id}/{image_id}.dcm"
    columns: dict[str, Pattern] = {}
    values: dict[str, dict[str, Any]] = {}
    several_rows: bool = False

    @classmethod
    def of(cls, data_dir: Path) -> Self:
        """The layout of a data folder: its columns.json, or RSNA's layout if there is none.

        Raises
        ------
        MetadataError
            With everything that is wrong with the file.
        """
        path = data_dir / "columns.json"
        if not path.is_file():
            return cls()
        try:
            return cls.model_validate_json(path.read_text("utf-8-sig"))  # Excel and Notepad write a byte order mark
        except ValidationError as error:
            raise MetadataError(path, [_explained(dict(each)) for each in error.errors()]) from error
        except ValueError as error:  # bytes that are not UTF-8
            raise MetadataError(path, [str(error)]) from error

    def renamed(self, source: pd.DataFrame, path: Path) -> pd.DataFrame:
        """The table in RSNA's columns and values. A column that the layout does not name keeps its name.

        Parameters
        ----------
        source
            The table as it is in the file, all text.
        path
            Its file, for the message.

        Raises
        ------
        MetadataError
            With every column that is missing, and every row whose value is not listed.
        """
        df, faults = source.copy(), []
        for name, pattern in self.columns.items():
            try:
                if "{" in pattern:
                    df[name] = [pattern.format_map(row) for row in source.astype(str).to_dict("records")]
                else:
                    df[name] = source[pattern]
            except KeyError as error:
                faults.append(f"column {error} is missing: columns.json names it for {name}")
        for name, values in self.values.items():
            if name in df:
                if "" in values:
                    df[name] = df[name].fillna("")
                faults += faults_of(df[name], list(values), f"{' or '.join(map(repr, values))} (columns.json)")
                # Text like everything else that is checked; numbers become numbers at the end.
                df[name] = df[name].map({old: None if new is None else str(new) for old, new in values.items()})
        if faults:
            raise MetadataError(path, faults)
        return df

    def image_paths(self, df: pd.DataFrame, source: pd.DataFrame, split: str, table: Path) -> list[str]:
        """Each image's file, inside the data folder.

        Parameters
        ----------
        df, source
            The table in RSNA's columns, and as it is in the file: `images` may name the columns of both.
        split
            "train" or "test".
        table
            The table's file. The paths begin with its folder.

        Raises
        ------
        MetadataError
            Where `images` names a column that is missing, or a path leaves the data folder.
        """
        names = ["patient_id", "image_id", "laterality", "view"]
        rows = source.assign(**{name: df[name] for name in names}).astype(str).to_dict("records")
        try:
            paths = [Path(self.images.format_map(row | {"split": split})) for row in rows]
        except KeyError as error:
            raise MetadataError(table, [f"column {error} is missing: columns.json names it in images"]) from error
        # The ids are plain words by now, but other columns may hold anything: "../../etc/passwd", or "/dev/zero".
        faults = [
            f"row {row}: the image's path {path} leaves the data folder"
            for row, path in zip(df.index, paths, strict=True)
            if path.is_absolute() or ".." in path.parts
        ]
        if faults:
            raise MetadataError(table, faults)
        return [str(table.parent / path) for path in paths]


def _explained(error: dict[str, Any]) -> str:
    """One of pydantic's errors as a sentence: where, what was found there, and what is wrong with it."""
    place = ".".join(map(str, error["loc"]))
    message = error["msg"].removeprefix("Value error, ")
    return f"{place} {error['input']!r}: {message}" if place else message
