"""ConvNeXt as published: the norm after the pooling, files with timm's names, and complete detectors from them."""

import json
import logging
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import applications, layers
from keras.src.applications import convnext as keras_convnext
from safetensors.numpy import save_file
from scipy.special import erf, expit

from rsna_nb import explain, inference
from rsna_nb.backbones import WeightsError, build_backbone, build_parts
from rsna_nb.backbones.convnext import timm_targets
from rsna_nb.config import RunConfig
from rsna_nb.model import body_of, build_model, head_of, norm_of, open_backbone, parts_of
from rsna_nb.runs import RunError, list_runs, new_run
from rsna_nb.training import TrainingError, checkpoints, features, train
from tests.notebooks import NOTEBOOKS
from tests.small import assert_equal, resumed, stop_at
from tests.test_checkpoint import Name, write_zip
from tests.test_model import legacy_file

DEEP, WIDE = (3, 3, 27, 3), (96, 192, 384, 768)
# size: blocks and channels of each stage, and timm's number of tensors and parameters with one class, from
# timm.create_model(f"convnext_{size}", pretrained=False, num_classes=1, global_pool="max").state_dict(), timm 1.0.31.
PUBLISHED = {
    "tiny": ((3, 3, 9, 3), WIDE, 182, 27_820_897),
    "small": (DEEP, WIDE, 344, 49_455_457),
    "base": (DEEP, (128, 256, 512, 1024), 344, 87_567_489),
    "large": (DEEP, (192, 384, 768, 1536), 344, 196_231_873),
    "xlarge": (DEEP, (256, 512, 1024, 2048), 344, 348_150_017),
}
LIGHT = (1, 1, 2, 1), (8, 16, 24, 32)  # a network that is quick to build and to train
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


class Reference:
    """The network in NumPy, with random tensors in PyTorch's order of axes under timm's names."""

    def __init__(self, depths: tuple[int, ...], widths: tuple[int, ...], seed: int = 1) -> None:
        self.depths, self.widths = depths, widths
        self.tensors: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(seed)

    def draw(self, name: str, shape: tuple[int, ...], reach: float, around: float = 0) -> np.ndarray:
        if name not in self.tensors:
            self.tensors[name] = (around + self.random.uniform(-reach, reach, shape)).astype(np.float32)
        return self.tensors[name].astype(np.float64)

    def linear(self, x: np.ndarray, name: str, filters: int, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """x (..., inputs) -> (..., filters); a convolution's `shape` has as many inputs."""
        inputs = x.shape[-1]
        kernel = self.draw(f"{name}.weight", shape or (filters, inputs), (3 / inputs) ** 0.5)
        return x @ kernel.reshape(filters, inputs).T + self.draw(f"{name}.bias", (filters,), 0.2)

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        scale, shift = self.draw(f"{name}.weight", x.shape[-1:], 0.3, 1), self.draw(f"{name}.bias", x.shape[-1:], 0.3)
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + shift

    def patches(self, x: np.ndarray, name: str, filters: int, size: int) -> np.ndarray:
        """A convolution of `size` with as large a stride, without padding: rows and columns that are left over go."""
        height, width, inputs = x.shape[0] // size, x.shape[1] // size, x.shape[2]
        x = x[: height * size, : width * size].reshape(height, size, width, size, inputs)
        x = x.transpose(0, 2, 4, 1, 3).reshape(height, width, -1)
        return self.linear(x, name, filters, (filters, inputs, size, size))

    def block(self, x: np.ndarray, name: str) -> np.ndarray:
        channels = x.shape[-1]
        gamma = self.draw(f"{name}.gamma", (channels,), 0.3)
        kernel = self.draw(f"{name}.conv_dw.weight", (channels, 1, 7, 7), (3 / 49) ** 0.5)
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, [(3, 3), (3, 3), (0, 0)]), (7, 7), (0, 1))
        y = np.einsum("hwcij,cij->hwc", windows, kernel[:, 0]) + self.draw(f"{name}.conv_dw.bias", (channels,), 0.2)
        y = self.linear(self.norm(y, f"{name}.norm"), f"{name}.mlp.fc1", 4 * channels)
        y = self.linear(y * (1 + erf(y / 2**0.5)) / 2, f"{name}.mlp.fc2", channels)
        return x + gamma * y

    def __call__(self, grey: np.ndarray) -> tuple[np.ndarray, float]:
        """An image (height, width, 1) in 0-1 -> the feature map (h, w, channels) and the logit with max pooling."""
        x = self.patches((np.repeat(grey, 3, axis=-1) - MEAN) / DEVIATION, "stem.0", self.widths[0], 4)
        x = self.norm(x, "stem.1")
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            if stage:
                x = self.norm(x, f"stages.{stage}.downsample.0")
                x = self.patches(x, f"stages.{stage}.downsample.1", width, 2)
            for number in range(depth):
                x = self.block(x, f"stages.{stage}.blocks.{number}")
        pooled = self.norm(x.max((0, 1)), "head.norm")
        return x, float(self.linear(pooled, "head.fc", 1)[0])


