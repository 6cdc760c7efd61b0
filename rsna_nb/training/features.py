"""The feature bank: the features of each image and its mirror images, computed once by a frozen backbone and kept.

With a frozen backbone and flips, an image has four variants: four passes through the network give all features that any
epoch, seed or fold can need. A bank is a folder next to the store, in blocks that are written atomically, so the work
of a process that was killed is not lost.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from rsna_nb.config import RunConfig
from rsna_nb.model import layers_in
from rsna_nb.system import DamagedFileError, locked, progress, read_arrays, remove_parts, write_arrays
from rsna_nb.training.data import Data
from rsna_nb.training.distribution import Devices
from rsna_nb.training.inputs import READ_AHEAD, Examples, Pictures, filled_share
from rsna_nb.training.sampling import VARIANTS, Share

log = logging.getLogger(__name__)

RECIPE = 1  # cache version: raise it when the processing of images before the network changes
BATCH = 32  # images per device; larger batches are not faster and need more memory
SECONDS_A_BLOCK = 30  # the most work that is lost when the process is killed
ROWS_A_BLOCK = 8192  # 64 MB of 2,048 channels


class FeatureBankError(RuntimeError):
    """Features are missing although they were computed; the message names the likely cause."""


@dataclass(frozen=True)
class Features:
    """Features from a bank, a source of batches like `inputs.Pictures`."""

    values: np.ndarray  # float32 (images, variants, channels)
    position: pd.Series  # the image's file -> its row in `values`

    def to_network(self, features: tf.Tensor) -> tf.Tensor:
        """The features themselves: the head takes them as they are."""
        return features

    def training(self, rows: pd.DataFrame, examples: Examples, first: int, share: Share) -> tf.data.Dataset:
        """Batches for one device from the epoch `first` on, ((features,), labels, weights).

        View codes come before the features of breasts, (batch, places, channels).
        """
        places, channels = (examples.sampling.places,) * bool(examples.sampling.places), self.values.shape[-1]
        shape = (examples.sampling.batch // share.replicas, *places, channels)
        positions = self.position[rows["file"]].to_numpy()

        def take(images: np.ndarray, variants: np.ndarray) -> np.ndarray:
            return self.values[positions[images], variants]

        def features_at(where: tuple, labels: tf.Tensor, weights: tf.Tensor) -> tuple:
            # numpy_function and not a tensor: a constant of the graph would be a second copy of the bank.
            features = tf.numpy_function(take, where[-2:], tf.float32, stateful=False)
            return (*where[:-2], tf.ensure_shape(features, shape)), labels, weights

        dataset = examples.from_epoch(first, share).batch(shape[0], drop_remainder=True)
        return dataset.map(features_at).prefetch(READ_AHEAD)

    def evaluation(self, rows: pd.DataFrame, batch: int, share: Share) -> tf.data.Dataset:
        """Batches (features,) of the unflipped images for all devices of one computer, as `Pictures.evaluation`."""
        chosen = self.unflipped(rows)[filled_share(len(rows), batch, share)]
        dataset = tf.data.Dataset.from_tensor_slices((chosen,))
        return dataset.batch(batch * share.local, drop_remainder=True)

    def unflipped(self, rows: pd.DataFrame) -> np.ndarray:
        """The features of the images as they are, float32 (len(rows), channels)."""
        return self.values[self.position[rows["file"]].to_numpy(), 0]


def applies(config: RunConfig) -> bool:
    """Whether a run can use a bank: its backbone never changes, and an image has few variants."""
    return config.feature_bank and config.freeze_backbone and config.augmentation in ("none", "flips")


def features_of(config: RunConfig, data: Data, pooled: keras.Model, devices: Devices) -> Features:
    """The features of a run's training and validation images; missing ones are computed first.

    Training images have four variants if augmentation is "flips"; all other images have one.

    Parameters
    ----------
    config, data
        The settings and images of the run.
    pooled
        The frozen network up to the features (`model.body_of`): images (batch, height, width, 1) -> (batch, channels).
    devices
        The devices that compute missing features.

    Raises
    ------
    FeatureBankError
        If computers do not share the folder of the store.
    """
    table = data.table[data.table["split"].isin(["train", "validation"])]
    wanted = np.ones((len(table), VARIANTS if config.augmentation == "flips" else 1), bool)
    wanted[(table["split"] != "train").to_numpy(), 1:] = False
    # The variant is in the last two bits of a key.
    keys = (data.digests()[table.index][:, np.newaxis] << np.uint64(2)) + np.arange(wanted.shape[1], dtype=np.uint64)
    bank = Bank(bank_folder(config, data, pooled), pooled, Pictures(config.image_shape), devices)
    values = bank.complete(table["file"].to_numpy(), keys, wanted)
    log.info("feature bank %s: %d images", bank.folder.name, len(table))
    return Features(values, pd.Series(np.arange(len(keys)), index=table["file"]))


def bank_folder(config: RunConfig, data: Data, pooled: keras.Model) -> Path:
    """The bank's folder, named by everything except the image that determines features: weights and layers."""
    weights = hashlib.sha256()  # of the values, since a file of weights may be renamed or replaced
    for array in pooled.get_weights():
        weights.update(array.tobytes())
    identity = {
        "recipe": RECIPE,
        "backbone": config.backbone,
        "pooling": config.pooling,
        "precision": pooled.get_layer("pooled").compute_dtype,
        "weights": weights.hexdigest(),
        "layers": [_settings_of(layer) for layer in layers_in(pooled)],
        "keras": keras.__version__,
    }
    key = hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()[:8]
    return data.store.with_name(f"{data.store.name}.features") / f"{config.backbone}-{config.pooling}-{key}"


