"""YOLOX-nano in NumPy: a picture of 416 x 416 pixels -> the most probable box of its one class.

The network (Ge et al. 2021, arXiv 2107.08430) with which the winner of the RSNA challenge finds the breast: the
backbone CSPDarknet with depthwise convolutions, a neck that joins its three resolutions in both directions, and a head
that predicts box, objectness and class for every cell of each. Layers have the names of the reference's modules, so
that its published tensors are found by name.

It is written in NumPy because worker processes read files without TensorFlow, whose import would take seconds and half
a gigabyte in each of them.
Feature maps are float32 (rows, columns, channels).
"""

from collections.abc import Mapping
from functools import cache, partial

import numpy as np
from threadpoolctl import ThreadpoolController

from rsna_nb.dicom.errors import DetectorError

SIDE = 416  # of the picture, in pixels
STRIDES = (8, 16, 32)  # pixels for each cell of the three outputs
STAGES = {2: (32, 1), 3: (64, 3), 4: (128, 3), 5: (256, 1)}  # stage of the backbone -> channels, bottlenecks
HEAD = 64  # channels of the head
PREDICTIONS = {"reg": 4, "obj": 1, "cls": 1}  # box, objectness and class
EPSILON = 1e-3  # of BatchNorm, in the reference's nano model
NORM = ("weight", "bias", "running_mean", "running_var")

Shapes = dict[str, tuple[int, ...]]


class Yolox:
    """A network with its weights, which finds the most probable box in a picture.

    Parameters
    ----------
    tensors
        Arrays by the names of the reference's state dict, in PyTorch's order of axes. Batch counters are ignored.

    Raises
    ------
    DetectorError
        If tensors are missing, superfluous, of another shape or not finite. The message names them.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        tensors = {name: each for name, each in tensors.items() if not name.endswith(".num_batches_tracked")}
        check_tensors(tensors)
        self._layers = dict(
            _folded(name, tensors) for name in tensors if name.endswith("weight") and ".bn." not in name
        )

    def best_box(self, picture: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the most probable box (x_min, y_min, x_max, y_max) in pixels, and its confidence in 0-1.

        Non-maximum suppression always keeps the most probable box. Only this box is used, so there is no suppression.
        """
        found = self.outputs(picture)
        confidence = found[:, 4] * found[:, 5]
        best = int(np.argmax(confidence))
        cell, stride = _cells()[best], _strides()[best]
        centre = (found[best, :2] + cell) * stride
        half = np.exp(np.minimum(found[best, 2:4], 50)) * stride / 2  # e^50 is outside of any picture
        return np.concatenate([centre - half, centre + half]), float(confidence[best])

    def outputs(self, picture: np.ndarray) -> np.ndarray:
        """Compute the outputs of the network.

        Parameters
        ----------
        picture
            float32 (416, 416), 0 to 255: one of three equal channels.

        Returns
        -------
        float32 (3549, 6), a row for each cell, the finest stride first: x and y of the box's centre from the cell in
        cells, logarithms of its width and height in cells, objectness in 0-1 and probability of the class in 0-1.
        """
        # The matrices are small: several threads gain little on idle cores, and take 20 times as long on busy ones.
        with _threads().limit(limits=1):
            return self._outputs(picture)

    def _outputs(self, picture: np.ndarray) -> np.ndarray:
        x = self._unit("backbone.backbone.stem.conv", _focus(picture))
        stages = []
        for stage, (_, depth) in STAGES.items():
            name = f"backbone.backbone.dark{stage}"
            x = self._separable(f"{name}.0", x, stride=2)
            if stage == max(STAGES):
                x = self._unit(f"{name}.1.conv2", _pooled(self._unit(f"{name}.1.conv1", x)))
                x = self._csp(f"{name}.2", x, depth, shortcut=False)
            else:
                x = self._csp(f"{name}.1", x, depth, shortcut=True)
            stages.append(x)
        return np.concatenate([self._predictions(level, x) for level, x in enumerate(self._neck(*stages[1:]))])

    def _neck(self, fine: np.ndarray, middle: np.ndarray, coarse: np.ndarray) -> tuple[np.ndarray, ...]:
        """Join the three resolutions from coarse to fine, and back."""
        low = self._unit("backbone.lateral_conv0", coarse)
        x = self._csp("backbone.C3_p4", _joined(_doubled(low), middle))
        mid = self._unit("backbone.reduce_conv1", x)
        first = self._csp("backbone.C3_p3", _joined(_doubled(mid), fine))
        second = self._csp("backbone.C3_n3", _joined(self._separable("backbone.bu_conv2", first, 2), mid))
        third = self._csp("backbone.C3_n4", _joined(self._separable("backbone.bu_conv1", second, 2), low))
        return first, second, third

    def _predictions(self, level: int, x: np.ndarray) -> np.ndarray:
        """Return the outputs of one stride, (cells, 6)."""
        x = self._unit(f"head.stems.{level}", x)
        features = {}
        for branch in ("cls", "reg"):
            features[branch] = x
            for i in range(2):
                features[branch] = self._separable(f"head.{branch}_convs.{level}.{i}", features[branch])
        features["obj"] = features["reg"]
        box, objectness, probability = (
            convolve(features[kind], *self._layers[f"head.{kind}_preds.{level}"]).reshape(-1, size)
            for kind, size in PREDICTIONS.items()
        )
        return np.concatenate([box, _sigmoid(objectness), _sigmoid(probability)], axis=1)

    def _csp(self, name: str, x: np.ndarray, depth: int = 1, shortcut: bool = False) -> np.ndarray:
        """Cross-stage partial layer: half of the channels pass through bottlenecks, half do not."""
        inner = self._unit(f"{name}.conv1", x)
        for i in range(depth):
            changed = self._separable(f"{name}.m.{i}.conv2", self._unit(f"{name}.m.{i}.conv1", inner))
            inner = inner + changed if shortcut else changed
        return self._unit(f"{name}.conv3", _joined(inner, self._unit(f"{name}.conv2", x)))

    def _separable(self, name: str, x: np.ndarray, stride: int = 1) -> np.ndarray:
        """Depthwise convolution, then one of 1 x 1."""
        return self._unit(f"{name}.pconv", self._unit(f"{name}.dconv", x, stride))

    def _unit(self, name: str, x: np.ndarray, stride: int = 1) -> np.ndarray:
        """Convolution with its BatchNorm, and SiLU."""
        x = convolve(x, *self._layers[name], stride)
        return x * _sigmoid(x)


