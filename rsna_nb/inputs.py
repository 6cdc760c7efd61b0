"""PNG store -> tf.data batches: pictures uint8 (batch, height, width, 1), label and weight float32 (batch, 1).

Pictures stay 8-bit until they are on the device, where `Pictures.to_network` flips and scales them: a quarter of the
bytes to batch and to copy, and the processor's time is for decoding.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import tensorflow as tf

from rsna_nb.config import RunConfig
from rsna_nb.sampling import Sampling, Share

READ_AHEAD = 2  # batches: 256 pictures at 1024 take 256 MB


@dataclass(frozen=True)
class Examples:
    """What a network learns from, one row each: label and weight float32 (n, 1), and the batches they make."""

    labels: np.ndarray
    weights: np.ndarray
    sampling: Sampling

    def from_epoch(self, first: int, share: Share) -> tf.data.Dataset:
        """(position, variant), label, weight of one machine's examples, of the epoch `first`, counted from 0, and on.

        The epochs follow one another without a gap and without end: reading ahead does not stop at the end of one.
        """

        def epoch(number: np.int64) -> tuple:
            images, variants = self.sampling.of_worker(int(number), share)
            return images, variants, self.labels[images], self.weights[images]

        def examples(number: tf.Tensor) -> tf.data.Dataset:
            kinds = [tf.int64, tf.int64, tf.float32, tf.float32]
            images, variants, labels, weights = tf.numpy_function(epoch, [number], kinds, stateful=False)
            dataset = tf.data.Dataset.from_tensor_slices((images, variants, labels, weights))
            return dataset.map(lambda i, v, y, w: ((ensure(i), ensure(v)), ensure(y, 1), ensure(w, 1)))

        return tf.data.Dataset.counter(first).flat_map(examples)


@dataclass(frozen=True)
class Pictures:
    """The store's pictures of `shape`, (height, width) in pixels."""

    shape: tuple[int, int]

    def to_network(self, pictures: tf.Tensor, variants: tf.Tensor | None = None) -> tf.Tensor:
        """On the device: float32 (batch, height, width, 1) in 0-1, flipped as each variant, int64 (batch,), says."""
        if variants is not None:
            for bit, axis in ((1, 2), (2, 1)):
                mirrored = tf.bitwise.bitwise_and(variants, tf.constant(bit, tf.int64)) > 0
                pictures = tf.where(mirrored[:, None, None, None], tf.reverse(pictures, [axis]), pictures)
        return tf.cast(pictures, tf.float32) / 255

    def training(self, rows: pd.DataFrame, examples: Examples, first: int, share: Share) -> tf.data.Dataset:
        """Batches for one device, ((pictures, variants), labels, weights); `rows` has the column file."""
        files = tf.constant(rows["file"].tolist())

        def read(where: tuple, label: tf.Tensor, weight: tf.Tensor) -> tuple:
            position, variant = where
            return (read_picture(files[position], self.shape), variant), label, weight

        dataset = examples.from_epoch(first, share).map(read, tf.data.AUTOTUNE)
        return dataset.batch(examples.sampling.batch // share.replicas, drop_remainder=True).prefetch(READ_AHEAD)

    def evaluation(self, rows: pd.DataFrame, batch: int, share: Share) -> tf.data.Dataset:
        """Batches for all devices of one machine, (pictures,), of `filled_share`."""
        return self.read_all(rows["file"].to_numpy()[filled_share(len(rows), batch, share)], batch * share.local)

    def read_all(self, files: np.ndarray, batch: int) -> tf.data.Dataset:
        """Batches (pictures,) of the files in their order; what is left over makes none."""
        dataset = tf.data.Dataset.from_tensor_slices(files.tolist())
        dataset = dataset.map(lambda file: (read_picture(file, self.shape),), tf.data.AUTOTUNE)
        return dataset.batch(batch, drop_remainder=True).prefetch(READ_AHEAD)


def sample_batch(config: RunConfig, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The first training batch as the network sees it, float32 (batch, height, width, 1) in 0-1, and its labels."""
    batch = min(config.batch_size_per_gpu, len(rows))
    labels = rows["cancer"].to_numpy(np.float32)[:, np.newaxis]
    examples = Examples(labels, labels, Sampling.of(config, rows["cancer"].to_numpy(), batch))
    source = Pictures(config.image_shape)
    inputs, labels, _ = next(iter(source.training(rows, examples, 0, Share())))
    return source.to_network(*inputs).numpy(), labels.numpy()


def filled_share(count: int, batch: int, share: Share) -> np.ndarray:
    """One machine's part of the positions 0 to `count` - 1, filled up with zeros to steps of `batch` on each device."""
    step = batch * share.replicas
    positions = np.zeros(-(-count // step) * step, np.int64)
    positions[:count] = np.arange(count)
    return np.split(positions, share.workers)[share.worker]


def ensure(values: tf.Tensor, *shape: int) -> tf.Tensor:
    return tf.ensure_shape(values, shape)


def read_picture(file: tf.Tensor, shape: tuple[int, int]) -> tf.Tensor:
    """uint8 (height, width, 1) of a PNG of the store."""
    return tf.ensure_shape(tf.io.decode_png(tf.io.read_file(file), channels=1), (*shape, 1))
