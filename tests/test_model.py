import importlib
import logging
import socket
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import applications

from rsna_nb.backbones import BACKBONES, Backbone, WeightsError, build_backbone, vit
from rsna_nb.backbones.registry import FAMILIES
from rsna_nb.backbones.scaling import SCALINGS
from rsna_nb.backbones.weights import load_weights
from rsna_nb.config import RunConfig
from rsna_nb.explain import grad_cam
from rsna_nb.model import build_model, open_backbone
from rsna_nb.runs import Run, list_runs, new_run
from rsna_nb.training import TrainingError, train
from rsna_nb.training.callbacks import SwapAverages
from rsna_nb.training.distribution import Devices
from rsna_nb.training.inputs import Pictures
from rsna_nb.training.training_model import ForwardPath, TrainingModel, compile_model
from tests.small import assert_equal, changed_layers, resumed, stop_at

MODULES = {"tf": "resnet_v2", "torch": "densenet", "caffe": "vgg16", "bytes": "efficientnet_v2"}
GREY = np.random.default_rng(0).random((2, 64, 64, 1), dtype=np.float32)


def test_every_network_of_keras_applications_is_registered():
    networks = {name.lower() for name in dir(applications) if name[0] != "_" and callable(getattr(applications, name))}
    assert networks == {name.lower() for names in FAMILIES.values() for name in names.split()}
    assert networks <= set(BACKBONES)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_scaling_of_a_family_equals_its_preprocessing(family):
    image = keras.Input((64, 64, 1))
    colour = keras.layers.Concatenate()([image, image, image])
    scaled = keras.Model(image, keras.layers.Rescaling(*SCALINGS[family])(colour)).predict(GREY, verbose=0)
    preprocess = importlib.import_module(f"keras.applications.{MODULES[family]}").preprocess_input
    np.testing.assert_allclose(scaled, preprocess(255 * np.repeat(GREY, 3, axis=-1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "names"), FAMILIES.items())
def test_every_network_of_a_family_has_the_same_preprocessing(family, names):
    grey = 255 * np.repeat(GREY[:1], 3, axis=-1)
    expected = importlib.import_module(f"keras.applications.{MODULES[family]}").preprocess_input(grey.copy())
    for name in names.split():
        module = importlib.import_module(f"keras.src.{getattr(applications, name).__module__.split('keras.src.')[1]}")
        np.testing.assert_allclose(module.preprocess_input(grey.copy()), expected, atol=1e-4, err_msg=name)


def test_resnet50v2_takes_a_grey_image_and_gives_one_probability():
    model = build_model(RunConfig(img_size=64, weights="none", freeze_backbone=False))
    assert model.input_shape == (None, 64, 64, 1)
    assert model.count_params() == 23_564_800 + 2049  # Keras's count without its classifier, plus our head
    probability = model(GREY, training=False).numpy()
    assert probability.shape == (2, 1)
    assert ((probability > 0) & (probability < 1)).all()


def test_the_backbone_contains_the_network_that_keras_builds():
    keras.utils.set_random_seed(0)
    backbone = build_backbone("resnet50v2", 64, "none")
    expected = backbone.layers[-1](2 * np.repeat(GREY, 3, axis=-1) - 1, training=False)
    np.testing.assert_allclose(backbone(GREY, training=False), expected, atol=1e-5)


@pytest.fixture(scope="module")
def mobilenet() -> keras.Model:
    """The network of keras.applications without its classifier, with random weights."""
    keras.utils.set_random_seed(7)
    return applications.MobileNet(include_top=False, weights=None, input_shape=(64, 64, 3), alpha=1.0)


@pytest.fixture(scope="module")
def weights_file(mobilenet, tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("weights") / "mobilenet_notop.weights.h5")
    mobilenet.save_weights(path)
    return path


def legacy_file(network: keras.Model, path: Path) -> None:
    """Write the weights as earlier versions of Keras did and as keras.applications publishes them."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in network.layers]
        for layer in network.layers:
            group = file.create_group(layer.name)
            group.attrs["weight_names"] = [f"{layer.name}/{weight.name}:0".encode() for weight in layer.weights]
            for weight in layer.weights:
                group[f"{layer.name}/{weight.name}:0"] = weight.numpy()


def assert_same_weights(network: keras.Model, other: keras.Model) -> None:
    for ours, theirs in zip(network.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_weights_come_from_a_file_at_any_size_and_freezing_keeps_them(mobilenet, weights_file):
    config = RunConfig(backbone="mobilenet", weights=weights_file, img_size=[96, 64], dropout=0.0)
    model = build_model(config)
    assert_same_weights(model.get_layer("backbone"), mobilenet)
    model.compile("adam", "binary_crossentropy")
    images = np.random.default_rng(0).random((4, 96, 64, 1))
    model.fit(images, np.array([[0], [1], [0], [1]]), verbose=0)
    assert_same_weights(model.get_layer("backbone"), mobilenet)
    assert len(model.trainable_variables) == 2


@pytest.mark.parametrize(
    ("written", "called"),
    [
        ("x.weights.h5", "x.h5"),
        ("x.weights.h5", "weights_from_a_colleague"),
        ("x.keras", "x.keras"),
        ("x.keras", "x.weights.h5"),
        ("legacy", "mobilenet_notop.h5"),
        ("legacy", "mobilenet_notop.weights.h5"),
    ],
)
@pytest.mark.slow
def test_a_right_weights_file_is_loaded_whatever_its_name(mobilenet, tmp_path, written, called):
    if written == "legacy":
        legacy_file(mobilenet, tmp_path / called)
    else:
        (mobilenet.save if written == "x.keras" else mobilenet.save_weights)(tmp_path / written)
        (tmp_path / written).rename(tmp_path / called)
    assert_same_weights(build_backbone("mobilenet", 64, str(tmp_path / called)), mobilenet)


def test_a_weights_file_of_the_backbone_itself_is_loaded(tmp_path):
    saved = build_backbone("mobilenet", 64, "none")
    saved.save_weights(tmp_path / "own.weights.h5")
    assert_same_weights(build_backbone("mobilenet", 64, str(tmp_path / "own.weights.h5")), saved)


def test_a_file_of_another_network_is_refused_with_the_arrays_that_differ(mobilenet, weights_file, tmp_path):
    with pytest.raises(
        WeightsError,
        match=r"v2: missing: .* and \d+ more; of another shape: .*/0 is \(32,\), not \(64,\).*; not of this",
    ):
        build_backbone("resnet50v2", 64, weights_file)
    legacy_file(mobilenet, tmp_path / "notop.h5")
    with pytest.raises(WeightsError, match=r"small: missing: stage_0_conv/.*; not of this network: conv1/conv1/kernel"):
        build_backbone("small", 64, str(tmp_path / "notop.h5"))


def test_a_file_with_an_array_of_another_shape_is_refused_with_both_shapes(tmp_path):
    image = keras.Input((64, 64, 1))
    for filters in (4, 5):
        network = keras.Model(image, keras.layers.Conv2D(filters, 3, name="only")(image))
        network.save_weights(tmp_path / f"{filters}.weights.h5")
    with pytest.raises(WeightsError, match=r"of another shape: layers/conv2d/vars/0 is \(3, 3, 1, 4\), not .*5\)"):
        load_weights(network, tmp_path / "4.weights.h5")


def test_a_file_with_more_than_the_network_has_is_refused(tmp_path):
    """Keras itself loads it and ignores the rest without a word."""
    small = build_backbone("small", 64, "none")
    larger = keras.Model(small.input, keras.layers.Conv2DTranspose(2, 3)(small.output))
    larger.save_weights(tmp_path / "larger.weights.h5")
    with pytest.raises(WeightsError, match=r"small: not of this network: layers/conv2d_transpose/vars/0 \("):
        build_backbone("small", 64, str(tmp_path / "larger.weights.h5"))


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_no_weights_file_is_refused_with_the_formats_that_are(tmp_path, content):
    (tmp_path / "x.weights.h5").write_bytes(content)
    with pytest.raises(
        WeightsError, match=r"x\.weights\.h5 .*backbone small: it .*give a \.weights\.h5 or \.keras file"
    ):
        build_backbone("small", 64, str(tmp_path / "x.weights.h5"))


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


def two_layers(height: int, width: int) -> keras.Model:
    """A backbone that a user wrote."""
    image = keras.Input((height, width, 1))
    return keras.Model(image, keras.layers.Conv2D(6, 3, 4, name="last")(keras.layers.Conv2D(4, 3, 2)(image)))


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """A backbone that a user wrote as a subclass, which has no graph of layers."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.first = keras.layers.Conv2D(4, 3, 2, activation="relu")
        self.last = keras.layers.Conv2D(6, 3, 2)

    def call(self, image):
        return self.last(self.first(image))


@pytest.fixture
def register(monkeypatch):
    return lambda entry: monkeypatch.setitem(BACKBONES, "own", entry)


OWN = {
    "a function": two_layers,
    "a subclassed model": lambda height, width: Subclassed(name="backbone"),
    "an entry": Backbone(build=two_layers),
    "a function that takes synchronized": lambda height, width, synchronized: two_layers(height, width),
}


@pytest.mark.parametrize("entry", OWN)
@pytest.mark.slow
def test_a_users_backbone_trains_saves_loads_and_predicts(register, tmp_path, entry):
    register(OWN[entry])
    config = RunConfig(backbone="own", weights="none", freeze_backbone=False, img_size=64)
    model = build_model(config)
    before = model.get_layer("backbone").get_weights()
    model.compile(keras.optimizers.Adam(0.1), "binary_crossentropy")
    model.fit(GREY, np.array([[0], [1]]), verbose=0)
    assert any((a != b).any() for a, b in zip(before, model.get_layer("backbone").get_weights(), strict=True))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_allclose(loaded(GREY), model(GREY), atol=1e-6)
    assert grad_cam(loaded, GREY).shape == (2, 64, 64)
    layers_opened = open_backbone(loaded, "last" if entry != "a subclassed model" else "")
    assert layers_opened == (1 if entry != "a subclassed model" else 3)


@pytest.mark.parametrize("entry", ["a function", "a subclassed model"])
def test_the_registry_loads_the_weights_file_of_a_users_backbone(register, tmp_path, entry):
    register(OWN[entry])
    network = OWN[entry](64, 64)
    network(GREY)
    network.save_weights(tmp_path / "own.weights.h5")
    (tmp_path / "own.weights.h5").rename(tmp_path / "own.h5")
    assert_same_weights(build_backbone("own", 64, str(tmp_path / "own.h5")), network)
    with pytest.raises(WeightsError, match="backbone own has no ImageNet weights"):
        build_backbone("own", 64, "imagenet")


def test_a_builder_that_takes_weights_gets_them(register):
    taken = []
    register(Backbone(lambda height, width, weights: taken.append(weights) or two_layers(height, width), imagenet=True))
    for weights in ("none", "imagenet", __file__):
        build_backbone("own", 64, weights)
    assert taken == [None, "imagenet", __file__]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (lambda height, width: None, "must be built by a function that returns a keras.Model, not None"),
        (
            lambda height, width: keras.Sequential([keras.Input((height, width, 1)), keras.layers.Flatten()]),
            "feature map",
        ),
        (
            lambda height, width: applications.MobileNet(
                input_shape=(height, width, 3), include_top=False, weights=None, name="backbone"
            ),
            r"must take grey images .*64, 64, 1\).*64, 3\).*Concatenate",
        ),
    ],
)
def test_a_network_that_is_no_backbone_is_refused(register, entry, message):
    register(entry)
    with pytest.raises(ValueError, match=f"backbone own.*{message}"):
        build_backbone("own", 64, "none")


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
    assert "weights file of your own" in message
    assert "notebooks/params/demo.json" in message


