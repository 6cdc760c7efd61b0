"""The file of each row: named by the table's columns, or searched on the disk where the table does not name it."""

import logging
import os
import re
import string
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from rsna_nb.metadata.checks import MetadataError
from rsna_nb.metadata.columns import filled

log = logging.getLogger(__name__)

DEEPEST = 12  # folders below the data folder that ** goes into; a link could lead back
TOKEN = re.compile(r"\*\*/|\*\*|\*")
WILDCARDS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
ONE_SIZE = "If they are one picture in two sizes or formats, give one of the folders as data_dir"


class Found(NamedTuple):
    """One file and the row that it belongs to."""

    row: int  # position in the table
    file: str  # relative to the data folder
    captured: tuple[str | None, ...]  # what the names stand for that the table does not have


class Images(NamedTuple):
    """The rows of a table with their files."""

    source: pd.DataFrame  # with the columns that the search has found
    paths: pd.Series  # for a row without a file: the pattern, with * for what is not known
    exist: pd.Series


def is_searched(pattern: str, known: Mapping[str, pd.Series]) -> bool:
    """Whether a pattern has a name that is no column, or a wildcard."""
    parts = list(string.Formatter().parse(pattern))
    return any("*" in literal or (name is not None and name not in known) for literal, name, _, _ in parts)


def named_paths(
    pattern: str, known: Mapping[Any, pd.Series], data_dir: Path, index: pd.Index, table: Path
) -> list[str]:
    """Return each row's file where the table names it whole.

    Raises
    ------
    MetadataError
        If a path leaves the data folder.
    """
    paths = filled(pattern, known, index).tolist()
    # The ids are plain words, but other columns may hold anything: "../../etc/passwd", or "/dev/zero".
    faults = [
        f"row {row}: the image's path {path} leaves the data folder"
        for row, path in zip(index, paths, strict=True)
        if os.path.isabs(path) or ".." in re.split(r"[/\\]", path)
    ]
    if faults:
        raise MetadataError(table, faults)
    folder = str(data_dir / "x")[:-1]
    return [folder + os.path.normpath(path) for path in paths]  # a Path for each would take ten times as long


def searched(pattern: str, known: Mapping[str, pd.Series], source: pd.DataFrame, data_dir: Path, table: Path) -> Images:
    """Find the files of the rows, walking through the data folder once.

    Parameters
    ----------
    pattern
        Path within the data folder, with columns and other names in braces, * and **.
    known
        The names that are columns, and their values.
    source
        The table. A row with several files is repeated, if they differ in a name that is no column.
    data_dir
        The data folder.
    table
        The table's file, for messages.

    Raises
    ------
    MetadataError
        If the pattern names no column, a file fits it in two ways, a row has two files that nothing tells apart, or no
        row has a file.
    """
    names = [name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None]
    columns = [name for name in dict.fromkeys(names) if name in known]
    unknown = [name for name in dict.fromkeys(names) if name not in known]
    if set(columns) <= {"split"}:
        fault = f"images {pattern!r} names no column of the table: {', '.join(unknown)} is not one"
        raise MetadataError(table, [fault])
    if pattern.startswith("/") or ".." in pattern.split("/"):
        raise MetadataError(table, [f"images {pattern!r} leaves the data folder"])
    if "split" in columns and len(set(known["split"])) == 1:  # the other split's files are not looked for
        pattern = pattern.replace("{split}", str(known["split"].iloc[0]))
        columns.remove("split")
    found, alone = _matches(pattern, known, columns, unknown, data_dir)
    if not found:
        raise MetadataError(table, [f"none of its {len(source)} images exists: no file in {data_dir} fits {pattern!r}"])
    _check_one_each(found, source.index, table)
    log.info(
        "%s: %d files found for its rows; %d more files belong to no row (images %r)",
        table,
        len({each.file for each in found}),
        alone,
        pattern,
    )
    as_stars = dict.fromkeys(unknown, pd.Series("*", index=source.index))
    missing = filled(pattern, {**known, **as_stars}, source.index)
    return _with_files(source, sorted(found), unknown, data_dir, missing)


