"""Every DICOM file -> a store of 8-bit PNG pictures and a ledger with a row for each file.

    store_dir/<data set>-<height>x<width>-<key>/
      ledger.csv                         a row a file: what it was and how it was read, or why it was not
      images/<patient_id>/<image_id>.png

The ledger is appended to while the work goes on and sorted at its end, so that a killed run goes on
where it was. A picture is whole or not there.
"""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from rsna_nb.dicom import reader as dicom
from rsna_nb.prepare import ledger as ledgers
from rsna_nb.prepare.ledger import COLUMNS, Record
from rsna_nb.system import locked, remove_parts, workers, write_whole

log = logging.getLogger(__name__)

RECIPE = 2  # raise it whenever the same file gives other pixels: old stores are then left alone
CONNECT_SECONDS = 20
STOPPING = (BrokenExecutor, CancelledError, OSError)  # which are not of one file, as a full disk
BYTES_A_PIXEL = 0.3  # of a PNG; mammograms take 0.22 (58 KiB at 512 square)


class PrepareError(RuntimeError):
    """The store cannot be made: no space, or too many files that cannot be read."""


@dataclass(frozen=True)
class Task:
    """One file to prepare: all that a worker needs to know."""

    store: Path
    shape: tuple[int, int]
    patient_id: str
    image_id: str
    path: str

    @property
    def key(self) -> tuple[str, str]:
        return self.patient_id, self.image_id

    @property
    def png(self) -> Path:
        return image_file(self.store, self.patient_id, self.image_id)


def store_path(store_dir: str | Path, data_dir: str | Path, img_size: int | list[int]) -> Path:
    """The store's own folder: another data set, size or recipe is another store."""
    data_dir = Path(data_dir).resolve()
    height, width = shape_of(img_size)
    key = hashlib.sha256(f"{data_dir}|{height}x{width}|{RECIPE}".encode()).hexdigest()[:8]
    return Path(store_dir) / f"{data_dir.name}-{height}x{width}-{key}"


def image_file(store: str | Path, patient_id: str, image_id: str) -> Path:
    return Path(store) / "images" / patient_id / f"{image_id}.png"


def prepare_images(
    metadata: pd.DataFrame,
    data_dir: str | Path,
    store_dir: str | Path,
    img_size: int | list[int],
    executor: Executor | None = None,
) -> pd.DataFrame:
    """Read every image of the table into the store and return the ledger, a row an image in the table's order.

    Parameters
    ----------
    metadata
        As `metadata.load_metadata` returns it, or some of its rows.
    data_dir, store_dir, img_size
        Where the data came from, the folder of all stores, and the size in pixels: a side or [height, width].
    executor
        Any `concurrent.futures.Executor` whose workers see the same folders, a Dask cluster's for one. None starts
        a process for each core here, with limits of time and memory for each file (see workers.py).

    Notes
    -----
    What is in the store already is left alone, unless the file's size or time of change is another. A file
    that could not be read, or whose worker died, is tried again.

    Raises
    ------
    PrepareError
        Where the disk has too little space (what is needed is logged first), or where the executor breaks.
    """
    store = store_path(store_dir, data_dir, img_size)
    with locked(store):
        ledger = ledgers.read(store)
        rows = zip(metadata["patient_id"], metadata["image_id"], metadata["path"], strict=True)
        tasks = [Task(store, shape_of(img_size), *row) for row in rows]
        tasks = [task for task in tasks if not is_current(ledger.get(task.key), task)]
        if tasks:
            check_space(store, len(tasks), img_size)
            for record in run(tasks, executor):
                ledgers.append(store, record)
                ledger[record.patient_id, record.image_id] = record
            remove_parts(store)
        ledgers.write(store, ledger)
    keys = zip(metadata["patient_id"], metadata["image_id"], strict=True)
    df = pd.DataFrame([asdict(ledger[key]) for key in keys], columns=COLUMNS)
    report(df, store)
    return df


def report(ledger: pd.DataFrame, store: Path) -> None:
    errors = ledger[ledger["status"] == "error"]
    log.info("prepared: %d images in %s, %d left out", len(ledger) - len(errors), store, len(errors))
    for reason, count in errors["error"].str.split(":").str[0].value_counts().items():
        log.warning("left out: %d x %s", count, reason)


def shape_of(img_size: int | list[int]) -> tuple[int, int]:
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    return height, width


