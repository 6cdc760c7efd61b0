"""PNG store -> tf.data batches: images uint8 (batch, height, width, 1), labels and weights float32 (batch, 1).

Images stay 8-bit until they are on the device, where `Pictures.to_network` scales, flips and augments them. Only a
quarter of the bytes must then be batched and copied, and the CPU is free for decoding.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import tensorflow as tf

from rsna_nb.config import RunConfig
from rsna_nb.training.augmentation import augment
from rsna_nb.training.distribution import find_devices
from rsna_nb.training.sampling import AUGMENTATION_PARAMETERS, Sampling, Share, global_batch

READ_AHEAD = 2  # batches to prepare in advance; one of 256 images of 1024 x 1024 pixels takes 256 MiB
MOST_SHOWN = 256  # images of a batch that `sample_batch` reads: with accumulation a batch may have thousands


@dataclass(frozen=True)
class Examples:
    """The training images as labels and weights, float32 (n, 1), and the batches that they make."""

    labels: np.ndarray
    weights: np.ndarray
    sampling: Sampling

    @classmethod
    def of(cls, cancer: pd.Series, class_weights: dict[int, float], sampling: Sampling) -> "Examples":
        """The examples of a column of labels; each image has the weight of its class."""
        weights = cancer.map(class_weights)
        return cls(cancer.to_numpy(np.float32)[:, None], weights.to_numpy(np.float32)[:, None], sampling)

    def from_epoch(self, first: int, share: Share) -> tf.data.Dataset:
        """One computer's examples from the epoch `first` on, counted from 0: ((position, variant), label, weight).

        With strong augmentation an example is ((position, variant, draws), label, weight). Epochs follow one another
        without a gap and without end, so reading ahead does not pause at the end of an epoch.
        """
        where, column = [tf.TensorSpec((None,), tf.int64)] * 2, tf.TensorSpec((None, 1), tf.float32)
        if self.sampling.strong:
            where.append(tf.TensorSpec((None, AUGMENTATION_PARAMETERS), tf.float32))

        def epochs() -> Iterator[tuple]:
            for number in itertools.count(first):
                images, *changes = self.sampling.of_worker(number, share)
                yield (images, *changes), self.labels[images], self.weights[images]

        # A whole epoch at a time, because Python is too slow for single examples.
        return tf.data.Dataset.from_generator(epochs, output_signature=((*where,), column, column)).unbatch()


@dataclass(frozen=True)
class Pictures:
    """The store's images as a source of batches; `shape` is (height, width) in pixels."""

    shape: tuple[int, int]

    def to_network(
        self, pictures: tf.Tensor, variants: tf.Tensor | None = None, draws: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Scale, flip and augment a batch on the device.

        Parameters
        ----------
        pictures
            uint8 (batch, height, width, 1).
        variants
            How each image is flipped, int64 (batch,) from 0 to 3 (`sampling.VARIANTS`); None flips none.
        draws
            How each image is augmented, float32 (batch, AUGMENTATION_PARAMETERS) in 0-1; None augments none.

        Returns
        -------
        tf.Tensor
            float32 (batch, height, width, 1) in 0-1.
        """
        if variants is not None:
            for bit, axis in ((1, 2), (2, 1)):
                mirrored = tf.bitwise.bitwise_and(variants, tf.constant(bit, tf.int64)) > 0
                pictures = tf.where(mirrored[:, None, None, None], tf.reverse(pictures, [axis]), pictures)
        values = tf.cast(pictures, tf.float32) / 255  # after the flips, which move a quarter of the bytes in uint8
        return values if draws is None else augment(values, draws)

    def training(self, rows: pd.DataFrame, examples: Examples, first: int, share: Share) -> tf.data.Dataset:
        """Training batches for one device, from the epoch `first` on: ((images, variants), labels, weights).

        With strong augmentation they are ((images, variants, draws), labels, weights). `rows` has the column file.
        """
        files = tf.constant(rows["file"].tolist())

        def read(where: tuple, label: tf.Tensor, weight: tf.Tensor) -> tuple:
            position, *changes = where
            return (_read_picture(files[position], self.shape), *changes), label, weight

        dataset = examples.from_epoch(first, share).map(read, tf.data.AUTOTUNE)
        # A partial last batch would bias the gradient.
        return dataset.batch(examples.sampling.batch // share.replicas, drop_remainder=True).prefetch(READ_AHEAD)

    def evaluation(self, rows: pd.DataFrame, batch: int, share: Share) -> tf.data.Dataset:
        """Batches (images,) for all devices of one computer together, in the order of `filled_share`."""
        return self.read_all(rows["file"].to_numpy()[filled_share(len(rows), batch, share)], batch * share.local)

    def read_all(self, files: np.ndarray, batch: int) -> tf.data.Dataset:
        """Batches (images,) of the files in their order; a remainder is dropped."""
        dataset = tf.data.Dataset.from_tensor_slices(files.tolist())
        dataset = dataset.map(lambda file: (_read_picture(file, self.shape),), tf.data.AUTOTUNE)
        return dataset.batch(batch, drop_remainder=True).prefetch(READ_AHEAD)


def sample_batch(config: RunConfig, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The first batch of training as the network sees it, or its first 256 images.

    Parameters
    ----------
    config
        The settings of the run.
    rows
        The training images, with the columns file and cancer.

    Returns
    -------
    tuple[np.ndarray, np.ndarray]
        Images, float32 (n, height, width, 1) in 0-1, and labels (n,), 0 or 1.
    """
    cancer = rows["cancer"].to_numpy()
    sampling = Sampling.of(config, cancer, global_batch(config, find_devices().replicas, len(rows)))
    images, *changes = (plan[: min(sampling.batch, MOST_SHOWN)] for plan in sampling.of_worker(0, Share()))
    return _as_seen(config, rows["file"].iloc[images], changes), cancer[images]


def sample_changes(config: RunConfig, rows: pd.DataFrame, count: int = 7) -> np.ndarray:
    """One image as augmentation changes it from epoch to epoch.

    Returns
    -------
    np.ndarray
        The first image of `rows`, unchanged and then as the network sees it in `count` epochs: float32
        (count + 1, height, width, 1) in 0-1.
    """
    # Not by `Sampling.of`: one image makes no balanced batches, and its augmentation does not depend on them.
    flips, strong = config.augmentation != "none", config.augmentation == "strong"
    sampling = Sampling(np.zeros(1), 1, config.seed, flips, strong=strong)
    changes = zip(*(sampling.of_worker(epoch, Share())[1:] for epoch in range(count)), strict=True)
    file = rows["file"].iloc[:1]
    seen = _as_seen(config, file.repeat(count), [np.concatenate(change) for change in changes])
    return np.concatenate([_as_seen(config, file, []), seen])


def _as_seen(config: RunConfig, files: pd.Series, changes: list[np.ndarray]) -> np.ndarray:
    """The network's input for some files; `changes` are their variants and, for strong augmentation, draws."""
    pictures = tf.stack([_read_picture(file, config.image_shape) for file in files])
    return Pictures(config.image_shape).to_network(pictures, *map(tf.constant, changes)).numpy()


def filled_share(count: int, batch: int, share: Share) -> np.ndarray:
    """One computer's part of the positions 0 to `count` - 1.

    They are filled up with zeros to whole steps of `batch` images on each device, so that all computers and devices
    take the same number of steps.

    >>> filled_share(5, batch=2, share=Share(worker=1, workers=2, replicas=2))
    array([4, 0, 0, 0])
    """
    step = batch * share.replicas
    positions = np.zeros(-(-count // step) * step, np.int64)
    positions[:count] = np.arange(count)
    return np.split(positions, share.workers)[share.worker]


def _read_picture(file: tf.Tensor, shape: tuple[int, int]) -> tf.Tensor:
    """uint8 (height, width, 1) of a PNG in the store."""
    return tf.ensure_shape(tf.io.decode_png(tf.io.read_file(file), channels=1), (*shape, 1))
