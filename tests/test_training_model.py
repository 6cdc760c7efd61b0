import subprocess
import sys
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from keras import layers
from keras.callbacks import LambdaCallback

from rsna_nb import metrics
from rsna_nb.config import ConfigError, RunConfig
from rsna_nb.model import POLICIES, body_of, build_model, dtype_policy, head_of, open_backbone
from rsna_nb.training.callbacks import SwapAverages, Validate
from rsna_nb.training.checkpoints import BestCheckpoint
from rsna_nb.training.distribution import Devices
from rsna_nb.training.inputs import Pictures
from rsna_nb.training.sampling import AUGMENTATION_PARAMETERS
from rsna_nb.training.training_model import ForwardPath, TrainingModel, compile_model, loss_of

SIDE, IMAGES = 32, 8
PICTURES = Pictures((SIDE, SIDE))
ALONE = Devices(("/device:CPU:0",))
COMPILING = Devices(("/device:GPU:0",))  # its name alone makes XLA compile, on the CPU
GREY = np.random.default_rng(0).integers(0, 256, (IMAGES, SIDE, SIDE, 1), np.uint8)
VARIANTS = np.arange(IMAGES) % 4
LABELS = np.array([0, 1, 1, 0, 0, 1, 0, 0], np.float32)[:, np.newaxis]
WEIGHTS = np.array([0.5, 2, 2, 0.5, 0.5, 1, 0.5, 1], np.float32)[:, np.newaxis]  # with mean 1
SCORES = np.array([0.001, 0.01, 0.2, 0.4, 0.5, 0.7, 0.95, 0.999], np.float32)[:, np.newaxis]


def batches(devices: int = 1) -> tf.data.Dataset:
    """The same images again and again, as batches for one of `devices` devices."""
    images = tf.data.Dataset.from_tensor_slices(((GREY, VARIANTS), LABELS, WEIGHTS))
    return images.batch(IMAGES // devices, drop_remainder=True).repeat()


def config_of(**settings: object) -> RunConfig:
    return RunConfig(img_size=SIDE, backbone="small", weights="none", freeze_backbone=False, **settings)


def tiny(precision: str = "float32", dropout: float = 0.0) -> keras.Model:
    """A network like those of `build_model`, with dropout in its backbone and scores on both sides of 0.5."""
    keras.utils.set_random_seed(0)
    with dtype_policy(POLICIES[precision]):
        grey = keras.Input((SIDE, SIDE, 1))
        x = layers.Conv2D(6, 5, 4, use_bias=False, name="convolution")(grey)
        x = layers.BatchNormalization(name="normalization")(x)
        x = layers.Dropout(0.5, name="inner_dropout")(layers.ReLU(name="relu")(x))
        x = layers.Conv2D(5, 3, name="second_convolution")(x)
        image = keras.Input((SIDE, SIDE, 1))
        pooled = layers.GlobalMaxPooling2D(name="pooled")(keras.Model(grey, x, name="backbone")(image))
        kept = layers.Dropout(dropout, seed=0, name="dropout")(pooled)
        model = keras.Model(image, layers.Dense(1, activation="sigmoid", dtype="float32", name="cancer")(kept))
    scores, last = model(as_seen()).numpy(), model.get_layer("cancer")
    logits = np.log(scores / (1 - scores))
    last.kernel.assign(last.kernel / logits.std())
    last.bias.assign([-np.median(logits) / logits.std()])
    return model


def as_seen() -> tf.Tensor:
    return PICTURES.to_network(tf.constant(GREY), tf.constant(VARIANTS))


def tuning(model: keras.Model, first: str = "", **options: float) -> TrainingModel:
    """A model for fine-tuning: the backbone trains from a layer on, its batch normalisation in inference mode."""
    open_backbone(model, first)
    return TrainingModel(ForwardPath(PICTURES, head_of(model), body_of(model)), **options)


def compiled(training_model: TrainingModel, devices: Devices = ALONE, **settings: object) -> TrainingModel:
    """Compile the model as a run does, with Adam."""
    compile_model(training_model, config_of(**settings), 1e-2, batches().element_spec, devices)
    return training_model


def fit(training_model: TrainingModel, steps: int = 1, *callbacks: keras.callbacks.Callback) -> dict[str, list[float]]:
    history = training_model.fit(batches(), steps_per_epoch=steps, callbacks=list(callbacks), shuffle=False, verbose=0)
    return history.history


def moved(
    training_model: TrainingModel, devices: Devices = ALONE, optimizer: keras.Optimizer | None = None
) -> np.ndarray:
    """How much a step lowers the trainable weights, as one vector: the gradient, for SGD with a rate of 1."""
    dataset = batches(devices.replicas)
    with devices.scope():
        training_model.compile(
            optimizer or keras.optimizers.SGD(1.0), loss_of(config_of()), jit_compile=devices.compiles
        )
        training_model.build_on(dataset.element_spec)
    before = flat(training_model.trainable_variables)
    training_model.fit(devices.distribute(dataset), steps_per_epoch=1, shuffle=False, verbose=0)
    return before - flat(training_model.trainable_variables)


def flat(arrays: list) -> np.ndarray:
    return np.concatenate([keras.ops.convert_to_numpy(array).ravel() for array in arrays])


def gradient_of(model: keras.Model, variables: list[keras.Variable]) -> np.ndarray:
    """The gradient of the weighted mean cross-entropy in inference mode, computed without TrainingModel."""
    with tf.GradientTape() as tape:
        scores = model(as_seen(), training=False)
        loss = tf.reduce_mean(keras.losses.binary_crossentropy(LABELS, scores) * WEIGHTS[:, 0])
    return flat(tape.gradient(loss, variables))


def assert_close(vector: np.ndarray, expected: np.ndarray) -> None:
    """Compare to the accuracy of float32, for sums of large terms and differences of weights up to 10."""
    np.testing.assert_allclose(vector, expected, atol=max(1e-5 * np.abs(expected).max(), 1e-6))


def values_of(training_model: TrainingModel) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(variable) for variable in training_model.state]


