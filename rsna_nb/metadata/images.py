"""Each row's image, as a layout's `images` and `headers` say."""

import contextlib
import logging
from pathlib import Path

import pandas as pd

from rsna_nb.metadata.checks import IDENTITY, MetadataError, shortened
from rsna_nb.metadata.columns import column, derived
from rsna_nb.metadata.file_headers import with_headers
from rsna_nb.metadata.layout import Layout, Split, fields_of
from rsna_nb.metadata.search import Images, is_searched, named_paths, searched

log = logging.getLogger(__name__)


def early_files(
    layout: Layout, source: pd.DataFrame, split: Split, data_dir: Path, path: Path
) -> tuple[pd.DataFrame, pd.Series | None]:
    """Find the files before columns are renamed, where they are searched or bring columns.

    Parameters
    ----------
    layout
        The data folder's layout.
    source
        The table, all text.
    split
        "train" or "test".
    data_dir
        The data folder.
    path
        The table's file, for messages.

    Returns
    -------
    The table with the new columns, a row for each image, and the rows' files; None for files that the table names.

    Raises
    ------
    MetadataError
        As `searched` and `with_headers`.
    """
    if "images" not in layout.model_fields_set:
        return source, None
    known = _known(layout, source, split)
    if is_searched(layout.images, known):
        images = searched(layout.images, known, source, data_dir, path)
    elif layout.headers:
        paths = pd.Series(named_paths(layout.images, known, data_dir, source.index, path), source.index, dtype=object)
        images = Images(source, paths, paths.map(lambda file: Path(file).is_file()))
    else:
        return source, None
    before = set(source.columns)
    if layout.headers:
        images = with_headers(images, layout.headers, path)
    images = _without_lost_rows(images, layout, before, path)
    source = derived(images.source, layout, split, path)
    return source, images.paths[source.index]


def _known(layout: Layout, source: pd.DataFrame, split: Split) -> dict[str, pd.Series]:
    """Return the columns that `images` names and that need no file: RSNA's four, and the table's own."""
    known = {"split": pd.Series(split, index=source.index)}
    for name in fields_of(layout.images) - {"split"}:
        with contextlib.suppress(KeyError):
            known[name] = column(layout, name, source)[0] if name in IDENTITY else source[name]
    return known


def _without_lost_rows(images: Images, layout: Layout, before: set[str], path: Path) -> Images:
    """Leave out the rows without a file if only the file could tell who or what they show."""
    new = set(images.source.columns) - before
    needed = {field for name in IDENTITY for field in _columns_of(layout, name)} | set(layout.headers)
    if new.isdisjoint(needed) or images.exist.all():
        return images
    lost = images.source.index[~images.exist]
    names = ", ".join(sorted(new & needed))
    rows = shortened([f"row {row}" for row in lost])
    log.warning("%s: %d rows without a file are left out, since only files have %s: %s", path, len(lost), names, rows)
    keep = images.exist
    return Images(images.source[keep], images.paths[keep], keep[keep])


def _columns_of(layout: Layout, name: str) -> set[str]:
    """Return the table's columns that one of RSNA's is made of."""
    pattern = layout.columns.get(name, name)
    return fields_of(pattern) if "{" in pattern else {pattern}


def named_files(
    layout: Layout, source: pd.DataFrame, df: pd.DataFrame, split: Split, data_dir: Path, path: Path
) -> list[str]:
    """Return the files that the table names whole.

    Parameters
    ----------
    layout, split, data_dir, path
        As for `early_files`.
    source, df
        The table as it is in the file, and in RSNA's columns: `images` may name the columns of both.

    Raises
    ------
    MetadataError
        If `images` names a column that is missing, or a path leaves the data folder.
    """
    known = {**source, **df[IDENTITY], "split": pd.Series(split, index=df.index)}
    try:
        return named_paths(layout.images, known, data_dir, df.index, path)
    except KeyError as error:
        raise MetadataError(path, [f"column {error} is missing: {layout.source} names it in images"]) from error


def check_one_image_a_file(df: pd.DataFrame, path: Path) -> None:
    """Raise `MetadataError` if two images have one file, so that one of them would have the other's label."""
    ids = df[["path", "image_id"]].drop_duplicates()
    shared = ids[ids["path"].duplicated()]
    if len(shared):
        first = ids.drop_duplicates("path").set_index("path")["image_id"]
        faults = [
            f"row {row}: image_id {image_id} has the same file as {first[file]}: {file}"
            for row, file, image_id in shared.itertuples()
        ]
        raise MetadataError(path, faults, "Let images name what tells them apart")
