"""Exports of runs to ONNX, SavedModel and LiteRT, read by their own runtimes."""

import hashlib
from dataclasses import replace
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from rsna_nb.backbones import BACKBONES
from rsna_nb.config import RunConfig
from rsna_nb.export import FORMATS, ExportError, __main__, check, export_run
from rsna_nb.export.serving import in_float32
from rsna_nb.model import Breasts, body_of, build_model, layers_in
from rsna_nb.prepare import image_file, store_path
from rsna_nb.runs import Run

TOLERANCE = 1e-4
# A small network of each module of rsna_nb.backbones, and of each of `registry.FAMILIES`.
FAMILIES = [
    *("resnet18", "efficientnet_lite0", "yolo11n", "vit_tiny", "dinov2_tiny", "convnexttiny", "efficientnetb0"),
    *("mobilenetv2", "densenet121", "vgg16"),
]


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


def stored(run: Run) -> tuple[np.ndarray, pd.DataFrame]:
    """The validation images of a run as the store has them, uint8 (n, height, width, 1), and their rows."""
    rows = run.predictions.query("split == 'validation'").reset_index(drop=True)
    store = store_path(run.config.store_dir, run.config.data_dir, run.config.img_size)
    files = [image_file(store, *ids) for ids in zip(rows["patient_id"], rows["image_id"], strict=True)]
    return np.array([cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in files])[..., np.newaxis], rows


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.slow
def test_an_export_gives_the_scores_that_the_run_recorded(small_run, to, tmp_path):
    path = export_run(small_run, to, tmp_path / "detector")
    images, rows = stored(small_run)
    score = FORMATS[to].read(path)
    for size in (1, 7):
        found = score({"mammogram": images[:size]})
        assert found.dtype == np.float32
        np.testing.assert_allclose(found[:, 0], rows["score"][:size], atol=TOLERANCE / 10)  # they are nearly equal
    assert sorted(each.name for each in tmp_path.iterdir()) == ["detector", "detector.md"]


@pytest.mark.slow
@pytest.mark.parametrize("backbone", FAMILIES)
def test_each_family_of_networks_can_be_exported_to_every_format(backbone, tmp_path):
    model, config = untrained(backbone=backbone)
    run, images = run_of(model, config, tmp_path), check._drawn_pictures((64, 64)).images
    expected = model.predict_on_batch(images.astype(np.float32) / 255)
    assert np.ptp(expected) > 0.3
    for to in FORMATS:
        found = FORMATS[to].read(export_run(run, to))({"mammogram": images})
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, err_msg=to)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.slow
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


def test_the_model_card_says_what_the_file_is(small_run, tmp_path):
    path = export_run(small_run, "onnx", tmp_path / "detector.onnx")
    card = path.with_name("detector.onnx.md").read_text()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    auc = small_run.metrics["test"]["breast"]["auc"]
    for words in (
        small_run.id,
        "research",
        digest,
        "uint8 (batch, 64, 64, 1)",
        f"{len(stored(small_run)[1])} validation images",
        f"auc {auc:.3f}",
    ):
        assert words in card
    assert "None was chosen" in card


@pytest.mark.slow
def test_the_model_card_has_the_intervals_and_thresholds_of_the_evaluation(small_run, tmp_path):
    model, config = untrained()
    run = run_of(model, config, tmp_path)
    interval = {"estimate": 0.8125, "low": 0.75, "high": 0.875}
    undefined = dict.fromkeys(interval)
    results = {
        "split": "test",
        "women": 40,
        "metrics": [{"unit": "breast, mean", "AUC": interval, "pF1": undefined, "pF1, raw scores": ""}],
        "operating_points": [{"rule": "best F1", "threshold": 0.4321}],
    }
    run.write_json("evaluation.json", results)
    card = export_run(run, "savedmodel").with_name(f"{run.id}.savedmodel.md").read_text()
    for words in ("On 40 test women", "AUC 0.812 (0.750 to 0.875); pF1 not defined |", "| **best F1** | 0.432 |"):
        assert words in card
    assert "was not evaluated here" in card  # the run has no predictions
    assert "32 drawn pictures" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.slow
