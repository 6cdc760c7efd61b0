"""The phases of training: a head on a frozen backbone or the whole network, then optionally fine-tuning."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from rsna_nb.config import RunConfig
from rsna_nb.model import body_of, head_of, open_backbone, score_breasts
from rsna_nb.training import callbacks, checkpoints, features
from rsna_nb.training.callbacks import SignalError, TrainingError
from rsna_nb.training.inputs import Pictures
from rsna_nb.training.sampling import places_of
from rsna_nb.training.session import SaveState, TrainingSession
from rsna_nb.training.training_model import ForwardPath, TrainingModel, compile_model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phase:
    """A part of training with an optimizer, a learning rate and patience counters of its own."""

    name: str  # "head", "network" or "fine_tuning": the column `phase` of history.csv
    epochs: int
    learning_rate: float


def phases_of(config: RunConfig) -> list[Phase]:
    """The phases that the settings ask for, in order.

    >>> [phase.name for phase in phases_of(RunConfig(fine_tune_epochs=5))]
    ['head', 'fine_tuning']
    """
    first = Phase("head" if config.freeze_backbone else "network", config.epochs, config.learning_rate)
    second = Phase("fine_tuning", config.fine_tune_epochs, config.fine_tune_learning_rate)
    return [first, second] if config.fine_tune_epochs else [first]


def fit(session: TrainingSession) -> None:
    """Train to the end of the last phase, from the session's current state.

    Leaves best.keras, history.csv and TensorBoard's files in the run folder, and the best epoch in `session.best`.

    Raises
    ------
    TrainingError
        If training ends early, or the monitored metric was not a number in any epoch.
    """
    session.describe()
    for number, phase in enumerate(phases_of(session.config)):
        if number > session.progress.phase:
            session.begin_phase(number)
        if number == session.progress.phase:
            PhaseTrainer(session, phase).fit()
    if session.best.epoch == 0:
        raise TrainingError(f"{session.config.monitor} was not a number in any epoch: see logs/history.csv")


class PhaseTrainer:
    """Trains one phase of a run."""

    def __init__(self, session: TrainingSession, phase: Phase) -> None:
        self.session, self.phase, self.progress = session, phase, session.progress
        self.forward_path = _choose_forward_path(session, phase)
        self.from_bank = not isinstance(self.forward_path.source, Pictures)

    def fit(self) -> None:
        """Train to the phase's end; if memory runs out, continue from its last epoch with smaller microbatches."""
        if self.progress.finished and self.session.arrays:  # resumed between two phases: the next goes on from this one
            model, _ = self._compiled()
            self._restore(model)
            # As Keras's fit does after its last epoch: the averaged weights take the place of the last ones.
            model.optimizer.finalize_variable_values(model.trainable_variables)
        try:
            while not self.progress.finished:
                try:
                    self._attempt()
                except tf.errors.ResourceExhaustedError as error:
                    self._halve_microbatches(error)
        finally:
            # Also after an error, to keep the best head so far, and in a resumed run that was killed between the end of
            # the phase and the writing of best.keras.
            if self.from_bank:
                self.session.best.write(self.forward_path.head)

    def _halve_microbatches(self, error: tf.errors.ResourceExhaustedError) -> None:
        size, config = self.progress.microbatch_size, self.session.config
        # Several computers would have to halve together, but an error on one ends the others.
        if size == 1 or self.session.devices.workers > 1:
            fewer = "" if config.unit == "image" else f", images_per_breast ({config.images_per_breast})"
            raise TrainingError(
                f"out of memory with microbatches of {size} {self.session.what} on a device, at img_size "
                f"{config.img_size}: lower batch_size_per_gpu (gradient_accumulation keeps the batch){fewer} or "
                "img_size, or set mixed_precision to bfloat16, and begin a new run"
            ) from error
        self.progress.microbatch_size = -(-size // 2)
        log.warning(
            f"out of memory with microbatches of {size} {self.session.what} on a device: continuing from epoch "
            f"{self.progress.epoch + 1} with {self.session.microbatches} microbatches of "
            f"{self.progress.microbatch_size}; the global batch is still {self.progress.batch}"
        )
        _, self.session.arrays = checkpoints.load(self.session.run) or (None, {})

    def _attempt(self) -> None:
        session, last = self.session, self.progress.first + self.phase.epochs
        model, dataset = self._compiled()
        for kept in (self.progress.history, session.epoch_scores):
            del kept[self.progress.epoch :]  # of an epoch that was not saved
        if session.arrays:
            self._restore(model)
        else:
            session.save(model)
        with callbacks.StopOnSignal() as on_signal:
            model.fit(
                session.devices.distribute(dataset),
                initial_epoch=self.progress.epoch,
                epochs=last,
                steps_per_epoch=session.sampling.steps,
                callbacks=[callbacks.StopAtNaN(), on_signal, *self._callbacks()],
                shuffle=False,  # the dataset has the order of every epoch
                verbose=0,
            )
        if on_signal.received:  # after the last step of an epoch
            raise SignalError("SIGTERM at the end of an epoch")
        if self.progress.epoch < last:
            patience, monitor = session.config.early_stopping_patience, session.config.monitor
            log.info("stopped early: %s did not improve for %d epochs", monitor, patience)

    def _restore(self, model: TrainingModel) -> None:
        checkpoints.restore(model, self.session.arrays)
        self.session.arrays = {}  # what the networks learn from here on is newer

    def _compiled(self) -> tuple[TrainingModel, tf.data.Dataset]:
        """A compiled model, and the batches of the remaining epochs for one device."""
        session, path = self.session, self.forward_path
        dataset = path.source.training(session.training, session.examples, self.progress.epoch, session.devices.share)
        with session.devices.scope():
            model = TrainingModel(path, session.microbatches, session.config.clip_norm)
        compile_model(model, session.config, self.phase.learning_rate, dataset.element_spec, session.devices)
        return model, dataset

    def _callbacks(self) -> list[keras.callbacks.Callback]:
        """The callbacks in the order in which they run at the end of an epoch.

        Validation and the best network come first, between the swaps of averaged weights, then the history, plateau
        and early stopping, and the state. The caller's `on_epoch` is last: if it raises, the epoch is already saved.
        """
        session, phase, config = self.session, self.phase, self.session.config
        devices, steps, on_epoch = session.devices, session.sampling.steps, session.on_epoch
        score, rows, kept = self._scorer(), session.examples_of("validation"), session.epoch_scores
        validate = callbacks.Validate(score, rows, session.prior_weights, kept, **session.validation_loss())
        session.best.watch(validate, self.forward_path.head if self.from_bank else None)
        swap = [callbacks.SwapAverages()] if config.ema else []
        monitors = callbacks.monitors(config, session.run.path / "tensorboard" if devices.chief else None)
        cosine, warmup = config.lr_schedule == "cosine", config.warmup_epochs
        rate = callbacks.LearningRate(phase.learning_rate, self.progress.first, phase.epochs, steps, warmup, cosine)
        chosen = [rate, callbacks.LogFirstStep(), *swap, validate, session.best, *swap]
        if devices.chief:
            path, images = session.run.path / "logs" / "history.csv", steps * self.progress.batch * places_of(config)
            chosen.append(callbacks.MetricsLogger(path, self.progress.history, images, phase.name))
        chosen += [*monitors, SaveState(session, monitors)]
        if session.mlflow:
            chosen.append(callbacks.LogToMlflow(session.mlflow, self.progress.history))
        if on_epoch:
            chosen.append(keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: on_epoch(epoch + 1, logs)))
        return chosen

    def _scorer(self) -> Callable[[], np.ndarray]:
        """A function that scores the validation examples."""
        session, path = self.session, self.forward_path
        images = self.progress.microbatch_size * places_of(session.config)
        if not session.breasts:
            return path.scorer(session.validation, images, session.devices)
        head, features = path.features(session.validation, images, session.devices)
        return lambda: score_breasts(head, features(), session.breasts["validation"])


def _choose_forward_path(session: TrainingSession, phase: Phase) -> ForwardPath:
    model, pictures, by_breast = session.model, Pictures(session.config.image_shape), bool(session.breasts)
    if phase.name == "network":
        return ForwardPath(pictures, model, by_breast=by_breast)
    with session.devices.scope():
        body, head = body_of(model), head_of(model)
    if phase.name == "head" and features.applies(session.config):
        log.info("the head trains on the feature bank (feature_bank false runs the backbone in every epoch)")
        bank = features.features_of(session.config, session.data, body, session.devices)
        return ForwardPath(bank, head, by_breast=by_breast)
    if phase.name == "fine_tuning":
        log.info("fine-tuning %d layers of the backbone", open_backbone(model, session.config.fine_tune_from))
    return ForwardPath(pictures, head, body, by_breast)
