"""What networks with published weights share: their scalings of a picture, and where the weights come from."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import keras
from keras import layers

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE_MEAN = (103.939, 116.779, 123.68)  # blue, green, red, of 0-255
DOWNLOAD_TIMEOUT = 30  # seconds without an answer


class WeightsError(RuntimeError):
    """Weights that cannot be had or do not fit; the message says what to do."""


@dataclass(frozen=True)
class Scaling:
    """What a network wants of a picture in 0-1: `scale` * picture + `offset`, for each of three channels."""

    scale: tuple[float, ...]
    offset: tuple[float, ...]


SCALINGS = {
    "tf": Scaling((2.0, 2.0, 2.0), (-1.0, -1.0, -1.0)),
    "torch": Scaling(
        tuple(1 / deviation for deviation in IMAGENET_DEVIATION),
        tuple(-mean / deviation for mean, deviation in zip(IMAGENET_MEAN, IMAGENET_DEVIATION, strict=True)),
    ),
    "caffe": Scaling((255.0, 255.0, 255.0), tuple(-mean for mean in CAFFE_MEAN)),
    "bytes": Scaling((255.0, 255.0, 255.0), (0.0, 0.0, 0.0)),  # the network has a layer for the rest
}


def scaled_colour(grey: keras.KerasTensor, scaling: Scaling) -> keras.KerasTensor:
    """(height, width, 1) in 0-1 -> (height, width, 3) as a network wants it."""
    colour = layers.Concatenate(name="three_channels")([grey, grey, grey])
    return layers.Rescaling(scaling.scale, scaling.offset, name="scaling")(colour)


@contextmanager
def explained_download() -> Iterator[None]:
    """Turn a failed download by keras.utils.get_file into an error that says which file is wanted and where."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        yield
    except Exception as error:  # get_file raises bare Exceptions, and urllib its own while it reads
        message = str(error)
        if "URL fetch failure" not in message and not isinstance(error, OSError | HTTPException):
            raise
        cache = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "models"
        file = message.split(" on ", 1)[-1].split(": ", 1)[0].rsplit("/", 1)[-1] if "URL" in message else "the file"
        raise WeightsError(
            f"the ImageNet weights cannot be downloaded ({message}). Put {file} into {cache}, or set weights to a "
            'weights file of your own, or take a recipe that needs none: settings "notebooks/params/demo.json"'
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
