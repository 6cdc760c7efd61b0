import json
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file
from scipy.special import expit, softmax

from rsna_nb.backbones import WeightsError, build_backbone
from rsna_nb.config import RunConfig
from rsna_nb.model import build_model, open_backbone

PUBLISHED = {"n": 1_633_584, "s": 5_545_488, "m": 10_455_696, "l": 12_937_104, "x": 28_458_544}  # with 80 classes
SHAPE = (64, 96)
GREY = np.random.default_rng(0).random((1, *SHAPE, 1), dtype=np.float32)


class Reference:
    """The network in NumPy, with PyTorch's order of axes and random tensors under the reference's names.

    A tensor is generated where it is first used, so `tensors` holds exactly those that the computation needs.
    """

    def __init__(self, widths: tuple[int, ...], repeats: int, nested: tuple[bool, ...]) -> None:
        self.widths, self.repeats, self.nested = widths, repeats, nested
        self.tensors: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(1)

    def draw(self, name: str, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
        assert name not in self.tensors
        self.tensors[name] = self.random.uniform(low, high, shape).astype(np.float32)
        return self.tensors[name]

    def conv(self, x, name, filters, size=1, stride=1, active=True, depthwise=False):
        inputs = 1 if depthwise else len(x)
        reach = (3 / (inputs * size**2)) ** 0.5  # keeps the variance of the signal
        kernel = self.draw(f"{name}.conv.weight", (filters, inputs, size, size), -reach, reach)
        padded = np.pad(x, [(0, 0), (size // 2, size // 2), (size // 2, size // 2)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))[:, ::stride, ::stride]
        if depthwise:
            y = np.einsum("chwij,cij->chw", windows, kernel[:, 0])
        else:
            y = np.tensordot(kernel, windows, ([1, 2, 3], [0, 3, 4]))
        scale, shift, mean, variance = (
            self.draw(f"{name}.bn.{part}", (filters,), *limits)[:, None, None]
            for part, limits in {
                "weight": (0.8, 1.5),
                "bias": (-0.3, 0.3),
                "running_mean": (-0.3, 0.3),
                "running_var": (0.4, 1.0),
            }.items()
        )
        y = (y - mean) / np.sqrt(variance + 1e-3) * scale + shift
        return y * expit(y) if active else y

    def bottleneck(self, x, name, within):
        return x + self.conv(self.conv(x, f"{name}.cv1", within, 3), f"{name}.cv2", len(x), 3)

    def c3k(self, x, name):
        half = len(x) // 2
        y = self.conv(x, f"{name}.cv1", half)
        y = self.bottleneck(self.bottleneck(y, f"{name}.m.0", half), f"{name}.m.1", half)
        return self.conv(np.concatenate([y, self.conv(x, f"{name}.cv2", half)]), f"{name}.cv3", len(x))

    def c3k2(self, x, name, filters, within, nested):
        x = self.conv(x, f"{name}.cv1", 2 * within)
        parts = [x[:within], x[within:]]
        for number in range(self.repeats):
            block = f"{name}.m.{number}"
            last = parts[-1]
            parts.append(self.c3k(last, block) if nested else self.bottleneck(last, block, within // 2))
        return self.conv(np.concatenate(parts), f"{name}.cv2", filters)

    def attention(self, x, name):
        heads = len(x) // 64
        mixed = self.conv(x, f"{name}.qkv", 2 * len(x), active=False).reshape(heads, 128, -1)
        seen, values = np.empty_like(x).reshape(heads, 64, -1), mixed[:, 64:]
        for head, (queries, keys) in enumerate(zip(mixed[:, :32], mixed[:, 32:64], strict=True)):
            for place, query in enumerate(queries.T):
                seen[head, :, place] = values[head] @ softmax(query @ keys / np.sqrt(32))
        places = self.conv(values.reshape(x.shape), f"{name}.pe", len(x), 3, active=False, depthwise=True)
        return self.conv(seen.reshape(x.shape) + places, f"{name}.proj", len(x), active=False)

    def c2psa(self, x, name):
        half = len(x) // 2
        y = self.conv(x, f"{name}.cv1", len(x))
        bypass, y = y[:half], y[half:]
        for number in range(self.repeats):
            block = f"{name}.m.{number}"
            y = y + self.attention(y, f"{block}.attn")
            y = y + self.conv(self.conv(y, f"{block}.ffn.0", 2 * half), f"{block}.ffn.1", half, active=False)
        return self.conv(np.concatenate([bypass, y]), f"{name}.cv2", len(x))

    def __call__(self, grey: np.ndarray) -> np.ndarray:
        """An image (height, width, 1) -> the feature map (h, w, 1280)."""
        first, second, third, fourth, fifth = self.widths
        x = self.conv(np.repeat(grey.transpose(2, 0, 1), 3, axis=0), "model.0", first, 3, 2)
        x = self.conv(x, "model.1", second, 3, 2)
        x = self.c3k2(x, "model.2", third, third // 4, self.nested[0])
        x = self.conv(x, "model.3", third, 3, 2)
        x = self.c3k2(x, "model.4", fourth, fourth // 4, self.nested[1])
        x = self.conv(x, "model.5", fourth, 3, 2)
        x = self.c3k2(x, "model.6", fourth, fourth // 2, self.nested[2])
        x = self.conv(x, "model.7", fifth, 3, 2)
        x = self.c3k2(x, "model.8", fifth, fifth // 2, self.nested[3])
        return self.conv(self.c2psa(x, "model.9"), "model.10.conv", 1280).transpose(1, 2, 0)


REFERENCES: dict[str, Callable[[], Reference]] = {
    "yolo11n": lambda: Reference((16, 32, 64, 128, 256), 1, (False, False, True, True)),
    "yolo11l": lambda: Reference((64, 128, 256, 512, 512), 2, (True, True, True, True)),
}


@pytest.fixture(scope="module", params=REFERENCES)
def computed(request) -> tuple[str, dict[str, np.ndarray], np.ndarray]:
    """A size, its tensors, and the feature map that they compute from the image."""
    reference = REFERENCES[request.param]()
    features = reference(GREY[0])
    return request.param, reference.tensors, features


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    """The tensors of size n."""
    reference = REFERENCES["yolo11n"]()
    reference(GREY[0, :32, :32])
    return reference.tensors


@pytest.mark.parametrize("size", ["n", "s", *(pytest.param(size, marks=pytest.mark.slow) for size in "mlx")])
def test_the_number_of_parameters_is_the_published_one(size):
    backbone = build_backbone(f"yolo11{size}", 64, "none")
    of_classes = 1280 * 80 + 80
    assert sum(np.prod(weight.shape) for weight in backbone.trainable_weights) + of_classes == PUBLISHED[size]
    assert backbone.output_shape == (None, 2, 2, 1280)


def test_a_file_with_the_references_names_gives_the_references_features(computed, tmp_path, caplog):
    name, tensors, expected = computed
    assert expected.std() > 0.1
    unused = {"model.10.linear.weight": np.ones((80, 1280)), "model.10.linear.bias": np.ones(80)}
    unused["model.0.bn.num_batches_tracked"] = np.array(7)
    save_file(tensors | unused, tmp_path / "weights.safetensors")
    with caplog.at_level("INFO"):
        backbone = build_backbone(name, SHAPE, str(tmp_path / "weights.safetensors"))
    assert sum(tensor.size for tensor in tensors.values()) == backbone.count_params()
    assert f"{len(tensors)} tensors loaded; not in the backbone: " in caplog.text
    assert {each: each in caplog.text for each in unused} == dict.fromkeys(unused, True) | {
        "model.0.bn.num_batches_tracked": False  # a counter, which no network uses
    }
    np.testing.assert_allclose(backbone(GREY, training=False)[0], expected, rtol=1e-3, atol=1e-3)


def test_files_of_numpy_of_half_precision_and_of_keras_give_the_same(tensors, tmp_path):
    halved = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    np.savez(tmp_path / "weights.npz", **halved)
    backbone = build_backbone("yolo11n", 64, str(tmp_path / "weights.npz"))
    kernel = backbone.get_layer("model.3.conv").kernel.numpy()
    np.testing.assert_array_equal(kernel, halved["model.3.conv.weight"].transpose(2, 3, 1, 0))
    backbone.save_weights(tmp_path / "keras.weights.h5")
    again = build_backbone("yolo11n", SHAPE, str(tmp_path / "keras.weights.h5"))
    for first, second in zip(backbone.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


def without(tensors: dict, name: str) -> dict:
    return {each: tensor for each, tensor in tensors.items() if each != name}


PE = "model.9.m.0.attn.pe.conv.weight"
DAMAGES: dict[str, tuple[Callable[[dict], dict], list[str]]] = {
    "missing": (lambda file: without(file, PE), [f": missing: {PE} (128, 1, 3, 3); expected", "of yolo11n"]),
    "surplus": (
        lambda file: file | {"model.9.m.1.x": np.ones(2)},
        [": not of this network: model.9.m.1.x (2,); expected"],
    ),
    "not of PyTorch's order": (
        lambda file: file | {"model.3.conv.weight": file["model.3.conv.weight"].transpose(2, 3, 1, 0)},
        [": of another shape: model.3.conv.weight is (3, 3, 64, 64), not (64, 64, 3, 3); expected"],
    ),
    "another network's": (
        lambda file: {"conv1": np.ones(2)},
        ["more; not of this network: conv1 (2,); expected", "another network"],
    ),
    "a scalar": (
        lambda file: file | {"model.0.conv.weight": np.float32(1)},
        ["model.0.conv.weight is (), not (16, 3, 3, 3)"],
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_tensor_that_does_not_fit_is_named(tensors, tmp_path, damage):
    change, messages = DAMAGES[damage]
    path = str(tmp_path / "weights.npz")
    np.savez(path, **change(tensors))
    with pytest.raises(WeightsError) as caught:
        build_backbone("yolo11n", 64, path)
    for message in [path, "cannot be loaded into backbone yolo11n", "tensors of yolo11n-cls.pt", *messages]:
        assert message in str(caught.value)


def test_a_file_of_another_size_is_recognised(tensors, tmp_path):
    save_file(tensors, tmp_path / "n.safetensors")
    with pytest.raises(WeightsError, match=r"model\.0\.conv\.weight is \(16, 3, 3, 3\), not \(64.* are of yolo11n"):
        build_backbone("yolo11m", 64, str(tmp_path / "n.safetensors"))


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.npz", "weights.h5"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not to its end"])
def test_a_damaged_file_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f"{name} cannot be loaded into backbone yolo11n"):
        build_backbone("yolo11n", 64, str(tmp_path / name))


def test_without_imagenet_weights_the_error_says_how_to_export_them():
    with pytest.raises(WeightsError, match=r"yolo11s has no ImageNet weights: .*export.*backbones/yolo11\.py"):
        build_backbone("yolo11s", 64, "imagenet")


@pytest.mark.slow
def test_a_saved_bfloat16_detector_scores_the_same_and_contains_only_keras_layers(tmp_path):
    config = RunConfig(backbone="yolo11n", weights="none", freeze_backbone=False, img_size=list(SHAPE))
    model = build_model(config, "bfloat16")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model(GREY, training=False), loaded(GREY, training=False))
    classes: list[dict] = []
    json.loads(model.to_json(), object_hook=lambda item: classes.append(item) or item)
    assert {item["module"].split(".")[0] for item in classes if item.get("module")} == {"keras"}


def test_fine_tuning_starts_at_a_stage_by_its_number_in_the_reference():
    model = build_model(RunConfig(backbone="yolo11n", weights="none", freeze_backbone=False, img_size=64))
    open_backbone(model, "model.9")
    learning = {layer.name for layer in model.get_layer("backbone").layers if layer.trainable and layer.weights}
    assert {name.split(".")[1] for name in learning} == {"9", "10"}
    assert "model.9.m.0.attn.qkv.conv" in learning


@pytest.mark.parametrize("synchronized", [True, False])
def test_batch_normalisation_is_synchronised_where_that_is_asked_for(synchronized):
    """Training on two devices is tried by tests/bench/bench_backbones.py."""
    network = build_backbone("yolo11n", 64, "none", synchronized)
    found = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    convolutions = keras.layers.Conv2D, keras.layers.DepthwiseConv2D  # each is followed by one
    assert len(found) == sum(isinstance(layer, convolutions) for layer in network.layers) == 39
    assert {layer.synchronized for layer in found} == {synchronized}


def test_every_trainable_weight_has_a_gradient():
    keras.utils.set_random_seed(0)
    model = build_model(RunConfig(backbone="yolo11n", weights="none", freeze_backbone=False, img_size=64))
    assert model.count_params() == 1_542_545
    assert len(model.trainable_weights) == 119
    pictures = np.random.default_rng(0).random((4, 64, 64, 1), dtype=np.float32)
    with tf.GradientTape() as tape:
        loss = keras.losses.binary_crossentropy([[0.0], [1.0]] * 2, model(pictures, training=True))
    for weight, gradient in zip(model.trainable_weights, tape.gradient(loss, model.trainable_weights), strict=True):
        assert gradient is not None, weight.path
        assert np.any(gradient), weight.path
