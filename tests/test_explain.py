"""Heat maps of networks with hand-made weights, whose right map is known, and the maps' place in the DICOM file."""

from dataclasses import replace

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers

from rsna_nb import explain, inference
from rsna_nb.config import RunConfig
from rsna_nb.dicom import reader as dicom
from rsna_nb.dicom.fitting import fit, placement
from rsna_nb.dicom.preprocessing_steps import reading_steps
from rsna_nb.explain import deletion, maps, pointing
from rsna_nb.explain.geometry import Geometry
from rsna_nb.model import body_of, build_model, combination_of, norm_of
from rsna_nb.notebook import UnavailableError
from rsna_nb.prepare.ledger import Record
from tests import winner
from tests.conftest import REAL_DIR, needs_real_files, write_dicom

SIDE, STRIDE, PLACES = 32, 4, 8
FAMILIES = ["small", "mobilenetv2", "yolo11n", "vit_tiny"]  # one backbone of each kind


def patch_model(pooling: str, weights: tuple[float, float] = (2.0, -1.0), bias: float = 0.3) -> keras.Model:
    """A network with two channels, the mean of each patch of 4 x 4 pixels and 1 minus that mean, and a head."""
    image = keras.Input((SIDE, SIDE, 1))
    network = keras.Sequential([keras.Input((SIDE, SIDE, 1)), layers.Conv2D(2, STRIDE, STRIDE)], name="backbone")
    kernel = np.full((STRIDE, STRIDE, 1, 2), 1 / STRIDE**2) * [1, -1]
    network.set_weights([kernel, np.array([0.0, 1.0])])
    pooled = (layers.GlobalAveragePooling2D if pooling == "avg" else layers.GlobalMaxPooling2D)(name="pooled")
    last = layers.Dense(1, activation="sigmoid", name="cancer")
    model = keras.Model(image, last(layers.Dropout(0.5, name="dropout")(pooled(network(image)))))
    last.set_weights([np.array(weights)[:, np.newaxis], np.array([bias])])
    return model


def spotted(row: int, column: int, value: float = 1.0) -> np.ndarray:
    """An image (1, SIDE, SIDE, 1) that is grey, with one brighter patch."""
    images = np.full((1, SIDE, SIDE, 1), 0.2, np.float32)
    images[:, row * STRIDE : (row + 1) * STRIDE, column * STRIDE : (column + 1) * STRIDE] = value
    return images


