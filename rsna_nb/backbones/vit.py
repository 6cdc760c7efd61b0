"""Vision transformers of keras-hub, ViT and DINOv2, for images of any size, as feature maps.

Weights come from keras-hub (`presets`); the network that receives them is built here from Keras layers. keras-hub's own
networks have a fixed size (ViT) or a square one (DINOv2, whose learned positions also change when they are saved), hold
all blocks in one layer, which can only be fine-tuned together, and need keras-hub wherever a saved network is loaded.

ViT: Dosovitskiy et al. 2021 (arXiv:2010.11929), tiny and small as in Touvron et al. 2021 (arXiv:2012.12877). DINOv2:
Oquab et al. 2023 (arXiv:2304.07193), with registers Darcet et al. 2023 (arXiv:2309.16588).
"""

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from rsna_nb.backbones.scaling import scaled_colour

DEPTH, MLP_RATIO, HEAD_WIDTH = 12, 4, 64  # the same in tiny, small and base
EPSILON = 1e-6  # of layer normalisation


@dataclass(frozen=True)
class Transformer:
    """The size of a vision transformer.

    Parameters
    ----------
    family
        "ViT" or "DINOV2", as keras-hub spells them.
    patch
        Side of a patch in pixels.
    width
        Channels of a token.
    preset
        keras-hub's name of the published weights; "" if there are none.
    registers
        Number of register tokens.
    """

    family: str
    patch: int
    width: int
    preset: str = ""
    registers: int = 0

    @property
    def arguments(self) -> dict[str, Any]:
        """What keras-hub's network of this kind is built with, apart from the size of its images."""
        heads, hidden = self.width // HEAD_WIDTH, MLP_RATIO * self.width
        sizes = {"num_layers": DEPTH, "num_heads": heads, "hidden_dim": self.width, "patch_size": self.patch}
        if self.family == "ViT":
            return sizes | {"mlp_dim": hidden, "use_class_token": True, "use_mha_bias": True, "use_mlp_bias": True}
        return sizes | {"intermediate_dim": hidden, "use_swiglu_ffn": False, "num_register_tokens": self.registers}


TRANSFORMERS = {
    "vit_tiny": Transformer("ViT", 16, 192),
    "vit_small": Transformer("ViT", 16, 384),
    "vit_base": Transformer("ViT", 16, 768, "vit_base_patch16_384_imagenet"),
    "dinov2_tiny": Transformer("DINOV2", 14, 192),
    "dinov2_small": Transformer("DINOV2", 14, 384, "dinov2_small"),
    "dinov2_base": Transformer("DINOV2", 14, 768, "dinov2_base"),
    "dinov2_with_registers_small": Transformer("DINOV2", 14, 384, "dinov2_with_registers_small", 4),
    "dinov2_with_registers_base": Transformer("DINOV2", 14, 768, "dinov2_with_registers_base", 4),
}


