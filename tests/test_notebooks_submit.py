"""07_ensemble and 09_submit as papermill runs them, on run folders made by hand and on tiny runs."""

import json
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell

from rsna_nb import metrics
from rsna_nb.config import RunConfig
from rsna_nb.ensemble import submission
from rsna_nb.runs import Run
from rsna_nb.training import run as training
from tests.notebooks import NOTEBOOKS, WITHOUT_TENSORFLOW, figures, last_error_line, papermill_run, words
from tests.small import SMALL
from tests.test_ensemble import fold_runs, single_runs

ENSEMBLE, SUBMIT = NOTEBOOKS / "07_ensemble.ipynb", NOTEBOOKS / "09_submit.ipynb"


@pytest.fixture(scope="module")
def folds(generated, tmp_path_factory) -> list[Run]:
    """The two folds of a recipe of one epoch, with test women."""
    folder = tmp_path_factory.mktemp("folds")
    folders = {"data_dir": str(generated), "store_dir": str(folder / "stores"), "runs_dir": str(folder / "runs")}
    settings = SMALL | folders | {"epochs": 1, "n_folds": 2, "test_fraction": 0.25, "run_name": "tiny"}
    return [training.train(RunConfig(**settings, fold=fold)) for fold in range(2)]


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
    assert "Left out" not in text
    assert "20 test women" in text
    written = json.loads((tmp_path / "runs" / "ensembles" / "both" / "ensemble.json").read_text())
    assert written["way"] == "greedy"
    assert sum(member["weight"] for member in written["members"]) == pytest.approx(1)
    assert len(written["found"]["gains"]) == 12
    assert {"low", "high"} <= written["found"]["folds"][0]["difference"].keys()


def test_single_runs_say_what_is_left_out(tmp_path):
    runs = single_runs(tmp_path / "runs", [1, 2])
    arguments = ["-p", "draws", 20, "-p", "runs", f"{runs[0].id},{runs[1].id}"]
    answer = papermill_run(tmp_path, *arguments, notebook=ENSEMBLE)
    assert answer.returncode == 0, answer.stderr[-3000:]
    text = words(tmp_path / "out.ipynb")
    assert "60 validation women" in text
    assert "Left out: no member has several folds" in text
    assert (tmp_path / "runs" / "ensembles" / f"{runs[1].id}-mean" / "predictions.csv").is_file()


def contents(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*")}


def test_an_ensemble_of_folds_submits_calls_and_writes_nothing_but_two_files(folds, generated, tmp_path):
    runs_dir = folds[0].path.parent
    answer = papermill_run(tmp_path, "-p", "runs_dir", runs_dir, "-p", "draws", 20, notebook=ENSEMBLE)
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert "is the only member" in words(tmp_path / "out.ipynb")
    before = contents(runs_dir), contents(generated)
    arguments = ["-p", "run", runs_dir / "ensembles" / f"{folds[1].id}-mean", "-p", "data_dir", generated]
    answer = papermill_run(tmp_path, *arguments, "-p", "as_calls", "true", "-p", "flips", "true", notebook=SUBMIT)
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert (contents(runs_dir), contents(generated)) == before
    assert sorted(file.name for file in tmp_path.glob("*.csv")) == ["submission.csv", "submission_ledger.csv"]
    found = pd.read_csv(tmp_path / "submission.csv")
    submission.check(found, generated / "sample_submission.csv")
    assert found["cancer"].isin([0, 1]).all()
    assert len(figures(tmp_path / "out.ipynb")) == 1
    assert "2 models, mean, threshold" in words(tmp_path / "out.ipynb")


def test_a_runs_validation_images_get_the_scores_of_predictions_csv_raw_or_undone(folds, generated, tmp_path):
    arguments = ["-p", "run", folds[0].path, "-p", "data_dir", generated, "-p", "split", "validation"]
    arguments += ["-p", "scores", "raw", "-p", "threshold", 0.3, "-p", "out_dir", "made"]
    answer = papermill_run(tmp_path, *arguments, notebook=SUBMIT)
    assert answer.returncode == 0, answer.stderr[-3000:]
    found = pd.read_csv(tmp_path / "made" / "submission.csv").set_index("prediction_id")["cancer"]
    breasts = metrics.by_breast(folds[0].predictions.query("split == 'validation'"))
    assert len(found) == len(breasts)
    expected = found[breasts["patient_id"] + "_" + breasts["laterality"]]
    np.testing.assert_allclose(expected, breasts["score"], atol=1e-5)
    assert "with raw scores" in words(tmp_path / "out.ipynb")
    answer = papermill_run(tmp_path, *arguments[:9], notebook=SUBMIT)
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert "with probabilities, class weights corrected for" in words(tmp_path / "out.ipynb")
    probabilities = pd.read_csv(tmp_path / "submission.csv").set_index("prediction_id")["cancer"]
    assert (probabilities < found[probabilities.index]).all()


WRONG = {
    "a misspelt parameter of 07": (ENSEMBLE, ["-p", "drawz", 3], "drawz is not a setting (did you mean draws?)"),
    "another way": (ENSEMBLE, ["-p", "way", "median"], "way must be one of mean, rank, logit, greedy, not 'median'"),
    "a misspelt parameter of 09": (SUBMIT, ["-p", "flip", "true"], "flip is not a setting (did you mean flips?)"),
    "no such run": (SUBMIT, ["-p", "run", "nothing"], "there is no run nothing"),
    "another scale": (SUBMIT, ["-p", "scores", "odds"], 'scores must be "probability" or "raw", not'),
    "no bool": (SUBMIT, ["-p", "flips", "perhaps"], "flips must be of type bool"),
}


@pytest.mark.parametrize(("notebook", "arguments", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_stops_with_one_line_that_names_it(tmp_path, notebook, arguments, message):
    single_runs(tmp_path / "runs", [1])
    answer = papermill_run(tmp_path, *arguments, notebook=notebook)
    assert answer.returncode == 1
    assert message in last_error_line(answer)
    assert not list(tmp_path.rglob("ensemble.json")) + list(tmp_path.rglob("submission.csv"))