def activation(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """What each position adds to the logit of each image, taken alone."""
    return maps._class_activation(model, images, np.full((len(images), 1), 3))


def logits(model: keras.Model, images: np.ndarray) -> np.ndarray:
    kernel, bias = model.get_layer("cancer").get_weights()
    pooled = keras.Model(model.input, model.get_layer("dropout").output)(images, training=False)
    return (np.asarray(pooled).astype(np.float64) @ kernel + bias)[:, 0]


def network(backbone: str, pooling: str, precision: str = "float32") -> keras.Model:
    keras.utils.set_random_seed(1)
    return build_model(
        RunConfig(backbone=backbone, weights="none", img_size=64, pooling=pooling, freeze_backbone=False), precision
    )


@pytest.fixture
def pictures() -> np.ndarray:
    """Noise in an ellipse, (3, 64, 64, 1); smooth images would have ties in their feature maps."""
    y, x = np.mgrid[:64, :64]
    noise = np.random.default_rng(0).random((3, 64, 64, 1), dtype=np.float32)
    return noise * ((((y - 32) / 30) ** 2 + (x / 40) ** 2) < 1)[..., np.newaxis]


def test_with_average_pooling_each_position_adds_its_weighted_channels():
    (values,) = activation(patch_model("avg"), spotted(5, 2))
    assert values.shape == (PLACES, PLACES)
    assert values[5, 2] == pytest.approx(2 / PLACES**2)
    assert np.delete(values.ravel(), 5 * PLACES + 2) == pytest.approx((2 * 0.2 - 0.8) / PLACES**2)


def test_with_max_pooling_a_channel_adds_its_maximum_where_it_is_and_ties_share_it():
    (values,) = activation(patch_model("max"), spotted(5, 2))
    assert values[5, 2] == pytest.approx(2)
    assert np.delete(values.ravel(), 5 * PLACES + 2) == pytest.approx(-0.8 / (PLACES**2 - 1))


@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize("backbone", FAMILIES)
@pytest.mark.slow
def test_the_positions_and_the_bias_sum_to_the_logit(backbone, pooling, pictures):
    model = network(backbone, pooling)
    kernel, _ = model.get_layer("cancer").get_weights()
    model.get_layer("cancer").set_weights([10 * kernel, np.array([-1.5])])
    values = activation(model, pictures)
    expected = logits(model, pictures)
    np.testing.assert_allclose(values.sum(axis=(1, 2)) - 1.5, expected, atol=1e-4)
    np.testing.assert_allclose(model(pictures, training=False)[:, 0], 1 / (1 + np.exp(-expected)), atol=1e-5)


def test_a_model_of_reduced_precision_has_nearly_the_same_map(pictures):
    model, reduced = network("small", "avg"), network("small", "avg", "bfloat16")
    reduced.set_weights(model.get_weights())
    values = activation(reduced, pictures)
    assert values.dtype == np.float32
    kernel, _ = reduced.get_layer("cancer").get_weights()
    features = np.asarray(reduced.get_layer("backbone")(pictures)).astype(np.float64)
    np.testing.assert_allclose(values.sum(axis=(1, 2)), features.mean(axis=(1, 2)) @ kernel[:, 0], atol=1e-4)
    whole = activation(model, pictures)
    assert np.corrcoef(values.ravel(), whole.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("backbone", FAMILIES)
def test_with_average_pooling_grad_cam_is_the_positive_class_activation_up_to_scale(backbone, pictures):
    model = network(backbone, "avg")
    positive = np.maximum(activation(model, pictures), 0)
    np.testing.assert_allclose(maps._grad_cam(model, pictures, np.full((3, 1), 3)), positive, rtol=1e-3, atol=1e-7)


def test_grad_cam_explains_the_logit_so_a_saturated_score_has_a_map():
    model = patch_model("avg", (2.0, 0.0), bias=200)
    assert model(spotted(5, 2), training=False)[0, 0] == 1
    (found,) = explain.grad_cam(model, spotted(5, 2))
    assert pointing.highest(found) in [(y, x) for y in range(20, 24) for x in range(8, 12)]


@pytest.mark.parametrize("method", maps.METHODS)
@pytest.mark.parametrize("backbone", FAMILIES)
@pytest.mark.slow
def test_a_map_has_the_images_shape_is_in_0_to_1_and_0_outside_the_breast(backbone, method, pictures):
    model = network(backbone, "max")
    kernel, bias = model.get_layer("cancer").get_weights()
    model.get_layer("cancer").set_weights([np.abs(kernel), bias])  # so that some features speak for cancer
    found = maps.heat_maps(model, pictures, method)
    assert found.shape == (3, 64, 64)
    assert found.min() == 0
    np.testing.assert_array_equal(found.max(axis=(1, 2)), 1)
    assert found[pictures[..., 0] == 0].max() == 0


def breast_network(backbone: str, pooling: str, unit: str, combine: str) -> keras.Model:
    """A network for breasts whose every weight after the backbone counts."""
    keras.utils.set_random_seed(1)
    settings = {"backbone": backbone, "pooling": pooling, "unit": unit, "combine": combine}
    model = build_model(RunConfig(**settings, weights="none", img_size=64, freeze_backbone=False))
    rng = np.random.default_rng(0)
    for layer in filter(None, (combination_of(model), norm_of(model), model.get_layer("cancer"))):
        layer.set_weights([rng.normal(0.3, 1, weight.shape) for weight in layer.get_weights()])
    return model


def breast_logits_and_constants(model: keras.Model, images: np.ndarray, views: np.ndarray) -> tuple:
    """The logits of breasts, and the part of each that no position of an image has: bias, views and norm offsets."""
    combination, last, norm = combination_of(model), model.get_layer("cancer"), norm_of(model)
    features = body_of(model)(images, training=False).numpy().reshape(*views.shape, -1)
    offsets = (norm.beta.numpy() if norm else 0) + np.zeros_like(features)
    kinds = np.where(views > 0, (views - 1) % 3, 0)
    offsets += np.where(views[..., None] > 0, combination.view_vectors.numpy()[kinds], 0)

    def vector(values: np.ndarray, present: np.ndarray) -> np.ndarray:
        shares = combination.shares(features, views, present).numpy()
        return (values * (shares if shares.ndim == 3 else shares[..., None])).sum(axis=1)

    own, other = vector(offsets, (views > 0) & (views <= 3)), vector(offsets, views > 3)
    known = (views > 3).any(axis=1, keepdims=True)
    constant = np.hstack([own, known * (own - other)]) if combination.opposite else own
    logit = combination(features, views).numpy() @ last.kernel.numpy() + last.bias.numpy()
    return logit[:, 0], (constant @ last.kernel.numpy() + last.bias.numpy())[:, 0]


@pytest.mark.parametrize("combine", ["mean", "max", "attention"])
@pytest.mark.parametrize("unit", ["breast", "woman"])
@pytest.mark.parametrize(("backbone", "pooling"), [("small", "max"), ("small", "avg"), ("convnextsmall", "avg")])
@pytest.mark.slow
def test_the_positions_of_all_images_and_the_constants_sum_to_the_logit_of_the_breast(
    backbone, pooling, unit, combine, pictures, monkeypatch
):
    winner.make_small(monkeypatch)  # the ConvNeXt, which has a norm
    model = breast_network(backbone, pooling, unit, combine)
    assert (norm_of(model) is not None) == (backbone != "small")
    views = np.array([[1, 2, 0], [3, 1, 2]] if unit == "breast" else [[1, 5, 4], [2, 1, 0]], np.int32)
    images = np.concatenate([pictures, pictures[::-1, ::-1]])
    values = maps._class_activation(model, images, views)
    assert values.shape[0] == 6
    assert np.abs(values[views.ravel() == 0]).max() == 0  # a place without an image adds nothing
    expected, constants = breast_logits_and_constants(model, images, views)
    np.testing.assert_allclose(values.reshape(2, -1).sum(axis=1) + constants, expected, rtol=1e-5, atol=1e-4)
    inputs = [images.reshape(2, 3, 64, 64, 1), views]
    np.testing.assert_allclose(model(inputs, training=False)[:, 0], 1 / (1 + np.exp(-expected)), atol=1e-5)


@pytest.mark.parametrize("method", maps.METHODS)
def test_maps_of_a_breast_share_a_scale_and_those_of_other_breasts_do_not_change_them(method, pictures):
    model = breast_network("small", "avg", "breast", "attention")
    kernel, bias = model.get_layer("cancer").get_weights()
    model.get_layer("cancer").set_weights([np.abs(kernel), bias])  # so that some features speak for cancer
    images, views = np.concatenate([pictures, pictures[:1]]), np.array([[1, 2], [3, 1]])
    found = maps.heat_maps(model, images, method, views=views)
    highest = found.max(axis=(1, 2)).reshape(2, 2)
    np.testing.assert_array_equal(highest.max(axis=1), 1)
    assert (highest.min(axis=1) < 1).all()
    np.testing.assert_allclose(maps.heat_maps(model, images[:2], method, views=views[:1]), found[:2], atol=1e-5)
    backwards = maps.heat_maps(model, images[1::-1], method, views=views[:1, ::-1])
    np.testing.assert_allclose(backwards, found[1::-1], atol=1e-5)


def test_grad_cam_of_a_breast_by_its_mean_is_the_positive_class_activation_up_to_scale(pictures):
    model, views = breast_network("small", "avg", "woman", "mean"), np.array([[1, 2, 4]])
    positive = np.maximum(maps._class_activation(model, pictures, views), 0)
    assert (positive.max(axis=(1, 2)) > 0).sum() > 1
    np.testing.assert_allclose(maps._grad_cam(model, pictures, views), positive, rtol=1e-3, atol=1e-6)


def test_a_network_of_breasts_maps_single_images_each_as_the_only_one_of_its_breast(pictures):
    model = breast_network("small", "max", "woman", "attention")
    found = maps.heat_maps(model, pictures)
    alone = [maps.heat_maps(model, image[None], views=np.array([[3]]))[0] for image in pictures]
    np.testing.assert_allclose(found, alone, atol=1e-5)


def test_where_nothing_speaks_for_cancer_the_map_is_empty():
    assert explain.grad_cam(patch_model("avg", (-1.0, 0.0)), spotted(1, 1)).max() == 0


def test_over_the_flips_the_map_of_a_flipped_picture_is_the_flipped_map(pictures):
    model = network("small", "max")
    found, flipped = (maps.heat_maps(model, images, flips=True) for images in (pictures, pictures[:, :, ::-1]))
    np.testing.assert_allclose(flipped, found[:, :, ::-1], atol=1e-4)


def test_over_the_flips_a_network_with_strides_points_at_the_centre_of_a_structure():
    image = keras.Input((64, 64, 1))
    x = image
    backbone = keras.Sequential([image], name="backbone")
    for _ in range(4):
        backbone.add(layers.Conv2D(1, 3, 2, padding="same", use_bias=False, kernel_initializer="ones"))
    x = layers.Dropout(0, name="dropout")(layers.GlobalAveragePooling2D(name="pooled")(backbone(image)))
    last = layers.Dense(1, kernel_initializer="ones", name="cancer")
    model = keras.Model(image, last(x))
    images = np.full((1, 64, 64, 1), 1e-3, np.float32)
    images[0, 30:34, 30:34] = 1  # the centre, where no side is favoured
    (one,), (all_flips,) = (maps.heat_maps(model, images, flips=flips) for flips in (False, True))
    distance = [np.hypot(*(np.array(pointing.highest(values)) + 0.5 - 32)) for values in (one, all_flips)]
    assert distance[1] < 2 < distance[0]


def test_what_cannot_be_mapped_is_refused_with_the_reason(tmp_path):
    with pytest.raises(ValueError, match="method must be one of class_activation, grad_cam, not gradcam"):
        maps.heat_maps(patch_model("avg"), spotted(1, 1), "gradcam")
    image = keras.Input((SIDE, SIDE, 1))
    features = keras.Sequential([image, layers.Conv2D(2, 4, 4)], name="backbone")(image)
    flat = layers.Flatten(name="pooled")(features)
    model = keras.Model(image, layers.Dense(1, name="cancer")(layers.Dropout(0.1, name="dropout")(flat)))
    with pytest.raises(ValueError, match=r"pooling by Flatten .*: use the method grad_cam"):
        activation(model, spotted(1, 1))
    with pytest.raises(UnavailableError, match=r"1\.png is missing or damaged"):
        inference.read_images([tmp_path / "1.png"])


@pytest.mark.parametrize("shape", [(64, 64), (64, 128), (256, 32)])
@pytest.mark.parametrize("box", [(200, 100), (33, 57), (1, 1000)])
def test_placement_is_where_fit_puts_an_image(box, shape):
    at = placement(box, shape)
    filled = np.zeros(shape, bool)
    filled[at.top : at.top + at.height, at.left : at.left + at.width] = True
    np.testing.assert_array_equal(fit(np.ones(box, np.float32), shape) > 0, filled)


@pytest.fixture(params=[1, 4, 7], ids=lambda times: f"{400 * times - 1} rows")
def file_with_spot(request, breast, tmp_path):
    """A file of 1 to 7 times the breast's size, and the box of its bright spot."""
    times = request.param
    stored = breast.repeat(times, axis=0).repeat(times, axis=1)[:-1, :-1]
    box = np.array([60, 150, 76, 166]) * times
    stored[box[1] : box[3], box[0] : box[2]] = 4095
    return write_dicom(tmp_path / "1.dcm", stored), box


@pytest.mark.parametrize("shape", [(64, 64), (128, 96)])
def test_a_spot_in_the_image_maps_to_its_place_in_the_file(file_with_spot, shape):
    path, box = file_with_spot
    reading = dicom.read(path, shape)
    geometry = Geometry.of(reading, shape)
    x_min, y_min, x_max, y_max = geometry.to_image(box[np.newaxis].astype(float))[0]
    y, x = np.nonzero(reading.picture > 0.95)
    assert [x.min(), y.min(), x.max() + 1, y.max() + 1] == pytest.approx([x_min, y_min, x_max, y_max], abs=1.1)

    whole = geometry.map_to_file((reading.picture > 0.95).astype(np.float32))
    assert whole.shape == (reading.rows, reading.columns)
    rows, columns = np.nonzero(whole > 0.5)
    pixel = 1 / geometry.scale.min()
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(np.array(found) - box).max() <= 1.1 * pixel


def test_a_box_mapped_to_the_image_and_back_is_the_same(file_with_spot):
    path, box = file_with_spot
    geometry = Geometry.of(dicom.read(path, 64), (64, 64))
    np.testing.assert_allclose(geometry.to_file(geometry.to_image(box[np.newaxis])), box[np.newaxis], atol=1e-9)
    assert geometry.map_to_file(np.ones((64, 64))).max() == 1
    with pytest.raises(ValueError, match=r"shape \(64, 64\), not \(8, 8\)"):
        geometry.map_to_file(np.ones((8, 8)))


@needs_real_files
@pytest.mark.parametrize("image", range(0, 8, 3))
def test_a_real_image_mapped_to_its_file_lies_on_the_files_own_tissue(image):
    path = sorted(REAL_DIR.glob("train_images/*/*.dcm"))[image]
    reading, whole = dicom.read(path, 256), reading_steps(str(path), 256)[2].picture
    geometry = Geometry.of(reading, (256, 256))
    mapped = geometry.map_to_file(reading.picture)
    x_min, y_min, x_max, y_max = reading.crop
    full = cv2.resize(whole, mapped.shape[::-1], interpolation=cv2.INTER_LINEAR)
    pixel = round(1 / geometry.scale.min())

    def likeness(down: int, right: int) -> float:
        moved = np.roll(mapped, (down * pixel, right * pixel), (0, 1))
        at = np.s_[y_min + 50 : y_max - 50, x_min + 50 : x_max - 50]
        return float(np.corrcoef(moved[at].ravel(), full[at].ravel())[0, 1])

    assert likeness(0, 0) > max(likeness(*step) for step in ((1, 0), (-1, 0), (0, 1), (0, -1)))
    assert likeness(0, 0) > 0.98


def patch_score(images: np.ndarray) -> np.ndarray:
    """A score that is the visible share of the white square in the middle."""
    return np.clip((images[:, 24:32, 24:32, 0].mean(axis=(1, 2)) - 0.5) / 0.5, 0, 1)


def test_the_curves_distinguish_a_map_of_what_decides_from_one_of_the_rest():
    images = np.full((1, 64, 64, 1), 0.01, np.float32)
    images[:, 24:32, 24:32] = 1
    right, wrong = images[..., 0].copy(), 1 - images[..., 0]
    areas = {
        name: deletion.perturb([patch_score], images, heat).areas.iloc[0]
        for name, heat in (("right", right), ("wrong", wrong))
    }
    assert areas["right"]["deletion"] < 0.1 < 0.9 < areas["right"]["insertion"]
    assert areas["wrong"]["insertion"] < 0.1 < 0.9 < areas["wrong"]["deletion"]
    for found in areas.values():
        assert 0.15 < found["random_deletion"] < 0.85


def test_the_curves_begin_and_end_with_the_image_and_the_blurred_image():
    images = np.full((2, 48, 64, 1), 0.2, np.float32)  # patches do not divide it
    images[:, 24:32, 24:32] = 1
    images[1] *= 0.9
    found = deletion.perturb([patch_score] * 2, images, images[..., 0])
    assert found.deletion.shape == found.insertion.shape == (2, deletion.STEPS + 1)
    for name in ("deletion", "insertion"):
        ends = (0, -1) if name == "deletion" else (-1, 0)
        for values in (getattr(found, name), getattr(found, f"random_{name}")):
            np.testing.assert_allclose(values[:, ends[0]], patch_score(images))
            assert (values[:, ends[1]] < 0.3).all()


def targets_of(boxes: list[list[list[float]]]) -> pd.DataFrame:
    """One target for each woman."""
    ids = [str(number) for number in range(len(boxes))]
    found = pd.Series([np.array(one, float) for one in boxes], dtype=object)
    return pd.DataFrame({"patient_id": ids, "image_id": ids, "cancer": 1, "boxes": found})


def test_the_game_counts_maxima_in_boxes_and_the_share_of_the_breast_that_they_cover():
    images = np.zeros((1, 20, 20, 1), np.float32)
    images[0, :, :10] = 0.5  # the breast: 200 pixels
    images[0, 15, 5] = 1
    heats = np.zeros((1, 20, 20), np.float32)
    heats[0, 4, 4] = 1
    targets = targets_of([[[2, 2, 6, 6], [5, 5, 14, 9]]])  # 16 and 5 x 4 pixels of the breast, 1 in both
    found = pointing.count_hits(targets, images, heats).iloc[0]
    assert found[["map", "brightest"]].tolist() == [1, 0]
    assert found["random"] == pytest.approx((16 + 20 - 1) / 200)
    heats[0, 4, 4], heats[0, 0, 0] = 0, 1
    assert pointing.count_hits(targets, images, heats)["map"][0] == 0
    assert pointing.count_hits(targets, images, heats, tolerance=2.2)["map"][0] == 1
    assert pointing.count_hits(targets, images, 0 * heats)["map"][0] == 0


def test_a_hit_rate_of_1_or_0_has_the_exact_interval():
    table = pd.DataFrame({"patient_id": np.arange(20), "cancer": 1, "map": 1.0, "random": 0.1, "brightest": 0.0})
    found = pointing.hit_rates(pd.concat([table, table]), n=50)
    assert str(found["map"]) == "1.000 (0.832 to 1.000)"
    assert str(found["brightest"]) == "0.000 (0.000 to 0.168)"


def test_the_intervals_are_paired_and_over_women():
    rng = np.random.default_rng(0)
    chance = rng.uniform(0.05, 0.2, 60)
    hits = (rng.random(60) < 0.7).astype(float)
    table = pd.DataFrame({"patient_id": np.arange(60), "cancer": 1, "map": hits, "random": chance, "brightest": hits})
    found = pointing.hit_rates(table, n=500)
    assert found["map"].estimate == pytest.approx(hits.mean())
    assert found["map - random"].low > 0
    assert found["map - brightest"].estimate == 0
    assert np.isnan(found["map - brightest"].low)  # no draw differs
    several = pd.concat([table, table, table, table])
    same = pointing.hit_rates(several, n=500)["map - random"]
    assert same.high - same.low == pytest.approx(found["map - random"].high - found["map - random"].low, rel=1e-6)


def test_draws_with_a_hit_rate_of_1_do_not_widen_the_interval():
    women = np.arange(93) // 3
    hits = (women > 1).astype(float)  # two of 31 women are missed, so some draws contain neither
    table = pd.DataFrame({"patient_id": women, "cancer": 1, "map": hits, "random": 0.1, "brightest": 0.5 * hits})
    found = pointing.hit_rates(table)["map"]
    assert found.draws.max() == 1
    assert 0.65 < found.low < found.estimate < found.high < 0.995


def test_geometry_is_the_same_from_a_reading_and_from_its_ledger_row(file_with_spot):
    reading = dicom.read(file_with_spot[0], 64)
    words = " ".join(map(str, reading.crop))
    record = replace(Record("1", "1"), level=reading.level, rows=reading.rows, columns=reading.columns, crop=words)
    assert Geometry.of(record, (64, 64)) == Geometry.of(reading, (64, 64))
