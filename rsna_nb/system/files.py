"""Files that are there whole or not at all, folders that one process works on at a time, and the cores to use."""

import contextlib
import errno
import fcntl
import io
import logging
import os
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all, be the process killed or the power cut.

    Two processes may write the same file: the one that ends last has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    part.write_bytes(content)
    put(part, path)


def put(part: Path, path: Path) -> None:
    """Give a file its name once all of it is on the disk."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An .npz file, whole or not at all."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    write_whole(path, content.getvalue())


class DamagedFileError(RuntimeError):
    """A file that cannot be what was written."""


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, every checksum compared; `DamagedFileError` where it is damaged.

    (np.load reads no further than an array's own header says, so that one damaged there goes unnoticed.)
    """
    try:
        with zipfile.ZipFile(path) as file:
            names = [name.removesuffix(".npy") for name in file.namelist()]
            return {name: np.load(io.BytesIO(file.read(f"{name}.npy"))) for name in names}
    except (ValueError, KeyError, RuntimeError, EOFError, SyntaxError, OSError, zipfile.BadZipFile) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that of a place that a damaged index names
            raise
        raise DamagedFileError(f"{path} is damaged: {error}") from error


def remove_parts(folder: Path) -> None:
    """Remove what killed processes had begun to write in a folder and those below it."""
    for part in folder.rglob(".*.part*"):
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, made if missing; a second process waits here, and then finds the work done."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is working on %s: waiting for it", folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_held(folder: Path) -> bool:
    """Whether a process holds a folder (`locked`); one that was killed does not, on whatever machine it ran."""
    if not (folder / ".lock").is_file():
        return False
    with open(folder / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def processors() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
