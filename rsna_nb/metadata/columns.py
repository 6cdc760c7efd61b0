"""The columns of a table as its file has them -> RSNA's columns and values, as a layout says."""

import logging
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rsna_nb.metadata.checks import IDENTITY, MetadataError, differently_written, faults_of, plain_ids
from rsna_nb.metadata.layout import Joined, Layout, Split, fields_of, matching

log = logging.getLogger(__name__)


def derived(source: pd.DataFrame, layout: Layout, split: Split, path: Path) -> pd.DataFrame:
    """Add the columns of `extract` and `pairs`, and leave out the rows that `rows` does not keep.

    What needs a column that the table does not have yet is left to a later call, after other tables, files or headers
    have brought the column.

    Parameters
    ----------
    source
        The table so far, all text. Its index names the rows in messages.
    path
        Its file, for messages.

    Raises
    ------
    MetadataError
        If a regular expression finds nothing, or no row is kept.
    """
    for name, pattern in layout.extract.items():
        groups = list(re.compile(pattern).groupindex)
        if name in source and not set(groups) <= set(source):
            found = source[name].str.extract(pattern)[groups]
            if found.isna().all(axis=None):
                raise MetadataError(path, [f"extract: {pattern!r} matches no value of column {name} ({layout.source})"])
            _log_count(path, found.isna().all(axis=1), f"do not match {pattern!r} in column {name}")
            source = source.assign(**found)
    for new, name in layout.pairs.items():
        if name in source and new not in source:
            number = pd.to_numeric(source[name].str.extract(r"(\d+)\D*$")[0])
            source = source.assign(**{new: ((number + 1) // 2).astype("Int64").astype("string").astype(object)})
    for name, kept in layout.rows.items():
        if name in source:
            source = _kept(source, name, kept[split], path, layout)
    return source


def missing_columns(source: pd.DataFrame, layout: Layout) -> list[str]:
    """Return a fault for each column that `extract`, `pairs` or `rows` need and nothing has brought."""
    needed = {"extract": list(layout.extract), "pairs": list(layout.pairs.values()), "rows": list(layout.rows)}
    return [
        f"column {name!r} is missing: {layout.source} names it in {key}"
        for key, names in needed.items()
        for name in names
        if name not in source
    ]


def _kept(source: pd.DataFrame, name: str, kept: list[str], path: Path, layout: Layout) -> pd.DataFrame:
    """Return the rows whose value of a column is kept; log how many are not."""
    values = source[name].fillna("")
    keep = values.isin([value for value in values.unique() if matching(value, kept) is not None])
    if not keep.any():
        found = ", ".join(map(repr, sorted(values.unique())[:5]))
        raise MetadataError(path, [f"no row has {' or '.join(map(repr, kept))} in column {name}, but {found}"])
    _log_count(path, ~keep, f"are left out: {name} is not {' or '.join(map(repr, kept))} ({layout.source})")
    return source[keep]


def _log_count(path: Path, rows: pd.Series, what: str) -> None:
    if rows.any():
        log.info("%s: %d of %d rows %s", path, rows.sum(), len(rows), what)


def joined(source: pd.DataFrame, right: pd.DataFrame, join: Joined, path: Path, right_path: Path) -> pd.DataFrame:
    """Add another table's columns to the rows with the same keys.

    10006, 10006.0 and 010006 are one key across the two tables; within one of them they are a fault. A column that
    both tables have keeps the values of `source`.

    Raises
    ------
    MetadataError
        If a key is missing or written in several ways, no row has a match, or a row has several without
        `several_rows`.
    """
    faults = [f"column {name!r} is missing" for name in join.on if name not in source]
    faults += [f"column {name!r} of {right_path} is missing" for name in join.on.values() if name not in right]
    if faults:
        raise MetadataError(path, faults)
    for table, names, file in ((source, join.on.keys(), path), (right, join.on.values(), right_path)):
        if faults := [fault for name in names for fault in differently_written(table[name].dropna())]:
            raise MetadataError(file, faults)
    _log_other_spellings(source, right, join.on, path, right_path)
    matches = _matches(source, right, join.on)
    alone = matches["right"].isna()
    if alone.all():
        keys = ", ".join(
            f"{left} = {other}, in the first rows {next(iter(source[left]), '')!r} and {next(iter(right[other]), '')!r}"
            for left, other in join.on.items()
        )
        raise MetadataError(path, [f"no row has a match in {right_path} ({keys})"])
    if alone.any():  # an empty cell may mean that there is no cancer
        words = "%s: %d of %d rows have no match in %s: its columns are empty there"
        log.warning(words, path, alone.sum(), len(alone), right_path)
    several = matches["left"].duplicated(keep=False)
    if several.any() and not join.several_rows:
        rows = source.index[matches.loc[several, "left"].unique()]
        raise MetadataError(path, [f"row {row} has several matches in {right_path}" for row in rows])
    new = right[right.columns.difference([*source.columns], sort=False)].reset_index(drop=True)
    result = source.iloc[matches["left"]].reset_index(drop=True)
    result = pd.concat([result, new.reindex(matches["right"]).reset_index(drop=True)], axis=1)
    result.index = _labels(source.index[matches["left"]], several, matches["right"], right.index, right_path)
    return result


def _log_other_spellings(
    source: pd.DataFrame, right: pd.DataFrame, on: Mapping[str, str], path: Path, right_path: Path
) -> None:
    """Log how many rows have a match only because 10006 and 10006.0 are one key."""
    for left, other in on.items():
        same = plain_ids(source[left]).isin(plain_ids(right[other].dropna())) & ~source[left].isin(right[other])
        _log_count(
            path,
            same & source[left].notna(),
            f"have another spelling of {left} than {right_path}, as 10006 and 10006.0: they are one",
        )


def _matches(source: pd.DataFrame, right: pd.DataFrame, on: Mapping[str, str]) -> pd.DataFrame:
    """Return the places of the rows of two tables that belong together, as the columns left and right."""
    keys = list(on)
    first = pd.DataFrame({name: plain_ids(source[name]) for name in keys}).reset_index(drop=True)
    second = pd.DataFrame({name: plain_ids(right[on[name]]).to_numpy() for name in keys})
    second = second.assign(right=range(len(second))).dropna()  # an empty key would match every empty key
    return first.assign(left=range(len(first))).merge(second, on=keys, how="left")[["left", "right"]]


def _labels(index: pd.Index, several: pd.Series, places: pd.Series, right: pd.Index, path: Path) -> pd.Index:
    """Return names for joined rows: the number in the first table, and in the other if it is needed to tell apart."""
    if not several.any():
        return index
    return pd.Index(
        [
            f"{row} with row {right[int(place)]} of {path.name}" if is_one_of_several else row
            for row, is_one_of_several, place in zip(index, several, places.fillna(-1), strict=True)
        ],
        dtype=object,
    )


def filled(pattern: str, columns: Mapping[Any, pd.Series] | pd.DataFrame, index: pd.Index) -> pd.Series:
    """Replace the names in braces in a pattern by the columns' values; an empty cell is "".

    Raises
    ------
    KeyError
        For a name that is no column.
    """
    text = pd.Series("", index=index, dtype=object)
    for literal, name, _, _ in string.Formatter().parse(pattern):
        text = text + literal
        if name is not None:
            text = text + columns[name].astype(object).fillna("")
    return text


def column(layout: Layout, name: str, source: pd.DataFrame) -> tuple[pd.Series, list[str]]:
    """Return one of RSNA's columns and its faults.

    Raises
    ------
    KeyError
        For a column of the table that is missing.
    """
    pattern = layout.columns.get(name, name)
    if "{" in pattern:
        values = filled(pattern, source, source.index).rename(name)
        if name in IDENTITY and name not in layout.values:  # two women without an id would become one
            values[source[sorted(fields_of(pattern))].isna().any(axis=1)] = None
        values = values.mask(values == "")
    else:
        values = source[pattern].rename(name)
    if name not in layout.values:
        return values, []
    new = layout.values[name]
    distinct = values.fillna("").unique()
    found = {value: matching(value, list(new)) for value in distinct}
    known = {value: new[key] for value, key in found.items() if key is not None}
    faults = faults_of(values.fillna("") if "" in known else values, list(known), f"{_listed(new)} ({layout.source})")
    # Text like everything else that is checked; numbers become numbers at the end.
    texts = {old: None if value is None else str(value) for old, value in known.items()}
    return values.fillna("").map(texts).rename(name), faults


def _listed(values: Mapping[str, object]) -> str:
    return " or ".join(map(repr, values))


def renamed(layout: Layout, source: pd.DataFrame, path: Path) -> pd.DataFrame:
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
    for name in [*layout.columns, *(name for name in layout.values if name not in layout.columns and name in source)]:
        try:
            df[name], wrong = column(layout, name, source)
            faults += wrong
        except KeyError as error:
            faults.append(f"column {error} is missing: {layout.source} names it for {name}")
    if faults:
        raise MetadataError(path, faults)
    return df