def _matches(
    pattern: str, known: Mapping[str, pd.Series], columns: list[str], unknown: list[str], data_dir: Path
) -> tuple[list[Found], int]:
    """Return the files that belong to a row, and the number of the others that fit the pattern."""
    rows = defaultdict(list)
    for position, values in enumerate(zip(*(known[name].fillna("") for name in columns), strict=True)):
        rows[values].append(position)
    names = columns + unknown
    with_slash = {name for place, name in enumerate(columns) if any("/" in values[place] for values in rows)}
    shortest, longest = (_regex(pattern, names, with_slash, more) for more in ("+?", "+"))
    found, alone = [], 0
    for file in _files(data_dir, pattern, DEEPEST if with_slash or "**" in pattern else None):
        if not (first := shortest.fullmatch(file)):
            continue
        matches = [each for each in (first, longest.fullmatch(file)) if each]
        ways = dict.fromkeys(tuple(each[f"n{place}"] for place in range(len(names))) for each in matches)
        fitting = [way for way in ways if way[: len(columns)] in rows]
        if len(fitting) > 1:
            parts = " or ".join(str(dict(zip(names, way, strict=True))) for way in fitting)
            raise MetadataError(data_dir, [f"the file {file} fits images {pattern!r} in two ways: {parts}"])
        for way in fitting:
            found += [Found(row, file, way[len(columns) :]) for row in rows[way[: len(columns)]]]
        alone += not fitting
    return found, alone


def _regex(pattern: str, names: list[str], with_slash: set[str], more: str) -> re.Pattern[str]:
    """Return the pattern as a regular expression with a group for each of `names`, in their order."""
    groups: dict[str, str] = {}
    text = ""
    for literal, name, _, _ in string.Formatter().parse(pattern):
        text += _escaped(literal)
        if name is not None:
            text += groups.get(name, f"(?P<n{names.index(name)}>{'.' if name in with_slash else '[^/]'}{more})")
            groups[name] = f"(?P=n{names.index(name)})"
    return re.compile(text)


def _escaped(literal: str) -> str:
    plain = [re.escape(part) for part in TOKEN.split(literal)]
    wild = [WILDCARDS[token] for token in TOKEN.findall(literal)] + [""]
    return "".join(part + token for part, token in zip(plain, wild, strict=True))


def _files(data_dir: Path, pattern: str, depth: int | None) -> Iterator[str]:
    """Yield every file that the pattern can reach, relative to the data folder, in the order of their names."""
    fixed, slash, _ = re.split(r"[{*]", pattern, maxsplit=1)[0].rpartition("/")
    prefix = fixed + slash
    yield from _walk(data_dir / fixed, prefix, pattern.count("/") - prefix.count("/") if depth is None else depth)


def _walk(folder: Path | str, prefix: str, depth: int) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in listed:
        if entry.name.startswith((".", "__MACOSX")):  # macOS writes ._name beside each file
            continue
        if entry.is_dir():
            if depth:
                yield from _walk(entry.path, f"{prefix}{entry.name}/", depth - 1)
        else:
            yield prefix + entry.name


def _check_one_each(found: list[Found], index: pd.Index, table: Path) -> None:
    """Raise `MetadataError` with the rows that have two files between which nothing in the table can choose."""
    first: dict[tuple[int, tuple[str | None, ...]], str] = {}
    faults = []
    for row, file, captured in found:
        other = first.setdefault((row, captured), file)
        if other != file:
            faults.append(f"row {index[row]} has several files: {_folder(other, file)} and {_folder(file, other)}")
    if faults:
        raise MetadataError(table, faults, ONE_SIZE)


def _folder(file: str, other: str) -> str:
    """Return a file's path up to the first folder that the other's path does not share; all of it if none differs."""
    parts, others = file.split("/"), other.split("/")
    places = (place for place, (part, another) in enumerate(zip(parts, others, strict=False)) if part != another)
    return "/".join(parts[: next(places) + 1])


def _with_files(
    source: pd.DataFrame, found: list[Found], unknown: list[str], data_dir: Path, missing: pd.Series
) -> Images:
    """Return the rows in their order, each once for each of its files."""
    files = defaultdict(list)
    for each in found:
        files[each.row].append(each)
    nothing = (None,) * len(unknown)
    each_row = [files.get(row) or [Found(row, missing.iloc[row], nothing)] for row in range(len(source))]
    rows = [each for of_row in each_row for each in of_row]
    labels = [
        f"{source.index[each.row]} ({each.file})" if len(of_row) > 1 else source.index[each.row]
        for of_row in each_row
        for each in of_row
    ]
    index = source.index if len(rows) == len(source) else pd.Index(labels, dtype=object)
    expanded = source.iloc[[each.row for each in rows]].set_axis(index)
    captured = pd.DataFrame([each.captured for each in rows], index=index, columns=unknown, dtype=object)
    paths = pd.Series([str(data_dir / each.file) for each in rows], index=index, dtype=object)
    exist = pd.Series([each.row in files for each in rows], index=index)
    return Images(pd.concat([expanded, captured], axis=1), paths, exist)
