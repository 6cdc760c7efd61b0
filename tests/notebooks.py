"""Notebooks as papermill runs them, and what it leaves of them."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
TRAIN = NOTEBOOKS / "03_train.ipynb"
WITHOUT_TENSORFLOW = "import sys\n\nassert not {'tensorflow', 'keras', 'torch'} & set(sys.modules)"


def papermill_run(folder: Path, *arguments: object, notebook: Path = TRAIN) -> subprocess.CompletedProcess:
    """papermill as a shell in `folder` runs it."""
    command = [sys.executable, "-m", "papermill", notebook, folder / "out.ipynb", *arguments, "--no-progress-bar"]
    return subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True, check=False)


def last_error_line(answer: subprocess.CompletedProcess) -> str:
    """The error that ended papermill, its lines joined: settings that are wrong have a line each."""
    lines = answer.stderr.strip().splitlines()
    begins = [number for number, line in enumerate(lines) if re.match(r"[\w.]*Error\b", line)]
    return "; ".join(lines[begins[-1] :])


def run_cells(path: Path, **parameters: object) -> list[Any]:
    """Run a notebook's code cells in this process, without a kernel, and return what each would show.

    `parameters` are set below the parameters cell, as papermill does.
    """
    namespace: dict[str, Any] = {"display": lambda *shown: None}
    shown = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        *statements, last = ast.parse(cell.source).body
        is_value = isinstance(last, ast.Expr)
        exec(compile(ast.Module([*statements, *([] if is_value else [last])], []), str(path), "exec"), namespace)
        shown.append(eval(compile(ast.Expression(last.value), str(path), "eval"), namespace) if is_value else None)
        if "parameters" in cell.metadata.get("tags", []):
            namespace.update(parameters)
    return shown


def parameters_cell(path: Path) -> str:
    """The source of the cell that papermill puts its own below."""
    cells = nbformat.read(path, as_version=4).cells
    return next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))


def outputs(path: Path) -> list[nbformat.NotebookNode]:
    cells = nbformat.read(path, as_version=4).cells
    return [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]


def words(path: Path) -> str:
    return "\n".join(str(output.get("data", output.get("text", ""))) for output in outputs(path))


def figures(path: Path) -> list[nbformat.NotebookNode]:
    return [output for output in outputs(path) if "image/png" in output.get("data", {})]
