"""The run folder: everything that a run was made from and everything that it made.

config/config.json       every setting: papermill's -f repeats the run with it
config/environment.json  versions, devices, commit, command, fingerprints of the table and the store
code/                    rsna_nb and the notebook's cells as they ran
logs/                    train.log, history.csv
checkpoints/             best.keras, and state.npz, from which the run is resumed
tensorboard/, predictions.csv, metrics.json
"""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from rsna_nb.config import ConfigError, RunConfig, resolve
from rsna_nb.notebook import UnavailableError
from rsna_nb.system import write_whole

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).parent
PACKAGES = ["rsna_nb", "tensorflow", "keras", "numpy", "pandas", "scikit-learn", "pydicom", "imagecodecs", "papermill"]
PACKAGES += ["opencv-python-headless"]
FOLDERS = ("data_dir", "store_dir", "runs_dir", "resume")  # may have other names elsewhere; what is in them is checked
TEXT_COLUMNS = {"patient_id": str, "image_id": str}


class RunError(UnavailableError, RuntimeError):
    """A run folder that is not there, or lacks what is asked of it."""


@dataclass(frozen=True)
class Run:
    """A run folder. Files that the run has not written yet raise `RunError` when asked for."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def is_finished(self) -> bool:
        """Whether its training has ended, and everything is written."""
        return (self.path / "metrics.json").is_file()

    @cached_property
    def config(self) -> RunConfig:
        return RunConfig.from_json(self.file("config/config.json"))

    @property
    def history(self) -> pd.DataFrame:
        """One row an epoch."""
        return pd.read_csv(self.file("logs/history.csv"))

    @property
    def predictions(self) -> pd.DataFrame:
        """One row a validation or test image, ids as text."""
        return pd.read_csv(self.file("predictions.csv"), dtype=TEXT_COLUMNS)

    @property
    def metrics(self) -> dict[str, Any]:
        return json.loads(self.file("metrics.json").read_text())

    @property
    def checkpoint(self) -> Path:
        """The best model."""
        return self.file("checkpoints/best.keras")

    def file(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise RunError(
                f"run {self.id} has no {name}: it was stopped before, see {self.path / 'logs' / 'train.log'}; with "
                "resume set to its id 03_train goes on with it"
            )
        return path

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        write_whole(self.path / name, (json.dumps(content, indent=2) + "\n").encode())


def new_run(config: RunConfig) -> Run:
    """Make a folder with the time as its id, the run's name added, and write the settings and the code into it.

    Where a run of the same second has the id, the next second is waited for.
    """
    runs_dir = resolve(config.runs_dir)
    runs_dir.mkdir(parents=True, exist_ok=True)
    while True:
        path = runs_dir / "-".join(filter(None, [datetime.now().strftime("%Y%m%d-%H%M%S"), config.run_name]))
        try:
            path.mkdir()
            break
        except FileExistsError:
            time.sleep(0.1)
    for name in ("config", "code", "logs", "tensorboard", "checkpoints"):
        (path / name).mkdir()
    copy_code(path / "code")
    config.to_json(path / "config" / "config.json")  # last: a folder that has it is whole
    return Run(path)


def load_run(path: str | Path, runs_dir: str | Path = "runs") -> Run:
    """A run by its folder, or by its id in `runs_dir`; `RunError` where there is none."""
    for candidate in (Path(path), resolve(runs_dir) / path):
        if (candidate / "config" / "config.json").is_file():
            return Run(candidate.resolve())
    known = [run.id for run in list_runs(runs_dir)]
    raise RunError(f"there is no run {path} in {resolve(runs_dir)}; it has {', '.join(known[-5:]) or 'none'}")


def list_runs(runs_dir: str | Path = "runs") -> list[Run]:
    """Every run in the folder, the oldest first."""
    configs = resolve(runs_dir).glob("*/config/config.json")
    return [Run(path.parent.parent) for path in sorted(configs)]


def readable_runs(runs_dir: str | Path = "runs") -> list[Run]:
    """As `list_runs`, without those whose settings this version of the package does not know: they are logged."""
    return [run for run in list_runs(runs_dir) if known_settings(run)]


def known_settings(run: Run) -> RunConfig | None:
    try:
        return run.config
    except ConfigError as error:
        log.warning("run %s is passed over: %s", run.id, error)
        return None


def recipe(config: RunConfig) -> dict[str, Any]:
    """Every setting but folders, the run's name, and who validates: the runs of a cross-validation share it."""
    others = (*FOLDERS, "run_name", "fold", "leave_out")
    return {name: value for name, value in config.model_dump().items() if name not in others}


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What is not now what it was before, in words; "" where all is."""
    changed = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name)!r} and now {now.get(name)!r}" for name in changed)


def copy_code(folder: Path) -> None:
    """The package's modules, and the cells of the notebook that called, as they ran."""
    shutil.copytree(PACKAGE, folder / "rsna_nb", ignore=shutil.ignore_patterns("__pycache__"))
    cells = notebook_cells()
    if cells:
        import nbformat  # takes a second, which looking at runs is spared

        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        nbformat.write(notebook, folder / "notebook.ipynb")


def notebook_cells() -> list[str]:
    """The sources of the cells run so far, none where no notebook runs this."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return [cell for cell in shell.user_ns["In"] if cell] if shell else []


def environment(devices: list[str], metadata: pd.DataFrame, ledger: pd.DataFrame) -> dict[str, Any]:
    """What the run was made with: config/environment.json."""
    return {
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": devices,
        "command": sys.argv,
        "working_folder": str(Path.cwd()),
        "git": git_state(),
        **fingerprints(metadata, ledger),
    }


def fingerprints(metadata: pd.DataFrame, ledger: pd.DataFrame) -> dict[str, str]:
    """Of the table with its split, and of the pictures: another value where a run would learn from other data."""
    return {
        "table_fingerprint": fingerprint(metadata.drop(columns="path")),
        "store_fingerprint": fingerprint(ledger.drop(columns=["milliseconds", "source_mtime"])),
    }


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def git_state() -> dict[str, Any] | None:
    """Commit and whether files differ from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def fingerprint(df: pd.DataFrame) -> str:
    """SHA-256 of the table as CSV."""
    return hashlib.sha256(df.to_csv(index=False).encode()).hexdigest()


@contextlib.contextmanager
def logged(run: Run) -> Iterator[logging.Logger]:
    """The package's log goes to the console and to logs/train.log; an exception's reason is its last line."""
    log = logging.getLogger("rsna_nb")
    file = logging.FileHandler(run.path / "logs" / "train.log")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(file)
    try:
        yield log
    except BaseException as error:
        log.error("stopped: %s: %s", type(error).__name__, error)
        raise
    finally:
        log.removeHandler(file)
        file.close()


def log_to_console() -> None:
    """Show the package's log on standard output, once, however often it is called."""
    log = logging.getLogger("rsna_nb")
    log.setLevel(logging.INFO)
    if not any(type(handler) is logging.StreamHandler for handler in log.handlers):
        console = logging.StreamHandler(sys.stdout)
        console.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(console)
