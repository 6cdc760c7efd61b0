"""How a data set names its tables, its columns and its images: a columns.json, or a layout that the package knows."""

import re
import string
from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib import resources
from itertools import islice
from os import scandir
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainValidator, PrivateAttr, ValidationError

from rsna_nb.metadata.checks import MetadataError
from rsna_nb.metadata.reading import text_of

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")
LAYOUTS = "layouts"  # the folder of the layouts that the package knows, a JSON file each
TRIED = 20  # entries of a folder that are followed when a layout is recognised: all of a data set's are alike


def fields_of(pattern: str) -> set[str]:
    """Return the names in braces in a pattern; `ValueError` if the braces are wrong."""
    names = {name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None}
    if "" in names:
        raise ValueError("a column's name is missing between braces")
    return names


def _checked_pattern(pattern: str) -> str:
    fields_of(pattern)
    return pattern


def _checked_table(pattern: str) -> str:
    if others := sorted(fields_of(pattern) - {"split"}):
        raise ValueError(f"only {{split}} may be used in braces, not {others[0]}")
    return pattern


def _checked_regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


def _texts(value: Any, what: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"must be {what}")
    return value


def _tables(value: Any) -> list[str]:
    names = [value] if isinstance(value, str) else value
    return [_checked_table(name) for name in _texts(names, "a file name, or a list of file names")]


def _kept(value: Any) -> dict[str, list[str]]:
    if isinstance(value, dict) and set(value) == set(SPLITS):
        return {split: _texts(values, "lists of texts") for split, values in value.items()}
    return dict.fromkeys(SPLITS, _texts(value, 'a list of texts, or {"train": [...], "test": [...]}'))


def _alternatives(value: Any) -> list[list[str]]:
    what = "a list of file patterns, or a list of such lists"
    if isinstance(value, list) and value and all(isinstance(each, list) for each in value):
        return [_texts(each, what) for each in value]
    return [_texts(value, what)]


Pattern = Annotated[str, AfterValidator(_checked_pattern)]
TableName = Annotated[str, AfterValidator(_checked_table)]
Regex = Annotated[str, AfterValidator(_checked_regex)]

# strict: pydantic would take "yes" for True and 1 for "1". forbid: a misspelt key would be ignored.
STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)


class Joined(BaseModel):
    """A further table, whose columns are added to the rows of the first.

    Attributes
    ----------
    table
        File name, as `Layout.table`.
    on
        Columns that must be equal: {column of the table so far: column of this one}. A row without a match gets empty
        cells.
    several_rows
        Whether several rows of this table may belong to one row of the first, which is then repeated.
    """

    model_config = STRICT

    table: TableName
    on: dict[str, str]
    several_rows: bool = False


