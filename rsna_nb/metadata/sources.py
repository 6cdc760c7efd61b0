"""Where the tables of a data folder are: in it, or in a folder near it."""

import logging
from collections.abc import Iterator
from pathlib import Path

from rsna_nb.config import resolve
from rsna_nb.metadata import kaggle
from rsna_nb.metadata.checks import MetadataError
from rsna_nb.metadata.layout import SPLITS, Layout, Split

log = logging.getLogger(__name__)

GIVE_TABLE = "Give the table, or a folder that contains it, as the setting table"


def find_tables(layout: Layout, data_dir: Path, split: Split, table: str | Path = "") -> list[Path]:
    """Return the files with the rows of a split; the log names a table that is not in the data folder.

    Parameters
    ----------
    layout
        The data folder's layout.
    data_dir
        The folder of the images.
    split
        "train" or "test".
    table
        A table, or a folder with the layout's tables. "" looks in `data_dir`, then in the two folders above it, in the
        competition's folder on Kaggle, and in the folders beside it.

    Raises
    ------
    MetadataError
        If there is no such table, several are found, or the data set has no rows of its own for the split.
    """
    if not layout.is_split and split == "test":
        fault = f"{layout.source} does not say which rows are for testing: rows must name a column, or table {{split}}"
        raise MetadataError(data_dir, [fault])
    if table:
        return _given(layout, resolve(table), split)
    if found := _tables(layout, data_dir, split):
        return found
    name = layout.table[0].format(split=split)
    if not _has_content(data_dir):
        fault = "this folder is empty" if data_dir.is_dir() else "there is no such folder"
        raise MetadataError(data_dir, [fault], "Check the setting data_dir")
    if any(_tables(layout, data_dir, each) for each in SPLITS):
        raise MetadataError(data_dir / name, [f"there is no such table in the data folder {data_dir}"])
    for folders in _nearby(data_dir):
        near = {folder.resolve(): each for folder in folders if (each := _tables(layout, folder, split))}
        if len(near) > 1 and len({tuple(file.read_bytes() for file in files) for files in near.values()}) > 1:
            listed = ", ".join(str(files[0]) for files in near.values())
            fault = f"the folder has no table, and several near it may be meant: {listed}"
            raise MetadataError(data_dir, [fault], GIVE_TABLE)
        for files in near.values():
            log.info("table: %s has no %s, so %s is taken", data_dir, name, ", ".join(map(str, files)))
            return files
    fault = f"there is no such table in the data folder {data_dir}, nor above or beside it"
    raise MetadataError(data_dir / name, [fault], GIVE_TABLE)


def find_joined(pattern: str, data_dir: Path, main: Path, split: Split) -> Path:
    """Return the file of a joined table: in the data folder, or in the folder of the first table or above it."""
    name = pattern.format(split=split)
    folders = [data_dir, main.parent, *main.parent.parents[: name.count("/") + 1]]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise MetadataError(data_dir / name, [f"there is no such table in {data_dir} or beside {main}"])


def _given(layout: Layout, table: Path, split: Split) -> list[Path]:
    """Return the tables that the setting `table` means."""
    if table.is_dir():
        if found := _tables(layout, table, split):
            return found
        names = " or ".join(name.format(split=split) for name in layout.table)
        raise MetadataError(table, [f"there is no {names} in this folder, which the setting table names"])
    # A file that is named like one of a split's tables stands for them: train.csv has no rows for testing.
    same_for_both = split == "test" and not any(kept["train"] != kept["test"] for kept in layout.rows.values())
    for name in layout.table:
        if "{split}" in name and table.name in [Path(name.format(split=each)).name for each in SPLITS]:
            table, same_for_both = table.with_name(Path(name.format(split=split)).name), False
    if same_for_both:
        raise MetadataError(table, ["one table cannot serve for training and testing: give the folder of both tables"])
    if not table.is_file():
        raise MetadataError(table, ["there is no such table, which the setting table names"])
    return [table]


def _tables(layout: Layout, folder: Path, split: Split) -> list[Path]:
    """Return the layout's tables that a folder has."""
    return [path for name in layout.table if (path := folder / name.format(split=split)).is_file()]


def _has_content(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _nearby(data_dir: Path) -> Iterator[list[Path]]:
    """Yield folders that may hold the table, the likeliest first."""
    folder = data_dir.absolute()
    yield from ([above] for above in folder.parents[:2])
    if mounted := kaggle.mounted():
        yield [mounted]
    try:
        beside = sorted(each for each in folder.parent.iterdir() if each.is_dir() and each != folder)
    except OSError:  # not ours to read
        beside = []
    yield beside
