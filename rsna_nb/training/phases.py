"""The phases of training: a head on a frozen backbone or the whole network, then perhaps the backbone's fine-tuning."""

import logging
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf

from rsna_nb.config import RunConfig
from rsna_nb.model import body_of, head_of, open_backbone
from rsna_nb.training import callbacks, checkpoints, features, memory
from rsna_nb.training.callbacks import SignalError, TrainingError
from rsna_nb.training.checkpoints import BestCheckpoint, SaveState
from rsna_nb.training.inputs import Pictures
from rsna_nb.training.session import TrainingSession
from rsna_nb.training.training_model import ForwardPath, TrainingModel, compile_model

log = logging.getLogger(__name__)


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


def fit(fitting: TrainingSession) -> BestCheckpoint:
    """Train, leaving the checkpoint, the history and TensorBoard's files in the run; what was best comes back."""
    fitting.describe()
    for number, phase in enumerate(phases(fitting.config)):
        if number > fitting.progress.phase:
            fitting.begin(number)
        if number == fitting.progress.phase:
            PhaseTrainer(fitting, phase).fit()
    if fitting.best.epoch == 0:
        raise TrainingError(f"no epoch had a {fitting.config.monitor} that is a number: see logs/history.csv")
    return fitting.best


class PhaseTrainer:
    """One phase of a run."""

    def __init__(self, fitting: TrainingSession, phase: Phase) -> None:
        self.fitting, self.phase = fitting, phase
        self.config, self.devices, self.progress = fitting.config, fitting.devices, fitting.progress
        self.route = self.choose_route()
        self.from_bank = not isinstance(self.route.source, Pictures)

    def choose_route(self) -> ForwardPath:
        model, pictures = self.fitting.model, Pictures(self.config.image_shape)
        if self.phase.name == "network":
            return ForwardPath(pictures, model)
        with self.devices.scope():
            body, head = body_of(model), head_of(model)
        if self.phase.name == "head" and features.applies(self.config):
            log.info("the head learns from the feature bank (feature_bank=False passes pictures in every epoch)")
            return ForwardPath(features.features_of(self.config, self.fitting.data, body, self.devices), head)
        if self.phase.name == "fine_tuning":
            log.info("%d layers of the backbone learn", open_backbone(model, self.config.fine_tune_from))
        return ForwardPath(pictures, head, body)

    def estimate(self) -> None:
        """Say what a step needs of a device's memory, and warn where it has less."""
        free, images, model = memory.free_memory(), self.progress.microbatch_size, self.fitting.model
        needed, most = memory.estimate(model, images), memory.largest_batch(model, free)
        text = (
            f"{images} images at once need about {needed / 2**30:.2f} GiB of {free / 2**30:.2f} GiB that a device has"
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
                self.fitting.best.write(self.route.head)

    def take_less(self, error: tf.errors.ResourceExhaustedError) -> None:
        microbatch_size = self.progress.microbatch_size
        if microbatch_size == 1 or self.devices.workers > 1:
            raise TrainingError(
                f"out of memory with {microbatch_size} images at once on a device, at img_size {self.config.img_size}: "
                "lower batch_size_per_gpu (gradient_accumulation keeps the batch) or img_size, or set "
                "mixed_precision to bfloat16, and begin a new run"
            ) from error
        self.progress.microbatch_size = -(-microbatch_size // 2)
        log.warning(
            f"out of memory with {microbatch_size} images at once on a device: going on from epoch "
            f"{self.progress.epoch + 1} with {self.progress.microbatch_size}, {self.fitting.parts} times a step: the "
            f"batch is still {self.progress.batch}"
        )
        _, self.fitting.arrays = checkpoints.load(self.fitting.run) or (None, {})

    def attempt(self) -> None:
        learner, dataset = self.learner()
        if self.fitting.arrays:
            checkpoints.restore(learner, self.fitting.arrays)
        else:
            self.save(learner, [])
        last = self.progress.first + self.phase.epochs
        on_signal = callbacks.StopOnSignal()
        try:
            learner.fit(
                self.devices.distribute(dataset),
                initial_epoch=self.progress.epoch,
                epochs=last,
                steps_per_epoch=self.fitting.sampling.steps,
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

    def learner(self) -> tuple[TrainingModel, tf.data.Dataset]:
        """A compiled learner, and the batches of the epochs to come for one device."""
        source, share = self.route.source, self.devices.share
        dataset = source.training(self.fitting.training, self.fitting.examples, self.progress.epoch, share)
        with self.devices.scope():
            learner = TrainingModel(self.route, self.fitting.parts, self.config.clip_norm)
        compile_model(learner, self.config, self.phase.learning_rate, dataset.element_spec, self.devices)
        return learner, dataset

    def callbacks(self, learner: TrainingModel) -> list[keras.callbacks.Callback]:
        """The learning rate's, then those of an epoch's end: judge, keep the best, log, watch, and save all."""
        config, fitting, folder = self.config, self.fitting, self.fitting.run.path
        score = self.route.scorer(fitting.validation, self.progress.microbatch_size, self.devices)
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
        told = self.fitting.on_epoch
        return [keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: told(epoch + 1, logs))] if told else []

    def learning_rate(self) -> list[keras.callbacks.Callback]:
        cosine, warmup, steps = (
            self.config.lr_schedule == "cosine",
            self.config.warmup_epochs,
            self.fitting.sampling.steps,
        )
        if not cosine and not warmup:
            return []
        phase = self.phase
        return [callbacks.LearningRate(phase.learning_rate, self.progress.first, phase.epochs, steps, warmup, cosine)]

    def history(self, path: Path) -> list[keras.callbacks.Callback]:
        if not self.devices.chief:
            return []
        callbacks.keep_epochs(path, self.progress.epoch)
        return [callbacks.MetricsLogger(path, self.fitting.sampling.steps * self.progress.batch, self.phase.name)]

    def advance(
        self, learner: TrainingModel, watching: list[keras.callbacks.Callback], epoch: int, finished: bool
    ) -> None:
        self.progress.epoch, self.progress.finished = epoch, finished
        self.save(learner, watching)

    def save(self, learner: TrainingModel, watching: list[keras.callbacks.Callback]) -> None:
        best = self.fitting.best
        self.progress.best_epoch, self.progress.best = best.epoch, best.best
        self.progress.memory = checkpoints.memory_of(watching)
        self.progress.seconds = self.fitting.seconds()
        if self.devices.chief:
            checkpoints.save(self.fitting.run, self.progress, learner, best.arrays)
            best.settle()
