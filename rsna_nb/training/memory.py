"""What a training step will need of a device's memory, and how much of it there is.

The graph is walked forward and backward, as the step computes it. Every activation, and every gradient of one, has
a size for an image, a first and a last step; what counts is the largest sum of those that are alive together.
"""

import math
import os
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras import layers
from tensorflow.python.client import device_lib  # TensorFlow 2.21 has no public name for a device's limit
from tensorflow.python.eager import context

GRADIENT_AND_MOMENTS = 3 * 4  # bytes of a trainable number beside itself: float32, as Adam keeps them

# What a layer's gradient is computed from: of a layer that is in neither, from what it takes and what it gives.
FROM_INPUT = (
    *(layers.Conv2D, layers.DepthwiseConv2D, layers.Dense, layers.BatchNormalization, layers.Multiply),
    layers.MultiHeadAttention,  # each of its steps
)
FROM_NOTHING = (
    *(layers.Add, layers.Concatenate, layers.Rescaling, layers.Reshape, layers.ZeroPadding2D, layers.Cropping2D),
    *(layers.Cropping1D, layers.AveragePooling2D, layers.GlobalAveragePooling2D),
)
# Of a version of control groups, by its name in /proc/self/cgroup: folder, limit, usage, what of it can be dropped.
CONTROL_GROUPS = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


@dataclass(eq=False)  # two calls of a shared layer give two
class Activation:
    """A tensor between two layers; `size` in bytes for one image."""

    size: int


@dataclass(frozen=True)
class Call:
    layer: keras.Operation
    inputs: list[Activation]
    outputs: list[Activation]


def estimate(model: keras.Model, batch: int) -> int:
    """Bytes that one device needs for a training step on `batch` images: linear in `batch`.

    Weights, and for trainable ones a gradient and Adam's two moments; the images as uint8 and as the network takes
    them; activations until the backward pass has used them, or until the last layer that takes them where no gradient
    flows (a frozen backbone); gradients of activations.

    Nothing is added for what kernels work in. tests/bench/bench_memory.py finds 0.73 to 1.42 of a measured step on a
    CPU in float32, and 0.90 to 1.25 of those above 100 MiB; with XLA, as on a single GPU, 0.77 to 1.34, but half for a
    frozen MobileNet. In half precision without XLA, batch normalisation works on float32 copies that are not here:
    0.5 to 0.9. A vision transformer (vit_tiny) is at 0.99 to 1.03 when trained and 1.22 to 1.28 when frozen, trained
    with XLA at 1.17. No GPU was measured.

    Raises
    ------
    ValueError
        For a model without a graph (a subclass of keras.Model), or whose images have no fixed size.
    """
    return bytes_of_weights(model) + batch * bytes_of_image(model)


