"""PyTorch weights: EfficientNet and ResNet give the features of a separate computation in NumPy.

tests/bench/compare_timm.py compares the whole networks with those of timm.
"""

import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from rsna_nb.backbones import WeightsError, build_backbone, build_parts, copy_weights, efficientnet, resnet, vit
from rsna_nb.backbones.parts import Parts
from rsna_nb.backbones.published import Origin, origin_of
from rsna_nb.backbones.tensors import Target, assign_tensors, read, reference_targets
from rsna_nb.backbones.vit_tensors import _targets
from rsna_nb.config import RunConfig
from rsna_nb.model import body_of, build_model
from rsna_nb.training.features import bank_folder

# timm's networks without their classifiers, positions and counters: tensors, values, and the CRC-32 of the sorted lines
# "name shape". Taken once from timm 1.0.31.
PUBLISHED = {
    "efficientnetb0": (309, 4_049_564, 4201510632),
    "efficientnetb1": (437, 6_575_232, 1355324270),
    "efficientnetb2": (437, 7_768_562, 483262016),
    "efficientnetb3": (494, 10_783_528, 1902118120),
    "efficientnetb4": (608, 17_673_816, 4131696628),
    "efficientnetb5": (736, 28_513_520, 711527991),
    "efficientnetb6": (850, 40_960_136, 676975664),
    "efficientnetb7": (1035, 64_097_680, 657342570),
    "efficientnetv2b0": (359, 5_919_312, 379355497),
    "efficientnetv2b1": (441, 6_931_124, 2506382358),
    "efficientnetv2b2": (460, 8_769_374, 1908436558),
    "efficientnetv2b3": (536, 12_930_622, 4067083619),
    "efficientnetv2s": (670, 20_331_360, 1277700387),
    "efficientnetv2m": (961, 53_150_388, 2118951049),
    "efficientnetv2l": (1329, 117_746_848, 45320265),
    "efficientnet_lite0": (245, 3_413_024, 818488623),
    "efficientnet_lite1": (320, 4_189_344, 1913167445),
    "efficientnet_lite2": (320, 4_869_168, 604634979),
    "resnet18": (100, 11_186_112, 447993758),
    "resnet34": (180, 21_301_696, 1405866876),
    "resnet50": (265, 23_561_152, 2921312807),
    "resnet101": (520, 42_605_504, 1168933525),
    "resnet152": (775, 58_295_232, 3029306898),
    "vit_tiny": (149, 5_486_592, 2530767801),
    "vit_small": (149, 21_590_016, 343506295),
    "vit_base": (149, 85_647_360, 2052731948),
    "dinov2_small": (173, 21_530_112, 3295378320),
    "dinov2_base": (173, 85_527_552, 2871055216),
    "dinov2_with_registers_small": (174, 21_531_648, 633687891),
    "dinov2_with_registers_base": (174, 85_530_624, 2929773656),
}
QUICK = ("efficientnetb0", "efficientnetv2b0", "efficientnet_lite0", "resnet18", "resnet50", "vit_tiny", "dinov2_small")
SHAPE = (75, 54)  # halved: 75, 38, 19 and 54, 27, 14: odd and even sides at both strides
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY = np.random.default_rng(0).random((1, *SHAPE, 1), dtype=np.float32)
Tensors = dict[str, np.ndarray]


def of_torch(name: str) -> keras.Model:
    """The network that takes PyTorch weights, with random ones."""
    if name in vit.TRANSFORMERS:
        return vit.build(vit.TRANSFORMERS[name], (64, 64))
    family = efficientnet if name in efficientnet.SIZES else resnet
    return family.build(name, 64, 64, None).backbone


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PUBLISHED]
)
def test_a_network_has_the_tensors_of_timms(name):
    network = of_torch(name)
    if name in vit.TRANSFORMERS:
        targets = _targets(network, (1, 1), "reg_token" if vit.TRANSFORMERS[name].registers else "")
        del targets["pos_embed"]
    else:
        targets = reference_targets(network)
        assert sum(math.prod(target.shape) for target in targets.values()) == network.count_params()
    lines = "\n".join(sorted(f"{each} {target.shape}" for each, target in targets.items()))
    values = sum(math.prod(target.shape) for target in targets.values())
    assert (len(targets), values, zlib.crc32(lines.encode())) == PUBLISHED[name]


