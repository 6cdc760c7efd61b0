"""04_evaluate on run folders made by hand: once as papermill runs it, else its cells in this process."""

import ast
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell

from rsna_nb.runs import Run
from tests.notebooks import NOTEBOOKS, WITHOUT_TENSORFLOW, figures, outputs, papermill_run, words
from tests.test_evaluation import predictions_of, write_run, write_store

EVALUATE = NOTEBOOKS / "04_evaluate.ipynb"


@pytest.fixture
def run(tmp_path) -> Run:
    return write_run(tmp_path / "runs" / "20261123-101530-fake", predictions_of())


@pytest.mark.slow
def test_it_evaluates_the_newest_run_without_tensorflow_and_compares_two(run, tmp_path):
    write_store(run)
    Path(run.config.data_dir).mkdir()
    run.predictions.drop(columns=["split", "score"]).to_csv(Path(run.config.data_dir) / "train.csv", index=False)
    write_run(tmp_path / "runs" / "20261122-000000-other", predictions_of(seed=1))
    notebook = nbformat.read(EVALUATE, as_version=4)
    notebook.cells.append(new_code_cell(WITHOUT_TENSORFLOW))
    nbformat.write(notebook, tmp_path / "checked.ipynb")
    arguments = ["-p", "compare", "20261122-000000-other", "-p", "draws", 50]
    answer = papermill_run(tmp_path, *arguments, notebook=tmp_path / "checked.ipynb")
    assert answer.returncode == 0, answer.stderr[-3000:]
    found = figures(tmp_path / "out.ipynb")
    assert len(found) == 12
    assert all(figure.metadata["image/png"]["alt"] == figure.data["text/plain"] for figure in found)
    streams = [output for output in outputs(tmp_path / "out.ipynb") if output.output_type == "stream"]
    assert not any(stream.name == "stderr" for stream in streams)
    text = words(tmp_path / "out.ipynb")
    assert not re.search("not available|left out", text, re.I)
    assert "60 women, 20 of them with cancer" in text
    assert "Viewer of " in text
    written = json.loads(next(run.path.glob("evaluation*.json")).read_text())
    assert written["run"] == run.id
    assert {"AUC", "pF1"} <= {row["index"] for row in written["comparison"]}
    assert {row["group"] for row in written["subgroups"]} >= {"site", "machine", "age", "density", "view", "implant"}


def run_cells(**parameters: object) -> tuple[dict, str]:
    """Run the notebook's cells in this process: (their names, what they show), without a kernel's five seconds."""
    shown: list[object] = []
    names: dict = {"display": shown.append, "In": []}
    injected = "\n".join(["# Parameters", *(f"{name} = {value!r}" for name, value in parameters.items())])
    for cell in nbformat.read(EVALUATE, as_version=4).cells:
        sources = [cell.source] if cell.cell_type == "code" else []
        for source in sources + [injected] * ("parameters" in cell.metadata.get("tags", [])):
            names["In"].append(source)
            body = ast.parse(source).body
            last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
            exec(compile(ast.Module(body, []), "cell", "exec"), names)
            if last:
                shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
    texts = [value._repr_markdown_() if hasattr(value, "_repr_markdown_") else str(value) for value in shown]
    return names, "\n".join(texts)


def test_a_reason_is_shown_in_place_of_what_is_not_available(run, tmp_path):
    predictions_of(20, 1).to_csv(run.path / "predictions.csv", index=False)
    write_run(tmp_path / "runs" / "20261122-000000-other", predictions_of(30, 10, seed=1))
    names, text = run_cells(
        run=run.id, compare="20261122-000000-other", draws=20, runs_dir=str(tmp_path / "runs"), pictures=6
    )
    for reason in (
        "choosing on other women needs at least 2 women with cancer, there are 1",
        "a band needs 2 women with cancer",
        "10 of the 30 women that run 20261122-000000-other is evaluated on are not among those that run",
    ):
        assert reason in text
    written = json.loads(names["path"].read_text())
    assert names["path"].name == "evaluation-compare-20261122-000000-other-draws-20.json"
    assert "2 women with cancer" in written["threshold"]["unavailable"]


WRONG = {
    "a misspelt parameter": ({"comparee": "x"}, "comparee is not a setting"),
    "no such run": ({"run": "nothing"}, "there is no run nothing"),
    "no such run to compare": ({"compare": "nothing"}, "there is no run nothing"),
    "a score above 1": ({}, "predictions.csv: score is outside 0-1 in 1 of 240 rows, first in row 2"),
}


@pytest.mark.parametrize(("parameters", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_stops_with_an_error_that_names_it(run, parameters, message):
    df = predictions_of()
    df.loc[0, "score"] = 1.5
    df.to_csv(run.path / "predictions.csv", index=False)
    with pytest.raises(Exception, match=re.escape(message)):
        run_cells(**{"runs_dir": str(run.path.parent), **parameters})
    assert not list(run.path.glob("evaluation*.json"))


def test_it_opens_in_the_notebooks_folder_and_finds_the_runs_of_the_checkout(run, tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    (checkout / "rsna_nb").mkdir(parents=True)
    (checkout / "rsna_nb" / "config.py").touch()
    (checkout / "pyproject.toml").touch()
    (checkout / "notebooks").mkdir()
    shutil.move(run.path.parent, checkout / "runs")
    monkeypatch.chdir(checkout / "notebooks")
    _, text = run_cells(draws=20, pictures=0)
    assert (checkout / "runs" / run.id / "evaluation-draws-20.json").is_file()
    assert "the parameter pictures is 0" in text
