"""PNG store -> tf.data batches: image float32 (batch, height, width, 1) in 0-1, label and weight (batch, 1).

The order of an epoch and every image's flips are functions of (seed, epoch, image): any epoch can be begun
anew, on any machine, and is the same.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import tensorflow as tf

from rsna_nb.config import ConfigError, RunConfig

READ_AHEAD = 2  # batches in float32: 256 images at 1024 take 1 GB, for each GPU


def global_batch(config: RunConfig, replicas: int, images: int) -> int:
    """The batch over all replicas: a multiple of them, and no larger than the data."""
    wanted = config.batch_size_per_gpu * replicas
    if wanted <= images:
        return wanted
    batch = images - images % replicas
    if batch == 0:
        raise ConfigError(f"limit_patients leaves {images} training images for {replicas} devices")
    return batch


def training_batches(
    config: RunConfig, rows: pd.DataFrame, weights: Mapping[int, float], replicas: int = 1
) -> tf.data.Dataset:
    """Batches of all epochs one after another, len(rows) // batch of them an epoch.

    `rows` has the columns file and cancer. What is left over in an epoch is dropped, since a small last batch
    would weigh more. Reading ahead does not stop at the end of an epoch.
    """
    count, batch = len(rows), global_batch(config, replicas, len(rows))
    columns = (tf.constant(rows["file"].tolist()), column(rows["cancer"]), column(rows["cancer"].map(weights)))
    share = 0.5 if config.augmentation == "flips" else 0.0

    def epoch_examples(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.argsort(tf.random.stateless_uniform([count], [config.seed, 2 * epoch]), stable=True)
        flipped = tf.random.stateless_uniform([count, 2], [config.seed, 2 * epoch + 1]) < share
        kept = order[: count // batch * batch]
        return tf.data.Dataset.from_tensor_slices(tuple(tf.gather(values, kept) for values in (*columns, flipped)))

    def read_example(file: tf.Tensor, label: tf.Tensor, weight: tf.Tensor, flipped: tf.Tensor) -> tuple:
        return read_picture(file, config.image_shape), label, weight, flipped

    def finish(images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, flipped: tf.Tensor) -> tuple:
        return to_unit_range(flip(images, flipped)), labels, weights

    dataset = tf.data.Dataset.range(config.epochs).flat_map(epoch_examples)
    dataset = dataset.map(read_example, tf.data.AUTOTUNE).batch(batch, drop_remainder=True)
    return dataset.map(finish, READ_AHEAD).prefetch(READ_AHEAD)


def evaluation_batches(config: RunConfig, rows: pd.DataFrame, replicas: int = 1) -> tf.data.Dataset:
    """Images alone, in order; the last batch is filled up with the first image, so cut the scores to len(rows).

    Under a strategy every batch then divides by the replicas, and the network is compiled for one shape.
    """
    files = rows["file"].tolist()
    batch = min(config.batch_size_per_gpu, -(-len(files) // replicas)) * replicas
    files += files[:1] * (-len(files) % batch)
    dataset = tf.data.Dataset.from_tensor_slices(files)
    dataset = dataset.map(lambda file: read_picture(file, config.image_shape), tf.data.AUTOTUNE)
    return dataset.batch(batch, drop_remainder=True).map(to_unit_range).prefetch(READ_AHEAD)


def column(values: pd.Series) -> tf.Tensor:
    return tf.constant(values.to_numpy(np.float32)[:, np.newaxis])


def read_picture(file: tf.Tensor, shape: tuple[int, int]) -> tf.Tensor:
    """uint8 (height, width, 1) of a PNG of the store."""
    return tf.ensure_shape(tf.io.decode_png(tf.io.read_file(file), channels=1), (*shape, 1))


def to_unit_range(images: tf.Tensor) -> tf.Tensor:
    return tf.cast(images, tf.float32) / 255


def flip(images: tf.Tensor, flipped: tf.Tensor) -> tf.Tensor:
    """Each image of the batch mirrored left to right and top to bottom as `flipped`, bool (batch, 2), says."""
    for flag, axis in ((flipped[:, 0], 2), (flipped[:, 1], 1)):
        images = tf.where(flag[:, None, None, None], tf.reverse(images, [axis]), images)
    return images
