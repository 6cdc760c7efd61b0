"""The networks EfficientNet B0 to B7, EfficientNetV2 and EfficientNet-Lite, with timm's names of layers.

A grey image (height, width, 1) in 0-1 becomes a feature map (height / 32, width / 32, channels), rounded up.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import keras
from keras import KerasTensor, layers

from rsna_nb.backbones.scaling import scaled_colour

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
    """The stages of a network, its width and depth factors, and the channels of its first convolution.

    `side` is the image side in pixels for which efficientnet_pytorch fixes its padding.
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


@dataclass(frozen=True)
class Convention:
    """What can differ between networks whose tensors have the same names and shapes.

    Parameters
    ----------
    halvings
        How each of the five convolutions with stride 2 pads its input: "same" as TensorFlow does for the size of the
        input; "far" one pixel less at the top and left, as TensorFlow does for even sizes; "both" equally on all sides.
    epsilon
        Of batch normalisation.
    scaling
        (scale, offset) of the input.
    """

    halvings: tuple[str, ...]
    epsilon: float
    scaling: tuple


def network(name: str, height: int, width: int, convention: Convention) -> keras.Model:
    """Build a network with random weights."""
    size, is_lite = SIZES[name], name in LITE
    blocks, halvings = _Blocks(convention.epsilon, is_lite), iter(convention.halvings)
    wide, ends = size.wide, 1.0 if is_lite else size.wide  # Lite's first and last convolution are never scaled
    image = keras.Input((height, width, 1), name="image")
    colour = scaled_colour(image, convention.scaling)
    x = blocks.conv(colour, "conv_stem", "bn1", _scaled(name, size.stem, ends), 3, next(halvings))
    for number, stage in enumerate(size.stages):
        fixed = is_lite and number in (0, len(size.stages) - 1)  # nor is the depth of its first and last stage
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
    """Squeeze and excitation: weight each channel by the output of a small network of all channels' means."""
    weight = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}.mean")(x)
    weight = layers.Conv2D(within, 1, activation="silu", name=f"{name}.conv_reduce")(weight)
    weight = layers.Conv2D(x.shape[-1], 1, activation="sigmoid", name=f"{name}.conv_expand")(weight)
    return layers.Multiply(name=f"{name}.weighted")([x, weight])
