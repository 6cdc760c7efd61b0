"""What all phases of a run's training share, and how far they are."""

import logging
import time
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pandas as pd

from rsna_nb import metrics
from rsna_nb.config import RunConfig
from rsna_nb.runs import Run
from rsna_nb.training import checkpoints
from rsna_nb.training.callbacks import EpochCallback, TrainingError
from rsna_nb.training.checkpoints import BestCheckpoint, Progress
from rsna_nb.training.data import Data, class_weights
from rsna_nb.training.distribution import Devices
from rsna_nb.training.inputs import Examples
from rsna_nb.training.sampling import Sampling, global_batch

log = logging.getLogger(__name__)

FEW_STEPS = 10


@dataclass
class TrainingSession:
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
    on_epoch: EpochCallback | None = None

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
        if batch < self.config.batch_size_per_gpu * self.config.gradient_accumulation * self.devices.replicas:
            log.warning("the global batch is cut to the training images there are, %d", batch)
        return Progress(
            batch=batch, microbatch_size=min(self.config.batch_size_per_gpu, batch // self.devices.replicas)
        )

    def seconds(self) -> float:
        """Of training, those before the run was resumed among them."""
        return round(time.perf_counter() - self.started, 1)

    @property
    def parts(self) -> int:
        """Of a device's images in a step of the optimizer, that go through it one after another."""
        return -(-self.progress.batch // self.devices.replicas // self.progress.microbatch_size)

    def describe(self) -> None:
        batch, steps = self.progress.batch, self.sampling.steps
        log.info("images: %d for training, %d for validation", len(self.training), len(self.validation))
        log.info("global batch %d: %d steps an epoch", batch, steps)
        if self.parts > 1:
            log.info("a device takes %d images at once, %d times a step", self.progress.microbatch_size, self.parts)
        if self.sampling.positives:
            positives = int(self.training["cancer"].sum())
            log.info("%d images of each batch have cancer, of %d that there are", self.sampling.positives, positives)
        log.info("class weights: %.3f without cancer, %.3f with", self.class_weights[0], self.class_weights[1])
        if steps < FEW_STEPS:
            log.warning("only %d steps an epoch: a smaller batch_size_per_gpu would learn more from each", steps)

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


def column(values: pd.Series) -> np.ndarray:
    """float32 (n, 1)."""
    return values.to_numpy(np.float32)[:, np.newaxis]
