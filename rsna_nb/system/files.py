"""Atomic file writes, and the number of cores to use."""

import errno
import hashlib
import io
import os
import tempfile
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np


class DamagedFileError(RuntimeError):
    """A file is damaged; the message names it."""


def make_folder(folder: Path) -> None:
    """Make a folder where it is missing; raise an `OSError` that names it if nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(f"nothing can be written into the folder {folder}: {error.strerror}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: it is complete or absent, also if the process is killed or the power fails.

    Missing parent folders are made. If two processes write the same file, the one that finishes last wins.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "results" / "metrics.json"
    >>> write_whole(path, b"{}")
    >>> path.read_bytes()
    b'{}'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    part.write_bytes(content)
    put(part, path)


def digest(path: str | Path) -> str:
    """The SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put(part: Path, path: Path) -> None:
    """Rename a finished file `part` to `path` once all of its content is on the disk."""
    with part.open("rb+") as file:  # Windows flushes only files that are open for writing
        os.fsync(file.fileno())
    os.replace(part, path)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as an .npz file, atomically."""
    if pickled := [name for name, array in arrays.items() if np.asarray(array).dtype.hasobject]:
        raise ValueError(f"{path}: arrays of Python objects are not written: {', '.join(pickled)}")
    content = io.BytesIO()
    # Without allow_pickle: NumPy 2.0 would write an array of that name.
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_whole(path, content.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays in an .npz file, by name, with every checksum compared.

    Raises
    ------
    DamagedFileError
        If the file is damaged.
    OSError
        If the file cannot be read, for example because it does not exist.
    """
    # np.load would not do: it stops reading where an array's own header says that the array ends, and so misses
    # the checksum of an array whose header is damaged.
    try:
        with zipfile.ZipFile(path) as file:
            names = [name.removesuffix(".npy") for name in file.namelist()]
            return {name: np.load(io.BytesIO(file.read(f"{name}.npy"))) for name in names}
    except (ValueError, KeyError, RuntimeError, EOFError, SyntaxError, OSError, zipfile.BadZipFile) as error:
        # A damaged index can name an impossible position; seeking to it fails with EINVAL. All other OSErrors come
        # from the disk.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise DamagedFileError(f"{path} is damaged: {error}") from error


def remove_parts(folder: Path) -> None:
    """Remove unfinished files that killed processes left in a folder and in the folders below it."""
    for part in folder.rglob(".*.part*"):
        part.unlink(missing_ok=True)


def processors() -> int:
    """Number of cores that this process may use; a container or `taskset` may allow fewer than the computer has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
