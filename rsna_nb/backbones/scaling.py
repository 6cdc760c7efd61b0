"""The scaling that published networks expect. Every backbone contains it, so that all take grey images in 0-1."""

from collections.abc import Sequence

import keras
from keras import layers

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of each channel
CAFFE_MEAN = (103.939, 116.779, 123.68)  # blue, green and red on the scale 0-255


def scaling_of(mean: Sequence[float], deviation: Sequence[float]) -> tuple:
    """Return the (scale, offset) of (image - mean) / deviation, for images in 0-1."""
    offset = tuple(-each / by for each, by in zip(mean, deviation, strict=True))
    return tuple(1 / by for by in deviation), offset


# Convention of the published weights -> (scale, offset): the network receives `scale * image + offset`.
SCALINGS: dict[str, tuple] = {
    "tf": (2.0, -1.0),
    "torch": scaling_of(*IMAGENET),
    "caffe": (255.0, tuple(-mean for mean in CAFFE_MEAN)),
    "lite": (255 / 128, -127 / 128),
    "bytes": (255.0, 0.0),  # these networks begin with their own rescaling layer
}


def three_channels(grey: keras.KerasTensor) -> keras.KerasTensor:
    """Repeat a grey image, (height, width, 1), as red, green and blue: (height, width, 3)."""
    return layers.Concatenate(name="three_channels")([grey, grey, grey])


def scaled_colour(grey: keras.KerasTensor, convention: str | tuple) -> keras.KerasTensor:
    """Turn a grey image in 0-1, (height, width, 1), into the (height, width, 3) that a published network expects.

    `convention` is a key of `SCALINGS`, or a (scale, offset) as these are.
    """
    scaling = SCALINGS[convention] if isinstance(convention, str) else convention
    return layers.Rescaling(*scaling, name="scaling")(three_channels(grey))
