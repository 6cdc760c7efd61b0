"""Features of images -> the scores of their breasts, by all images of each."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from rsna_nb.model.breasts import Breasts
from rsna_nb.model.combination import is_own

Inputs = tuple[Any, Any]  # tensors: features (breasts, places, channels) and view codes (breasts, places)
MOST_IMAGES = 8192  # at a time: 64 MB of 2,048 channels


def score_breasts(head: keras.Model, features: np.ndarray, breasts: Breasts) -> np.ndarray:
    """Score breasts by all of their images: float64 (breasts,) in 0-1.

    Parameters
    ----------
    head
        From `head_of` a detector whose `unit` is "breast" or "woman".
    features
        float32 (images, channels), from `body_of` that detector.
    breasts
        The breasts of these images.
    """
    scores = np.empty(len(breasts.images))

    def write(rows: np.ndarray, images: np.ndarray, values: Inputs) -> None:
        scores[rows] = keras.ops.convert_to_numpy(head(values, training=False))[:, 0]

    _in_chunks(features, breasts, write)
    return scores


def attention_of(head: keras.Model, features: np.ndarray, breasts: Breasts) -> np.ndarray:
    """The weight of each image in the vector of its own breast, float64 (images,) in 0-1; those of a breast sum to 1.

    The parameters are those of `score_breasts`; `Combination.attention_of` describes the weights.
    """
    attention, combination = np.empty(len(features)), head.get_layer("combination")

    def write(rows: np.ndarray, images: np.ndarray, values: Inputs) -> None:
        own = keras.ops.convert_to_numpy(is_own(values[1]))
        attention[images[own]] = keras.ops.convert_to_numpy(combination.attention_of(*values))[own]

    _in_chunks(features, breasts, write)
    return attention


def _in_chunks(features: np.ndarray, breasts: Breasts, write: Callable[[np.ndarray, np.ndarray, Inputs], None]) -> None:
    """Call `write` with the rows of some breasts, the rows of their images, and the inputs of the head."""
    images, views = breasts.all()
    # Breasts with equally many images together, so that few places are empty.
    counts = (views > 0).sum(axis=1)
    for count in np.unique(counts):
        alike = np.flatnonzero(counts == count)
        for rows in np.split(alike, range(MOST_IMAGES // count, len(alike), MOST_IMAGES // count)):
            used = (views[rows] > 0).any(axis=0)
            chosen, tensor = images[rows][:, used], keras.ops.convert_to_tensor
            write(rows, chosen, (tensor(features[chosen]), tensor(views[rows][:, used])))
