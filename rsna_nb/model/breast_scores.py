"""Features of images -> the scores of their breasts, by all images of each."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from rsna_nb.model.breasts import OPPOSITE, Breasts

CHUNK = 512  # breasts at a time: 64 MB of 2,048 channels for 16 places


class BreastScores(NamedTuple):
    """The scores of breasts, and what they were made of.

    Attributes
    ----------
    scores
        float64 (breasts,), in 0-1.
    attention
        float64 (images,): the weight of each image in its own breast's vector, in 0-1. Those of a breast sum to 1.
    """

    scores: np.ndarray
    attention: np.ndarray


def score_breasts(head: keras.Model, features: np.ndarray, breasts: Breasts) -> BreastScores:
    """Score breasts by all of their images.

    Parameters
    ----------
    head
        From `head_of` a detector whose `unit` is "breast" or "woman".
    features
        float32 (images, channels), from `body_of` that detector.
    breasts
        The breasts of these images.
    """
    images, views = breasts.all()
    scores, attention = np.empty(len(images)), np.empty(len(features))
    combination = head.get_layer("combination")
    # Breasts with equally many images follow each other, so that few places of a chunk are empty.
    order = np.argsort((views > 0).sum(axis=1), kind="stable")
    for rows in np.split(order, range(CHUNK, len(order), CHUNK)):
        used = (views[rows] > 0).any(axis=0)
        chosen, codes = images[rows][:, used], views[rows][:, used]
        values = tf.constant(features[chosen]), tf.constant(codes)
        scores[rows] = head(values, training=False).numpy()[:, 0]
        own = (codes > 0) & (codes <= OPPOSITE)
        attention[chosen[own]] = combination.attention_of(*values).numpy()[own]
    return BreastScores(scores, attention)
