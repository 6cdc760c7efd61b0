"""Loads tensors that were saved under PyTorch's names and in PyTorch's order of axes into a Keras network.

The network's layers have the names of the reference's modules, so each variable finds its tensor by name. Every tensor
is used once; what is missing, superfluous or of another shape is an error that names it.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
from keras import layers
from safetensors import SafetensorError
from safetensors.numpy import load_file

from rsna_nb.backbones.checkpoint import read_tensors
from rsna_nb.backbones.weights import Shape, WeightsError, differences, load_weights
from rsna_nb.system import DamagedFileError, read_arrays

log = logging.getLogger(__name__)

ENDINGS = (".pth", ".pt", ".tar", ".safetensors", ".npz")


def load_tensors(
    network: keras.Model,
    path: Path,
    not_used: Sequence[str] = (),
    hint: Callable[[Mapping[str, Shape]], str] = lambda shapes: "",
) -> None:
    """Load a file of named tensors, or a file that Keras saved of this network.

    Parameters
    ----------
    network
        A network whose layers have the reference's names.
    path
        .pth, .pt, .tar (as `torch.save` writes them), .safetensors or .npz; other files are read as Keras's own.
    not_used
        Beginnings of the names of tensors that the network does without, such as those of the classifier. Counters of
        batches are never used.
    hint
        Ends the message if the tensors do not fit; it is given their shapes by name.

    Raises
    ------
    WeightsError
        If the file cannot be read, or its tensors are not those of the network.
    """
    if path.suffix not in ENDINGS:
        load_weights(network, path)
        return
    tensors = read(path)
    variables = reference_tensors(network)
    unused = [name for name in tensors if name.startswith(tuple(not_used)) or name.endswith(".num_batches_tracked")]
    expected = {
        name: tuple(variable.shape[axes.index(axis)] for axis in range(len(axes)))
        for name, (variable, axes) in variables.items()
    }
    given = {name: each.shape for name, each in tensors.items() if name not in unused}
    if faults := differences(expected, given):
        raise WeightsError(f"{faults}{hint(given)}")
    for name, (variable, axes) in variables.items():
        variable.assign(tensors[name].transpose(axes))
    log.info("%s: %d tensors loaded; not used: %s", path.name, len(variables), ", ".join(unused) or "none")


def read(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a file by name; `WeightsError` if it cannot be read."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return read_arrays(path) if path.suffix == ".npz" else read_tensors(path)
    except (SafetensorError, DamagedFileError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"the file cannot be read ({error})") from error


def reference_tensors(network: keras.Model) -> dict[str, tuple[keras.Variable, tuple[int, ...]]]:
    """Map the reference's name of every tensor to our variable and PyTorch's axes in the order of the variable's."""
    found: dict[str, tuple[keras.Variable, tuple[int, ...]]] = {}
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
