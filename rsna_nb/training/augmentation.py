"""Strong augmentation on the device: rotation, zoom, shift, contrast, brightness, and an erased rectangle.

The random numbers come with each image and are a function of (seed, epoch), as its flip is: a resumed run and a run on
other devices see the same images. Keras's random layers have random states of their own. They also interpolate once for
every change, brighten the air around the breast by their contrast, and cannot be compiled by XLA
(ImageProjectiveTransformV3).
"""

import math

import tensorflow as tf

from rsna_nb.training.sampling import AUGMENTATION_PARAMETERS

ANGLE = math.radians(20)  # largest rotation, to either side
SCALE = 0.15  # largest zoom, in or out
SHIFT = 0.08  # largest shift, as a fraction of the shorter side
CONTRAST, BRIGHTNESS = 0.25, 0.1  # largest change of the contrast factor, and of the grey value (0-1)
ERASED = 0.5  # fraction of images with an erased rectangle
ERASED_SIDES = 0.1, 0.35  # its shortest and longest sides, as fractions of the image's


def augment(pictures: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Augment a batch of images; air, which is 0, stays 0.

    Parameters
    ----------
    pictures
        float32 (batch, height, width, 1) in 0-1.
    draws
        Random numbers, float32 (batch, AUGMENTATION_PARAMETERS) in 0-1. 0.5 changes nothing, except in the seventh:
        if it is below `ERASED`, the rectangle is erased.

    Returns
    -------
    tf.Tensor
        As `pictures`.
    """
    angle, scale, x, y, contrast, brightness, *rectangle = tf.unstack(draws, num=AUGMENTATION_PARAMETERS, axis=1)
    moved = warped(pictures, matrices(ANGLE * _spread(angle), 1 + SCALE * _spread(scale), _spread(x), _spread(y)))
    return _erased(_exposed(moved, 1 + CONTRAST * _spread(contrast), BRIGHTNESS * _spread(brightness)), rectangle)


def _spread(draw: tf.Tensor) -> tf.Tensor:
    """Map 0-1 to -1 to 1."""
    return 2 * draw - 1


def matrices(angle: tf.Tensor, scale: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Transforms (batch, 2, 3) for `warped`: angle in radians, scale as a factor, shifts -1 to 1 of `SHIFT`."""
    cosine, sine = tf.cos(angle) / scale, tf.sin(angle) / scale
    rows = [[cosine, -sine, 2 * SHIFT * x], [sine, cosine, 2 * SHIFT * y]]
    return tf.stack([tf.stack(row, axis=-1) for row in rows], axis=1)


def warped(pictures: tf.Tensor, transforms: tf.Tensor) -> tf.Tensor:
    """Resample images bilinearly, once for rotation, zoom and shift together; the value outside of an image is 0.

    `transforms` (batch, 2, 3) map positions in the result to positions in the image, with the centre as origin. In
    their units the shorter side reaches from -1 to 1.
    """
    height, width = pictures.shape[1:3]
    half, right, bottom = min(height, width) / 2, (width - 1) / 2, (height - 1) / 2
    grid = tf.meshgrid(*(tf.linspace(-end / half, end / half, round(2 * end) + 1) for end in (right, bottom)))
    places = tf.einsum("bij,jhw->bihw", transforms, tf.stack([*grid, tf.ones((height, width))]))
    x, y = half * places[:, 0] + right, half * places[:, 1] + bottom
    flat = tf.reshape(pictures, (-1, height * width))
    left, top = tf.floor(x), tf.floor(y)
    result = tf.zeros_like(x)
    for column, across in ((left, 1 - (x - left)), (left + 1, x - left)):
        for row, down in ((top, 1 - (y - top)), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            # XLA needs every index to be valid, also where the weight is 0.
            index = tf.cast(tf.where(inside, row * width + column, 0), tf.int32)
            values = tf.gather(flat, tf.reshape(index, (-1, height * width)), batch_dims=1)
            result += tf.where(inside, across * down, 0) * tf.reshape(values, tf.shape(index))
    return result[..., tf.newaxis]


def _exposed(pictures: tf.Tensor, contrast: tf.Tensor, brightness: tf.Tensor) -> tf.Tensor:
    """Change the contrast of tissue around its own mean, and its brightness; both (batch,)."""
    tissue = tf.cast(pictures > 0, tf.float32)
    mean = tf.reduce_sum(pictures, (1, 2, 3)) / tf.maximum(tf.reduce_sum(tissue, (1, 2, 3)), 1)
    mean, contrast, brightness = (value[:, None, None, None] for value in (mean, contrast, brightness))
    return tf.clip_by_value(mean + contrast * (pictures - mean) + brightness, 0, 1) * tissue


def _erased(pictures: tf.Tensor, draws: list[tf.Tensor]) -> tf.Tensor:
    """Erase a rectangle; `draws` (batch,) decide whether (below `ERASED`), and give its centre x, y and its sides."""
    height, width = pictures.shape[1:3]
    chosen, x, y, across, down = draws
    least, most = ERASED_SIDES

    def within(centre: tf.Tensor, side: tf.Tensor, length: int) -> tf.Tensor:
        places = (tf.range(length, dtype=tf.float32) + 0.5) / length
        return tf.abs(places - centre[:, None]) < (least + (most - least) * side[:, None]) / 2

    inside = within(y, down, height)[:, :, None] & within(x, across, width)[:, None, :]
    inside &= (chosen < ERASED)[:, None, None]
    return tf.where(inside[..., None], 0.0, pictures)
