"""Every file of a table -> a store of 8-bit PNG images and a ledger.

    store_dir/<data set>-<height>x<width>[-<recipe>]-<key>/
      ledger.csv                         a row for each file: how it was read, or why it could not be
      images/<patient_id>/<image_id>.png

The ledger grows while preparing runs and is sorted at the end. Rerun a killed run to continue where it stopped.
Images are written atomically.
"""

import hashlib
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from rsna_nb.dicom import reader_of, shape_of
from rsna_nb.prepare import ledger as ledgers
from rsna_nb.prepare.ledger import COLUMNS, Ledger
from rsna_nb.prepare.tasks import GONE, PrepareError, Task, Work, compared, fingerprint, run, state
from rsna_nb.system import SAME, digest, locked, remove_parts

if TYPE_CHECKING:
    from rsna_nb.config import ImageRecipe

log = logging.getLogger(__name__)

KEY = ["patient_id", "image_id"]
STATED = ["laterality", "view"]  # by the table; a header that contradicts it is noted
RECIPE = 4  # version of the pixels: raise it when a file gives other pixels, so that old stores are not reused
OTHER_RECIPES = {"rsna-first-place": 1}  # versions of the other recipes, likewise
BYTES_PER_PIXEL = 0.3  # in a PNG, with a reserve: mammograms take 0.22 (58 KiB for 512 x 512)


def store_path(
    store_dir: str | Path, data_dir: str | Path, img_size: int | Sequence[int], recipe: "ImageRecipe | None" = None
) -> Path:
    """Return the folder of a store. Each data folder, size and recipe has its own; None is the recipe "breast".

    The name ends with a hash of all three, so that two data folders of the same name do not share a store. The hash
    includes the content of the breast detector's file.

    Raises
    ------
    DetectorError
        If the recipe's breast detector cannot be used.
    """
    data_dir = Path(data_dir).resolve()
    height, width = shape_of(img_size)
    name, version = f"{height}x{width}", f"{RECIPE}"
    if recipe and recipe.name != "breast":
        reader_of(recipe)  # checks the detector
        detector = digest(recipe.detector) if recipe.detector else ""
        name, version = f"{name}-{recipe.name}", f"{recipe.name} {OTHER_RECIPES[recipe.name]} {detector}"
    key = hashlib.sha256(f"{data_dir}|{height}x{width}|{version}".encode()).hexdigest()[:8]
    return Path(store_dir) / f"{data_dir.name}-{name}-{key}"


