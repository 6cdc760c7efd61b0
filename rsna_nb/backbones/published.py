"""Which network a file of published weights belongs to, and how this network's input is scaled.

Networks whose tensors have the same names and shapes can differ in padding, epsilon or the scaling of the input. timm
publishes these in a config.json beside the file. Without it the file's name decides, or a default is assumed; each
guess is logged as a warning.
"""

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from rsna_nb.backbones.scaling import IMAGENET
from rsna_nb.backbones.weights import WeightsError, load_weights

log = logging.getLogger(__name__)

Colour = tuple[float, float, float]
HALF = (0.5,) * 3
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# What the names of some of timm's files contain -> mean and deviation, where they differ from those of their family.
NAMED_SCALES = {
    r"[._]ap[._-]|[._]ra4_|^tf_efficientnetv2_b3\.in21k": (HALF, HALF),
    r"^deit_|^efficientnet_lite|^efficientnetv2_|(^|[._])(dino|mae)[._-]": IMAGENET,
    r"[._]clip_|^vit_.*[._]bamboo": CLIP,
    r"_miil[._-]": ((0.0,) * 3, (1.0,) * 3),
}


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
        What is assumed if neither config.json nor the file's name says it. A name says the scale only if timm has a
        variant of that name.

    Raises
    ------
    WeightsError
        If config.json is damaged or names another network.
    """
    config = _config_beside(path)
    named = re.match(rf"({pattern})(?![a-z])", path.stem)
    architecture = config.get("architecture") or (named[1] if named else assumed.architecture)
    if not re.fullmatch(pattern, architecture):
        raise WeightsError(
            f"config.json beside it says {architecture}, which is another network: choose its backbone, or move the "
            "file if config.json belongs to another one"
        )
    named_scales = (scale for name, scale in NAMED_SCALES.items() if re.search(name, path.name))
    mean, deviation = next(named_scales, (assumed.mean, assumed.deviation))
    given = config | (config.get("pretrained_cfg") or {})
    if is_given := {"mean", "std"} <= given.keys():
        mean, deviation = tuple(given["mean"]), tuple(given["std"])
    source = "as config.json says" if config else "as its name says" if named else "an assumption"
    text = f"{path.name}: read as {architecture} ({source}), with mean {mean} and deviation {deviation} of its input"
    if is_given:
        log.info(text)
    else:
        log.warning("%s assumed, because no config.json of timm beside it says so", text)
    return Origin(architecture, mean, deviation)


def _config_beside(path: Path) -> dict[str, Any]:
    """Read the config.json beside a weights file; {} if there is none or it is not timm's.

    Its values of interest are "architecture", and "mean" and "std" of the input, at the top or in "pretrained_cfg".
    """
    try:
        content = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError as error:
        raise WeightsError(f"config.json beside it is damaged ({error}): mend or remove it") from error
    return content if isinstance(content, dict) and "architecture" in content else {}


def load_saved(network: keras.Model, path: Path) -> None:
    """Load a file that Keras saved of a network that was built here; the input is scaled as in `network`."""
    load_weights(network, path)
    log.warning(
        "%s: a file of Keras does not say how the input is scaled; scale and offset %s are assumed",
        *(path.name, scaling_in(network)),
    )


def scaling_in(network: keras.Model) -> tuple:
    """Return the (scale, offset) of the input of a network that was built here."""
    layer = network.get_layer("scaling")
    return layer.scale, layer.offset
