"""PNG store -> tf.data batches: pictures uint8 (batch, height, width, 1), label and weight float32 (batch, 1).

Pictures stay 8-bit until they are on the device, where `Pictures.to_network` scales, flips and changes them: a quarter
of the bytes to batch and to copy, and the processor's time is for decoding.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import tensorflow as tf

from rsna_nb.config import RunConfig
from rsna_nb.training.augmentation import augment
from rsna_nb.training.sampling import AUGMENTATION_PARAMETERS, Sampling, Share

READ_AHEAD = 2  # batches: 256 pictures at 1024 take 256 MB


@dataclass(frozen=True)
class Examples:
    """What a network learns from, one row each: label and weight float32 (n, 1), and the batches they make."""

    labels: np.ndarray
    weights: np.ndarray
    sampling: Sampling

    def from_epoch(self, first: int, share: Share) -> tf.data.Dataset:
        """(position, variant), label, weight of one machine's examples, of the epoch `first`, counted from 0, and on.

        With strong augmentation it is (position, variant, draws). The epochs follow one another without a gap and
        without end: reading ahead does not stop at the end of one.
        """
        strong = self.sampling.strong
        kinds = [tf.int64, tf.int64, *([tf.float32] if strong else []), tf.float32, tf.float32]
        shapes = [(), (), *([(AUGMENTATION_PARAMETERS,)] if strong else []), (1,), (1,)]

        def epoch(number: np.int64) -> tuple:
            images, *changes = self.sampling.of_worker(int(number), share)
            return images, *changes, self.labels[images], self.weights[images]

        def example(*values: tf.Tensor) -> tuple:
            *where, label, weight = map(tf.ensure_shape, values, shapes)
            return tuple(where), label, weight

        def examples(number: tf.Tensor) -> tf.data.Dataset:
            values = tf.numpy_function(epoch, [number], kinds, stateful=False)
            return tf.data.Dataset.from_tensor_slices(tuple(values)).map(example)

        return tf.data.Dataset.counter(first).flat_map(examples)


@dataclass(frozen=True)
class Pictures:
    """The store's pictures of `shape`, (height, width) in pixels."""

    shape: tuple[int, int]

    def to_network(
        self, pictures: tf.Tensor, variants: tf.Tensor | None = None, draws: tf.Tensor | None = None
    ) -> tf.Tensor:
        """On the device: float32 (batch, height, width, 1) in 0-1, flipped as each variant, int64 (batch,), says, and
        changed as its draws, float32 (batch, AUGMENTATION_PARAMETERS), say."""
        if variants is not None:
            for bit, axis in ((1, 2), (2, 1)):
                mirrored = tf.bitwise.bitwise_and(variants, tf.constant(bit, tf.int64)) > 0
                pictures = tf.where(mirrored[:, None, None, None], tf.reverse(pictures, [axis]), pictures)
        values = tf.cast(pictures, tf.float32) / 255
        return values if draws is None else augment(values, draws)

    def training(self, rows: pd.DataFrame, examples: Examples, first: int, share: Share) -> tf.data.Dataset:
        """Batches for one device, ((pictures, variants), labels, weights), with strong augmentation ((pictures,
        variants, draws), labels, weights); `rows` has the column file."""
        files = tf.constant(rows["file"].tolist())

        def read(where: tuple, label: tf.Tensor, weight: tf.Tensor) -> tuple:
            position, *changes = where
            return (read_picture(files[position], self.shape), *changes), label, weight

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
    inputs, labels, _ = next(iter(sample_training(config, rows, min(config.batch_size_per_gpu, len(rows)))))
    return Pictures(config.image_shape).to_network(*inputs).numpy(), labels.numpy()


def sample_changes(config: RunConfig, rows: pd.DataFrame, count: int = 7) -> np.ndarray:
    """The first of `rows`: as it is, then as it is seen in `count` epochs, float32 (count + 1, height, width, 1)."""
    source = Pictures(config.image_shape)
    epochs = sample_training(config.replace(imbalance="none"), rows[:1], 1).take(count)  # one image is no balance
    seen = [source.to_network(*inputs).numpy() for inputs, _, _ in epochs]
    return np.concatenate([source.to_network(read_picture(rows["file"].iloc[0], source.shape)[None]).numpy(), *seen])


def sample_training(config: RunConfig, rows: pd.DataFrame, batch: int) -> tf.data.Dataset:
    labels = rows["cancer"].to_numpy(np.float32)[:, np.newaxis]
    examples = Examples(labels, labels, Sampling.of(config, rows["cancer"].to_numpy(), batch))
    return Pictures(config.image_shape).training(rows, examples, 0, Share())


def filled_share(count: int, batch: int, share: Share) -> np.ndarray:
    """One machine's part of the positions 0 to `count` - 1, filled up with zeros to steps of `batch` on each device."""
    step = batch * share.replicas
    positions = np.zeros(-(-count // step) * step, np.int64)
    positions[:count] = np.arange(count)
    return np.split(positions, share.workers)[share.worker]


def read_picture(file: tf.Tensor, shape: tuple[int, int]) -> tf.Tensor:
    """uint8 (height, width, 1) of a PNG of the store."""
    return tf.ensure_shape(tf.io.decode_png(tf.io.read_file(file), channels=1), (*shape, 1))
