"""Files that are written whole or not at all, folders that one process holds, and worker processes."""

from rsna_nb.system import workers
from rsna_nb.system.files import (
    DamagedFileError,
    is_held,
    locked,
    processors,
    put,
    read_arrays,
    remove_parts,
    write_arrays,
    write_whole,
)

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