def timm_shapes(depths: tuple[int, ...], widths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The tensors of timm's network without the last linear layer."""
    shapes = {"stem.0.weight": (widths[0], 3, 4, 4)}
    vectors = {"stem.0.bias": widths[0], "head.norm.weight": widths[-1], "head.norm.bias": widths[-1]}
    vectors |= {f"stem.1.{part}": widths[0] for part in ("weight", "bias")}
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        if stage:
            before, downsample = widths[stage - 1], f"stages.{stage}.downsample"
            shapes[f"{downsample}.1.weight"] = (width, before, 2, 2)
            vectors |= {f"{downsample}.0.weight": before, f"{downsample}.0.bias": before, f"{downsample}.1.bias": width}
        for block in (f"stages.{stage}.blocks.{number}" for number in range(depth)):
            shapes[f"{block}.conv_dw.weight"] = (width, 1, 7, 7)
            shapes |= {f"{block}.mlp.fc1.weight": (4 * width, width), f"{block}.mlp.fc2.weight": (width, 4 * width)}
            names = ("gamma", "conv_dw.bias", "norm.weight", "norm.bias", "mlp.fc2.bias")
            vectors |= {f"{block}.{name}": width for name in names} | {f"{block}.mlp.fc1.bias": 4 * width}
    return shapes | {name: (length,) for name, length in vectors.items()}


def image(shape: tuple[int, int], number: int = 1) -> np.ndarray:
    return np.random.default_rng(0).random((number, *shape, 1), dtype=np.float32)


@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=[pytest.mark.slow] * (size in ("base", "large", "xlarge"))) for size in PUBLISHED]
)
def test_each_size_takes_timms_tensors(size):
    depths, widths, tensors, parameters = PUBLISHED[size]
    parts = build_parts(f"convnext{size}", 32, "none")
    targets = timm_targets(parts.backbone.layers[-1], parts.norm)
    shapes = {name: target.shape for name, target in targets.items()}
    assert shapes == timm_shapes(depths, widths)
    assert len(shapes) + 2 == tensors
    assert sum(map(np.prod, shapes.values())) + widths[-1] + 1 == parameters
    assert sum(np.prod(variable.shape) for variable in parts.weights) + widths[-1] + 1 == parameters


@pytest.fixture
def light(monkeypatch) -> Reference:
    """ConvNeXt-small with few blocks and channels, here and in Keras."""
    depths, widths = LIGHT
    settings = {"depths": list(depths), "projection_dims": list(widths), "default_size": 224}
    monkeypatch.setitem(keras_convnext.MODEL_CONFIGS, "small", settings)
    reference = Reference(depths, widths)
    reference(image((64, 64))[0])
    return reference


@pytest.fixture
def file(light, tmp_path) -> str:
    save_file(light.tensors, tmp_path / "light.safetensors")
    return str(tmp_path / "light.safetensors")


SHAPES = pytest.mark.parametrize("shape", [(64, 64), (70, 90)], ids=["64 x 64", "a size that no stride divides"])


def assert_equal_to(reference: Reference, shape: tuple[int, int], file: Path) -> None:
    """The backbone, the norm and the head of a file compute what the reference does."""
    expected, logit = reference(image(shape)[0])
    save_file(reference.tensors, file)
    parts = build_parts("convnextsmall", shape, str(file))
    found = parts.backbone(image(shape), training=False).numpy()
    np.testing.assert_allclose(found[0], expected, atol=1e-4)
    pooled = parts.norm(found.max((1, 2))).numpy()
    assert (pooled @ parts.head["kernel"] + parts.head["bias"])[0, 0] == pytest.approx(logit, abs=1e-4)