@keras.saving.register_keras_serializable("rsna_nb")
class Tokens(layers.Layer):
    """Turn patches (n, width) into tokens (registers + 1 + n, width).

    A class token is put before the patches, and each of these tokens gets its learned position added. Registers come
    first and have no position. keras-hub puts them after the class token; attention does not depend on the order.
    """

    def __init__(self, registers: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.registers = registers

    def build(self, shape: tuple[Any, ...]) -> None:
        """Create the class token, the positions and the registers for patches of `shape`, (batch, n, width)."""
        _, patches, width = shape
        start = keras.initializers.TruncatedNormal(stddev=0.02)
        self.class_token = self.add_weight(shape=(1, 1, width), initializer=start, name="class_token")
        self.positions = self.add_weight(shape=(1, 1 + patches, width), initializer=start, name="positions")
        if self.registers:
            self.register = self.add_weight(shape=(1, self.registers, width), initializer=start, name="registers")

    def call(self, patches: keras.KerasTensor) -> keras.KerasTensor:
        """Patches (batch, n, width) -> tokens (batch, registers + 1 + n, width)."""
        images = ops.shape(patches)[0]
        tokens = ops.concatenate([ops.tile(self.class_token, (images, 1, 1)), patches], axis=1) + self.positions
        if self.registers:
            tokens = ops.concatenate([ops.tile(self.register, (images, 1, 1)), tokens], axis=1)
        return tokens

    def get_config(self) -> dict[str, Any]:
        """The arguments that rebuild the layer when a saved network is loaded."""
        return super().get_config() | {"registers": self.registers}


@keras.saving.register_keras_serializable("rsna_nb")
class LayerScale(layers.Layer):
    """A learned factor for each channel (Touvron et al. 2021, arXiv:2103.17239)."""

    def build(self, shape: tuple[Any, ...]) -> None:
        """Create the factors for inputs of `shape`, channels last."""
        self.factor = self.add_weight(shape=shape[-1:], initializer="ones", name="factor")

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Multiply each channel by its factor."""
        return x * self.factor


def build(
    transformer: Transformer, shape: tuple[int, int], epsilon: float = EPSILON, scaling: str | tuple = ""
) -> keras.Model:
    """Build a transformer with random weights, from (height, width, 1) in 0-1 to the patches' tokens, (h, w, width).

    The tokens are those after the last normalisation. The layers of the blocks are named `block_1_...` to
    `block_12_...`. Where the patches do not divide the image, it is padded with black on all sides.

    Parameters
    ----------
    transformer
        One of `TRANSFORMERS`.
    shape
        (height, width) of the images in pixels.
    epsilon
        Epsilon of the layer normalisations.
    scaling
        Scaling of the input (`scaling.scaled_colour`); "" is that of keras-hub's weights.
    """
    image = keras.Input((*shape, 1), name="image")
    # Padding keeps the edges of the breast, which a convolution with stride `patch` would cut off.
    grid, patch, width = grid_of(shape, transformer.patch), transformer.patch, transformer.width
    missing = [count * patch - side for count, side in zip(grid, shape, strict=True)]
    padding = tuple((pixels // 2, pixels - pixels // 2) for pixels in missing)
    padded = layers.ZeroPadding2D(padding, name="padding")(image) if any(missing) else image
    scaled = scaled_colour(padded, scaling or ("tf" if transformer.family == "ViT" else "torch"))
    patches = layers.Conv2D(width, patch, patch, name="patches")(scaled)
    x = layers.Reshape((math.prod(grid), width), name="sequence")(patches)
    x = Tokens(transformer.registers, name="tokens")(x)
    for number in range(1, DEPTH + 1):
        x = _block(x, f"block_{number}", transformer, epsilon)
    x = layers.LayerNormalization(epsilon=epsilon, name="norm")(x)
    # The class token and the registers serve only the attention: a feature map consists of patches.
    x = layers.Cropping1D((transformer.registers + 1, 0), name="patches_alone")(x)
    return keras.Model(image, layers.Reshape((*grid, width), name="map")(x), name="backbone")


def grid_of(shape: tuple[int, int], patch: int) -> tuple[int, int]:
    """Patches down and across an image of (height, width) pixels, including those that are partly padding."""
    return -(-shape[0] // patch), -(-shape[1] // patch)


def interpolated(
    positions: np.ndarray, own: tuple[int, int], grid: tuple[int, int], antialias: bool = False
) -> np.ndarray:
    """Resize learned positions (1, 1 + n, width) from their own grid to another.

    The class token's position comes first and stays. Bicubic, as in keras-hub's DINOv2.
    """
    if own == grid:
        return positions
    # The grid's positions alone are resized, as an image with `width` channels.
    table = positions[:, 1:].reshape(1, *own, -1)
    resized = ops.convert_to_numpy(ops.image.resize(table, grid, interpolation="bicubic", antialias=antialias))
    return np.concatenate([positions[:, :1], resized.reshape(1, math.prod(grid), -1)], axis=1)


def _block(x: keras.KerasTensor, name: str, transformer: Transformer, epsilon: float) -> keras.KerasTensor:
    """A transformer block: attention between tokens, then an MLP; both normalise their input and are added to it."""
    width = transformer.width

    def added(x: keras.KerasTensor, change: keras.KerasTensor, number: int) -> keras.KerasTensor:
        if transformer.family == "DINOV2":
            change = LayerScale(name=f"{name}_scale_{number}")(change)
        return layers.Add(name=f"{name}_add_{number}")([x, change])

    normal = layers.LayerNormalization(epsilon=epsilon, name=f"{name}_norm_1")(x)
    attention = layers.MultiHeadAttention(width // HEAD_WIDTH, HEAD_WIDTH, name=f"{name}_attention")
    x = added(x, attention(normal, normal), 1)
    normal = layers.LayerNormalization(epsilon=epsilon, name=f"{name}_norm_2")(x)
    hidden = layers.Dense(MLP_RATIO * width, activation="gelu", name=f"{name}_dense_1")(normal)
    return added(x, layers.Dense(width, name=f"{name}_dense_2")(hidden), 2)
