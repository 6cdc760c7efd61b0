"""06_tune as papermill runs it."""

import json

import pytest

from rsna_nb.config import RunConfig
from tests.notebooks import NOTEBOOKS, figures, papermill_run, words
from tests.small import SMALL

TUNE = NOTEBOOKS / "06_tune.ipynb"


@pytest.mark.slow
def test_it_tunes_by_a_parameter_file_and_writes_settings_that_training_takes(generated, tmp_path):
    folders = {"data_dir": str(generated), "store_dir": "stores", "runs_dir": "runs"}
    (tmp_path / "small.json").write_text(json.dumps(SMALL | folders | {"epochs": 1, "test_fraction": 0.3}))
    arguments = ["-f", "small.json", "-p", "trials", 2, "-p", "draws", 20, "-p", "search", "dropout pooling"]
    answer = papermill_run(tmp_path, *arguments, notebook=TUNE)
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert "Passed unknown parameter" not in answer.stderr
    text = words(tmp_path / "out.ipynb")
    assert "importance needs 10 finished trials, there are 2" in text
    found = figures(tmp_path / "out.ipynb")
    assert 2 <= len(found) <= 3  # the comparison is missing where the first trial is the best
    assert all(figure.metadata["image/png"]["alt"] == figure.data["text/plain"] for figure in found)
    folder = tmp_path / "runs" / "studies" / "first"
    assert f"03_train.ipynb out.ipynb -f {folder / 'best.json'}" in text
    best = RunConfig.from_json(folder / "best.json")
    assert best.data_dir == str(generated)
    assert best.img_size == 64
    assert best.monitor == "val_auc"
    assert len((folder / "trials.csv").read_text().splitlines()) == 3
    assert len(list(folder.glob("*-trial-*/metrics.json"))) == 2
