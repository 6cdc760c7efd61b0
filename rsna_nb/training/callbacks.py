"""What happens at the end of a batch and of an epoch. Each callback is one idea."""

import csv
import io
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import keras
import numpy as np
import pandas as pd

from rsna_nb import metrics
from rsna_nb.config import RunConfig
from rsna_nb.system import write_whole

log = logging.getLogger(__name__)

MODES = {"val_loss": "min", "val_auc": "max", "val_pf1": "max"}
ADVICE_ON_NAN = "the best checkpoint before is kept. Begin a new run with a lower learning_rate, or in float32"
Logs = dict[str, float]
EpochCallback = Callable[[int, Logs], None]  # told each finished epoch, the first being 1, and its figures


class TrainingError(RuntimeError):
    """Training stopped before its end; the message says where, why and what is kept."""


class SignalError(TrainingError):
    """Training was asked to end, by SIGTERM; resumed, the run goes on."""


class Validate(keras.callbacks.Callback):
    """Puts the exact validation metrics of the epoch into its logs, for every callback after this one.

    They come from the scores of all validation images: Keras's own AUC is binned, which is wrong where scores
    saturate, and its val_loss would not carry the class weights.
    """

    def __init__(self, score: Callable[[], np.ndarray], rows: pd.DataFrame, **loss: Any) -> None:
        """`score()` gives each of `rows` (patient_id, laterality, cancer) a score; `loss` is for `by_image`."""
        super().__init__()
        self.score, self.rows, self.loss = score, rows, loss

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self.scores = self.score()
        if not np.isfinite(self.scores).all():
            raise TrainingError(f"the validation scores of epoch {epoch + 1} are not numbers; {ADVICE_ON_NAN}")
        predictions = self.rows.assign(score=self.scores)
        figures = metrics.by_image(predictions["cancer"], predictions["score"], **self.loss)
        breasts = metrics.by_breast(predictions)
        figures["pf1"] = metrics.pf1(breasts["cancer"], breasts["score"])
        logs.update({f"val_{name}": value for name, value in figures.items()})


class SwapAverages(keras.callbacks.Callback):
    """Exchanges weights and their moving averages at the end of an epoch; stand it before and after what is to see
    the averages."""

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)  # of float16's
        averages = optimizer._model_variables_moving_average
        for variable, average in zip(self.model.trainable_variables, averages, strict=True):
            value = variable.numpy()
            variable.assign(average.numpy())
            average.assign(value)


class LearningRate(keras.callbacks.Callback):
    """The learning rate of every step: a linear rise from 0 over `warmup` epochs, then `peak`, or with `cosine` half a
    cosine from it to 0 at the end of `epochs` (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts).

    Without `cosine` it is left alone after the rise.
    """

    def __init__(self, peak: float, first: int, epochs: int, steps: int, warmup: int, cosine: bool) -> None:
        """`first` is the number of epochs before; `steps` are those of an epoch."""
        super().__init__()
        self.peak, self.first, self.epochs, self.steps, self.warmup = peak, first, epochs, steps, warmup
        self.cosine = cosine

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self.epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        step = (self.epoch - self.first) * self.steps + batch
        rise, total = self.warmup * self.steps, self.epochs * self.steps
        if step <= rise and rise:
            self.model.optimizer.learning_rate = self.peak * (step + 1) / (rise + 1)
        elif self.cosine:
            done = (step - rise) / (total - rise)
            self.model.optimizer.learning_rate = self.peak * (1 + math.cos(math.pi * done)) / 2


class MetricsLogger(keras.callbacks.Callback):
    """A row of history.csv and a line of the log for each epoch, with the phase, the learning rate and the speed."""

    def __init__(self, path: Path, images: int, phase: str) -> None:
        """`images` is the number of training images of an epoch."""
        super().__init__()
        self.path, self.images, self.phase = path, images, phase

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self.started = self.trained = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self.trained = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        speed = self.images / max(self.trained - self.started, 1e-9)
        row = {
            "epoch": epoch + 1,
            "phase": self.phase,
            **logs,
            "learning_rate": float(self.model.optimizer.learning_rate.numpy()),
        }
        row |= {"seconds": round(time.perf_counter() - self.started, 2), "images_per_second": round(speed, 1)}
        before = self.path.read_text() if self.path.exists() else ""
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows([list(row)] * (not before) + [list(row.values())])
        write_whole(self.path, (before + lines.getvalue()).encode())
        log.info("epoch %d | %s", epoch + 1, " | ".join(groups(row)))


def keep_epochs(path: Path, epochs: int) -> None:
    """Cut history.csv down to its first epochs: a killed run may have written one whose state it did not save."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    if len(lines) <= epochs and epochs:
        raise TrainingError(f"{path} has lost epochs: {epochs} were trained, it has {max(len(lines) - 1, 0)}")
    if len(lines) > epochs + 1:
        write_whole(path, b"".join(lines[: epochs + 1] if epochs else []))


def groups(row: Mapping[str, Any]) -> list[str]:
    """The row in words: training, validation, and the rest."""
    validation = [name for name in row if name.startswith("val_")]
    training = [name.removeprefix("val_") for name in validation if name.removeprefix("val_") in row]
    rest = [name for name in row if name not in {*validation, *training, "epoch", "phase"}]
    return [" ".join(f"{name} {row[name]:.4g}" for name in names) for names in (training, validation, rest)]


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
    """On SIGTERM, as batch systems send it, ends training after the batch in work."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = False

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
            epoch = self.epoch + 1
            raise SignalError(
                f"SIGTERM at epoch {epoch}, step {batch + 1}; resumed, the run goes on from epoch {epoch}"
            )

    def restore(self) -> None:
        """Give the signal back to whoever handled it before; fit does not call on_train_end after an error."""
        if getattr(self, "in_main_thread", False):
            signal.signal(signal.SIGTERM, self.before)


def watching(config: RunConfig, folder: Path, writes: bool) -> list[keras.callbacks.Callback]:
    """Keras's own: the plateau and early stopping as the settings ask, and TensorBoard where files are written."""
    watched: dict[str, Any] = {"monitor": config.monitor, "mode": MODES[config.monitor], "verbose": 0}
    chosen: list[keras.callbacks.Callback] = []
    if config.reduce_lr_patience and config.lr_schedule == "plateau":
        chosen.append(
            keras.callbacks.ReduceLROnPlateau(
                factor=config.reduce_lr_factor, patience=config.reduce_lr_patience, min_delta=0.0, **watched
            )
        )
    if config.early_stopping_patience:
        chosen.append(keras.callbacks.EarlyStopping(patience=config.early_stopping_patience, **watched))
    if writes:
        chosen.append(keras.callbacks.TensorBoard(folder, write_graph=False))
    return chosen