def random_tensors(network: keras.Model) -> Tensors:
    """Random values for every tensor, which keep the size of the signal about the same."""
    rng, tensors = np.random.default_rng(1), {}
    for name, target in reference_targets(network).items():
        values = rng.standard_normal(target.shape)
        if len(target.shape) > 1:
            values /= math.sqrt(math.prod(target.shape[1:]) / 2)
        elif name.endswith("running_var"):
            values = 0.3 + rng.random(target.shape)
        else:
            values = 0.3 * values + name.endswith("weight")
        tensors[name] = values.astype(np.float32)
    return tensors


@pytest.fixture(scope="module")
def tensors_of() -> Callable[[str], Tensors]:
    made: dict[str, Tensors] = {}

    def made_once(name: str) -> Tensors:
        if name not in made:
            made[name] = random_tensors(of_torch(name))
        return dict(made[name])

    return made_once


def write(folder: Path, tensors: Tensors, architecture: str = "", scale: tuple = IMAGENET, name: str = "model") -> str:
    """Write a file of tensors; with an architecture also config.json as timm publishes it."""
    save_file(tensors, folder / f"{name}.safetensors")
    if architecture:
        config = {"architecture": architecture, "pretrained_cfg": {"mean": scale[0], "std": scale[1]}}
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder / f"{name}.safetensors")


def part_of(network: keras.Model, layer: str) -> np.ndarray:
    return keras.Model(network.input, network.get_layer(layer).output)(GREY, training=False)[0].numpy()


