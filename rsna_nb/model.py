"""Backbone + pooling + head: grey (height, width, 1) in 0-1 -> the probability of cancer, (1,)."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
from keras import layers

from rsna_nb.backbones import build_backbone
from rsna_nb.config import RunConfig, resolve

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
        # A frozen backbone stays in inference mode: its batch normalisation keeps ImageNet's statistics.
        features = backbone(image, training=False) if config.freeze_backbone else backbone(image)
        pooled = POOLING[config.pooling](name="pooled")(features)
        kept = layers.Dropout(config.dropout, seed=config.seed, name="dropout")(pooled)
        probability = layers.Dense(1, activation="sigmoid", dtype="float32", name="cancer")(kept)
        # Within the policy: compile scales the loss of float16 where the model itself has it.
        return keras.Model(image, probability, name="detector")


@contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
