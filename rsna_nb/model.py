"""The detector: backbone, pooling and a sigmoid unit, from a greyscale image (height, width, 1) in 0-1 to one score."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
from keras import layers

from rsna_nb.backbones import build_backbone
from rsna_nb.config import ConfigError, RunConfig, resolve

POOLING = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def build_model(config: RunConfig, precision: str = "float32", synchronized: bool = False) -> keras.Model:
    """Build the detector that the settings describe, not compiled.

    Its layers "backbone", "pooled", "dropout" and "cancer" are found by these names elsewhere.

    Parameters
    ----------
    config
        The settings; backbone, weights, img_size, pooling, dropout, freeze_backbone and seed are used.
    precision
        "float32", "bfloat16" or "float16": the compute type of all layers but the last, which is float32.
    synchronized
        Whether batch normalisation pools its statistics over all replicas, if the backbone has this option.

    Returns
    -------
    keras.Model
        (batch, height, width, 1) in 0-1 -> (batch, 1), the score for cancer in 0-1.

    Raises
    ------
    ValueError, WeightsError
        If the backbone is not known or its weights cannot be loaded (`backbones.build_backbone`).

    Examples
    --------
    >>> from rsna_nb.config import RunConfig
    >>> config = RunConfig(backbone="small", weights="none", freeze_backbone=False, img_size=[96, 64])
    >>> model = build_model(config)
    >>> model.input_shape, model.output_shape
    ((None, 96, 64, 1), (None, 1))
    """
    with dtype_policy(POLICIES[precision]):
        weights = config.weights if config.weights in ("imagenet", "none") else str(resolve(config.weights))
        backbone = build_backbone(config.backbone, config.image_shape, weights, synchronized)
        backbone.trainable = not config.freeze_backbone
        image = keras.Input((*config.image_shape, 1), name="mammogram")
        pooled = POOLING[config.pooling](name="pooled")(backbone(image))
        # Dropout stays in the graph at rate 0 too: its name is looked up when the head is trained alone.
        kept = layers.Dropout(config.dropout, seed=config.seed, name="dropout")(pooled)
        probability = layers.Dense(1, activation="sigmoid", dtype="float32", name="cancer")(kept)
        # The model is made within the policy too: `compile` scales the loss of float16 only if the model has it.
        return keras.Model(image, probability, name="detector")


def body_of(model: keras.Model) -> keras.Model:
    """The detector's own layers from the image (batch, height, width, 1) to the pooled features (batch, channels)."""
    return keras.Model(model.input, model.get_layer("pooled").output, name="body")


def head_of(model: keras.Model) -> keras.Model:
    """The detector's own layers from the pooled features to the score; training the head trains the detector."""
    features = keras.Input(model.get_layer("pooled").output.shape[1:], name="features")
    kept = model.get_layer("dropout")(features)
    with dtype_policy(model.dtype_policy.name):  # in float16 `compile` scales the loss by this policy
        return keras.Model(features, model.get_layer("cancer")(kept), name="head")


def open_backbone(model: keras.Model, first: str = "") -> int:
    """Unfreeze the backbone from the first layer whose name contains `first` on; return the number of layers.

    Scale and offset of batch normalisation are trained; `training.TrainingModel` keeps its statistics as they are.
    Raises `ConfigError` if no layer has such a name.
    """
    opened = layers_from(model, first)
    backbone = model.get_layer("backbone")
    backbone.trainable = True  # sets every layer, so the layers before `first` are frozen again below
    for layer in _in_order(backbone):
        layer.trainable = layer in opened
    return len(opened)


def layers_from(model: keras.Model, first: str) -> list[layers.Layer]:
    """The backbone's layers from the first whose name contains `first` on; `ConfigError` if there is none."""
    known = list(_in_order(model.get_layer("backbone")))
    start = next((number for number, layer in enumerate(known) if first in layer.name), None)
    if start is None:
        names = [layer.name for layer in known if layer.weights]
        raise ConfigError(f"fine_tune_from {first} is in no layer's name; the layers are {', '.join(names)}")
    return known[start:]


@contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Build layers under a Keras dtype policy, such as "mixed_bfloat16", and restore the former policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _in_order(network: keras.Model) -> Iterator[layers.Layer]:
    """The layers of a network in the order of its graph; those of an inner network take its place."""
    for layer in network.layers:
        yield from _in_order(layer) if isinstance(layer, keras.Model) else [layer]