def assert_equal(arrays: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(arrays, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("microbatches", [1, 2, 3])
def test_a_step_in_microbatches_is_the_step_of_the_whole_batch(microbatches):
    """8 images in 3 microbatches are 3, 3 and 2."""
    model = tiny()
    training_model = tuning(model, microbatches=microbatches)
    expected = gradient_of(model, training_model.trainable_variables)
    assert_close(moved(training_model), expected)


@pytest.mark.slow
def test_microbatches_compiled_by_xla_have_the_loss_and_the_metrics_of_the_whole():
    """A run on one GPU is compiled by XLA."""
    whole = fit(compiled(tuning(tiny(), clip_norm=0.5)), 2)
    microbatches = fit(compiled(tuning(tiny(), microbatches=3, clip_norm=0.5), COMPILING), 2)
    assert microbatches.keys() == whole.keys()
    for name, values in whole.items():
        np.testing.assert_allclose(microbatches[name], values, rtol=1e-4, err_msg=name)


def test_with_a_frozen_body_only_the_head_trains():
    model = tiny()
    model.get_layer("backbone").trainable = False
    before = model.get_layer("backbone").get_weights()
    training_model = TrainingModel(ForwardPath(PICTURES, head_of(model), body_of(model)), microbatches=3)
    expected = gradient_of(model, model.get_layer("cancer").trainable_variables)
    assert_close(moved(training_model), expected)
    assert_equal(model.get_layer("backbone").get_weights(), before)


@pytest.mark.parametrize(("share", "microbatches"), [(0.01, 1), (0.5, 3), (2.0, 1)])
@pytest.mark.slow
def test_a_gradient_is_clipped_to_clip_norm_and_keeps_its_direction(share, microbatches):
    """`share` is clip_norm divided by the norm of the gradient."""
    model = tiny()
    gradient = gradient_of(model, tuning(model).trainable_variables)
    clip_norm = share * float(np.linalg.norm(gradient))
    applied = moved(tuning(model, microbatches=microbatches, clip_norm=clip_norm))
    assert_close(applied, gradient * min(1, share))
    assert np.linalg.norm(applied) <= clip_norm * (1 + 1e-5)


def test_clip_norm_applies_to_the_unscaled_gradient_in_float16():
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0), initial_scale=64.0)
    applied = moved(TrainingModel(ForwardPath(PICTURES, tiny("float16")), clip_norm=0.01), optimizer=scaled)
    assert np.linalg.norm(applied) == pytest.approx(0.01, rel=1e-3)


