"""Locks on folders, so that one process works on a folder at a time.

filelock takes the lock of the operating system on a file: flock on Unix, msvcrt on Windows. The system frees it when
the process ends, however it ends, so a killed process leaves nothing to clean up. The file itself stays.
"""

import contextlib
import inspect
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder, which is made if it is missing; a second process waits until the first one unlocks it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another process is working on %s: waiting for it", folder)
        lock.acquire(poll_interval=0.2)  # seconds; the other process takes minutes
    try:
        yield
    finally:
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a process on any computer has locked a folder (`locked`); a killed process no longer has."""
    if not (folder / ".lock").is_file():
        return False
    try:
        with _lock(folder).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _lock(folder: Path) -> FileLock:
    # Where the file system has no flock, an error is better than filelock's lock by a file's existence: that one would
    # stay when its process is killed, and the folder would be held for ever.
    fallback = "fallback_to_soft" in inspect.signature(FileLock.__init__).parameters  # filelock 3 has none
    return FileLock(folder / ".lock", **({"fallback_to_soft": False} if fallback else {}))
