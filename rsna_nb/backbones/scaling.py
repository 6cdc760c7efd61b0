"""The scaling that published networks expect. Every backbone contains it, so that all take grey images in 0-1."""

import keras
from keras import layers

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE_MEAN = (103.939, 116.779, 123.68)  # blue, green and red on the scale 0-255

# Convention of the published weights -> (scale, offset): the network receives `scale * image + offset`.
SCALINGS: dict[str, tuple] = {
    "tf": (2.0, -1.0),
    "torch": (
        tuple(1 / deviation for deviation in IMAGENET_DEVIATION),
        tuple(-mean / deviation for mean, deviation in zip(IMAGENET_MEAN, IMAGENET_DEVIATION, strict=True)),
    ),
    "caffe": (255.0, tuple(-mean for mean in CAFFE_MEAN)),
    "lite": (255 / 128, -127 / 128),
    "bytes": (255.0, 0.0),  # these networks begin with their own rescaling layer
}


def three_channels(grey: keras.KerasTensor) -> keras.KerasTensor:
    """Repeat a grey image, (height, width, 1), as red, green and blue: (height, width, 3)."""
    return layers.Concatenate(name="three_channels")([grey, grey, grey])


def scaled_colour(grey: keras.KerasTensor, convention: str) -> keras.KerasTensor:
    """Turn a grey image in 0-1, (height, width, 1), into the (height, width, 3) that a published network expects.

    `convention` is a key of `SCALINGS`.
    """
    return layers.Rescaling(*SCALINGS[convention], name="scaling")(three_channels(grey))