def network(model: keras.Model) -> TrainingModel:
    return TrainingModel(ForwardPath(PICTURES, model))


@pytest.mark.parametrize("model_of", [network, tuning])
def test_the_loss_is_scaled_if_the_network_computes_in_float16(model_of):
    """Small gradients would become 0 in float16."""
    for precision in ("float32", "float16"):
        training_model = compiled(model_of(tiny(precision)))
        assert isinstance(training_model.optimizer, keras.optimizers.LossScaleOptimizer) == (precision == "float16")


STEPS = [{}, {"clip_norm": 0.01, "microbatches": 3}]


def steps_on(devices: Devices, weights: str) -> list[np.ndarray]:
    """How each of `STEPS` changes the network whose weights are in a file."""
    steps = []
    for options in STEPS:
        with devices.scope():
            model = tiny()
            model.load_weights(weights)
            training_model = tuning(model, **options)
        steps.append(moved(training_model, devices))
    return steps


ON_TWO = """
import sys
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from rsna_nb.training.distribution import find_devices
from tests.test_training_model import steps_on

devices = find_devices()
assert devices.replicas == 2
np.savez(sys.argv[2], *steps_on(devices, sys.argv[1]))
"""


@pytest.mark.slow
def test_two_devices_make_the_step_of_one_and_clip_the_sum_of_their_gradients(tmp_path):
    weights, result = str(tmp_path / "all.weights.h5"), tmp_path / "steps.npz"
    tiny().save_weights(weights)
    command, folder = [sys.executable, "-c", ON_TWO, weights, str(result)], Path(__file__).parents[1]
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-2000:]
    expected = steps_on(ALONE, weights)
    with np.load(result) as steps:
        for theirs, ours in zip(steps.values(), expected, strict=True):
            assert_close(theirs, ours)
    whole, cut = map(np.linalg.norm, expected)
    assert whole > 0.1
    assert cut == pytest.approx(0.01, rel=1e-4)


LOSSES = {
    "cross-entropy": {},
    "soft positives": {"positive_label": 0.9},
    "focal": {"imbalance": "focal"},
    "focal with soft positives": {"imbalance": "focal", "positive_label": 0.9, "focal_gamma": 1.5},
}


def literal(config: RunConfig, label: float, score: float) -> float:
    """The loss by Lin et al. 2017, equations 1 and 4, for a target between 0 and 1."""
    target = config.positive_label if label else 0.0
    entropy = -target * np.log(score) - (1 - target) * np.log(1 - score)
    right = target * score + (1 - target) * (1 - score)
    return entropy * (1 - right) ** (config.focal_gamma if config.imbalance == "focal" else 0)


