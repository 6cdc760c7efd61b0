"""One file -> its image in the store and its record; many files by worker processes or by any executor."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

from rsna_nb.dicom import DicomError, read
from rsna_nb.prepare.ledger import Record
from rsna_nb.system import progress, workers, write_whole

if TYPE_CHECKING:
    from rsna_nb.config import ImageRecipe

FROM_READING = ["format", "transfer_syntax", "photometric", "window", "bits", "rows", "columns", "level", "aspect"]
CONNECT_SECONDS = 20  # to wait for a Dask scheduler
FATAL = (BrokenExecutor, CancelledError, OSError)  # end preparing, such as a full disk; other errors concern one file
GONE = 0, 0  # fingerprint of a file that does not exist


class PrepareError(RuntimeError):
    """The store cannot be made: too little space, a broken executor, or a table that lists an image twice."""


def image_file(store: str | Path, patient_id: str, image_id: str) -> Path:
    """Return the file of an image in a store.

    >>> image_file("data/prepared/rsna-512x512-0c1d2e3f", "10006", "462822612").as_posix()
    'data/prepared/rsna-512x512-0c1d2e3f/images/10006/462822612.png'
    """
    return Path(store) / "images" / patient_id / f"{image_id}.png"


@dataclass(frozen=True)
class Task:
    """One file to prepare: everything that a worker needs.

    `laterality` and `view` are the table's; "" is not known. A `recipe` of None is "breast".
    """

    store: Path
    shape: tuple[int, int]
    patient_id: str
    image_id: str
    path: str
    laterality: str = ""
    view: str = ""
    recipe: "ImageRecipe | None" = None

    @property
    def key(self) -> tuple[str, str]:
        """The file's key in the ledger."""
        return self.patient_id, self.image_id

    @property
    def png(self) -> Path:
        """The file's image in the store."""
        return image_file(self.store, *self.key)


Work = Callable[[Task], Record]


def prepare_one(task: Task) -> Record:
    """Read one file and write its image. Whatever is wrong with the file becomes the `error` of its record."""
    started = time.perf_counter()
    record = _new_record(task)  # before reading: a file that changes meanwhile is read again next time
    cv2.setNumThreads(1)  # the worker processes share the cores
    try:
        reading = read(task.path, task.shape, task.recipe)
    except DicomError as error:
        return replace(failed(task, error.reason), milliseconds=_milliseconds_since(started))
    png = cv2.imencode(".png", to_8_bits(reading.picture))[1].tobytes()  # 16 bits would take 2.5 times the space
    write_whole(task.png, png)
    found = {name: getattr(reading, name) for name in FROM_READING}
    found |= {"crop": " ".join(map(str, reading.crop)), "notes": "; ".join(reading.notes)}
    found |= {"header_laterality": reading.laterality, "header_view": reading.view}
    return replace(record, **found, png_bytes=len(png), milliseconds=_milliseconds_since(started))


def compared(record: Record, task: Task) -> Record:
    """Return the record with the notes "side" and "view" exactly where the file's header contradicts the table.

    The table can change after a file was prepared, so its records are compared again each time.
    """
    stated = {"side": (record.header_laterality, task.laterality), "view": (record.header_view, task.view)}
    notes = [note for note in record.notes.split("; ") if note and note not in stated]
    notes += [note for note, (header, table) in stated.items() if header and table and header != table]
    return replace(record, notes="; ".join(notes))


def _new_record(task: Task) -> Record:
    """Return a record that only identifies the file and its version."""
    size, mtime = fingerprint(task.path)
    return Record(*task.key, source_bytes=size, source_mtime=mtime)


def failed(task: Task, reason: str) -> Record:
    """Return the record of a file that has no image. An image of an earlier version is removed."""
    task.png.unlink(missing_ok=True)
    return replace(_new_record(task), status="error", error=reason)


def to_8_bits(picture: np.ndarray) -> np.ndarray:
    """Map 0-1 to uint8 0-255, rounded. This is what the store holds and a model sees.

    >>> to_8_bits(np.array([0, 0.5, 1], np.float32)).tolist()
    [0, 128, 255]
    """
    return cv2.convertScaleAbs(picture, alpha=255).reshape(picture.shape)  # a fifth of NumPy's time, the same levels


def fingerprint(path: str | Path) -> tuple[int, int]:
    """Return what identifies a version of a file: its bytes and the time of its last change in ns. 0, 0 if missing."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL byte in the path
        return GONE
    return status.st_size, status.st_mtime_ns


def _milliseconds_since(started: float) -> float:
    """Return the time since `time.perf_counter()` returned `started`."""
    return round(1000 * (time.perf_counter() - started), 1)


def state(record: Record | None, task: Task) -> Literal["current", "kept", "outdated"]:
    """Return whether the store holds a complete image of the file as it is now ("current"), or of a file that is gone.

    A file that was prepared from an archive, or deleted to make room, cannot be read again: its image is "kept".
    """
    # Hashing the files would read the whole data set. The image's size finds one that is cut off or missing.
    if record is None or record.status != "ok" or fingerprint(task.png)[0] != record.png_bytes:
        return "outdated"
    found = fingerprint(task.path)
    return "current" if found == record.source else "kept" if found == GONE else "outdated"


def run(tasks: list[Task], executor: Executor | None, work: Work | None = None) -> Iterator[Record]:
    """Yield the records of the tasks as they finish, under a progress bar with the rate and the time left.

    `work` is what a worker does with a task, `prepare_one` by default.
    """
    work = work or prepare_one
    outcomes = _run_by(executor, tasks, work) if executor else workers.run(work, tasks)
    try:
        for task, outcome in progress(outcomes, "preparing", len(tasks), "images"):
            yield outcome if isinstance(outcome, Record) else failed(task, outcome.reason)
    except FATAL as error:
        raise PrepareError(f"{tasks[0].store}: stopped by {error!r}: rerun to continue where it stopped") from error


def _run_by(executor: Executor, tasks: list[Task], work: Work) -> Iterator[tuple[Task, Record | workers.Death]]:
    """Run tasks as `workers.run` does, on an executor. If a worker dies, only the exception is known."""
    futures = {executor.submit(work, task): task for task in tasks}
    try:
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except FATAL:
                raise
            except Exception as error:  # such as KilledWorker of dask.distributed
                yield futures[future], workers.Death(f"{type(error).__name__}: {error}")
    finally:  # also if the caller stops early, or a cluster would continue with the rest
        for future in futures:
            future.cancel()


@contextmanager
def cluster(address: str) -> Iterator[Executor | None]:
    """Connect to a Dask cluster and give its executor to a `with` block.

    Parameters
    ----------
    address
        Address of the scheduler, such as "tcp://host:8786". "" gives None, for which `prepare_images` uses this
        computer's cores. The cluster's workers need this package, and must see the data and the store under the same
        paths.

    Raises
    ------
    PrepareError
        If Dask is not installed, or if nothing answers at the address.
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
        yield client.get_executor(pure=False)  # pure=True would reuse a result even if the file has changed
