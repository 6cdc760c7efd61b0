"""The backbone of YOLO11's classifier in its five sizes, written from the published description of the architecture.

A grey picture (height, width, 1) in 0-1, sides multiples of 32, becomes a feature map (height / 32, width / 32, 1280):
the network takes the picture as red, green and blue, in 0-1 as it is, and ends with the 1 x 1 convolution of the
classifier's head. Layers have the reference's names, so "model.9" is its stage of attention.

There are no weights at Keras. Ultralytics publishes some, trained on ImageNet, under the AGPL-3.0, and so is a model
that was made from them. Where ultralytics and safetensors are installed, this exports them:

    from safetensors.torch import save_file
    from ultralytics import YOLO

    state = YOLO("yolo11n-cls.pt").model.state_dict()
    save_file({name: tensor.float().contiguous() for name, tensor in state.items()}, "yolo11n-cls.safetensors")

Such a file, or an .npz of the same arrays, is what the setting `weights` then names. Its classes ("model.10.linear")
and counters of batches are not used; every other tensor has to be there and to fit.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import KerasTensor, layers, ops
from safetensors import SafetensorError
from safetensors.numpy import load_file

from rsna_nb.system import DamagedFileError, read_arrays

log = logging.getLogger(__name__)

Placed = tuple[keras.Variable, tuple[int, ...]]  # a variable, and the reference's axes in the variable's order
EXPORTED = (
    'set weights to "none", or to a file: where ultralytics is installed, save '
    'YOLO("yolo11n-cls.pt").model.state_dict() with safetensors.torch.save_file, as the first lines of '
    "rsna_nb/yolo11.py show"
)
FAULTS_SHOWN = 4  # of a kind


@dataclass(frozen=True)
class Scale:
    """One of the five sizes: what the published numbers of blocks and channels are multiplied by.

    `largest` caps the channels before they are multiplied; `nested` says whether every C3k2 has C3k blocks within it.
    """

    depth: float
    width: float
    largest: int
    nested: bool

    def channels(self, published: int) -> int:
        return 8 * math.ceil(min(published, self.largest) * self.width / 8)

    @property
    def repeats(self) -> int:
        """Blocks of a stage; the published number is 2 in all of them."""
        return max(1, round(2 * self.depth))


SCALES = {
    "n": Scale(0.5, 0.25, 1024, nested=False),
    "s": Scale(0.5, 0.5, 1024, nested=False),
    "m": Scale(0.5, 1.0, 512, nested=True),
    "l": Scale(1.0, 1.0, 512, nested=True),
    "x": Scale(1.0, 1.5, 512, nested=True),
}
# Channels of the convolution that halves the picture and of the C3k2 after it, whose blocks have that share of them,
# and whether they are C3k blocks in every size.
STAGES = ((128, 256, 0.25, False), (256, 512, 0.25, False), (512, 512, 0.5, True), (1024, 1024, 0.5, True))
HEAD_CHANNELS = 1280  # of the classifier's last convolution
CHANNELS_PER_HEAD = 64  # of attention


@dataclass(frozen=True)
class Blocks:
    """The blocks that the network is made of: each takes a feature map (h, w, c) and the name of its layers."""

    synchronized: bool

    def conv(
        self, x: KerasTensor, name: str, filters: int, size: int = 1, stride: int = 1, active: bool = True
    ) -> KerasTensor:
        """Convolution, batch normalisation and, where `active`, SiLU."""
        if stride == 2:  # Keras's "same" would pad the far sides alone, and the weights see a picture moved by a pixel
            x = layers.ZeroPadding2D(1, name=f"{name}.pad")(x)
        padding = "valid" if stride == 2 else "same"
        x = layers.Conv2D(filters, size, stride, padding=padding, use_bias=False, name=f"{name}.conv")(x)
        x = self.normalized(x, name)
        return layers.Activation("silu", name=f"{name}.act")(x) if active else x

    def normalized(self, x: KerasTensor, name: str) -> KerasTensor:
        # Keras's momentum is what stays of the old statistics, PyTorch's (0.03) what comes of the new.
        return layers.BatchNormalization(
            momentum=0.97, epsilon=1e-3, synchronized=self.synchronized, name=f"{name}.bn"
        )(x)

    def bottleneck(self, x: KerasTensor, name: str, within: int) -> KerasTensor:
        """Two 3 x 3 convolutions, `within` channels between them, and the way around them."""
        y = self.conv(x, f"{name}.cv1", within, 3)
        return layers.Add(name=f"{name}.add")([x, self.conv(y, f"{name}.cv2", x.shape[-1], 3)])

    def c3k(self, x: KerasTensor, name: str) -> KerasTensor:
        """Two bottlenecks on half of the channels, the other half beside them."""
        filters, half = x.shape[-1], x.shape[-1] // 2
        y = self.conv(x, f"{name}.cv1", half)
        for number in range(2):
            y = self.bottleneck(y, f"{name}.m.{number}", half)
        joined = layers.Concatenate(name=f"{name}.concat")([y, self.conv(x, f"{name}.cv2", half)])
        return self.conv(joined, f"{name}.cv3", filters)

    def c3k2(self, x: KerasTensor, name: str, filters: int, within: int, repeats: int, nested: bool) -> KerasTensor:
        """Blocks of `within` channels one after another, of which the outputs of all are joined."""
        parts = ops.split(self.conv(x, f"{name}.cv1", 2 * within), 2, axis=-1)
        for number in range(repeats):
            block = f"{name}.m.{number}"
            y = self.c3k(parts[-1], block) if nested else self.bottleneck(parts[-1], block, within // 2)
            parts = [*parts, y]
        return self.conv(layers.Concatenate(name=f"{name}.concat")(parts), f"{name}.cv2", filters)

    def c2psa(self, x: KerasTensor, name: str, repeats: int) -> KerasTensor:
        """Half of the channels through blocks of attention, the other half beside them."""
        filters = x.shape[-1]
        beside, y = ops.split(self.conv(x, f"{name}.cv1", filters), 2, axis=-1)
        for number in range(repeats):
            block = f"{name}.m.{number}"
            y = layers.Add(name=f"{block}.attn.add")([y, self.attention(y, f"{block}.attn")])
            z = self.conv(y, f"{block}.ffn.0", filters)
            z = self.conv(z, f"{block}.ffn.1", filters // 2, active=False)
            y = layers.Add(name=f"{block}.ffn.add")([y, z])
        return self.conv(layers.Concatenate(name=f"{name}.concat")([beside, y]), f"{name}.cv2", filters)

    def attention(self, x: KerasTensor, name: str) -> KerasTensor:
        """Every place looks at every other; a depthwise convolution of the values says where they are."""
        height, width, filters = x.shape[1:]
        heads = filters // CHANNELS_PER_HEAD
        each = filters // heads
        key = each // 2
        mixed = self.conv(x, f"{name}.qkv", heads * (2 * key + each), active=False)
        split = layers.Reshape((height * width, heads, 2 * key + each), name=f"{name}.heads")(mixed)
        queries, keys, values = ops.split(split, [key, 2 * key], axis=-1)
        shares = ops.softmax(ops.einsum("bqhc,bkhc->bhqk", queries * key**-0.5, keys))
        seen = ops.einsum("bhqk,bkhc->bqhc", shares, values)
        seen = layers.Reshape((height, width, filters), name=f"{name}.seen")(seen)
        places = layers.Reshape((height, width, filters), name=f"{name}.values")(values)
        places = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"{name}.pe.conv")(places)
        placed = layers.Add(name=f"{name}.placed")([seen, self.normalized(places, f"{name}.pe")])
        return self.conv(placed, f"{name}.proj", filters, active=False)


def build(size: str, shape: tuple[int, int], weights: str | None, synchronized: bool) -> keras.Model:
    """The network of size "n", "s", "m", "l" or "x" for pictures of `shape`, (height, width).

    `weights` is None, an exported .safetensors or .npz file, or a .weights.h5 that Keras saved of this network.

    Raises
    ------
    ValueError
        For weights that cannot be read or do not fit; it names the tensors at fault.
    """
    tensors = read(weights) if weights and weights.endswith((".safetensors", ".npz")) else None
    scale, blocks = SCALES[size], Blocks(synchronized)
    image = keras.Input((*shape, 1), name="image")
    x = layers.Concatenate(name="three_channels")([image, image, image])
    x = blocks.conv(x, "model.0", scale.channels(64), 3, 2)
    for number, (halving, published, share, nested) in enumerate(STAGES):
        x = blocks.conv(x, f"model.{2 * number + 1}", scale.channels(halving), 3, 2)
        filters, name = scale.channels(published), f"model.{2 * number + 2}"
        x = blocks.c3k2(x, name, filters, int(share * filters), scale.repeats, nested or scale.nested)
    x = blocks.c2psa(x, "model.9", scale.repeats)
    network = keras.Model(image, blocks.conv(x, "model.10.conv", HEAD_CHANNELS), name="backbone")
    if tensors is not None:
        assign(network, tensors, f"yolo11{size}")
    elif weights:
        network.load_weights(weights)
    return network


def read(path: str) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors or .npz file by name; `ValueError` where it is none."""
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        return read_arrays(Path(path))
    except (SafetensorError, DamagedFileError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the file cannot be read ({error})") from error


def reference_tensors(network: keras.Model) -> dict[str, Placed]:
    """The reference's name of every tensor -> the variable that it is for."""
    found: dict[str, Placed] = {}
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            statistics = {"running_mean": layer.moving_mean, "running_var": layer.moving_variance}
            for name, variable in {"weight": layer.gamma, "bias": layer.beta, **statistics}.items():
                found[f"{layer.name}.{name}"] = variable, (0,)
        elif isinstance(layer, layers.DepthwiseConv2D):  # (channels, 1, height, width) in PyTorch
            found[f"{layer.name}.weight"] = layer.kernel, (2, 3, 0, 1)
        elif isinstance(layer, layers.Conv2D):  # (out, in, height, width) in PyTorch
            found[f"{layer.name}.weight"] = layer.kernel, (2, 3, 1, 0)
    return found


def assign(network: keras.Model, tensors: Mapping[str, np.ndarray], name: str) -> None:
    """Give every variable its tensor; `ValueError` where tensors are missing, too many or of another shape."""
    wanted = reference_tensors(network)
    unused = [each for each in tensors if each.startswith("model.10.linear.") or each.endswith(".num_batches_tracked")]
    given = {each: tensor.shape for each, tensor in tensors.items() if each not in unused}
    if faults := "; ".join(differences(wanted, given)):
        found = f"of yolo11{size_of(given)}" if size_of(given) else "of no YOLO11"
        raise ValueError(f"{faults}. By its first layers the file is {found}; wanted are the tensors of {name}-cls.pt")
    for each, (variable, axes) in wanted.items():
        variable.assign(tensors[each].transpose(axes))
    log.info("%s: %d tensors loaded; not used: %s", name, len(wanted), ", ".join(unused) or "none")


def differences(wanted: Mapping[str, Placed], given: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """What is wrong with the names and shapes that are given: a text for each kind of fault that there is."""
    shapes = {
        name: tuple(variable.shape[axes.index(axis)] for axis in range(len(axes)))
        for name, (variable, axes) in wanted.items()
    }
    faults = {
        "missing": [f"{name} {shape}" for name, shape in shapes.items() if name not in given],
        "of another shape": [
            f"{name} is {given[name]}, not {shape}" for name, shape in shapes.items() if given.get(name, shape) != shape
        ],
        "not of this network": [f"{name} {shape}" for name, shape in given.items() if name not in shapes],
    }
    for kind, found in faults.items():
        if found:
            more = f" and {len(found) - FAULTS_SHOWN} more" if len(found) > FAULTS_SHOWN else ""
            yield f"{kind}: {', '.join(found[:FAULTS_SHOWN])}{more}"


def size_of(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The size that a file's first convolution and the blocks of its first stage speak for; "" where none does."""
    channels = shapes.get("model.0.conv.weight", ())[:1]
    repeats = 1 + any(name.startswith("model.2.m.1.") for name in shapes)
    fitting = (size for size, scale in SCALES.items() if ((scale.channels(64),), scale.repeats) == (channels, repeats))
    return next(fitting, "")
