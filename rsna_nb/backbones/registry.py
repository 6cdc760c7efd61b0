"""The registry of backbones: every network of keras.applications, EfficientNet-Lite (`efficientnet`), ResNet-18 and -34
(`resnet`), keras-hub's vision transformers (`vit`), the five sizes of YOLO11 (`yolo11`), and a small network for
training from scratch.
"""

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import keras
from keras import applications, layers

from rsna_nb.backbones import convnext, efficientnet, presets, resnet, yolo11
from rsna_nb.backbones.parts import Parts
from rsna_nb.backbones.scaling import scaled_colour
from rsna_nb.backbones.tensors import ENDINGS
from rsna_nb.backbones.vit import TRANSFORMERS
from rsna_nb.backbones.weights import WeightsError, explained_download, load_weights

# The networks of keras.applications by the scaling (`scaling.SCALINGS`) that their ImageNet weights were trained with.
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
EXPORT_YOLO11 = 'set weights to "none", or to a file exported as the first lines of rsna_nb/backbones/yolo11.py show'
NO_IMAGENET = 'set weights to "none", or to a file of torchvision or timm (docs/weights.md)'


@dataclass(frozen=True)
class Backbone:
    """An entry of `BACKBONES`; a plain function is treated as `Backbone(function)`.

    A network that contains layers or models of your own classes is saved and loaded by Keras only if these are
    decorated with `keras.saving.register_keras_serializable`; import their module before you load a run.

    Parameters
    ----------
    build
        `build(height, width)` returns a `keras.Model`, functional or subclassed, from (height, width, 1) in 0-1 to a
        feature map (h, w, channels). It may take two more arguments, which are then passed by name: `synchronized`
        (whether batch normalisation pools its statistics over replicas) and `weights` (None, "imagenet" or a path). A
        function that takes `weights` loads them itself and raises `WeightsError`; for any other the registry
        loads the weights file. Where the weights include layers after the pooling, it returns `Parts`.
    imagenet
        Whether `build` accepts "imagenet" as `weights`.
    instead
        What to do otherwise, for the error message.
    """

    build: Callable[..., keras.Model | Parts]
    imagenet: bool = False
    instead: str = 'set weights to "none" or to a file'


def build_backbone(
    name: str, img_size: int | list[int] | tuple[int, int], weights: str = "imagenet", synchronized: bool = False
) -> keras.Model:
    """Build a network from a grey image in 0-1, (height, width, 1), to its last feature map, (h, w, channels).

    Parameters
    ----------
    name
        A key of `BACKBONES`.
    img_size
        Side of a square or (height, width), in pixels.
    weights
        "imagenet" (published weights, downloaded where the cache of Keras or keras-hub lacks them), "none" (random
        weights) or the path of a weights file made for this network without its classifier: `.weights.h5`, `.keras` or
        `.h5`. ConvNeXt, EfficientNet, ResNet and vision transformers also accept PyTorch weights
        (`tensors.ENDINGS`; docs/weights.md), vision transformers the folder of a keras-hub preset, and YOLO11 a file
        exported from Ultralytics (see `yolo11`).
    synchronized
        Whether batch normalisation pools its statistics over all replicas. The small network and YOLO11 have the
        choice; the networks of keras.applications always use each replica's own.

    Raises
    ------
    ValueError
        If the name is not in the registry, or a registered function returns no suitable network.
    WeightsError
        If the weights do not exist, cannot be downloaded or do not fit.

    Examples
    --------
    A network of your own is registered by a function of (height, width):

    >>> def two_layers(height, width):
    ...     image = keras.Input((height, width, 1))
    ...     features = keras.layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(image)
    ...     return keras.Model(image, keras.layers.Conv2D(32, 3, strides=2, padding="same")(features))
    >>> BACKBONES["two_layers"] = two_layers
    >>> build_backbone("two_layers", [96, 64], weights="none").output_shape
    (None, 24, 16, 32)
    >>> del BACKBONES["two_layers"]
    """
    return build_parts(name, img_size, weights, synchronized).backbone


def build_parts(
    name: str,
    img_size: int | list[int] | tuple[int, int],
    weights: str = "imagenet",
    synchronized: bool = False,
    like: keras.Model | None = None,
) -> Parts:
    """Build a backbone as `build_backbone` does, with what belongs to it after the pooling of its feature map.

    `like` is a trained backbone of that name, for images of any size, whose weights will be copied into the new one:
    where padding or scaling depend on the weights file, the new one gets the same.
    """
    backbone = _registered(name)
    shape = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
    if weights == "imagenet" and not backbone.imagenet:
        raise WeightsError(f"backbone {name} has no ImageNet weights: {backbone.instead}")
    if weights not in ("imagenet", "none") and not Path(weights).exists():
        raise WeightsError(f'weights {weights}: no such file; give "imagenet", "none", a weights file or a run')
    # A function of (height, width) is enough: arguments that it does not name are not passed.
    accepted = inspect.signature(backbone.build).parameters
    source = None if weights == "none" else weights
    options = {"weights": source, "synchronized": synchronized, "like": like}
    options = {option: value for option, value in options.items() if option in accepted}
    try:
        built = backbone.build(*shape, **options)
        parts = built if isinstance(built, Parts) else Parts(built)
        parts = replace(parts, backbone=_as_backbone(name, parts.backbone, shape))
        if source and "weights" not in accepted:
            load_weights(parts.backbone, source)
    except WeightsError as error:
        raise WeightsError(f"weights {weights} cannot be loaded into backbone {name}: {error}") from error
    return parts


