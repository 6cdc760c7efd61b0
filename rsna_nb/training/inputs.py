"""PNG store -> tf.data batches: images uint8 (batch, height, width, 1), labels and weights float32 (batch, 1).

Breasts have images (batch, places, height, width, 1), and with them view codes int32 (batch, places), which come first.
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
from rsna_nb.model import Breasts
from rsna_nb.training.augmentation import augment
from rsna_nb.training.distribution import find_devices
from rsna_nb.training.sampling import AUGMENTATION_PARAMETERS, Sampling, Share, global_batch

READ_AHEAD = 2  # batches to prepare in advance; one of 256 images of 1024 x 1024 pixels takes 256 MiB
MOST_SHOWN = 256  # images of a batch that `sample_batch` reads: with accumulation a batch may have thousands


@dataclass(frozen=True)
class Examples:
    """The training examples as labels and weights, float32 (n, 1), and the batches that they make.

    `breasts` are given if an example is a breast.
    """

    labels: np.ndarray
    weights: np.ndarray
    sampling: Sampling
    breasts: Breasts | None = None

    @classmethod
    def of(
        cls, cancer: pd.Series, class_weights: dict[int, float], sampling: Sampling, breasts: Breasts | None = None
    ) -> "Examples":
        """The examples of a column of labels; each has the weight of its class."""
        weights = cancer.map(class_weights)
        return cls(cancer.to_numpy(np.float32)[:, None], weights.to_numpy(np.float32)[:, None], sampling, breasts)

    def from_epoch(self, first: int, share: Share) -> tf.data.Dataset:
        """One computer's examples from the epoch `first` on, counted from 0: ((position, variant), label, weight).

        A breast has its view codes first, and a position and variant for each place: ((views, position, variant),
        label, weight). With strong augmentation draws follow the variants. Epochs follow one another without a gap and
        without end, so reading ahead does not pause at the end of an epoch.
        """
        places, column = (self.sampling.places,) * bool(self.sampling.places), tf.TensorSpec((None, 1), tf.float32)
        where = [tf.TensorSpec((None, *places), tf.int32)] * bool(places)
        where += [tf.TensorSpec((None, *places), tf.int64)] * 2
        if self.sampling.strong:
            where.append(tf.TensorSpec((None, *places, AUGMENTATION_PARAMETERS), tf.float32))

        def epochs() -> Iterator[tuple]:
            for number in itertools.count(first):
                chosen, *changes = self.sampling.of_worker(number, share)
                yield (*self.images_of(chosen, number), *changes), self.labels[chosen], self.weights[chosen]

        # A whole epoch at a time, because Python is too slow for single examples.
        return tf.data.Dataset.from_generator(epochs, output_signature=((*where,), column, column)).unbatch()

    def images_of(self, chosen: np.ndarray, epoch: int) -> tuple[np.ndarray, ...]:
        """The images of examples, or the view codes and the images if they are breasts."""
        if self.breasts is None:
            return (chosen,)
        places = self.sampling.places // (1 if self.breasts.opposite is None else 2)
        images, views = self.breasts.drawn(self.sampling.seed, epoch, places)
        return views[chosen], images[chosen]


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
            uint8 (batch, height, width, 1), or (batch, places, height, width, 1) of breasts.
        variants
            How each image is flipped, int64 (batch,) from 0 to 3 (`sampling.VARIANTS`); None flips none.
        draws
            How each image is augmented, float32 (batch, AUGMENTATION_PARAMETERS) in 0-1; None augments none.

        Returns
        -------
        tf.Tensor
            float32 in 0-1, of the shape of `pictures`.
        """
        if len(pictures.shape) == 5:
            flat = [value if value is None else _each_image(value) for value in (pictures, variants, draws)]
            return tf.reshape(self.to_network(*flat), tf.shape(pictures))
        if variants is not None:
            for bit, axis in ((1, 2), (2, 1)):
                mirrored = tf.bitwise.bitwise_and(variants, tf.constant(bit, tf.int64)) > 0
                pictures = tf.where(mirrored[:, None, None, None], tf.reverse(pictures, [axis]), pictures)
        values = tf.cast(pictures, tf.float32) / 255  # after the flips, which move a quarter of the bytes in uint8
        return values if draws is None else augment(values, draws)

    def training(self, rows: pd.DataFrame, examples: Examples, first: int, share: Share) -> tf.data.Dataset:
        """Training batches for one device, from the epoch `first` on: ((images, variants), labels, weights).

        With strong augmentation draws follow the variants, and view codes come before the images of breasts. `rows` has
        the column file.
        """
        files, places = tf.constant(rows["file"].tolist()), examples.sampling.places

        def read(where: tuple, label: tf.Tensor, weight: tf.Tensor) -> tuple:
            views, (position, *changes) = (where[:1], where[1:]) if places else ((), where)
            positions = tf.unstack(position, places) if places else [position]
            images = [_read_picture(files[each], self.shape) for each in positions]
            return (*views, tf.stack(images) if places else images[0], *changes), label, weight

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


def sample_batch(config: RunConfig, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The first batch of training as the network sees it, or its first 256 images.

    Parameters
    ----------
    config
        The settings of the run.
    rows
        The training images, with the columns file, cancer, and with `unit` other than "image" patient_id, laterality
        and view.

    Returns
    -------
    tuple[np.ndarray, np.ndarray, np.ndarray | None]
        Images, float32 (n, height, width, 1) in 0-1; labels (n,), 0 or 1; and None. With `unit` other than "image":
        images (n, places, height, width, 1), labels, and view codes int32 (n, places) (`model.Breasts`).
    """
    breasts = None if config.unit == "image" else Breasts.of(rows, config.unit)
    cancer = (rows if breasts is None else breasts.table)["cancer"].to_numpy()
    sampling = Sampling.of(config, cancer, global_batch(config, find_devices().replicas, len(cancer)))
    shown = min(sampling.batch, MOST_SHOWN // (sampling.places or 1))
    chosen, *changes = (plan[:shown] for plan in sampling.of_worker(0, Share()))
    examples = Examples.of(pd.Series(cancer), {0: 1.0, 1: 1.0}, sampling, breasts)
    *views, images = examples.images_of(chosen, 0)
    files = rows["file"].iloc[images.ravel()]
    seen = _as_seen(config, files, [change.reshape(len(files), *change.shape[images.ndim :]) for change in changes])
    return seen.reshape(*images.shape, *seen.shape[1:]), cancer[chosen], views[0] if views else None


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


def _each_image(values: tf.Tensor) -> tf.Tensor:
    """Values of the images of breasts (batch, places, ...) -> (batch x places, ...)."""
    return tf.reshape(values, (-1, *values.shape[2:]))


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
