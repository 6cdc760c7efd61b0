"""One table file -> a data frame of text, whatever its format, separator or encoding."""

import codecs
import csv
import logging
import re
import warnings
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import pandas as pd

from rsna_nb.metadata.checks import MetadataError

log = logging.getLogger(__name__)

MOST_BYTES = 10**9  # of a workbook, unpacked: a small file can hold zeros without end
SEPARATORS = (",", ";", "\t")
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_table(path: Path, names: Sequence[str] = (), lines: str = "") -> pd.DataFrame:
    """Read a table file with every cell as text.

    Parameters
    ----------
    path
        A text file with commas, semicolons or tabs, or an Excel workbook (xlsx), whose first sheet is read.
    names
        Names of the columns if the file has no header line. Fields may then be separated by white space too, and the
        last ones may be missing.
    lines
        With `names`: a regular expression for the lines that are rows. Others, such as comments, are left out.

    Returns
    -------
    The table. Its index is the row's number in the file, from 1. Blank rows are left out; cells lose leading and
    trailing spaces.

    Raises
    ------
    MetadataError
        If there is no such file, or it holds no table.
    """
    if not path.is_file():
        raise MetadataError(path, ["there is no such table"])
    try:
        if names:
            cells = _listed(path, names, lines)
        else:
            cells = _with_header(_workbook(path) if _is_workbook(path) else _separated(path))
    except (ValueError, KeyError, BadZipFile) as error:  # pandas' and Unicode's errors are ValueErrors
        raise MetadataError(path, [f"not a table: {error}"]) from error
    df = _stripped(cells).dropna(how="all")
    if df.empty:
        raise MetadataError(path, ["the table has no rows"])
    if len(df.columns) == 1:
        fault = f"the table has one column, {df.columns[0]!r}: separate its fields by commas, semicolons or tabs"
        raise MetadataError(path, [fault])
    if twice := df.columns[df.columns.duplicated()].tolist():
        raise MetadataError(path, [f"column {name} occurs in the table twice" for name in twice])
    return df


def text_of(content: bytes) -> str:
    """Decode UTF-8 or UTF-16, each with or without a byte order mark.

    >>> text_of("\\ufeffa;b".encode("utf-16-le"))
    'a;b'
    """
    return content.decode(_encoding(content)).removeprefix("\ufeff")


def _encoding(head: bytes) -> str:
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            return encoding
    # Table and JSON files begin with a character of ASCII, which has a zero byte in UTF-16.
    return {(False, True): "utf-16-le", (True, False): "utf-16-be"}.get(
        (head[:1] == b"\0", head[1:2] == b"\0"), "utf-8"
    )


def _decoded(path: Path) -> str:
    """Decode a text file, as latin-1 if it is neither UTF-8 nor UTF-16: every byte is a character there."""
    content = path.read_bytes()
    try:
        return text_of(content)
    except UnicodeDecodeError as error:
        log.warning("%s: not UTF-8 (%s): read as latin-1", path, error.reason)
        return content.decode("latin-1")


def _separator(line: str) -> str:
    """Return the separator that gives the most fields outside of quotes; "" if none occurs."""
    counts = {each: len(next(csv.reader([line], delimiter=each), [])) for each in SEPARATORS}
    best = max(counts, key=lambda each: counts[each])
    return best if counts[best] > 1 else ""


def _separated(path: Path) -> pd.DataFrame:
    text = _decoded(path)
    separator = _separator(text.partition("\n")[0].rstrip("\r")) or ","
    # header=None: pandas would silently rename a second column "cancer", and take the first column for row names if
    # the rows have one field more than the header. Blank lines count as rows of the file.
    if separator != ",":
        log.info("%s: fields are separated by %r", path, separator)
    return pd.read_csv(StringIO(text), sep=separator, dtype=str, header=None, skip_blank_lines=False)


def _is_workbook(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\3\4"


def _workbook(path: Path) -> pd.DataFrame:
    """Return the first sheet of a workbook."""
    with ZipFile(path) as file:
        if sum(member.file_size for member in file.infolist()) > MOST_BYTES:
            raise ValueError("the workbook is too large unpacked: save the table as CSV")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # openpyxl warns of styles and of validation that it does not keep
        sheets = pd.read_excel(path, sheet_name=None, dtype=str, header=None, engine="openpyxl")
    if len(sheets) > 1:
        log.info("%s: the first of its %d sheets, %s, is read", path, len(sheets), next(iter(sheets)))
    return next(iter(sheets.values()))


def _with_header(cells: pd.DataFrame) -> pd.DataFrame:
    """Name the columns after the first row that is not blank, and number the rows from 1."""
    filled = cells.notna().any(axis=1)
    if not filled.any():
        raise ValueError("it is empty")
    first = filled.to_numpy().argmax()
    names = cells.iloc[first]
    cells.columns = pd.Index(
        [str(name).strip() if pd.notna(name) else f"Unnamed: {place}" for place, name in enumerate(names)]
    )
    cells.index = pd.RangeIndex(1, len(cells) + 1)
    return cells.iloc[first + 1 :]


def _listed(path: Path, names: Sequence[str], lines: str) -> pd.DataFrame:
    """Read a file without a header line."""
    rows, left_out = {}, 0
    for number, line in enumerate(_decoded(path).splitlines(), 1):
        if not line.strip():
            continue
        if lines and not re.fullmatch(lines, line.strip()):
            left_out += 1
            continue
        separator = _separator(line)
        fields = next(csv.reader([line], delimiter=separator)) if separator else line.split()
        if len(fields) > len(names):
            raise ValueError(f"row {number} has {len(fields)} fields, more than the {len(names)} columns")
        rows[number] = [*fields, *[None] * (len(names) - len(fields))]
    if left_out:
        log.info("%s: %d lines are no rows of the table and are left out", path, left_out)
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(names), dtype=object)


def _stripped(cells: pd.DataFrame) -> pd.DataFrame:
    """Remove spaces around values; a cell of spaces alone is empty."""
    df = cells.copy()
    for place in range(len(df.columns)):
        column = df.iloc[:, place]
        # Few values repeat in many rows, and few tables have such spaces.
        spaced = {text: text.strip() or None for text in column.dropna().unique() if text != text.strip()}
        if spaced:
            df.isetitem(place, [spaced.get(text, text) for text in column.array])
    return df
