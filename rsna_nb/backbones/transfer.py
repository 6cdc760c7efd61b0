"""Copies a trained backbone into a new one, also for images of another size."""

import re

import keras
import numpy as np

from rsna_nb.backbones.parts import Parts
from rsna_nb.backbones.vit import interpolated
from rsna_nb.backbones.weights import WeightsError

FAULTS_SHOWN = 4


def copy_weights(source: Parts, target: Parts) -> None:
    """Copy the weights of a backbone and of its norm.

    The convolutions of a network do not depend on the size of its images; a vision transformer's learned positions are
    interpolated to the new grid of patches.

    Raises
    ------
    WeightsError
        If the networks differ, or their weights depend on the size of the images.
    """
    grids = [parts.backbone.output_shape[1:3] for parts in (source, target)]
    values = []
    for variable in source.weights:
        value = np.asarray(variable)
        values.append(interpolated(value, *grids) if variable.name == "positions" else value)
    found = [(_kind(variable), value.shape) for variable, value in zip(source.weights, values, strict=True)]
    wanted = [(_kind(variable), tuple(variable.shape)) for variable in target.weights]
    if found != wanted:
        sizes = [parts.backbone.input_shape[1:3] for parts in (source, target)]
        pairs = [f"{a} is {b}, not {c}" for (a, b), (_, c) in zip(found, wanted, strict=False) if b != c]
        raise WeightsError(
            f"its backbone has other weights ({len(found)} arrays, not {len(wanted)}; "
            f"{', '.join(pairs[:FAULTS_SHOWN]) or 'of the same shapes'}). Its images have {sizes[0]} pixels and the "
            f"new ones {sizes[1]}: if the weights of this network depend on the image size, use the same img_size"
        )
    for variable, value in zip(target.weights, values, strict=True):
        variable.assign(value)


def _kind(variable: keras.Variable) -> str:
    """Return a variable's name without the number that Keras adds to names given by itself."""
    return re.sub(r"_\d+$", "", variable.name)
