"""08_explain as papermill runs it, on a run that was trained for a moment."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rsna_nb import evaluation, inference
from rsna_nb.config import RunConfig
from rsna_nb.explain import explanation, pointing
from rsna_nb.notebook import UnavailableError
from rsna_nb.prepare.store import store_path
from rsna_nb.runs import Run, RunError
from rsna_nb.system.files import read_arrays
from rsna_nb.training import run as training
from tests.notebooks import NOTEBOOKS, figures, last_error_line, papermill_run, words
from tests.small import SMALL

EXPLAIN = NOTEBOOKS / "08_explain.ipynb"


@pytest.fixture(scope="module")
def data(generated, tmp_path_factory) -> Path:
    """The generated set in a folder of its own, which a test may change and put back."""
    return shutil.copytree(generated, tmp_path_factory.mktemp("explain") / "data")


@pytest.fixture(scope="module")
def run(data) -> Run:
    folders = {"data_dir": str(data), "store_dir": str(data.parent / "stores"), "runs_dir": str(data.parent / "runs")}
    return training.train(RunConfig(**SMALL | folders | {"epochs": 1}))


@pytest.fixture
def without(tmp_path):
    """Take a file or folder away for the test."""
    taken = []

    def take(path: Path) -> None:
        taken.append((path, tmp_path / path.name))
        shutil.move(*taken[-1])

    yield take
    for path, aside in taken:
        shutil.move(aside, path)


def papermill_explain(run: Run, folder: Path, *arguments: object):
    own = ["-p", "run", run.path, "-p", "runs_dir", run.path.parent, "-p", "draws", 50, "-p", "pictures", 2]
    return papermill_run(folder, *own, *arguments, notebook=EXPLAIN)


def test_it_shows_maps_curves_and_the_game_and_writes_them(run, tmp_path):
    answer = papermill_explain(run, tmp_path, "-p", "flips", "false")
    assert answer.returncode == 0, answer.stderr[-3000:]
    text = words(tmp_path / "out.ipynb")
    assert "class_activation, of the picture as it is" in text
    written = json.loads((run.path / "explain" / "explanation.json").read_text())
    assert written["run"] == run.id
    assert written["flips"] is False
    shares = [written["pointing"][name]["estimate"] for name in ("map", "random", "brightest")]
    assert all(0 <= share <= 1 for share in shares)
    assert written["pointing"]["map less random"]["estimate"] == pytest.approx(shares[0] - shares[1])
    assert written["pointing_images"] == int(run.predictions["cancer"].sum())
    arrays = read_arrays(run.path / "explain" / "maps.npz")
    assert arrays["maps"].shape == (len(arrays["image_id"]), 64, 64)
    assert set(arrays["image_id"]) <= set(run.predictions["image_id"])
    found = figures(tmp_path / "out.ipynb")
    kinds = len(set(arrays["kind"]))
    left_out = text.count("Left out")
    assert len(found) + left_out == 6
    assert len(found) >= kinds + 2
    assert all(figure.metadata["image/png"]["alt"] == figure.data["text/plain"] for figure in found)
    assert str(run.path / "explain" / "maps.npz") in text


def test_without_lesions_and_without_the_files_the_rest_is_shown(run, data, tmp_path, without):
    without(data / "lesions.csv")
    without(data / "train_images")
    answer = papermill_explain(run, tmp_path, "-p", "method", "grad_cam")
    assert answer.returncode == 0, answer.stderr[-3000:]
    text = words(tmp_path / "out.ipynb")
    assert f"Left out: the data have no table of lesions, {data / 'lesions.csv'}" in text
    assert "the file is missing" in text
    written = json.loads((run.path / "explain" / "explanation.json").read_text())
    assert "lesions.csv" in written["pointing"]["unavailable"]
    assert written["method"] == "grad_cam"


def test_a_misspelt_parameter_stops_with_one_line_that_names_it(run, tmp_path):
    answer = papermill_explain(run, tmp_path, "-p", "methood", "grad_cam")
    assert answer.returncode == 1
    assert "methood is not a setting (did you mean method?)" in last_error_line(answer)


def test_what_is_missing_is_named(run, data, without):
    targets = pointing.targets(evaluation.evaluate(run))
    store = store_path(run.config.store_dir, data, run.config.img_size)
    without(store / "images")
    with pytest.raises(UnavailableError, match=r"\.png is missing or damaged: notebooks/00_prepare"):
        explanation.play(None, targets, "class_activation", True)
    without(store / "ledger.csv")
    with pytest.raises(UnavailableError, match=r"ledger\.csv does not say where \d+ pictures lie, first \d+/\d+"):
        pointing.targets(evaluation.evaluate(run))
    without(run.path / "checkpoints" / "best.keras")
    with pytest.raises(RunError, match=r"has no checkpoints/best\.keras"):
        inference.load_model(run)
    with pytest.raises(UnavailableError, match="there are no misses"):
        explanation.curves(None, {}, "misses")


def test_the_boxes_in_a_picture_are_those_of_the_file(run, data):
    targets = pointing.targets(evaluation.evaluate(run))
    lesions = pointing.read_lesions(data).set_index("image_id")
    model = inference.load_model(run)
    shown = {"all": explanation.explained(model, run, targets, "class_activation", False)}
    found = explanation.in_file(run, shown)
    expected = lesions.loc[[targets["image_id"][0]], pointing.BOX].to_numpy(float)
    np.testing.assert_allclose(found.boxes, expected, atol=1e-6)
    assert found.heat.shape[0] >= found.picture.shape[0]
    for boxes in targets["boxes"]:
        assert (boxes > -1).all()
        assert (boxes < 65).all()


def test_an_image_that_the_table_lacks_is_named(run, data, tmp_path, without):
    targets = pointing.targets(evaluation.evaluate(run)).head(1)
    shown = {"all": explanation.explained(inference.load_model(run), run, targets, "grad_cam", False)}
    table = (data / "train.csv").read_text()
    without(data / "train.csv")
    lines = [line for line in table.splitlines() if targets["image_id"][0] not in line]
    (data / "train.csv").write_text("\n".join(lines))
    with pytest.raises(UnavailableError, match=f"has no image {targets['patient_id'][0]}/{targets['image_id'][0]}"):
        explanation.in_file(run, shown)
