import json
import shutil

import nbformat
import papermill
import pytest
from matplotlib.figure import Figure

from rsna_nb import runs
from rsna_nb.backbones import WeightsError
from rsna_nb.config import RunConfig
from rsna_nb.metadata import MetadataError, load_metadata
from rsna_nb.splits import SplitError
from rsna_nb.training import TrainingError
from rsna_nb.training import run as training
from tests.notebooks import NOTEBOOKS, TRAIN, last_error_line, outputs, papermill_run, run_cells, words
from tests.small import SMALL, TIMINGS, stop_at


@pytest.fixture
def data_settings(generated, tmp_path) -> list[str]:
    """Settings of a run on the small generated set; its folders are relative to the shell's folder."""
    settings = SMALL | {"data_dir": str(generated), "store_dir": "stores", "runs_dir": "runs", "run_name": "notebook"}
    (tmp_path / "small.json").write_text(json.dumps(settings))
    return ["-f", str(tmp_path / "small.json")]


def test_the_parameters_cell_is_the_settings_with_their_defaults_and_help():
    cell = papermill.inspect_notebook(TRAIN)
    assert cell.pop("settings")["default"] == '""'
    assert list(cell) == list(RunConfig.model_fields)
    for name, parameter in cell.items():
        assert eval(parameter["default"]) == RunConfig.model_fields[name].default, name
        assert parameter["help"] == RunConfig.model_fields[name].description, name


@pytest.mark.parametrize("name", ["05_cross_validate", "06_tune"])
def test_a_notebook_that_takes_all_settings_has_a_line_for_each(name):
    """papermill warns of every parameter that has no line in the cell: -f printed a warning for each setting."""
    cell = papermill.inspect_notebook(NOTEBOOKS / f"{name}.ipynb")
    assert set(RunConfig.model_fields) <= set(cell)
    defaults = {setting: eval(cell[setting]["default"]) for setting in RunConfig.model_fields}
    assert RunConfig(**defaults) == RunConfig(test_fraction=0.2 if name == "06_tune" else 0.0)


@pytest.mark.parametrize("path", sorted((NOTEBOOKS / "params").glob("*.json")), ids=lambda path: path.stem)
def test_every_parameter_file_is_valid(path):
    RunConfig.from_json(path)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_short_clean_and_runs_anywhere(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.metadata.kernelspec.name == "python3"
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert sum(len(cell.source.splitlines()) for cell in code) <= 200
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1


@pytest.mark.slow
def test_training_runs_from_another_folder_and_its_config_repeats_it(data_settings, tmp_path, monkeypatch):
    answer = papermill_run(tmp_path, *data_settings, "-p", "epochs", "2")
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert "Passed unknown parameter" not in answer.stderr
    (run,) = runs.list_runs(tmp_path / "runs")
    assert run.config.epochs == 2
    assert "| `epochs` | `2` | `35` | -f, -p or a line below" in words(tmp_path / "out.ipynb")
    assert run.id.endswith("-notebook")
    assert len(run.predictions) > 0
    executed = (tmp_path / "out.ipynb").read_text()
    assert executed.count('"image/png": "') == 4
    assert all(output.get("data", {}).get("text/plain", "no display") for output in outputs(tmp_path / "out.ipynb"))
    assert str(run.path) in executed
    assert len(executed) < 1_500_000
    cells = nbformat.read(run.path / "code" / "notebook.ipynb", as_version=4).cells
    assert any("epochs = 2" in cell.source for cell in cells)
    assert any("run = train(config)" in cell.source for cell in cells)

    monkeypatch.chdir(tmp_path)  # where the folders of its settings are
    again = training.train(RunConfig.from_json(run.file("config/config.json")))
    assert [each.path for each in runs.list_runs(tmp_path / "runs")] == [run.path, again.path]
    assert again.history.drop(columns=TIMINGS).equals(run.history.drop(columns=TIMINGS))


@pytest.mark.slow
def test_a_stopped_run_is_resumed_by_its_id_and_the_notebook_shows_the_whole_curve(
    generated, tmp_path, monkeypatch, caplog
):
    folders = {"data_dir": str(generated), "store_dir": str(tmp_path / "stores"), "runs_dir": str(tmp_path / "runs")}
    with monkeypatch.context() as patch:
        stop_at(12, patch)
        with pytest.raises(TrainingError):
            training.train(RunConfig(**SMALL | folders))
    (stopped,) = runs.list_runs(tmp_path / "runs")
    assert len(stopped.history) == 1
    monkeypatch.chdir(tmp_path)
    caplog.clear()
    shown = run_cells(TRAIN, resume=stopped.id, runs_dir="runs")
    assert stopped.history["epoch"].tolist() == [1, 2, 3]
    assert "epoch 1 of" not in caplog.text
    assert "epoch 3 of" in caplog.text
    assert sum(isinstance(value, Figure) for value in shown) == 4
    assert len(runs.list_runs(tmp_path / "runs")) == 1


@pytest.mark.slow
def test_preparing_shows_every_file_and_names_the_unreadable_one(generated, tmp_path):
    data = shutil.copytree(generated, tmp_path / "data")
    first = sorted((data / "train_images").rglob("*.dcm"))[0]
    first.write_text("no DICOM")
    arguments = ["-p", "data_dir", data, "-p", "store_dir", "stores", "-p", "img_size", 64]
    answer = papermill_run(tmp_path, *arguments, notebook=NOTEBOOKS / "00_prepare.ipynb")
    assert answer.returncode == 0, answer.stderr[-3000:]
    executed = (tmp_path / "out.ipynb").read_text()
    assert executed.count('"image/png": "') == 2
    assert "not a DICOM, PNG, JPEG, TIFF or PGM file" in executed
    assert f"{first.stem}" in executed
    (store,) = (tmp_path / "stores").iterdir()
    assert len(list(store.rglob("*.png"))) == len(load_metadata(generated)) - 1
    assert str(store) in executed


@pytest.mark.slow
def test_what_is_misspelt_stops_papermill_with_an_error_that_names_all_of_it(data_settings, tmp_path):
    """Wrong settings are tested in test_config.py."""
    (tmp_path / "unknown.json").write_text('{"batchsize": 3}')
    answer = papermill_run(tmp_path, "-f", tmp_path / "unknown.json", "-p", "epochz", 3)
    assert answer.returncode == 1
    assert "epochz is not a setting (did you mean epochs?)" in last_error_line(answer)
    assert "batchsize is not a setting" in last_error_line(answer)
    assert {path.name for path in tmp_path.iterdir()} == {"small.json", "unknown.json", "out.ipynb"}


WRONG = {
    "empty folder": ({"data_dir": "empty"}, MetadataError, "this folder is empty. Check the setting data_dir"),
    "no positives": ({"data_dir": "negative"}, SplitError, "no image with cancer"),
    "no ImageNet weights": ({"backbone": "small", "weights": "imagenet"}, WeightsError, "has no ImageNet weights"),
}


@pytest.mark.parametrize(("changes", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_stops_before_anything_is_made(generated, tmp_path, monkeypatch, changes, error, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "negative").mkdir()
    table = (generated / "train.csv").read_text().splitlines()
    position = table[0].split(",").index("cancer")
    rows = [line.split(",") for line in table[1:]]
    negative = [",".join([*row[:position], "0", *row[position + 1 :]]) for row in rows]
    (tmp_path / "negative" / "train.csv").write_text("\n".join([table[0], *negative]))
    (tmp_path / "negative" / "train_images").symlink_to(generated / "train_images")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        run_cells(TRAIN, **SMALL | {"data_dir": str(generated), "store_dir": "stores"} | changes)
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "stores").exists()