def prepare_images(
    metadata: pd.DataFrame,
    data_dir: str | Path,
    store_dir: str | Path,
    img_size: int | Sequence[int],
    executor: Executor | None = None,
    work: Work | None = None,
    recipe: "ImageRecipe | None" = None,
) -> pd.DataFrame:
    """Read every image of a table into the store. Images that it already holds, unchanged, are not read again.

    Parameters
    ----------
    metadata
        The table from `metadata.load_metadata`, or some of its rows.
    data_dir
        The data folder that the table comes from.
    store_dir
        The folder of all stores.
    img_size
        Side of a square, or (height, width), in pixels.
    executor
        Any `concurrent.futures.Executor` whose workers see the same folders, for instance that of a Dask cluster.
        None starts a process for each core of this computer, with limits of time and memory for each file.
    work
        What a worker does with a file, `prepare_one` by default. `archive` takes the file out of a zip archive first.
    recipe
        The preprocessing (`RunConfig.image_recipe`); None is "breast". Each recipe has its own store.

    Returns
    -------
    The ledger (see `Record`), a row for each image in the order of the table. A file that could not be read has status
    "error" and its reason. The next call tries it again. The image of a file that is gone is kept.

    Raises
    ------
    PrepareError
        If the disk has too little space, if the executor breaks, or if the table lists an image twice.
    DetectorError
        If the recipe's breast detector cannot be used.

    Examples
    --------
    >>> import tempfile
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from rsna_nb import synthetic
    >>> from rsna_nb.metadata import load_metadata
    >>> folder = synthetic.generate(tempfile.mkdtemp(), patients=2, prevalence=0.5, scale=0.05, workers=1)
    >>> table = load_metadata(folder).head(4)
    >>> ledger = prepare_images(table, folder, folder / "prepared", 64, ThreadPoolExecutor(1))
    >>> ledger["status"].tolist()
    ['ok', 'ok', 'ok', 'ok']
    """
    store, shape = store_path(store_dir, data_dir, img_size, recipe), shape_of(img_size)
    recipe = recipe if recipe and recipe.name != "breast" else None  # workers then need not import config.py
    if recipe and not recipe.detector:
        log.warning("reading %s without a breast detector: Otsu's threshold crops every image", recipe.name)
    _check_unique(metadata)
    with locked(store):  # a second process waits here, and then finds the work done
        ledger = ledgers.read(store)
        rows = metadata.reindex(columns=[*KEY, "path", *STATED], fill_value="").itertuples(index=False)
        wanted = [replace(Task(store, shape, *row), recipe=recipe) for row in rows]
        states = {task: state(ledger.get(task.key), task) for task in wanted}
        if kept := Counter(states.values())["kept"]:
            log.info("files that are gone, whose prepared images are kept: %d", kept)
        tasks = [task for task, found in states.items() if found == "outdated"]
        if tasks:
            _check_space(store, len(tasks), shape)
            _warn_of_changes(tasks, ledger)
            for record in run(tasks, executor, work):
                ledgers.append(store, record)
                ledger[record.patient_id, record.image_id] = record
            remove_parts(store)  # files that a killed worker had begun to write
        ledger |= {task.key: compared(ledger[task.key], task) for task in states}
        ledgers.write(store, ledger)
    found = [vars(ledger[key]) for key in zip(*(metadata[name] for name in KEY), strict=True)]
    df = pd.DataFrame(found, columns=COLUMNS)
    _log_outcome(df, store)
    return df


def _check_unique(metadata: pd.DataFrame) -> None:
    """Raise `PrepareError` if two rows would write the same image."""
    # In small letters: names of files that differ only in case are one file on some systems.
    twice = metadata.loc[metadata[KEY].apply(lambda ids: ids.astype(str).str.lower()).duplicated(), KEY]
    if len(twice):
        first = "/".join(map(str, twice.iloc[0]))
        raise PrepareError(
            f"{len(twice)} images occur in the table more than once, first {first}, or differ from another only in "
            "upper and lower case: keep one row of each"
        )


def _check_space(store: Path, images: int, shape: tuple[int, int]) -> None:
    """Log the space that the images will take; `PrepareError` if the disk has less."""
    needed, free = images * shape[0] * shape[1] * BYTES_PER_PIXEL, shutil.disk_usage(store).free
    log.info("preparing %d images in %s: about %.2f GB of %.1f GB free", images, store, needed / 1e9, free / 1e9)
    if needed > free:
        raise PrepareError(
            f"{store}: {images} images of {shape[0]} x {shape[1]} take about {needed / 1e9:.1f} GB and the disk has "
            f"{free / 1e9:.1f} GB free: make room, or set store_dir to another disk"
        )


def _warn_of_changes(tasks: list[Task], ledger: Ledger) -> None:
    """Log that images will be replaced because their files have changed since."""
    changed = [
        task.path
        for task in tasks
        if (old := ledger.get(task.key)) and old.status == "ok" and fingerprint(task.path) not in (old.source, GONE)
    ]
    if changed:
        log.warning(
            "files changed since they were prepared: %d, first %s; replacing their images", len(changed), changed[0]
        )


def _log_outcome(ledger: pd.DataFrame, store: Path) -> None:
    """Log how many images there are, how many files could not be read, by reason, and how many are noted, by note."""
    errors = ledger[ledger["status"] == "error"]
    log.info(
        "prepared: %d images in %s, %d files unreadable", len(ledger) - len(errors), store, len(errors), extra=SAME
    )
    for reason, count in errors["error"].str.split(":").str[0].value_counts().items():
        log.warning("unreadable: %d x %s", count, reason, extra=SAME)
    for row in ledgers.count_notes(ledger).itertuples():
        log.warning("noted: %d x %s (%s)", row.files, row.note, row.meaning, extra=SAME)