def test_an_unknown_backbone_is_named_with_its_neighbours():
    with pytest.raises(ValueError, match="backbone resnet50v3 is not known; the nearest names are resnet50v2"):
        build_backbone("resnet50v3", 64)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_the_last_layer_is_float32_and_the_global_policy_is_restored(precision):
    config = RunConfig(backbone="small", weights="none", freeze_backbone=False, img_size=64, pooling="max")
    model = build_model(config, precision)
    assert model.get_layer("cancer").compute_dtype == "float32"
    assert model.get_layer("pooled").compute_dtype == precision
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize(
    "precision", ["float32", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bfloat16", "float16"))]
)
def test_training_works_in_every_precision_with_averages_and_clipping(precision):
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


@pytest.mark.slow
def test_ten_steps_on_the_small_network_lower_the_loss():
    keras.utils.set_random_seed(0)
    model = build_model(RunConfig(backbone="small", weights="none", freeze_backbone=False, img_size=64, dropout=0.0))
    model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
    images, labels = np.repeat(GREY, 4, axis=0), np.repeat([[0], [1]], 4, axis=0)
    losses = model.fit(images, labels, epochs=10, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


PLAIN = {"backbone": "small", "img_size": 64, "pooling": "max", "freeze_backbone": False}


def run_of(folder: Path, **settings) -> tuple[Run, keras.Model]:
    """A run of a network with random weights, and the network."""
    config = RunConfig(**PLAIN | {"weights": "none"} | settings, runs_dir=str(folder))
    run, model = new_run(config), build_model(config)
    random = np.random.default_rng(1)
    model.set_weights([random.uniform(0.1, 0.3, array.shape) for array in model.get_weights()])
    model.save(run.path / "checkpoints" / "best.keras")
    return run, model


@pytest.mark.parametrize("frozen", [True, False])
def test_weights_may_be_a_run_by_its_id_or_its_folder(tmp_path, frozen, caplog):
    run, model = run_of(tmp_path)
    for weights in (run.id, str(run.path)):
        with caplog.at_level(logging.INFO):
            runs_dir = str(tmp_path) if weights == run.id else "runs"
            config = RunConfig(**PLAIN | {"freeze_backbone": frozen}, weights=weights, runs_dir=runs_dir)
            new = build_model(config.replace(img_size=64, seed=7))
        np.testing.assert_allclose(new(GREY), model(GREY), atol=1e-6)
        assert len(new.trainable_variables) == (2 if frozen else len(model.trainable_variables))
        assert new.get_layer("dropout").seed_generator.state.numpy().tolist() == [7, 0]
    assert f"starts from the best network of the run {run.path}" in caplog.text
    assert "the head starts from that run too" in caplog.text
    assert "another split" not in caplog.text


def test_a_run_gives_its_convolutions_to_images_of_another_size(tmp_path):
    run, model = run_of(tmp_path)
    new = build_model(RunConfig(**PLAIN | {"img_size": [96, 64]}, weights=str(run.path)))
    assert new.input_shape == (None, 96, 64, 1)
    assert_same_weights(new, model)


def test_a_run_of_a_transformer_gives_its_positions_interpolated(tmp_path, monkeypatch):
    monkeypatch.setattr(vit, "DEPTH", 1)
    run, model = run_of(tmp_path, backbone="vit_tiny")
    (tokens,) = (layer for layer in model.get_layer("backbone").layers if layer.name == "tokens")
    grid = np.arange(16, dtype=np.float32).reshape(1, 16, 1)  # grows by 1 to the right and by 4 downwards
    tokens.positions.assign(np.concatenate([np.full((1, 1, 192), 5), np.tile(grid, (1, 1, 192))], axis=1))
    model.save(run.checkpoint)
    new = build_model(RunConfig(**PLAIN | {"backbone": "vit_tiny", "img_size": [128, 64]}, weights=str(run.path)))
    positions = new.get_layer("backbone").get_layer("tokens").positions.numpy()[0, :, 0]
    assert positions[0] == 5
    rows = positions[1:].reshape(8, 4)
    np.testing.assert_allclose(np.diff(rows, axis=1), 1, atol=1e-4)
    np.testing.assert_allclose(np.diff(rows[2:-2], axis=0), 2, atol=0.2)
    for ours, theirs in zip(new.weights, model.weights, strict=True):
        assert ours.name == "positions" or (ours.numpy() == theirs.numpy()).all()


def flattened(height: int, width: int) -> keras.Model:
    """A backbone whose weights depend on the size of the image."""
    image = keras.Input((height, width, 1))
    features = keras.layers.Dense(4)(keras.layers.Flatten()(image))
    return keras.Model(image, keras.layers.Reshape((1, 1, 4))(features))


def test_a_run_that_does_not_fit_is_refused_with_both_networks(register, tmp_path):
    register(flattened)
    run, _ = run_of(tmp_path, backbone="own")
    with pytest.raises(
        WeightsError, match=r"backbone own: .* kernel is \(4096, 4\), not \(6144, 4\)\).* \(64, 64\) .*96"
    ):
        build_model(RunConfig(**PLAIN | {"backbone": "own", "img_size": [64, 96]}, weights=str(run.path)))
    with pytest.raises(WeightsError, match="cannot be loaded into backbone small: the run's backbone is own"):
        build_model(RunConfig(**PLAIN, weights=str(run.path)))
    run.checkpoint.unlink()
    with pytest.raises(WeightsError, match=rf"backbone own: run {run.id} has no checkpoints/best\.keras"):
        build_model(RunConfig(**PLAIN | {"backbone": "own"}, weights=run.id, runs_dir=str(tmp_path)))


def test_a_run_with_another_pooling_gives_no_head_and_another_split_is_a_warning(tmp_path, caplog):
    run, model = run_of(tmp_path)
    with caplog.at_level(logging.INFO):
        config = RunConfig(**PLAIN | {"pooling": "avg"}, weights=str(run.path), fold=2)
        new = build_model(config)
    assert_same_weights(new.get_layer("backbone"), model.get_layer("backbone"))
    assert (new.get_layer("cancer").kernel != model.get_layer("cancer").kernel).numpy().any()
    assert "the head starts with random weights" in caplog.text
    assert f"{run.id} had other data or another split (fold -1 and now 2)" in caplog.text


def test_the_split_of_every_run_before_is_compared(tmp_path, caplog):
    first, _ = run_of(tmp_path, fold=1)
    second, _ = run_of(tmp_path, fold=2, weights=first.id)
    build_model(RunConfig(**PLAIN, weights=second.id, fold=2, runs_dir=str(tmp_path)))
    assert f"{first.id} had other data or another split (fold 1 and now 2)" in caplog.text
    assert f"{second.id} is not finished: its best network may still change" in caplog.text


def test_a_file_of_weights_wins_over_a_run_of_that_name(tmp_path, monkeypatch, small_weights):
    run, _ = run_of(tmp_path / "runs")
    (tmp_path / run.id).write_bytes(Path(small_weights).read_bytes())
    monkeypatch.chdir(tmp_path)
    new = build_model(RunConfig(**PLAIN, weights=run.id, runs_dir=str(tmp_path / "runs")))
    assert_same_weights(new.get_layer("backbone"), build_backbone("small", 64, small_weights))


@pytest.mark.slow
def test_training_from_a_run_is_fine_tuned_resumed_and_repeated(small_run, small_settings, monkeypatch):
    """Its head and the backbone's last stage are trained further; the other stages stay those of the run."""
    changes = {"freeze_backbone": True, "epochs": 1, "fine_tune_epochs": 1, "fine_tune_from": "stage_3"}
    changes |= {"seed": 3, "test_fraction": 0.2}
    run = train(RunConfig(**small_settings | changes | {"weights": small_run.id}))
    assert run.history["phase"].tolist() == ["head", "fine_tuning"]
    trained, before = (keras.models.load_model(one.checkpoint, compile=False) for one in (run, small_run))
    changed = changed_layers(trained.get_layer("backbone"), before.get_layer("backbone"))
    assert all("stage_3" in name for name in changed)
    stop_at(len(run.history) + 4, monkeypatch)
    with pytest.raises(TrainingError, match="stopped for the test"):
        train(RunConfig.from_json(run.file("config/config.json")))
    stopped = list_runs(run.path.parent)[-1]
    assert stopped.id != run.id
    assert_equal(resumed(stopped), run)