class Reference:
    """The operations of PyTorch in NumPy, on (height, width, channels) of one image."""

    def __init__(self, tensors: Tensors, padding: str, epsilon: float) -> None:
        self.tensors, self.padding, self.epsilon = tensors, padding, epsilon

    def pads(self, side: int, kernel: int, stride: int) -> tuple[int, int]:
        if self.padding == "torch" or stride == 1:
            return kernel // 2, kernel // 2
        # TensorFlow's: as much as is needed for ceil(side / stride) values, the odd pixel at the far side.
        total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        if self.padding == "of an even size":
            total = kernel - 2
        return total // 2, total - total // 2

    def conv(self, x: np.ndarray, name: str, stride: int = 1) -> np.ndarray:
        kernel = self.tensors[f"{name}.weight"]
        size = kernel.shape[-1]
        padded = np.pad(x, [*(self.pads(side, size, stride) for side in x.shape[:2]), (0, 0)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (0, 1))[::stride, ::stride]
        if kernel.shape[1] == 1 < x.shape[2]:
            y = np.einsum("hwcij,cij->hwc", windows, kernel[:, 0])
        else:
            y = np.einsum("hwcij,ocij->hwo", windows, kernel)
        return y + self.tensors.get(f"{name}.bias", 0)

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        weight, bias, mean, var = (
            self.tensors[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(var + self.epsilon) * weight + bias

    def silu(self, x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-x))

    def weighted(self, x: np.ndarray, name: str) -> np.ndarray:
        within = self.silu(self.conv(x.mean((0, 1), keepdims=True), f"{name}.conv_reduce"))
        return x / (1 + np.exp(-self.conv(within, f"{name}.conv_expand")))


def colour(mean: tuple, deviation: tuple) -> np.ndarray:
    return (np.repeat(GREY[0].astype(np.float64), 3, axis=-1) - mean) / deviation


def first_blocks_of_b0(net: Reference, x: np.ndarray) -> np.ndarray:
    """The stem, the block that does not expand, and one that expands, with stride 2."""
    x = net.silu(net.norm(net.conv(x, "conv_stem", 2), "bn1"))
    x = net.silu(net.norm(net.conv(x, "blocks.0.0.conv_dw"), "blocks.0.0.bn1"))
    x = net.norm(net.conv(net.weighted(x, "blocks.0.0.se"), "blocks.0.0.conv_pw"), "blocks.0.0.bn2")
    x = net.silu(net.norm(net.conv(x, "blocks.1.0.conv_pw"), "blocks.1.0.bn1"))
    x = net.silu(net.norm(net.conv(x, "blocks.1.0.conv_dw", 2), "blocks.1.0.bn2"))
    return net.norm(net.conv(net.weighted(x, "blocks.1.0.se"), "blocks.1.0.conv_pwl"), "blocks.1.0.bn3")


@pytest.mark.parametrize(
    ("architecture", "padding", "epsilon"),
    [("tf_efficientnet_b0", "tensorflow", 1e-3), ("efficientnet_b0", "torch", 1e-5)],
)
@pytest.mark.slow
def test_blocks_of_efficientnet_have_the_padding_and_epsilon_of_their_network(
    tmp_path, tensors_of, architecture, padding, epsilon
):
    tensors, scale = tensors_of("efficientnetb0"), ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    backbone = build_backbone("efficientnetb0", SHAPE, write(tmp_path, tensors, architecture, scale))
    expected = first_blocks_of_b0(Reference(tensors, padding, epsilon), colour(*scale))
    found = part_of(backbone, "blocks.1.0.bn3")
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_fused_blocks_of_efficientnet_v2_equal_a_separate_computation(tmp_path, tensors_of):
    tensors = tensors_of("efficientnetv2b0")
    backbone = build_backbone("efficientnetv2b0", SHAPE, write(tmp_path, tensors, "tf_efficientnetv2_b0"))
    net = Reference(tensors, "tensorflow", 1e-3)
    x = net.silu(net.norm(net.conv(colour(*IMAGENET), "conv_stem", 2), "bn1"))
    x = net.silu(net.norm(net.conv(x, "blocks.0.0.conv"), "blocks.0.0.bn1"))
    for block, stride in (("blocks.1.0", 2), ("blocks.1.1", 1)):
        y = net.silu(net.norm(net.conv(x, f"{block}.conv_exp", stride), f"{block}.bn1"))
        y = net.norm(net.conv(y, f"{block}.conv_pwl"), f"{block}.bn2")
        x = y if stride == 2 else x + y
    np.testing.assert_allclose(part_of(backbone, "blocks.1.1.add"), x, rtol=1e-4, atol=1e-4)


def first_blocks_of_resnet(net: Reference, x: np.ndarray) -> np.ndarray:
    """The stem, the first block of the first stage, and that of the second, which halves the image."""
    x = np.maximum(net.norm(net.conv(x, "conv1", 2), "bn1"), 0)
    padded = np.pad(x, [(1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
    x = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1))[::2, ::2].max((-1, -2))
    for number in range(3 if "layer1.2.conv1.weight" in net.tensors else 2):
        x = resnet_block(net, x, f"layer1.{number}", 1)
    return resnet_block(net, x, "layer2.0", 2)


def resnet_block(net: Reference, x: np.ndarray, name: str, stride: int) -> np.ndarray:
    is_deep = f"{name}.conv3.weight" in net.tensors
    y = np.maximum(net.norm(net.conv(x, f"{name}.conv1", 1 if is_deep else stride), f"{name}.bn1"), 0)
    y = net.norm(net.conv(y, f"{name}.conv2", stride if is_deep else 1), f"{name}.bn2")
    if is_deep:
        y = net.norm(net.conv(np.maximum(y, 0), f"{name}.conv3"), f"{name}.bn3")
    if f"{name}.downsample.0.weight" in net.tensors:
        x = net.norm(net.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
    return np.maximum(x + y, 0)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.slow
def test_blocks_of_resnet_equal_a_separate_computation(tmp_path, tensors_of, name):
    tensors = tensors_of(name)
    backbone = build_backbone(name, SHAPE, write(tmp_path, tensors, name))
    expected = first_blocks_of_resnet(Reference(tensors, "torch", 1e-5), colour(*IMAGENET))
    np.testing.assert_allclose(part_of(backbone, "layer2.0.relu"), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_without_config_json_the_name_of_the_file_or_an_assumption_decides_and_is_logged(tmp_path, tensors_of, caplog):
    tensors = tensors_of("efficientnetb0")
    for name, architecture, source in (
        ("fold_0", "tf_efficientnet_b0", "an assumption"),
        ("efficientnet_b0_ra-3dd342df", "efficientnet_b0_ra", "as its name says"),
        ("tf_efficientnet_b0_ns-c0e6a31c", "tf_efficientnet_b0_ns", "as its name says"),
    ):
        caplog.clear()
        backbone = build_backbone("efficientnetb0", 64, write(tmp_path, tensors, name=name))
        assert f"{name}.safetensors: read as {architecture} ({source}), with mean (0.485," in caplog.text
        assert caplog.records[0].levelname == "WARNING"
        epsilon = 1e-3 if architecture.startswith("tf_") else 1e-5
        assert backbone.get_layer("bn1").epsilon == epsilon


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("tf_efficientnet_b0.in1k", 0.1),
        ("tf_efficientnet_b0.ap_in1k", 0.5),
        ("tf_efficientnet_b0_ap-f262efe1", 0.5),
        ("resnet34.ra4_e3600_r224_in1k", 0.5),
        ("efficientnet_lite0_ra-37913777", 0.485),
        ("deit_small_patch16_224-cd65a155", 0.485),
        ("dino_vitbase16_pretrain", 0.485),
        ("vit_small_patch14_dinov2.lvd142m", 0.1),
        ("convnext_base.clip_laion2b", 0.48145466),
        ("vit_base_patch16_224_in21k_miil-887286df", 0.0),
    ],
)
def test_timms_variants_with_another_scale_of_the_input_are_known_by_the_files_name(tmp_path, name, mean):
    assumed = Origin("x", (0.1,) * 3, (0.2,) * 3)
    assert origin_of(tmp_path / f"{name}.pth", r"\w+", assumed).mean[0] == mean


@pytest.mark.slow
def test_networks_of_equal_tensors_have_feature_banks_of_their_own(tmp_path, tensors_of):
    tensors, folders = tensors_of("resnet18"), set()
    for scale in (IMAGENET, IMAGENET, ((0.5,) * 3, (0.5,) * 3)):
        path = write(tmp_path, tensors, "resnet18", scale)
        config = RunConfig(backbone="resnet18", weights=path, img_size=64)
        folders.add(bank_folder(config, SimpleNamespace(store=tmp_path), body_of(build_model(config))))
    assert len(folders) == 2


def test_the_scaling_of_a_file_of_keras_is_logged_as_an_assumption(tmp_path, tensors_of, caplog):
    network = build_backbone("resnet18", 64, write(tmp_path, tensors_of("resnet18"), "resnet18"))
    network.save_weights(tmp_path / "own.weights.h5")
    build_backbone("resnet18", 64, str(tmp_path / "own.weights.h5"))
    assert "own.weights.h5: a file of Keras does not say how the input is scaled; scale and offset ((4.3" in caplog.text


def test_config_json_of_another_network_is_refused(tmp_path, tensors_of):
    path = write(tmp_path, tensors_of("resnet18"), "resnetblur18")
    with pytest.raises(WeightsError, match=r"config\.json beside it says resnetblur18, which is another network"):
        build_backbone("resnet18", 64, path)
    (tmp_path / "config.json").write_text('{"architecture": "resn')
    with pytest.raises(WeightsError, match=r"config\.json beside it is damaged"):
        build_backbone("resnet18", 64, path)


def test_a_scale_that_config_json_does_not_say_is_an_assumption(tmp_path, caplog):
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    origin_of(tmp_path / "model.safetensors", "resnet18", Origin("resnet18", *IMAGENET))
    assert "read as resnet18 (as config.json says), with mean (0.485, 0.456, 0.406)" in caplog.text
    assert "assumed, because no config.json of timm beside it says so" in caplog.text


def test_tensors_that_do_not_fit_are_named(tmp_path, tensors_of):
    with pytest.raises(WeightsError, match=r"missing: conv1\.weight \(64, 3, 7, 7\).*not of this network: blocks"):
        build_backbone("resnet18", 64, write(tmp_path, tensors_of("efficientnetb0")))
    with pytest.raises(WeightsError, match=r"of another shape: .*blocks\.0\.1|missing: blocks\.0\.1\.conv_dw"):
        build_backbone("efficientnetb1", 64, write(tmp_path, tensors_of("efficientnetb0")))
    with pytest.raises(WeightsError, match=r"cannot be loaded into this network; docs/weights\.md"):
        build_backbone("densenet121", 64, write(tmp_path, tensors_of("resnet18")))


@pytest.mark.parametrize("kind", ["BF16", "F8_E4M3", "a folder"])
def test_files_of_short_floats_are_read_or_refused_as_folders_are(tmp_path, kind):
    path = tmp_path / "x.safetensors"
    if kind == "a folder":
        path.mkdir()
    else:
        size = 2 * (1 + (kind == "BF16"))
        header = json.dumps({"a": {"dtype": kind, "shape": [2], "data_offsets": [0, size]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + b"\x80\x3f\x00\xc0"[:size])
    if kind == "BF16":
        variable = keras.Variable(np.zeros(2, np.float32))
        assign_tensors(read(path), path.name, {"a": Target.of(variable, [0])})
        np.testing.assert_array_equal(variable, [1, -2])
    else:
        with pytest.raises(WeightsError, match="the file cannot be read"):
            read(path)


def test_without_a_file_of_tensors_the_network_is_keras_own():
    assert isinstance(build_backbone("resnet50", 64, "none").layers[-1], keras.Model)


@pytest.mark.parametrize(
    ("name", "classifier", "channels"), [("resnet18", "fc", 512), ("efficientnetb0", "classifier", 1280)]
)
def test_a_classifier_with_one_output_becomes_the_head(tmp_path, tensors_of, name, classifier, channels):
    kernel = np.random.default_rng(2).random((1, channels), dtype=np.float32)
    one = {f"{classifier}.weight": kernel, f"{classifier}.bias": np.full(1, 0.5, np.float32)}
    path = write(tmp_path, tensors_of(name) | one)
    model = build_model(RunConfig(backbone=name, weights=path, img_size=64, pooling="avg"))
    np.testing.assert_array_equal(model.get_layer("cancer").kernel, kernel.T)
    np.testing.assert_array_equal(model.get_layer("cancer").bias, [0.5])
    many = {f"{classifier}.weight": np.ones((7, channels)), f"{classifier}.bias": np.ones(7)}
    assert not build_parts(name, 64, write(tmp_path, tensors_of(name) | many)).head


def older_names(tensors: Tensors) -> Tensors:
    """Rename B0's tensors as efficientnet_pytorch calls them."""
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    other = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
    other |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    ends = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
    numbers = {"0": 0, "1": 1, "2": 3, "3": 5, "4": 8, "5": 11, "6": 15}  # of the first block of each stage
    found = {}
    for name, tensor in tensors.items():
        *place, layer, ending = (
            name.replace("se.conv_reduce", "_se_reduce").replace("se.conv_expand", "_se_expand").split(".")
        )
        names = ends if not place else first if place[1] == "0" else other
        block = f"_blocks.{numbers[place[1]] + int(place[2])}." if place else ""
        found[f"{block}{names.get(layer, layer)}.{ending}"] = tensor
    return found


def test_mammo_clips_encoder_is_read_out_of_its_checkpoint(tmp_path, tensors_of, caplog):
    tensors = tensors_of("efficientnetb0")
    file = {f"image_encoder.{name}": each for name, each in older_names(tensors).items()}
    file |= {"text_encoder.embeddings.weight": np.ones((2, 2)), "logit_scale": np.ones(())}
    backbone = build_backbone("efficientnetb0", SHAPE, write(tmp_path, file))
    assert "the input scaled as Mammo-CLIP's assumed" in caplog.text
    # Padding is fixed for images of 224 pixels, whose sides are even at every stride.
    net = Reference(tensors, "of an even size", 1e-3)
    expected = first_blocks_of_b0(net, colour((0.3089279,) * 3, (0.25053555408335154,) * 3))
    np.testing.assert_allclose(part_of(backbone, "blocks.1.0.bn3"), expected, rtol=1e-4, atol=1e-4)


def test_padding_of_efficientnet_pytorch_is_fixed_by_the_size_of_its_imagenet_images():
    halvings = efficientnet._older_convention("efficientnetb5", "file", {}).halvings
    assert halvings == ("far", "far", "far", "both", "both")  # 456, 228, 114, 57 and 29 pixels


def test_mirais_encoder_is_read_from_its_state_dict(tmp_path, tensors_of, caplog):
    tensors, file = tensors_of("resnet18"), {}
    for name, each in tensors.items():
        stage, _, rest = name.partition(".")
        at = f"{stage}_{rest}" if stage.startswith("layer") else f"downsampler.{name}"
        file[f"image_encoder._model.{at}"] = each
    file |= {"image_encoder._model.fc.weight": np.ones((2, 512)), "transformer.x": np.ones(2)}
    backbone = build_backbone("resnet18", SHAPE, write(tmp_path, file))
    assert "the input scaled as Mirai's assumed" in caplog.text
    expected = first_blocks_of_resnet(
        Reference(tensors, "torch", 1e-5), (65535 * np.repeat(GREY[0], 3, axis=-1) - 7699.5) / 11765.06
    )
    np.testing.assert_allclose(part_of(backbone, "layer2.0.relu"), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [pytest.param("efficientnetb0", "efficientnet_b0", marks=pytest.mark.slow), ("resnet18", "resnet18")],
)
def test_a_copy_for_another_size_keeps_padding_and_scaling(tmp_path, tensors_of, name, architecture):
    path = write(tmp_path, tensors_of(name), architecture, ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    small = build_parts(name, 32, path)
    copy = build_parts(name, SHAPE, "none", like=small.backbone)
    copy_weights(Parts(small.backbone), copy)
    expected = build_backbone(name, SHAPE, path)(GREY, training=False)
    np.testing.assert_array_equal(copy.backbone(GREY, training=False), expected)
