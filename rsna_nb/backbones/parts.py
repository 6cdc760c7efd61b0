"""The parts of a detector that pretrained weights may hold: the backbone, the norm after the pooling, and the head."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import keras
import numpy as np
from keras import layers

from rsna_nb.backbones.tensors import Target, assign_tensors


@dataclass(frozen=True)
class Parts:
    """A backbone, and what belongs to it after the pooling of its feature map.

    Parameters
    ----------
    backbone
        The network from (height, width, 1) to the feature map (h, w, channels).
    norm
        The layer normalisation of the pooled features, named "norm", for a family that has one there.
    head
        "kernel" (channels, 1) and "bias" (1,) of a trained last layer with one output; empty if there is none.
    """

    backbone: keras.Model
    norm: layers.LayerNormalization | None = None
    head: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def weights(self) -> list[keras.Variable]:
        """The variables of the backbone and the norm."""
        return [*self.backbone.weights, *(self.norm.weights if self.norm else [])]


def new_norm(channels: int) -> layers.LayerNormalization:
    """Make the norm of `channels` pooled features, in float32 whatever the precision of the network."""
    norm = layers.LayerNormalization(epsilon=1e-6, dtype="float32", name="norm")
    norm.build((None, channels))
    return norm


def with_tensors(
    parts: Parts, tensors: dict[str, np.ndarray], file: str, targets: Mapping[str, Target], classifier: str
) -> Parts:
    """Load a file's tensors into `parts`, with its `classifier` as their head if it has one output.

    Raises
    ------
    WeightsError
        If the tensors are not those of the network; the message names them.
    """
    unused = assign_tensors(tensors, file, targets, [f"{classifier}."])
    kernel = unused.get(f"{classifier}.weight", np.empty(0))
    bias = unused.get(f"{classifier}.bias", np.zeros(1))
    if kernel.shape != (1, parts.backbone.output_shape[-1]) or bias.shape != (1,):
        return parts
    return replace(parts, head={"kernel": kernel.T, "bias": bias})
