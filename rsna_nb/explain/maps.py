"""Heat maps: how much each position of the last feature map adds to the logit, drawn over the image.

Every model has the layers "backbone", which returns a feature map (h, w, channels), "pooled", "dropout" and "cancer";
some have the layer normalisation "norm" after "pooled". The logit is explained, not the score, because the sigmoid
saturates. Images are float32 (n, height, width, 1) in 0-1, as the store holds them. Everything after the feature map is
computed in float32, whatever the precision of the model.

A model of breasts also has the layer "combination", and its logit is that of the breast. View codes (breasts, places)
then say what the images show (`model.Breasts`); the images are those of all places, breast by breast.
"""

from collections.abc import Callable

import cv2
import keras
import numpy as np
import tensorflow as tf

from rsna_nb.inference import FLIPS
from rsna_nb.model import OPPOSITE, OTHER_VIEW, combination_of, is_own, norm_of

BATCH = 16


def grad_cam(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Grad-CAM of the logit (Selvaraju et al. 2017, ICCV).

    The channels of the feature map are weighted by their mean gradients and added; only positive sums are kept.

    Parameters
    ----------
    model
        As `model.build_model` or `inference.load_model` return it.
    images
        float32 (n, height, width, 1) in 0-1. A model of breasts takes each as the only image of its breast.

    Returns
    -------
    numpy.ndarray
        (n, height, width) in 0-1: each map is scaled to its own maximum and is 0 outside the breast. A map is 0
        everywhere if nothing raises the score.

    Examples
    --------
    >>> from rsna_nb.config import RunConfig
    >>> from rsna_nb.model import build_model
    >>> model = build_model(RunConfig(backbone="small", weights="none", freeze_backbone=False, img_size=64))
    >>> grad_cam(model, np.ones((2, 64, 64, 1), np.float32)).shape
    (2, 64, 64)
    """
    return heat_maps(model, images, "grad_cam", flips=False)


def heat_maps(
    model: keras.Model,
    images: np.ndarray,
    method: str = "class_activation",
    flips: bool = True,
    views: np.ndarray | None = None,
) -> np.ndarray:
    """Compute a heat map of each image: (n, height, width) in 0-1, 0 outside the breast.

    A map shows where its image raises the logit: the positive part of what each position adds. The maps of one breast
    have one scale.

    Parameters
    ----------
    model, images
        As `grad_cam` takes them.
    method
        A key of `METHODS`.
    flips
        Whether a map is the mean over the image's four flips, each turned back. A network with strides sees slightly to
        one side of where a position lies in the map (the small network by half a position); over the flips that
        cancels out. All images of a breast are flipped alike.
    views
        For a model of breasts: view codes (breasts, places), breasts x places = n. With None each image is the only
        one of its breast, of an unknown view.

    Raises
    ------
    ValueError
        If the method is not known, or does not suit the model's pooling.
    """
    check_method(method)
    views = np.full((len(images), 1), OTHER_VIEW, np.int32) if views is None else views
    places = views.shape[1]
    # Few images at a time: the feature map of one 1024-pixel image takes 8 MB with 2,048 channels.
    some = max(1, BATCH // places)
    parts = [(slice(i * places, (i + some) * places), views[i : i + some]) for i in range(0, len(views), some)]
    maps = []
    for axes in FLIPS if flips else FLIPS[:1]:
        flipped = np.flip(images, axes)
        batches = [METHODS[method](model, flipped[rows], codes) for rows, codes in parts]
        maps.append(np.flip(np.concatenate(batches), axes))
    return _scaled(_on_images(np.mean(maps, axis=0), images), places)


def check_method(method: str) -> None:
    """Raise `ValueError` if the name is not in `METHODS`."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method}")


