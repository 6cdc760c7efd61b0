"""Settings -> the images of a run: each with its metadata, its side of the split and its picture in the store."""

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rsna_nb import metrics, splits
from rsna_nb.config import RunConfig, resolve
from rsna_nb.metadata import find_data, load_metadata
from rsna_nb.prepare import PrepareError, image_file, prepare_images, store_path
from rsna_nb.splits import SplitError

log = logging.getLogger(__name__)

MOST_FAILED = 0.1  # share of unreadable files above which something is wrong with the data as a whole
PNG_END = 20  # bytes: the checksum of all pixels, that of the last chunk, and the chunk that ends a file


@dataclass(frozen=True)
class Data:
    """`table` has a row for each picture in `store`, with `split` and `file`; `ledger` for each image."""

    table: pd.DataFrame
    ledger: pd.DataFrame
    store: Path

    def rows(self, split: str) -> pd.DataFrame:
        """The rows of "train", "validation", "test" or "unused"."""
        return self.table[self.table["split"] == split].reset_index(drop=True)

    def digests(self) -> np.ndarray:
        """uint64 for each row of the table: another one where another picture was prepared."""
        read = self.ledger[self.ledger["status"] == "ok"].drop(columns="milliseconds")
        return pd.util.hash_pandas_object(read.astype(str), index=False).to_numpy()


def split_table(config: RunConfig) -> tuple[pd.DataFrame, Path]:
    """The checked table with its column `split`, and the folder it came from. Needs no picture."""
    data_dir = find_data(config.data_dir)
    whole = load_metadata(data_dir, mixed_breasts=config.mixed_breasts)
    table = splits.limit_patients(whole, config.limit_patients, config.split_seed)
    return table.assign(split=splits.assign(table, config)), data_dir


def prepare(config: RunConfig, table: pd.DataFrame, data_dir: Path) -> Data:
    """Fill the store with the table's pictures.

    `PrepareError` where more than a tenth is unreadable, `SplitError` where a picture stands in two splits.
    """
    store_dir = resolve(config.store_dir)
    ledger = prepare_images(table, data_dir, store_dir, config.img_size)
    failed = ledger["status"] != "ok"
    if failed.mean() > MOST_FAILED:
        first = ledger[failed].iloc[0]
        raise PrepareError(
            f"{failed.sum()} of {len(ledger)} images cannot be read, more than {MOST_FAILED:.0%}: the first is "
            f"{first['patient_id']}/{first['image_id']}: {first['error']}"
        )
    store = store_path(store_dir, data_dir, config.img_size)
    readable = table[~failed.to_numpy()].reset_index(drop=True)
    try:
        splits.check_sides(readable["cancer"], readable["split"], sorted({*table["split"]} - {splits.UNUSED}))
    except SplitError as error:
        raise SplitError(
            f"without the {failed.sum()} images that cannot be read (see {store / 'ledger.csv'}): {error}"
        ) from error
    files = [str(image_file(store, *ids)) for ids in zip(readable["patient_id"], readable["image_id"], strict=True)]
    readable["file"] = files
    check_pictures(readable.assign(png_bytes=ledger.loc[~failed, "png_bytes"].to_numpy()))
    return Data(readable, ledger, store)


def check_pictures(table: pd.DataFrame) -> None:
    """`SplitError` where one picture stands in two splits; one that is there twice in one split is logged.

    `table` has `png_bytes` besides the columns of `Data.table`.
    """
    pairs = list(same_pictures(table))
    across = [(one, other) for one, other in pairs if one["split"] != other["split"]]
    for one, other in pairs:
        log.warning("the same picture: %s and %s", described(one), described(other))
    if across:
        raise SplitError(
            f"{described(across[0][0])} and {described(across[0][1])} are the same picture, so that a model would be "
            f"judged on what it has learned ({len(across)} such pairs): give their rows of the table one patient_id, "
            "or take one of them out"
        )


def same_pictures(table: pd.DataFrame) -> Iterator[tuple[pd.Series, pd.Series]]:
    """Rows whose pictures are the same to the byte, each beside the first of its kind.

    Most files are told apart by their size in the ledger, and nearly all others by the checksum at their end; only the
    rest are read.
    """
    rows = table[table.duplicated("png_bytes", keep=False)]
    rows = rows.assign(end=rows["file"].map(end_of))
    rows = rows[rows.duplicated(["png_bytes", "end"], keep=False)]
    for _, twins in rows.groupby(rows["file"].map(digest_of), sort=False):
        first, *others = (row for _, row in twins.iterrows())
        yield from ((first, other) for other in others)


def end_of(file: str) -> str:
    with open(file, "rb") as content:
        content.seek(-PNG_END, os.SEEK_END)
        return content.read().hex()


def digest_of(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def described(row: pd.Series) -> str:
    return f"{row['patient_id']}/{row['image_id']} ({row['split']})"


def class_weights(config: RunConfig, training: pd.DataFrame) -> dict[int, float]:
    """{0: weight, 1: weight} of the training loss, as the setting `imbalance` asks."""
    return metrics.class_weights(training["cancer"]) if config.imbalance == "class_weight" else {0: 1.0, 1: 1.0}