def test_a_run_of_half_precision_is_exported_in_float32(precision, tmp_path):
    model, config = untrained(precision)
    same = in_float32(model)
    assert in_float32(same) is same
    assert {each.compute_dtype for each in layers_in(same)} == {"float32"}
    path = export_run(run_of(model, config, tmp_path), "savedmodel")
    assert "its network there gives scores that differ by up to" in path.with_name(f"{path.name}.md").read_text()
    images = check._drawn_pictures((64, 64)).images
    expected = same.predict_on_batch(images.astype(np.float32) / 255)
    np.testing.assert_allclose(FORMATS["savedmodel"].read(path)({"mammogram": images}), expected, atol=TOLERANCE)
    assert np.abs(model.predict_on_batch(images.astype(np.float32) / 255) - expected).max() > TOLERANCE


def shifted(by: float):
    """A format that is wrong: every score is larger than the network's by so much."""

    def write(model: keras.Model, path: Path) -> None:
        wrong = keras.Model(model.inputs, {"score": model.outputs[0] + by})
        FORMATS["savedmodel"].write(wrong, path)

    return replace(FORMATS["savedmodel"], write=write)


@pytest.mark.parametrize(("by", "difference"), [(2e-3, "2.0e-03"), (float("nan"), "nan")])
def test_an_export_with_other_scores_is_an_error_and_leaves_nothing(by, difference, tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "wrong", shifted(by))
    run = run_of(*untrained(), tmp_path)
    with pytest.raises(ExportError, match=f"largest difference {difference} in 32 scores .* at most 0.0001 is allowed"):
        export_run(run, "wrong", tmp_path / "out" / "detector")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_a_breast_with_other_scores_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "wrong", shifted(2e-3))
    run = run_of(*untrained(unit="woman"), tmp_path)
    with pytest.raises(ExportError, match=r"largest difference 2\.0e-03 in 13 scores"):
        export_run(run, "wrong")


@keras.saving.register_keras_serializable("test")
class Digamma(keras.layers.Layer):
    """An operation that neither ONNX nor LiteRT has."""

    def call(self, inputs):
        return tf.math.digamma(inputs + 3.0)


def build_with_digamma(height: int, width: int) -> keras.Model:
    image = keras.Input((height, width, 1))
    return keras.Model(image, Digamma()(keras.layers.Conv2D(4, 3, strides=2)(image)))


@pytest.mark.parametrize(
    ("to", "reason"), [("onnx", "onnxruntime cannot run .*Digamma"), ("litert", "written .*Digamma")]
)
def test_an_operation_that_the_format_lacks_is_an_error_with_its_name(to, reason, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "digamma", build_with_digamma)
    run = run_of(*untrained(backbone="digamma"), tmp_path)
    with pytest.raises(ExportError, match=reason):
        export_run(run, to)
    assert export_run(run, "savedmodel").is_dir()


@pytest.mark.slow
def test_litert_takes_the_maximum_over_the_images_of_a_breast(tmp_path):
    run = run_of(*untrained(unit="breast", combine="max"), tmp_path)
    assert export_run(run, "litert").is_file()  # it was checked


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], packages=("onnx", "not_installed")))
    with pytest.raises(ExportError, match=r"ONNX needs not_installed: pip install 'rsna_nb\[export\]'"):
        export_run(run_of(*untrained(), tmp_path), "onnx")


@pytest.mark.slow
def test_an_export_replaces_an_earlier_one_and_nothing_else(tmp_path):
    run = run_of(*untrained(), tmp_path)
    path = export_run(run, "savedmodel", tmp_path / "detector")
    assert export_run(run, "savedmodel", path) == path
    with pytest.raises(ExportError, match="is a folder of other files"):
        export_run(run, "savedmodel", tmp_path)
    with pytest.raises(ExportError, match="is a folder of other files"):
        export_run(run, "litert", path)
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="a SavedModel is a folder"):
        export_run(run, "savedmodel", tmp_path / "file")
    with pytest.raises(ExportError, match="one of onnx, savedmodel, litert, not 'coreml'"):
        export_run(run, "coreml")


def test_the_command_prints_the_path_or_why_there_is_none(tmp_path, capsys):
    run = run_of(*untrained(), tmp_path)
    (tmp_path / "ensembles" / "both").mkdir(parents=True)
    __main__.main([run.id, "--to", "savedmodel", "--runs-dir", str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[-1] == str(run.path / "export" / f"{run.id}.savedmodel")
    for name, reason in (("both", "both is an ensemble: export its runs"), ("none", "there is no run none")):
        with pytest.raises(SystemExit, match=f"error: {reason}"):
            __main__.main([name, "--to", "onnx", "--runs-dir", str(tmp_path)])
