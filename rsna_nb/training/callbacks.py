"""The callbacks of training. Each does one thing.

Keras calls callbacks in the order of their list, and all of them share one dict of an epoch's logs: a callback sees the
values that earlier ones have added. `phases` makes the list.
"""

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Self

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from rsna_nb import metrics
from rsna_nb.config import RunConfig
from rsna_nb.system import IN_BAR, MlflowRun, is_watched, progress, write_whole
from rsna_nb.training.training_model import averages_of

log = logging.getLogger(__name__)

MODES = {"val_loss": "min", "val_auc": "max", "val_pf1": "max"}
ADVICE_ON_NAN = "the best checkpoint so far is kept. Begin a new run with a lower learning_rate, or in float32"
Logs = dict[str, float]
EpochCallback = Callable[[int, Logs], None]  # (number of the finished epoch, from 1; its metrics)


class TrainingError(RuntimeError):
    """Training stopped early; the message says where, why and what is kept."""


class SignalError(TrainingError):
    """Training was stopped by SIGTERM; the run can be resumed."""

    can_resume = True


class Validate(keras.callbacks.Callback):
    """Adds exact validation metrics to the epoch's logs; place it before every callback that reads them.

    They are computed from the scores of all validation images. Keras's own AUC is binned, which is wrong where scores
    are close to 0 or 1, and its val_loss ignores class weights.
    """

    def __init__(
        self,
        score: Callable[[], np.ndarray],
        rows: pd.DataFrame,
        prior_weights: Mapping[int, float] | None = None,
        kept: list[np.ndarray] | None = None,
        **loss: Any,
    ) -> None:
        """Set up the validation of one phase.

        Parameters
        ----------
        score
            Returns the current network's scores of `rows`, float64 (n,).
        rows
            The validation examples, images or breasts, with patient_id, laterality and cancer.
        prior_weights
            Class weights that the scores are corrected for before val_pf1 is computed; None corrects nothing.
        kept
            Has the scores of each epoch so far, float32 (n,), and is extended; they say later what the choice of an
            epoch has gained.
        **loss
            Options of `metrics.by_image` that make val_loss the training loss.
        """
        super().__init__()
        self.score, self.rows, self.prior_weights, self.loss = score, rows, prior_weights, loss
        self.kept = [] if kept is None else kept

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self.scores = self.score()
        if not np.isfinite(self.scores).all():
            raise TrainingError(f"the validation scores of epoch {epoch + 1} are not finite numbers; {ADVICE_ON_NAN}")
        self.kept.append(self.scores.astype(np.float32))
        values = metrics.by_image(self.rows["cancer"], self.scores, **self.loss)
        corrected = metrics.prior_correction(self.scores, self.prior_weights) if self.prior_weights else self.scores
        breasts = metrics.by_breast(self.rows.assign(score=corrected))
        values["pf1"] = metrics.pf1(breasts["cancer"], breasts["score"])
        logs.update({f"val_{name}": value for name, value in values.items()})


class SwapAverages(keras.callbacks.Callback):
    """Swaps weights and their moving averages; place one before and one after the callbacks that need EMA weights.

    Keras's SwapEMAWeights swaps back when the next epoch begins, after the state is saved. It swaps by sums and
    differences, and rounding then changes the weights.
    """

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        for variable, average in zip(self.model.trainable_variables, averages_of(self.model), strict=True):
            value = variable.numpy()
            variable.assign(average.numpy())
            average.assign(value)


class LearningRate(keras.callbacks.Callback):
    """Sets the learning rate of every step: a linear warm-up, then a constant rate or half a cosine.

    The rate rises from 0 to `peak` over `warmup` epochs. With `cosine` it then falls to 0 at the end of the phase's
    `epochs` (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts); otherwise this callback leaves it alone.

    A callback and not a Keras schedule, because ReduceLROnPlateau cannot change the rate of a schedule.
    """

    def __init__(self, peak: float, first: int, epochs: int, steps: int, warmup: int, cosine: bool) -> None:
        """`first` is the number of epochs before this phase; `steps` is the number of steps in an epoch."""
        super().__init__()
        self.peak, self.cosine, self.first, self.steps = peak, cosine, first, steps
        self.rise, self.total = warmup * steps, epochs * steps

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self.before = (epoch - self.first) * self.steps

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        step = self.before + batch
        # + 1, so that the first step has a rate above 0 and the step after the warm-up has the peak.
        if step <= self.rise and self.rise:
            self.model.optimizer.learning_rate = self.peak * (step + 1) / (self.rise + 1)
        elif self.cosine:
            done = (step - self.rise) / (self.total - self.rise)
            self.model.optimizer.learning_rate = self.peak * (1 + math.cos(math.pi * done)) / 2


