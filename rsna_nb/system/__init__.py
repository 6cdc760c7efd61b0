"""Atomic file writes, locks on folders, worker processes, and MLflow."""

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
from rsna_nb.system.tracking import MlflowRun, add_to_mlflow, mlflow_run

__all__ = [
    "DamagedFileError",
    "MlflowRun",
    "add_to_mlflow",
    "is_held",
    "locked",
    "mlflow_run",
    "processors",
    "put",
    "read_arrays",
    "remove_parts",
    "workers",
    "write_arrays",
    "write_whole",
]
