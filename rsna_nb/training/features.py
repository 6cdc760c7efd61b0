"""The feature bank: what a frozen backbone makes of each picture and its mirror images, computed once and kept.

With a frozen backbone and flips, a picture has four variants: four passes through the network hold everything that
all epochs, seeds and folds can ask for. A bank lies beside the store, in blocks that are there whole or not at all;
what a killed run had computed is found again.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from rsna_nb.config import RunConfig
from rsna_nb.system import DamagedFileError, locked, read_arrays, remove_parts, write_arrays
from rsna_nb.training.data import Data
from rsna_nb.training.distribution import Devices
from rsna_nb.training.inputs import READ_AHEAD, Examples, Pictures, filled_share
from rsna_nb.training.sampling import VARIANTS, Share

log = logging.getLogger(__name__)

RECIPE = 1  # of all before the network; another one is another bank
BATCH = 32  # pictures a device; larger ones are no faster and need more memory
SECONDS_A_BLOCK = 30  # of work that a kill can cost
ROWS_A_BLOCK = 8192  # 64 MB of 2,048 channels


class FeatureBankError(RuntimeError):
    """The bank lacks what was computed for it; the message says why."""


@dataclass(frozen=True)
class Features:
    """Pooled features float32 (images, variants, channels) of the rows whose keys they were looked up by."""

    values: np.ndarray
    position: pd.Series  # in `values`, by file

    def to_network(self, features: tf.Tensor) -> tf.Tensor:
        return features

    def training(self, rows: pd.DataFrame, examples: Examples, first: int, share: Share) -> tf.data.Dataset:
        """As `Pictures.training`, batches for one device, ((features,), labels, weights)."""
        batch, channels = examples.sampling.batch // share.replicas, self.values.shape[-1]
        positions = self.position[rows["file"]].to_numpy()

        def take(images: np.ndarray, variants: np.ndarray) -> np.ndarray:
            return self.values[positions[images], variants]

        def features_at(where: tuple, labels: tf.Tensor, weights: tf.Tensor) -> tuple:
            features = tf.numpy_function(take, where, tf.float32, stateful=False)
            return (tf.ensure_shape(features, (batch, channels)),), labels, weights

        dataset = examples.from_epoch(first, share).batch(batch, drop_remainder=True)
        return dataset.map(features_at).prefetch(READ_AHEAD)

    def evaluation(self, rows: pd.DataFrame, batch: int, share: Share) -> tf.data.Dataset:
        """As `Pictures.evaluation`, (features,) of the pictures as they are."""
        chosen = self.position[rows["file"]].to_numpy()[filled_share(len(rows), batch, share)]
        dataset = tf.data.Dataset.from_tensor_slices((self.values[chosen, 0],))
        return dataset.batch(batch * share.local, drop_remainder=True)


def applies(config: RunConfig) -> bool:
    """Whether the network before the head never changes, and a picture has few variants."""
    return config.feature_bank and config.freeze_backbone and config.augmentation in ("none", "flips")


def features_of(config: RunConfig, data: Data, pooled: keras.Model, devices: Devices) -> Features:
    """What `pooled` makes of a run's training and validation images, from its bank, which is filled up first.

    Training images have four variants where augmentation is "flips", all others one.
    """
    table = data.table[data.table["split"].isin(["train", "validation"])]
    wanted = np.ones((len(table), VARIANTS if config.augmentation == "flips" else 1), bool)
    wanted[(table["split"] != "train").to_numpy(), 1:] = False
    keys = (data.digests()[table.index][:, np.newaxis] << np.uint64(2)) + np.arange(wanted.shape[1], dtype=np.uint64)
    bank = Bank(bank_folder(config, data, pooled), pooled, Pictures(config.image_shape), devices)
    values = bank.filled_up(table["file"].to_numpy(), keys, wanted)
    log.info("feature bank %s: %d images", bank.folder.name, len(table))
    return Features(values, pd.Series(np.arange(len(keys)), index=table["file"]))


def bank_folder(config: RunConfig, data: Data, pooled: keras.Model) -> Path:
    """Named by all that changes features, but for the picture: the network's weights themselves among it."""
    weights = hashlib.sha256()
    for array in pooled.get_weights():
        weights.update(array.tobytes())
    identity = {
        "recipe": RECIPE,
        "backbone": config.backbone,
        "pooling": config.pooling,
        "precision": pooled.get_layer("pooled").compute_dtype,
        "weights": weights.hexdigest(),
        "keras": keras.__version__,
    }
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
    return data.store.with_name(f"{data.store.name}.features") / f"{config.backbone}-{config.pooling}-{key}"


