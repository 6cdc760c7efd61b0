"""The run folder: what a run was trained from, and its results.

config/config.json       every setting; papermill's -f repeats the run with it
config/environment.json  package versions, devices, commit, command, fingerprints of table and images
code/                    rsna_nb and the notebook's cells as they ran
logs/                    train.log, history.csv, mlflow.json (id of the MLflow run)
checkpoints/             best.keras, and state.npz, from which a stopped run is resumed
tensorboard/, predictions.csv, predictions-breasts.csv, validation_scores.csv (a score of each epoch), metrics.json
config/imported.json     origin of an imported detector (`import_run`), which has no code/, logs/ and state.npz
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
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from rsna_nb.config import FOLDERS, ConfigError, ImageRecipe, RunConfig, resolve
from rsna_nb.notebook import PACKAGE, UnavailableError
from rsna_nb.system import Console, write_whole

log = logging.getLogger(__name__)

# Packages whose versions can change a result.
_PACKAGES = (
    "rsna_nb tensorflow keras numpy pandas scikit-learn pydicom imagecodecs papermill opencv-python-headless".split()
)


class RunError(UnavailableError, RuntimeError):
    """A run folder does not exist, or lacks a file."""


@dataclass(frozen=True)
class Run:
    """A run folder. Asking for a file that the run has not written yet raises `RunError`."""

    path: Path

    @property
    def id(self) -> str:
        """The folder's name: the time at which the run began, and its name."""
        return self.path.name

    @property
    def is_finished(self) -> bool:
        """Whether training is complete and everything is written."""
        return (self.path / "metrics.json").is_file()

    @cached_property
    def config(self) -> RunConfig:
        """The settings of the run."""
        return RunConfig.from_json(self.file("config/config.json"))

    @property
    def image_recipe(self) -> ImageRecipe:
        """How files become the images that the model takes. An imported run carries the breast detector itself."""
        own = self.path / "checkpoints" / "roi.npz"
        recipe = self.config.image_recipe
        return replace(recipe, detector=own) if recipe.name != "breast" and own.is_file() else recipe

    @cached_property
    def imported(self) -> dict[str, Any]:
        """Where an imported run comes from (config/imported.json); empty if the run was trained here."""
        path = self.path / "config" / "imported.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    @property
    def history(self) -> pd.DataFrame:
        """One row for each epoch: every metric, the learning rate and the time."""
        return pd.read_csv(self.file("logs/history.csv"))

    @property
    def predictions(self) -> pd.DataFrame:
        """One row for each validation or test image, with its score; ids are text."""
        # Read as numbers, ids would lose their leading zeros.
        return pd.read_csv(self.file("predictions.csv"), dtype={"patient_id": str, "image_id": str})

    @property
    def metrics(self) -> dict[str, Any]:
        """The main metrics of each split, as training wrote them."""
        return json.loads(self.file("metrics.json").read_text())

    @property
    def checkpoint(self) -> Path:
        """The file of the model of the best epoch."""
        return self.file("checkpoints/best.keras")

    def file(self, name: str) -> Path:
        """The path of a file in the folder; raises `RunError` if the run has not written it."""
        path = self.path / name
        if path.is_file():
            return path
        if self.imported:
            how = f"to score labelled images with it, run python -m rsna_nb.import_run --score {self.id} --data-dir ..."
            raise RunError(f"run {self.id} has no {name}, because it was imported and not trained here; {how}")
        raise RunError(
            f"run {self.id} has no {name}, because it stopped early: see {self.path / 'logs' / 'train.log'}; to "
            f"continue it, run 03_train with resume set to {self.id}"
        )

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file into the folder, atomically."""
        write_whole(self.path / name, (json.dumps(content, indent=2) + "\n").encode())


def new_run(config: RunConfig) -> Run:
    """Make a run folder, and write the settings and the code into it.

    Its id is the time and `run_name`. If a run of the same second has that id, this waits for the next second.
    """
    (runs_dir := resolve(config.runs_dir)).mkdir(parents=True, exist_ok=True)
    while True:
        path = runs_dir / "-".join(filter(None, [datetime.now().strftime("%Y%m%d-%H%M%S"), config.run_name]))
        try:
            path.mkdir()  # of several processes, also on several computers, only one succeeds
            break
        except FileExistsError:
            time.sleep(0.1)
    for name in ("config", "code", "logs", "tensorboard", "checkpoints"):
        (path / name).mkdir()
    _copy_code(path / "code")
    config.to_json(path / "config" / "config.json")  # last: for `list_runs` a folder with this file is a run
    return Run(path)


def load_run(path: str | Path, runs_dir: str | Path = "runs") -> Run:
    """Load a run from its folder, or by its id in `runs_dir`.

    Raises
    ------
    RunError
        If there is no such run; the message names the newest runs in `runs_dir`.
    """
    for candidate in (Path(path), resolve(runs_dir) / path):  # a path wins over an id
        if (candidate / "config" / "config.json").is_file():
            return Run(candidate.resolve())
    known = [run.id for run in list_runs(runs_dir)]  # ids begin with the time, so the last are the newest
    raise RunError(f"there is no run {path} in {resolve(runs_dir)}; it has {', '.join(known[-5:]) or 'none'}")


def list_runs(runs_dir: str | Path = "runs") -> list[Run]:
    """All runs in a folder, finished or not, the oldest first.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> run = new_run(RunConfig(runs_dir=folder, run_name="example"))
    >>> [found.config.run_name for found in list_runs(folder)]
    ['example']
    >>> run.is_finished
    False
    """
    return [Run(path.parent.parent) for path in sorted(resolve(runs_dir).glob("*/config/config.json"))]


def readable_runs(runs_dir: str | Path = "runs") -> list[Run]:
    """The runs of `list_runs` whose settings this version of the package knows; the log names the others.

    Computers that share a folder of runs need not all have the same version.
    """
    runs = []
    for run in list_runs(runs_dir):
        try:
            runs += [run] if run.config else []
        except ConfigError as error:
            log.warning("run %s is ignored: %s", run.id, error)
    return runs


def recipe(config: RunConfig) -> dict[str, Any]:
    """The settings that the runs of one cross-validation share: all but folders, name and validation group."""
    return config.model_dump(exclude={*FOLDERS, "run_name", "fold", "leave_out"})


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Describe the values in which two dictionaries differ; "" if none do.

    >>> differences({"epochs": 3, "seed": 1}, {"epochs": 5, "seed": 1})
    'epochs 3 and now 5'
    """
    changed = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name)!r} and now {now.get(name)!r}" for name in changed)


