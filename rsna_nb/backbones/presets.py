"""Weights of vision transformers from keras-hub's presets, with their positions interpolated to the image's size.

keras-hub is imported only here, and only where a preset is read: its import takes seconds, and a saved network does not
need it.
"""

from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from rsna_nb.backbones import vit, vit_tensors
from rsna_nb.backbones.published import load_saved, scaling_in
from rsna_nb.backbones.tensors import ENDINGS
from rsna_nb.backbones.vit import TRANSFORMERS, Transformer, grid_of, interpolated
from rsna_nb.backbones.weights import WeightsError

# The end of our layers' names in a block -> where keras-hub's block keeps the same layer.
VIT_BLOCK = {
    "norm_1": "layer_norm_1",
    "attention": "mha",
    "norm_2": "layer_norm_2",
    "dense_1": "mlp.dense_1",
    "dense_2": "mlp.dense_2",
}
DINOV2_BLOCK = {
    "norm_1": "norm1",
    "attention": "attention.attention",
    "scale_1": "layer_scale1",
    "norm_2": "norm2",
    "dense_1": "mlp.fc1",
    "dense_2": "mlp.fc2",
    "scale_2": "layer_scale2",
}


def build(name: str, height: int, width: int, weights: str | None, like: keras.Model | None = None) -> keras.Model:
    """Build a vision transformer (`vit.build`) and load its weights.

    Parameters
    ----------
    name
        A key of `vit.TRANSFORMERS`.
    height, width
        Size of the images in pixels.
    weights
        None for random weights, "imagenet" for keras-hub's published preset, the folder of a preset as
        `save_to_preset` writes it or the weights file in such a folder, a file of tensors (`vit_tensors`), or a
        weights file of this network.
    like
        A network that was built here, for images of any size: the new one has the same epsilon and scaling.

    Raises
    ------
    WeightsError
        If the weights belong to another network or cannot be read, or keras-hub is needed and not installed.
    """
    transformer, shape = TRANSFORMERS[name], (height, width)
    path = None if weights in (None, "imagenet") else Path(weights)
    if path and path.name == "model.weights.h5" and (path.parent / "config.json").is_file():
        path = path.parent  # the weights file of a preset, which keras-hub reads only together with its config.json
    if path and path.suffix in ENDINGS:
        return vit_tensors.build(transformer, shape, path)
    if weights is None or (path and path.is_file()):
        network = vit.build(transformer, shape, *((like.get_layer("norm").epsilon, scaling_in(like)) if like else ()))
        if path:
            load_saved(network, path)
        return network
    source = _read_preset(name, str(path) if path else transformer.preset)
    network = vit.build(transformer, shape, getattr(source, "layer_norm_epsilon", vit.EPSILON))
    copied = {place: layer.get_weights() for place, layer in _layers_of(source, transformer)}
    copied["tokens"] = _tokens_of(source, transformer, grid_of(shape, transformer.patch))
    for layer in network.layers:
        if layer.weights:  # a KeyError here means that keras-hub's network has changed
            layer.set_weights(copied.pop(layer.name))
    return network


def _read_preset(name: str, preset: str) -> keras.Model:
    """Read keras-hub's network from a preset, by its published name or its folder, in float32."""
    transformer = TRANSFORMERS[name]
    try:
        import keras_hub
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"its weights are read by keras-hub, which is not installed ({error}): pip install 'rsna_nb[vit]'"
        ) from error
    if preset != transformer.preset and not (Path(preset) / "config.json").is_file():
        raise WeightsError("the folder is not a preset, as keras-hub's save_to_preset writes it (no config.json)")
    try:
        source = keras_hub.models.Backbone.from_preset(preset, dtype="float32")
    except Exception as error:  # kagglehub's errors and those of a damaged preset have no class in common
        raise WeightsError(
            f"keras-hub cannot read the preset {preset} ({error}). To use a published one without network, run "
            f'keras_hub.models.Backbone.from_preset("{transformer.preset or "..."}").save_to_preset(folder) on '
            "another computer, copy the folder and set weights to it"
        ) from error
    kind = type(source).__name__.removesuffix("Backbone")
    wanted, found = transformer.arguments, {key: _argument(source, key) for key in transformer.arguments}
    # Checked before anything is copied, so that the error names the settings that differ and not an array's shape.
    if kind != transformer.family:
        raise WeightsError(f"the preset is a {kind}, and {name} is a {transformer.family}")
    if found != wanted:
        same = [other for other, each in TRANSFORMERS.items() if (each.family, each.arguments) == (kind, found)]
        changed = [f"{key} is {found[key]}, not {wanted[key]}" for key in wanted if found[key] != wanted[key]]
        raise WeightsError(
            f"the preset {f'is {same[0]}, not' if same else 'differs from'} {name}: {', '.join(changed)}"
        )
    return source


def _argument(source: keras.Model, key: str) -> Any:
    value = getattr(source, key, None)
    return value[0] if isinstance(value, list | tuple) and len(set(value)) == 1 else value  # ViT's patch has two sides


def _layers_of(source: keras.Model, transformer: Transformer) -> Iterator[tuple[str, layers.Layer]]:
    """The names of our layers, each with the layer of keras-hub's network that has the same weights."""
    if transformer.family == "ViT":
        encoder = source.get_layer("vit_encoder")
        yield "patches", source.get_layer("vit_patching_and_embedding").patch_embedding
        yield "norm", encoder.layer_norm
        blocks, places = encoder.encoder_layers, VIT_BLOCK
    else:
        yield "patches", source.embeddings.patch_embeddings.projection
        yield "norm", source.layernorm
        blocks, places = source.encoder.layers, DINOV2_BLOCK
    for number, block in enumerate(blocks, 1):
        for name, place in places.items():
            yield f"block_{number}_{name}", attrgetter(place)(block)


def _tokens_of(source: keras.Model, transformer: Transformer, grid: tuple[int, int]) -> list[np.ndarray]:
    """The weights of our `Tokens` layer: class token, positions for the grid of patches, registers."""
    if transformer.family == "ViT":
        embedding = source.get_layer("vit_patching_and_embedding")
        positions = embedding.position_embedding.get_weights()[0][np.newaxis]
        own = grid_of(source.image_shape[:2], transformer.patch)
        return [embedding.class_token.numpy(), interpolated(positions, own, grid)]
    embedding = source.embeddings
    own = grid_of(source.position_embedding_shape[:2], transformer.patch)
    positions = embedding.position_embeddings.numpy()
    positions = interpolated(positions, own, grid, source.antialias_in_interpolation)
    registers = [embedding.register_tokens.numpy()] if transformer.registers else []
    return [embedding.cls_token.numpy(), positions, *registers]
