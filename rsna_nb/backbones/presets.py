"""keras-hub's presets -> the weights of vision transformers, their positions interpolated to the size of the picture.

keras-hub is imported only here, and only where there are weights to be read: that takes seconds, and a saved network
does not need it.
"""

import math
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import keras
import numpy as np
from keras import layers, ops

from rsna_nb.backbones import vit
from rsna_nb.backbones.pretrained import WeightsError
from rsna_nb.backbones.vit import TRANSFORMERS, Transformer, grid_of

# Our names of a block's layers, and where keras-hub's block has them.
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


def build(name: str, shape: tuple[int, int], weights: str | None, synchronized: bool = False) -> keras.Model:
    """The network of `vit.build` for pictures of (height, width), with weights.

    Parameters
    ----------
    name
        A key of `vit.TRANSFORMERS`.
    weights
        None for random ones, "imagenet" for what keras-hub publishes, the folder of a preset, as `save_to_preset`
        writes it, or a weights file of keras-hub's network, as such a folder has it.
    synchronized
        Has no meaning here: there is no batch normalisation.

    Raises
    ------
    WeightsError
        For weights of another network or that cannot be had, and where keras-hub is not installed.
    """
    transformer = TRANSFORMERS[name]
    if weights is None:
        return vit.build(transformer, shape)
    source = read(name, weights)
    network = vit.build(transformer, shape, getattr(source, "layer_norm_epsilon", vit.EPSILON))
    copied = {place: layer.get_weights() for place, layer in layers_of(source)}
    copied["tokens"] = tokens_of(source, grid_of(shape, transformer.patch))
    for layer in network.layers:
        if layer.weights:
            layer.set_weights(copied.pop(layer.name))
    return network


def read(name: str, weights: str) -> keras.Model:
    """keras-hub's network with the weights asked for, in float32; `WeightsError` where it is another one."""
    models, transformer = keras_hub(name).models, TRANSFORMERS[name]
    if Path(weights).is_file():
        return from_file(getattr(models, f"{transformer.family}Backbone"), transformer, weights)
    source = downloaded(models, transformer.preset) if weights == "imagenet" else from_folder(models, weights)
    refuse_other(name, source, weights)
    return source


def keras_hub(name: str) -> ModuleType:
    try:
        import keras_hub
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"backbone {name} reads its weights by keras-hub, which is not here ({error}): pip install 'rsna_nb[vit]'"
        ) from error
    return keras_hub


def downloaded(models: ModuleType, preset: str) -> keras.Model:
    try:
        return models.Backbone.from_preset(preset, dtype="float32")
    except Exception as error:  # what kagglehub raises has no class in common
        raise WeightsError(
            f"keras-hub's preset {preset} cannot be downloaded ({error}). Where there is a network, "
            f'keras_hub.models.Backbone.from_preset("{preset}").save_to_preset(folder) makes a folder of it: '
            "set weights to that folder"
        ) from error


def from_folder(models: ModuleType, folder: str) -> keras.Model:
    if not (Path(folder) / "config.json").is_file():
        raise WeightsError(f"weights {folder}: no preset, as keras-hub's save_to_preset writes it (no config.json)")
    try:
        return models.Backbone.from_preset(folder, dtype="float32")
    except Exception as error:  # a class that is not known is a TypeError, damaged weights are of many kinds
        raise WeightsError(f"the preset {folder} cannot be read: {error}") from error


