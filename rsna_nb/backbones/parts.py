"""The parts of a detector that pretrained weights may hold: the backbone, the norm after the pooling, and the head."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import keras
import numpy as np
from keras import layers

from rsna_nb.backbones.tensors import Target


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


def head_targets(name: str, channels: int, head: dict[str, np.ndarray]) -> dict[str, Target]:
    """Return the targets that fill `head` if the classifier `name` of a file has one output."""
    return {
        f"{name}.weight": Target((1, channels), lambda tensor: head.update(kernel=tensor.T), required=False),
        f"{name}.bias": Target((1,), partial(head.__setitem__, "bias"), required=False),
    }
