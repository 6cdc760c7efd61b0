"""05_cross_validate as papermill runs it."""

import json
from pathlib import Path

import pandas as pd
import pytest

from rsna_nb import runs
from rsna_nb.config import RunConfig
from rsna_nb.experiments import cross_validation
from rsna_nb.metadata.table import load_metadata
from rsna_nb.training.callbacks import TrainingError
from tests.notebooks import NOTEBOOKS, figures, last_error_line, papermill_run, words
from tests.small import SMALL, stop_at

CROSS_VALIDATE = NOTEBOOKS / "05_cross_validate.ipynb"


@pytest.fixture
def settings(generated, small_weights, tmp_path) -> dict:
    """Of a frozen network, whose features come from the bank."""
    return SMALL | {
        "weights": small_weights,
        "freeze_backbone": True,
        "data_dir": str(generated),
        "store_dir": str(tmp_path / "stores"),
        "runs_dir": str(tmp_path / "runs"),
        "n_folds": 2,
        "epochs": 2,
    }


@pytest.fixture
def file(settings, tmp_path) -> Path:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(settings))
    return path


def test_one_fold_alone_says_which_are_missing_then_a_stopped_one_goes_on_and_all_are_judged(
    settings, file, generated, tmp_path, monkeypatch
):
    alone = papermill_run(tmp_path, "-f", file, "-p", "fold", 1, "-p", "draws", 50, notebook=CROSS_VALIDATE)
    assert alone.returncode == 0, alone.stderr[-3000:]
    text = words(tmp_path / "out.ipynb")
    assert "missing: 0." in text
    assert "leave_out_column is empty" in text
    assert len(figures(tmp_path / "out.ipynb")) == 3
    (second,) = runs.list_runs(tmp_path / "runs")
    stop_at(8, monkeypatch)
    with pytest.raises(TrainingError):
        cross_validation.cross_validate(RunConfig(**settings), [0])

    arguments = ["-p", "settings", file, "-p", "leave_out_column", "site_id", "-p", "draws", 50]
    answer = papermill_run(tmp_path, *arguments, notebook=CROSS_VALIDATE)
    assert answer.returncode == 0, answer.stderr[-3000:]
    text = words(tmp_path / "out.ipynb")
    assert "All 2 folds are finished" in text
    assert "Left out" not in text
    assert len(figures(tmp_path / "out.ipynb")) == 4
    assert all(figure.metadata["image/png"]["alt"] for figure in figures(tmp_path / "out.ipynb"))
    found = runs.list_runs(tmp_path / "runs")
    assert sorted((run.config.fold, run.config.leave_out) for run in found) == [
        (-1, "site_id=1"),
        (-1, "site_id=2"),
        (0, ""),
        (1, ""),
    ]
    assert found[0].id == second.id
    (folder,) = (tmp_path / "runs" / "cross_validation").iterdir()
    assert str(folder / "out_of_fold.csv") in text
    predictions = pd.read_csv(folder / "out_of_fold.csv")
    assert sorted(predictions["image_id"].astype(str)) == sorted(load_metadata(generated)["image_id"])
    written = json.loads((folder / "cross_validation.json").read_text())
    assert written["runs"]["1"] == second.id
    assert {row["value"] for row in written["left_out"]} == {"1", "2"}
    assert 0 <= written["overall"][0]["within folds"]["estimate"] <= 1


WRONG = {
    "a misspelt parameter": (["-p", "leave_out_colum", "x"], "did you mean leave_out_column?"),
    "no such column": (["-p", "leave_out_column", "machine"], "the table has no column machine"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_stops_before_training_with_one_line_that_names_it(file, tmp_path, arguments, message):
    answer = papermill_run(tmp_path, "-f", file, *arguments, notebook=CROSS_VALIDATE)
    assert answer.returncode == 1
    assert message in last_error_line(answer)
    assert not (tmp_path / "runs").exists()
