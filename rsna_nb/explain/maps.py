"""Where the model looked: what each place of its last feature map adds to the logit, as a map over the picture.

Every model has the layers "backbone", which gives a feature map (h, w, channels), "pooled", "dropout" and "cancer".
Of the logit the sigmoid, which saturates, is left out. Pictures are float32 (n, height, width, 1) in 0-1, as the store
holds them. All is computed in float32 from the feature map on, whatever the precision of the model.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import keras
import numpy as np
import tensorflow as tf

from rsna_nb.inference import FLIPS
from rsna_nb.notebook import UnavailableError

BATCH = 16


def read_pictures(files: Iterable[str | Path]) -> np.ndarray:
    """Pictures of the store, (n, height, width, 1); `UnavailableError` for a file that is not there or no picture."""
    pictures = []
    for file in files:
        picture = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        if picture is None:
            raise UnavailableError(f"the picture {file} is missing or damaged: notebooks/00_prepare.ipynb makes it")
        pictures.append(picture)
    return np.stack(pictures)[..., np.newaxis].astype(np.float32) / 255


def scorer(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """A function from pictures to their scores, float64 (n,)."""
    return lambda images: model.predict(images, batch_size=BATCH, verbose=0)[:, 0].astype(np.float64)


def grad_cam(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Grad-CAM of each picture: (n, height, width) in 0-1, 0 outside the breast.

    Selvaraju et al. 2017 (ICCV), of the logit: the feature map's channels, weighted by their mean gradients, where
    their sum is positive. All 0 where it is nowhere.
    """
    return heat(channel_cam(model, images), images)


def channel_cam(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Grad-CAM on the feature map's own places: (n, h, w), 0 or more."""

    def of_features(features: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(features)
            logit = logit_of(model, features)
        weights = tf.reduce_mean(tape.gradient(logit, features), axis=(1, 2), keepdims=True)
        return tf.nn.relu(tf.reduce_sum(weights * features, axis=-1))

    return over_batches(model, images, of_features)


def class_activation(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """What each place adds to the logit: (n, h, w); with the last layer's bias a map's sum is the logit, exactly.

    With average pooling that is Zhou et al. 2016 (CVPR), each channel's weight times its values over their number.
    With max pooling a channel adds its weight times its maximum, at the place where that is; places that share a
    maximum share what it adds. Dropout does nothing when a picture is scored.

    Raises
    ------
    ValueError
        Where the model pools in another way.
    """
    pooled, weights = model.get_layer("pooled"), model.get_layer("cancer").kernel[:, 0]

    def of_features(features: tf.Tensor) -> tf.Tensor:
        if isinstance(pooled, keras.layers.GlobalAveragePooling2D):
            shares = 1 / tf.cast(tf.reduce_prod(tf.shape(features)[1:3]), tf.float32)
        else:
            at_maximum = features == tf.reduce_max(features, axis=(1, 2), keepdims=True)
            shares = tf.cast(at_maximum, tf.float32)
            shares /= tf.reduce_sum(shares, axis=(1, 2), keepdims=True)
        return tf.reduce_sum(shares * features * weights, axis=-1)

    if not isinstance(pooled, keras.layers.GlobalAveragePooling2D | keras.layers.GlobalMaxPooling2D):
        raise ValueError(
            f"pooling by {type(pooled).__name__}, the logit is no sum over places: use the method grad_cam"
        )
    return over_batches(model, images, of_features)


def logit_of(model: keras.Model, features: tf.Tensor) -> tf.Tensor:
    """A feature map, float32 (n, h, w, channels) -> the logit (n,)."""
    last = model.get_layer("cancer")
    pooled = model.get_layer("pooled").call(features)  # calling the layer itself would round to the model's precision
    return tf.linalg.matvec(pooled, last.kernel[:, 0]) + last.bias[0]


def over_batches(model: keras.Model, images: np.ndarray, of_features: Callable[[tf.Tensor], tf.Tensor]) -> np.ndarray:
    """`of_features` of the backbone's output, float32, for all pictures: few at a time, so that memory holds them."""
    backbone = model.get_layer("backbone")
    parts = []
    for start in range(0, len(images), BATCH):
        features = backbone(images[start : start + BATCH], training=False)
        parts.append(of_features(tf.cast(features, tf.float32)).numpy())
    return np.concatenate(parts)


METHODS: dict[str, Callable[[keras.Model, np.ndarray], np.ndarray]] = {
    "class_activation": class_activation,
    "grad_cam": channel_cam,
}


def maps(model: keras.Model, images: np.ndarray, method: str = "class_activation", flips: bool = True) -> np.ndarray:
    """A map of each picture by a method of `METHODS`: (n, height, width) in 0-1, 0 outside the breast.

    With `flips` it is the mean of those of the picture's four flips, each turned back. A network with strides sees
    its places a little to one side of where they lie in the map (the small one by half a place); over the flips that
    cancels out.
    """
    check_method(method)
    turned = [np.flip(METHODS[method](model, np.flip(images, axes)), axes) for axes in (FLIPS if flips else FLIPS[:1])]
    return heat(np.mean(turned, axis=0), images)


def check_method(method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method}")


def heat(cells: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The positive part of maps (n, h, w), enlarged to the pictures, 0 outside the breast, over each one's maximum."""
    enlarged = np.zeros(images.shape[:3], np.float32)
    for values, image, place in zip(cells, images[..., 0], enlarged, strict=True):
        positive = np.maximum(values, 0).astype(np.float32)
        place[:] = cv2.resize(positive, image.shape[::-1], interpolation=cv2.INTER_CUBIC) * (image > 0)
    enlarged = np.maximum(enlarged, 0)
    highest = enlarged.max(axis=(1, 2), keepdims=True)
    return np.divide(enlarged, highest, out=enlarged, where=highest > 0)
