"""A name -> a network that carries its own preprocessing: grey (height, width, 1) in 0-1 -> a feature map.

Every network of keras.applications, keras-hub's vision transformers (vit.py), the five sizes of YOLO11 (yolo11.py),
and a small one to be trained from scratch.
"""

import difflib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
from keras import applications, layers

from rsna_nb.backbones import presets, yolo11
from rsna_nb.backbones.pretrained import SCALINGS, Scaling, WeightsError, explained_download, scaled_colour
from rsna_nb.backbones.vit import TRANSFORMERS

FAMILIES = {
    "tf": "InceptionResNetV2 InceptionV3 MobileNet MobileNetV2 NASNetLarge NASNetMobile "
    "ResNet50V2 ResNet101V2 ResNet152V2 Xception",
    "torch": "DenseNet121 DenseNet169 DenseNet201",
    "caffe": "ResNet50 ResNet101 ResNet152 VGG16 VGG19",
    "bytes": "ConvNeXtTiny ConvNeXtSmall ConvNeXtBase ConvNeXtLarge ConvNeXtXLarge "
    "EfficientNetB0 EfficientNetB1 EfficientNetB2 EfficientNetB3 EfficientNetB4 EfficientNetB5 EfficientNetB6 "
    "EfficientNetB7 EfficientNetV2B0 EfficientNetV2B1 EfficientNetV2B2 EfficientNetV2B3 EfficientNetV2S "
    "EfficientNetV2M EfficientNetV2L MobileNetV3Small MobileNetV3Large",
}


@dataclass(frozen=True)
class Backbone:
    """`build(shape, weights, synchronized)` returns the network.

    `imagenet` says whether such weights are published, and `instead` what to do where they are not; `preset` says
    whether weights may be a preset's folder.
    """

    build: Callable[[tuple[int, int], str | None, bool], keras.Model]
    imagenet: bool = True
    preset: bool = False
    instead: str = 'set weights to "none" or to a file'


def of_applications(name: str, scaling: Scaling) -> Backbone:
    """A network of keras.applications behind its own scaling."""

    def build(shape: tuple[int, int], weights: str | None, synchronized: bool) -> keras.Model:
        image = keras.Input((*shape, 1), name="image")
        network = getattr(applications, name)(include_top=False, weights=weights, input_shape=(*shape, 3))
        return keras.Model(image, network(scaled_colour(image, scaling)), name="backbone")

    return Backbone(build)


def build_small(shape: tuple[int, int], weights: str | None, synchronized: bool) -> keras.Model:
    """A residual network of 0.17 million parameters, for training from scratch on a laptop; no ImageNet weights."""
    image = keras.Input((*shape, 1), name="image")

    def convolution(x: keras.KerasTensor, name: str, filters: int, size: int, stride: int = 1) -> keras.KerasTensor:
        x = layers.Conv2D(filters, size, stride, padding="same", use_bias=False, name=f"{name}_conv")(x)
        x = layers.BatchNormalization(momentum=0.9, synchronized=synchronized, name=f"{name}_bn")(x)
        return layers.ReLU(name=f"{name}_relu")(x)

    x = convolution(image, "stage_0", 16, 5, 2)
    for stage, filters in enumerate((24, 48, 96), 1):
        x = convolution(x, f"stage_{stage}_down", filters, 3, 2)
        x = layers.Add(name=f"stage_{stage}_add")([x, convolution(x, f"stage_{stage}_same", filters, 3)])
    network = keras.Model(image, x, name="backbone")
    if weights:
        network.load_weights(weights)
    return network


BACKBONES: dict[str, Backbone] = {"small": Backbone(build_small, imagenet=False)}
BACKBONES |= {
    name.lower(): of_applications(name, SCALINGS[scaling])
    for scaling, names in FAMILIES.items()
    for name in names.split()
}
BACKBONES |= {
    f"yolo11{size}": Backbone(partial(yolo11.build, size), imagenet=False, instead=yolo11.EXPORTED)
    for size in yolo11.SCALES
}
BACKBONES |= {
    name: Backbone(partial(presets.build, name), imagenet=bool(transformer.preset), preset=True)
    for name, transformer in TRANSFORMERS.items()
}


def build_backbone(
    name: str, img_size: int | list[int] | tuple[int, int], weights: str = "imagenet", synchronized: bool = False
) -> keras.Model:
    """A network from a grey picture in 0-1, (height, width, 1), to its last feature map, (h, w, channels).

    Parameters
    ----------
    name
        A key of `BACKBONES`.
    img_size
        Side of a square or (height, width), in pixels.
    weights
        "imagenet" (what Keras or keras-hub publishes, from their caches, downloaded when it is missing), "none" or
        the path of a weights file made for the network without its top, as Keras publishes them; for a vision
        transformer also of a preset's folder, as keras-hub's `save_to_preset` writes it, and for YOLO11 of a file that
        was exported from Ultralytics' (see `yolo11`).
    synchronized
        Whether batch normalisation takes its statistics over all replicas, where several train together; the small
        network and YOLO11 have the choice, those of keras.applications take each replica's own.

    Raises
    ------
    ValueError
        For a name that is not in the registry.
    WeightsError
        For weights that do not exist, cannot be downloaded, or do not fit.
    """
    if name not in BACKBONES:
        close = difflib.get_close_matches(name, BACKBONES, n=3)
        raise ValueError(
            f"backbone {name} is not known; the nearest names are {', '.join(close) or ', '.join(BACKBONES)}"
        )
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    build = BACKBONES[name].build
    if weights == "none":
        return build((height, width), None, synchronized)
    if weights == "imagenet":
        if not BACKBONES[name].imagenet:
            raise WeightsError(f"backbone {name} has no ImageNet weights: {BACKBONES[name].instead}")
        with explained_download():
            return build((height, width), "imagenet", synchronized)
    path = Path(weights)
    if not path.exists():
        raise WeightsError(f'weights {weights}: no such file; give "imagenet", "none" or the path of a weights file')
    if path.is_dir() and not BACKBONES[name].preset:
        raise WeightsError(f"weights {weights} is a folder, and backbone {name} wants a weights file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Keras only warns of layers that it finds no weights for
            return build((height, width), str(path), synchronized)
    except (ValueError, OSError, KeyError, UserWarning) as error:
        raise WeightsError(f"weights {weights} do not fit backbone {name}: {error}") from error
