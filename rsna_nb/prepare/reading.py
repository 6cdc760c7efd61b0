"""DICOM files -> 8-bit pictures as the store would hold them, without a store: for scoring files that are read once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from rsna_nb.dicom import DicomError, read_mammogram
from rsna_nb.prepare.store import to_8_bits
from rsna_nb.system import workers

FEW = 32  # files that are read in this process: to start others takes longer


@dataclass(frozen=True)
class Task:
    """One file to read: all that a worker needs to know."""

    position: int
    path: str
    shape: tuple[int, int]


def read_pictures(paths: Sequence[str], shape: tuple[int, int]) -> Iterator[tuple[int, np.ndarray | str]]:
    """Each file's position and its picture, uint8 `shape`, or why it has none; in any order.

    More than `FEW` files are read by a process for each core, where a file can cost its process and nothing else.
    """
    tasks = [Task(position, path, shape) for position, path in enumerate(paths)]
    if len(tasks) <= FEW:
        yield from ((task.position, read_one(task)) for task in tasks)
        return
    for task, outcome in workers.run(read_in_worker, tasks):
        yield task.position, outcome.reason if isinstance(outcome, workers.Death) else outcome


def read_in_worker(task: Task) -> np.ndarray | str:
    cv2.setNumThreads(1)  # the processes share the cores
    return read_one(task)


def read_one(task: Task) -> np.ndarray | str:
    try:
        return to_8_bits(read_mammogram(task.path, task.shape))
    except DicomError as error:
        return error.reason
