"""Backbone + pooling + head: grey (height, width, 1) in 0-1 -> the probability of cancer, (1,)."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
from keras import layers

from rsna_nb.backbones import build_backbone
from rsna_nb.config import ConfigError, RunConfig, resolve

POOLING = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def build_model(config: RunConfig, precision: str = "float32", synchronized: bool = False) -> keras.Model:
    """The network that the settings ask for, not compiled.

    Parameters
    ----------
    config
        Its backbone, weights, img_size, pooling, dropout, freeze_backbone and seed are used.
    precision
        "float32", "bfloat16" or "float16", of all layers but the last, which is float32.
    synchronized
        Whether batch normalisation takes its statistics over all replicas, where the backbone has the choice.
    """
    with dtype_policy(POLICIES[precision]):
        weights = config.weights if config.weights in ("imagenet", "none") else str(resolve(config.weights))
        backbone = build_backbone(config.backbone, config.image_shape, weights, synchronized)
        backbone.trainable = not config.freeze_backbone
        image = keras.Input((*config.image_shape, 1), name="mammogram")
        pooled = POOLING[config.pooling](name="pooled")(backbone(image))
        kept = layers.Dropout(config.dropout, seed=config.seed, name="dropout")(pooled)
        probability = layers.Dense(1, activation="sigmoid", dtype="float32", name="cancer")(kept)
        # Within the policy: compile scales the loss of float16 where the model itself has it.
        return keras.Model(image, probability, name="detector")


def body_of(model: keras.Model) -> keras.Model:
    """A picture -> pooled features, by the model's own layers."""
    return keras.Model(model.input, model.get_layer("pooled").output, name="body")


def head_of(model: keras.Model) -> keras.Model:
    """Pooled features -> the probability, by the model's own layers: what trains the one trains the other."""
    features = keras.Input(model.get_layer("pooled").output.shape[1:], name="features")
    kept = model.get_layer("dropout")(features)
    with dtype_policy(model.dtype_policy.name):  # by which the loss of float16 is scaled
        return keras.Model(features, model.get_layer("cancer")(kept), name="head")


def open_backbone(model: keras.Model, first: str = "") -> int:
    """Let the backbone learn, from the first layer whose name contains `first` on; how many layers it is.

    Of batch normalisation the scale and offset learn; `learner.TrainingModel` keeps its statistics as they are.
    """
    opened = layers_from(model, first)
    backbone = model.get_layer("backbone")
    backbone.trainable = True
    for layer in in_order(backbone):
        layer.trainable = layer in opened
    return len(opened)


def layers_from(model: keras.Model, first: str) -> list[layers.Layer]:
    """The backbone's layers from the first whose name contains `first` on; `ConfigError` where there is none."""
    known = list(in_order(model.get_layer("backbone")))
    start = next((number for number, layer in enumerate(known) if first in layer.name), None)
    if start is None:
        names = [layer.name for layer in known if layer.weights]
        raise ConfigError(f"fine_tune_from {first} is in no layer's name; the layers are {', '.join(names)}")
    return known[start:]


def in_order(network: keras.Model) -> Iterator[layers.Layer]:
    """The layers of a network in the order of its graph, those of networks within it in their place."""
    for layer in network.layers:
        yield from in_order(layer) if isinstance(layer, keras.Model) else [layer]


@contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
