"""ResNet in PyTorch's form (v1.5), for weights of torchvision and timm.

A grey image (height, width, 1) in 0-1 becomes a feature map (height / 32, width / 32, channels), rounded up. Layers
have the reference's names, so that each tensor is found by its name. For Keras's own weights, `registry` builds the
ResNets of keras.applications instead: there the first 1 x 1 convolution of a block has the stride, convolutions have
biases, and epsilon is larger.

He et al. 2015 (arXiv:1512.03385).
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import keras
from keras import KerasTensor, layers

from rsna_nb.backbones.parts import Parts, with_tensors
from rsna_nb.backbones.published import Origin, load_saved, origin_of, scaling_in
from rsna_nb.backbones.scaling import IMAGENET, SCALINGS, scaled_colour, scaling_of
from rsna_nb.backbones.tensors import ENDINGS, Target, assign_tensors, read, reference_targets

log = logging.getLogger(__name__)

# Blocks of the four stages, and the factor of the channels at the end of a block: 1 in basic blocks, 4 in bottlenecks.
SIZES = {
    "resnet18": ((2, 2, 2, 2), 1),
    "resnet34": ((3, 4, 6, 3), 1),
    "resnet50": ((3, 4, 6, 3), 4),
    "resnet101": ((3, 4, 23, 3), 4),
    "resnet152": ((3, 8, 36, 3), 4),
}
MIRAI = scaling_of((7699.5 / 65535,) * 3, (11765.06 / 65535,) * 3)  # its images have 16 bits
# Layers of Mirai's encoder after its feature map.
BEHIND = ("pool.", "fc.", "prob_of_failure_layer.", "birads_fc.", "region_fc.")


def build(name: str, height: int, width: int, weights: str | None, like: keras.Model | None = None) -> Parts:
    """Build a network for images of (height, width) pixels.

    Parameters
    ----------
    name
        A key of `SIZES`.
    height, width
        Size of the images in pixels.
    weights
        None (random), a file of tensors (`tensors.ENDINGS`) with the names of torchvision, timm or Mirai's encoder, or
        a file that Keras saved of this network.
    like
        A network that was built here, for images of any size: the new one scales its input in the same way.

    Raises
    ------
    WeightsError
        If the weights are not those of the network; the message names the tensors that differ.
    """
    path = Path(weights) if weights else None
    if path is None or path.suffix not in ENDINGS:
        network = _network(name, height, width, scaling_in(like) if like else SCALINGS["torch"])
        if path:
            load_saved(network, path)
        return Parts(network)
    tensors = read(path)
    if any(each.endswith("downsampler.conv1.weight") for each in tensors):
        log.warning("%s: read as Mirai's image encoder, with the input scaled as Mirai's assumed", path.name)
        network = _network(name, height, width, MIRAI)
        assign_tensors(tensors, path.name, _names_of_mirai(reference_targets(network)), BEHIND)
        return Parts(network)
    origin = origin_of(path, rf"(?:tv_|gluon_|ssl_|swsl_)?{name}(?:_\w+)?", Origin(name, *IMAGENET))
    network = _network(name, height, width, scaling_of(origin.mean, origin.deviation))
    return with_tensors(Parts(network), tensors, path.name, reference_targets(network), "fc")


def _names_of_mirai(targets: Mapping[str, Target]) -> dict[str, Target]:
    """Return the targets under the names of Mirai's encoder: downsampler.conv1, layer1_0.conv1 and so on."""
    return {
        re.sub(r"^layer(\d)\.(\d+)\.", r"layer\1_\2.", name)
        if name.startswith("layer")
        else f"downsampler.{name}": target
        for name, target in targets.items()
    }


def _network(name: str, height: int, width: int, scaling: tuple) -> keras.Model:
    """Build a network with random weights; `scaling` is the (scale, offset) of its input."""
    repeats, growth = SIZES[name]
    image = keras.Input((height, width, 1), name="image")
    x = _conv(scaled_colour(image, scaling), "conv1", "bn1", 64, 7, 2)
    # PyTorch pads with minus infinity; after ReLU no value is below 0, so 0 is the same.
    x = layers.MaxPooling2D(3, 2, name="maxpool")(layers.ZeroPadding2D(1, name="maxpool.pad")(x))
    for stage, blocks in enumerate(repeats):
        for number in range(blocks):
            stride = 2 if stage and not number else 1
            x = _block(x, f"layer{stage + 1}.{number}", 64 * 2**stage, growth, stride)
    return keras.Model(image, x, name="backbone")


def _block(x: KerasTensor, name: str, channels: int, growth: int, stride: int) -> KerasTensor:
    """Two 3 x 3 convolutions, or one between two of 1 x 1, added to the input or to its projection."""
    if growth == 1:
        y = _conv(x, f"{name}.conv1", f"{name}.bn1", channels, 3, stride)
        y = _conv(y, f"{name}.conv2", f"{name}.bn2", channels, 3, active=False)
    else:
        y = _conv(x, f"{name}.conv1", f"{name}.bn1", channels)
        y = _conv(y, f"{name}.conv2", f"{name}.bn2", channels, 3, stride)
        y = _conv(y, f"{name}.conv3", f"{name}.bn3", growth * channels, active=False)
    if x.shape != y.shape:
        x = _conv(x, f"{name}.downsample.0", f"{name}.downsample.1", growth * channels, 1, stride, active=False)
    return layers.ReLU(name=f"{name}.relu")(layers.Add(name=f"{name}.add")([x, y]))


def _conv(
    x: KerasTensor, name: str, norm: str, filters: int, kernel: int = 1, stride: int = 1, active: bool = True
) -> KerasTensor:
    """Convolution with PyTorch's padding, batch normalisation and, where `active`, ReLU."""
    if kernel > 1:  # Keras's "same" pads only the far sides where the stride is 2
        x = layers.ZeroPadding2D(kernel // 2, name=f"{name}.pad")(x)
    x = layers.Conv2D(filters, kernel, stride, use_bias=False, name=name)(x)
    x = layers.BatchNormalization(epsilon=1e-5, name=norm)(x)
    return layers.ReLU(name=f"{norm}.relu")(x) if active else x