def prepare_one(task: Task) -> Record:
    """Read one file and write its picture; whatever is wrong with the file becomes the record's error."""
    started = time.perf_counter()
    source = source_of(task)
    cv2.setNumThreads(1)  # the processes share the cores
    try:
        reading = dicom.read(task.path, task.shape)
    except dicom.DicomError as error:
        return replace(failed(task, error.reason), milliseconds=elapsed(started))
    png = cv2.imencode(".png", to_8_bits(reading.picture))[1].tobytes()
    write_whole(task.png, png)
    return replace(
        source,
        transfer_syntax=reading.transfer_syntax,
        photometric=reading.photometric,
        window=reading.window,
        bits=reading.bits,
        rows=reading.rows,
        columns=reading.columns,
        level=reading.level,
        crop=" ".join(map(str, reading.crop)),
        png_bytes=len(png),
        milliseconds=elapsed(started),
    )


def source_of(task: Task) -> Record:
    """A record of the file alone."""
    size, mtime = fingerprint(task.path)
    return Record(task.patient_id, task.image_id, source_bytes=size, source_mtime=mtime)


def failed(task: Task, reason: str) -> Record:
    """The record of a file that has no picture; one that it had goes."""
    task.png.unlink(missing_ok=True)
    return replace(source_of(task), status="error", error=reason)


def to_8_bits(picture: np.ndarray) -> np.ndarray:
    """0-1 as uint8, rounded: what the store holds, and so what a model sees."""
    return np.rint(255 * picture).astype(np.uint8)


def fingerprint(path: str) -> tuple[int, int]:
    """(bytes, time of change in ns) of a file, zeros where it is missing."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def elapsed(started: float) -> float:
    return round(1000 * (time.perf_counter() - started), 1)


def is_current(record: Record | None, task: Task) -> bool:
    """Whether the store holds the picture of this very file, whole."""
    if record is None or record.status != "ok":
        return False
    same_source = fingerprint(task.path) == (record.source_bytes, record.source_mtime)
    return same_source and fingerprint(str(task.png))[0] == record.png_bytes


def run(tasks: list[Task], executor: Executor | None) -> Iterator[Record]:
    """The tasks' records as they finish, under a progress bar with the rate and the time left."""
    outcomes = through(executor, tasks) if executor else workers.run(prepare_one, tasks)
    try:
        for task, outcome in tqdm(outcomes, "preparing", len(tasks), unit=" images", mininterval=1):
            yield outcome if isinstance(outcome, Record) else failed(task, outcome.reason)
    except STOPPING as error:
        where = tasks[0].store
        raise PrepareError(f"{where}: stopped by {error!r}: started again, preparing goes on where it was") from error


@contextmanager
def cluster(address: str) -> Iterator[Executor | None]:
    """The executor of a Dask cluster, by the address of its scheduler, such as "tcp://host:8786"; None for "".

    Its workers need this package, and the data and the store under the same paths.

    Raises
    ------
    PrepareError
        Where Dask is not installed, or nothing answers at the address.
    """
    if not address:
        yield None
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise PrepareError("a scheduler needs Dask: pip install 'rsna_nb[cluster]'") from error
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise PrepareError(f"no Dask scheduler answers at {address!r}: {error}") from error
    with client:
        yield client.get_executor(pure=False)  # the same task may find another file


def through(executor: Executor, tasks: list[Task]) -> Iterator[tuple[Task, Record | workers.Death]]:
    """As `workers.run`, by somebody else's workers: an exception is all that is known of one that died."""
    futures = {executor.submit(prepare_one, task): task for task in tasks}
    try:
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except STOPPING:
                raise
            except Exception as error:  # such as dask.distributed's KilledWorker
                yield futures[future], workers.Death(f"{type(error).__name__}: {error}")
    finally:
        for future in futures:
            future.cancel()


def check_space(store: Path, images: int, img_size: int | list[int]) -> None:
    """Log the space that the pictures will take and raise `PrepareError` where the disk has less."""
    height, width = shape_of(img_size)
    needed, free = images * height * width * BYTES_A_PIXEL, shutil.disk_usage(store).free
    log.info("preparing %d images in %s: about %.2f GB of %.1f GB free", images, store, needed / 1e9, free / 1e9)
    if needed > free:
        raise PrepareError(
            f"{store}: {images} pictures of {height} x {width} take about {needed / 1e9:.1f} GB and the disk has "
            f"{free / 1e9:.1f} GB free: make room, or set store_dir to another disk"
        )
