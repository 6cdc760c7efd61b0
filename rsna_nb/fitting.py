"""The phases of training: a head on a frozen backbone or the whole network, then perhaps the backbone's fine-tuning."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from rsna_nb import callbacks, checkpoints, features, memory, metrics
from rsna_nb.callbacks import OnEpoch, SignalError, TrainingError
from rsna_nb.checkpoints import BestCheckpoint, Progress, SaveState
from rsna_nb.config import RunConfig
from rsna_nb.data import Data, class_weights
from rsna_nb.distribution import Devices
from rsna_nb.inputs import Examples, Pictures
from rsna_nb.learner import Learner, Route, compile_learner
from rsna_nb.model import body_of, head_of, open_backbone
from rsna_nb.runs import Run
from rsna_nb.sampling import Sampling, global_batch

log = logging.getLogger(__name__)

FEW_STEPS = 10


@dataclass(frozen=True)
class Phase:
    """A part of training with an optimizer, a learning rate and a patience of its own."""

    name: str
    epochs: int
    learning_rate: float


def phases(config: RunConfig) -> list[Phase]:
    first = Phase("head" if config.freeze_backbone else "network", config.epochs, config.learning_rate)
    tuning = Phase("fine_tuning", config.fine_tune_epochs, config.fine_tune_learning_rate)
    return [first, tuning] if config.fine_tune_epochs else [first]


@dataclass
class Fitting:
    """All phases of a run: what they share, and how far they are.

    Raises
    ------
    TrainingError
        Where a resumed run's batches cannot be shared by the devices there are now.
    """

    config: RunConfig
    run: Run
    devices: Devices
    model: keras.Model
    data: Data
    on_epoch: OnEpoch | None = None

    def __post_init__(self) -> None:
        self.training, self.validation = self.data.rows("train"), self.data.rows("validation")
        path = self.run.path / "checkpoints" / "best.keras"
        self.best = BestCheckpoint(path, self.config.monitor, self.model, self.devices.chief)
        self.progress, self.arrays = checkpoints.load(self.run) or (self.beginning(), {})
        self.devices.check_same("state of the run", self.progress.epoch, self.progress.phase, self.progress.batch)
        self.best.recall(self.progress, self.arrays)
        self.started = time.perf_counter() - self.progress.seconds
        batch, replicas = self.progress.batch, self.devices.replicas
        if batch % replicas:
            raise TrainingError(f"the run has batches of {batch} images, which {replicas} devices cannot share equally")
        cancer, self.class_weights = self.training["cancer"], class_weights(self.config, self.training)
        self.sampling = Sampling.of(self.config, cancer.to_numpy(), batch)
        self.examples = Examples(column(cancer), column(cancer.map(self.class_weights)), self.sampling)

    def beginning(self) -> Progress:
        batch = global_batch(self.config, self.devices.replicas, len(self.training))
        return Progress(batch=batch, at_once=min(self.config.batch_size_per_gpu, batch // self.devices.replicas))

    def seconds(self) -> float:
        """Of training, those before the run was resumed among them."""
        return round(time.perf_counter() - self.started, 1)

    @property
    def parts(self) -> int:
        """Of a device's images in a step of the optimizer, that go through it one after another."""
        return -(-self.progress.batch // self.devices.replicas // self.progress.at_once)

    def describe(self) -> None:
        config, batch, steps = self.config, self.progress.batch, self.sampling.steps
        log.info("images: %d for training, %d for validation", len(self.training), len(self.validation))
        log.info("global batch %d: %d steps an epoch", batch, steps)
        if self.parts > 1:
            log.info("a device takes %d images at once, %d times a step", self.progress.at_once, self.parts)
        if batch < config.batch_size_per_gpu * config.gradient_accumulation * self.devices.replicas:
            log.warning("the global batch is cut to the training images there are")
        if self.sampling.positives:
            positives = int(self.training["cancer"].sum())
            log.info("%d images of each batch have cancer, of %d that there are", self.sampling.positives, positives)
        log.info("class weights: %.3f without cancer, %.3f with", self.class_weights[0], self.class_weights[1])
        if steps < FEW_STEPS:
            log.warning("only %d steps an epoch: a smaller batch_size_per_gpu would learn more from each", steps)

    def fit(self) -> BestCheckpoint:
        """Train, leaving the checkpoint, the history and TensorBoard's files in the run; what was best comes back."""
        self.describe()
        for number, phase in enumerate(phases(self.config)):
            if number > self.progress.phase:
                self.begin(number)
            if number == self.progress.phase:
                PhaseFitting(self, phase).fit()
        if self.best.epoch == 0:
            raise TrainingError(f"no epoch had a {self.config.monitor} that is a number: see logs/history.csv")
        return self.best

    def begin(self, number: int) -> None:
        """Go on to the next phase, from the best epoch of those before."""
        self.progress.phase, self.progress.first, self.progress.finished = number, self.progress.epoch, False
        self.progress.memory, self.arrays = {}, {}
        self.devices.wait()  # for the first machine to have written it
        self.model.load_weights(self.run.checkpoint)
        for variable in self.model.variables:  # dropout's random numbers, counted on from none as in a run resumed here
            if variable.path.endswith("seed_generator_state"):
                variable.assign(variable.numpy() * [1, 0])

    def validation_loss(self) -> dict[str, Any]:
        """The training loss for `metrics.by_image`: balanced batches weigh positives as their share does."""
        weights = self.class_weights
        if self.sampling.positives:
            weights = metrics.class_weights(self.training["cancer"], self.sampling.positives / self.sampling.batch)
        return {
            "weights": self.validation["cancer"].map(weights).to_numpy(),
            "positive_label": self.config.positive_label,
            "focal_gamma": self.config.focal_gamma if self.config.imbalance == "focal" else 0.0,
        }


class PhaseFitting:
    """One phase of a run."""

    def __init__(self, fitting: Fitting, phase: Phase) -> None:
        self.all, self.phase = fitting, phase
        self.config, self.devices, self.progress = fitting.config, fitting.devices, fitting.progress
        self.route = self.choose_route()
        self.from_bank = not isinstance(self.route.source, Pictures)

    def choose_route(self) -> Route:
        model, pictures = self.all.model, Pictures(self.config.image_shape)
        if self.phase.name == "network":
            return Route(pictures, model)
        with self.devices.scope():
            body, head = body_of(model), head_of(model)
        if self.phase.name == "head" and features.applies(self.config):
            log.info("the head learns from the feature bank (feature_bank=False passes pictures in every epoch)")
            return Route(features.features_of(self.config, self.all.data, body, self.devices), head)
        if self.phase.name == "fine_tuning":
            log.info("%d layers of the backbone learn", open_backbone(model, self.config.fine_tune_from))
        return Route(pictures, head, body)

    def estimate(self) -> None:
        """Say what a step needs of a device's memory, and warn where it has less."""
        free, at_once = memory.free_memory(), self.progress.at_once
        needed, most = memory.estimate(self.all.model, at_once), memory.largest_batch(self.all.model, free)
        text = (
            f"{at_once} images at once need about {needed / 2**30:.2f} GiB of {free / 2**30:.2f} GiB that a device has"
        )
        log.log(
            logging.WARNING if needed > free else logging.INFO,
            f"{text}; the largest batch_size_per_gpu that should fit is {most}",
        )

    def fit(self) -> None:
        """To the phase's end; where memory runs out, from its last epoch on with half as many images at once."""
        if not self.from_bank:
            self.estimate()
        try:
            while not self.progress.finished:
                try:
                    self.attempt()
                except tf.errors.ResourceExhaustedError as error:
                    self.take_less(error)
        finally:
            if self.from_bank:
                self.all.best.write(self.route.head)

    def take_less(self, error: tf.errors.ResourceExhaustedError) -> None:
        at_once = self.progress.at_once
        if at_once == 1 or self.devices.workers > 1:
            raise TrainingError(
                f"out of memory with {at_once} images at once on a device, at img_size {self.config.img_size}: lower "
                "batch_size_per_gpu (gradient_accumulation keeps the batch) or img_size, or set mixed_precision to "
                "bfloat16, and begin a new run"
            ) from error
        self.progress.at_once = -(-at_once // 2)
        log.warning(
            f"out of memory with {at_once} images at once on a device: going on from epoch {self.progress.epoch + 1} "
            f"with {self.progress.at_once}, {self.all.parts} times a step: the batch is still {self.progress.batch}"
        )
        _, self.all.arrays = checkpoints.load(self.all.run) or (None, {})

    def attempt(self) -> None:
        learner, dataset = self.learner()
        if self.all.arrays:
            checkpoints.restore(learner, self.all.arrays)
        else:
            self.save(learner, [])
        last = self.progress.first + self.phase.epochs
        on_signal = callbacks.StopOnSignal()
        try:
            learner.fit(
                self.devices.distribute(dataset),
                initial_epoch=self.progress.epoch,
                epochs=last,
                steps_per_epoch=self.all.sampling.steps,
                callbacks=[callbacks.StopAtNaN(), on_signal, *self.callbacks(learner)],
                shuffle=False,
                verbose=0,
            )
        finally:
            on_signal.restore()
        if on_signal.asked:  # after the last step of an epoch
            raise SignalError("SIGTERM at an epoch's end; resumed, the run goes on from there")
        if self.progress.epoch < last:
            patience = self.config.early_stopping_patience
            log.info("stopped early: no better %s for %d epochs", self.config.monitor, patience)

    def learner(self) -> tuple[Learner, tf.data.Dataset]:
        """A compiled learner, and the batches of the epochs to come for one device."""
        source, share = self.route.source, self.devices.share
        dataset = source.training(self.all.training, self.all.examples, self.progress.epoch, share)
        with self.devices.scope():
            learner = Learner(self.route, self.all.parts, self.config.clip_norm)
        compile_learner(learner, self.config, self.phase.learning_rate, dataset.element_spec, self.devices)
        return learner, dataset

    def callbacks(self, learner: Learner) -> list[keras.callbacks.Callback]:
        """The learning rate's, then those of an epoch's end: judge, keep the best, log, watch, and save all."""
        config, fitting, folder = self.config, self.all, self.all.run.path
        score = self.route.scorer(fitting.validation, self.progress.at_once, self.devices)
        validate = callbacks.Validate(score, fitting.validation, **fitting.validation_loss())
        fitting.best.watch(validate, self.route.head if self.from_bank else None)
        averages = [callbacks.SwapAverages()] if config.ema else []
        watching = callbacks.watching(config, folder / "tensorboard", self.devices.chief)
        return [
            *self.learning_rate(),
            *averages,
            validate,
            fitting.best,
            *averages,
            *self.history(folder / "logs" / "history.csv"),
            *watching,
            SaveState(
                lambda epoch, finished: self.advance(learner, watching, epoch, finished),
                lambda: checkpoints.remember(watching, self.progress.memory),
            ),
            *self.told(),
        ]

    def told(self) -> list[keras.callbacks.Callback]:
        """The caller's `on_epoch`, last: an epoch that it ends training at is saved like any other."""
        told = self.all.on_epoch
        return [keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: told(epoch + 1, logs))] if told else []

    def learning_rate(self) -> list[keras.callbacks.Callback]:
        cosine, warmup, steps = self.config.lr_schedule == "cosine", self.config.warmup_epochs, self.all.sampling.steps
        if not cosine and not warmup:
            return []
        phase = self.phase
        return [callbacks.LearningRate(phase.learning_rate, self.progress.first, phase.epochs, steps, warmup, cosine)]

    def history(self, path: Path) -> list[keras.callbacks.Callback]:
        if not self.devices.chief:
            return []
        callbacks.keep_epochs(path, self.progress.epoch)
        return [callbacks.MetricsLogger(path, self.all.sampling.steps * self.progress.batch, self.phase.name)]

    def advance(self, learner: Learner, watching: list[keras.callbacks.Callback], epoch: int, finished: bool) -> None:
        self.progress.epoch, self.progress.finished = epoch, finished
        self.save(learner, watching)

    def save(self, learner: Learner, watching: list[keras.callbacks.Callback]) -> None:
        best = self.all.best
        self.progress.best_epoch, self.progress.best = best.epoch, best.best
        self.progress.memory = checkpoints.memory_of(watching)
        self.progress.seconds = self.all.seconds()
        if self.devices.chief:
            checkpoints.save(self.all.run, self.progress, learner, best.arrays)
            best.settle()


def column(values: pd.Series) -> np.ndarray:
    """float32 (n, 1)."""
    return values.to_numpy(np.float32)[:, np.newaxis]
