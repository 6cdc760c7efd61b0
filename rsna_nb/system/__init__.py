"""Atomic file writes, locks on folders, worker processes, MLflow, and what a person sees of long work."""

from rsna_nb.system import workers
from rsna_nb.system.bars import is_watched, progress
from rsna_nb.system.console import IN_BAR, SAME, Console
from rsna_nb.system.files import (
    DamagedFileError,
    digest,
    make_folder,
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
    "IN_BAR",
    "SAME",
    "Console",
    "DamagedFileError",
    "MlflowRun",
    "add_to_mlflow",
    "digest",
    "is_held",
    "is_watched",
    "locked",
    "make_folder",
    "mlflow_run",
    "processors",
    "progress",
    "put",
    "read_arrays",
    "remove_parts",
    "workers",
    "write_arrays",
    "write_whole",
]
