"""Loads tensors that were saved under PyTorch's names and in PyTorch's order of axes into a Keras network.

Each published name has a `Target`, which assigns the tensor to the network. Every tensor is used once; tensors that are
missing, superfluous or of another shape are named in an error.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import keras
import numpy as np
from keras import layers
from safetensors import SafetensorError
from safetensors.numpy import load_file

from rsna_nb.backbones.checkpoint import read_tensors
from rsna_nb.backbones.weights import Shape, WeightsError, differences
from rsna_nb.system import SAME, DamagedFileError, read_arrays

log = logging.getLogger(__name__)

COUNTERS = ".num_batches_tracked"  # of PyTorch's batch normalisation; they are not used
ENDINGS = (".pth", ".pt", ".tar", ".safetensors", ".npz")


@dataclass(frozen=True)
class Target:
    """Where a tensor of a file goes.

    Parameters
    ----------
    shape
        The tensor's shape in the file; None stands for a side of any length.
    assign
        Assigns the tensor, whose shape has been checked, to variables of the network. It may raise `WeightsError`.
    """

    shape: tuple[int | None, ...]
    assign: Callable[[np.ndarray], object]

    @classmethod
    def of(cls, variable: keras.Variable, axes: Sequence[int]) -> Self:
        """Return the target of a tensor that equals the variable up to the order of its axes.

        `axes` are the tensor's axes in the order of the variable's.
        """
        shape = tuple(variable.shape[list(axes).index(axis)] for axis in range(len(axes)))
        return cls(shape, lambda tensor: variable.assign(tensor.transpose(axes)))


def assign_tensors(
    tensors: dict[str, np.ndarray],
    file: str,
    targets: Mapping[str, Target],
    not_used: Sequence[str] = (),
    hint: Callable[[Mapping[str, Shape]], str] = lambda shapes: "",
) -> dict[str, np.ndarray]:
    """Assign the tensors of a file to the variables of a network.

    A prefix that all the network's tensors have in the file, such as "model.", is removed.

    Parameters
    ----------
    tensors
        The file's tensors by name (`read`).
    file
        The file's name, for the log.
    targets
        The published name of every tensor, and where it goes.
    not_used
        Prefixes of the names of tensors that the network does not need, such as those of the classifier. The batch
        counters of batch normalisation are never used.
    hint
        Ends the message if the tensors do not fit; it is given their shapes by name.

    Returns
    -------
    The tensors that the network does without.

    Raises
    ------
    WeightsError
        If the tensors are not those of the network, or have values that are not finite.
    """
    tensors = _without_prefix(tensors, targets, file)
    never = (*not_used, *(name for name in tensors if name.endswith(COUNTERS)))
    unused = {name: each for name, each in tensors.items() if name not in targets and name.startswith(never)}
    given = {name: each.shape for name, each in tensors.items() if name not in unused}
    wanted = {name: _shape(target, given.get(name)) for name, target in targets.items()}
    if faults := differences(wanted, given):
        raise WeightsError(f"{faults}{hint(given)}")
    if faulty := [name for name, each in tensors.items() if not np.isfinite(each).all()]:
        raise WeightsError(f"{len(faulty)} tensors have values that are infinite or not a number, first {faulty[0]}")
    for name in given:
        targets[name].assign(tensors[name])
    others = ", ".join(f"{name} {each.shape}" for name, each in unused.items() if not name.endswith(COUNTERS))
    log.info("%s: %d tensors loaded; not in the backbone: %s", file, len(given), others or "none", extra=SAME)
    return unused


def read(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a file by name; `WeightsError` if it cannot be read."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return read_arrays(path) if path.suffix == ".npz" else read_tensors(path)
    except (SafetensorError, DamagedFileError, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise WeightsError(f"the file cannot be read ({error})") from error


def reference_targets(network: keras.Model) -> dict[str, Target]:
    """Return the targets of a network whose layers have the names of the reference's modules."""
    found: dict[str, Target] = {}
    for layer in network.layers:
        found |= layer_targets(layer, layer.name)
    return found


def layer_targets(layer: layers.Layer, name: str) -> dict[str, Target]:
    """Return the targets of one layer, which the reference calls `name`; {} if it has no weights of a known kind."""
    found: dict[str, Target] = {}
    if isinstance(layer, layers.BatchNormalization | layers.LayerNormalization):
        found[f"{name}.weight"] = Target.of(layer.gamma, [0])
    if isinstance(layer, layers.BatchNormalization):
        found[f"{name}.running_mean"] = Target.of(layer.moving_mean, [0])
        found[f"{name}.running_var"] = Target.of(layer.moving_variance, [0])
    if isinstance(layer, layers.DepthwiseConv2D):  # (channels, 1, height, width) in PyTorch
        found[f"{name}.weight"] = Target.of(layer.kernel, [2, 3, 0, 1])
    elif isinstance(layer, layers.Conv2D):  # (out, in, height, width) in PyTorch
        found[f"{name}.weight"] = Target.of(layer.kernel, [2, 3, 1, 0])
    elif isinstance(layer, layers.Dense):  # (out, in) in PyTorch
        found[f"{name}.weight"] = Target.of(layer.kernel, [1, 0])
    # Normalisation layers call it beta; a convolution without one has the bias None.
    bias = getattr(layer, "beta", None) if hasattr(layer, "beta") else getattr(layer, "bias", None)
    if found and bias is not None:
        found[f"{name}.bias"] = Target.of(bias, [0])
    return found


def _without_prefix(tensors: dict[str, np.ndarray], targets: Mapping[str, Target], file: str) -> dict[str, np.ndarray]:
    """Remove the prefix that all wanted names have in the file; tensors without it belong to other networks."""
    if targets.keys() <= tensors.keys():
        return tensors
    first = next(iter(targets))
    prefixes = [name.removesuffix(first) for name in tensors if name.endswith(f".{first}")]
    prefixes = [prefix for prefix in prefixes if all(prefix + name in tensors for name in targets)]
    if len(prefixes) > 1:
        raise WeightsError(
            f"it holds {len(prefixes)} networks, {', '.join(prefixes)}: save the one that you want in a file of its own"
        )
    if not prefixes:
        return tensors
    under = {name.removeprefix(prefixes[0]): each for name, each in tensors.items() if name.startswith(prefixes[0])}
    outside = [name for name in tensors if not name.startswith(prefixes[0])]
    shown = ", ".join(outside[:4]) + (f" and {len(outside) - 4} more" if len(outside) > 4 else "")
    log.info("%s: the names begin with %s; other tensors are not used: %s", file, prefixes[0], shown or "none")
    return under


def _shape(target: Target, found: Shape | None) -> Shape:
    """Return the shape that a target needs; sides of any length are those of the tensor found, or 0."""
    sides = found if found is not None and len(found) == len(target.shape) else (0,) * len(target.shape)
    return tuple(other if side is None else side for side, other in zip(target.shape, sides, strict=True))
