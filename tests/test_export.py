"""Exports of runs to ONNX, SavedModel and LiteRT, read by their own runtimes."""

from pathlib import Path

import cv2
import keras
import numpy as np
import pytest

from rsna_nb import evaluation
from rsna_nb.config import RunConfig
from rsna_nb.export import FORMATS, check, export_run
from rsna_nb.model import Breasts, body_of, build_model
from rsna_nb.prepare import image_file, store_path
from rsna_nb.runs import Run

TOLERANCE = 1e-4


def run_of(model: keras.Model, config: RunConfig, folder: Path) -> Run:
    """A run folder with a model and without a store, so that exports are checked on drawn pictures."""
    run = Run(folder / "20261127-120000-test")
    (run.path / "checkpoints").mkdir(parents=True)
    config.to_json(run.path / "config" / "config.json")
    model.save(run.path / "checkpoints" / "best.keras")
    return run


def untrained(precision: str = "float32", **settings) -> tuple[keras.Model, RunConfig]:
    """A detector with random weights whose scores of the drawn pictures differ."""
    given = {"backbone": "small", "weights": "none", "freeze_backbone": False, "img_size": 64, "data_dir": "nowhere"}
    config = RunConfig(**given | settings)
    keras.utils.set_random_seed(0)
    model = build_model(config, precision)
    spread(model)
    return model, config


def spread(model: keras.Model) -> None:
    """Set the last layer so that the logits of the drawn pictures have the mean 0 and the deviation 1."""
    images = check._drawn_pictures(model.get_layer("backbone").input_shape[1:3]).images.astype(np.float32) / 255
    features = body_of(model).predict_on_batch(images).astype(np.float32)
    kernel, bias = model.get_layer("cancer").get_weights()
    kernel[: features.shape[1]] /= (features @ kernel[: features.shape[1]]).std()
    bias = -(features @ kernel[: features.shape[1]]).mean(axis=0)
    model.get_layer("cancer").set_weights([kernel, bias])


def stored(run: Run) -> tuple[np.ndarray, "evaluation.Evaluation"]:
    """The validation images of a run as the store has them, uint8 (n, height, width, 1), and their rows."""
    rows = run.predictions.query("split == 'validation'").reset_index(drop=True)
    store = store_path(run.config.store_dir, run.config.data_dir, run.config.img_size)
    files = [image_file(store, *ids) for ids in zip(rows["patient_id"], rows["image_id"], strict=True)]
    return np.array([cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in files])[..., np.newaxis], rows


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_gives_the_scores_that_the_run_recorded(small_run, to, tmp_path):
    path = export_run(small_run, to, tmp_path / "detector")
    images, rows = stored(small_run)
    score = FORMATS[to].read(path)
    for size in (1, 7):
        found = score({"mammogram": images[:size]})
        assert found.dtype == np.float32
        np.testing.assert_allclose(found[:, 0], rows["score"][:size], atol=TOLERANCE)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["detector", "detector.md"]


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_of_breasts_takes_any_number_of_places(breast_run, to, tmp_path):
    score = FORMATS[to].read(export_run(breast_run, to, tmp_path / "detector"))
    images, rows = stored(breast_run)
    breasts = Breasts.of(rows, "woman")
    places, views = breasts.all()
    expected = rows["score"].to_numpy()[breasts.images[:, 0]]
    for chosen in (slice(0, 1), slice(0, 5)):
        found = score({"mammograms": images[places[chosen]], "views": views[chosen]})
        np.testing.assert_allclose(found[:, 0], expected[chosen], atol=TOLERANCE)
    used = views[0] > 0  # an empty place less, and the order reversed
    found = score({"mammograms": images[places[:1, used]][:, ::-1], "views": views[:1, used][:, ::-1]})
    np.testing.assert_allclose(found[:, 0], expected[:1], atol=TOLERANCE)