@dataclass(frozen=True)
class Bank:
    """What `pooled` makes of pictures, on all devices of all machines, in blocks of a folder that they share.

    Pictures are `files`; `keys` name each of their variants, uint64 (files, variants), and `wanted`, `found` and
    `missing`, bool, say which of these are meant.
    """

    folder: Path
    pooled: keras.Model
    pictures: Pictures
    devices: Devices

    def filled_up(self, files: np.ndarray, keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """The features, float32 (files, variants, channels), after what is missing of those wanted was computed."""
        with locked(self.folder) if self.devices.chief else nullcontext():
            if self.devices.chief:
                remove_parts(self.folder)
            self.devices.wait()  # for the first machine to have the lock
            values, found = self.look_up(keys)
            if self.devices.all_reduce_sum((wanted & ~found).sum(keepdims=True)).any():
                self.fill_within_memory(files, keys, wanted, found)
                self.devices.wait()
                values, found = self.look_up(keys)
        if (wanted & ~found).any():
            raise FeatureBankError(
                f"{self.folder} lacks what was computed for it: all machines have to share store_dir"
            )
        return values

    def fill_within_memory(self, files: np.ndarray, keys: np.ndarray, wanted: np.ndarray, found: np.ndarray) -> None:
        """Compute what was not found; where memory runs out, the rest of it with half as many images at once."""
        batch = BATCH
        while True:
            try:
                return self.fill(files, keys, wanted & ~found, batch)
            except tf.errors.ResourceExhaustedError:
                if batch == 1 or self.devices.workers > 1:
                    raise
            batch //= 2
            log.warning("out of memory: the feature bank goes on with %d images at once on a device", batch)
            _, found = self.look_up(keys)

    def fill(self, files: np.ndarray, keys: np.ndarray, missing: np.ndarray, batch: int) -> None:
        """Compute what is missing, `batch` images at once on a device, and write it as blocks."""
        started, images = time.perf_counter(), int(missing.any(axis=1).sum())
        log.info("feature bank %s: %d images, %d forward passes", self.folder.name, images, missing.sum())
        kinds, kind = np.unique(missing, axis=0, return_inverse=True)
        with self.devices.scope():
            block = Block(self.folder)
            try:
                for number, wanted in enumerate(kinds):
                    rows = np.flatnonzero(kind.ravel() == number)[self.devices.worker :: self.devices.workers]
                    if wanted.any() and len(rows):
                        for part, variant, values in self.passes(files[rows], np.flatnonzero(wanted), batch):
                            block.add(keys[rows[part], variant], values)
            finally:
                block.write()
        log.info("feature bank: %.1f s", time.perf_counter() - started)

    def passes(
        self, files: np.ndarray, variants: np.ndarray, batch: int
    ) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        """(positions of files, variant, float32 features) of each forward pass; each file is read once."""

        @self.devices.compiled
        def forward(images: tf.Tensor, flips: tf.Tensor) -> tf.Tensor:
            return tf.cast(self.pooled(self.pictures.to_network(images, flips), training=False), tf.float32)

        local = self.devices.share.local
        steps = -(-len(files) // (batch * local))
        step = -(-len(files) // (steps * local)) * local  # as many in each, so that hardly any fill up the last
        positions = np.resize(np.arange(len(files)), steps * step)
        for number, (images,) in enumerate(self.pictures.read_all(files[positions], step)):
            part = positions[number * step : (number + 1) * step]
            for variant in variants:
                yield part, variant, self.devices.results(forward, images, tf.fill([step], tf.cast(variant, tf.int64)))

    def look_up(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The features of each key, float32 (*keys.shape, channels), and whether it was found."""
        channels = self.pooled.output_shape[-1]
        order = np.argsort(keys, axis=None)
        ascending = keys.ravel()[order]
        values, found = np.zeros((keys.size, channels), np.float32), np.zeros(keys.size, bool)
        for path in sorted(self.folder.glob("*.npz")):
            known, features = read_block(path, channels)
            place = np.minimum(np.searchsorted(ascending, known), keys.size - 1)
            wanted = ascending[place] == known
            rows = order[place[wanted]]
            values[rows], found[rows] = features[wanted], True
        return values.reshape(*keys.shape, channels), found.reshape(keys.shape)


class Block:
    """Rows that are written together, after some seconds of work or when they are many."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, time.perf_counter()
        self.keys: list[np.ndarray] = []
        self.values: list[np.ndarray] = []

    def add(self, keys: np.ndarray, values: np.ndarray) -> None:
        self.keys.append(keys)
        self.values.append(values)
        if time.perf_counter() - self.started > SECONDS_A_BLOCK or sum(map(len, self.keys)) > ROWS_A_BLOCK:
            self.write()

    def write(self) -> None:
        if self.keys:
            keys, values = np.concatenate(self.keys), np.concatenate(self.values)
            name = hashlib.sha256(keys.tobytes()).hexdigest()[:16]
            write_arrays(self.folder / f"{name}.npz", {"keys": keys, "values": values})
        self.keys, self.values, self.started = [], [], time.perf_counter()


def read_block(path: Path, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """A block's keys and values; one that is damaged is removed, so that its rows are computed anew."""
    try:
        block = read_arrays(path)
        keys, values = block["keys"], block["values"]
        if values.shape == (*keys.shape, channels):
            return keys, values
        reason = f"it has {keys.shape} keys and {values.shape} values"
    except FileNotFoundError:  # another machine has found it damaged
        return np.empty(0, np.uint64), np.empty((0, channels), np.float32)
    except (DamagedFileError, KeyError) as error:
        reason = str(error)
    log.warning("feature bank: block %s is damaged and is computed anew (%s)", path.name, reason)
    path.unlink(missing_ok=True)
    return np.empty(0, np.uint64), np.empty((0, channels), np.float32)