class MetricsLogger(keras.callbacks.Callback):
    """Writes a row of history.csv and a line of the log for each epoch.

    The file is rewritten from `history`, which is part of the saved state. A resumed run therefore drops the row of
    an epoch that a killed run had logged but not saved.
    """

    def __init__(self, path: Path, history: list[dict[str, Any]], images: int, phase: str) -> None:
        """`history` has a dict for each finished epoch and is extended; `images` are the training images per epoch."""
        super().__init__()
        self.path, self.history, self.images, self.phase = path, history, images, phase

    def on_train_begin(self, logs: Logs | None = None) -> None:
        left = self.params["epochs"] - len(self.history)
        self.bar = progress(None, "training", left, "epochs") if is_watched() else None

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self.started = self.trained = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self.trained = time.perf_counter()  # the speed does not include validation

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        row = {
            "epoch": epoch + 1,
            "phase": self.phase,
            **logs,
            "learning_rate": float(self.model.optimizer.learning_rate.numpy()),
            "seconds": round(time.perf_counter() - self.started, 2),
            "images_per_second": round(self.images / max(self.trained - self.started, 1e-9), 1),
        }
        self.history.append(row)
        # Rewritten each time: it is a few kilobytes, and nobody who reads it meanwhile finds half a row.
        write_whole(self.path, pd.DataFrame(self.history).to_csv(index=False, na_rep="nan").encode())
        log.info("epoch %d of %d: %s", epoch + 1, self.params["epochs"], _in_short(row), extra=IN_BAR)
        if self.bar is not None:
            self.bar.set_postfix_str(_in_short(row), refresh=False)
            self.bar.update()

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self.bar is not None:
            self.bar.close()


def _in_short(row: Mapping[str, Any]) -> str:
    """The main metrics of an epoch; history.csv has all."""
    shown = [f"{name} {row[name]:.4g}" for name in ("loss", "val_loss", "val_auc", "val_pf1") if name in row]
    return f"{', '.join(shown)}; learning rate {row['learning_rate']:.3g}, {row['seconds']:.1f} s"


class LogToMlflow(keras.callbacks.Callback):
    """Sends finished epochs to MLflow; place it after `session.SaveState`, so that a resumed run repeats none."""

    def __init__(self, run: MlflowRun, history: list[dict[str, Any]]) -> None:
        """`history` has a dict for each finished epoch, as `MetricsLogger` extends it."""
        super().__init__()
        self.run, self.history = run, history

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self.run.log_epochs(self.history)


class LogFirstStep(keras.callbacks.Callback):
    """Logs the time of a phase's first step, and on a GPU TensorFlow's peak memory so far."""

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.started: float | None = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        if self.started is None:
            return
        seconds, self.started = time.perf_counter() - self.started, None
        log.info("first step: %.1f s with compilation%s", seconds, _peak_memory())


def _peak_memory() -> str:
    """Text for the log, empty without a GPU. An error of TensorFlow's becomes part of it and does not end the run."""
    try:
        gpus = [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices("GPU")]
        peak = max((tf.config.experimental.get_memory_info(gpu)["peak"] for gpu in gpus), default=0)
    except Exception as error:
        return f", peak memory unknown ({error})"
    return f", peak GPU memory {peak / 2**30:.2f} GiB" if peak else ""


class StopAtNaN(keras.callbacks.Callback):
    """Ends training with an error at the first batch whose loss is not a finite number.

    Keras's TerminateOnNaN ends `fit` as if the run were complete.
    """

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        if not math.isfinite(logs["loss"]):
            raise TrainingError(
                f"the loss is {logs['loss']} at epoch {self.epoch + 1}, step {batch + 1}; {ADVICE_ON_NAN}"
            )


class StopOnSignal(keras.callbacks.Callback):
    """Ends training after the current batch on SIGTERM, which batch systems send before they kill a job.

    It handles the signal between `__enter__` and `__exit__`: Keras does not call on_train_end after an error.
    """

    def __init__(self) -> None:
        super().__init__()
        self.received = False

    def __enter__(self) -> Self:
        self.before: Any = None
        if threading.current_thread() is threading.main_thread():  # the only thread that may set signal handlers
            self.before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch + 1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.received:
            raise SignalError(
                f"SIGTERM at epoch {self.epoch}, step {batch + 1}; the run can continue from epoch {self.epoch}"
            )


def monitors(config: RunConfig, tensorboard: Path | None) -> list[keras.callbacks.Callback]:
    """Keras's own callbacks for these settings: plateau, early stopping, and TensorBoard if `tensorboard` is given."""
    # Always with `mode`: "auto" guesses it from the metric's name.
    watched: dict[str, Any] = {"monitor": config.monitor, "mode": MODES[config.monitor], "verbose": 0}
    chosen: list[keras.callbacks.Callback] = []
    if config.reduce_lr_patience and config.lr_schedule == "plateau":
        # min_delta 0, as in early stopping and the best checkpoint; Keras's default is 1e-4.
        options = {"factor": config.reduce_lr_factor, "patience": config.reduce_lr_patience, "min_delta": 0.0}
        chosen.append(keras.callbacks.ReduceLROnPlateau(**options, **watched))
    if config.early_stopping_patience:
        chosen.append(keras.callbacks.EarlyStopping(patience=config.early_stopping_patience, **watched))
    if tensorboard:
        # Keras 3 cannot write the graph: `run` does.
        chosen.append(keras.callbacks.TensorBoard(tensorboard, write_graph=False))
    return chosen
