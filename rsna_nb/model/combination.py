"""The layers that make one vector of the images of a breast, whatever their number and order.

Features are (batch, places, channels) and view codes int32 (batch, places), as `breasts` describes them. All is
computed in float32: rounding in half precision would make the score depend on the order of the images.
"""

from typing import Any

import keras
from keras import layers, ops

from rsna_nb.model.breasts import OPPOSITE, OTHER_VIEW

ATTENTION_UNITS = (
    16  # Ilse et al. have 128; with 2,048 channels 64 make an epoch from the feature bank 1.7 times longer
)
FAR_BELOW = -1e9  # what stands for a place without an image where the maximum is sought


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
            # One matrix for both halves of the gate, so that the features are read once.
            self.gate = self.add_weight((channels, 2 * ATTENTION_UNITS), "glorot_uniform", name="gate")
            # Zeros: training begins with equal weights, the mean, and leaves it only as far as that lowers the loss.
            self.attention = self.add_weight((ATTENTION_UNITS, 1), "zeros", name="attention")

    def call(self, features: Any, views: Any) -> Any:
        own = self._combined(features, views, is_own(views))
        if not self.opposite:
            return own
        difference = own - self._combined(features, views, views > OPPOSITE)
        known = ops.any(views > OPPOSITE, axis=1, keepdims=True)
        return ops.concatenate([own, ops.where(known, difference, 0.0)], axis=-1)

    def shares(self, features: Any, views: Any, present: Any) -> Any:
        """The weight of each image in the vector of a breast.

        Parameters
        ----------
        features, views
            As the layer takes them.
        present
            bool (batch, places): the images of that breast. Only they have weights above 0, which sum to 1.

        Returns
        -------
        (batch, places) in 0-1; with `how` "max" (batch, places, channels), the weights of each channel.
        """
        shown = ops.cast(present, "float32")
        if self.how == "max":
            values = ops.where(present[..., None], self._with_views(features, views), FAR_BELOW)
            shown = ops.cast(values == ops.max(values, axis=1, keepdims=True), "float32") * shown[..., None]
        if self.how == "attention":
            halves = ops.split(self._gate(features, views), 2, axis=-1)
            logits = ops.tensordot(ops.tanh(halves[0]) * ops.sigmoid(halves[1]), self.attention, 1)[..., 0]
            # By hand, since Keras's softmax warns of an axis of length 1, and a breast without an image has no weights.
            logits = ops.where(present, logits, FAR_BELOW)
            shown *= ops.exp(logits - ops.max(logits, axis=1, keepdims=True))
        # The largest of these is 1, so a breast with an image is divided by 1 or more.
        return shown / ops.maximum(ops.sum(shown, axis=1, keepdims=True), 1.0)

    def attention_of(self, features: Any, views: Any) -> Any:
        """The weight of each image in its own breast's vector, (batch, places) in 0-1; they sum to 1.

        With `how` "max" it is the share of the channels that have their maximum in this image.
        """
        shares = self.shares(features, views, is_own(views))
        return ops.mean(shares, axis=-1) if self.how == "max" else shares

    def _combined(self, features: Any, views: Any, present: Any) -> Any:
        features = ops.cast(features, "float32")
        if self.how == "max":
            # One sum and one maximum over the features; `shares` would read them six times.
            absent = ops.expand_dims(ops.where(present, 0.0, FAR_BELOW), -1)  # LiteRT lacks [..., None]
            largest = ops.max(features + (self._of_views(views) + absent), axis=1)
            return ops.where(ops.any(present, axis=1, keepdims=True), largest, 0.0)
        shares = self.shares(features, views, present)
        # The views' vectors are added to the sum and not to each image: the features are the largest tensor by far.
        of_views = ops.einsum("bp,bpv->bv", shares, _kinds(views))
        return ops.einsum("bp,bpc->bc", shares, features) + ops.matmul(of_views, self.view_vectors)

    def _with_views(self, features: Any, views: Any) -> Any:
        return ops.cast(features, "float32") + self._of_views(views)

    def _of_views(self, views: Any) -> Any:
        return ops.tensordot(_kinds(views), self.view_vectors, 1)

    def _gate(self, features: Any, views: Any) -> Any:
        """The features with the views' vectors, times the weights of the gate."""
        # tensordot and not matmul, whose gradient would have the size batch x channels x units.
        projected = ops.tensordot(ops.cast(features, "float32"), self.gate, 1)
        return projected + ops.tensordot(_kinds(views), ops.matmul(self.view_vectors, self.gate), 1)

    def compute_output_shape(self, features_shape: tuple, views_shape: tuple) -> tuple:
        return (features_shape[0], features_shape[-1] * (2 if self.opposite else 1))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"how": self.how, "opposite": self.opposite}


def is_own(views: Any) -> Any:
    """Whether a place has an image of the breast itself, bool (batch, places)."""
    return (views > 0) & (views <= OPPOSITE)


def _kinds(views: Any) -> Any:
    """The view of each image as one-hot vectors, float32 (batch, places, 3); zeros where there is no image."""
    # A lookup by index would have a sparse gradient, which the sums over microbatches and devices cannot add.
    kinds = ops.one_hot(ops.where(views > 0, (views - 1) % OPPOSITE, -1), OTHER_VIEW)
    return ops.cast(kinds, "float32")
