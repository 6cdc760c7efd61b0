"""Settings -> the images of a run: each with its metadata, its split and its prepared image in the store."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rsna_nb import splits
from rsna_nb.config import ConfigError, RunConfig, resolve
from rsna_nb.dicom import NOTES
from rsna_nb.metadata import find_data, load_metadata
from rsna_nb.prepare import PrepareError, image_file, prepare_images, store_path
from rsna_nb.splits import SplitError
from rsna_nb.system import digest, make_folder

log = logging.getLogger(__name__)

MOST_FAILED = 0.1  # a larger fraction of unreadable files means that something is wrong with the data set
PNG_END = 20  # bytes: the checksums of the pixels and of the last data chunk, and the chunk that ends a file


@dataclass(frozen=True)
class Data:
    """A run's images."""

    table: pd.DataFrame  # a row for each image that is used: its metadata, `split` and `file`
    ledger: pd.DataFrame  # a row for each image of the data set; `used` is False where it is unreadable or left out
    store: Path

    def rows(self, split: str) -> pd.DataFrame:
        """The rows of "train", "validation", "test" or "unused"."""
        return self.table[self.table["split"] == split].reset_index(drop=True)

    def digests(self) -> np.ndarray:
        """A uint64 for each row of the table, which changes if the image is prepared again from another file."""
        # Without the time that preparation took, which differs each time.
        read = self.ledger[self.ledger["used"]].drop(columns=["milliseconds", "used"])
        return pd.util.hash_pandas_object(read.astype(str), index=False).to_numpy()


def split_table(config: RunConfig) -> tuple[pd.DataFrame, Path]:
    """The checked table of the data set with its column `split`, and its folder. No image is read.

    Raises
    ------
    ConfigError
        If `leave_out_notes` names a note that does not exist.
    MetadataError, SplitError
        If the table is faulty, or has too few women for the split.
    """
    chosen_notes(config.leave_out_notes)
    data_dir = find_data(config.data_dir)
    whole = load_metadata(data_dir, mixed_breasts=config.mixed_breasts, table=config.table)
    table = splits.limit_patients(whole, config.limit_patients, config.split_seed)
    return table.assign(split=splits.assign(table, config)), data_dir


def prepare(config: RunConfig, table: pd.DataFrame, data_dir: Path) -> Data:
    """Fill the store with the images of the table that `split_table` returned.

    Raises
    ------
    OSError
        If nothing can be written into the store or the folder of the runs.
    PrepareError
        If more than a tenth of the files is unreadable.
    DetectorError
        If the breast detector of the setting `roi_detector` cannot be used.
    SplitError
        If the readable images of a split lack a class, or the same image is in two splits.
    """
    store_dir = resolve(config.store_dir)
    for folder in (store_dir, resolve(config.runs_dir)):  # now, because preparing may take hours
        make_folder(folder)
    ledger = prepare_images(table, data_dir, store_dir, config.img_size, recipe=config.image_recipe)
    failed, noted = ledger["status"] != "ok", has_note(ledger, config.leave_out_notes)
    if failed.mean() > MOST_FAILED:
        first = ledger[failed].iloc[0]
        raise PrepareError(
            f"{failed.sum()} of {len(ledger)} images cannot be read, more than {MOST_FAILED:.0%}: the first is "
            f"{first['patient_id']}/{first['image_id']}: {first['error']}"
        )
    store = store_path(store_dir, data_dir, config.img_size, config.image_recipe)
    if noted.any():
        log.warning("leave_out_notes %r leaves out %d of %d images", config.leave_out_notes, noted.sum(), len(ledger))
    ledger["used"] = ~failed & ~noted
    used = table[ledger["used"].to_numpy()].reset_index(drop=True)
    try:
        splits.check_sides(used["cancer"], used["split"], sorted({*table["split"]} - {splits.UNUSED}))
    except SplitError as error:
        others = f" and the {noted.sum()} that leave_out_notes leaves out" if noted.any() else ""
        raise SplitError(
            f"without the {failed.sum()} images that cannot be read{others} (see {store / 'ledger.csv'}): {error}"
        ) from error
    used["file"] = [str(image_file(store, *ids)) for ids in zip(used["patient_id"], used["image_id"], strict=True)]
    # Two files of one image under different ids are not seen in the table: they can put one woman into two splits.
    check_pictures(used.assign(png_bytes=ledger.loc[ledger["used"], "png_bytes"].to_numpy()))
    return Data(used, ledger, store)


def chosen_notes(leave_out_notes: str) -> set[str]:
    """The notes that the setting `leave_out_notes` names; `ConfigError` for one that does not exist.

    >>> chosen_notes("turned, view") == {"turned", "view"}
    True
    """
    if leave_out_notes.strip() == "all":
        return set(NOTES)
    chosen = {note.strip() for note in leave_out_notes.split(",")} - {""}
    if unknown := sorted(chosen - set(NOTES)):
        raise ConfigError(f"leave_out_notes: there is no note {unknown[0]!r}; the notes are {', '.join(NOTES)}, or all")
    return chosen


def has_note(ledger: pd.DataFrame, leave_out_notes: str) -> pd.Series:
    """Whether each row of a ledger has one of the notes that the setting `leave_out_notes` names."""
    chosen = chosen_notes(leave_out_notes)
    return ledger["notes"].map(lambda notes: not chosen.isdisjoint(notes.split("; "))).astype(bool)


def check_pictures(table: pd.DataFrame) -> None:
    """Refuse a table in which one image is in two splits; log images that occur twice.

    Parameters
    ----------
    table
        As `Data.table`, with the column png_bytes of the ledger.

    Raises
    ------
    SplitError
        Names the first such pair of images and says what to do.
    """
    pairs = list(same_pictures(table))
    across = [pair for pair in pairs if pair[0]["split"] != pair[1]["split"]]
    for pair in pairs:
        log.warning("the same image: %s and %s", *map(_described, pair))
    if across:
        raise SplitError(
            f"{' and '.join(map(_described, across[0]))} are the same image, so the model would be evaluated on an "
            f"image that it was trained on ({len(across)} such pairs): give their rows of the table one patient_id, "
            "or remove one of them"
        )


def same_pictures(table: pd.DataFrame) -> Iterator[tuple[pd.Series, pd.Series]]:
    """Pairs of rows whose PNG files have the same bytes: the first such row, and another.

    Reading every file of a large store takes minutes. File sizes, which the ledger has, tell most files apart, and
    the checksums at their end nearly all others; only the remaining files are read.
    """
    rows = table[table.duplicated("png_bytes", keep=False)]
    rows = rows.assign(end=rows["file"].map(_end_of))
    rows = rows[rows.duplicated(["png_bytes", "end"], keep=False)]
    digests = rows["file"].map(digest)
    for _, twins in rows.groupby(digests, sort=False):
        first, *others = (row for _, row in twins.iterrows())
        yield from ((first, other) for other in others)


def _end_of(file: str) -> bytes:
    with open(file, "rb") as content:
        content.seek(-PNG_END, os.SEEK_END)
        return content.read()


def _described(row: pd.Series) -> str:
    return f"{row['patient_id']}/{row['image_id']} ({row['split']})"