@pytest.mark.parametrize("settings", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("label", [0, 1])
def test_the_training_loss_follows_its_formula_and_is_that_of_validation(settings, label):
    config, labels = config_of(**settings), np.full_like(SCORES, label)
    losses = loss_of(config)(tf.constant(labels), tf.constant(SCORES)).numpy()
    assert losses.shape == (IMAGES,)
    np.testing.assert_allclose(losses, [literal(config, label, score) for score in SCORES[:, 0].astype(float)], 1e-4)
    assert losses.mean() == pytest.approx(validation_figures(config, labels, SCORES)["loss"], rel=1e-4)


def validation_figures(config: RunConfig, labels: np.ndarray, scores: np.ndarray, **options: object) -> dict:
    gamma = config.focal_gamma if config.imbalance == "focal" else 0.0
    options |= {"positive_label": config.positive_label, "focal_gamma": gamma}
    return metrics.by_image(labels[:, 0], scores[:, 0], **options)


@pytest.mark.parametrize("settings", [{}, {"imbalance": "focal", "positive_label": 0.9}])
def test_training_logs_the_weighted_loss_and_the_metrics_of_hard_labels(settings):
    """With the body in inference mode and no dropout, scores in training are those in evaluation."""
    training_model = compiled(tuning(tiny()), **settings)
    scores = training_model((tf.constant(GREY), tf.constant(VARIANTS)), training=False).numpy()
    logs = fit(training_model)
    expected = validation_figures(config_of(**settings), LABELS, scores, weights=WEIGHTS[:, 0])
    assert 0 < expected["recall"] < 1
    assert logs.keys() == expected.keys()
    for name, value in expected.items():
        assert logs[name][0] == pytest.approx(value, rel=1e-4), name


def test_the_body_stays_in_inference_mode_while_its_kernels_learn():
    model = tiny()
    training_model = compiled(tuning(model))
    backbone = model.get_layer("backbone")
    before = {weight.path: weight.numpy() for weight in backbone.weights}
    inputs = tf.constant(GREY), tf.constant(VARIANTS)
    fit(training_model, 3)
    for weight in backbone.weights:
        stays = "moving" in weight.path
        assert np.array_equal(weight.numpy(), before[weight.path]) == stays, weight.path
    np.testing.assert_array_equal(training_model(inputs, training=True), training_model(inputs, training=False))


def test_a_network_that_trains_as_a_whole_has_batch_statistics_and_dropout_in_training_mode():
    model = tiny()
    training_model = compiled(TrainingModel(ForwardPath(PICTURES, model)))
    before = model.get_layer("backbone").get_layer("normalization").get_weights()
    inputs = tf.constant(GREY), tf.constant(VARIANTS)
    fit(training_model)
    after = model.get_layer("backbone").get_layer("normalization").get_weights()
    assert not any(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    assert not np.array_equal(training_model(inputs, training=True), training_model(inputs, training=True))
    np.testing.assert_array_equal(training_model(inputs, training=False), training_model(inputs, training=False))


def in_order(backbone: keras.Model) -> list[keras.layers.Layer]:
    """All layers in the order in which an image passes through them, those of nested networks included."""
    nested = [in_order(layer) if isinstance(layer, keras.Model) else [layer] for layer in backbone.layers]
    return [layer for group in nested for layer in group]


def opened(name: str, first: str) -> tuple[TrainingModel, list[keras.layers.Layer], int]:
    """A model for fine-tuning, its backbone's layers in order, and the position of the first that trains."""
    keras.utils.set_random_seed(0)
    model = build_model(RunConfig(img_size=SIDE, backbone=name, weights="none", freeze_backbone=False))
    model.get_layer("backbone").trainable = False
    backbone = in_order(model.get_layer("backbone"))
    return tuning(model, first), backbone, next(i for i, layer in enumerate(backbone) if first in layer.name)


@pytest.mark.parametrize(
    ("name", "first"),
    [("small", "stage_2"), ("small", "stage_3_same_bn"), ("mobilenet", "conv_dw_12"), ("mobilenet", "")],
)
def test_all_layers_from_fine_tune_from_on_train_and_none_before(name, first):
    """The networks of keras.applications are nested in the backbone."""
    training_model, backbone, start = opened(name, first)
    learn = {id(variable) for variable in training_model.trainable_variables}
    learning = [layer.name for layer in backbone if any(id(weight) in learn for weight in layer.weights)]
    assert learning == [layer.name for layer in backbone[start:] if layer.weights]
    assert {id(weight) for weight in training_model.head.weights} <= learn


def test_the_layers_before_fine_tune_from_stay_as_they_are_and_all_others_change():
    training_model, backbone, start = opened("small", "stage_2")
    before = [layer.get_weights() for layer in backbone]
    fit(compiled(training_model))
    changed = [
        layer.name
        for layer, weights in zip(backbone, before, strict=True)
        if any(not np.array_equal(one, other) for one, other in zip(layer.get_weights(), weights, strict=True))
    ]
    assert changed == [layer.name for layer in backbone[start:] if layer.weights]


@pytest.mark.parametrize(("name", "first", "count"), [("small", "stage_2", 14), ("mobilenet", "conv_pw_13_bn", 2)])
def test_open_backbone_returns_how_many_layers_train(name, first, count):
    model = build_model(RunConfig(img_size=SIDE, backbone=name, weights="none", freeze_backbone=False))
    assert open_backbone(model, first) == count


def test_an_unknown_layer_is_refused_and_the_known_ones_are_named():
    model = build_model(config_of())
    with pytest.raises(ConfigError, match="fine_tune_from conv5 is in no layer's name; the layers are") as caught:
        open_backbone(model, "conv5")
    for name in ("stage_0_conv", "stage_2_same_bn", "stage_3_down_conv"):
        assert name in str(caught.value)
    assert "relu" not in str(caught.value)  # it has no weights


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_body_and_head_together_are_the_model(precision):
    model = tiny(precision)
    head, body = head_of(model), body_of(model)
    assert body.output_shape == (None, 5)
    features = tf.cast(body(as_seen()), tf.float32)  # as a bank keeps them
    np.testing.assert_allclose(head(features), model(as_seen()), atol=1e-6)
    before = model(as_seen()).numpy()
    head.weights[0].assign(2 * head.weights[0])
    np.testing.assert_allclose(head(features), model(as_seen()), atol=1e-6)
    assert not np.allclose(model(as_seen()), before)


@pytest.fixture
def rows(tmp_path) -> pd.DataFrame:
    """Eight images in a store, each of another breast."""
    files = [str(tmp_path / f"{number}.png") for number in range(IMAGES)]
    for file, picture in zip(files, GREY, strict=True):
        cv2.imwrite(file, picture)
    women = [str(number) for number in range(IMAGES)]
    return pd.DataFrame({"patient_id": women, "laterality": "L", "cancer": LABELS[:, 0].astype(int), "file": files})


@pytest.mark.parametrize("batch", [3, 100])
def test_a_forward_path_scores_each_row_in_its_place_whatever_the_batch(rows, batch):
    model = tiny()
    expected = model.predict(GREY / np.float32(255), verbose=0)[:, 0]
    whole, split = ForwardPath(PICTURES, model), ForwardPath(PICTURES, head_of(model), body_of(model))
    for path, devices in ((whole, ALONE), (split, ALONE), (split, COMPILING)):
        scores = path.scorer(rows, batch, devices)()
        assert scores.dtype == np.float64
        np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_a_scorer_scores_by_the_network_as_it_is_at_the_time(rows):
    model = tiny()
    score = ForwardPath(PICTURES, model).scorer(rows, 4, ALONE)
    before = score()
    model.get_layer("cancer").bias.assign_add([1.0])
    assert (score() > before).all()


@pytest.mark.parametrize(("model_of", "precision"), [(network, "float16"), (tuning, "float32")])
def test_a_step_from_the_same_state_is_the_same_to_the_bit(model_of, precision):
    """The state includes the optimizer's moments, averaged weights, the loss scale and the random state of dropout."""
    training_model = compiled(model_of(tiny(precision, dropout=0.5)), ema=0.5)
    state: list[list[np.ndarray]] = []
    record = LambdaCallback(on_train_batch_end=lambda batch, logs: state.append(values_of(training_model)))
    fit(training_model, 3, record)
    for variable, value in zip(training_model.state, state[0], strict=True):
        variable.assign(value)
    fit(training_model, 2, record)
    assert_equal(state[3], state[1])
    assert_equal(state[4], state[2])
    assert any(not np.array_equal(one, other) for one, other in zip(state[1], state[2], strict=True))


def test_averages_are_the_weights_while_every_step_overflows():
    """From zeros, the averages would stay zeros, and so would the network that is evaluated, saved and fine-tuned."""
    training_model = compiled(network(tiny("float16")), ema=0.9)
    training_model.optimizer.dynamic_scale.assign(np.inf)  # no gradient is finite
    before = [variable.numpy() for variable in training_model.trainable_variables]
    fit(training_model, 2)  # Keras puts the averages in place of the weights at its end
    assert_equal([variable.numpy() for variable in training_model.trainable_variables], before)


@pytest.mark.parametrize(("unit", "precision"), [("image", "float16"), ("woman", "bfloat16")])
def test_strong_augmentation_trains_in_half_precision(unit, precision):
    """Keras would cast the random numbers of augmentation to the precision of the network."""
    config = config_of(unit=unit, augmentation="strong")
    model, places = build_model(config, precision), () if unit == "image" else (4,)
    shapes = {"uint8": (*places, SIDE, SIDE, 1), "int64": places, "float32": (*places, AUGMENTATION_PARAMETERS)}
    inputs = [tf.zeros((2, *shape), dtype) for dtype, shape in shapes.items()]
    views = [tf.ones((2, *places), tf.int32)] if places else []
    data = (*views, *inputs), tf.ones((2, 1)), tf.ones((2, 1))
    training_model = TrainingModel(ForwardPath(PICTURES, model, by_breast=bool(places)))
    compile_model(training_model, config, 1e-3, tf.nest.map_structure(tf.TensorSpec.from_tensor, data), ALONE)
    assert np.isfinite(training_model(data[0], training=True)).all()


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.slow
def test_weights_and_averages_swapped_twice_are_as_they_were_to_the_bit(precision):
    training_model = compiled(network(tiny(precision)), ema=0.9)
    if precision == "float16":
        training_model.optimizer.dynamic_scale.assign(1.0)  # else every step overflows, and nothing moves
    states: list[list[np.ndarray]] = []

    class Twice(SwapAverages):
        def on_epoch_end(self, epoch: int, logs: dict) -> None:
            for _ in range(2):
                states.append(values_of(training_model))
                super().on_epoch_end(epoch, logs)
            states.append(values_of(training_model))

    fit(training_model, 3, Twice())
    assert_equal(states[2], states[0])
    assert not all(np.array_equal(one, other) for one, other in zip(states[0], states[1], strict=True))


def averages(steps: list[np.ndarray], momentum: float) -> np.ndarray:
    """The moving average of the weights after each step."""
    average = steps[0].astype(float)
    for weights in steps[1:]:
        average = momentum * average + (1 - momentum) * weights
    return average


def frozen(model: keras.Model) -> TrainingModel:
    model.get_layer("backbone").trainable = False
    return TrainingModel(ForwardPath(PICTURES, head_of(model), body_of(model)))


@pytest.mark.parametrize(("model_of", "head_alone"), [(network, False), (frozen, True)])
@pytest.mark.slow
def test_averaged_weights_are_evaluated_and_kept_while_training_goes_on_without_them(
    rows, tmp_path, model_of, head_alone
):
    model = tiny()
    training_model = compiled(model_of(model), ema=0.9)
    head = training_model.head if head_alone else None
    steps, after = [], []
    validate = Validate(training_model.forward_path.scorer(rows, 4, ALONE), rows)
    best = BestCheckpoint(tmp_path / "best.keras", "val_loss", model, True)
    best.watch(validate, head)
    fit(
        training_model,
        5,
        LambdaCallback(on_train_batch_end=lambda batch, logs: steps.append(flat(training_model.trainable_variables))),
        SwapAverages(),
        validate,
        best,
        SwapAverages(),
        LambdaCallback(on_epoch_end=lambda epoch, logs: after.append(flat(training_model.trainable_variables))),
    )
    if head_alone:
        best.write(head)
    best.settle()
    np.testing.assert_array_equal(after[0], steps[-1])
    model.load_weights(tmp_path / "best.keras")
    np.testing.assert_allclose(flat(training_model.trainable_variables), averages(steps, 0.9), atol=1e-6)
    assert not np.allclose(steps[-1], averages(steps, 0.9), atol=1e-3)
    kept = keras.models.load_model(tmp_path / "best.keras")
    np.testing.assert_allclose(kept.predict(GREY / np.float32(255), verbose=0)[:, 0], best.scores, atol=1e-6)