@pytest.mark.slow
@SHAPES
def test_the_whole_network_from_a_file_with_timms_names_equals_the_reference(shape, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert_equal_to(Reference(DEEP, WIDE), shape, tmp_path / "small.safetensors")
    assert "342 tensors loaded; not in the backbone: head.fc.bias (1,), head.fc.weight (1, 768)" in caplog.text


@SHAPES
def test_a_network_of_few_blocks_equals_the_reference(light, shape, tmp_path):
    assert_equal_to(light, shape, tmp_path / "light.safetensors")


def settings_of(weights: str, **others) -> dict:
    return {"backbone": "convnextsmall", "weights": weights, "img_size": 64, "pooling": "max"} | others


def test_a_file_with_one_output_is_a_complete_detector(light, file, caplog):
    with caplog.at_level(logging.INFO):
        model = build_model(RunConfig(**settings_of(file)))
    assert [layer.name for layer in model.layers] == ["mammogram", "backbone", "pooled", "norm", "dropout", "cancer"]
    _, logit = light(image((64, 64))[0])
    assert float(model(image((64, 64)))[0, 0]) == pytest.approx(expit(logit), abs=1e-5)
    assert "starts as a complete detector; this is valid only if it was trained with the pooling max" in caplog.text


def test_a_head_of_many_classes_is_named_and_not_used(light, tmp_path, caplog):
    classes = {"head.fc.weight": np.ones((1000, 32), np.float32), "head.fc.bias": np.ones(1000, np.float32)}
    save_file(light.tensors | classes, tmp_path / "classes.safetensors")
    with caplog.at_level(logging.INFO):
        parts = build_parts("convnextsmall", 64, str(tmp_path / "classes.safetensors"))
    assert not parts.head
    assert "not in the backbone: head.fc.bias (1000,), head.fc.weight (1000, 32)" in caplog.text


def test_a_bias_of_one_output_without_its_kernel_is_no_head(light, tmp_path):
    tensors = {name: each for name, each in light.tensors.items() if name != "head.fc.weight"}
    save_file(tensors, tmp_path / "bias.safetensors")
    assert not build_parts("convnextsmall", 64, str(tmp_path / "bias.safetensors")).head


def test_the_winners_checkpoint_gives_its_averaged_weights(light, tmp_path):
    trained = {f"module.{name}": np.zeros_like(tensor) for name, tensor in light.tensors.items()}
    averaged = {f"module.{name}": tensor for name, tensor in light.tensors.items()}
    # What timm's CheckpointSaver writes beside the weights.
    beside = {"epoch": 3, "arch": "convnext_small", "version": 2, "metric": np.float64(0.5)}
    beside |= {"args": Namespace(lr=1e-3, device=Name("torch", "device")), "optimizer": {"state": {0: {}}}}
    path = write_zip(
        tmp_path / "best_convnext_fold_0.pth.tar", beside | {"state_dict": trained, "state_dict_ema": averaged}
    )
    model = build_model(RunConfig(**settings_of(str(path))))
    assert float(model(image((64, 64)))[0, 0]) == pytest.approx(expit(light(image((64, 64))[0])[1]), abs=1e-5)


def test_a_prefix_of_the_names_is_removed_and_two_networks_are_refused(light, tmp_path, caplog):
    encoder = {f"image_encoder.{name}": tensor for name, tensor in light.tensors.items()}
    other = {"text_encoder.weight": np.ones(3, np.float32)}
    np.savez(tmp_path / "one.npz", **encoder, **other)
    with caplog.at_level(logging.INFO):
        parts = build_parts("convnextsmall", 64, str(tmp_path / "one.npz"))
    np.testing.assert_allclose(parts.backbone(image((64, 64)))[0], light(image((64, 64))[0])[0], atol=1e-4)
    assert "the names begin with image_encoder.; other tensors are not used: text_encoder.weight" in caplog.text
    np.savez(tmp_path / "two.npz", **encoder, **{f"ema.{name}": tensor for name, tensor in light.tensors.items()})
    with pytest.raises(WeightsError, match=r"it holds 2 networks, image_encoder\., ema\."):
        build_parts("convnextsmall", 64, str(tmp_path / "two.npz"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages.2.blocks.1.gamma": None}, r"missing: stages\.2\.blocks\.1\.gamma \(24,\)"),
        ({"head.norm.bias": None}, r"missing: head\.norm\.bias \(32,\)"),
        ({"stages.0.blocks.0.grn.bias": np.ones(32)}, r"not of this network: stages\.0\.blocks\.0\.grn\.bias \(32,\)"),
        (
            {"stem.0.bias": np.full(8, np.nan)},
            r"1 tensors have .* not a number, first stem\.0\.bias",
        ),
        ({"stem.0.bias": np.ones(9)}, r"of another shape: stem\.0\.bias is \(9,\), not \(8,\)"),
    ],
)
def test_tensors_that_are_missing_superfluous_or_of_another_shape_are_named(light, tmp_path, change, message):
    tensors = {name: each for name, each in (light.tensors | change).items() if each is not None}
    np.savez(tmp_path / "changed.npz", **tensors)
    with pytest.raises(WeightsError, match=message):
        build_parts("convnextsmall", 64, str(tmp_path / "changed.npz"))


def test_a_network_with_another_scaling_of_the_input_is_refused(file):
    config = {"architecture": "convnext_small", "pretrained_cfg": {"mean": MEAN.tolist(), "std": DEVIATION.tolist()}}
    Path(file).with_name("config.json").write_text(json.dumps(config))
    assert build_parts("convnextsmall", 64, file)
    config["pretrained_cfg"]["mean"] = [0.481, 0.458, 0.408]
    Path(file).with_name("config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"its input is scaled with mean \(0.481, 0.458, 0.408\)"):
        build_parts("convnextsmall", 64, file)
    Path(file).with_name("config.json").unlink()
    clip = Path(file).rename(Path(file).with_name("convnext_small.clip_laion2b.safetensors"))
    with pytest.raises(WeightsError, match=r"its input is scaled with mean \(0.48145466, "):
        build_parts("convnextsmall", 64, str(clip))


def test_a_file_whose_origin_is_not_known_is_taken_for_imagenets_with_a_warning(file, caplog):
    build_parts("convnextsmall", 64, file)
    assert caplog.records[0].levelname == "WARNING"
    assert "light.safetensors: read as convnext_small (an assumption), with mean (0.485," in caplog.text


@pytest.fixture
def of_keras(light) -> keras.Model:
    """Keras's network without its classifier, which ends with the norm, with random weights."""
    network = applications.ConvNeXtSmall(include_top=False, weights=None, pooling="max", input_shape=(64, 64, 3))
    random = np.random.default_rng(3)
    network.set_weights([random.normal(0.1, 0.3, array.shape) for array in network.get_weights()])
    return network


@pytest.mark.parametrize("written", ["x.weights.h5", "x.keras", "x.h5"])
def test_weights_of_keras_give_the_backbone_and_the_norm_of_its_pooled_features(of_keras, tmp_path, written):
    path = tmp_path / written
    if written == "x.h5":
        legacy_file(of_keras, path)
    else:
        (of_keras.save if written == "x.keras" else of_keras.save_weights)(path)
    body = body_of(build_model(RunConfig(**settings_of(str(path)))))
    expected = of_keras(255 * np.repeat(image((64, 64)), 3, axis=-1), training=False)
    np.testing.assert_allclose(body(image((64, 64)), training=False), expected, atol=1e-4)


def as_earlier(of_keras: keras.Model, pooling: str = "max") -> keras.Model:
    """A detector as earlier versions built it: the norm is at the end of the feature map."""
    network = applications.ConvNeXtSmall(include_top=False, weights=None, input_shape=(64, 64, 3))
    network.set_weights(of_keras.get_weights())
    grey = keras.Input((64, 64, 1))
    scaled = layers.Rescaling(255.0)(layers.Concatenate()([grey, grey, grey]))
    backbone, mammogram = keras.Model(grey, network(scaled), name="backbone"), keras.Input((64, 64, 1))
    pooled = layers.GlobalMaxPooling2D(name="pooled")(backbone(mammogram))
    kept = layers.Dropout(0.2, name="dropout")(pooled)
    return keras.Model(mammogram, layers.Dense(1, activation="sigmoid", name="cancer")(kept), name="detector")


def test_files_of_the_backbone_of_this_and_of_earlier_versions_are_loaded(of_keras, light, file, tmp_path, caplog):
    as_earlier(of_keras).get_layer("backbone").save_weights(tmp_path / "earlier.weights.h5")
    parts = build_parts("convnextsmall", 64, str(tmp_path / "earlier.weights.h5"))
    for ours, theirs in zip(parts.weights, of_keras.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert "holds no norm" not in caplog.text
    build_backbone("convnextsmall", 64, file).save_weights(tmp_path / "own.weights.h5")
    own = build_parts("convnextsmall", 64, str(tmp_path / "own.weights.h5"))
    np.testing.assert_allclose(own.backbone(image((64, 64)))[0], light(image((64, 64))[0])[0], atol=1e-4)
    assert "own.weights.h5 holds no norm of the pooled features" in caplog.text


def test_a_run_of_an_earlier_version_scores_is_explained_and_gives_its_weights(of_keras, tmp_path, caplog):
    config = RunConfig(**settings_of("none", freeze_backbone=False, runs_dir=str(tmp_path)))
    run, model = new_run(config), as_earlier(of_keras)
    model.save(run.path / "checkpoints" / "best.keras")
    loaded, pictures = inference.load_model(run), image((64, 64), 2)
    np.testing.assert_allclose(loaded(pictures), model(pictures), atol=1e-6)
    assert norm_of(loaded) is None
    assert explain.grad_cam(loaded, pictures).shape == (2, 64, 64)
    with caplog.at_level(logging.INFO):
        new = build_model(config.replace(weights=run.id))
    for ours, theirs in zip(parts_of(new).weights, parts_of(loaded).weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (new.get_layer("cancer").kernel != loaded.get_layer("cancer").kernel).numpy().any()
    assert "the head starts with random weights" in caplog.text


def test_a_run_that_an_earlier_version_began_is_not_resumed_with_another_network(tmp_path):
    run = new_run(RunConfig(runs_dir=str(tmp_path)))
    environment = {"table_fingerprint": "", "store_fingerprint": "", "packages": {}}
    run.write_json("config/environment.json", environment)
    names = ["mammogram", "backbone", "pooled", "dropout", "cancer"]
    checkpoints.check_data(run, environment | {"layers": names})
    names.insert(3, "norm")
    with pytest.raises(RunError, match=r"pooled -> dropout -> cancer, and .* pooled -> norm -> dropout"):
        checkpoints.check_data(run, environment | {"layers": names})


def test_a_run_whose_initial_weights_have_changed_is_not_resumed(tmp_path):
    run, names = new_run(RunConfig(runs_dir=str(tmp_path))), ("table", "store", "weights")
    environment = {f"{name}_fingerprint": "" for name in names} | {"packages": {}, "layers": []}
    run.write_json("config/environment.json", environment)
    checkpoints.check_data(run, environment)
    with pytest.raises(RunError, match="cannot be resumed: the file or run that weights names has changed since"):
        checkpoints.check_data(run, environment | {"weights_fingerprint": "changed"})


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.slow
def test_the_norm_is_float32_and_belongs_to_the_backbone(file, precision):
    model = build_model(RunConfig(**settings_of(file, dropout=0.0)), precision)
    norm, pictures = norm_of(model), image((64, 64), 2)
    assert norm.compute_dtype == "float32"
    assert [variable.path for variable in model.trainable_variables] == ["cancer/kernel", "cancer/bias"]
    np.testing.assert_allclose(head_of(model)(body_of(model)(pictures)), model(pictures), atol=1e-6)
    opened = open_backbone(model, "stage_3_block_0_pointwise_conv_2")
    assert opened == 4  # the convolution, its factor, the sum and the norm
    assert norm.trainable
    assert len(model.trainable_variables) == 2 + 1 + 2 + 2
    open_backbone(model)
    assert len(model.trainable_variables) == len(timm_shapes(*LIGHT)) + 2


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_the_positions_of_a_map_and_a_constant_sum_to_the_logit(light, file, pooling):
    model, pictures = build_model(RunConfig(**settings_of(file, pooling=pooling))), image((64, 96), 2)[:, :, :64]
    values = explain.maps._class_activation(model, pictures, np.full((len(pictures), 1), 3))
    kernel, bias = model.get_layer("cancer").get_weights()
    constant = norm_of(model).beta.numpy() @ kernel[:, 0] + bias[0]
    scores = model(pictures, training=False).numpy()[:, 0]
    np.testing.assert_allclose(values.sum((1, 2)) + constant, np.log(scores / (1 - scores)), atol=1e-4)


def test_grad_cam_goes_through_the_norm(file):
    model, pictures = build_model(RunConfig(**settings_of(file, pooling="avg"))), image((64, 64))
    features = model.get_layer("backbone")(pictures).numpy()
    kernel, norm, step = model.get_layer("cancer").get_weights()[0], norm_of(model), 1e-2

    def logit(pooled: np.ndarray) -> float:
        return float((norm(pooled[np.newaxis]).numpy() @ kernel)[0, 0])

    pooled = features.mean((1, 2))[0].astype(np.float64)
    steps = step * np.eye(len(pooled))
    slopes = np.array([logit(pooled + each) - logit(pooled - each) for each in steps]) / (2 * step) / 4  # 4 positions
    expected = np.maximum((features[0] * slopes).sum(-1), 0)
    np.testing.assert_allclose(
        explain.maps._grad_cam(model, pictures, np.full((len(pictures), 1), 3))[0], expected, rtol=1e-2, atol=1e-3
    )


def test_a_bank_made_before_the_norm_moved_is_not_used(of_keras, tmp_path):
    of_keras.save_weights(tmp_path / "x.weights.h5")
    config, data = RunConfig(**settings_of(str(tmp_path / "x.weights.h5"))), SimpleNamespace(store=tmp_path / "store")
    bodies = body_of(as_earlier(of_keras)), body_of(build_model(config))
    for one, other in zip(*(body.get_weights() for body in bodies), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len({features.bank_folder(config, data, body) for body in bodies}) == 2


@pytest.fixture
def training(file, training_folders, tmp_path) -> dict:
    """Settings of a training of head and backbone."""
    # The head's learning rate is coarse, so that fine-tuning has something to gain.
    epochs = {"epochs": 1, "learning_rate": 1.0, "fine_tune_epochs": 2, "fine_tune_learning_rate": 1e-2}
    data = {"limit_patients": 14, "val_fraction": 0.3, "test_fraction": 0.2, "fine_tune_from": "stage_3"}
    return training_folders | data | epochs | settings_of(file, batch_size_per_gpu=4, runs_dir=str(tmp_path))


@pytest.mark.slow
def test_fine_tuning_trains_the_norm_and_a_stopped_run_resumes_exactly(training, light, monkeypatch):
    whole = train(RunConfig(**training))
    assert whole.history["phase"].tolist() == ["head", "fine_tuning", "fine_tuning"]
    assert "the head trains on the feature bank" in whole.file("logs/train.log").read_text()
    norm = norm_of(inference.load_model(whole))
    assert whole.metrics["best_epoch"] > 1
    assert (norm.gamma.numpy() != light.tensors["head.norm.weight"]).any()
    stop_at(17, monkeypatch)  # of 7 steps an epoch
    with pytest.raises(TrainingError, match="stopped for the test"):
        train(RunConfig(**training, run_name="stopped"))
    stopped = list_runs(training["runs_dir"])[-1]
    assert len(stopped.history) == 2
    assert_equal(resumed(stopped), whole)


def test_the_strong_recipe_is_the_winners_network(light, file):
    recipe = RunConfig.from_json(NOTEBOOKS / "params" / "strong.json")
    model = build_model(recipe.replace(weights=file, img_size=[64, 32]))
    assert [layer.name for layer in model.layers[2:]] == ["pooled", "norm", "dropout", "cancer"]
    assert isinstance(model.get_layer("pooled"), layers.GlobalMaxPooling2D)
    picture = image((64, 32))
    assert float(model(picture)[0, 0]) == pytest.approx(expit(light(picture[0])[1]), abs=1e-5)
