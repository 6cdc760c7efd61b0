"""Atomic file writes, locks on folders, and worker processes."""

from rsna_nb.system import workers
from rsna_nb.system.files import (
    DamagedFileError,
    processors,
    put,
    read_arrays,
    remove_parts,
    write_arrays,
    write_whole,
)
from rsna_nb.system.locks import is_held, locked

__all__ = [
    "DamagedFileError",
    "is_held",
    "locked",
    "processors",
    "put",
    "read_arrays",
    "remove_parts",
    "workers",
    "write_arrays",
    "write_whole",
]