@cache  # finding the libraries takes milliseconds
def _threads() -> ThreadpoolController:
    """Return the controller of the threads of NumPy's matrix products."""
    return ThreadpoolController()


def convolve(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, stride: int = 1) -> np.ndarray:
    """Convolve a map with zeros around it.

    Parameters
    ----------
    x
        float32 (rows, columns, channels); both sides divide by the stride.
    kernel
        (height, width, channels) of a depthwise convolution, or (height, width, channels, outputs).
    bias
        (outputs,).
    """
    side, rows, columns = kernel.shape[0], x.shape[0] // stride, x.shape[1] // stride
    multiply = np.multiply if kernel.ndim == 3 else partial(np.tensordot, axes=1)
    if side > 1:
        x = np.pad(x, ((side // 2,) * 2, (side // 2,) * 2, (0, 0)))
    found = np.tile(bias, (rows, columns, 1))
    for i, j in np.ndindex(side, side):
        found += multiply(x[i : i + rows * stride : stride, j : j + columns * stride : stride], kernel[i, j])
    return found


def _folded(name: str, tensors: Mapping[str, np.ndarray]) -> tuple[str, tuple[np.ndarray, np.ndarray]]:
    """Return the name of a layer, and its kernel and bias with the BatchNorm that follows folded into them."""
    kernel, layer = np.asarray(tensors[name], np.float64), name.removesuffix(".weight")
    if layer.startswith("head.") and "_preds." in layer:
        bias = np.asarray(tensors[f"{layer}.bias"], np.float64)
    else:
        layer = layer.removesuffix(".conv")
        gamma, beta, mean, variance = (np.asarray(tensors[f"{layer}.bn.{part}"], np.float64) for part in NORM)
        scale = gamma / np.sqrt(variance + EPSILON)
        kernel, bias = kernel * scale[:, None, None, None], beta - mean * scale
    if layer == "backbone.backbone.stem.conv":  # of four pixels with three channels each, which are equal here
        kernel = kernel.reshape(len(kernel), 4, 3, *kernel.shape[2:]).sum(axis=2)
    outputs_last = kernel[:, 0].transpose(1, 2, 0) if layer.endswith(".dconv") else kernel.transpose(2, 3, 1, 0)
    return layer, (np.ascontiguousarray(outputs_last, np.float32), bias.astype(np.float32))


def _focus(picture: np.ndarray) -> np.ndarray:
    """Return each 2 x 2 square of pixels as four channels: upper left, lower left, upper right, lower right."""
    return np.stack([picture[::2, ::2], picture[1::2, ::2], picture[::2, 1::2], picture[1::2, 1::2]], axis=-1)


def _pooled(x: np.ndarray) -> np.ndarray:
    """Join a map and its maxima over squares of side 5, 9 and 13. Pooling with side 5 twice equals side 9."""
    maps = [x]
    for _ in range(3):
        padded = np.pad(maps[-1], ((2, 2), (2, 2), (0, 0)), constant_values=-np.inf)
        rows = np.max([padded[i : i + x.shape[0]] for i in range(5)], axis=0)
        maps.append(np.max([rows[:, i : i + x.shape[1]] for i in range(5)], axis=0))
    return _joined(*maps)


def _doubled(x: np.ndarray) -> np.ndarray:
    return x.repeat(2, axis=0).repeat(2, axis=1)


def _joined(*maps: np.ndarray) -> np.ndarray:
    return np.concatenate(maps, axis=-1)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # e^100 is infinity in float32, and the sigmoid 0
        return 1 / (1 + np.exp(-x))


def _cells() -> np.ndarray:
    """Return (x, y) of every cell in the order of the outputs, (3549, 2)."""
    return np.concatenate([np.indices((SIDE // stride,) * 2)[::-1].reshape(2, -1).T for stride in STRIDES])


def _strides() -> np.ndarray:
    """Return the stride of every cell, (3549,)."""
    return np.repeat(STRIDES, [(SIDE // stride) ** 2 for stride in STRIDES])


def check_tensors(tensors: Mapping[str, np.ndarray]) -> None:
    """Raise `DetectorError` unless the tensors are those of the network, and finite."""
    expected, given = expected_shapes(), {name: np.shape(each) for name, each in tensors.items()}
    faults = {
        "missing": [f"{name} {expected[name]}" for name in expected if name not in given],
        "superfluous": [f"{name} {given[name]}" for name in given if name not in expected],
        "of another shape": [
            f"{name} {given[name]} instead of {expected[name]}"
            for name in given
            if name in expected and given[name] != expected[name]
        ],
        "not finite": [name for name in given if name in expected and not np.isfinite(tensors[name]).all()],
    }
    if any(faults.values()):
        words = (f"{len(names)} {fault}: {', '.join(names[:3])}" for fault, names in faults.items() if names)
        raise DetectorError(f"the tensors are not those of a YOLOX-nano with one class: {'; '.join(words)}")


def expected_shapes() -> Shapes:
    """Return the shape of each of the network's tensors in PyTorch's order of axes, by its name."""
    fine, middle, coarse = (channels for channels, _ in list(STAGES.values())[1:])
    shapes = _unit_shapes("backbone.backbone.stem.conv", 16, 12, 3)
    for stage, (channels, depth) in STAGES.items():
        name, last = f"backbone.backbone.dark{stage}", stage == max(STAGES)
        shapes |= _separable_shapes(f"{name}.0", channels, channels // 2)
        shapes |= _csp_shapes(f"{name}.{2 if last else 1}", channels, channels, depth)
    shapes |= _unit_shapes("backbone.backbone.dark5.1.conv1", coarse // 2, coarse)
    shapes |= _unit_shapes("backbone.backbone.dark5.1.conv2", coarse, 2 * coarse)
    shapes |= _unit_shapes("backbone.lateral_conv0", middle, coarse) | _csp_shapes("backbone.C3_p4", middle, coarse)
    shapes |= _unit_shapes("backbone.reduce_conv1", fine, middle) | _csp_shapes("backbone.C3_p3", fine, middle)
    shapes |= _separable_shapes("backbone.bu_conv2", fine, fine) | _csp_shapes("backbone.C3_n3", middle, middle)
    shapes |= _separable_shapes("backbone.bu_conv1", middle, middle) | _csp_shapes("backbone.C3_n4", coarse, coarse)
    for level, channels in enumerate((fine, middle, coarse)):
        shapes |= _unit_shapes(f"head.stems.{level}", HEAD, channels)
        for branch in ("cls_convs", "reg_convs"):
            shapes |= _separable_shapes(f"head.{branch}.{level}.0", HEAD, HEAD)
            shapes |= _separable_shapes(f"head.{branch}.{level}.1", HEAD, HEAD)
        for kind, outputs in PREDICTIONS.items():
            name = f"head.{kind}_preds.{level}"
            shapes |= {f"{name}.weight": (outputs, HEAD, 1, 1), f"{name}.bias": (outputs,)}
    return shapes


def _unit_shapes(name: str, outputs: int, inputs: int, side: int = 1) -> Shapes:
    return {f"{name}.conv.weight": (outputs, inputs, side, side)} | {f"{name}.bn.{part}": (outputs,) for part in NORM}


def _separable_shapes(name: str, outputs: int, inputs: int) -> Shapes:
    return _unit_shapes(f"{name}.dconv", inputs, 1, 3) | _unit_shapes(f"{name}.pconv", outputs, inputs)


def _csp_shapes(name: str, outputs: int, inputs: int, depth: int = 1) -> Shapes:
    half = outputs // 2
    shapes = _unit_shapes(f"{name}.conv1", half, inputs) | _unit_shapes(f"{name}.conv2", half, inputs)
    for i in range(depth):
        shapes |= _unit_shapes(f"{name}.m.{i}.conv1", half, half) | _separable_shapes(f"{name}.m.{i}.conv2", half, half)
    return shapes | _unit_shapes(f"{name}.conv3", outputs, outputs)
