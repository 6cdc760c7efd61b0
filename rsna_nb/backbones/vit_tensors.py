"""Vision transformers from PyTorch weights: ViT and DeiT of timm, DINOv2 of timm and of its authors."""

import math
import re
from functools import partial
from pathlib import Path

import keras
import numpy as np

from rsna_nb.backbones import vit
from rsna_nb.backbones.published import HALF, Origin, origin_of
from rsna_nb.backbones.scaling import IMAGENET, scaling_of
from rsna_nb.backbones.tensors import Target, assign_tensors, layer_targets, read
from rsna_nb.backbones.vit import Transformer, grid_of, interpolated
from rsna_nb.backbones.weights import WeightsError

SIZES = {192: "tiny", 384: "small", 768: "base"}  # channels -> timm's word
# The classifier (head) takes the class token, but a feature map has the patches only; the mask token is for training.
NOT_USED = ("head.", "mask_token")
# The end of our layers' names in a block -> the reference's.
BLOCK = {"norm_1": "norm1", "norm_2": "norm2", "dense_1": "mlp.fc1", "dense_2": "mlp.fc2"}


def build(transformer: Transformer, shape: tuple[int, int], path: Path) -> keras.Model:
    """Build a transformer for images of `shape` in pixels, and load a file of tensors into it.

    Raises
    ------
    WeightsError
        If the tensors are not those of the network; the message names them.
    """
    word = SIZES[transformer.width]
    if transformer.family == "ViT":
        name, scale = f"vit_{word}_patch16_224", (HALF, HALF)
        pattern = rf"(?:vit|deit)_{word}_patch16_(?:224|384)(?!_clip)(?:_\w+)?"
    else:
        name = f"vit_{word}_patch14_{'reg4_' if transformer.registers else ''}dinov2"
        pattern, scale = name, IMAGENET
    origin = origin_of(path, pattern, Origin(name, *scale))
    network = vit.build(transformer, shape, scaling=scaling_of(origin.mean, origin.deviation))
    tensors = read(path)
    # DINOv2's authors and timm use different names for the registers.
    registers = "register_tokens" if any(each.endswith("register_tokens") for each in tensors) else "reg_token"
    targets = _targets(network, grid_of(shape, transformer.patch), registers if transformer.registers else "")
    assign_tensors(tensors, path.name, targets, NOT_USED)
    return network


def _targets(network: keras.Model, grid: tuple[int, int], registers: str) -> dict[str, Target]:
    """Return the targets of all tensors; `registers` is the name of the register tokens, "" without any."""
    tokens = network.get_layer("tokens")
    width = tokens.class_token.shape[-1]
    found = {
        "cls_token": Target.of(tokens.class_token, [0, 1, 2]),
        "pos_embed": Target((1, None, width), lambda table: tokens.positions.assign(_positions(table, grid))),
        **layer_targets(network.get_layer("patches"), "patch_embed.proj"),
        **layer_targets(network.get_layer("norm"), "norm"),
    }
    if registers:
        found[registers] = Target.of(tokens.register, [0, 1, 2])
    for layer in network.layers:
        if match := re.fullmatch(r"block_(\d+)_(attention|scale_\d|norm_\d|dense_\d)", layer.name):
            block, kind = f"blocks.{int(match[1]) - 1}", match[2]
            if kind == "attention":
                found |= _attention_targets(layer, f"{block}.attn")
            elif kind.startswith("scale"):
                found[f"{block}.ls{kind[-1]}.gamma"] = Target.of(layer.factor, [0])
            else:
                found |= layer_targets(layer, f"{block}.{BLOCK[kind]}")
    return found


def _attention_targets(layer: keras.layers.MultiHeadAttention, name: str) -> dict[str, Target]:
    """Return the targets of an attention; one tensor of the reference holds queries, keys and values."""
    *projections, kernel, bias = layer.weights  # kernel and bias of queries, keys and values, then of the output
    width = bias.shape[0]

    def assign(variables: list[keras.Variable], tensor: np.ndarray) -> None:
        for variable, part in zip(variables, np.split(tensor, 3), strict=True):
            variable.assign(part.T.reshape(variable.shape))  # (out, in) -> (in, heads, channels of a head)

    return {
        f"{name}.qkv.weight": Target((3 * width, width), partial(assign, projections[::2])),
        f"{name}.qkv.bias": Target((3 * width,), partial(assign, projections[1::2])),
        f"{name}.proj.weight": Target((width, width), lambda tensor: kernel.assign(tensor.T.reshape(kernel.shape))),
        f"{name}.proj.bias": Target.of(bias, [0]),
    }


def _positions(table: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the positions (1, 1 + n, width) of the class token and of a grid of n patches.

    The file's own grid is square. If it has no position for the class token, this is 0. Positions are resized as timm
    does it.
    """
    count, width = table.shape[1:]
    if math.isqrt(count) ** 2 == count:
        table = np.concatenate([np.zeros((1, 1, width), table.dtype), table], axis=1)
    side = math.isqrt(table.shape[1] - 1)
    if side**2 != table.shape[1] - 1:
        raise WeightsError(
            f"pos_embed has {count} positions, which do not form a square, with or without a class token"
        )
    return interpolated(table, (side, side), grid, antialias=True)