def _grad_cam(model: keras.Model, images: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Grad-CAM on the positions of the feature map: (n, h, w), 0 or more."""
    features, last, combination = _features(model, images), model.get_layer("cancer"), combination_of(model)
    with tf.GradientTape() as tape:
        tape.watch(features)
        # `call`: calling the layer itself would round to its precision.
        pooled = _normalised(model, model.get_layer("pooled").call(features))
        if combination:
            pooled = combination.call(_by_breast(pooled, views), tf.constant(views))
        logit = tf.linalg.matvec(pooled, last.kernel[:, 0]) + last.bias[0]
    weights = tf.reduce_mean(tape.gradient(logit, features), axis=(1, 2), keepdims=True)
    return tf.nn.relu(tf.reduce_sum(weights * features, axis=-1)).numpy()


def _class_activation(model: keras.Model, images: np.ndarray, views: np.ndarray) -> np.ndarray:
    """What each position adds to the logit, (n, h, w): the sum over a map plus a constant is the logit.

    The constant is the last layer's bias and, with a norm, the sum of the norm's offsets (beta) times the last layer's
    weights. For a breast the sum is over the maps of all its places, and the vectors of the views belong to the
    constant.

    With average pooling these are the class activation maps of Zhou et al. 2016 (CVPR): the channels weighted by the
    last layer and divided by the number of positions. With max pooling a channel adds its weight times its maximum at
    the position of that maximum; positions with the same maximum share it. Dropout does nothing in inference.
    """
    features, pooled = _features(model, images), model.get_layer("pooled")
    if isinstance(pooled, keras.layers.GlobalAveragePooling2D):
        shares = 1 / tf.cast(tf.reduce_prod(tf.shape(features)[1:3]), tf.float32)
    elif isinstance(pooled, keras.layers.GlobalMaxPooling2D):
        # Ties are common after ReLU: a channel that is 0 everywhere has its maximum at every position.
        shares = tf.cast(features == tf.reduce_max(features, axis=(1, 2), keepdims=True), tf.float32)
        shares /= tf.reduce_sum(shares, axis=(1, 2), keepdims=True)
    else:
        raise ValueError(
            f"with pooling by {type(pooled).__name__} the logit is not a sum over positions: use the method grad_cam"
        )
    contributions = shares * features
    pooled = tf.reduce_sum(contributions, axis=(1, 2))
    weights = _weights(model, pooled, _kernels(model, _normalised(model, pooled), views))
    return tf.reduce_sum(contributions * weights[:, tf.newaxis, tf.newaxis], axis=-1).numpy()


def _weights(model: keras.Model, pooled: tf.Tensor, kernels: tf.Tensor) -> tf.Tensor:
    """The weight of each pooled feature in the logit, of the shape of `kernels`, the weights after the norm.

    A norm subtracts the mean of an image's features and divides by their standard deviation. With this deviation held
    fixed, the logit is linear in the features, and subtracting their mean subtracts the mean of the weights.
    """
    norm = norm_of(model)
    if norm is None:
        return kernels
    scaled = kernels * norm.gamma
    deviation = tf.sqrt(tf.math.reduce_variance(pooled, axis=1, keepdims=True) + norm.epsilon)
    return (scaled - tf.reduce_mean(scaled, axis=1, keepdims=True)) / deviation


def _kernels(model: keras.Model, features: tf.Tensor, views: np.ndarray) -> tf.Tensor:
    """The weight of each image's features (n, channels) in the logit: (n, channels), or (1, channels) without breasts.

    In a breast's logit an image has its share of the last layer's kernel. The shares, which depend on the features
    where they are attention or belong to a maximum, are held fixed. With the other breast, the difference of both has
    a kernel of its own, in which the other breast's images count negatively.
    """
    kernel, combination = model.get_layer("cancer").kernel[:, 0], combination_of(model)
    if combination is None:
        return kernel[tf.newaxis]
    codes, by_breast = tf.constant(views), _by_breast(features, views)
    own, opposite = is_own(codes), codes > OPPOSITE
    kernels = kernel[: features.shape[-1]] * _shares(combination, by_breast, codes, own)
    if combination.opposite:
        known = tf.cast(tf.reduce_any(opposite, axis=1), tf.float32)[:, tf.newaxis, tf.newaxis]
        difference = _shares(combination, by_breast, codes, own) - _shares(combination, by_breast, codes, opposite)
        kernels += known * kernel[features.shape[-1] :] * difference
    return tf.reshape(kernels, (-1, features.shape[-1]))


def _shares(combination: keras.Layer, features: tf.Tensor, codes: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """`Combination.shares` as (breasts, places, channels or 1)."""
    shares = combination.shares(features, codes, present)
    return shares if len(shares.shape) == 3 else shares[..., tf.newaxis]


def _normalised(model: keras.Model, pooled: tf.Tensor) -> tf.Tensor:
    norm = norm_of(model)
    return norm.call(pooled) if norm else pooled


def _by_breast(features: tf.Tensor, views: np.ndarray) -> tf.Tensor:
    """Features (n, channels) -> (breasts, places, channels)."""
    return tf.reshape(features, (*views.shape, features.shape[-1]))


METHODS: dict[str, Callable[[keras.Model, np.ndarray, np.ndarray], np.ndarray]] = {
    "class_activation": _class_activation,
    "grad_cam": _grad_cam,
}


def _features(model: keras.Model, images: np.ndarray) -> tf.Tensor:
    """The backbone's feature map, float32 (n, h, w, channels)."""
    return tf.cast(model.get_layer("backbone")(images, training=False), tf.float32)


def _on_images(maps: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Enlarge the positive part of maps (n, h, w) to the images, 0 outside the breast."""
    enlarged = np.zeros(images.shape[:3], np.float32)
    for values, image, place in zip(maps, images[..., 0], enlarged, strict=True):
        # Negative values are cut off before enlarging, or they would dim the positive values next to them.
        positive = np.maximum(values, 0).astype(np.float32)
        place[:] = cv2.resize(positive, image.shape[::-1], interpolation=cv2.INTER_CUBIC) * (image > 0)
    return np.maximum(enlarged, 0)  # cubic interpolation overshoots


def _scaled(maps: np.ndarray, places: int) -> np.ndarray:
    """Divide the maps (n, height, width) of each breast's places by their common maximum."""
    breasts = maps.reshape(-1, places, *maps.shape[1:])
    highest = breasts.max(axis=(1, 2, 3), keepdims=True)
    return np.divide(breasts, highest, out=breasts, where=highest > 0).reshape(maps.shape)
