"""The layers that make one vector of the images of a breast, whatever their number and order.

Features are (batch, places, channels) and view codes int32 (batch, places), as `breasts` describes them. All is
computed in float32: rounding in half precision would make the score depend on the order of the images.
"""

from typing import Any

import keras
from keras import layers, ops

from rsna_nb.model.breasts import OPPOSITE, OTHER_VIEW

ATTENTION_UNITS = 128  # as in the experiments of Ilse et al.
FAR_BELOW = -1e9  # the logit of a place without an image, whose attention is then 0


@keras.saving.register_keras_serializable("rsna_nb")
class EachImage(layers.Layer):
    """Images of breasts (batch, places, height, width, 1) -> (batch x places, height, width, 1)."""

    def call(self, images: Any) -> Any:
        return ops.reshape(images, (-1, *images.shape[2:]))

    def compute_output_shape(self, shape: tuple) -> tuple:
        return (None, *shape[2:])


@keras.saving.register_keras_serializable("rsna_nb")
class ByBreast(layers.Layer):
    """Features of images (batch x places, channels) and view codes (batch, places) -> (batch, places, channels)."""

    def call(self, features: Any, views: Any) -> Any:
        return ops.reshape(features, (-1, ops.shape(views)[1], features.shape[-1]))

    def compute_output_shape(self, features_shape: tuple, views_shape: tuple) -> tuple:
        return (*views_shape, features_shape[-1])


@keras.saving.register_keras_serializable("rsna_nb")
class Combination(layers.Layer):
    """Combine the features of a breast's images into one vector.

    A learned vector of each image's view is added to its features. They are then combined by their mean, by the maximum
    of each channel, or by the gated attention of Ilse et al. 2018 (arXiv:1802.04712, equation 9), whose weights are
    positive and sum to 1. The mean and the attention make a weighted sum, so that the logit is a sum over the images.

    Parameters
    ----------
    how
        "mean", "max" or "attention".
    opposite
        Whether to add the difference to the other breast's vector, combined in the same way: the result is then
        (batch, 2 x channels). The difference is 0 if there is no image of the other breast.
    """

    def __init__(self, how: str, opposite: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.how, self.opposite = how, opposite

    def build(self, features_shape: tuple, views_shape: tuple) -> None:
        channels = features_shape[-1]
        # Zeros, so that a view that training never saw is as good as no knowledge of the view.
        self.view_vectors = self.add_weight((OTHER_VIEW, channels), "zeros", name="view_vectors")
        if self.how == "attention":
            self.tanh = self.add_weight((channels, ATTENTION_UNITS), "glorot_uniform", name="tanh")
            self.gate = self.add_weight((channels, ATTENTION_UNITS), "glorot_uniform", name="gate")
            self.attention = self.add_weight((ATTENTION_UNITS, 1), "glorot_uniform", name="attention")

    def call(self, features: Any, views: Any) -> Any:
        features = self.with_views(features, views)
        own = self._combined(features, (views > 0) & (views <= OPPOSITE))
        if not self.opposite:
            return own
        is_other = views > OPPOSITE
        difference = own - self._combined(features, is_other)
        known = ops.any(is_other, axis=1, keepdims=True)
        return ops.concatenate([own, ops.where(known, difference, 0.0)], axis=-1)

    def with_views(self, features: Any, views: Any) -> Any:
        """The features in float32, with the vectors of their views added."""
        kind = ops.maximum((views - 1) % OPPOSITE, 0)
        return ops.cast(features, "float32") + ops.take(self.view_vectors, kind, axis=0)

    def shares(self, features: Any, present: Any) -> Any:
        """The weight of each image, (batch, places) in 0-1, or of each of its channels if `how` is "max".

        Parameters
        ----------
        features
            From `with_views`.
        present
            bool (batch, places): the images of one breast. The weights of others are 0, and those of a breast sum to 1.
        """
        if self.how == "max":
            shown = ops.where(present[..., None], features, FAR_BELOW)
            is_highest = (shown == ops.max(shown, axis=1, keepdims=True)) & present[..., None]
            highest = ops.cast(is_highest, "float32")
            return highest / ops.maximum(ops.sum(highest, axis=1, keepdims=True), 1.0)
        shown = ops.cast(present, "float32")
        if self.how == "mean":
            return shown / ops.maximum(ops.sum(shown, axis=1, keepdims=True), 1.0)
        gated = ops.tanh(features @ self.tanh) * ops.sigmoid(features @ self.gate)
        logits = ops.where(present, (gated @ self.attention)[..., 0], FAR_BELOW)
        return ops.softmax(logits, axis=1) * shown  # 0 for a breast without an image

    def _combined(self, features: Any, present: Any) -> Any:
        shares = self.shares(features, present)
        return ops.sum(features * (shares if self.how == "max" else shares[..., None]), axis=1)

    def attention_of(self, features: Any, views: Any) -> Any:
        """The weight of each image in its own breast's vector, (batch, places) in 0-1; they sum to 1.

        With `how` "max" it is the share of the channels that have their maximum in this image.
        """
        shares = self.shares(self.with_views(features, views), (views > 0) & (views <= OPPOSITE))
        return ops.mean(shares, axis=-1) if self.how == "max" else shares

    def compute_output_shape(self, features_shape: tuple, views_shape: tuple) -> tuple:
        return (features_shape[0], features_shape[-1] * (2 if self.opposite else 1))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"how": self.how, "opposite": self.opposite}
