"""05_cross_validate as papermill runs it."""

import json

import pandas as pd
import pytest

from rsna_nb import runs
from rsna_nb.metadata import load_metadata
from tests.notebooks import NOTEBOOKS, figures, papermill_run, words
from tests.small import SMALL

CROSS_VALIDATE = NOTEBOOKS / "05_cross_validate.ipynb"


@pytest.mark.slow
def test_folds_and_sites_are_trained_and_evaluated_and_the_results_have_every_image(generated, small_weights, tmp_path):
    folders = {"data_dir": str(generated), "store_dir": str(tmp_path / "stores"), "runs_dir": str(tmp_path / "runs")}
    frozen = {"weights": small_weights, "freeze_backbone": True, "n_folds": 2, "epochs": 1}
    (tmp_path / "small.json").write_text(json.dumps(SMALL | frozen | folders))
    arguments = ["-f", "small.json", "-p", "leave_out_column", "site_id", "-p", "draws", 50]
    answer = papermill_run(tmp_path, *arguments, notebook=CROSS_VALIDATE)
    assert answer.returncode == 0, answer.stderr[-3000:]
    text = words(tmp_path / "out.ipynb")
    assert "All 2 folds are finished" in text
    assert "Not available" not in text
    assert len(figures(tmp_path / "out.ipynb")) == 4
    assert all(figure.metadata["image/png"]["alt"] for figure in figures(tmp_path / "out.ipynb"))
    found = {(run.config.fold, run.config.leave_out): run.id for run in runs.list_runs(tmp_path / "runs")}
    assert sorted(found) == [(-1, "site_id=1"), (-1, "site_id=2"), (0, ""), (1, "")]
    (folder,) = (path for path in (tmp_path / "runs" / "cross_validation").iterdir() if path.name != ".locks")
    assert str(folder / "out_of_fold.csv") in text
    predictions = pd.read_csv(folder / "out_of_fold.csv")
    assert sorted(predictions["image_id"].astype(str)) == sorted(load_metadata(generated)["image_id"])
    written = json.loads((folder / "cross_validation.json").read_text())
    assert written["runs"]["1"] == found[1, ""]
    assert {row["value"] for row in written["left_out"]} == {"1", "2"}
    assert 0 <= written["overall"][0]["within folds"]["estimate"] <= 1
