"""Times `load_metadata` on a table with RSNA's counts, for the competition's folder and for radek1's PNG files.

The images are hard links to a few drawn ones, so that 54,706 files cost no space. For each folder it prints the number
of images, women, positive images and breasts with cancer, and the seconds with and without the look for every file. It
fails if the counts are not the published ones.

    python tests/bench/bench_datasets.py [--folder <an empty folder on the disk to be measured>]
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # for the package of the tests

import pandas as pd

from rsna_nb.metadata import load_metadata
from rsna_nb.system import write_whole
from tests.datasets import write
from tests.test_imbalance import rsna_table

PUBLISHED = (54_706, 11_913, 1_158, 492)
PICTURES = 8  # a file system allows tens of thousands of links to a file
FOLDERS = {
    "competition, DICOM": "train_images/{}/{}.dcm",
    "radek1, 256": "train_images_processed_cv2_256/{}/{}.png",
    "radek1, 512": "train_images_processed_512/{}/{}.png",
    "radek1, 1024": "train_images_processed_1024/{}/{}.png",
}


def linked(folder: Path, table: pd.DataFrame, pattern: str) -> None:
    """Write the table, and a file for each of its rows."""
    write_whole(folder / "train.csv", table.to_csv(index=False).encode())
    pictures = [write(folder / f"{number}{Path(pattern).suffix}", number) for number in range(PICTURES)]
    for number, (patient, image) in enumerate(zip(table["patient_id"], table["image_id"], strict=True)):
        path = folder / pattern.format(patient, image)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(pictures[number % PICTURES], path)
    for picture in pictures:
        picture.unlink()


def counts(df: pd.DataFrame) -> tuple[int, int, int, int]:
    breasts = df.groupby(["patient_id", "laterality"])["cancer"].max()
    return len(df), df["patient_id"].nunique(), int(df["cancer"].sum()), int(breasts.sum())


def timed(folder: Path, check_files: bool) -> tuple[pd.DataFrame, float]:
    start = time.perf_counter()
    df = load_metadata(folder, check_files=check_files)
    return df, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", default="", help="where the links are made; the default is a temporary folder")
    chosen = parser.parse_args()
    table = rsna_table()
    with tempfile.TemporaryDirectory(dir=chosen.folder or None) as base:
        for name, pattern in FOLDERS.items():
            folder = Path(base) / name
            folder.mkdir()
            linked(folder, table, pattern)
            df, checked = timed(folder, check_files=True)
            _, unchecked = timed(folder, check_files=False)
            found = counts(df)
            print(f"{name:20} {found} {checked:6.1f} s, {unchecked:6.1f} s without the look for each file")
            if found != PUBLISHED:
                sys.exit(f"{name}: {found} and not {PUBLISHED}")


if __name__ == "__main__":
    main()