def environment(devices: list[str]) -> dict[str, Any]:
    """Versions, devices and command of a run, for config/environment.json."""
    return {
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": devices,
        "command": sys.argv,
        "working_folder": str(Path.cwd()),
        "git": _git_state(),
    }


def fingerprints(metadata: pd.DataFrame, ledger: pd.DataFrame) -> dict[str, str]:
    """Fingerprints of the table with its split and of the prepared images: equal if the training data are the same."""
    # Paths differ between computers, and times between two preparations of the same files.
    return {
        "table_fingerprint": fingerprint(metadata.drop(columns="path")),
        "data_fingerprint": fingerprint(metadata.drop(columns=["path", "split"])),
        "store_fingerprint": fingerprint(ledger.drop(columns=["milliseconds", "source_mtime"])),
    }


def fingerprint(df: pd.DataFrame) -> str:
    """SHA-256 of a table as CSV, in hexadecimal."""
    return hashlib.sha256(df.to_csv(index=False).encode()).hexdigest()


def _copy_code(folder: Path) -> None:
    """Copy the package's modules, and the cells of the notebook that is running."""
    shutil.copytree(PACKAGE, folder / "rsna_nb", ignore=shutil.ignore_patterns("__pycache__", "notebooks"))
    if (ipython := sys.modules.get("IPython")) and (shell := ipython.get_ipython()):
        import nbformat  # takes a second, and is not needed to look at runs

        # IPython's `In` has the source of every cell that ran, also of those that were changed since.
        cells = [nbformat.v4.new_code_cell(cell) for cell in shell.user_ns["In"] if cell]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "notebook.ipynb")


def _version(package: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return "absent"


def _git_state() -> dict[str, Any] | None:
    """The commit, and whether files of the package differ from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PACKAGE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # else in another project's checkout
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "."))}
    except (OSError, subprocess.CalledProcessError):  # git is not installed, or this is not a checkout
        return None


@contextlib.contextmanager
def logged(run: Run) -> Iterator[logging.Logger]:
    """Write the package's log into logs/train.log too; an exception's reason becomes its last line."""
    package_log = logging.getLogger("rsna_nb")
    file = logging.FileHandler(run.path / "logs" / "train.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package_log.addHandler(file)
    try:
        yield package_log
    except BaseException as error:
        # Not of a run that ended by its own fault: it would only end there again.
        can_resume = getattr(error, "can_resume", isinstance(error, KeyboardInterrupt | OSError))
        can_resume = can_resume and (run.path / "checkpoints" / "state.npz").is_file()
        how = f"; to continue, run 03_train with resume set to {run.id}" if can_resume else ""
        package_log.error("stopped: %s: %s%s", type(error).__name__, error, how)
        raise
    finally:
        package_log.removeHandler(file)
        file.close()


def log_to_console() -> None:
    """Show the package's log on standard output, each line once, however often this is called."""
    package_log = logging.getLogger("rsna_nb")
    if package_log.level == logging.NOTSET:
        package_log.setLevel(logging.INFO)
    if not any(isinstance(handler, Console) for handler in package_log.handlers):
        package_log.addHandler(Console())
