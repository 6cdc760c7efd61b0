"""08_explain as papermill runs it, on a run that was trained for a moment."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsna_nb import evaluation, explain, inference, metadata, viewer
from rsna_nb.config import RunConfig
from rsna_nb.explain import explanation, pointing
from rsna_nb.notebook import UnavailableError, attempt
from rsna_nb.prepare import store_path
from rsna_nb.runs import Run, RunError
from rsna_nb.system.files import read_arrays
from rsna_nb.training import run as training
from tests.notebooks import NOTEBOOKS, figures, papermill_run, words
from tests.small import SMALL

EXPLAIN = NOTEBOOKS / "08_explain.ipynb"
pytestmark = pytest.mark.slow


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


def test_the_notebook_shows_maps_curves_and_the_game_and_writes_them(run, tmp_path):
    own = ["-p", "run", run.path, "-p", "runs_dir", run.path.parent, "-p", "draws", 50, "-p", "pictures", 2]
    answer = papermill_run(tmp_path, *own, "-p", "flips", "false", notebook=EXPLAIN)
    assert answer.returncode == 0, answer.stderr[-3000:]
    text, folder = words(tmp_path / "out.ipynb"), run.path / "explain" / "class_activation"
    assert "class_activation, of the image as it is" in text
    assert "Viewer of " in text
    assert "id=&quot;map-0&quot;" in text, "the images in the viewer have maps"
    written = json.loads((folder / "explanation.json").read_text())
    assert written["run"] == run.id
    assert (written["flips"], written["pictures"], written["draws"]) == (False, 2, 50)
    shares = [written["pointing"][name]["estimate"] for name in ("map", "random", "brightest")]
    assert all(0 <= share <= 1 for share in shares)
    assert written["pointing"]["map - random"]["estimate"] == pytest.approx(shares[0] - shares[1])
    lesions = pd.read_csv(Path(run.config.data_dir) / "lesions.csv", dtype=str).query("cancer == '1'")
    assert written["pointing_images"] == run.predictions["image_id"].isin(lesions["image_id"]).sum() > 0
    arrays = read_arrays(folder / "maps.npz")
    assert arrays["maps"].shape == (len(arrays["image_id"]), 64, 64)
    assert arrays["image_id"].tolist() == [each for ids in written["images"].values() for each in ids]
    assert set(arrays["image_id"]) <= set(run.predictions["image_id"])
    found = figures(tmp_path / "out.ipynb")
    kinds = len(set(arrays["kind"]))
    assert len(found) >= kinds + 2
    assert all(figure.metadata["image/png"]["alt"] == figure.data["text/plain"] for figure in found)
    assert all(str(folder / name) in text for name in ("explanation.json", "maps.npz"))


@pytest.fixture(scope="module")
def shown(run) -> dict[str, explain.ExplainedImages]:
    """Two images with cancer and their maps."""
    targets = pointing.targets(evaluation.evaluate(run)).head(2)
    return {"hits": explanation.explain_images(inference.load_model(run), run, targets, "class_activation", False)}


def test_without_lesions_and_without_the_files_the_reasons_are_shown_and_written(run, data, shown, without):
    without(data / "lesions.csv")
    without(data / "train_images")
    evaluated = evaluation.evaluate(run)
    targets = attempt(explain.targets, evaluated)
    assert str(data / "lesions.csv") in targets.reason
    assert "the file is missing" in attempt(explain.map_in_file, run, shown).reason
    rows = shown["hits"].rows
    again = explanation.explain_images(inference.load_model(run), run, rows, "grad_cam", False)
    assert [len(boxes) for boxes in again.boxes] == [0, 0]
    settings, results = {"method": "grad_cam", "flips": True}, {"pointing": attempt(explain.hit_rates, targets)}
    (path,) = explain.write_results(evaluated, settings, results, attempt(explain.explain_examples, targets))
    written = json.loads(path.read_text())
    assert "lesions.csv" in str(written["pointing"])
    assert written["method"] == "grad_cam"


def test_results_never_overwrite_others(run, shown):
    """Of another method, of other flips, of other draws, or of data that have changed."""
    evaluated = evaluation.evaluate(run)
    first = {"method": "grad_cam", "flips": False, "draws": 50}
    settings = [first, first | {"method": "class_activation"}, first | {"flips": True}, first | {"draws": 60}]
    paths = [explain.write_results(evaluated, each, {"pointing": 0.5}, shown) for each in settings]
    paths.append(explain.write_results(evaluated, first, {"pointing": 0.6}, shown))
    assert len({path for each in paths for path in each}) == 10
    before = [path.read_bytes() for each in paths for path in each]
    again = [explain.write_results(evaluated, each, {"pointing": 0.5}, shown) for each in settings]
    assert again == paths[:4]
    assert [path.read_bytes() for each in paths for path in each] == before


def test_what_is_missing_is_named(run, data, without):
    targets = pointing.targets(evaluation.evaluate(run))
    store = store_path(run.config.store_dir, data, run.config.img_size)
    without(store / "images")
    with pytest.raises(UnavailableError, match=r"\.png is missing or damaged: notebooks/00_prepare"):
        explain.pointing_game(None, run, targets, "class_activation", True)
    without(store / "ledger.csv")
    with pytest.raises(UnavailableError, match=r"ledger\.csv does not say where \d+ images lie, first \d+/\d+"):
        pointing.targets(evaluation.evaluate(run))
    without(run.path / "checkpoints" / "best.keras")
    with pytest.raises(RunError, match=r"has no checkpoints/best\.keras"):
        inference.load_model(run)
    with pytest.raises(UnavailableError, match="there are no misses"):
        explain.perturbation_curves(None, {}, "misses")


def test_the_boxes_in_a_picture_are_those_of_the_file(run, data):
    targets = pointing.targets(evaluation.evaluate(run))
    lesions = metadata.lesion_boxes(data)
    model = inference.load_model(run)
    shown = {"all": explanation.explain_images(model, run, targets, "class_activation", False)}
    found = explain.map_in_file(run, shown)
    expected = lesions[targets["patient_id"][0], targets["image_id"][0]]
    np.testing.assert_allclose(found.boxes, expected, atol=1e-6)
    assert found.heat_map.shape[0] >= found.image.shape[0]
    images = viewer.images_of(evaluation.evaluate(run), {"all": targets})
    maps = explain.maps_in_files(model, run, images, "class_activation", False)
    assert list(maps) == images["path"].tolist()
    (path,) = images.loc[images["image_id"] == targets["image_id"][0], "path"]
    np.testing.assert_allclose(maps[path], found.heat_map, atol=1e-5)
    for boxes in targets["boxes"]:
        assert (boxes > -1).all()
        assert (boxes < 65).all()


def test_an_image_that_the_table_lacks_is_named(run, data, tmp_path, without):
    targets = pointing.targets(evaluation.evaluate(run)).head(1)
    shown = {"all": explanation.explain_images(inference.load_model(run), run, targets, "grad_cam", False)}
    table = (data / "train.csv").read_text()
    without(data / "train.csv")
    lines = [line for line in table.splitlines() if targets["image_id"][0] not in line]
    (data / "train.csv").write_text("\n".join(lines))
    with pytest.raises(UnavailableError, match=f"has no image {targets['patient_id'][0]}/{targets['image_id'][0]}"):
        explain.map_in_file(run, shown)