def from_file(kind: type[keras.Model], transformer: Transformer, path: str) -> keras.Model:
    """keras-hub's network for pictures of the size that the file has positions for; ValueError where it is another."""
    arrays: dict[str, tuple[int, ...]] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: arrays.update({name: item.shape}) if hasattr(item, "shape") else None)
    tables = [shape for name, shape in arrays.items() if "embedding" in name and shape[-1] == transformer.width]
    positions = max((shape[-2] for shape in tables if len(shape) > 1), default=0)
    side = transformer.patch * math.isqrt(max(positions - 1, 1))
    sizes = {"image_shape": (side, side, 3)}
    if transformer.family == "DINOV2":
        sizes["position_embedding_shape"] = (side, side, 3)
    source = kind(**transformer.arguments, **sizes, dtype="float32")
    held = sum(map(math.prod, arrays.values()))
    if held != source.count_params():  # keras-hub's DINOv2 would not notice registers that it has no place for
        raise ValueError(f"the file holds {held:,} numbers, keras-hub's network {source.count_params():,}")
    source.load_weights(path)
    return source


def refuse_other(name: str, source: keras.Model, where: str) -> None:
    """`WeightsError` where a preset's network is not the one asked for."""
    transformer, kind = TRANSFORMERS[name], type(source).__name__
    if kind != f"{transformer.family}Backbone":
        raise WeightsError(f"the preset {where} is a {kind}, and backbone {name} a {transformer.family}Backbone")
    wanted, found = transformer.arguments, {key: argument(source, key) for key in transformer.arguments}
    if found != wanted:
        same = [other for other, each in TRANSFORMERS.items() if (each.family, each.arguments) == (kind[:-8], found)]
        differences = [f"{key} {found[key]} and not {wanted[key]}" for key in wanted if found[key] != wanted[key]]
        raise WeightsError(
            f"the preset {where} is {same[0] if same else f'another {kind}'} and not {name}: {', '.join(differences)}"
        )


def argument(source: keras.Model, key: str) -> Any:
    value = getattr(source, key, None)
    return value[0] if isinstance(value, list | tuple) and len(set(value)) == 1 else value  # ViT's patch has two sides


def layers_of(source: keras.Model) -> Iterator[tuple[str, layers.Layer]]:
    """The names of our layers and keras-hub's, whose weights are the same."""
    if type(source).__name__ == "ViTBackbone":
        encoder = source.get_layer("vit_encoder")
        yield "patches", source.get_layer("vit_patching_and_embedding").patch_embedding
        yield "norm", encoder.layer_norm
        blocks, places = encoder.encoder_layers, VIT_BLOCK
    else:
        yield "patches", source.embeddings.patch_embeddings.projection
        yield "norm", source.layernorm
        blocks, places = source.encoder.layers, DINOV2_BLOCK
    for number, each in enumerate(blocks, 1):
        for name, place in places.items():
            yield f"block_{number}_{name}", attrgetter(place)(each)


def tokens_of(source: keras.Model, grid: tuple[int, int]) -> list[np.ndarray]:
    """The weights of `Tokens`."""
    if type(source).__name__ == "ViTBackbone":
        embedding = source.get_layer("vit_patching_and_embedding")
        table, shape = embedding.position_embedding.get_weights()[0][np.newaxis], source.image_shape
        return [
            embedding.class_token.numpy(),
            interpolated(table, grid_of(shape[:2], argument(source, "patch_size")), grid),
        ]
    embedding = source.embeddings
    own = grid_of(source.position_embedding_shape[:2], source.patch_size)
    positions = interpolated(embedding.position_embeddings.numpy(), own, grid, source.antialias_in_interpolation)
    registers = [embedding.register_tokens.numpy()] if source.num_register_tokens else []
    return [embedding.cls_token.numpy(), positions, *registers]


def interpolated(
    positions: np.ndarray, own: tuple[int, int], grid: tuple[int, int], antialias: bool = False
) -> np.ndarray:
    """Positions (1, 1 + n, width), the class token's first, for another grid: bicubic, as in keras-hub's DINOv2."""
    if own == grid:
        return positions
    table = positions[:, 1:].reshape(1, *own, -1)
    resized = ops.convert_to_numpy(ops.image.resize(table, grid, interpolation="bicubic", antialias=antialias))
    return np.concatenate([positions[:, :1], resized.reshape(1, math.prod(grid), -1)], axis=1)