def _registered(name: str) -> Backbone:
    """The entry of that name; `ValueError` with the nearest names if there is none."""
    if name not in BACKBONES:
        close = difflib.get_close_matches(name, BACKBONES, n=3)
        raise ValueError(
            f"backbone {name} is not known; the nearest names are {', '.join(close) or ', '.join(BACKBONES)}"
        )
    entry = BACKBONES[name]
    return entry if isinstance(entry, Backbone) else Backbone(entry)


def _as_backbone(name: str, network: keras.Model, shape: tuple[int, int]) -> keras.Model:
    """Check the network and return it under the name "backbone", by which a model finds it."""
    if not isinstance(network, keras.Model):
        raise ValueError(f"backbone {name} must be built by a function that returns a keras.Model, not {network!r}")
    wanted = (None, *shape, 1)
    takes = getattr(network, "input_shape", None)  # a subclassed model has none before it is called
    # Keras does not compare the channels when a functional model is called on a symbolic image, and fails much later.
    if takes and (len(takes) != 4 or any(side not in (None, other) for side, other in zip(takes, wanted, strict=True))):
        raise ValueError(
            f"backbone {name} must take grey images in 0-1, {wanted}, not {takes}; a network for colour images can "
            "begin with keras.layers.Concatenate()([image, image, image])"
        )
    if network.name == "backbone" and takes == wanted:
        return network  # already as wanted
    image = keras.Input((*shape, 1), name="image")
    features = network(image)
    if len(getattr(features, "shape", ())) != 4:
        raise ValueError(f"backbone {name} must return one feature map (h, w, channels) per image, not {features}")
    # An outer model carries the name, because a subclassed model may not keep it when it is saved and loaded.
    return keras.Model(image, features, name="backbone")


def _of_applications(name: str, family: str) -> Backbone:
    """A network of keras.applications behind the scaling that its weights expect."""
    if name.startswith("ConvNeXt"):
        return Backbone(partial(convnext.build, name), imagenet=True)

    def build(height: int, width: int, weights: str | None, like: keras.Model | None = None) -> keras.Model | Parts:
        # A network of keras.applications is one layer of the backbone.
        is_own = like is not None and not any(isinstance(layer, keras.Model) for layer in like.layers)
        if is_own or (weights and Path(weights).suffix in ENDINGS):
            return _of_tensors(name.lower(), height, width, weights, like)
        image = keras.Input((height, width, 1), name="image")
        published = "imagenet" if weights == "imagenet" else None
        with explained_download():
            network = getattr(applications, name)(include_top=False, weights=published, input_shape=(height, width, 3))
        whole = keras.Model(image, network(scaled_colour(image, family)), name="backbone")
        if weights not in (None, "imagenet"):
            load_weights(whole, weights)
        return whole

    return Backbone(build, imagenet=True)


def _of_tensors(name: str, height: int, width: int, weights: str | None, like: keras.Model | None) -> Parts:
    """The network that a file of PyTorch's tensors was made for; keras.applications' own has other layers."""
    family = next((module for module in (efficientnet, resnet) if name in module.SIZES), None)
    if family is None:
        raise WeightsError("PyTorch weights cannot be loaded into this network; docs/weights.md lists those that fit")
    return family.build(name, height, width, weights, like)


def _build_small(height: int, width: int, synchronized: bool) -> keras.Model:
    """A residual network of 0.17 million parameters, for training from scratch on a laptop; no ImageNet weights."""
    image = keras.Input((height, width, 1), name="image")

    def convolution(x: keras.KerasTensor, name: str, filters: int, size: int, stride: int = 1) -> keras.KerasTensor:
        x = layers.Conv2D(filters, size, stride, padding="same", use_bias=False, name=f"{name}_conv")(x)
        # Keras's default momentum of 0.99 needs hundreds of steps to forget its start; small data sets have fewer.
        x = layers.BatchNormalization(momentum=0.9, synchronized=synchronized, name=f"{name}_bn")(x)
        return layers.ReLU(name=f"{name}_relu")(x)

    x = convolution(image, "stage_0", 16, 5, 2)
    for stage, filters in enumerate((24, 48, 96), 1):
        x = convolution(x, f"stage_{stage}_down", filters, 3, 2)
        x = layers.Add(name=f"stage_{stage}_add")([x, convolution(x, f"stage_{stage}_same", filters, 3)])
    return keras.Model(image, x, name="backbone")


BACKBONES: dict[str, Backbone | Callable[..., keras.Model | Parts]] = {
    "small": Backbone(_build_small),
    **{name.lower(): _of_applications(name, family) for family, names in FAMILIES.items() for name in names.split()},
    **{name: Backbone(partial(efficientnet.build, name), imagenet=True) for name in efficientnet.LITE},
    **{name: Backbone(partial(resnet.build, name), instead=NO_IMAGENET) for name in ("resnet18", "resnet34")},
    **{f"yolo11{size}": Backbone(partial(yolo11.build, size), instead=EXPORT_YOLO11) for size in yolo11.SCALES},
    **{
        name: Backbone(partial(presets.build, name), imagenet=bool(transformer.preset))
        for name, transformer in TRANSFORMERS.items()
    },
}
