"""The backbone of YOLO11's classifier in its five sizes, written from the published description of the architecture.

A grey image (height, width, 1) in 0-1, with sides that are multiples of 32, becomes a feature map
(height / 32, width / 32, 1280). The network receives the image as red, green and blue in 0-1 and ends with the 1 x 1
convolution of the classifier's head. Layers have the reference's names: "model.9" is its attention stage.

Keras publishes no weights for it. Ultralytics does, trained on ImageNet, under the AGPL-3.0; a model made from them
falls under the same licence. Where ultralytics and safetensors are installed, this exports them:

    from safetensors.torch import save_file
    from ultralytics import YOLO

    state = YOLO("yolo11n-cls.pt").model.state_dict()
    save_file({name: tensor.float().contiguous() for name, tensor in state.items()}, "yolo11n-cls.safetensors")

Set `weights` to that file, or to an .npz file of the same arrays. The classes ("model.10.linear") and the counters of
batches are not used; every other tensor must be present and fit.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
from keras import KerasTensor, layers, ops

from rsna_nb.backbones.scaling import three_channels
from rsna_nb.backbones.tensors import ENDINGS, assign_tensors, read, reference_targets
from rsna_nb.backbones.weights import Shape, load_weights


@dataclass(frozen=True)
class Scale:
    """How one of the five sizes scales the published description.

    Parameters
    ----------
    repeats
        Blocks of each stage.
    width
        Factor of the published numbers of channels.
    largest
        Upper limit of the channels, before `width` multiplies them.
    nested
        Whether every C3k2 block contains C3k blocks.
    """

    repeats: int
    width: float
    largest: int
    nested: bool

    def channels(self, published: int) -> int:
        """Channels of a layer, rounded up to a multiple of 8."""
        return 8 * math.ceil(min(published, self.largest) * self.width / 8)


SCALES = {
    "n": Scale(1, 0.25, 1024, nested=False),
    "s": Scale(1, 0.5, 1024, nested=False),
    "m": Scale(1, 1.0, 512, nested=True),
    "l": Scale(2, 1.0, 512, nested=True),
    "x": Scale(2, 1.5, 512, nested=True),
}
# For each stage: channels of the convolution that halves the image, channels of the C3k2 block after it, the share of
# these inside it, and whether it contains C3k blocks in every size.
STAGES = ((128, 256, 0.25, False), (256, 512, 0.25, False), (512, 512, 0.5, True), (1024, 1024, 0.5, True))
HEAD_CHANNELS = 1280  # of the classifier's last convolution
CHANNELS_PER_HEAD = 64  # of attention


def build(size: str, height: int, width: int, weights: str | None, synchronized: bool) -> keras.Model:
    """Build the network of size "n", "s", "m", "l" or "x" for images of (height, width) pixels.

    `weights` is None (random), an exported .safetensors or .npz file, or a file that Keras saved of this network.
    Raises `WeightsError`, which names the tensors that are missing, superfluous or of another shape.
    """
    scale, blocks = SCALES[size], _Blocks(synchronized)
    image = keras.Input((height, width, 1), name="image")
    x = blocks.conv(three_channels(image), "model.0", scale.channels(64), 3, 2)
    for number, (halving, published, share, nested) in enumerate(STAGES):
        x = blocks.conv(x, f"model.{2 * number + 1}", scale.channels(halving), 3, 2)
        filters, name = scale.channels(published), f"model.{2 * number + 2}"
        x = blocks.c3k2(x, name, filters, int(share * filters), scale.repeats, nested or scale.nested)
    x = blocks.c2psa(x, "model.9", scale.repeats)
    network = keras.Model(image, blocks.conv(x, "model.10.conv", HEAD_CHANNELS), name="backbone")
    path = Path(weights or "")
    if weights and path.suffix in ENDINGS:
        hint = partial(_hint, f"yolo11{size}")
        assign_tensors(read(path), path.name, reference_targets(network), ["model.10.linear."], hint)
    elif weights:
        load_weights(network, path)
    return network


@dataclass(frozen=True)
class _Blocks:
    """The blocks of the network: each takes a feature map (h, w, channels) and the name that its layers begin with."""

    synchronized: bool

    def conv(
        self, x: KerasTensor, name: str, filters: int, size: int = 1, stride: int = 1, active: bool = True
    ) -> KerasTensor:
        """Convolution, batch normalisation and, where `active`, SiLU."""
        if stride == 2:  # Keras's "same" pads only the far sides, so that the image would be shifted by a pixel
            x = layers.ZeroPadding2D(1, name=f"{name}.pad")(x)
        padding = "valid" if stride == 2 else "same"
        x = layers.Conv2D(filters, size, stride, padding=padding, use_bias=False, name=f"{name}.conv")(x)
        x = self.normalized(x, name)
        return layers.Activation("silu", name=f"{name}.act")(x) if active else x

    def normalized(self, x: KerasTensor, name: str) -> KerasTensor:
        """Batch normalisation with the reference's momentum and epsilon."""
        # Keras's momentum is the share of the old statistics that stays; PyTorch's (0.03) is that of the new ones.
        return layers.BatchNormalization(
            momentum=0.97, epsilon=1e-3, synchronized=self.synchronized, name=f"{name}.bn"
        )(x)

    def bottleneck(self, x: KerasTensor, name: str, within: int) -> KerasTensor:
        """Two 3 x 3 convolutions with `within` channels between them, and a skip connection."""
        y = self.conv(x, f"{name}.cv1", within, 3)
        return layers.Add(name=f"{name}.add")([x, self.conv(y, f"{name}.cv2", x.shape[-1], 3)])

    def c3k(self, x: KerasTensor, name: str) -> KerasTensor:
        """Two bottlenecks on half of the channels; the other half bypasses them."""
        filters, half = x.shape[-1], x.shape[-1] // 2
        # cv1, cv2, cv3, m.0 ... are the reference's names, which its tensors are found by.
        y = self.conv(x, f"{name}.cv1", half)
        for number in range(2):
            y = self.bottleneck(y, f"{name}.m.{number}", half)
        joined = layers.Concatenate(name=f"{name}.concat")([y, self.conv(x, f"{name}.cv2", half)])
        return self.conv(joined, f"{name}.cv3", filters)

    def c3k2(self, x: KerasTensor, name: str, filters: int, within: int, repeats: int, nested: bool) -> KerasTensor:
        """A sequence of blocks with `within` channels; the outputs of all of them are concatenated."""
        outputs = ops.split(self.conv(x, f"{name}.cv1", 2 * within), 2, axis=-1)
        for number in range(repeats):
            block = f"{name}.m.{number}"
            y = self.c3k(outputs[-1], block) if nested else self.bottleneck(outputs[-1], block, within // 2)
            outputs = [*outputs, y]
        return self.conv(layers.Concatenate(name=f"{name}.concat")(outputs), f"{name}.cv2", filters)

    def c2psa(self, x: KerasTensor, name: str, repeats: int) -> KerasTensor:
        """Attention blocks on half of the channels; the other half bypasses them."""
        filters = x.shape[-1]
        bypass, y = ops.split(self.conv(x, f"{name}.cv1", filters), 2, axis=-1)
        for number in range(repeats):
            block = f"{name}.m.{number}"
            y = layers.Add(name=f"{block}.attn.add")([y, self.attention(y, f"{block}.attn")])
            z = self.conv(y, f"{block}.ffn.0", filters)
            z = self.conv(z, f"{block}.ffn.1", filters // 2, active=False)
            y = layers.Add(name=f"{block}.ffn.add")([y, z])
        return self.conv(layers.Concatenate(name=f"{name}.concat")([bypass, y]), f"{name}.cv2", filters)

    def attention(self, x: KerasTensor, name: str) -> KerasTensor:
        """Self-attention between all positions; a depthwise convolution of the values encodes where they are."""
        height, width, filters = x.shape[1:]
        heads = filters // CHANNELS_PER_HEAD
        per_head = filters // heads
        key = per_head // 2  # queries and keys have half as many channels as values
        # One convolution makes queries, keys and values; for each head they follow one another in its channels.
        projected = self.conv(x, f"{name}.qkv", heads * (2 * key + per_head), active=False)
        split = layers.Reshape((height * width, heads, 2 * key + per_head), name=f"{name}.heads")(projected)
        queries, keys, values = ops.split(split, [key, 2 * key], axis=-1)
        attention = ops.softmax(ops.einsum("bqhc,bkhc->bhqk", queries * key**-0.5, keys))
        context = ops.einsum("bhqk,bkhc->bqhc", attention, values)
        context = layers.Reshape((height, width, filters), name=f"{name}.context")(context)
        encoding = layers.Reshape((height, width, filters), name=f"{name}.values")(values)
        encoding = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"{name}.pe.conv")(encoding)
        x = layers.Add(name=f"{name}.encoded")([context, self.normalized(encoding, f"{name}.pe")])
        return self.conv(x, f"{name}.proj", filters, active=False)


def _hint(name: str, shapes: Mapping[str, Shape]) -> str:
    """Say which network's tensors were expected, and whose the file seems to hold."""
    found = f"yolo11{_size_of(shapes)}" if _size_of(shapes) else "another network"
    return f"; expected the tensors of {name}-cls.pt, but the first layers are of {found}"


def _size_of(shapes: Mapping[str, Shape]) -> str:
    """The size that has the first convolution and the first stage of a file; "" if none of the five has."""
    channels = shapes.get("model.0.conv.weight", ())[:1]
    repeats = 1 + any(name.startswith("model.2.m.1.") for name in shapes)
    fitting = (size for size, scale in SCALES.items() if ((scale.channels(64),), scale.repeats) == (channels, repeats))
    return next(fitting, "")