def largest_batch(model: keras.Model, free: int) -> int:
    """The most images whose `estimate` is at most `free` bytes; 0 where not even one fits.

    Raises
    ------
    ValueError
        As `estimate` does.
    """
    return max(0, (free - bytes_of_weights(model)) // bytes_of_image(model))


def bytes_of_weights(model: keras.Model) -> int:
    """Weights, gradients and moments: what does not grow with the batch."""
    trainable = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    return GRADIENT_AND_MOMENTS * trainable + sum(size(weight.shape, weight.dtype) for weight in model.weights)


def bytes_of_image(model: keras.Model) -> int:
    """An image, and what each further image adds to the largest sum of activations and gradients."""
    network = graph(model)
    images = [activation(tensor) for tensor in network.inputs]
    stored = sum(size(tensor.shape[1:], "uint8") for tensor in network.inputs)
    calls = list(flatten(network, images))
    return stored + sum(image.size for image in images) + peak(lifetimes(calls))


def graph(model: keras.Model) -> keras.Function:
    network = getattr(model, "_functional", None) or model  # keras.Sequential wraps one
    if not isinstance(network, keras.Function):
        raise ValueError(f"the memory of {model.name} cannot be estimated: {type(model)} is not a functional model")
    return network


def activation(tensor: keras.KerasTensor) -> Activation:
    shape = tensor.shape[1:]
    if None in shape:
        raise ValueError(f"the memory of {tensor.name} cannot be estimated: its size is open, {tensor.shape}")
    return Activation(size(shape, tensor.dtype))


def size(shape: Sequence[int], dtype: str) -> int:
    return math.prod(shape) * tf.as_dtype(dtype).size


def flatten(network: keras.Function, inputs: Sequence[Activation]) -> Generator[Call, None, list[Activation]]:
    """The calls of all layers in Keras's order, nested models taken apart; returns the network's outputs."""
    known = dict(zip(map(id, network.inputs), inputs, strict=True))
    for depth in sorted(network._nodes_by_depth, reverse=True):
        for node in network._nodes_by_depth[depth]:
            if node.is_input:
                continue
            taken = [known[id(tensor)] for tensor in node.input_tensors]
            if isinstance(node.operation, keras.Model):
                given = yield from flatten(graph(node.operation), taken)
            else:
                given = [activation(tensor) for tensor in node.outputs]
                yield from steps(node, taken, given)
            known.update(zip(map(id, node.outputs), given, strict=True))
    return [known[id(tensor)] for tensor in network.outputs]


def steps(node: Any, taken: list[Activation], given: list[Activation]) -> Iterable[Call]:
    """A layer's call, taken apart where it keeps more than it takes and gives."""
    layer = node.operation
    if isinstance(layer, layers.MultiHeadAttention):
        return steps_of_attention(node, taken, given)
    if getattr(layer, "activation", None) is keras.activations.gelu and isinstance(layer, layers.Activation):
        scaled, error, half = (Activation(each.size) for each in given * 3)  # x / √2, 1 + erf(x / √2), x / 2
        product = Call(layer, [error, half], given)
        return [Call(layer, taken, [scaled]), Call(layer, [scaled], [error]), Call(layer, taken, [half]), product]
    return [Call(layer, taken, given)]


def steps_of_attention(node: Any, taken: list[Activation], given: list[Activation]) -> Iterator[Call]:
    """What is computed within layers.MultiHeadAttention: most of it are the scores, heads x tokens x tokens."""
    layer, (queries, keys) = node.operation, (tensor.shape[1] for tensor in node.input_tensors[:2])
    heads, dtype = layer.num_heads, layer.compute_dtype
    query, key = (Activation(size((tokens, heads, layer.key_dim), dtype)) for tokens in (queries, keys))
    value, mixed = (Activation(size((tokens, heads, layer.value_dim), dtype)) for tokens in (keys, queries))
    scores = Activation(size((heads, queries, keys), "float32"))
    shares = Activation(size((heads, queries, keys), dtype))
    yield Call(layer, taken, [query, key, value])
    yield Call(layer, [query, key], [scores])
    yield Call(layers.Softmax(), [scores], [shares])
    yield Call(layer, [shares, value], [mixed])
    yield Call(layer, [mixed], given)


def lifetimes(calls: Sequence[Call]) -> Iterator[tuple[int, int, int]]:
    """(bytes, first step, last step) of every activation but the images, and of its gradient.

    Of n calls, call i is step i of the forward pass and step 2n - 1 - i of the backward pass.
    """
    end = 2 * len(calls) - 1
    made: dict[Activation, int] = {}
    taken: dict[Activation, int] = {}
    needed: dict[Activation, int] = {}
    differentiated: set[Activation] = set()
    for step, call in enumerate(calls):
        made |= dict.fromkeys(call.outputs, step)
        taken |= dict.fromkeys(call.inputs + call.outputs, step)
        if getattr(call.layer, "trainable_weights", ()) or not differentiated.isdisjoint(call.inputs):
            differentiated.update(call.outputs)
            needed = dict.fromkeys(sources(call), end - step) | needed  # the first call's backward pass is the last
    for each, step in made.items():
        yield each.size, step, max(taken[each], needed.get(each, 0))
        if each in differentiated:
            yield each.size, end - taken[each], end - step


def sources(call: Call) -> list[Activation]:
    """What the gradient of a layer is computed from."""
    function = getattr(call.layer, "activation", None)
    if isinstance(call.layer, FROM_NOTHING):
        return []
    if isinstance(call.layer, FROM_INPUT) and function in (None, keras.activations.linear):
        return call.inputs
    if isinstance(call.layer, layers.ReLU | layers.Activation | layers.Softmax) and function in (
        None,
        keras.activations.relu,
    ):
        return call.outputs
    return call.inputs + call.outputs


def peak(spans: Iterable[tuple[int, int, int]]) -> int:
    """The largest sum of sizes that are alive in one step."""
    changes: Counter[int] = Counter()
    for amount, first, last in spans:
        changes[first] += amount
        changes[last + 1] -= amount
    return max(accumulate(changes[step] for step in sorted(changes)), default=0)


def free_memory() -> int:
    """Bytes that the process may still use, on the smallest of the devices that train.

    Of a GPU, TensorFlow's limit less what its tensors take; the limit is nearly all that was free on the GPU when
    TensorFlow began to use it. Where only CPUs train they share what the machine has left, or the control group that
    the process is confined to. Weights that stand already are in `estimate` too.
    """
    # With the settings of this process, else others' devices would be set up; a GPU in use keeps the limit it has.
    devices = device_lib.list_local_devices(context.context().config)
    gpus = [device for device in devices if device.device_type == "GPU"]
    if not gpus:
        return host_memory() // sum(device.device_type == "CPU" for device in devices)
    return min(gpu.memory_limit - tf.config.experimental.get_memory_info(gpu.name)["current"] for gpu in gpus)


def host_memory() -> int:
    """Bytes that this process may still take of the machine's memory."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():  # macOS: all there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = next(int(line.split()[1]) for line in meminfo.read_text().splitlines() if "MemAvailable" in line)
    return min(1024 * available, *control_group_memory(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup").read_text()))


def control_group_memory(root: Path, membership: str) -> Iterator[int]:
    """Bytes left in every control group with a limit that the process is in, those around it included.

    `membership` is /proc/self/cgroup. Files that the kernel caches count as left: it drops them when memory is short.
    """
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in CONTROL_GROUPS:
            continue
        folder, limit, usage, cache = CONTROL_GROUPS[controllers]
        for group in (Path(path), *Path(path).parents):
            at = root / folder / group.relative_to("/")
            if (at / limit).is_file() and (most := (at / limit).read_text().strip()) != "max":
                statistics = dict(line.split() for line in (at / "memory.stat").read_text().splitlines())
                yield int(most) - int((at / usage).read_text()) + int(statistics[cache])
