"""07_ensemble and 09_submit as papermill runs them, on run folders made by hand and on tiny runs."""

import json
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell

from rsna_nb import ensemble, metrics
from rsna_nb.config import RunConfig
from rsna_nb.ensemble import submission
from rsna_nb.runs import Run
from rsna_nb.training import train
from tests.notebooks import NOTEBOOKS, WITHOUT_TENSORFLOW, figures, papermill_run, words
from tests.small import SMALL
from tests.test_ensemble import fold_runs

ENSEMBLE, SUBMIT = NOTEBOOKS / "07_ensemble.ipynb", NOTEBOOKS / "09_submit.ipynb"


@pytest.fixture(scope="module")
def folds(generated, stores, tmp_path_factory) -> list[Run]:
    """The two folds of a recipe of one epoch, with test women."""
    folder = tmp_path_factory.mktemp("folds")
    folders = {"data_dir": str(generated), "store_dir": stores, "runs_dir": str(folder / "runs")}
    settings = SMALL | folders | {"epochs": 1, "n_folds": 2, "test_fraction": 0.25, "run_name": "tiny"}
    return [train(RunConfig(**settings, fold=fold)) for fold in range(2)]


@pytest.mark.slow
def test_recipes_of_several_folds_are_combined_without_tensorflow(tmp_path):
    own = {"data_dir": str(tmp_path / "rsna")}
    fold_runs(tmp_path / "runs", "a", **own)
    fold_runs(tmp_path / "runs", "b", 10, dropout=0.5, **own)
    notebook = nbformat.read(ENSEMBLE, as_version=4)
    notebook.cells.append(new_code_cell(WITHOUT_TENSORFLOW))
    nbformat.write(notebook, tmp_path / "checked.ipynb")
    arguments = ["-p", "draws", 50, "-p", "way", "greedy", "-p", "name", "both"]
    answer = papermill_run(tmp_path, *arguments, notebook=tmp_path / "checked.ipynb")
    assert answer.returncode == 0, answer.stderr[-3000:]
    found = figures(tmp_path / "out.ipynb")
    assert len(found) == 3
    assert all(figure.metadata["image/png"]["alt"] == figure.data["text/plain"] for figure in found)
    text = words(tmp_path / "out.ipynb")
    assert not re.search("not available|left out", text, re.I)
    assert "20 test women" in text
    written = json.loads((tmp_path / "runs" / "ensembles" / "both" / "ensemble.json").read_text())
    assert written["way"] == "greedy"
    assert sum(member["weight"] for member in written["members"]) == pytest.approx(1)
    assert len(written["found"]["gains"]) == 12
    assert {"low", "high"} <= written["found"]["folds"][0]["difference"].keys()


def contents(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*")}


@pytest.mark.slow
def test_an_ensemble_of_folds_submits_calls_and_writes_nothing_but_two_files(folds, generated, tmp_path):
    runs_dir = folds[0].path.parent
    made = ensemble.Ensemble.fit(ensemble.gather(folds), "mean", "both")
    before = contents(runs_dir), contents(generated)
    folder = ensemble.write(made, tmp_path / "made", {})
    arguments = ["-p", "run", folder, "-p", "as_calls", "true", "-p", "flips", "true"]
    answer = papermill_run(tmp_path, *arguments, notebook=SUBMIT)
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert (contents(runs_dir), contents(generated)) == before
    assert sorted(file.name for file in tmp_path.glob("*.csv")) == ["submission.csv", "submission_ledger.csv"]
    found = pd.read_csv(tmp_path / "submission.csv")
    submission.check(found, generated / "sample_submission.csv")
    assert found["cancer"].isin([0, 1]).all()
    text = words(tmp_path / "out.ipynb")
    assert len(figures(tmp_path / "out.ipynb")) == 1
    assert "models: 2, combined by: mean" in text
    assert f"generated mammograms in `{generated}`" in text
    level = submission.threshold_of(submission.with_flips(made))
    assert f"threshold {metrics.threshold_text(level)}" in text
