"""A run's model -> the network that is exported: from 8-bit images to scores, in float32."""

import keras
from keras import ops

from rsna_nb.model import POLICIES


def in_float32(model: keras.Model) -> keras.Model:
    """Return a model whose layers all compute in float32, with the same weights; the same model if they do already."""
    text = before = model.to_json()
    for policy in set(POLICIES.values()) - {"float32"}:
        text = text.replace(f'"{policy}"', '"float32"')
    if text == before:
        return model
    # A layer's policy is fixed when it is built, so the layers are built again; the weights are float32 in any policy.
    same = keras.models.model_from_json(text)
    same.set_weights(model.get_weights())
    return same


def serving_model(model: keras.Model) -> keras.Model:
    """Put the division by 255 before a detector, and name its output "score".

    Parameters
    ----------
    model
        As `model.build_model` returns it.

    Returns
    -------
    keras.Model
        mammogram uint8 (batch, height, width, 1) -> {"score": float32 (batch, 1)}. With `unit` "breast" or "woman":
        [mammograms uint8 (batch, places, height, width, 1), views int32 (batch, places)] -> the same.
    """
    inputs = [keras.Input(each.shape[1:], dtype="uint8", name=each.name) for each in model.inputs[:1]]
    inputs += [keras.Input(each.shape[1:], dtype="int32", name=each.name) for each in model.inputs[1:]]
    images = ops.cast(inputs[0], "float32") / 255.0
    scores = model([images, *inputs[1:]] if inputs[1:] else images)
    return keras.Model(inputs, {"score": scores}, name="serving")
