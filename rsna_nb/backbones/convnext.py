"""ConvNeXt of keras.applications, with the norm where the published networks have it: after the pooling.

A grey image (height, width, 1) in 0-1 becomes a feature map (height / 32, width / 32, channels), rounded down. Liu et
al. 2022 (arXiv:2201.03545) and timm pool this map, normalise the pooled features and classify them. Keras's network
without its classifier normalises the map itself, before any pooling; here that layer is removed, and the norm of the
pooled features gets its weights. Weights come from Keras, or from a file with timm's names, whose classifier is used
too if it has one output.
"""

import logging
import re
from contextlib import suppress
from pathlib import Path

import keras
import numpy as np
from keras import applications, layers

from rsna_nb.backbones.parts import Parts, new_norm, with_tensors
from rsna_nb.backbones.published import Origin, origin_of
from rsna_nb.backbones.scaling import IMAGENET, scaled_colour
from rsna_nb.backbones.tensors import ENDINGS, Target, layer_targets, read
from rsna_nb.backbones.weights import WeightsError, explained_download, load_weights

log = logging.getLogger(__name__)

# The end of the names of Keras's layers in a block -> timm's.
BLOCK = {
    "depthwise_conv": "conv_dw",
    "layernorm": "norm",
    "pointwise_conv_1": "mlp.fc1",
    "pointwise_conv_2": "mlp.fc2",
}


def build(name: str, height: int, width: int, weights: str | None) -> Parts:
    """Build a ConvNeXt for images of (height, width) pixels.

    Parameters
    ----------
    name
        Its name in keras.applications, such as "ConvNeXtSmall".
    height, width
        Size of the images in pixels, at least 32.
    weights
        None (random), "imagenet" (Keras's), a file with timm's names (`tensors.ENDINGS`), or a file that Keras saved of
        its network without the classifier or of this one.

    Raises
    ------
    WeightsError
        If the weights cannot be found or downloaded, or do not fit.
    """
    image = keras.Input((height, width, 1), name="image")
    published = "imagenet" if weights == "imagenet" else None
    with explained_download():
        network = getattr(applications, name)(include_top=False, weights=published, input_shape=(height, width, 3))
    of_map = network.layers[-1]
    trunk = keras.Model(network.input, of_map.input, name=network.name)
    scaled = scaled_colour(image, "bytes")
    backbone, norm = keras.Model(image, trunk(scaled), name="backbone"), new_norm(of_map.gamma.shape[0])
    if weights and Path(weights).suffix in ENDINGS:
        _check_scale(name, Path(weights))
        file, targets = Path(weights), timm_targets(trunk, norm)
        return with_tensors(Parts(backbone, norm), read(file), file.name, targets, "head.fc")
    if weights not in (None, "imagenet"):
        _load_keras(keras.Model(image, network(scaled), name="backbone"), backbone, str(weights))
    norm.set_weights(of_map.get_weights())
    return Parts(backbone, norm)


def timm_targets(trunk: keras.Model, norm: layers.LayerNormalization) -> dict[str, Target]:
    """Return the target of each of timm's tensors, except the classifier's, in Keras's network."""
    found = layer_targets(norm, "head.norm")
    for layer in trunk.layers:
        own = layer.name.removeprefix(f"{trunk.name}_")
        if own == "stem":
            found |= _inner_targets(layer, "stem")
        elif match := re.fullmatch(r"downsampling_block_(\d)", own):
            found |= _inner_targets(layer, f"stages.{int(match[1]) + 1}.downsample")
        elif match := re.fullmatch(r"stage_(\d)_block_(\d+)_(\w+)", own):
            block = f"stages.{match[1]}.blocks.{match[2]}"
            if match[3] == "layer_scale":
                found[f"{block}.gamma"] = Target.of(layer.gamma, [0])
            elif match[3] in BLOCK:
                found |= layer_targets(layer, f"{block}.{BLOCK[match[3]]}")
    return found


def _check_scale(name: str, path: Path) -> None:
    """Raise `WeightsError` if the file belongs to a network whose input is scaled differently from Keras's."""
    timm = name.lower().replace("convnext", "convnext_")
    origin = origin_of(path, rf"{timm}(?:\.\w+)?", Origin(timm, *IMAGENET))
    if not np.allclose([origin.mean, origin.deviation], IMAGENET, atol=1e-3):
        raise WeightsError(
            f"its input is scaled with mean {origin.mean} and deviation {origin.deviation}; Keras's ConvNeXt scales it "
            "with ImageNet's, so these weights cannot be used"
        )


def _inner_targets(sequence: keras.Sequential, name: str) -> dict[str, Target]:
    """Return the targets of the layers of a sequence, which PyTorch calls `name.0` and `name.1`."""
    found: dict[str, Target] = {}
    for number, layer in enumerate(sequence.layers):
        found |= layer_targets(layer, f"{name}.{number}")
    return found


def _load_keras(whole: keras.Model, backbone: keras.Model, weights: str) -> None:
    """Load a file of Keras's network, which ends with the norm, or one of the backbone without it."""
    try:
        load_weights(whole, weights)
    except WeightsError:
        with suppress(WeightsError):
            load_weights(backbone, weights)
            log.warning("%s holds no norm of the pooled features: the norm starts with gamma 1 and beta 0", weights)
            return
        raise
