import importlib
import socket

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import applications

from rsna_nb.backbones.registry import BACKBONES, FAMILIES, SCALINGS, WeightsError, build_backbone
from rsna_nb.config import RunConfig
from rsna_nb.model import build_model
from rsna_nb.training.callbacks import SwapAverages
from rsna_nb.training.distribution import Devices
from rsna_nb.training.inputs import Pictures
from rsna_nb.training.training_model import ForwardPath, TrainingModel, compile_model

MODULES = {"tf": "resnet_v2", "torch": "densenet", "caffe": "vgg16", "bytes": "efficientnet_v2"}
GREY = np.random.default_rng(0).random((2, 64, 64, 1), dtype=np.float32)


def test_every_network_of_keras_applications_is_registered():
    networks = {name.lower() for name in dir(applications) if name[0] != "_" and callable(getattr(applications, name))}
    assert networks == {name.lower() for names in FAMILIES.values() for name in names.split()}
    assert networks <= set(BACKBONES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_scaling_is_its_own_preprocessing(family):
    image = keras.Input((64, 64, 1))
    colour = keras.layers.Concatenate()([image, image, image])
    scaling = SCALINGS[family]
    scaled = keras.Model(image, keras.layers.Rescaling(scaling.scale, scaling.offset)(colour)).predict(GREY, verbose=0)
    preprocess = importlib.import_module(f"keras.applications.{MODULES[family]}").preprocess_input
    np.testing.assert_allclose(scaled, preprocess(255 * np.repeat(GREY, 3, axis=-1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "names"), FAMILIES.items())
def test_every_network_of_a_family_has_its_familys_preprocessing(family, names):
    grey = 255 * np.repeat(GREY[:1], 3, axis=-1)
    expected = importlib.import_module(f"keras.applications.{MODULES[family]}").preprocess_input(grey.copy())
    for name in names.split():
        module = importlib.import_module(f"keras.src.{getattr(applications, name).__module__.split('keras.src.')[1]}")
        np.testing.assert_allclose(module.preprocess_input(grey.copy()), expected, atol=1e-4, err_msg=name)


def test_resnet50v2_takes_a_grey_picture_and_gives_one_probability():
    model = build_model(RunConfig(img_size=64, weights="none", freeze_backbone=False))
    assert model.input_shape == (None, 64, 64, 1)
    assert model.count_params() == 23_564_800 + 2049  # Keras's own count without its top, and the head
    probability = model.predict(GREY, verbose=0)
    assert probability.shape == (2, 1)
    assert ((probability > 0) & (probability < 1)).all()


def test_the_same_network_as_keras_builds_is_inside():
    keras.utils.set_random_seed(0)
    backbone = build_backbone("resnet50v2", 64, "none")
    inner = backbone.layers[-1]
    expected = inner.predict(2 * np.repeat(GREY, 3, axis=-1) - 1, verbose=0)
    np.testing.assert_allclose(backbone.predict(GREY, verbose=0), expected, atol=1e-5)


@pytest.fixture
def weights_file(tmp_path) -> str:
    keras.utils.set_random_seed(7)
    network = applications.MobileNet(include_top=False, weights=None, input_shape=(64, 64, 3), alpha=1.0)
    path = str(tmp_path / "mobilenet_notop.weights.h5")
    network.save_weights(path)
    return path


def test_weights_come_from_a_file_at_any_size_and_freezing_keeps_them(weights_file):
    config = RunConfig(backbone="mobilenet", weights=weights_file, img_size=[96, 64], dropout=0.0)
    model = build_model(config)
    first = build_backbone("mobilenet", 64, weights_file).get_weights()
    for ours, theirs in zip(model.get_layer("backbone").get_weights(), first, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    model.compile("adam", "binary_crossentropy")
    images = np.random.default_rng(0).random((4, 96, 64, 1))
    model.fit(images, np.array([[0], [1], [0], [1]]), verbose=0)
    for ours, theirs in zip(model.get_layer("backbone").get_weights(), first, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(model.trainable_variables) == 2


def test_weights_that_do_not_fit_are_refused(weights_file):
    with pytest.raises(WeightsError, match="do not fit backbone resnet50v2"):
        build_backbone("resnet50v2", 64, weights_file)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("small", "imagenet", "backbone small has no ImageNet weights"),
        ("small", "nowhere.h5", r"nowhere\.h5: no such file"),
    ],
)
def test_weights_that_do_not_exist_are_refused(name, weights, message):
    with pytest.raises(WeightsError, match=message):
        build_backbone(name, 64, weights)


def test_without_a_network_the_error_names_the_file_the_cache_and_the_choices(tmp_path, monkeypatch):
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "create_connection", offline)
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        build_backbone("densenet121", 64, "imagenet")
    message = str(caught.value)
    assert "densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5" in message
    assert "models" in message
    assert message.endswith('or take a recipe that needs none: settings "notebooks/params/demo.json"')
    assert "weights file of your own" in message


def test_an_unknown_backbone_is_named_with_its_neighbours():
    with pytest.raises(ValueError, match="backbone resnet50v3 is not known; the nearest names are resnet50v2"):
        build_backbone("resnet50v3", 64)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_the_last_layer_is_float32_and_the_policy_is_put_back(precision):
    config = RunConfig(backbone="small", weights="none", freeze_backbone=False, img_size=64, pooling="max")
    model = build_model(config, precision)
    assert model.get_layer("cancer").compute_dtype == "float32"
    assert model.get_layer("pooled").compute_dtype == precision
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_step_in_every_precision_with_averages_and_clipping(precision):
    settings = {"backbone": "small", "weights": "none", "freeze_backbone": False, "img_size": 64}
    config = RunConfig(**settings, ema=0.5, clip_norm=1.0, learning_rate=1e-2)
    model = build_model(config, precision)
    learner = TrainingModel(ForwardPath(Pictures((64, 64)), model), microbatches=2, clip_norm=config.clip_norm)
    images = (255 * np.repeat(GREY, 4, axis=0)).astype(np.uint8)
    column = np.tile(np.float32([[0], [1]]), (4, 1))
    batches = tf.data.Dataset.from_tensors(((images, np.zeros(8, np.int64)), column, np.ones_like(column))).repeat()
    compile_model(learner, config, config.learning_rate, batches.element_spec, Devices(("CPU",)))
    assert isinstance(learner.optimizer, keras.optimizers.LossScaleOptimizer) == (precision == "float16")
    before = [variable.numpy() for variable in model.trainable_variables]
    loss = learner.fit(
        batches, epochs=6, steps_per_epoch=4, callbacks=[SwapAverages()], shuffle=False, verbose=0
    ).history["loss"]
    assert np.isfinite(loss).all()
    assert any((a != b.numpy()).any() for a, b in zip(before, model.trainable_variables, strict=True))


def test_ten_steps_on_the_small_network_lower_the_loss():
    keras.utils.set_random_seed(0)
    model = build_model(RunConfig(backbone="small", weights="none", freeze_backbone=False, img_size=64, dropout=0.0))
    model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
    images, labels = np.repeat(GREY, 4, axis=0), np.repeat([[0], [1]], 4, axis=0)
    losses = model.fit(images, labels, epochs=10, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
