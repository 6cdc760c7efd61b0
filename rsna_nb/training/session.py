"""State and data that all phases of a run share."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import pandas as pd

from rsna_nb import metrics
from rsna_nb.config import RunConfig
from rsna_nb.model import Breasts
from rsna_nb.runs import Run
from rsna_nb.system import MlflowRun
from rsna_nb.training import checkpoints
from rsna_nb.training.callbacks import EpochCallback, TrainingError
from rsna_nb.training.checkpoints import BestCheckpoint, Progress
from rsna_nb.training.data import Data
from rsna_nb.training.distribution import Devices
from rsna_nb.training.inputs import Examples
from rsna_nb.training.sampling import (
    FEW_STEPS,
    LARGEST_BATCH,
    SMALLEST_BATCH,
    Sampling,
    batch_size,
    examples_per_device,
    global_batch,
    places_of,
)
from rsna_nb.training.training_model import TrainingModel

log = logging.getLogger(__name__)


@dataclass
class TrainingSession:
    """One run in training. `phases` reads everything that it needs from here, including the settings.

    Creating a session reads the run's saved state, if there is one.

    Raises
    ------
    TrainingError
        If a resumed run's batch cannot be divided among the devices present.
    """

    config: RunConfig
    run: Run
    devices: Devices
    model: keras.Model
    data: Data
    on_epoch: EpochCallback | None = None
    mlflow: MlflowRun | None = None

    def __post_init__(self) -> None:
        self.training, self.validation = self.data.rows("train"), self.data.rows("validation")
        self.breasts = (
            {}
            if self.config.unit == "image"
            else {
                split: Breasts.of(self.data.rows(split), self.config.unit)
                for split in sorted({*self.data.table["split"]})
            }
        )
        path = self.run.path / "checkpoints" / "best.keras"
        self.best = BestCheckpoint(path, self.config.monitor, self.model, self.devices.chief)
        self.progress, self.arrays = checkpoints.load(self.run) or (self._first_progress(), {})
        # The validation scores of each epoch; a state of an earlier version has none.
        self.epoch_scores = list(self.arrays.pop(checkpoints.SCORES, []))
        self.devices.check_same("state of the run", self.progress.epoch, self.progress.phase, self.progress.batch)
        self.best.recall(self.progress, self.arrays)
        self.started = time.perf_counter() - self.progress.seconds
        batch, replicas = self.progress.batch, self.devices.replicas
        if batch % replicas:
            raise TrainingError(
                f"the run has batches of {batch} {self.what}, which {replicas} devices cannot share equally: resume it "
                "with a number of devices that divides the batch"
            )
        cancer, weighted = self.examples_of("train")["cancer"], self.config.imbalance == "class_weight"
        self.sampling = Sampling.of(self.config, cancer.to_numpy(), batch)
        self.sampled_share = self.sampling.positives / batch  # of positives in balanced batches, 0 in others
        share = 0.5 if weighted else self.sampled_share
        # Balanced batches have more positives instead of weights; these weights would have the same effect.
        self.effective_weights = metrics.class_weights(cancer, share) if share else {0: 1.0, 1: 1.0}
        self.loss_weights = self.effective_weights if weighted else {0: 1.0, 1: 1.0}
        # The weights that scores can be corrected for; None if there are none.
        self.prior_weights = metrics.training_class_weights(
            self.config, len(cancer), int(cancer.sum()), self.sampled_share
        )
        self.examples = Examples.of(cancer, self.loss_weights, self.sampling, self.breasts.get("train"))

    def examples_of(self, split: str) -> pd.DataFrame:
        """A row for each example of a split, with cancer: the images, or the breasts if `unit` is not "image"."""
        return self.breasts[split].table if self.breasts else self.data.rows(split)

    def _first_progress(self) -> Progress:
        replicas, examples = self.devices.replicas, len(self.examples_of("train"))
        batch, own = (count(self.config, replicas, examples) for count in (global_batch, examples_per_device))
        images = examples * places_of(self.config)
        used = batch_size(self.config, replicas, images)
        if not self.config.batch_size_per_gpu:
            log.info(
                f"{used} images per GPU in a batch, from the images of an epoch ({images}): the largest of "
                f"{LARGEST_BATCH} and its halves that gives an epoch {FEW_STEPS} steps, at least {SMALLEST_BATCH}"
            )
        if used < places_of(self.config):
            log.warning(
                f"a batch has {places_of(self.config)} images per GPU and not the {used} asked for: those of one breast"
            )
        if batch < own * self.config.gradient_accumulation * replicas:
            log.warning("the global batch is limited to the %d training %s", batch, self.what)
        return Progress(batch, min(own, batch // replicas))

    @property
    def what(self) -> str:
        """What an example is, in the plural."""
        return "breasts" if self.breasts else "images"

    def describe(self) -> None:
        """Log the batches, the class weights, and which scores pF1 is computed from."""
        batch, steps, micro = self.progress.batch, self.sampling.steps, self.progress.microbatch_size
        log.info("images: %d for training, %d for validation", len(self.training), len(self.validation))
        if self.breasts:
            count = [len(self.examples_of(split)) for split in ("train", "validation")]
            log.info("breasts: %d for training, %d for validation, each with one score", *count)
        log.info("global batch %d %s: %d steps per epoch", batch, self.what, steps)
        if self.microbatches > 1:
            log.info("each step runs as %d microbatches of %d %s per device", self.microbatches, micro, self.what)
        if self.sampling.positives:
            positives = int(self.sampling.cancer.sum())
            log.info("each batch has %d %s with cancer, sampled from %d", self.sampling.positives, self.what, positives)
        log.info("class weights: %.3f without cancer, %.3f with", self.loss_weights[0], self.loss_weights[1])
        scores = "scores corrected for the class weights" if self.prior_weights else "uncorrected scores"
        log.info("val_pf1 and pf1 are computed from %s", scores)
        if steps < FEW_STEPS:
            log.warning("only %d steps per epoch: a smaller batch_size_per_gpu would take more steps", steps)

    @property
    def seconds(self) -> float:
        """Training time so far in seconds, including the time before the run was resumed."""
        return round(time.perf_counter() - self.started, 1)

    @property
    def microbatches(self) -> int:
        """Number of microbatches in one optimizer step; a device processes them one after another."""
        return -(-self.progress.batch // self.devices.replicas // self.progress.microbatch_size)

    def validation_loss(self) -> dict[str, Any]:
        """Options of `metrics.by_image` that make val_loss the training loss, also if batches are balanced."""
        return {
            "weights": self.examples_of("validation")["cancer"].map(self.effective_weights).to_numpy(),
            "positive_label": self.config.positive_label,
            "focal_gamma": self.config.focal_gamma if self.config.imbalance == "focal" else 0.0,
        }

    def begin_phase(self, number: int) -> None:
        """Begin the next phase, from the last network of the phase before.

        Not from the best: it was chosen on the validation women, so every epoch of this phase would flatter them, by
        0.1 of AUC where there is nothing to learn, and no choice among these epochs could undo it.
        """
        self.progress.phase, self.progress.first, self.progress.finished = number, self.progress.epoch, False
        self.progress.memory = {}
        for variable in self.model.variables:
            # A run resumed here builds its network again, so its dropout layers count from 0: do the same.
            if variable.path.endswith("seed_generator_state"):
                variable.assign(variable.numpy() * [1, 0])

    def save(self, model: TrainingModel, monitors: Sequence[keras.callbacks.Callback] = ()) -> None:
        """Write the state; it includes the counters of the callbacks in `monitors`."""
        self.progress.best_epoch, self.progress.best = self.best.epoch, self.best.best
        self.progress.memory, self.progress.seconds = checkpoints.memory_of(monitors), self.seconds
        if self.devices.chief:
            checkpoints.save(self.run, self.progress, model, self.best.arrays, self.epoch_scores)
            self.best.settle()


class SaveState(keras.callbacks.Callback):
    """Saves the state after every epoch; place it after all callbacks whose results belong to the state.

    Before the first epoch it restores the saved state of `monitors`.
    """

    def __init__(self, session: TrainingSession, monitors: Sequence[keras.callbacks.Callback]) -> None:
        super().__init__()
        self.session, self.monitors = session, monitors

    def on_train_begin(self, logs: Any = None) -> None:
        checkpoints.remember(self.monitors, self.session.progress.memory)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.session.progress.epoch = epoch + 1
        self.session.progress.finished = self.model.stop_training or epoch + 1 == self.params["epochs"]
        self.session.save(self.model, self.monitors)