def _settings_of(layer: keras.Layer) -> list[Any]:
    """The kind of a layer and its settings, in which networks with equal weights may differ."""
    config = layer.get_config()
    # Keras numbers the names as it goes; a layer that is opened for fine-tuning gives the same features.
    return [type(layer).__name__, {key: config[key] for key in config if key not in ("name", "trainable")}]


@dataclass(frozen=True)
class Bank:
    """Features in a folder that all computers share, and the network that computes missing ones.

    Methods take the images' files, and a key for each of their variants, uint64 (files, variants). Boolean arrays of
    that shape say which of these are wanted, found or missing.
    """

    folder: Path
    pooled: keras.Model
    pictures: Pictures
    devices: Devices

    def complete(self, files: np.ndarray, keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Compute what is wanted and missing; return all features, float32 (files, variants, channels).

        If memory runs out, continue with batches half as large.
        """
        with locked(self.folder) if self.devices.chief else nullcontext():
            if self.devices.chief:
                remove_parts(self.folder)
            self.devices.wait()  # until the chief has the lock
            values, found = self.look_up(keys)
            batch, filled = BATCH, False
            # The sum over computers: one may have found blocks damaged that others could read.
            while self.devices.all_reduce_sum((wanted & ~found).sum(keepdims=True)).any():
                if filled:
                    raise FeatureBankError(
                        f"{self.folder} lacks features that were computed for it: do all computers share store_dir?"
                    )
                try:
                    self._fill(files, keys, wanted & ~found, batch)
                    filled = True
                except tf.errors.ResourceExhaustedError:
                    if batch == 1 or self.devices.workers > 1:
                        raise
                    batch //= 2
                    log.warning("out of memory: the feature bank continues with batches of %d images per device", batch)
                self.devices.wait()
                values, found = self.look_up(keys)
        return values

    def _fill(self, files: np.ndarray, keys: np.ndarray, missing: np.ndarray, batch: int) -> None:
        """Compute what is missing, `batch` images at a time on each device, and write it in blocks."""
        images, passes = int(missing.any(axis=1).sum()), int(missing.sum())
        log.info("feature bank %s: %d images, %d forward passes", self.folder.name, images, passes)
        started = written = time.perf_counter()
        rows: list[tuple[np.ndarray, np.ndarray]] = []  # (keys, values) for the next block
        # Images that lack the same variants are grouped, so that each file is read once.
        kinds, kind = np.unique(missing, axis=0, return_inverse=True)
        own = passes // self.devices.workers
        with self.devices.scope(), progress(None, "feature bank", own, "forward passes") as bar:
            try:
                for number, variants in enumerate(kinds):
                    mine = np.flatnonzero(kind.ravel() == number)[self.devices.worker :: self.devices.workers]
                    if not variants.any() or not len(mine):
                        continue
                    for part, variant, values in self._passes(files[mine], np.flatnonzero(variants), batch):
                        rows.append((keys[mine[part], variant], values))
                        bar.update(min(len(part), own - bar.n))  # the last batch is filled up
                        now = time.perf_counter()
                        if now - written > SECONDS_A_BLOCK or sum(len(each) for each, _ in rows) > ROWS_A_BLOCK:
                            self._write_block(rows)
                            written = now
            finally:
                self._write_block(rows)
        log.info("feature bank: %.1f s", time.perf_counter() - started)

    def _write_block(self, rows: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Write rows of (keys, values) as a block, named by its keys, and empty the list."""
        if rows:
            keys, values = (np.concatenate(columns) for columns in zip(*rows, strict=True))
            name = hashlib.sha256(keys.tobytes()).hexdigest()[:16]
            write_arrays(self.folder / f"{name}.npz", {"keys": keys, "values": values})
            rows.clear()

    def _passes(
        self, files: np.ndarray, variants: np.ndarray, batch: int
    ) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        """(positions of files, variant, float32 features) of each forward pass; each file is read once."""

        @self.devices.compiled
        def forward(images: tf.Tensor, flips: tf.Tensor) -> tf.Tensor:
            return tf.cast(self.pooled(self.pictures.to_network(images, flips), training=False), tf.float32)

        local = self.devices.share.local
        steps = -(-len(files) // (batch * local))
        step = -(-len(files) // (steps * local)) * local  # steps of equal size: the last is nearly full too
        # Filled up with the first files: all steps have one shape, so the network is compiled once.
        positions = np.resize(np.arange(len(files)), steps * step)
        for number, (images,) in enumerate(self.pictures.read_all(files[positions], step)):
            part = positions[number * step : (number + 1) * step]
            for variant in variants:
                yield part, variant, self.devices.results(forward, images, tf.fill([step], tf.cast(variant, tf.int64)))

    def look_up(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The features of each key, float32 (*keys.shape, channels), 0 if it is missing, and whether it was found."""
        channels = self.pooled.output_shape[-1]
        index = pd.Index(keys.ravel())
        values, found = np.zeros((keys.size, channels), np.float32), np.zeros(keys.size, bool)
        for path in sorted(self.folder.glob("*.npz")):
            known, features = _read_block(path, channels)
            places = index.get_indexer(known)
            asked = places >= 0
            values[places[asked]], found[places[asked]] = features[asked], True
        return values.reshape(*keys.shape, channels), found.reshape(keys.shape)


def _read_block(path: Path, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """A block's keys and values; a damaged block is removed and is empty, so that its rows are recomputed."""
    try:
        block = read_arrays(path)
        keys, values = block["keys"], block["values"]
        if values.shape == (*keys.shape, channels):
            return keys, values
        reason = f"it has {keys.shape} keys and {values.shape} values"
    except (FileNotFoundError, DamagedFileError, KeyError) as error:  # not found: another computer has removed it
        reason = str(error)
    log.warning("feature bank: block %s is damaged and is recomputed (%s)", path.name, reason)
    path.unlink(missing_ok=True)
    return np.empty(0, np.uint64), np.empty((0, channels), np.float32)
