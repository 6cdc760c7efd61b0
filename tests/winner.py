"""Checkpoints of a small ConvNeXt in the form of the challenge's winner, and the same network in plain NumPy."""

import argparse
from pathlib import Path

import keras
import numpy as np
import pytest
from keras.src.applications.convnext import ConvNeXt  # with options that the public names fix
from scipy.special import erf, expit

from rsna_nb.backbones.convnext import timm_targets
from rsna_nb.backbones.parts import new_norm
from tests.test_checkpoint import write_zip

DEPTHS, WIDTHS = (1, 2, 1, 1), (8, 12, 16, 24)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
Tensors = dict[str, np.ndarray]


def small_convnext(**options: object) -> keras.Model:
    """A ConvNeXt of Keras with few channels and blocks, under the name of ConvNeXtSmall."""
    given = {"include_top": False, "weights": None} | options
    return ConvNeXt(DEPTHS, WIDTHS, drop_path_rate=0.0, name="convnext_small", **given)


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Replace the backbone convnextsmall by one that takes seconds."""
    patch.setattr(keras.applications, "ConvNeXtSmall", small_convnext)


def random_tensors(seed: int, network: keras.Model | None = None) -> Tensors:
    """Tensors of a ConvNeXt with one output, by timm's names; None is the small one."""
    network = network or small_convnext(input_shape=(64, 64, 3))
    trunk, channels = keras.Model(network.input, network.layers[-1].input, name=network.name), network.output.shape[-1]
    shapes = {name: target.shape for name, target in timm_targets(trunk, new_norm(channels)).items()}
    shapes |= {"head.fc.weight": (1, channels), "head.fc.bias": (1,)}
    rng = np.random.default_rng(seed)
    return {name: _random(name, shape, rng) for name, shape in shapes.items()}


def _random(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    scale = 0.3 if len(shape) < 2 else (np.prod(shape[1:])) ** -0.5
    values = rng.normal(0, scale, shape)
    return (values + (name.endswith("norm.weight") or "gamma" in name)).astype(np.float32)


def write_fold(path: Path, seed: int, network: keras.Model | None = None) -> Path:
    """A .pth.tar as training writes it: options, a metric, other and averaged weights, names with "module."."""
    averaged = {f"module.{name}": tensor for name, tensor in random_tensors(seed, network).items()}
    other = {name: tensor + 1 for name, tensor in averaged.items()}
    beside = {"epoch": 7, "arch": "convnext", "args": argparse.Namespace(lr=1e-4), "metric": np.float64(0.5)}
    return write_zip(path, beside | {"state_dict": other, "state_dict_ema": averaged})


def score(tensors: Tensors, picture: np.ndarray) -> float:
    """The network's score of a grey picture in 0-255, (height, width), computed without Keras."""
    x = np.stack([(picture / 255 - mean) / sd for mean, sd in zip(MEAN, DEVIATION, strict=True)], axis=-1)
    x = _norm(_patches(x, tensors, "stem.0", 4), tensors, "stem.1")
    for stage, depth in enumerate(DEPTHS):
        if stage:
            x = _norm(x, tensors, f"stages.{stage}.downsample.0")
            x = _patches(x, tensors, f"stages.{stage}.downsample.1", 2)
        for block in range(depth):
            x = x + _block(x, tensors, f"stages.{stage}.blocks.{block}")
    features = _norm(x.max(axis=(0, 1)), tensors, "head.norm")
    return float(expit(features @ tensors["head.fc.weight"][0] + tensors["head.fc.bias"][0]))


def _block(x: np.ndarray, tensors: Tensors, name: str) -> np.ndarray:
    kernel, (height, width) = tensors[f"{name}.conv_dw.weight"], x.shape[:2]
    padded = np.pad(x, ((3, 3), (3, 3), (0, 0)))
    moved = sum(padded[i : i + height, j : j + width] * kernel[:, 0, i, j] for i in range(7) for j in range(7))
    y = _norm(moved + tensors[f"{name}.conv_dw.bias"], tensors, f"{name}.norm")
    y = y @ tensors[f"{name}.mlp.fc1.weight"].T + tensors[f"{name}.mlp.fc1.bias"]
    y = y * (1 + erf(y / np.sqrt(2))) / 2
    return (y @ tensors[f"{name}.mlp.fc2.weight"].T + tensors[f"{name}.mlp.fc2.bias"]) * tensors[f"{name}.gamma"]


def _norm(x: np.ndarray, tensors: Tensors, name: str) -> np.ndarray:
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
    return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def _patches(x: np.ndarray, tensors: Tensors, name: str, side: int) -> np.ndarray:
    kernel = tensors[f"{name}.weight"]  # (out, in, side, side)
    height, width = x.shape[0] // side, x.shape[1] // side
    tiles = x[: height * side, : width * side].reshape(height, side, width, side, -1)
    return np.einsum("iajbc,ocab->ijo", tiles, kernel, optimize=True) + tensors[f"{name}.bias"]