class Layout(BaseModel):
    """How a data set names its table, images, columns and values.

    The defaults are RSNA's; a `columns.json` in the data folder changes them. In lists and objects of values, "" means
    an empty cell, and a value may be a shell pattern such as "BI-RADS [45]*".

    Attributes
    ----------
    name
        The data set's name.
    label
        What "cancer" means, in one sentence; "" means that cancer is proven by biopsy.
    about
        Anything for the documentation: address, licence, what is left out.
    recognised_by
        Patterns of files within the data folder, all of which must exist; a list of such lists gives alternatives. Only
        the layouts that the package knows need it.
    table
        File name of the table. {split} is replaced by train or test. In a list of names, the tables that exist are
        taken together. Fields are separated by commas, semicolons or tabs, or the file is an Excel workbook.
    names, lines
        Column names of a table without a header line, and a regular expression for its rows (see
        `reading.read_table`).
    joined
        Further tables, joined in this order.
    extract
        Column -> a regular expression with named groups, which is searched in its values. Each group becomes a column.
    pairs
        New column -> a numbered column: numbers 1 and 2 become 1, 3 and 4 become 2, and so on.
    rows
        Column -> the values of the rows that are kept, or {"train": values, "test": values}.
    images
        Path of an image within the data folder. Names in braces are replaced: {split}, columns of the table, and RSNA's
        patient_id, image_id, laterality and view. Any other name, * (within a folder's or file's name) and ** (any
        folders) are searched on the disk. What a name stands for becomes a column; if a row has several files that
        differ in it, each file becomes a row.
    headers
        Column -> a DICOM keyword whose value is read from each file, such as "ViewPosition" or
        "ViewCodeSequence.CodeMeaning". For a column that the table has too, the table's row of that value is taken.
    columns
        RSNA's column name -> the table's name for it, or a pattern of several: "{patient_id}_{image view}".
    values
        RSNA's column name -> {the table's value: RSNA's value}. The first that matches is taken. A value that matches
        none is a fault. An image whose label is mapped to null is left out.
    several_rows
        Whether an image has one row per finding. The image is positive if any of its rows is.
    exam
        The table's column that tells a woman's examinations apart. Of a breast with cancer, only the examinations with
        cancer are kept.
    mixed_breasts
        Replaces the setting `mixed_breasts` if that is "error": whether breasts whose images disagree on cancer are an
        error or are labelled positive.
    """

    model_config = STRICT

    name: str = "RSNA"
    label: str = ""
    about: dict[str, Any] = {}
    recognised_by: Annotated[list[list[str]], PlainValidator(_alternatives)] = []
    table: Annotated[list[str], PlainValidator(_tables)] = ["{split}.csv"]
    names: list[str] = []
    lines: Regex = ""
    joined: list[Joined] = []
    extract: dict[str, Regex] = {}
    pairs: dict[str, str] = {}
    rows: dict[str, Annotated[dict[str, list[str]], PlainValidator(_kept)]] = {}
    images: Pattern = "{split}_images/{patient_id}/{image_id}.dcm"
    headers: dict[str, str] = {}
    columns: dict[str, Pattern] = {}
    values: dict[str, dict[str, Any]] = {}
    several_rows: bool = False
    exam: str = ""
    mixed_breasts: Literal["error", "any_positive"] = "error"
    _source: str = PrivateAttr("columns.json")

    @property
    def source(self) -> str:
        """Where the layout is written, for messages."""
        return self._source

    @property
    def is_split(self) -> bool:
        """Whether the training rows differ from the test rows."""
        by_rows = any(kept["train"] != kept["test"] for kept in self.rows.values())
        return by_rows or all("split" in fields_of(name) for name in self.table)

    @classmethod
    def of(cls, data_dir: Path) -> Self:
        """The layout of a data folder: its columns.json, else one that the package recognises, else RSNA's.

        Raises
        ------
        MetadataError
            With everything that is wrong with the file, or if the folder looks like several data sets.
        """
        path = data_dir / "columns.json"
        if path.is_file():
            layout = cls._read(path, path.read_bytes())
            return layout if "name" in layout.model_fields_set else layout.model_copy(update={"name": data_dir.name})
        return cls.recognised(data_dir) or cls()

    @classmethod
    def recognised(cls, data_dir: Path) -> Self | None:
        """The layout that the package knows and that fits what is in a folder; None if none does.

        Raises
        ------
        MetadataError
            If several do.
        """
        if any(_all_exist(data_dir, [f"{split}.csv", f"{split}_images/*/*.dcm"]) for split in SPLITS):
            return cls()  # RSNA's own, without reading the others
        found = [layout for layout in cls.known() if any(_all_exist(data_dir, each) for each in layout.recognised_by)]
        if len(found) > 1:
            names = " and ".join(layout.name for layout in found)
            advice = "Say which it is in a columns.json in this folder, or give the folder of one of them as data_dir"
            raise MetadataError(data_dir, [f"the folder looks like {names}"], advice)
        return found[0] if found else None

    @classmethod
    def known(cls) -> list[Self]:
        """The layouts that the package knows, in the order of their files' names."""
        folder = resources.files("rsna_nb.metadata") / LAYOUTS
        files = sorted(folder.iterdir(), key=lambda file: file.name) if folder.is_dir() else []
        return [cls._read(Path(file.name), file.read_bytes()) for file in files if file.name.endswith(".json")]

    @classmethod
    def _read(cls, path: Path, content: bytes) -> Self:
        try:
            layout = cls.model_validate_json(text_of(content))
        except ValidationError as error:
            raise MetadataError(path, [_explained(dict(each)) for each in error.errors()]) from error
        except ValueError as error:  # bytes that are neither UTF-8 nor UTF-16
            raise MetadataError(path, [str(error)]) from error
        layout._source = path.name if path.name == "columns.json" else f"the layout of {layout.name}"
        return layout


def matching(value: str, patterns: list[str]) -> str | None:
    """Return the first of `patterns` that is the value, or a shell pattern that matches it.

    >>> matching("1/Left/Left", ["1/Left/Right", "1/*", "*"])
    '1/*'
    """
    return next((pattern for pattern in patterns if value == pattern or fnmatchcase(value, pattern)), None)


def _all_exist(folder: Path, patterns: list[str]) -> bool:
    return bool(patterns) and all(_exists(folder, pattern) for pattern in patterns)


def _exists(folder: Path, pattern: str) -> bool:
    """Whether a file matches the pattern. Unlike glob, it does not look into all of ten thousand folders."""
    name, _, rest = pattern.partition("/")
    if not any(character in name for character in "*?["):
        return _exists(folder / name, rest) if rest else (folder / name).exists()
    return any(_exists(folder / each, rest) if rest else True for each in _entries(folder, name))


def _entries(folder: Path, pattern: str) -> Iterator[str]:
    """Yield the first names in a folder that match a pattern."""
    try:
        with scandir(folder) as entries:
            names = (entry.name for entry in entries if not entry.name.startswith("."))
            yield from islice((name for name in names if fnmatchcase(name, pattern)), TRIED)
    except OSError:  # no folder, or not ours to read
        return


def _explained(error: dict[str, Any]) -> str:
    """One of pydantic's errors as a sentence: where, what was found there, and what is wrong with it."""
    place = ".".join(map(str, error["loc"]))
    message = error["msg"].removeprefix("Value error, ")
    return f"{place} {error['input']!r}: {message}" if place else message
