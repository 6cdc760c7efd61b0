"""Notebooks as papermill runs them, and what it leaves of them."""

import subprocess
import sys
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
TRAIN = NOTEBOOKS / "03_train.ipynb"
WITHOUT_TENSORFLOW = "import sys\n\nassert not {'tensorflow', 'keras', 'torch'} & set(sys.modules)"


def papermill_run(folder: Path, *arguments: object, notebook: Path = TRAIN) -> subprocess.CompletedProcess:
    """papermill as a shell in `folder` runs it."""
    command = [sys.executable, "-m", "papermill", notebook, folder / "out.ipynb", *arguments, "--no-progress-bar"]
    return subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True, check=False)


def last_error_line(answer: subprocess.CompletedProcess) -> str:
    return answer.stderr.strip().splitlines()[-1]


def outputs(path: Path) -> list[nbformat.NotebookNode]:
    cells = nbformat.read(path, as_version=4).cells
    return [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]


def words(path: Path) -> str:
    return "\n".join(str(output.get("data", output.get("text", ""))) for output in outputs(path))


def figures(path: Path) -> list[nbformat.NotebookNode]:
    return [output for output in outputs(path) if "image/png" in output.get("data", {})]
