"""What happens at the end of a batch and of an epoch. Each callback is one idea."""

import csv
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from rsna_nb import metrics

log = logging.getLogger(__name__)

MODES = {"val_loss": "min", "val_auc": "max", "val_pf1": "max"}
ADVICE_ON_NAN = "the best checkpoint before is kept. Lower learning_rate, or set mixed_precision to float32"
Logs = dict[str, float]


class TrainingError(RuntimeError):
    """Training stopped before its end; the message says where, why and what is kept."""


class Validate(keras.callbacks.Callback):
    """Puts the exact validation metrics of the epoch into its logs, for every callback after this one.

    They come from the scores of all validation images: Keras's own AUC is binned, which is wrong where scores
    saturate, and its val_loss would not carry the class weights.
    """

    def __init__(self, dataset: tf.data.Dataset, rows: pd.DataFrame, weights: Mapping[int, float]) -> None:
        """`rows` has a row for each image of `dataset`, with patient_id, laterality and cancer."""
        super().__init__()
        self.dataset, self.rows = dataset, rows
        self.weights = rows["cancer"].map(weights).to_numpy()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self.scores = predict_scores(self.model, self.dataset, len(self.rows))
        if not np.isfinite(self.scores).all():
            raise TrainingError(f"the validation scores of epoch {epoch + 1} are not numbers; {ADVICE_ON_NAN}")
        predictions = self.rows.assign(score=self.scores)
        figures = metrics.by_image(predictions["cancer"], predictions["score"], self.weights)
        breasts = metrics.by_breast(predictions)
        figures["pf1"] = metrics.pf1(breasts["cancer"], breasts["score"])
        logs.update({f"val_{name}": value for name, value in figures.items()})


def predict_scores(model: keras.Model, dataset: tf.data.Dataset, count: int) -> np.ndarray:
    """The first `count` scores, float64 (count,): a data set's last batch is filled up."""
    return model.predict(dataset, verbose=0)[:count, 0].astype(np.float64)


class MetricsLogger(keras.callbacks.Callback):
    """A row of history.csv and a line of the log for each epoch, with the learning rate and the speed."""

    def __init__(self, path: Path, images: int) -> None:
        """`images` is the number of training images of an epoch."""
        super().__init__()
        self.path, self.images = path, images

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self.started = self.trained = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self.trained = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        speed = self.images / max(self.trained - self.started, 1e-9)
        row = {
            "epoch": epoch + 1,
            **logs,
            "learning_rate": float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)),
        }
        row |= {"seconds": round(time.perf_counter() - self.started, 2), "images_per_second": round(speed, 1)}
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([list(row)] * new + [list(row.values())])
        log.info("epoch %d | %s", epoch + 1, " | ".join(groups(row)))


def groups(row: Mapping[str, float]) -> list[str]:
    """The row in words: training, validation, and the rest."""
    validation = [name for name in row if name.startswith("val_")]
    training = [name.removeprefix("val_") for name in validation if name.removeprefix("val_") in row]
    rest = [name for name in row if name not in {*validation, *training, "epoch"}]
    return [" ".join(f"{name} {row[name]:.4g}" for name in names) for names in (training, validation, rest)]


class BestCheckpoint(keras.callbacks.Callback):
    """Keeps the whole model of the epoch with the best `monitor`, written whole or not at all, and its scores."""

    def __init__(self, path: Path, monitor: str, validate: Validate) -> None:
        super().__init__()
        self.path, self.monitor, self.validate = path, monitor, validate
        self.sign = 1 if MODES[monitor] == "max" else -1
        self.epoch, self.best = 0, -math.inf

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if self.sign * logs[self.monitor] > self.best:
            self.epoch, self.best = epoch + 1, self.sign * logs[self.monitor]
            self.scores = self.validate.scores
            save_whole(self.model, self.path)


def save_whole(model: keras.Model, path: Path) -> None:
    part = path.with_name(f"part-{path.name}")
    model.save(part)
    os.replace(part, path)


class StopAtNaN(keras.callbacks.Callback):
    """Ends training at the first batch whose loss is not a finite number."""

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        if not math.isfinite(logs["loss"]):
            raise TrainingError(
                f"the loss is {logs['loss']} at epoch {self.epoch + 1}, step {batch + 1}; {ADVICE_ON_NAN}"
            )


class StopOnSignal(keras.callbacks.Callback):
    """On SIGTERM, as batch systems send it, saves the model after the batch in work and ends training."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.asked = path, False

    def ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def on_train_begin(self, logs: Any = None) -> None:
        self.in_main_thread = threading.current_thread() is threading.main_thread()
        if self.in_main_thread:  # the only one that may set handlers
            self.before = signal.signal(signal.SIGTERM, self.ask)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.asked:
            save_whole(self.model, self.path)
            raise TrainingError(
                f"SIGTERM at epoch {self.epoch + 1}, step {batch + 1}; the model is in {self.path.name}"
            )

    def restore(self) -> None:
        """Give the signal back to whoever handled it before; fit does not call on_train_end after an error."""
        if getattr(self, "in_main_thread", False):
            signal.signal(signal.SIGTERM, self.before)
