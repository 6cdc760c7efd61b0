"""Which network a file of published weights belongs to, and how this network's input is scaled.

Networks whose tensors have the same names and shapes can differ in padding, epsilon or the scaling of the input. timm
publishes these in a config.json beside the file. Without it the file's name decides, or a default is assumed; each
guess is logged as a warning.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from rsna_nb.backbones.parts import Parts, head_targets
from rsna_nb.backbones.tensors import Target, assign_tensors, published_config
from rsna_nb.backbones.weights import WeightsError

log = logging.getLogger(__name__)

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Origin:
    """The network that a file belongs to.

    Parameters
    ----------
    architecture
        timm's name of the network, in full as far as it is known.
    mean, deviation
        For each channel, of images in 0-1: the network receives (image - mean) / deviation.
    """

    architecture: str
    mean: Colour
    deviation: Colour


def origin_of(path: Path, pattern: str, assumed: Origin) -> Origin:
    """Find out which network a file of tensors belongs to.

    Parameters
    ----------
    path
        The file. timm's config.json may lie beside it.
    pattern
        Regular expression of timm's names of the networks that can be built here.
    assumed
        What is assumed if neither config.json nor the file's name says it.

    Raises
    ------
    WeightsError
        If config.json names another network.
    """
    config = published_config(path)
    named = re.match(rf"({pattern})(?![a-z])", path.name)
    architecture = config.get("architecture") or (named[1] if named else assumed.architecture)
    if not re.fullmatch(pattern, architecture):
        raise WeightsError(
            f"config.json beside it says {architecture}, which is another network: choose its backbone, or move the "
            "file if config.json belongs to another one"
        )
    scale = config | (config.get("pretrained_cfg") or {})
    if {"mean", "std"} <= scale.keys():
        origin = Origin(architecture, tuple(scale["mean"]), tuple(scale["std"]))
    else:
        origin = Origin(architecture, assumed.mean, assumed.deviation)
    source = "as config.json says" if config else "as its name says" if named else "an assumption"
    text = f"{path.name}: read as {architecture} ({source}), with mean {origin.mean} and deviation {origin.deviation}"
    if config:
        log.info("%s of its input", text)
    else:
        log.warning("%s of its input assumed; to be sure, put timm's config.json beside the file", text)
    return origin


def parts_with(
    network: keras.Model,
    tensors: dict[str, np.ndarray],
    file: str,
    targets: Mapping[str, Target],
    classifier: str,
    not_used: Sequence[str] = (),
) -> Parts:
    """Load a file's tensors into a network without classifier, and keep those of a `classifier` with one output.

    Raises
    ------
    WeightsError
        If the tensors are not those of the network; the message names them.
    """
    head: dict[str, np.ndarray] = {}
    of_head = head_targets(classifier, network.output_shape[-1], head)
    assign_tensors(tensors, file, {**targets, **of_head}, [f"{classifier}.", *not_used])
    if head:
        log.warning("%s: its classifier becomes the head, valid only with the pooling of its training (avg)", file)
    return Parts(network, head=head)


def scaling_in(network: keras.Model) -> tuple:
    """Return the (scale, offset) of the input of a network that was built here."""
    layer = network.get_layer("scaling")
    return layer.scale, layer.offset
